"""Controls at equal target: limits, invariances, and a brute force over fine alphas."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeitgeist.errors import InputInvalid
from zeitgeist.studies.trade_off import area_between, control_at_target

SCORES = st.integers(-20, 20).map(lambda n: n / 8)
CURVES = st.integers(1, 6).flatmap(
    lambda n: st.tuples(*[st.lists(SCORES, min_size=n, max_size=n)] * 2)
)


def _brute_force(targets: list[float], controls: list[float], floor: float) -> float:
    alphas = np.linspace(0, len(targets) - 1, 4000 * max(1, len(targets) - 1) + 1)
    t = np.interp(alphas, range(len(targets)), targets)
    c = np.interp(alphas, range(len(controls)), controls)
    return float(c[t >= floor - 1e-9].max(initial=-math.inf))


@given(CURVES, SCORES)
def test_it_is_the_best_control_over_all_alphas(
    curve: tuple[list[float], list[float]], floor: float
) -> None:
    found, expected = control_at_target(*curve, floor), _brute_force(*curve, floor)
    if expected == -math.inf:
        assert math.isnan(found)
    else:
        assert found == pytest.approx(expected, abs=5e-3)


@given(CURVES, SCORES)
def test_losses_are_scores_upside_down(
    curve: tuple[list[float], list[float]], floor: float
) -> None:
    targets, controls = ([-x for x in xs] for xs in curve)
    upside_down = -control_at_target(targets, controls, -floor, better="lower")
    assert upside_down == pytest.approx(control_at_target(*curve, floor), nan_ok=True)


@given(CURVES, SCORES)
def test_the_direction_of_alpha_does_not_matter(
    curve: tuple[list[float], list[float]], floor: float
) -> None:
    backwards = [xs[::-1] for xs in curve]
    assert control_at_target(*backwards, floor) == pytest.approx(
        control_at_target(*curve, floor), nan_ok=True
    )


@given(CURVES, SCORES, SCORES)
def test_a_lower_floor_never_costs_control(
    curve: tuple[list[float], list[float]], one: float, other: float
) -> None:
    lower, higher = sorted((one, other))
    at_higher = control_at_target(*curve, higher)
    if not math.isnan(at_higher):
        assert control_at_target(*curve, lower) >= at_higher


def test_a_floor_that_a_point_just_meets_counts_it() -> None:
    assert control_at_target([0.0, 1.0], [5.0, 2.0], 1.0) == 2.0
    assert control_at_target([1.0], [2.0], 1.0) == 2.0
    assert math.isnan(control_at_target([1.0], [2.0], 1.1))


def test_flat_targets_leave_the_best_control() -> None:
    assert control_at_target([1.0, 1.0, 1.0], [0.1, 0.7, 0.3], 1.0) == 0.7


@given(CURVES, CURVES)
def test_the_area_changes_sign_when_curves_are_exchanged(
    one: tuple[list[float], list[float]], other: tuple[list[float], list[float]]
) -> None:
    low = min(max(one[0]), max(other[0])) - 1
    area = area_between(one, other, low, low + 1, floors=21)
    assert area == pytest.approx(-area_between(other, one, low, low + 1, floors=21))
    assert area_between(one, one, low, low + 1, floors=21) == 0


def test_the_area_between_parallel_lines_is_their_distance() -> None:
    line, higher = ([0.0, 1.0], [1.0, 0.0]), ([0.0, 1.0], [1.2, 0.2])
    assert area_between(higher, line, 0.2, 0.9) == pytest.approx(0.2)
    losses = [([-t for t in ts], [-c for c in cs]) for ts, cs in (higher, line)]
    assert area_between(*losses, -0.9, -0.2, better="lower") == pytest.approx(0.2)


def test_floors_out_of_reach_have_no_area() -> None:
    line = ([0.0, 1.0], [1.0, 0.0])
    assert math.isnan(area_between(line, line, 0.5, 1.5))


def test_curves_that_are_none_are_refused() -> None:
    with pytest.raises(InputInvalid, match="2 targets and 1 controls"):
        control_at_target([1.0, 2.0], [1.0], 0.5)
    with pytest.raises(InputInvalid, match="range of floors"):
        area_between(([1.0], [1.0]), ([1.0], [1.0]), 1.0, 1.0)
