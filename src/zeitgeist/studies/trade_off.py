"""Curves that give up one score for another, and how to compare them.

A way to scale a fine-tune has a strength alpha. Each alpha gives a target score (the task that was
learned) and a control score (what should not be forgotten). Ways differ in where alpha takes them,
so they are compared at equal target:

    c(f) = max { control(alpha) : target(alpha) >= f }            alpha runs over [alpha_1, alpha_n]

with both scores linear between neighbouring alphas, and over a range of floors by the area between
two such curves, int_low^high (c_a(f) - c_b(f)) df / (high - low).
"""

from collections.abc import Sequence
from itertools import pairwise
from math import inf, nan
from typing import Literal

import numpy as np

from zeitgeist.errors import InputInvalid

Better = Literal["higher", "lower"]


def control_at_target(
    targets: Sequence[float],
    controls: Sequence[float],
    floor: float,
    *,
    better: Better = "higher",
) -> float:
    """The best control score where the target is at least as good as ``floor``.

    Parameters
    ----------
    targets, controls
        Scores at alpha_1, ..., alpha_n, in this order.
    floor
        The worst target that is accepted.
    better
        ``"lower"`` where both scores are losses; ``floor`` is then a ceiling.

    Returns
    -------
    float
        NaN where no alpha reaches the floor.

    Examples
    --------
    >>> control_at_target([0.0, 1.0], [1.0, 0.0], 0.75)
    0.25
    >>> control_at_target([2.0, 1.0], [3.0, 4.0], 1.5, better="lower")
    3.5
    """
    if len(targets) != len(controls) or not len(targets):
        raise InputInvalid(
            f"{len(targets)} targets and {len(controls)} controls", mend="give one of each a point"
        )
    sign = 1.0 if better == "higher" else -1.0
    points = [(sign * t, sign * c) for t, c in zip(targets, controls, strict=True)]
    limit = sign * floor
    best = max((control for target, control in points if target >= limit), default=-inf)
    for (t0, c0), (t1, c1) in pairwise(points):
        if min(t0, t1) < limit <= max(t0, t1):  # the segment crosses the floor
            best = max(best, c0 + (limit - t0) / (t1 - t0) * (c1 - c0))
    return sign * best if best > -inf else nan


def area_between(
    one: tuple[Sequence[float], Sequence[float]],
    other: tuple[Sequence[float], Sequence[float]],
    low: float,
    high: float,
    *,
    better: Better = "higher",
    floors: int = 201,
) -> float:
    """By how much the control of one curve is better than another's, on average over floors.

    Parameters
    ----------
    one, other
        Targets and controls of two curves, see `control_at_target`.
    low, high
        The range of floors; both curves must reach all of it.
    better
        Whether scores are to be high or low.
    floors
        Evenly spaced floors that the mean is taken over (trapezoid rule).

    Returns
    -------
    float
        Positive where ``one`` is the better curve, in the unit of the control score. NaN where a
        floor is out of reach.

    Examples
    --------
    >>> line, higher = ([0.0, 1.0], [1.0, 0.0]), ([0.0, 1.0], [1.5, 0.5])
    >>> round(area_between(higher, line, 0.0, 1.0), 6)
    0.5
    """
    if not low < high:
        raise InputInvalid(f"the range of floors is {low} to {high}", mend="give low < high")
    grid = np.linspace(low, high, floors)
    differences = [
        control_at_target(*one, floor, better=better)
        - control_at_target(*other, floor, better=better)
        for floor in grid.tolist()
    ]
    area = float(np.trapezoid(differences, grid)) / (high - low)
    return area if better == "higher" else -area
