"""Does a head or a sub-layer matter, on which text, and does it make the peak?

Guo, Pai, Bai, Jiao, Jordan, Mei, arXiv 2410.13835: a head that is dormant on a text can be taken
out there at no cost, and costs where it is active; taking out the sub-layer that makes the peak
takes the peak with it. Three ways to take a part out:

    zero      its output becomes 0
    mean      its output becomes its mean over all tokens of all domains
    to-sink   all its attention goes to the strongest sink of the window, which is what a dormant
              head does anyway (heads and attention only)

Losses are next-token losses (nats per token). They are paired by window, and the interval of their
difference is a bootstrap over texts, or over windows where a domain is one text.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from tqdm import tqdm

from zeitgeist.activations import capture, layout_of, patch
from zeitgeist.activations.capture import Key, Reduction
from zeitgeist.activations.sites import depth_of
from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.heads import run_inside
from zeitgeist.inspection.heads_measures import find_sinks, moved_to, received
from zeitgeist.inspection.heads_options import HeadsOptions
from zeitgeist.inspection.heads_report import sink_mass, strongest_sinks
from zeitgeist.inspection.heads_windows import Windows, check_context, domain_windows

__all__ = ["Ablated", "Part", "ablate"]

How = Literal["zero", "to-sink", "mean"]
RESAMPLES = 2000
_NAME = re.compile(r"(?:(attention|mlp):)?(\d+)(?:\.(\d+))?")


@dataclass(frozen=True)
class Part:
    """A head (``head`` is a number), an attention layer or an MLP."""

    kind: Literal["head", "attention", "mlp"]
    layer: int
    head: int = -1

    @classmethod
    def named(cls, name: str) -> "Part":
        """From ``"16.25"`` (layer, head), ``"attention:16"`` or ``"mlp:2"``.

        Raises
        ------
        InputInvalid
            It is none of these.

        Examples
        --------
        >>> Part.named("16.25"), str(Part.named("mlp:2"))
        (Part(kind='head', layer=16, head=25), 'mlp:2')
        """
        found = _NAME.fullmatch(name.strip())
        if found is None or (found[1] is None) == (found[3] is None):
            raise InputInvalid(
                f"{name!r} is no part of a model", mend="such as 16.25, attention:16 or mlp:2"
            )
        if found[1] is None:
            return cls("head", int(found[2]), int(found[3]))
        return cls("mlp" if found[1] == "mlp" else "attention", int(found[2]))

    def __str__(self) -> str:
        return f"{self.layer}.{self.head}" if self.kind == "head" else f"{self.kind}:{self.layer}"


@dataclass(frozen=True)
class Ablated:
    """What one ablation did on one domain.

    ``change`` is the mean rise of the loss (nats per token) over ``windows``, which for ``to-sink``
    are those that have a sink, with its 95 % interval (None: one window gives none). ``sink_mass``
    is the mean over all heads, and ``peak`` the norm of the residual stream at sinks over its
    median, where that is largest over layers; both before and after, at the sinks of the whole
    model (None: it has none here).
    """

    part: str
    how: str
    domain: str
    windows: int
    loss: float
    change: float
    low: float | None
    high: float | None
    sink_mass: tuple[float, float]
    peak: tuple[float, float] | None


@torch.no_grad()
def ablate(
    model: Any,
    tokenizer: Any,
    domains: Mapping[str, Sequence[str] | str],
    parts: Sequence[str | Part],
    how: How = "zero",
    options: HeadsOptions | None = None,
    *,
    together: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> list[Ablated]:
    """What each domain loses when heads or sub-layers are taken out.

    Guo, Pai, Bai, Jiao, Jordan, Mei, arXiv 2410.13835.

    Parameters
    ----------
    model, tokenizer
        A causal transformers model and its tokenizer.
    domains
        Name to texts; see `zeitgeist.inspection.heads.scan`.
    parts
        Such as ``["16.25", "attention:3", "mlp:2"]``.
    how
        ``"zero"``, ``"to-sink"`` or ``"mean"``.
    options
        Windows, and what a sink is; None: the defaults of `HeadsOptions`.
    together
        Take all parts out at once; else one after the other.
    seed
        Of the bootstrap.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    list of Ablated
        A row per ablation and domain.

    Raises
    ------
    InputInvalid
        No part, one that the model does not have, an MLP that is to attend to a sink, a
        domain without a sink to attend to, or texts as in `scan`.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=128,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> def letters(text, add_special_tokens): return {"input_ids": list(map(ord, text))}
    >>> rows = ablate(LlamaForCausalLM(LlamaConfig(**shape)), letters, {"all": "a text " * 9},
    ...               ["0.1", "mlp:1"], options=HeadsOptions(length=20), progress=False)
    >>> [(row.part, row.domain) for row in rows]
    [('0.1', 'all'), ('mlp:1', 'all')]
    """
    chosen = options or HeadsOptions()
    wanted = [Part.named(part) if isinstance(part, str) else part for part in parts]
    _check(model, wanted, how)
    check_context(model, chosen.length)
    windows = domain_windows(
        tokenizer, domains, length=chosen.length, count=chosen.windows, bos=chosen.bos
    )
    groups = [wanted] if together else [[part] for part in wanted]
    total = (1 + len(groups)) * sum(len(each.ids) for each in windows.values())
    hidden = None if progress is None else not progress
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=total, desc="ablate", unit="window", disable=hidden) as bar:
            bench = _Bench(model, windows, chosen, bar.update)
            means = bench.means(wanted) if how == "mean" else {}
            whole = {name: bench.measured(name) for name in windows}
            if how == "to-sink":
                _check_sinks(bench.sinks)
            rows = []
            for group in groups:
                for name in windows:
                    after = bench.measured(name, group, how, means)
                    moved = bench.strongest[name] >= 0
                    kept = moved if how == "to-sink" else torch.ones_like(moved)
                    rows.append(
                        _row(group, how, name, whole[name], after, kept, windows[name], seed)
                    )
    finally:
        model.train(was_training)
    return rows


@dataclass(frozen=True)
class _Measured:
    losses: Float[Tensor, " b"]
    sink_mass: float
    peak: float | None


class _Bench:
    """The model on its windows, whole or without some parts."""

    def __init__(
        self,
        model: Any,
        windows: Mapping[str, Windows],
        options: HeadsOptions,
        count: Callable[[int], Any],
    ) -> None:
        self.model, self.windows, self.options, self.count = model, windows, options, count
        self.layers = range(depth_of(model, layout_of(model)))
        self.sinks: dict[str, Tensor] = {}
        self.strongest: dict[str, Tensor] = {}

    def means(self, parts: Sequence[Part]) -> dict[Part, Tensor]:
        """Every part's mean output over all tokens of all domains."""
        sites = {part: _site(part) for part in parts}

        def total(x: Tensor) -> Tensor:
            return x.float().sum((0, 1))

        sums: dict[Part, Tensor] = {}
        tokens = 0
        for each in self.windows.values():
            for ids in each.ids.split(self.options.batch_size):
                names = sorted({name for name, _ in sites.values()})
                layers = sorted({layer for _, layer in sites.values()})
                reduce: dict[Key, Reduction] = dict.fromkeys(names, total)
                with capture(self.model, names, layers=layers, reduce=reduce) as acts:
                    run_inside(self.model, ids)
                for part, site in sites.items():
                    sums[part] = sums.get(part, 0) + acts[site]
                tokens += ids.numel()
        return {part: x / tokens for part, x in sums.items()}

    def measured(
        self,
        domain: str,
        parts: Sequence[Part] = (),
        how: How = "zero",
        means: Mapping[Part, Tensor] | None = None,
    ) -> _Measured:
        """Losses, sink mass and peak; the whole model must come first, for it has the sinks."""

        def norms(x: Tensor) -> Tensor:
            made: Tensor = x.float().norm(dim=-1)
            return made

        losses, got, stream = [], [], []
        batches = self.windows[domain].ids.split(self.options.batch_size)
        for place, ids in enumerate(batches):
            at = place * self.options.batch_size
            sinks = self.strongest[domain][at : at + len(ids)] if parts else None
            reduce: dict[Key, Reduction] = {"pattern": received, "resid_post": norms}
            with (
                _without(self.model, parts, how, means or {}, sinks),
                capture(self.model, ["pattern", "resid_post"], reduce=reduce) as acts,
            ):
                logits = self.model(input_ids=ids.to(self.model.device), use_cache=False).logits
            losses.append(next_token_losses(logits, ids.to(logits.device)).cpu())
            del logits
            got.append(torch.stack([acts["pattern", each] for each in self.layers], 1).cpu())
            stream.append(torch.stack([acts["resid_post", each] for each in self.layers], 1).cpu())
            self.count(len(ids))
        weights, norm = torch.cat(got), torch.cat(stream)
        if not parts:
            known = self.options
            self.sinks[domain] = find_sinks(
                weights,
                mass=known.sink_mass,
                share=known.sink_share,
                queries=known.sink_queries,
            )
            self.strongest[domain] = strongest_sinks(weights, self.sinks[domain])
        sink = self.sinks[domain]
        peak = None
        if bool(sink.any()):
            wide = sink[:, None].expand_as(norm)
            own = norm.masked_fill(~wide, 0.0).amax(-1)[sink.any(-1)].mean(0)
            rest = norm.masked_fill(wide, torch.nan).transpose(0, 1).flatten(1).nanmedian(1).values
            peak = float((own / rest).max())
        return _Measured(torch.cat(losses), float(sink_mass(weights, sink).mean()), peak)


