"""Which parameter gets which norm: from the type of the module that holds it.

The same space of matrices plays different roles (arXiv 2409.20325): a linear layer takes vectors of
RMS 1 to vectors of RMS 1, an embedding takes one-hot vectors, a gain is a diagonal. And what is
stored is not always the matrix: GPT-2's layers are stored transposed, convolutions have more
dimensions, fused projections are several matrices in one.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Literal

import torch
from torch import Tensor, nn

from zeitgeist.errors import InputInvalid

View = Literal["flatten", "stack", "transpose"]
VIEWS: tuple[View, ...] = ("flatten", "stack", "transpose")
EQUAL_PARTS: Mapping[str, int] = {
    "in_proj_weight": 3,
    "c_attn": 3,
    "Wqkv": 3,
    "qkv_proj": 3,
    "gate_up_proj": 2,
}
"""Fused projections whose parts lie one after the other along the outputs."""
INTERLEAVED = ("query_key_value",)
"""Fused head by head: slices of it are no matrices of one role."""


@dataclass(frozen=True)
class Assignment:
    """What one parameter is taken for.

    ``view`` says how it becomes matrices: ``"flatten"`` (all but the first dimension are inputs),
    ``"stack"`` (the last two are a matrix, the others count matrices), ``"transpose"`` (inputs
    first). ``split`` are the outputs of each part, empty where it is one matrix. ``why`` is for
    people.
    """

    name: str
    shape: tuple[int, ...]
    norm: str
    view: View = "flatten"
    split: tuple[int, ...] = ()
    why: str = ""
    warning: str = ""


def assign(
    module: nn.Module, norm: str | Mapping[str, str], split: Mapping[str, int | Sequence[int]]
) -> list[Assignment]:
    """One assignment for every parameter that is trained.

    Parameters
    ----------
    module
        Whose parameters.
    norm
        ``"auto"``; one norm for all matrices (vectors by type); or patterns of names (such as
        ``"*.mlp.*"``), of which the first that fits counts; what fits none is by type.
    split
        Patterns of names to equal parts or to the outputs of each part.

    Raises
    ------
    InputInvalid
        A pattern that fits no parameter, or parts that do not add up.
    """
    made = [_by_type(*each) for each in _holders(module)]
    norms = dict(norm) if isinstance(norm, Mapping) else {}
    everywhere = norm if isinstance(norm, str) and norm != "auto" else ""
    names = [each.name for each in made]
    for pattern in (*norms, *split):
        if not any(fnmatchcase(name, pattern) for name in names):
            raise InputInvalid(
                f"the pattern {pattern!r} fits no parameter that is trained",
                mend=f"names are such as {', '.join(names[:3])}",
            )
    found = []
    for each in made:
        if everywhere and len(each.shape) >= 2:
            each = replace(each, norm=everywhere, why="as told", warning="")
        named = next((value for key, value in norms.items() if fnmatchcase(each.name, key)), None)
        if named is not None:
            each = replace(each, norm=named, why="as told", warning="")
        parts = next((value for key, value in split.items() if fnmatchcase(each.name, key)), None)
        if parts is not None:
            sizes = sizes_of(parts, outputs(each.shape, each.view), each.name)
            each = replace(each, split=sizes, warning="")
        found.append(each)
    return found


def outputs(shape: Sequence[int], view: View) -> int:
    """How many rows the matrices of a parameter have."""
    if len(shape) < 2:
        return 1
    return shape[0] if view == "flatten" else shape[-2 if view == "stack" else -1]


def sizes_of(parts: int | Sequence[int], rows: int, name: str) -> tuple[int, ...]:
    """The outputs of each part.

    Examples
    --------
    >>> sizes_of(3, 12, "qkv"), sizes_of([8, 2, 2], 12, "qkv"), sizes_of(1, 12, "qkv")
    ((4, 4, 4), (8, 2, 2), ())
    """
    if isinstance(parts, int):
        sizes = (rows // parts,) * parts if parts > 0 and rows % parts == 0 else (0,)
    else:
        sizes = tuple(parts)
    if sum(sizes) != rows or min(sizes, default=0) < 1:
        raise InputInvalid(
            f"split {parts!r} does not divide the {rows} outputs of {name!r}",
            mend="give a divisor, or sizes that add up to them",
        )
    return sizes if len(sizes) > 1 else ()


def to_matrices(g: Tensor, view: View) -> Tensor:
    """A parameter or gradient as a matrix or a batch of them; a vector as one row."""
    if g.ndim < 2:
        return g.reshape(1, -1)
    if view == "transpose":
        return g.mT
    return g if g.ndim == 2 or view == "stack" else g.flatten(1)


def from_matrices(x: Tensor, shape: torch.Size, view: View) -> Tensor:
    """The inverse of `to_matrices`."""
    return x.mT if view == "transpose" and len(shape) >= 2 else x.reshape(shape)


def _holders(module: nn.Module) -> Iterator[tuple[str, Tensor, list[nn.Module], int]]:
    """Every trained parameter once, with all modules that hold it, and the vocabulary's size."""
    holding: dict[Tensor, list[nn.Module]] = {}
    vocabulary = 0
    for each in module.modules():
        if isinstance(each, nn.Embedding):
            vocabulary = max(vocabulary, each.num_embeddings)
        for parameter in each.parameters(recurse=False):
            holding.setdefault(parameter, []).append(each)
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            yield name, parameter, holding[parameter], vocabulary


