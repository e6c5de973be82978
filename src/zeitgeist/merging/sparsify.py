"""Choosing the entries of task vectors that are merged: bands, random masks, variance, agreement.

Model Breadcrumbs (Davari and Belilovsky, arXiv 2312.06795), DARE (Yu et al., arXiv 2311.03099),
DELLA (Deep et al., arXiv 2406.11617), SCE (Wan et al., arXiv 2408.07990), TALL masks (Wang et al.,
arXiv 2405.07813). The trim of TIES is in `zeitgeist.merging.task_vectors`, with the rules on ranks,
ties and zeros that hold here too.

    breadcrumbs    keep d where lo <= |d| <= hi: the band below the int(gamma N) largest
    DARE           keep d with chance p = density; d / p
    DELLA          the same, p linear in the rank of |d| within its row
    SCE            keep the entries whose variance v over experts is >= the k-th largest,
                   k = max(1, int(topk * #(v > 0))); w_i = mean_j d_ij^2, scaled to sum 1
    TALL mask      |d_i| >= lambda_t |m - d_i|, m the merged update; consensus keeps m where at
                   least k masks agree

Dimensions: n experts, *shape one tensor, N its number of entries.
"""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float32, Float64
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.task_vectors import (
    keep_count,
    magnitude,
    order_statistic,
    per_expert,
    sum_in_order,
)

Deltas = Float[Tensor, "n *shape"]

# Below this L1 norm mergekit 0.1.5 does not rescale
L1_TOO_SMALL = 1e-7


def band_limits(
    delta: Float[Tensor, "*shape"], density: float, gamma: float, *, as_mergekit: bool = False
) -> tuple[float, float]:
    """The smallest and the largest magnitude that Model Breadcrumbs keeps of one task vector.

    Parameters
    ----------
    delta
        Task vector of one expert.
    density, gamma
        Fraction that is kept, and fraction of outliers above it.
    as_mergekit
        Where both do not fit, or density is 1, keep density of the entries and fewer outliers are
        dropped; int(density N) may be 0. Without, the outliers go first and the band holds the
        next max(1, int(density N)), or what there is.

    Examples
    --------
    >>> delta = torch.tensor([9.0, 4.0, 3.0, 2.0, 1.0])
    >>> band_limits(delta, 0.4, 0.2), band_limits(delta, 0.9, 0.4, as_mergekit=True)
    ((3.0, 4.0), (1.0, 4.0))
    """
    values = magnitude(delta)
    lowest, highest = band_ranks(delta.numel(), density, gamma, as_mergekit=as_mergekit)
    if as_mergekit and int(density * delta.numel()) <= 0:
        return math.inf, math.inf
    return order_statistic(values, lowest), order_statistic(values, highest)


def band_ranks(
    numel: int, density: float, gamma: float, *, as_mergekit: bool = False
) -> tuple[int, int]:
    """Ranks, 1 = largest, of the smallest and the largest entry of the band of `band_limits`.

    Examples
    --------
    >>> band_ranks(5, 0.4, 0.2), band_ranks(5, 0.9, 0.4, as_mergekit=True)
    ((3, 2), (5, 2))
    """
    above, wanted = min(int(gamma * numel), numel - 1), keep_count(density, numel)
    if as_mergekit:
        above = min(int(gamma * numel), numel - wanted)
    return min(numel, above + wanted), above + 1


def breadcrumbs(
    deltas: Deltas,
    densities: Sequence[float],
    gammas: Sequence[float],
    *,
    as_mergekit: bool = False,
) -> Float[Tensor, "n *shape"]:
    """Zero the outliers and the small entries of each task vector.

    Parameters
    ----------
    deltas
        Task vectors (n, *shape).
    densities, gammas
        Fraction to keep and fraction of outliers above it, one per expert.
    as_mergekit
        See `band_limits`.

    Examples
    --------
    >>> breadcrumbs(torch.tensor([[9.0, -4.0, 3.0, 2.0, 1.0]]), [0.4], [0.2]).tolist()
    [[0.0, -4.0, 3.0, 0.0, 0.0]]
    """
    kept = []
    for delta, density, gamma in zip(deltas, densities, gammas, strict=True):
        low, high = band_limits(delta, density, gamma, as_mergekit=as_mergekit)
        size = magnitude(delta)
        kept.append(torch.where((size >= low) & (size <= high), delta, 0.0))
    return torch.stack(kept)


