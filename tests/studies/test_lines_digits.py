"""Ends of every scaling are what they must be, budgets are equal, and curves start at the base."""

import pytest
import torch

from zeitgeist.evidence import Group, Measured
from zeitgeist.merging import LinesOptions
from zeitgeist.studies.lines_digits import (
    ALPHAS,
    FACTORS,
    MERGE_ARMS,
    MERGES,
    SCALINGS,
    SINGLE_ARMS,
    Prepared,
    applies,
    measure,
    merge_candidates,
    prepare,
    scaled,
    single_options,
)
from zeitgeist.studies.tuned_merges import merged_update

TINY = {
    "width": 16,
    "blocks": 3,
    "experts": 2,
    "others": 1,
    "pretraining": {"weak": 100},
    "steps": 40,
}
Rows = dict[str, list[Measured]]


def _prepare(part: str, seed: int = 0) -> Prepared:
    return prepare(Group(seed, {"part": part, "base": "weak"}, TINY))


@pytest.fixture(scope="module")
def single() -> Prepared:
    return _prepare("digits")


@pytest.fixture(scope="module")
def merging() -> Prepared:
    return _prepare("merge")


@pytest.fixture(scope="module")
def rows(single: Prepared, merging: Prepared) -> Rows:
    curves = {arm: list(measure(arm, single)) for arm in SINGLE_ARMS}
    merges = {f"merge {arm}": list(measure(arm, merging)) for arm in MERGE_ARMS}
    return {**curves, **merges}


def _values(found: list[Measured], metric: str, **labels: float) -> list[float]:
    return [r.value for r in found if r.metric == metric and dict(r.labels) == labels]


def test_strength_one_is_the_fine_tune_to_the_bit(single: Prepared) -> None:
    for scaling in SCALINGS:
        assert torch.equal(
            scaled(single.base, single.experts[0], single_options(scaling, 1.0)), single.experts[0]
        )


def test_strength_zero_keeps_the_block_that_each_scaling_protects(single: Prepared) -> None:
    net, tuned = single.base.net, single.experts[0]
    after, before = net.split(tuned), net.split(single.base.trunk)
    found = {
        way: net.split(scaled(single.base, tuned, single_options(way, 0.0))) for way in SCALINGS
    }
    for name in net.shapes:
        assert torch.equal(found["uniform"][name], before[name])
        inside = name.startswith("blocks.")
        if name.startswith("blocks.2."):
            assert torch.equal(found["lines"][name], after[name])
            assert torch.equal(found["reversed"][name], before[name])
        elif name.startswith("blocks.0.") or not inside:
            assert torch.equal(found["lines"][name], before[name])
            assert torch.equal(found["reversed"][name], after[name])


def test_every_tuned_scaling_has_the_same_number_of_evaluations(rows: Rows) -> None:
    for merge in MERGES:
        tried = {_values(rows[f"merge {merge}_{way}"], "evaluations")[0] for way in SCALINGS}
        assert tried == {len(FACTORS[merge])}
        assert _values(rows[f"merge {merge}_unscaled"], "evaluations") == [1]


def test_unscaled_is_the_merge_itself(merging: Prepared) -> None:
    for merge, density in (("task_arithmetic", None), ("ties", 0.2)):
        (whole,), _ = merge_candidates(merging.base, merging.experts, merge, "unscaled")
        update = merged_update(merge, merging.base.trunk, merging.experts, density)
        torch.testing.assert_close(whole - merging.base.trunk, update)


def test_alpha_of_task_arithmetic_is_one_over_the_number_of_tasks(merging: Prepared) -> None:
    _, strengths = merge_candidates(merging.base, merging.experts, "task_arithmetic", "lines")
    assert [alpha for alpha, _ in strengths] == pytest.approx([1 / 2] * len(strengths))
    _, exchanged = merge_candidates(merging.base, merging.experts, "task_arithmetic", "reversed")
    for (alpha, beta), (first, slope) in zip(strengths, exchanged, strict=True):
        assert (first, first + slope) == (pytest.approx(alpha + beta), pytest.approx(alpha))


def test_uniform_candidates_lie_on_the_line_from_the_base(merging: Prepared) -> None:
    candidates, strengths = merge_candidates(
        merging.base, merging.experts, "task_arithmetic", "uniform"
    )
    update = merged_update("task_arithmetic", merging.base.trunk, merging.experts)
    for candidate, (factor, _) in zip(candidates, strengths, strict=True):
        torch.testing.assert_close(candidate, merging.base.trunk.double() + factor * update)


def test_one_expert_of_a_merge_is_scaled_as_alone(merging: Prepared) -> None:
    alone, strengths = merge_candidates(
        merging.base, merging.experts[:1], "task_arithmetic", "uniform"
    )
    at_one = [factor for factor, _ in strengths].index(1.0)
    torch.testing.assert_close(alone[at_one], merging.experts[0].double())
    half = scaled(merging.base, merging.experts[0].double(), LinesOptions(alpha=0.5, beta=0.0))
    torch.testing.assert_close(alone[[f for f, _ in strengths].index(0.5)], half)


def test_curves_begin_at_the_base_and_end_at_the_fine_tune(rows: Rows) -> None:
    for metric in ("target_accuracy", "control_accuracy"):
        base, tuned = (
            _values(rows["base"], metric, alpha=0.0),
            _values(rows["none"], metric, alpha=1.0),
        )
        assert _values(rows["uniform"], metric, alpha=0.0) == base
        for scaling in SCALINGS:
            assert _values(rows[scaling], metric, alpha=1.0) == tuned
            for alpha in ALPHAS:
                assert len(_values(rows[scaling], metric, alpha=alpha)) == 2


def test_scaling_undoes_no_less_than_leaving_things_as_they_are(rows: Rows) -> None:
    """Strength 1 is on every curve, so the fine-tune's own control is always reached."""
    assert _values(rows["none"], "undone") == [0.0]
    assert _values(rows["none"], "control_accuracy_at_target") == _values(
        rows["none"], "control_accuracy", alpha=1.0
    )
    for scaling in SCALINGS:
        assert _values(rows[scaling], "undone")[0] >= 0
        at_target = _values(rows[scaling], "control_accuracy_at_target")
        as_is = _values(rows["none"], "control_accuracy", alpha=1.0)
        assert all(a >= b for a, b in zip(at_target, as_is, strict=True))


def test_the_base_keeps_its_own_accuracy(rows: Rows, merging: Prepared) -> None:
    (found,) = _values(rows["merge base"], "accuracy")
    assert found == pytest.approx(float(merging.accuracy[0, :2].mean()))


def test_the_same_seed_gives_the_same_rows(rows: Rows) -> None:
    again = _prepare("digits")
    assert {arm: list(measure(arm, again)) for arm in SINGLE_ARMS} == {
        arm: rows[arm] for arm in SINGLE_ARMS
    }
    assert list(measure("lines", _prepare("digits", seed=1))) != rows["lines"]


def test_arms_of_a_part_are_those_that_measure_something(rows: Rows) -> None:
    every = dict.fromkeys([*SINGLE_ARMS, *MERGE_ARMS])
    for part, arms in (("digits", SINGLE_ARMS), ("merge", MERGE_ARMS)):
        assert {arm for arm in every if applies(arm, {"part": part})} == set(arms)
    assert all(rows.values())
