"""From a probe's log-odds to a probability that can be believed, and how far it can be.

Platt: P = sigmoid(slope f + offset), fitted to targets (n1 + 1) / (n1 + 2) and 1 / (n0 + 2).
Isotonic: the increasing steps closest to the labels (pool adjacent violators), joined by lines.

A probe's scores on its own training rows are too sure, so what is calibrated are scores of rows
that it had not seen, and what is reported is calibrated by the other folds (`cross_calibrated`).

n rows   k knots
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeitgeist.errors import InputInvalid

__all__ = ["Calibration", "Reliability", "calibrate", "cross_calibrated", "reliability"]

Method = Literal["platt", "isotonic"]


@dataclass(frozen=True)
class Calibration:
    """A map from log-odds to probability.

    ``parameters`` are slope over offset for Platt, scores over probabilities of the knots for
    isotonic.
    """

    method: Method
    parameters: Float[Tensor, "2 k"]

    def __post_init__(self) -> None:
        if self.method not in ("platt", "isotonic"):
            raise InputInvalid(
                f"the calibration is {self.method!r}", mend="give 'platt' or 'isotonic'"
            )

    def probability(self, score: Float[Tensor, "*b"]) -> Float[Tensor, "*b"]:
        """P(right) of log-odds."""
        first, second = self.parameters.double()
        if self.method == "platt":
            return torch.sigmoid(first * score.double() + second)
        found = np.interp(score.double().cpu().numpy(), first.numpy(), second.numpy())
        return torch.as_tensor(found, dtype=torch.float64)


def calibrate(
    score: Float[Tensor, " n"], y: Bool[Tensor, " n"], method: Method = "platt"
) -> Calibration:
    """Fit a calibration to scores of rows that the probe had not seen.

    Raises
    ------
    InputInvalid
        An unknown method, or rows of one class only.

    Examples
    --------
    >>> y = torch.tensor([False, True, False, True])
    >>> calibrate(torch.tensor([0.0, 1.0, 2.0, 3.0]), y, "isotonic").parameters[1]
    tensor([0.0000, 0.5000, 0.5000, 1.0000], dtype=torch.float64)
    """
    if bool(y.all()) or not bool(y.any()):
        raise InputInvalid(
            f"all {len(y)} answers are {'right' if bool(y.any()) else 'wrong'}",
            mend="calibrate on answers of both kinds",
        )
    if method == "platt":
        return Calibration(method, _platt(score.double().cpu(), y.cpu()))
    if method == "isotonic":
        return Calibration(method, _isotonic(score.double().cpu(), y.cpu()))
    raise InputInvalid(f"the calibration is {method!r}", mend="give 'platt' or 'isotonic'")


def _platt(score: Tensor, y: Tensor) -> Tensor:
    """Newton's method for two numbers, with the step halved where it would not help."""
    ones = int(y.sum())
    high, low = (ones + 1) / (ones + 2), 1 / (len(y) - ones + 2)
    target = torch.where(y, high, low).double()
    spread = float(score.std(correction=0)) or 1.0
    design = torch.stack([score / spread, torch.ones_like(score)], 1)

    def loss(at: Tensor) -> Tensor:
        f = design @ at
        return (torch.nn.functional.softplus(f) - target * f).sum()

    at = torch.zeros(2, dtype=torch.float64)
    for _ in range(100):
        p = (design @ at).sigmoid()
        gradient = design.T @ (p - target)
        if gradient.abs().max() < 1e-10 * len(y):
            break
        curved = design.T @ (design * (p * (1 - p))[:, None])
        # Constant scores leave the slope open; the little ridge says zero.
        step = torch.linalg.solve(curved + 1e-9 * torch.eye(2, dtype=torch.float64), gradient)
        size = 1.0
        while loss(at - size * step) > loss(at) and size > 1e-6:
            size /= 2
        at = at - size * step
    return torch.stack([at[0] / spread, at[1]])[:, None]


def _isotonic(score: Tensor, y: Tensor) -> Tensor:
    """Pool adjacent violators over distinct scores; both ends of every pool are knots."""
    at, member = score.unique(return_inverse=True)
    weight = torch.zeros_like(at).index_add_(0, member, torch.ones_like(score))
    total = torch.zeros_like(at).index_add_(0, member, y.double())
    pools: list[list[float]] = []  # rows, rights, first and last score
    for where, rows, rights in zip(at.tolist(), weight.tolist(), total.tolist(), strict=True):
        pools.append([rows, rights, where, where])
        while len(pools) > 1 and pools[-2][1] * pools[-1][0] >= pools[-1][1] * pools[-2][0]:
            last = pools.pop()
            pools[-1] = [pools[-1][0] + last[0], pools[-1][1] + last[1], pools[-1][2], last[3]]
    knots = [
        (end, rights / rows)
        for rows, rights, first, last in pools
        for end in dict.fromkeys((first, last))
    ]
    return torch.tensor(knots, dtype=torch.float64).T


def cross_calibrated(
    score: Float[Tensor, " n"],
    y: Bool[Tensor, " n"],
    fold: Int[Tensor, " n"],
    method: Method = "platt",
) -> Float[Tensor, " n"]:
    """Probabilities of every row, calibrated on the rows of other folds.

    Examples
    --------
    >>> y = torch.arange(40) % 2 == 0
    >>> p = cross_calibrated(4.0 * y - 2.0, y, torch.arange(40) // 10)
    >>> bool((p[y] > 0.9).all()), bool((p[~y] < 0.1).all())
    (True, True)
    """
    found = torch.zeros(len(y), dtype=torch.float64)
    for k in fold.unique():
        test = fold == k
        found[test] = calibrate(score[~test], y[~test], method).probability(score[test])
    return found


@dataclass(frozen=True)
class Reliability:
    """How often answers are right that are said to be right with probability p.

    One value per bin that holds answers: their mean probability, the share that is right, and how
    many. ``ece`` is the mean distance of the two, ``brier`` the mean squared error of p.
    """

    said: tuple[float, ...]
    right: tuple[float, ...]
    rows: tuple[int, ...]
    ece: float
    brier: float


def reliability(p: Float[Tensor, " n"], y: Bool[Tensor, " n"], *, bins: int = 10) -> Reliability:
    """Compare probabilities with what happened, in bins of equal width.

    Examples
    --------
    >>> found = reliability(torch.tensor([0.25, 0.25, 0.25, 0.25]), torch.arange(4) == 0)
    >>> found.ece, found.brier
    (0.0, 0.1875)
    """
    if bins < 1:
        raise InputInvalid(f"bins is {bins}", mend="give at least 1")
    p, right = p.double(), y.double()
    which = (p * bins).long().clamp(0, bins - 1)
    rows = torch.bincount(which, minlength=bins)
    said = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, p)
    was = torch.zeros(bins, dtype=torch.float64).index_add_(0, which, right)
    held = rows > 0
    count = rows[held]
    apart = (said[held] - was[held]).abs().sum() / len(p)
    return Reliability(
        tuple((said[held] / count).tolist()),
        tuple((was[held] / count).tolist()),
        tuple(count.tolist()),
        float(apart),
        float((p - right).square().mean()),
    )