def keep_probabilities(
    delta: Float[Tensor, "*shape"], density: float, width: float, *, axis: int = -1
) -> Float64[Tensor, "*shape"]:
    """Chance of each entry to be kept by DELLA: linear in the rank of its magnitude in its row.

    Parameters
    ----------
    delta
        One task vector. A row runs along ``axis``; a vector is one row.
    density
        Mean chance. 1 keeps everything.
    width
        Chance of the largest entry of a row less that of the smallest. The paper's epsilon; twice
        the epsilon of mergekit.
    axis
        -1, the paper's rows of a matrix; mergekit ranks along dimension 1.

    Returns
    -------
    torch.Tensor
        ``(density - width / 2) + width * (rank / (cols - 1))`` with rank 0 the smallest entry and
        equal magnitudes ranked by index; a row of one entry has ``density``.

    Raises
    ------
    InputInvalid
        The window reaches 0 or beyond 1.

    Examples
    --------
    >>> keep_probabilities(torch.tensor([-3.0, 1.0, 2.0]), 0.5, 0.5).tolist()
    [0.75, 0.25, 0.5]
    """
    if density >= 1:
        return torch.ones_like(delta, dtype=torch.float64)
    check_window(density, width)
    rows = delta.reshape(1) if delta.dim() == 0 else delta
    cols = rows.shape[axis]
    if cols < 2:
        return torch.full_like(delta, density, dtype=torch.float64)
    order = magnitude(rows).argsort(dim=axis, stable=True)
    ranks = order.argsort(dim=axis).to(torch.float64)
    return (density - width / 2) + width * (ranks / (cols - 1))


def check_window(density: float, width: float) -> None:
    """Refuse a window of keep probabilities that reaches 0 or beyond 1."""
    low, high = density - width / 2, density + width / 2
    if low <= 0 or high > 1:
        raise InputInvalid(
            f"keep probabilities from {low:.4g} to {high:.4g}"
            f" (density {density:.4g}, window {width:.4g})",
            mend="make epsilon smaller, so that they lie in (0, 1]",
        )


def drop_at_random(
    deltas: Deltas,
    probabilities: Float64[Tensor, "n *#shape"],
    draws: Float64[Tensor, "n *shape"],
    *,
    rescale: bool = True,
) -> Float64[Tensor, "n *shape"]:
    """Keep each entry with its probability and divide it by that: the mean over draws is d.

    Parameters
    ----------
    deltas
        Task vectors (n, *shape).
    probabilities
        Chance of each entry, or one per expert shaped (n, 1, ...): constant for DARE, from
        `keep_probabilities` for DELLA.
    draws
        Uniform numbers in [0, 1), see `zeitgeist.merging.randomness`.
    rescale
        Divide what was kept by its probability.

    Examples
    --------
    >>> half = torch.full((1, 1), 0.5, dtype=torch.float64)
    >>> draws = torch.tensor([[0.2, 0.5]], dtype=torch.float64)
    >>> drop_at_random(torch.tensor([[1.0, 1.0]]), half, draws).tolist()
    [[2.0, 0.0]]
    """
    kept = torch.where(draws < probabilities, deltas.to(torch.float64), 0.0)
    return kept / probabilities if rescale else kept


def l1_rescale(
    kept: Float64[Tensor, "n *shape"], deltas: Float64[Tensor, "n *shape"]
) -> Float64[Tensor, "n *shape"]:
    """mergekit's rescale: give each masked task vector the L1 norm it had, as a whole.

    This is not DARE: on small or heavy-tailed tensors single entries are far from unbiased. Where
    either norm is under 1e-7 nothing is rescaled.

    Examples
    --------
    >>> whole = torch.tensor([[1.0, 3.0]], dtype=torch.float64)
    >>> l1_rescale(whole * torch.tensor([[0.0, 1.0]], dtype=torch.float64), whole).tolist()
    [[0.0, 4.0]]
    """
    before = deltas.reshape(len(deltas), -1).abs().sum(dim=1)
    after = kept.reshape(len(kept), -1).abs().sum(dim=1)
    small = (before < L1_TOO_SMALL) | (after < L1_TOO_SMALL)
    factor = torch.where(small, 1.0, before / torch.where(small, 1.0, after))
    return kept * per_expert(factor, kept)


