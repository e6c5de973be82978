"""How large a gradient or an update is under every norm, layer by layer.

A norm that an optimiser keeps equal over layers shows as a column of equal numbers. Singular values
say whether an update uses its rank: after steepest descent under the spectral norm they are all
alike, after AdamW a few are large. The stable rank is |D|_F^2 / |D|_2^2.

Bernstein, Newhouse: "Old Optimizer, New Norm: An Anthology", arXiv 2409.20325.

Nothing is sampled or cut off. A tall matrix (an embedding) is gone through in blocks of rows and
reduced to the n x n triangle of its QR decomposition, which has the same singular values.

m, n rows (outputs) and columns (inputs)
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.optimizers.assignment import assign
from zeitgeist.optimizers.norms import NORMS, OF_VECTORS, SPECTRAL

SHOWN = ("frobenius", "max_entry", "spectral", "rms_spectral", "rms")
BINS = 40
DECADES = 4
"""Singular values are counted over so many powers of ten below the largest."""
BLOCK = 2**21
"""Values of a tall matrix that are looked at together."""
TALL = 4
"""From so many rows per column on, a matrix is reduced to its triangle block by block."""


@dataclass(frozen=True)
class LayerNorms:
    """One tensor. ``dual`` are the dual norms; ``singular`` its singular values, largest first.

    A matrix has all norms that were asked for, a vector those that vectors have. Further dimensions
    are flattened into inputs: of a stack of experts that is one matrix. ``singular`` is empty for
    vectors and where no spectral norm was asked for.
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


def tensor_norms(
    name: str, d: Tensor, kinds: Sequence[str] = SHOWN, *, transposed: bool = False
) -> LayerNorms:
    """Every norm of one tensor, in float64.

    Parameters
    ----------
    name
        For the report.
    d
        A gradient or an update.
    kinds
        Of `NORMS`.
    transposed
        A matrix that is stored with its inputs first.

    Raises
    ------
    InputInvalid
        No such norm; a tensor that is sparse, complex or empty; values that are not finite.

    Examples
    --------
    >>> found = tensor_norms("w", torch.diag(torch.tensor([3.0, 4.0])), ["spectral"])
    >>> found.norms["spectral"], found.dual["spectral"], found.stable_rank
    (4.0, 7.0, 1.5625)
    """
    check_kinds(kinds)
    what, mend = "", "leave it out"
    if d.layout != torch.strided:
        what, mend = "is sparse", "make it dense with to_dense()"
    elif d.is_complex():
        what = f"is complex ({d.dtype})"
    elif not d.numel():
        what = f"has no values (shape {tuple(d.shape)})"
    if what:
        raise InputInvalid(f"the tensor {name!r} {what}", mend=mend)
    # Apple's processors have no float64.
    x = (d.detach().cpu() if d.device.type == "mps" else d.detach()).double()
    if bad := int((~torch.isfinite(x)).sum()):
        raise InputInvalid(
            f"{bad} of the {x.numel()} values of {name!r} are NaN or infinite",
            mend="look at the run that made it",
        )
    return measured(name, d.shape, [x.reshape(as_matrix(d.shape))], kinds, transposed=transposed)