def _by_type(name: str, p: Tensor, holders: list[nn.Module], vocabulary: int) -> Assignment:
    shape = tuple(p.shape)
    embedding = any(isinstance(each, nn.Embedding | nn.EmbeddingBag) for each in holders)
    if p.ndim >= 2 and embedding:
        linear = [each for each in holders if not isinstance(each, nn.Embedding | nn.EmbeddingBag)]
        if linear:
            why = f"embedding, tied to a {type(linear[0]).__name__}: two roles, one norm"
            told = f"{name!r} is embedding and output head at once and is taken for an embedding"
            return Assignment(name, shape, "row_rms", why=why, warning=told)
        return Assignment(name, shape, "row_rms", why="embedding: one token per row")
    if p.ndim < 2:
        return Assignment(name, shape, "rms", why="gain or bias")
    kind = type(holders[0]).__name__
    if isinstance(holders[0], nn.modules.conv._ConvTransposeNd):
        return Assignment(
            name, shape, "rms_spectral", "flatten", why=f"{kind}: kernels flattened, inputs first"
        )
    if isinstance(holders[0], nn.modules.conv._ConvNd):
        return Assignment(name, shape, "rms_spectral", "flatten", why=f"{kind}: kernels flattened")
    view: View = "transpose" if kind == "Conv1D" else "flatten" if p.ndim == 2 else "stack"
    rows = outputs(shape, view)
    if isinstance(holders[0], nn.Linear) and rows == vocabulary:
        return Assignment(name, shape, "rms_inf", why="output head: one logit per row")
    why = f"{kind}: {'transposed' if view == 'transpose' else 'matrices stacked'}"
    why = kind if view == "flatten" else why
    return Assignment(name, shape, "rms_spectral", view, *_fused(name, shape, view, why))


def _fused(
    name: str, shape: tuple[int, ...], view: View, why: str
) -> tuple[tuple[int, ...], str, str]:
    """Parts, reason and warning of what may be several matrices in one."""
    words = name.split(".")[-2:]
    if any(word in INTERLEAVED for word in words):
        told = f"{name!r} is fused head by head and is taken for one matrix"
        return (), f"{why}, fused head by head", told
    for word, parts in EQUAL_PARTS.items():
        if word in words:
            rows = outputs(shape, view)
            columns = shape[-2] if view == "transpose" else shape[-1]
            # Grouped queries: the parts differ in size, and only the model knows how. Stacks of
            # experts hold their parts in several orders.
            if view == "stack" or rows % parts or (parts == 3 and rows != 3 * columns):
                told = f"{name!r} looks fused and its parts are not known: it is one matrix"
                return (), f"{why}, fused", told
            return (rows // parts,) * parts, f"{why}, {parts} matrices fused", ""
    return (), why, ""