def variance_across(deltas: Deltas) -> Float32[Tensor, "*shape"]:
    """Population variance of each entry over the experts, as float32.

    Examples
    --------
    >>> variance_across(torch.tensor([[1.0, 2.0], [3.0, 2.0]])).tolist()
    [1.0, 0.0]
    """
    values = deltas.to(torch.float64)
    # from the first expert: entries that are the same in all then vary by exactly 0
    values = values - values[0]
    mean = sum_in_order(values) / len(values)
    return (sum_in_order((values - mean) ** 2) / len(values)).to(torch.float32)


def selected_count(varying: int, topk: float, *, as_mergekit: bool = False) -> int:
    """How many of the entries that vary across experts SCE selects.

    At least one, so that no tensor is lost to rounding down. mergekit may select none, and
    multiplies in float32: 0.29 of 100 is 29 there, 28 in float64.

    Examples
    --------
    >>> selected_count(5, 0.1), selected_count(5, 0.1, as_mergekit=True)
    (1, 0)
    """
    if as_mergekit:
        return int(torch.tensor(varying) * topk)
    return max(1, int(topk * varying))


def select_by_variance(
    deltas: Deltas, topk: float, *, as_mergekit: bool = False
) -> Bool[Tensor, "*shape"]:
    """The entries that vary most across experts (SCE, select).

    Parameters
    ----------
    deltas
        Task vectors (n, *shape).
    topk
        Fraction of the entries whose variance is not zero. 1 or more selects everything.
    as_mergekit
        Count as mergekit does (see `selected_count`), and select nothing where nothing varies.
        Without, all are selected there: there is nothing to choose between.

    Examples
    --------
    >>> select_by_variance(torch.tensor([[1.0, 9.0, 5.0], [2.0, 1.0, 5.0]]), 0.5).tolist()
    [False, True, False]
    """
    variance = variance_across(deltas)
    if topk >= 1 or not variance.numel():
        return torch.ones_like(variance, dtype=torch.bool)
    k = 0
    if topk > 0:
        k = selected_count(int(variance.count_nonzero()), topk, as_mergekit=as_mergekit)
    if k == 0:
        return torch.zeros_like(variance, dtype=torch.bool)
    return variance >= order_statistic(variance, k)


def energy_weights(
    deltas: Float64[Tensor, "n *shape"], *, too_small: float = 0.0
) -> Float64[Tensor, " n"]:
    """Weight of each expert: its mean square, scaled to sum 1 (SCE, calculate).

    Parameters
    ----------
    deltas
        Selected task vectors (n, *shape).
    too_small
        Equal weights where the mean squares sum to this or less. mergekit 0.1.5 has 1e-6, which
        any fine-tune with a small learning rate is under; here only an exact 0.

    Examples
    --------
    >>> energy_weights(torch.tensor([[1.0], [2.0]], dtype=torch.float64)).tolist()
    [0.2, 0.8]
    """
    squares = (deltas**2).reshape(len(deltas), -1).sum(dim=1) / max(1, deltas[0].numel())
    total = sum_in_order(squares)
    if total <= too_small:
        return torch.full_like(squares, 1 / len(squares))
    return squares / total


def tall_mask(
    delta: Float[Tensor, "*shape"], merged: Float64[Tensor, "*shape"], tall_lambda: float
) -> Bool[Tensor, "*shape"]:
    """Where the merged update is closer to what this expert needs than no update at all.

    Parameters
    ----------
    delta
        Task vector of one expert.
    merged
        The merged update, before lambda.
    tall_lambda
        Larger keeps less.

    Examples
    --------
    >>> merged = torch.tensor([1.0, 9.0], dtype=torch.float64)
    >>> tall_mask(torch.tensor([1.0, 1.0]), merged, 0.4).tolist()
    [True, False]
    """
    values = delta.to(torch.float64)
    return values.abs() >= (merged - values).abs() * tall_lambda


def consensus(
    deltas: Deltas, merged: Float64[Tensor, "*shape"], tall_lambda: float, k: int
) -> Float64[Tensor, "*shape"]:
    """The merged update where at least ``k`` experts claim it, zero elsewhere.

    k = 0 keeps everything, 1 drops what nobody needs, 2 also what only one needs.

    Examples
    --------
    >>> deltas = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    >>> consensus(deltas, deltas.double().sum(0), 0.4, 2).tolist()
    [2.0, 0.0]
    """
    claims = sum(tall_mask(delta, merged, tall_lambda).to(torch.int64) for delta in deltas)
    return torch.where(torch.as_tensor(claims) >= k, merged, 0.0)