def next_token_losses(
    logits: Float[Tensor, "b n v"], ids: Int[Tensor, "b n"]
) -> Float[Tensor, " b"]:
    """Mean next-token loss of every row (nats per token).

    Examples
    --------
    >>> next_token_losses(torch.zeros(1, 3, 8), torch.zeros(1, 3, dtype=torch.long)).exp()
    tensor([8.])
    """
    rows = [
        torch.nn.functional.cross_entropy(row[:-1].float(), own[1:])
        for row, own in zip(logits, ids, strict=True)
    ]
    return torch.stack(rows)


def paired_interval(
    change: Float[np.ndarray, " b"], units: Sequence[int], *, seed: int
) -> tuple[float, float] | tuple[None, None]:
    """95 % percentiles of the mean when units (texts) are drawn again; None: there is one number.

    Parameters
    ----------
    change
        Paired differences.
    units
        Which unit each is of; where there is one, each difference is a unit of its own.
    seed
        Of the draws.

    Examples
    --------
    >>> paired_interval(np.array([1.0, 1.0, 1.0]), [0, 0, 1], seed=0)
    (1.0, 1.0)
    """
    if len(change) < 2:
        return None, None
    names = sorted(set(units))
    own = np.asarray(units) if len(names) > 1 else np.arange(len(change))
    kinds = np.unique(own)
    sums = np.array([change[own == kind].sum() for kind in kinds])
    counts = np.array([(own == kind).sum() for kind in kinds])
    drawn = np.random.default_rng(seed).integers(len(kinds), size=(RESAMPLES, len(kinds)))
    means = sums[drawn].sum(1) / counts[drawn].sum(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return float(low), float(high)


@contextmanager
def _without(
    model: Any,
    parts: Sequence[Part],
    how: How,
    means: Mapping[Part, Tensor],
    sinks: Tensor | None,
) -> Iterator[None]:
    """The model without these parts, inside the block."""
    changes: dict[Any, Callable[[Tensor], Tensor]] = {}
    for site, own in _by_site(parts, how).items():
        changes[site] = _change(own, how, means, sinks)
    with patch(model, changes):
        yield


def _by_site(parts: Sequence[Part], how: How) -> dict[tuple[str, int], list[Part]]:
    found: dict[tuple[str, int], list[Part]] = {}
    for part in parts:
        site = ("pattern", part.layer) if how == "to-sink" else _site(part)
        found.setdefault(site, []).append(part)
    return found


def _site(part: Part) -> tuple[str, int]:
    return {"head": "z", "attention": "attn_out", "mlp": "mlp_out"}[part.kind], part.layer


def _change(
    parts: Sequence[Part], how: How, means: Mapping[Part, Tensor], sinks: Tensor | None
) -> Callable[[Tensor], Tensor]:
    """From a site's tensor to the same without some of its parts."""

    def to_sink(pattern: Tensor) -> Tensor:
        heads = [part.head for part in parts if part.kind == "head"]
        whole = any(part.kind == "attention" for part in parts)
        assert sinks is not None
        moved = moved_to(pattern, range(pattern.shape[1]) if whole else heads, sinks.clamp_min(0))
        return torch.where((sinks >= 0).to(pattern.device)[:, None, None, None], moved, pattern)

    def replaced(x: Tensor) -> Tensor:
        made = x.clone()
        for part in parts:
            new = means[part].to(x) if how == "mean" else torch.zeros((), device=x.device).to(x)
            if part.kind == "head":
                made[:, :, part.head] = new[part.head] if how == "mean" else new
            else:
                made[:] = new
        return made

    return to_sink if how == "to-sink" else replaced


def _row(
    parts: Sequence[Part],
    how: str,
    domain: str,
    before: _Measured,
    after: _Measured,
    kept: Bool[Tensor, " b"],
    windows: Windows,
    seed: int,
) -> Ablated:
    change = (after.losses - before.losses)[kept].double().numpy()
    texts = [text for text, chosen in zip(windows.texts, kept.tolist(), strict=True) if chosen]
    low, high = paired_interval(change, texts, seed=seed)
    return Ablated(
        " ".join(map(str, parts)),
        how,
        domain,
        len(change),
        float(after.losses[kept].mean()),
        float(change.mean()),
        low,
        high,
        (before.sink_mass, after.sink_mass),
        None if before.peak is None or after.peak is None else (before.peak, after.peak),
    )


def _check_sinks(sinks: Mapping[str, Tensor]) -> None:
    for name, found in sinks.items():
        if not bool(found.any()):
            raise InputInvalid(
                "no window has a sink to move attention to",
                origin=f"domain {name!r}",
                mend="take the parts out with zero, or lower what counts as a sink",
            )


def _check(model: Any, parts: Sequence[Part], how: str) -> None:
    if not parts:
        raise InputInvalid("no part is to be taken out", mend="such as 16.25 or mlp:2")
    if how not in get_args(How):
        raise InputInvalid(
            f"there is no way {how!r} to take a part out", mend=f"give {', '.join(get_args(How))}"
        )
    depth = depth_of(model, layout_of(model))
    heads = int(model.config.get_text_config().num_attention_heads)
    for part in parts:
        there = part.kind != "head" or 0 <= part.head < heads
        if not 0 <= part.layer < depth or not there:
            raise InputInvalid(
                f"the model has no {part}",
                mend=f"its layers are 0 to {depth - 1}, its heads 0 to {heads - 1}",
            )
        if how == "to-sink" and part.kind == "mlp":
            raise InputInvalid(
                f"{part} has no attention to move", mend="take it out with zero or mean"
            )
