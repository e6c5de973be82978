"""The language studies on a tiny random model: what they make, tune, repeat and refuse."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from zeitgeist.errors import InputInvalid
from zeitgeist.evidence import Group, Measured
from zeitgeist.studies import (
    knots_language,
    language,
    language_experts,
    language_tasks,
    lines_language,
    merging,
    merging_at_scale_language,
)
from zeitgeist.studies.language import Bench, Merges, recovered, tuned
from zeitgeist.studies.language_tasks import TASKS

Parameters = Mapping[str, Any]


@pytest.fixture(scope="module", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A cache of this file's own, and tasks that take two steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ZEITGEIST_CACHE", str(tmp_path_factory.mktemp("cache")))
        quick = {slug: replace(task, steps=2) for slug, task in TASKS.items()}
        patch.setattr(language, "TASKS", quick)
        yield


@pytest.fixture(scope="module")
def parameters(tiny_llama: Path) -> Parameters:
    return {
        "model": str(tiny_llama),
        "tasks": ("sums", "identifiers"),
        "test_items": 5,
        "validation_items": 3,
        "windows": 5,
        "every": 2,
        "context_tokens": 4,
        "window_tokens": 12,
        "lora": {"rank": 2, "batch_size": 2, "learning_rate": 1e-2},
    }


@pytest.fixture(scope="module")
def bench(cache: None, parameters: Parameters) -> Bench:
    return language.prepare(Group(0, {}, parameters))


def metrics(rows: list[Measured]) -> set[str]:
    return {row.metric for row in rows}


def test_test_and_validation_items_are_apart_and_nobody_learned_them(bench: Bench) -> None:
    for task in bench.tasks:
        test, validation = (
            {e.prompt for e in s[task.slug]} for s in (bench.test, bench.validation)
        )
        assert len(test) == 3
        assert len(validation) == 2
        assert test.isdisjoint(validation)
        pool = dict(language_tasks.split(task, train=4, test=language.POOL, seed=0).test)
        assert set(pool).isdisjoint(
            dict(language_tasks.split(task, train=4, test=96, seed=0).train)
        )


def test_base_and_own_expert_recover_nothing_and_everything(bench: Bench) -> None:
    for task in bench.test:
        assert recovered(bench, bench.alone["base"], task) == 0.0
        assert recovered(bench, bench.alone[task], task) == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["task_arithmetic", "knots_task_arithmetic"])
def test_a_merge_at_lambda_zero_is_the_base(bench: Bench, method: str) -> None:
    with Merges(bench, method) as merges:
        scores = merges.score({"lambda": 0.0}, bench.test)
    for task in bench.test:
        assert scores.nll[task] == pytest.approx(bench.alone["base"].nll[task], rel=1e-4)


def test_task_arithmetic_is_the_same_in_both_bases(bench: Bench) -> None:
    found = []
    for method in ("task_arithmetic", "knots_task_arithmetic"):
        with Merges(bench, method) as merges:
            found.append(merges.score({"lambda": 0.7}, bench.test))
    for task in bench.test:
        assert found[0].nll[task] == pytest.approx(found[1].nll[task], rel=1e-4)


def test_a_merge_of_one_member_at_lambda_one_is_that_expert(bench: Bench) -> None:
    with Merges(bench, "task_arithmetic", members=["sums"]) as merges:
        scores = merges.score({"lambda": 1.0}, bench.test)
    for task in bench.test:
        assert scores.nll[task] == pytest.approx(bench.alone["sums"].nll[task], rel=1e-4)


def test_tuning_takes_the_best_of_everything_it_scored(bench: Bench) -> None:
    stages = ([{"lambda": v} for v in (0.0, 0.5, 1.0)], [{"density": 0.5}])
    with Merges(bench, "ties") as merges:
        values, count = tuned(merges, stages)
        assert count == 4
        sets = {task: bench.validation[task] for task in merges.tasks}
        alternatives = [*stages[0], {**stages[0][2], "density": 0.5}]

        def goal(tried: Mapping[str, float]) -> float:
            scores = merges.score(tried, sets)
            return float(np.mean([recovered(bench, scores, t, " validation") for t in sets]))

        assert goal(values) >= max(goal(tried) for tried in alternatives[:3]) - 1e-9


@pytest.mark.parametrize("arm", ["base", "experts", "average", "dare_ties", "knots_ties_lines"])
def test_an_arm_of_the_comparison_says_the_same_twice(bench: Bench, arm: str) -> None:
    rows, again = (list(merging.measure(arm, bench)) for _ in range(2))
    assert rows == again
    assert metrics(rows) >= {"exact", "recovered", "nll", "perplexity_ratio"}
    items = [row.item for row in rows if row.metric == "exact"]
    assert len(set(items)) == 6
    if arm == "base":
        assert {row.value for row in rows if row.metric == "perplexity_ratio"} == {1.0}
    if arm == "experts":
        assert metrics(rows) >= {"sign_conflict", "cosine", "relative_norm"}
        assert {row.labels["expert"] for row in rows if row.metric == "sign_conflict"} == {
            "sums / identifiers"
        }


@pytest.mark.parametrize("arm", ["task_arithmetic", "knots_ties"])
def test_every_arm_of_knots_scores_eight_merges(bench: Bench, arm: str) -> None:
    rows = list(knots_language.measure(arm, bench))
    assert [row.value for row in rows if row.metric == "evaluations"] == [8.0]
    conflicts = {row.labels["basis"] for row in rows if row.metric == "sign_conflict"}
    assert conflicts == ({"own", "shared"} if arm == "knots_ties" else set())
    cosines = [row.value for row in rows if row.metric == "cosine"]
    assert np.ptp(cosines or [0.0]) < 1e-6  # a rotation changes no cosine


def test_experts_are_trained_once(
    bench: Bench, parameters: Parameters, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object, **__: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(language_experts, "finetune_lora", never)
    again = language.prepare(Group(0, {}, parameters))
    assert [expert.path for expert in again.experts] == [expert.path for expert in bench.experts]
    with pytest.raises(AssertionError, match="trained again"):
        language.prepare(Group(1, {}, parameters))


def test_one_task_is_refused(parameters: Parameters) -> None:
    with pytest.raises(InputInvalid, match="one expert is no merge"):
        language.prepare(Group(0, {}, {**parameters, "tasks": ("sums",)}))


@pytest.fixture(scope="module")
def fine_tuned(parameters: Parameters) -> lines_language.Tuned:
    own = {
        "alphas": (0.0, 0.5),
        "target_items": 4,
        "full": {"steps": 3, "batch_size": 2, "learning_rate": 1e-2},
    }
    return lines_language.prepare(Group(0, {"task": "sums"}, {**parameters, **own}))


def losses(rows: list[Measured], metric: str) -> dict[float, float]:
    return {float(r.labels["alpha"]): r.value for r in rows if r.metric == metric}


def test_the_ends_of_uniform_scaling_are_base_and_fine_tune(
    fine_tuned: lines_language.Tuned,
) -> None:
    uniform = list(lines_language.measure("uniform", fine_tuned))
    target = losses(uniform, "target_loss")
    assert target[0.0] == pytest.approx(fine_tuned.base[0], rel=1e-5)
    assert target[1.0] == fine_tuned.full[0]
    assert fine_tuned.full[0] != fine_tuned.base[0]


def test_families_share_the_fine_tune_and_differ_elsewhere(
    fine_tuned: lines_language.Tuned,
) -> None:
    found = {
        arm: losses(list(lines_language.measure(arm, fine_tuned)), "target_loss")
        for arm in ("lines", "uniform", "reversed")
    }
    assert len({curve[1.0] for curve in found.values()}) == 1
    assert len({curve[0.5] for curve in found.values()}) == 3


def test_no_scaling_undoes_nothing(fine_tuned: lines_language.Tuned) -> None:
    rows = list(lines_language.measure("none", fine_tuned))
    assert [row.value for row in rows if row.metric == "undone"] == [0.0]
    assert all(math.isfinite(row.value) for row in rows)


@pytest.mark.parametrize("arm", ["base", "expert", "average", "ties"])
def test_the_check_of_merging_at_scale_pairs_two_experts_with_four(bench: Bench, arm: str) -> None:
    rows = list(merging_at_scale_language.measure(arm, bench))
    counts = {row.labels.get("experts") for row in rows if row.metric == "held_in_absolute"}
    assert counts == ({None} if arm in ("base", "expert") else {1, 2})
    tried = [row.value for row in rows if row.metric == "evaluations"]
    assert tried == {"average": [0.0, 0.0], "ties": [2.0, 2.0]}.get(arm, [])
