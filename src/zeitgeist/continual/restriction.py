"""Restrict a gradient by memory gradients, block by block.

Liu, Ye, Stone, Liu: "Fine-Grained Gradient Restriction: A Simple Approach for Mitigating
Catastrophic Forgetting", arXiv 2410.00868. For every block b of parameters

    z_b = argmin |z - g_b|^2 / 2   with   <z, m_{s,b}> >= 0 for every memory slice s

which is GEM (arXiv 1706.08840) where there is one block. Blocks do not know each other, so they are
solved at once. Slices may be past tasks or groups inside them (*data-wise* constraints).

S: any number of leading dimensions, k slices, B blocks, n parameters
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from zeitgeist.continual.duals import Solver, solve_dual
from zeitgeist.continual.grains import Partition, Piece


class Restricted(NamedTuple):
    """A direction, and what restricting did.

    Parameters
    ----------
    direction
        z, a tensor per parameter.
    v
        Multipliers of every block and slice, float64.
    active
        Share of constraints that bind, of all with a gradient.
    cosine
        Between g and z over all parameters; 1 where both are nothing.
    residual
        The worst -<z, m> / (|z| |m|) over blocks and slices, 0 where no constraint is violated.
    converged
        Whether the solver was done in every block.
    """

    direction: list[Float[Tensor, "..."]]
    v: Float[Tensor, "*S B k"]
    active: Float[Tensor, "*S"]
    cosine: Float[Tensor, "*S"]
    residual: Float[Tensor, "*S"]
    converged: Bool[Tensor, "*S"]


def restrict(
    gradient: Float[Tensor, "*S n"],
    memory: Float[Tensor, "*S k n"],
    strength: Float[Tensor, "*S"] | float = 0.0,
    *,
    blocks: Int[Tensor, " n"] | None = None,
    solver: Solver = "exact",
    sweeps: int = 30,
    always: bool = True,
) -> Restricted:
    """Restrict flat gradients.

    Parameters
    ----------
    gradient
        g.
    memory
        M, a row per slice.
    strength
        gamma: every multiplier is at least this.
    blocks
        The block of every entry, whole numbers from 0; None: one block.
    solver, sweeps
        As for `zeitgeist.continual.duals.solve_dual`.
    always
        False: leave a block alone, strength or not, where no constraint is violated, as the
        published code of GEM does.

    Examples
    --------
    >>> g, m = torch.tensor([1.0, -1.0]), torch.tensor([[0.0, 1.0]])
    >>> restrict(g, m).direction[0].tolist()
    [1.0, 0.0]
    """
    ids = torch.tensor(0) if blocks is None else blocks.long()
    count = 1 if blocks is None else int(ids.max()) + 1
    whole = Partition((Piece(ids),), (gradient.shape[-1:],), count)
    return restrict_pieces(
        [gradient], [memory], whole, strength, solver=solver, sweeps=sweeps, always=always
    )


def restrict_pieces(
    gradient: Sequence[Float[Tensor, "..."]],
    memory: Sequence[Float[Tensor, "..."]],
    partition: Partition,
    strength: Float[Tensor, "*S"] | float = 0.0,
    *,
    solver: Solver = "exact",
    sweeps: int = 30,
    always: bool = True,
) -> Restricted:
    """Restrict the gradients of several parameters.

    Parameters
    ----------
    gradient
        A tensor (*S, *shape) per parameter.
    memory
        A tensor (*S, k, *shape) per parameter.
    partition
        The blocks.
    strength, solver, sweeps, always
        As for `restrict`.
    """
    gram, cross, square = partition.grams(gradient, memory)
    found = multipliers(gram, cross, square, strength, solver=solver, sweeps=sweeps, always=always)
    if bool((found.v == 0).all()):  # not even rounding may change what nothing restricts
        return found._replace(direction=list(gradient))
    return found._replace(direction=partition.add(gradient, memory, found.v))


def multipliers(
    gram: Float[Tensor, "*S B k k"],
    cross: Float[Tensor, "*S B k"],
    square: Float[Tensor, "*S B"],
    strength: Float[Tensor, "*S"] | float = 0.0,
    *,
    solver: Solver = "exact",
    sweeps: int = 30,
    always: bool = True,
) -> Restricted:
    """What `restrict` finds, without the direction: all of it follows from inner products.

    Parameters
    ----------
    gram, cross, square
        K = M M', c = M g and <g, g> of every block.
    strength, solver, sweeps, always
        As for `restrict`.
    """
    least = torch.as_tensor(strength, dtype=torch.float64, device=gram.device)
    least = least.unsqueeze(-1).expand(square.shape)  # the same in every block
    dual = solve_dual(gram, cross, least, solver=solver, sweeps=sweeps)
    v = dual.v
    if not always:
        v = torch.where((cross < 0).any(dim=-1, keepdim=True), v, 0.0)
    pull = (gram @ v.unsqueeze(-1)).squeeze(-1)
    inner = cross + pull  # <z, m>
    squared = square + 2 * (v * cross).sum(dim=-1) + (v * pull).sum(dim=-1)  # <z, z>
    lengths = gram.diagonal(dim1=-2, dim2=-1).clamp(min=0.0).sqrt()
    # Measured against the gradient too: a direction that was projected to nothing is rounding only.
    size = torch.maximum(squared.clamp(min=0.0).sqrt(), 1e-6 * square.sqrt())
    scale = lengths * size.unsqueeze(-1)
    violated = torch.where(scale > 0, -inner / scale.where(scale > 0, torch.ones_like(scale)), 0.0)
    there = lengths > 0
    along = (square + (v * cross).sum(dim=-1)).sum(dim=-1)  # <g, z>
    both = (square.sum(dim=-1) * squared.sum(dim=-1).clamp(min=0.0)).sqrt()
    known = both > 0
    cosine = torch.where(known, along / both.where(known, torch.ones_like(both)), 1.0)
    return Restricted(
        [],
        v,
        ((v > 0) & there).sum(dim=(-2, -1)) / there.sum(dim=(-2, -1)).clamp(min=1),
        cosine.clamp(-1.0, 1.0),
        functional.pad(violated.clamp(min=0.0), (0, 1)).amax(dim=(-2, -1)),  # k may be 0
        dual.converged.all(dim=-1),
    )
