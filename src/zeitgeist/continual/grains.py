"""Blocks of parameters that are restricted each on its own: tensor, layer, neuron, head.

A block is a set of entries. The Gram matrix of a block is a sum over its entries, so a `Piece` says
how one tensor falls into rows that belong to a block each, and Gram matrices are batched products
per tensor followed by a sum over rows: nothing of the size blocks x parameters is ever made.

    model     one block: GEM
    layer     a module with parameters of its own: its weight and bias
    tensor    every parameter
    neuron    a row of a weight (an output unit, a channel, a row of a table) with its bias
    head      in attention, rows of q_proj with columns of o_proj, and rows of k_proj and v_proj;
              elsewhere as tensor

Liu, Ye, Stone, Liu, arXiv 2410.00868: *parameter-wise* constraints.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from zeitgeist.errors import InputInvalid

GrainName = Literal["model", "layer", "tensor", "neuron", "head"]
Grain = str | Callable[[str, Tensor], object]
"""A `GrainName`, or a function of name and parameter that gives the key of its block, or an integer
tensor of keys: one per row of the parameter, or one per entry."""

LARGE = 1e30
"""Multipliers beyond this are summed in float64."""


@dataclass(frozen=True)
class Piece:
    """How one tensor falls into blocks: ``ids`` of the rows along ``axis``, or of every entry.

    ``ids`` of no dimension: the whole tensor is in one block.
    """

    ids: Int64[Tensor, "*rows"]
    axis: int = 0

    def rows(self, tensor: Float[Tensor, "..."], shape: torch.Size) -> Float[Tensor, "... r c"]:
        """The tensor as rows, one per entry of ``ids``; what stands before ``shape`` stays."""
        lead = tensor.shape[: tensor.ndim - len(shape)]
        if self.axis:
            tensor = tensor.movedim(len(lead) + self.axis, len(lead))
        return tensor.reshape(*lead, self.ids.numel(), -1)

    def back(self, rows: Float[Tensor, "... r c"], shape: torch.Size) -> Float[Tensor, "..."]:
        """The inverse of `rows`."""
        lead = rows.shape[:-2]
        if not self.axis:
            return rows.reshape(*lead, *shape)
        moved = [shape[self.axis], *shape[: self.axis], *shape[self.axis + 1 :]]
        return rows.reshape(*lead, *moved).movedim(len(lead), len(lead) + self.axis)


@dataclass(frozen=True)
class Partition:
    """All pieces, in the order of the parameters, and how many blocks there are together."""

    pieces: tuple[Piece, ...]
    shapes: tuple[torch.Size, ...]
    blocks: int

    def grams(
        self,
        gradient: Sequence[Float[Tensor, "..."]],
        memory: Sequence[Float[Tensor, "..."]],
        which: Sequence[int] | None = None,
    ) -> tuple[Float[Tensor, "... B k k"], Float[Tensor, "... B k"], Float[Tensor, "... B"]]:
        """K = M M', c = M g and <g, g> of every block, in float64.

        Parameters
        ----------
        gradient
            A tensor (*S, *shape) per parameter.
        memory
            A tensor (*S, k, *shape) per parameter.
        which
            The parameters they are of; None: all. Sums over several calls are the sums over all.
        """
        places = range(len(self.pieces)) if which is None else which
        first, like = memory[0], self.shapes[places[0]]
        lead, k = first.shape[: first.ndim - 1 - len(like)], first.shape[-1 - len(like)]
        total = first.new_zeros((*lead, self.blocks, k + 1, k + 1), dtype=torch.float64)
        for place, g, m in zip(places, gradient, memory, strict=True):
            piece, shape = self.pieces[place], self.shapes[place]
            both = torch.cat([m, g.unsqueeze(len(lead))], dim=len(lead))
            rows = piece.rows(both.double(), shape).movedim(-3, -2)  # ... r k+1 c
            total.index_add_(len(lead), piece.ids.flatten().to(rows.device), rows @ rows.mT)
        return total[..., :k, :k], total[..., k, :k], total[..., k, k]

    def add(
        self,
        gradient: Sequence[Float[Tensor, "..."]],
        memory: Sequence[Float[Tensor, "..."]],
        v: Float[Tensor, "... B k"],
        which: Sequence[int] | None = None,
    ) -> list[Float[Tensor, "..."]]:
        """z = g + M' v in every block, summed in float32 or more, then in the gradient's dtype.

        Parameters
        ----------
        gradient, memory, which
            As for `grams`.
        v
            Multipliers of every block.
        """
        places = range(len(self.pieces)) if which is None else which
        # A memory gradient of next to no length has a multiplier that only float64 holds.
        wide = torch.float64 if bool((v > LARGE).any()) else torch.float32
        made = []
        for place, g, m in zip(places, gradient, memory, strict=True):
            piece, shape = self.pieces[place], self.shapes[place]
            dtype = torch.promote_types(m.dtype, wide)
            own = v.index_select(-2, piece.ids.flatten().to(v.device)).to(dtype)  # ... r k
            rows = piece.rows(m, shape).movedim(-3, -2).to(dtype)  # ... r k c
            change = (own.unsqueeze(-2) @ rows).squeeze(-2)
            made.append(g + piece.back(change, shape).to(g.dtype))
        return made


def partition(
    parameters: Mapping[str, Tensor],
    grain: Grain = "neuron",
    *,
    heads: Mapping[str, int] | None = None,
) -> Partition:
    """Split named parameters into blocks.

    Parameters
    ----------
    parameters
        Those that are trained.
    grain
        See the module. A function gives a key per parameter, per row or per entry; parts with equal
        keys are one block, also across parameters.
    heads
        For ``"head"``: how many each projection has, such as ``{"q_proj": 9, "k_proj": 3}``;
        `heads_of` reads it from a transformers configuration.

    Raises
    ------
    InputInvalid
        There is nothing to split, no such grain, or a function's ids fit no parameter.

    Examples
    --------
    >>> layer = torch.nn.Linear(3, 2)
    >>> {g: partition(dict(layer.named_parameters()), g).blocks
    ...  for g in ("model", "layer", "tensor", "neuron")}
    {'model': 1, 'layer': 1, 'tensor': 2, 'neuron': 2}
    """
    if not parameters:
        raise InputInvalid("no parameter is trained", mend="leave requires_grad where it learns")
    if isinstance(grain, str) and grain not in get_args(GrainName):
        raise InputInvalid(
            f"there is no grain {grain!r}",
            mend=f"give one of {', '.join(get_args(GrainName))}, or a function",
        )
    if grain == "head" and not heads:
        raise InputInvalid(
            "the grain 'head' needs the number of heads",
            mend="give heads=, such as {'q_proj': 9, 'k_proj': 3, 'v_proj': 3, 'o_proj': 9}",
        )
    numbers: dict[object, int] = {}
    pieces = []
    for name, parameter in parameters.items():
        keys, axis = _keys(name, parameter, grain, parameters, heads or {})
        if isinstance(keys, Tensor):
            tag = keys_tag(name, grain)
            known = {k: numbers.setdefault((tag, k), len(numbers)) for k in keys.flatten().tolist()}
            ids = torch.tensor([known[k] for k in keys.flatten().tolist()]).view(keys.shape)
        else:
            ids = torch.tensor(numbers.setdefault(keys, len(numbers)))
        pieces.append(Piece(ids.to(parameter.device), axis))
    return Partition(tuple(pieces), tuple(p.shape for p in parameters.values()), len(numbers))


def keys_tag(name: str, grain: Grain) -> str:
    """Whose rows may share a block: a module's for neurons, everyone's for a function.

    Examples
    --------
    >>> keys_tag("layers.0.mlp.up.bias", "neuron"), keys_tag("layers.0.self_attn.q_proj.weight",
    ...                                                     "head")
    ('layers.0.mlp.up', 'layers.0.self_attn')
    """
    if callable(grain):
        return ""
    module = name.rpartition(".")[0]
    if grain != "head":
        return module
    return re.split(rf"\.(?:{'|'.join(_ROLES)})\b", module)[0]


_ROLES: Mapping[str, str] = {"q_proj": "query", "o_proj": "query", "k_proj": "key", "v_proj": "key"}


def _keys(
    name: str,
    parameter: Tensor,
    grain: Grain,
    parameters: Mapping[str, Tensor],
    heads: Mapping[str, int],
) -> tuple[object, int]:
    """The key of a parameter's block, or a tensor of keys of its rows along an axis."""
    module = name.rpartition(".")[0]
    if callable(grain):
        given = grain(name, parameter)
        if not isinstance(given, Tensor):
            return given, 0
        if given.shape not in (parameter.shape, parameter.shape[:1]) or given.is_floating_point():
            raise InputInvalid(
                f"the grain gives {tuple(given.shape)} {given.dtype} for {name!r} of shape "
                f"{tuple(parameter.shape)}",
                mend="give whole numbers, one per row or one per entry",
            )
        return given.detach().cpu().long(), 0
    if grain == "model":
        return "", 0
    if grain == "layer":
        return module, 0
    if grain == "neuron" and parameter.ndim and _has_rows(module, parameter, parameters):
        return torch.arange(len(parameter)), 0
    if grain == "head":
        role = next((role for role in _ROLES if re.search(rf"\b{role}\b", name)), "")
        axis = int(role == "o_proj")
        if role in heads and _splits(name, role, parameter, axis):
            count, size = heads[role], parameter.shape[axis]
            if size % count:
                raise InputInvalid(
                    f"{name!r} has {size} rows for {count} heads", mend="give the right number"
                )
            own = torch.arange(count).repeat_interleave(size // count)
            return own + (1 << 20) * (_ROLES[role] == "key"), axis
    return ("tensor", name), 0


def _has_rows(module: str, parameter: Tensor, parameters: Mapping[str, Tensor]) -> bool:
    """Whether a parameter is a weight, or the bias of one beside it."""
    if parameter.ndim > 1:
        return True
    weight = parameters.get(f"{module}.weight" if module else "weight")
    return weight is not None and weight.ndim > 1 and len(weight) == len(parameter)


def _splits(name: str, role: str, parameter: Tensor, axis: int) -> bool:
    """LoRA's factor on the far side of the heads is shared by all of them."""
    if parameter.ndim <= axis:
        return False
    return "lora_A" in name if axis and "lora_" in name else "lora_A" not in name


def heads_of(config: Any) -> dict[str, int]:
    """How many heads each projection of a transformers model has; nothing where it does not say.

    Examples
    --------
    >>> from transformers import LlamaConfig
    >>> heads_of(LlamaConfig(hidden_size=576, num_attention_heads=9, num_key_value_heads=3))
    {'q_proj': 9, 'o_proj': 9, 'k_proj': 3, 'v_proj': 3}
    """
    queries = getattr(config, "num_attention_heads", None)
    if queries is None:
        return {}
    keys = getattr(config, "num_key_value_heads", None) or queries
    return {"q_proj": queries, "o_proj": queries, "k_proj": keys, "v_proj": keys}
