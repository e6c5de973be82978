"""Verdicts on simulated data whose truth is known: intervals cover, errors are rare."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import ttest_1samp

from zeitgeist.evidence import Claim, judge, summary
from zeitgeist.evidence.verdicts import LEVEL, differences, holm, pivot

Rows = list[dict[str, Any]]


def claim(direction: str = "greater", margin: float = 0.0, slug: str = "c") -> Claim:
    return Claim(slug, "", "", "m", {"arm": "a"}, {"arm": "b"}, direction, margin)  # type: ignore[arg-type]


def paired(differences_: Any, *, metric: str = "m") -> Rows:
    """Rows of two arms whose paired difference per seed is given; seeds differ much themselves."""
    values = np.asarray(differences_, dtype=float)
    return [
        {"arm": arm, "seed": seed, "metric": metric, "value": 10.0 * seed + (arm == "a") * value}
        for seed, value in enumerate(values)
        for arm in "ab"
    ]


def simulated(count: int, seeds: int, mean: float, sd: float = 1.0) -> Iterator[Any]:
    random = np.random.default_rng(0)
    for _ in range(count):
        yield random.normal(mean, sd, seeds)


@pytest.mark.parametrize("seeds", [5, 8, 20])
def test_the_interval_covers_the_truth_about_as_often_as_it_says(seeds: int) -> None:
    count = 400
    covered = 0
    for values in simulated(count, seeds, mean=1.0):
        low, high = pivot([np.array([v]) for v in values], resamples=999).interval()
        covered += low <= 1.0 <= high
    # Four standard errors of a share of 400 are .044.
    assert 0.95 - 0.044 <= covered / count <= 1.0


def test_skewed_differences_are_covered_too() -> None:
    random = np.random.default_rng(1)
    covered = 0
    for _ in range(400):
        values = random.exponential(1.0, 10)
        low, high = pivot([np.array([v]) for v in values], resamples=999).interval()
        covered += low <= 1.0 <= high
    assert covered / 400 > 0.88  # percentiles of the mean reach .85 here


def test_items_inside_seeds_are_not_taken_for_seeds() -> None:
    random = np.random.default_rng(2)
    covered = naive = 0
    for _ in range(200):
        groups = [random.normal(random.normal(0, 1.0), 0.5, 40) for _ in range(6)]
        low, high = pivot(groups, resamples=999).interval()
        covered += low <= 0 <= high
        pooled = np.concatenate(groups)
        naive += abs(pooled.mean()) <= 1.96 * pooled.std() / np.sqrt(len(pooled))
    assert covered / 200 > 0.9
    assert naive / 200 < 0.5  # what pooling the items would have said


@pytest.mark.parametrize("direction", ["greater", "less", "equal"])
def test_at_the_edge_of_a_claim_a_wrong_decision_is_rare(direction: str) -> None:
    truth = {"greater": 0.5, "less": -0.5, "equal": 0.5}[direction]
    decided = 0
    for values in simulated(300, 8, mean=truth):
        decided += judge(paired(values), [claim(direction, 0.5)])[0].verdict != "undecided"
    assert decided / 300 < LEVEL + 0.05


def test_many_claims_do_not_make_errors_likelier() -> None:
    random = np.random.default_rng(3)
    wrong = 0
    claims = [
        Claim(f"c{i}", "", "", f"m{i}", {"arm": "a"}, {"arm": "b"}, "greater") for i in range(8)
    ]
    for _ in range(120):
        rows = [r for i in range(8) for r in paired(random.normal(0, 1, 10), metric=f"m{i}")]
        wrong += any(v.verdict != "undecided" for v in judge(rows, claims))
    assert wrong / 120 < 0.11


@pytest.mark.parametrize(
    ("direction", "mean", "verdict"),
    [
        ("greater", 3.0, "holds"),
        ("greater", -1.0, "does not hold"),
        ("less", -3.0, "holds"),
        ("less", 1.0, "does not hold"),
        ("equal", 0.0, "holds"),
        ("equal", 3.0, "does not hold"),
        ("equal", -3.0, "does not hold"),
    ],
)
def test_a_clear_effect_is_seen(direction: str, mean: float, verdict: str) -> None:
    values = mean + np.linspace(-0.2, 0.2, 7)
    assert judge(paired(values), [claim(direction, 1.0)])[0].verdict == verdict


def test_noise_that_seeds_share_does_not_hide_a_paired_difference() -> None:
    # Seeds differ by 10 points, arms by 1.
    found = judge(paired(1 + np.array([0.1, -0.1, 0.05, 0, -0.05])), [claim()])[0]
    assert found.verdict == "holds"
    assert found.high - found.low < 1


def test_a_large_effect_of_five_seeds_is_decided_among_many_claims() -> None:
    values = 2.5 + 0.07 * np.array([0.5, 0.5, -1.0, 1.0, -0.9])  # two seeds nearly agree
    claims = [claim("less", 2.0, f"c{i}") for i in range(7)]
    assert {v.verdict for v in judge(paired(values), claims)} == {"does not hold"}


@given(st.lists(st.floats(-3, 3), min_size=4, max_size=9), st.sampled_from(["greater", "less"]))
def test_a_verdict_never_contradicts_its_interval(values: list[float], direction: str) -> None:
    found = judge(paired(values), [claim(direction, 0.5)])[0]
    beyond = found.low > 0.5 if direction == "greater" else found.high < -0.5
    short = found.high < 0.5 if direction == "greater" else found.low > -0.5
    assert beyond if found.verdict == "holds" else True
    assert short if found.verdict == "does not hold" else True


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_few_seeds_decide_nothing_and_say_so(seeds: int) -> None:
    found = judge(paired(5 + 0.1 * np.arange(seeds)), [claim()])[0]
    assert found.verdict == "undecided"
    assert str(seeds) in found.reason


def test_an_exact_identity_holds() -> None:
    rows = paired(np.zeros(4))
    found = judge(rows, [claim("equal", 1e-9)])[0]
    assert (found.verdict, found.low, found.high) == ("holds", 0.0, 0.0)


def test_nothing_measured_is_undecided() -> None:
    found = judge([], [claim()])[0]
    assert (found.verdict, found.seeds, found.reason) == ("undecided", 0, "nothing was measured")


def test_rows_pair_on_everything_that_is_not_compared() -> None:
    rows = [
        {"arm": arm, "seed": seed, "width": width, "metric": "m", "item": item, "value": value}
        for seed in range(2)
        for width in (1, 2)
        for item in ("x", "y")
        for arm, value in (("a", 2.0 * width), ("b", 1.0))
    ]
    found, unpaired = differences(rows, claim())
    assert unpaired == 0
    assert found == {0: {"x": [1, 3], "y": [1, 3]}, 1: {"x": [1, 3], "y": [1, 3]}}
    wide = Claim("w", "", "", "m", {"width": 2}, {"width": 1}, "greater", 0.0, {"arm": "a"})
    assert differences(rows, wide)[0] == {0: {"x": [2], "y": [2]}, 1: {"x": [2], "y": [2]}}


def test_a_row_without_partner_is_counted_and_left_out() -> None:
    rows = paired([1.0, 1.1, 0.9, 1.0, 1.05])
    found = judge([*rows[:-1], {**rows[0], "seed": 99}], [claim()])[0]
    assert found.unpaired == 2
    assert found.seeds == 4


def test_values_that_are_no_numbers_pair_with_nothing() -> None:
    rows = paired([1.0, 1.2, 1.1])
    rows[2] |= {"value": float("nan")}
    found, unpaired = differences(rows, claim())
    assert list(found) == [0, 2]
    assert unpaired == 1


def test_without_a_control_the_metric_itself_is_judged() -> None:
    rows = [{"arm": "a", "seed": s, "metric": "m", "value": 1 + 0.01 * (s % 3)} for s in range(6)]
    alone = Claim("alone", "", "", "m", {"arm": "a"}, None, "greater", 0.5)
    assert judge(rows, [alone])[0].verdict == "holds"


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_is_between_each_p_and_bonferroni_and_keeps_the_order(ps: list[float]) -> None:
    adjusted = holm(ps)
    for p, q in zip(ps, adjusted, strict=True):
        assert p <= q <= min(1.0, len(ps) * p) + 1e-12 or q == max(adjusted)
        assert q <= 1
    assert [adjusted[i] for i in np.argsort(ps, kind="stable")] == sorted(adjusted)


def test_p_is_near_students_for_many_seeds() -> None:
    values = np.random.default_rng(4).normal(0.3, 1, 60)
    ours = pivot([np.array([v]) for v in values]).p_above(0.0)
    assert ours == pytest.approx(ttest_1samp(values, 0.0, alternative="greater").pvalue, abs=0.01)


@given(st.integers(-5, 5), st.floats(0.1, 10))
def test_shift_and_scale_do_not_change_a_verdict(shift: int, scale: float) -> None:
    values = np.array([0.9, 1.4, 1.1, 0.7, 1.3])
    one = judge(paired(values), [claim("greater", 0.5)])[0]
    rows = [{**row, "value": scale * (row["value"] + shift)} for row in paired(values)]
    other = judge(rows, [claim("greater", 0.5 * scale)])[0]
    assert other.verdict == one.verdict
    assert other.difference == pytest.approx(scale * one.difference)


def test_the_same_rows_give_the_same_verdicts() -> None:
    rows = paired(np.random.default_rng(5).normal(1, 1, 7))
    assert judge(rows, [claim()]) == judge(rows, [claim()])
    assert judge(rows[::-1], [claim()])[0].difference == pytest.approx(
        judge(rows, [claim()])[0].difference
    )


def test_a_summary_says_what_its_interval_is_over() -> None:
    many = [{"arm": "a", "seed": s, "metric": "m", "value": float(s)} for s in range(6)]
    assert summary(many, "m", ["arm"])[0]["over"] == "seeds"
    items = [
        {"arm": "a", "seed": 0, "metric": "m", "value": float(i), "item": str(i)} for i in range(30)
    ]
    found = summary(items, "m", ["arm"])[0]
    assert found["over"] == "items"
    assert found["low"] < found["value"] < found["high"]
    one = summary(many[:2], "m", ["arm"])[0]
    assert one["over"] == ""
    assert np.isnan(one["low"])


def test_a_summary_keeps_the_order_of_first_appearance() -> None:
    rows = [
        {"arm": arm, "seed": 0, "metric": "m", "value": 1.0, "task": task}
        for arm in ("z", "a")
        for task in ("t", "s")
    ]
    found = summary(rows, "m", ["arm", "task"])
    assert [(row["arm"], row["task"]) for row in found] == [
        ("z", "t"), ("z", "s"), ("a", "t"), ("a", "s"),
    ]  # fmt: skip
