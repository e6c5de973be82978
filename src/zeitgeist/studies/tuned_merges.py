"""Merge methods tuned on validation data, each with the same number of evaluations.

All methods of the studies are linear in their scale,

    theta(lambda, density) = theta_0 + lambda u(density)

so the merged update u is computed once per density by `zeitgeist.merging.merge_tensors`, over the
whole model as one vector (the trim of TIES is then global, as published), and every candidate of
the grid is one multiplication. The candidate with the highest validation score is taken; where
several share it, the one of them with the lowest validation loss.

C candidates, K experts, P parameters
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import inf, nan
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from zeitgeist.merging import merge_tensors


@dataclass(frozen=True)
class Grid:
    """What is tried: every density with every lambda. Without densities a method has none."""

    lambdas: tuple[float, ...]
    densities: tuple[float, ...] = ()

    @property
    def size(self) -> int:
        """Number of evaluations.

        Examples
        --------
        >>> Grid((0.5, 1.0, 2.0), (0.1, 1.0)).size, Grid((1.0,)).size
        (6, 1)
        """
        return len(self.lambdas) * max(1, len(self.densities))


class Judged(NamedTuple):
    """What candidates are chosen by: the score, and the loss where scores are equal."""

    score: Float[Tensor, " C"]
    loss: Float[Tensor, " C"]

    @property
    def best(self) -> int:
        """The candidate with the highest score, and the lowest loss among those; the first of all.

        Examples
        --------
        >>> Judged(torch.tensor([1.0, 2.0, 2.0]), torch.tensor([0.1, 0.5, 0.4])).best
        2
        """
        return max(range(len(self.score)), key=self.key)

    def key(self, candidate: int) -> tuple[float, float]:
        """What makes a candidate better than another: larger is better."""
        return self.score[candidate].item(), -self.loss[candidate].item()


@dataclass(frozen=True)
class Tuned:
    """The candidate that validation chose. ``density`` is NaN for methods without one."""

    vector: Float64[Tensor, " P"]
    lambda_: float
    density: float
    evaluations: int


def merged_update(
    method: str,
    base: Float[Tensor, " P"],
    experts: Float[Tensor, "K P"],
    density: float | None = None,
    *,
    seed: int = 0,
) -> Float64[Tensor, " P"]:
    """What a method adds to the base at lambda 1.

    Parameters
    ----------
    method
        ``average``, or a task-vector method of `zeitgeist.merging`.
    base, experts
        Flat parameters.
    density
        Share of entries kept, for the methods that have one.
    seed
        Of DARE's masks.

    Examples
    --------
    >>> experts = torch.tensor([[1.0, 0.0], [3.0, 2.0]])
    >>> merged_update("average", torch.zeros(2), experts).tolist()
    [2.0, 1.0]
    >>> merged_update("task_arithmetic", torch.zeros(2), experts).tolist()
    [4.0, 2.0]
    """
    start, tuned = base.double(), list(experts.double())
    if method == "average":
        return merge_tensors("linear", tuned) - start
    options: dict[str, Any] = {} if density is None else {"density": density}
    return merge_tensors(method, tuned, base=start, seed=seed, lambda_=1.0, **options) - start


def tune(
    base: Float[Tensor, " P"],
    updates: Iterator[tuple[float, Float64[Tensor, " P"]]],
    lambdas: Sequence[float],
    judge: Callable[[Float64[Tensor, "C P"]], Judged],
) -> Tuned:
    """Try every update at every lambda and keep the best.

    Parameters
    ----------
    base
        Flat parameters.
    updates
        Density and merged update, for every density of the grid.
    lambdas
        Scales.
    judge
        Scores and losses of candidates on validation data.
    """
    highest, found, tried = (-inf, -inf), None, 0
    scales = torch.tensor(lambdas, dtype=torch.float64)
    for density, update in updates:
        candidates = base.double() + scales[:, None] * update
        judged = judge(candidates)
        tried += len(candidates)
        best = judged.best
        if judged.key(best) > highest:
            highest, found = judged.key(best), (candidates[best], lambdas[best], density)
    if found is None:
        raise ValueError("no candidate has a finite score")
    return Tuned(*found, tried)


def tune_method(
    method: str,
    base: Float[Tensor, " P"],
    experts: Float[Tensor, "K P"],
    grid: Grid,
    judge: Callable[[Float64[Tensor, "C P"]], Judged],
    *,
    seed: int = 0,
) -> Tuned:
    """Tune a method over its grid.

    Parameters
    ----------
    method, base, experts, seed
        See `merged_update`.
    grid
        What is tried.
    judge
        See `tune`.

    Examples
    --------
    >>> base, experts = torch.zeros(1), torch.tensor([[1.0], [3.0]])
    >>> def nearest_to_two(x): return Judged(-(x[:, 0] - 2).abs(), x[:, 0])
    >>> grid = Grid((0.25, 0.5, 1.0))
    >>> tuned = tune_method("task_arithmetic", base, experts, grid, nearest_to_two)
    >>> tuned.lambda_, tuned.vector.tolist(), tuned.evaluations
    (0.5, [2.0], 3)
    """
    updates = (
        (
            nan if density is None else density,
            merged_update(method, base, experts, density, seed=seed),
        )
        for density in grid.densities or (None,)
    )
    return tune(base, updates, grid.lambdas, judge)
