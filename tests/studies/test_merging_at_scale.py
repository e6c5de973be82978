"""Merges obey their laws, tuning is paid for alike, and a planted effect is found."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from zeitgeist.evidence import Group, Measured, Size, run_study
from zeitgeist.evidence.study import Study
from zeitgeist.studies import merging_at_scale_digits as digits
from zeitgeist.studies.merging_at_scale import STUDY, applies, measure, prepare
from zeitgeist.studies.merging_at_scale_digits import METHODS, expert_sets, grid
from zeitgeist.studies.merging_at_scale_effects import effect_sizes
from zeitgeist.studies.tuned_merges import Grid, Judged, merged_update, tune, tune_method

TINY = {
    "blocks": 2,
    "held_in": 3,
    "held_out": 2,
    "experts": (1, 2, 3),
    "sets": 2,
    "pretraining": {"weak": 15, "strong": 60},
    "steps": 15,
}
SETTING = {"family": "digits", "width": 8, "base": "weak"}
Rows = dict[str, list[Measured]]


@pytest.fixture(scope="module")
def measured() -> Rows:
    return _measured(0)


def _measured(seed: int) -> Rows:
    prepared = prepare(Group(seed, SETTING, TINY))
    return {arm.slug: list(measure(arm.slug, prepared)) for arm in STUDY.arms}


def _value(rows: list[Measured], metric: str, **labels: Any) -> float:
    (found,) = [r.value for r in rows if r.metric == metric and dict(r.labels) == labels]
    return found


def _drawn(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_averaging_is_task_arithmetic_at_one_over_k() -> None:
    base, experts = _drawn(100), _drawn(5, 100)
    average = merged_update("average", base, experts)
    torch.testing.assert_close(
        merged_update("task_arithmetic", base, experts) / 5, average, rtol=1e-13, atol=1e-14
    )
    torch.testing.assert_close(base + average, experts.mean(0), rtol=1e-13, atol=1e-14)
    assert 1 / 5 in grid("task_arithmetic", 5).lambdas


@pytest.mark.parametrize("method", METHODS)
def test_one_expert_at_lambda_one_with_everything_kept_is_itself(method: str) -> None:
    base, expert = _drawn(50), _drawn(1, 50) + 1
    density = None if method in ("average", "task_arithmetic") else 1.0
    update = merged_update(method, base, expert, density)
    torch.testing.assert_close(base + update, expert[0], rtol=1e-13, atol=1e-13)


def test_every_tuned_method_has_the_same_number_of_evaluations(measured: Rows) -> None:
    for experts in (1, 2, 3):
        tried = {_value(measured[m], "evaluations", experts=experts, set=0) for m in METHODS[1:]}
        assert tried == {24}
        assert _value(measured["average"], "evaluations", experts=experts, set=0) == 1


def test_equal_scores_are_decided_by_the_loss() -> None:
    base, update = torch.zeros(1), torch.ones(1, dtype=torch.float64)

    def judge(candidates: torch.Tensor) -> Judged:
        return Judged(torch.zeros(len(candidates)), (candidates[:, 0] - 2).abs())

    assert tune(base, iter([(0.5, update)]), [1.0, 2.0, 3.0], judge).lambda_ == 2.0


def test_tuning_finds_the_best_density_and_lambda() -> None:
    base, experts = torch.zeros(4), torch.tensor([[4.0, 3.0, 2.0, 1.0]])
    wanted = torch.tensor([2.0, 1.5, 0.0, 0.0])

    def judge(candidates: torch.Tensor) -> Judged:
        far = (candidates - wanted).abs().sum(dim=1)
        return Judged(-far, far)

    tuned = tune_method("ties", base, experts, Grid((0.5, 1.0), (0.5, 1.0)), judge)
    assert (tuned.lambda_, tuned.density, tuned.evaluations) == (0.5, 0.5, 4)
    assert torch.equal(tuned.vector.float(), wanted)


def test_the_same_seed_gives_the_same_rows(measured: Rows) -> None:
    assert _measured(0) == measured
    assert _measured(1) != measured


def test_scores_are_relative_to_experts_and_to_the_base(measured: Rows) -> None:
    assert _value(measured["expert"], "held_in") == 1.0
    assert _value(measured["base"], "held_out") == 1.0
    for method in METHODS:
        for experts, sets in ((1, 2), (2, 2), (3, 1)):
            for number in range(sets):
                at = {"experts": experts, "set": number}
                rows = measured[method]
                over = _value(rows, "held_out", **at) - 1
                assert _value(rows, "over_base", **at) == pytest.approx(over)
                rivals = [_value(measured[m], "held_in", **at) for m in METHODS]
                apart = abs(_value(rows, "held_in", **at) - float(np.mean(rivals)))
                assert _value(rows, "apart", **at) == pytest.approx(apart)


def test_what_more_experts_cost_is_what_the_merges_say(measured: Rows) -> None:
    rows = measured["ties"]
    few = [_value(rows, "held_in", experts=1, set=s) for s in range(2)]
    all_three = _value(rows, "held_in", experts=3, set=0)
    lost = float(np.mean(few)) - all_three
    assert _value(rows, "lost_with_experts") == pytest.approx(lost)


def test_sets_of_experts_are_distinct_and_sampled_by_the_seed() -> None:
    sets = expert_sets(0, 8, 4, 3)
    assert len(set(sets)) == 3
    assert all(len(set(one)) == 4 and set(one) <= set(range(8)) for one in sets)
    assert sets == expert_sets(0, 8, 4, 3) != expert_sets(1, 8, 4, 3)


def _tiny_study() -> Study:
    settings = tuple(
        {"family": "digits", "width": w, "base": b} for w in (12, 96) for b in ("weak", "strong")
    )
    numbers = {**TINY, "held_in": 8, "experts": (2, 8), "sets": 1}
    quick = Size(3, settings, {**numbers, "pretraining": {"weak": 2, "strong": 4}, "steps": 2})
    return replace(STUDY, sizes={"quick": quick})


def test_every_claim_finds_its_rows_and_every_figure_is_drawn(tmp_path: Path) -> None:
    evidence = run_study(_tiny_study(), "quick", tmp_path / "study", workers=1, progress=False)
    assert not evidence.failures
    for claim, verdict in zip(evidence.claims, evidence.verdicts, strict=True):
        seeds = 3 if claim.where["family"] == "digits" else 0
        assert (verdict.seeds, verdict.unpaired) == (seeds, 0)
    declared = {metric.slug for metric in STUDY.metrics}
    assert {row["metric"] for row in evidence.rows} <= declared
    assert STUDY.figures is not None
    drawn = STUDY.figures(evidence)
    assert [figure.slug for figure in drawn] == ["held-in", "held-out", "room", "methods-apart"]
    for figure in drawn:
        assert figure.svg().startswith("<svg")


def _planted(seeds: int, noise: float) -> list[dict[str, Any]]:
    """Rows in which held-in accuracy is a known function of everything, plus noise."""
    rows = []
    for seed in range(seeds):
        random = np.random.default_rng(seed)
        for width in (12, 24, 48):
            for base, score in (("weak", 0.4), ("strong", 0.8)):
                zero_shot = score + 0.03 * np.log2(width) + random.normal(0, 0.02)
                for experts in (2, 8):
                    for arm in METHODS:
                        held_in = (
                            0.05 * np.log2(width)
                            - 0.02 * experts
                            + 0.4 * zero_shot
                            + 0.03 * (arm == "ties")
                            + random.normal(0, noise)
                        )
                        cell = {"family": "digits", "seed": seed, "width": width, "base": base}
                        merge = {**cell, "arm": arm, "experts": experts, "set": 0}
                        rows.append({**merge, "metric": "held_in", "value": held_in})
                        rows.append({**merge, "metric": "zero_shot", "value": zero_shot})
    return rows


PLANTED = {
    "log2 width": 0.05,
    "experts": -0.02,
    "base score": 0.004,
    "task_arithmetic": 0.0,
    "ties": 0.03,
    "dare_ties": 0.0,
}


def test_effects_without_noise_are_exact() -> None:
    found = {effect.name: effect.raw for effect in effect_sizes(_planted(5, 0.0))}
    assert found == pytest.approx(PLANTED, abs=1e-9)


def test_intervals_of_effects_cover_what_was_planted() -> None:
    effects = effect_sizes(_planted(8, 0.02))
    assert {effect.name for effect in effects} == PLANTED.keys()
    for effect in effects:
        assert effect.raw_low < PLANTED[effect.name] < effect.raw_high
        assert effect.low < effect.standardised < effect.high
    assert min(abs(e.standardised) for e in effects if PLANTED[e.name]) > max(
        abs(e.standardised) for e in effects if not PLANTED[e.name]
    )


def test_effects_do_not_depend_on_the_order_of_the_rows_or_on_other_rows() -> None:
    rows = _planted(5, 0.02)
    others = [{**rows[0], "family": "smollm2", "value": 9.0}, {**rows[1], "arm": "expert"}]
    assert effect_sizes([*reversed(rows), *others])[0].raw == pytest.approx(
        effect_sizes(rows)[0].raw
    )


def test_a_family_is_chosen_by_the_setting() -> None:
    speaks, shared = prepare(Group(0, SETTING, TINY))
    assert not speaks
    assert isinstance(shared, digits.Prepared)
    assert not applies("multitask", {"family": "smollm2"})