def as_matrix(shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns: further dimensions are inputs, a vector is one row.

    Examples
    --------
    >>> as_matrix((8, 4, 3, 3)), as_matrix((5,)), as_matrix(())
    ((8, 36), (1, 5), (1, 1))
    """
    return (shape[0], math.prod(shape[1:])) if len(shape) >= 2 else (1, math.prod(shape))


def rows_at_once(shape: Sequence[int], kinds: Sequence[str]) -> int:
    """How many rows of a tensor `measured` should be given in one block.

    All, where singular values are wanted of a matrix that is not tall.
    """
    m, n = as_matrix(shape)
    if m <= TALL * n and _has_spectrum(shape, kinds):
        return m
    return max(TALL * n, BLOCK // n, 1)


def measured(
    name: str,
    shape: Sequence[int],
    blocks: Iterable[Float64[Tensor, "_ n"]],
    kinds: Sequence[str],
    *,
    transposed: bool = False,
    singular: Float64[Tensor, " k"] | None = None,
) -> LayerNorms:
    """Every norm of a tensor that comes in blocks of rows, of which one is held at a time.

    Parameters
    ----------
    name, shape
        The tensor's.
    blocks
        Finite, in order; `rows_at_once` says how large.
    kinds
        Of `NORMS`.
    transposed
        Rows of the blocks are inputs.
    singular
        The singular values where they are known already, largest first.
    """
    m, n = as_matrix(shape)
    spectrum = _has_spectrum(shape, kinds)
    largest = total = longest = lengths = 0.0
    squares, core = torch.zeros(n, dtype=torch.float64), None
    for x in blocks:
        largest = max(largest, float(x.max()), -float(x.min()))
        total += float(torch.linalg.vector_norm(x, 1))
        rows = torch.linalg.vector_norm(x, dim=1)
        longest, lengths = max(longest, float(rows.max())), lengths + float(rows.sum())
        squares = squares.to(x.device) + torch.linalg.vector_norm(x, dim=0).square()
        if spectrum and singular is None:
            core = _folded(core, x)
    if core is not None:
        singular = torch.linalg.svdvals(core)
    columns = squares.sqrt()
    size = float(torch.linalg.vector_norm(columns))
    row, column = (longest, lengths), (float(columns.max()), float(columns.sum()))
    if transposed:
        m, n, row, column = n, m, column, row
    # (of the norm, of the dual norm, by what the one is divided and the other multiplied)
    table = {
        "frobenius": (size, size, 1.0),
        "rms": (size, size, math.sqrt(m * n)),
        "max_entry": (largest, total, 1.0),
        "column_rms": (*column, math.sqrt(m)),
        "row_rms": (*row, math.sqrt(n)),
        "row_l2": (*row, 1.0),
        "rms_inf": (*row, 1 / math.sqrt(n)),
    }
    values: tuple[float, ...] = ()
    if spectrum and singular is not None:
        values = tuple(singular.tolist())
        table["spectral"] = values[0], sum(values), 1.0
        table["rms_spectral"] = values[0], sum(values), math.sqrt(m / n)
    known = [kind for kind in kinds if len(shape) >= 2 or kind in OF_VECTORS]
    norms = {kind: table[kind][0] / table[kind][2] for kind in known}
    dual = {kind: table[kind][1] * table[kind][2] for kind in known}
    return LayerNorms(name, tuple(shape), norms, dual, values)


def _has_spectrum(shape: Sequence[int], kinds: Sequence[str]) -> bool:
    return len(shape) >= 2 and any(kind in SPECTRAL for kind in kinds)


def _folded(
    core: Float64[Tensor, "k n"] | None, x: Float64[Tensor, "rows n"]
) -> Float64[Tensor, "l n"]:
    """What has the singular values of all rows so far: R of their QR decomposition.

    Unlike the square root of the Gram matrix this loses no digits of small singular values.
    """
    both = x if core is None else torch.cat([core, x])
    if both.shape[0] <= TALL * both.shape[1]:
        return both
    found: Tensor = torch.linalg.qr(both, mode="r").R
    return found


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
        Of parameters that have a gradient; tied ones once. GPT-2's layers, whose inputs come first,
        are turned.

    Raises
    ------
    InputInvalid
        None has one, or as `tensor_norms`.

    Examples
    --------
    >>> layer = nn.Linear(2, 2)
    >>> layer(torch.ones(1, 2)).sum().backward()
    >>> [round(each.norms["frobenius"], 3) for each in gradient_norms(layer)]
    [2.0, 1.414]
    """
    check_kinds(kinds)
    with_inputs_first = {
        each.name for each in assign(module, "auto", {}) if each.view == "transpose"
    }
    made = [
        tensor_norms(name, p.grad, kinds, transposed=name in with_inputs_first)
        for name, p in module.named_parameters()
        if p.grad is not None
    ]
    if not made:
        raise InputInvalid("no parameter has a gradient", mend="call backward() first")
    return made


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
