"""Arithmetic on task vectors: trim, elect, average. The reference that fast paths must equal.

TIES (Yadav et al., arXiv 2306.01708) in its three steps; the other ways of choosing entries are in
`zeitgeist.merging.sparsify`.

    d_i = x_i - b                             task vector of expert i
    trim           keep d where |d| >= the k-th largest |d|, k = max(1, int(density N))
    elect          g = sign(sum_i d_i)                      (plain)   or sign(sum_i w_i d_i)
    disjoint mean  sum w_i d_i / sum w_i over the experts with sign(d_i) = g

Rules that make the result a function of the numbers alone:
ranks, thresholds and ties compare |d| as the float32 nearest to the exact value; all entries equal
to a threshold are kept; an exact zero never takes part in a vote or a mean; everything else is
float64, and sums over experts run in the order of the experts. Values must be finite: a comparison
with NaN is false, so NaN would be dropped without a word (the door refuses it).

Dimensions: n experts, *shape one tensor, N its number of entries.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

Deltas = Float[Tensor, "n *shape"]
Update = Float64[Tensor, "*shape"]
Election = Literal["plain", "weighted"]


def sum_in_order(terms: Float64[Tensor, "n *shape"]) -> Update:
    """Sum over the first dimension, left to right.

    Examples
    --------
    >>> sum_in_order(torch.tensor([[1.0], [2.0]], dtype=torch.float64)).tolist()
    [3.0]
    """
    total = terms[0].clone()
    for term in terms[1:]:
        total += term
    return total


def per_expert(
    values: Float[Tensor, " n"], deltas: Float[Tensor, "n *shape"]
) -> Float[Tensor, "n ..."]:
    """One number per expert, shaped to broadcast over a stack."""
    return values.reshape(-1, *[1] * (deltas.dim() - 1))


def magnitude(deltas: Float[Tensor, "*shape"]) -> Float32[Tensor, "*shape"]:
    """|d| as float32, what ranks and thresholds compare."""
    return deltas.abs().to(torch.float32)


def keep_count(density: float, numel: int) -> int:
    """How many entries a density keeps: never none.

    Examples
    --------
    >>> keep_count(0.2, 10), keep_count(0.2, 3), keep_count(1.0, 3)
    (2, 1, 3)
    """
    return min(numel, max(1, int(density * numel)))


def order_statistic(values: Float[Tensor, "*shape"], k: int) -> float:
    """The k-th largest value, k from 1.

    Examples
    --------
    >>> order_statistic(torch.tensor([3.0, 1.0, 2.0]), 2)
    2.0
    """
    flat = values.reshape(-1)
    return flat.kthvalue(flat.numel() - k + 1).values.item()


def trim_threshold(deltas: Sequence[Float[Tensor, "..."]], density: float) -> float:
    """The magnitude from which one expert's entries are kept, over one tensor or over many.

    Parameters
    ----------
    deltas
        Task-vector tensors of one expert: one tensor, or all tensors of the model for the global
        trim of the paper. They are flattened together.
    density
        Fraction that is kept, in (0, 1].

    Examples
    --------
    >>> trim_threshold([torch.tensor([1.0, -5.0]), torch.tensor([3.0, 0.5])], 0.5)
    3.0
    """
    flat = torch.cat([magnitude(delta).reshape(-1) for delta in deltas])
    return order_statistic(flat, keep_count(density, flat.numel())) if flat.numel() else 0.0


def global_thresholds(
    stacks: Sequence[Float[Tensor, "n ..."]], densities: Sequence[float]
) -> list[float]:
    """Thresholds of every expert over a whole model held in memory; the slow way.

    Parameters
    ----------
    stacks
        One stack of task vectors, shape (n, ...), per tensor of the model.
    densities
        One density per expert.

    Examples
    --------
    >>> global_thresholds([torch.tensor([[1.0, 2.0]]), torch.tensor([[9.0]])], [0.4])
    [9.0]
    """
    return [
        trim_threshold([stack[i] for stack in stacks], density)
        for i, density in enumerate(densities)
    ]


def trim_by_magnitude(
    deltas: Deltas, densities: Sequence[float], *, thresholds: Sequence[float] | None = None
) -> Float[Tensor, "n *shape"]:
    """Keep the largest entries of each task vector, zero the rest (TIES, step 1).

    Parameters
    ----------
    deltas
        Task vectors (n, *shape).
    densities
        Fraction to keep, one per expert.
    thresholds
        Magnitudes from which entries are kept, one per expert, where they were computed over more
        than this tensor. Then ``densities`` is not used.

    Examples
    --------
    >>> trim_by_magnitude(torch.tensor([[1.0, -3.0, 2.0]]), [0.67]).tolist()
    [[0.0, -3.0, 2.0]]
    """
    if thresholds is None:
        thresholds = global_thresholds([deltas], densities)
    limits = torch.tensor(thresholds, dtype=torch.float32, device=deltas.device)
    return torch.where(magnitude(deltas) >= per_expert(limits, deltas), deltas, 0.0)


def votes(
    deltas: Deltas, weights: Float64[Tensor, " n"], election: Election
) -> Float64[Tensor, "n *shape"]:
    """What the signs are elected from: the task vectors, or the weighted task vectors."""
    plain = deltas.to(torch.float64)
    return plain if election == "plain" else plain * per_expert(weights, deltas)


def sign_balance(
    deltas: Deltas, weights: Float64[Tensor, " n"], election: Election = "plain"
) -> int:
    """Entries with a positive sum less entries with a negative one; sums to the global majority."""
    return int(sum_in_order(votes(deltas, weights, election)).sign().sum().item())


def elect_sign(
    deltas: Deltas,
    weights: Float64[Tensor, " n"],
    *,
    election: Election = "plain",
    zero_sum: int = 1,
) -> Float64[Tensor, "*shape"]:
    """The sign of the sum of each entry (TIES, step 2).

    Parameters
    ----------
    deltas
        Trimmed task vectors (n, *shape).
    weights
        One per expert; they vote only with ``election="weighted"``.
    zero_sum
        The sign of a sum that is exactly 0: +1, or -1 where the majority (see `sign_balance`) is
        negative.

    Examples
    --------
    >>> deltas = torch.tensor([[0.5], [0.4], [-0.6]])
    >>> elect_sign(deltas, torch.ones(3, dtype=torch.float64)).tolist()
    [1.0]
    """
    sums = sum_in_order(votes(deltas, weights, election))
    return torch.where(sums == 0, float(zero_sum), sums.sign())


def disjoint_mean(
    deltas: Deltas,
    weights: Float64[Tensor, " n"],
    signs: Float64[Tensor, "*shape"],
    *,
    election: Election = "plain",
    normalize: bool = True,
    smallest_divisor: float = 0.0,
) -> Update:
    """Weighted mean of each entry over the experts that agree with its sign (TIES, step 3).

    Parameters
    ----------
    deltas, weights, signs
        Trimmed task vectors (n, *shape), weights (n), elected signs (*shape).
    election
        Whether it is d or w d that must have the sign.
    normalize
        Divide by the sum of the agreeing weights; where that is 0, by 1. Without: the sum.
    smallest_divisor
        Divide by no less than this; mergekit's SCE has 1e-6.

    Examples
    --------
    >>> deltas = torch.tensor([[0.5], [0.4], [-0.6]], dtype=torch.float64)
    >>> one = torch.ones(3, dtype=torch.float64)
    >>> round(disjoint_mean(deltas, one, elect_sign(deltas, one)).item(), 6)
    0.45
    """
    agree = votes(deltas, weights, election).sign() == signs
    column = per_expert(weights, deltas)
    total = sum_in_order(torch.where(agree, column * deltas.to(torch.float64), 0.0))
    if not normalize:
        return total
    divisor = sum_in_order(torch.where(agree, column, 0.0))
    if smallest_divisor:
        divisor = divisor.clamp(min=smallest_divisor)
    return total / torch.where(divisor == 0, 1.0, divisor)


def weighted_sum(
    deltas: Deltas, weights: Float64[Tensor, " n"], *, normalize: bool = False
) -> Update:
    """Sum of w_i d_i, or with ``normalize`` their mean (task arithmetic without lambda).

    Examples
    --------
    >>> weights = torch.tensor([1.0, -1.0], dtype=torch.float64)
    >>> weighted_sum(torch.tensor([[2.0], [0.5]]), weights).tolist()
    [1.5]
    """
    total = sum_in_order(votes(deltas, weights, "weighted"))
    return total / sum_in_order(weights) if normalize else total
