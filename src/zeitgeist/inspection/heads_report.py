"""What a scan of attention heads reports: rows per head, sink, layer and massive coordinate.

From measures per window, layer, head and token (`zeitgeist.inspection.heads_measures`): sinks of
every window first, then everything else against them.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from safetensors.torch import save_file
from torch import Tensor

from zeitgeist.checkpoints import new_directory, versions
from zeitgeist.inspection.heads_measures import Kind, classify, find_sinks
from zeitgeist.inspection.heads_options import HeadsOptions

REPORT, TENSORS = "heads.json", "heads.safetensors"
_PAPER = "arXiv 2410.13835"


@dataclass(frozen=True)
class HeadRow:
    """One head on one domain, means over windows.

    ``error`` is the standard error of ``sink_mass``; ``sink_logit`` D of the strongest sink;
    ``value_ratio`` its value norm / that of tokens that are no sinks; ``output_ratio`` the norm of
    the head's output / the mean of its layer's heads. None: there was no sink.
    """

    layer: int
    head: int
    domain: str
    sink_mass: float
    error: float
    sink_logit: float | None
    value_ratio: float | None
    output_ratio: float
    row_entropy: float
    column_entropy: float
    kind: Kind


@dataclass(frozen=True)
class SinkRow:
    """A position at which windows of a domain have a sink, and the tokens that stood there."""

    domain: str
    position: int
    share: float
    tokens: tuple[str, ...]


@dataclass(frozen=True)
class PeakRow:
    """Norms of the residual stream after a layer (-1: before the first), means over windows.

    The largest at a sink (None: there was none), the largest elsewhere, the median elsewhere.
    """

    domain: str
    layer: int
    sink: float | None
    largest: float
    median: float


@dataclass(frozen=True)
class MassiveRow:
    """A coordinate that is massive: in which layers, how large where it is largest, and where.

    ``ratio`` is to the median magnitude of that layer, ``at_sinks`` the share that stands at sinks.
    """

    domain: str
    coordinate: int
    first: int
    last: int
    largest: int
    value: float
    ratio: float
    at_sinks: float


@dataclass(frozen=True)
class HeadsReport:
    """What `scan` found.

    ``tensors`` has, as ``domain.name``: per window, layer and head ``sink_mass``, ``sink_logit``,
    ``value_ratio``, ``output_norm``, ``row_entropy`` and ``column_entropy``; ``stream`` (windows x
    layers + 1 x tokens), ``values`` (layers x heads x tokens), ``sinks`` (windows x tokens).
    """

    options: HeadsOptions
    layers: tuple[int, ...]
    heads: tuple[HeadRow, ...]
    sinks: tuple[SinkRow, ...]
    peaks: tuple[PeakRow, ...]
    massive: tuple[MassiveRow, ...]
    tensors: Mapping[str, Tensor]

    @property
    def domains(self) -> tuple[str, ...]:
        """In their order."""
        return tuple(dict.fromkeys(row.domain for row in self.heads))

    @cached_property
    def _by_head(self) -> dict[tuple[int, int, str], HeadRow]:
        return {(row.layer, row.head, row.domain): row for row in self.heads}

    def row(self, layer: int, head: int, domain: str) -> HeadRow:
        """Of one head on one domain."""
        return self._by_head[layer, head, domain]

    def gaps(self, one: str, other: str) -> list[tuple[int, int, float, float]]:
        """Layer, head, difference of sink mass and its standard error; the largest first."""
        pairs = [(row, self.row(row.layer, row.head, other)) for row in self.heads
                 if row.domain == one]  # fmt: skip
        found = [
            (a.layer, a.head, a.sink_mass - b.sink_mass, (a.error**2 + b.error**2) ** 0.5)
            for a, b in pairs
        ]
        return sorted(found, key=lambda row: -abs(row[2]))

    def told(self) -> dict[str, Any]:
        """Everything but the tensors, as JSON takes it."""
        return {
            "paper": _PAPER,
            "versions": versions(),
            "options": asdict(self.options),
            **{
                name: [asdict(row) for row in getattr(self, name)]
                for name in ("heads", "sinks", "peaks", "massive")
            },
        }

    def save(self, out: str | Path, *, overwrite: bool = False) -> None:
        """Write ``heads.json`` and ``heads.safetensors`` into a new directory.

        Raises
        ------
        OutputExists
            ``out`` is there and ``overwrite`` is false.
        """
        with new_directory(Path(out), overwrite=overwrite, replaces=(REPORT,)) as partial:
            (partial / REPORT).write_text(json.dumps(self.told(), indent=2), encoding="utf-8")
            save_file({k: x.contiguous() for k, x in self.tensors.items()}, partial / TENSORS)


@dataclass(frozen=True)
class Seen:
    """One domain's measures, and what follows from them.

    ``pattern`` is windows x layers x 4 x heads x tokens (`attention_measures`), ``values`` and
    ``outputs`` windows x layers x heads x tokens (`head_norms`), ``stream`` windows x layers + 1 x
    tokens x ... (`stream_measures`).
    """

    domain: str
    options: HeadsOptions
    layers: tuple[int, ...]
    pattern: Float[Tensor, "b l 4 h n"]
    values: Float[Tensor, "b l h n"]
    outputs: Float[Tensor, "b l h n"]
    stream: Float[Tensor, "b k n m"]

    @cached_property
    def sinks(self) -> Bool[Tensor, "b n"]:
        """Tokens that are sinks."""
        known = self.options
        return find_sinks(
            self.pattern[:, :, 0],
            mass=known.sink_mass,
            share=known.sink_share,
            queries=known.sink_queries,
        )

    @cached_property
    def strongest(self) -> Int[Tensor, " b"]:
        """The sink of every window that gets most attention, -1 where there is none."""
        return strongest_sinks(self.pattern[:, :, 0], self.sinks)

    @cached_property
    def per_head(self) -> dict[str, Float[Tensor, "b l h"]]:
        """Measures per window, layer and head; NaN where they need a sink and there is none."""
        got, logits, rows, columns = self.pattern.unbind(2)
        n = got.shape[-1]
        followed = (n - 1 - self.strongest)[:, None, None]
        return {
            "sink_mass": sink_mass(got, self.sinks),
            "sink_logit": _at(logits, self.strongest) / followed,
            "value_ratio": _at(self.values, self.strongest) / _mean_at(self.values, ~self.sinks),
            "output_norm": self.outputs[..., 1:].mean(-1),
            "row_entropy": rows[..., 1:].mean(-1),
            "column_entropy": columns.amax(-1),
        }

    def head_rows(self) -> Iterator[HeadRow]:
        """Of every layer and head."""
        means = {name: x.nanmean(0) for name, x in self.per_head.items()}
        mass = self.per_head["sink_mass"]
        error = mass.std(0) / len(mass) ** 0.5 if len(mass) > 1 else torch.zeros_like(mass[0])
        output = means["output_norm"] / means["output_norm"].mean(1, keepdim=True)
        for place, layer in enumerate(self.layers):
            for head in range(mass.shape[2]):
                at = place, head
                a = float(means["sink_mass"][at])
                yield HeadRow(
                    layer,
                    head,
                    self.domain,
                    a,
                    float(error[at]),
                    _known(means["sink_logit"][at]),
                    _known(means["value_ratio"][at]),
                    float(output[at]),
                    float(means["row_entropy"][at]),
                    float(means["column_entropy"][at]),
                    classify(a, active=self.options.active, dormant=self.options.dormant),
                )

    def sink_rows(self, tokenizer: Any, ids: Int[Tensor, "b n"]) -> Iterator[SinkRow]:
        """Positions of sinks, those of most windows first, with up to five of their tokens."""
        share = self.sinks.float().mean(0)
        decode = getattr(tokenizer, "decode", str)
        for position in share.argsort(descending=True, stable=True)[: int((share > 0).sum())]:
            tokens = ids[self.sinks[:, position], position].tolist()
            names = tuple(dict.fromkeys(str(decode([token])) for token in tokens))
            yield SinkRow(self.domain, int(position), float(share[position]), names[:5])

    def peak_rows(self) -> Iterator[PeakRow]:
        """Norms of the residual stream."""
        norms = self.stream[..., 0]
        wide = self.sinks[:, None].expand_as(norms)
        own = norms.masked_fill(~wide, 0.0).amax(-1)
        at = torch.where((self.strongest < 0)[:, None], torch.nan, own).nanmean(0)
        largest = norms.masked_fill(wide, 0.0).amax(-1).mean(0)
        median = norms.masked_fill(wide, torch.nan).transpose(0, 1).flatten(1).nanmedian(1).values
        for place, layer in enumerate((self.layers[0] - 1, *self.layers)):
            yield PeakRow(
                self.domain, layer, _known(at[place]), float(largest[place]), float(median[place])
            )

    def massive_rows(self) -> Iterator[MassiveRow]:
        """Massive coordinates, the largest first."""
        median = self.stream[..., 1].mean((0, 2))
        count = (self.stream.shape[-1] - 2) // 2
        values = self.stream[..., 2 : 2 + count]
        places = self.stream[..., 2 + count :].long()
        size = values.abs()
        floor = (self.options.massive * median)[:, None, None].clamp_min(self.options.magnitude)
        found = size > floor
        names = (self.layers[0] - 1, *self.layers)
        rows = []
        for coordinate in places[found].unique().tolist():
            own = found & (places == coordinate)
            layers = own.any(-1).any(-1).any(0).nonzero().flatten().tolist()
            largest = int(torch.where(own, size, 0.0).amax((0, 2, 3)).argmax())
            there = own[:, largest]
            value = float(values[:, largest][there].mean())
            at = self.sinks[:, None, :, None].expand_as(own)[own]
            rows.append(
                MassiveRow(
                    self.domain,
                    int(coordinate),
                    names[layers[0]],
                    names[layers[-1]],
                    names[largest],
                    value,
                    abs(value) / float(median[largest]),
                    float(at.float().mean()),
                )
            )
        yield from sorted(rows, key=lambda row: -abs(row.value))

    def kept(self) -> dict[str, Tensor]:
        """What is saved."""
        return {
            **self.per_head,
            "received": self.pattern[:, :, 0].mean(0),
            "values": self.values.mean(0),
            "stream": self.stream[..., 0],
            "sinks": self.sinks,
        }


def sink_mass(got: Float[Tensor, "b l h n"], sinks: Bool[Tensor, "b n"]) -> Float[Tensor, "b l h"]:
    """A: the mean weight of queries t >= 1 on sinks before them.

    Examples
    --------
    >>> sink_mass(torch.tensor([[[[1.5, 0.1, 0.0]]]]), torch.tensor([[True, False, False]]))
    tensor([[[0.7500]]])
    """
    return (got * sinks[:, None, None]).sum(-1) / (got.shape[-1] - 1)


def strongest_sinks(got: Float[Tensor, "b l h n"], sinks: Bool[Tensor, "b n"]) -> Int[Tensor, " b"]:
    """The sink of every row that gets most attention over all heads, -1 where there is none.

    Examples
    --------
    >>> got = torch.tensor([[[[0.5, 1.0, 0.0]]], [[[0.5, 1.0, 0.0]]]])
    >>> strongest_sinks(got, torch.tensor([[True, True, False], [False, False, False]]))
    tensor([ 1, -1])
    """
    mean = got.mean((1, 2)).masked_fill(~sinks, -1.0)
    return torch.where(sinks.any(-1), mean.argmax(-1), -1)


def _at(x: Float[Tensor, "b l h n"], token: Int[Tensor, " b"]) -> Float[Tensor, "b l h"]:
    """What stands at one token of every window; NaN where it is -1."""
    index = token.clamp_min(0)[:, None, None, None].expand(*x.shape[:3], 1)
    return torch.where((token < 0)[:, None, None], torch.nan, x.gather(-1, index)[..., 0])


def _mean_at(x: Float[Tensor, "b ... n"], chosen: Bool[Tensor, "b n"]) -> Float[Tensor, "b ..."]:
    """Mean over the chosen tokens of every window; NaN where there is none."""
    wide = chosen.view(len(chosen), *(1,) * (x.ndim - 2), -1)
    return (x * wide).sum(-1) / wide.sum(-1)


def _known(value: Tensor) -> float | None:
    return None if bool(value.isnan()) else float(value)
