"""The study of circuit hypotheses: laws of its numbers, and its pictures, on tiny models."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from zeitgeist.evidence import Group, Size, run_study
from zeitgeist.inspection.circuit import CircuitOptions, verify
from zeitgeist.inspection.circuit_statistics import CALIBRATED
from zeitgeist.studies.circuit_hypothesis import ARMS_OF, STUDY, applies
from zeitgeist.studies.circuit_hypothesis_numbers import (
    INDUCTION,
    RECALL,
    measure,
    prepare,
    random_like,
    told,
    train_induction,
)

TINY = {
    "tracr": {"count": 16, "draws": 5},
    "induction": {
        **INDUCTION,
        "shape": {**INDUCTION["shape"], "width": 12, "heads": 2, "head_width": 4},
        "steps": 3,
        "batch": 4,
        "count": 6,
        "tests": 2,
        "draws": 3,
        "sizes": (0.3, 0.6),
    },
    "recall": {
        **RECALL,
        "tokens": (10, 200),
        "period": 4,
        "find": 4,
        "few": 2,
        "many": 6,
        "edges": 20,
        "tried": 3,
        "draws": 3,
    },
    "calibration": {"repeats": 5},
}


def bench(part, seed=0, **setting):
    return prepare(Group(seed, {"part": part, **setting}, TINY[part]))


def rows(arm, shared):
    return [(row.metric, dict(row.labels), row.value) for row in measure(arm, shared)]


def test_every_arm_has_its_part():
    for arm in STUDY.arms:
        assert any(applies(arm.slug, {"part": part}) for part in ARMS_OF)


def test_every_claim_is_about_numbers_that_are_measured():
    parts = {part: TINY[part] for part in ARMS_OF}
    for claim in STUDY.claims:
        assert claim.where["part"] in parts
        for side in (claim.treatment, claim.control or {}):
            assert side.get("arm", "null") in ARMS_OF[claim.where["part"]] or not side


def test_programs_are_measured_with_their_verdicts():
    found = rows("canonical", bench("tracr", program="reverse"))
    passes = {labels["test"]: value for metric, labels, value in found if metric == "passes"}
    assert passes["minimality"] == passes["equivalence"] == 1.0
    assert {metric for metric, *_ in found} >= {"worse", "idle", "over", "size", "faithfulness"}


def test_one_model_serves_all_arms_of_a_seed():
    shared = bench("induction")
    first = shared.trained
    for arm in ARMS_OF["induction"]:
        found = rows(arm, shared)
        assert {labels.get("draw") for _, labels, _ in found} >= {0, 1}
        assert any(metric == "beaten" for metric, *_ in found) == (arm == "pruned")
    assert shared.trained is first
    assert shared.top.sum() >= shared.pruned.sum()
    assert not shared.repeated(0).clean.equal(shared.repeated(1).clean)


def test_seeds_make_other_models_and_sequences():
    known = TINY["induction"]
    one, same, other = (train_induction(known, seed).q for seed in (0, 0, 1))
    assert one.equal(same) and not one.equal(other)
    assert (
        not bench("induction", 0).repeated(1).clean.equal(bench("induction", 1).repeated(1).clean)
    )


def test_random_circuits_are_as_large_and_of_their_seed():
    shared = bench("tracr", program="reverse")
    graph = shared.program.model.graph
    one, same, other = (random_like(graph, shared.program.circuit, seed) for seed in (0, 0, 1))
    assert one.sum() >= shared.program.circuit.sum()
    assert (one == same).all() and (one != other).any()


def test_what_cannot_be_tested_is_not_counted():
    program = bench("tracr", program="proportion").program
    pairs = program.pairs(8, seed=0)
    options = CircuitOptions(ablation="zero", draws=3)
    whole = program.model.graph.allowed
    report = verify(program.model, pairs, whole, "squared", options, progress=False)
    tests = {row.labels.get("test") for row in told(report) if row.metric == "passes"}
    assert "minimality" not in tests and "sufficiency" in tests


def test_levels_are_measured_for_every_test():
    found = rows("null", bench("calibration"))
    assert [labels["test"] for metric, labels, _ in found if metric == "room"] == list(CALIBRATED)
    for (_, _, share), (_, _, room) in zip(found[::2], found[1::2], strict=True):
        assert room == pytest.approx(0.06 - share)


def test_the_study_runs_and_draws(tiny_llama, tmp_path: Path):
    TINY["recall"]["model"] = str(tiny_llama)
    settings = {
        "induction": ({"part": "induction"},),
        "recall": ({"part": "recall"},),
        "calibration": ({"part": "calibration"},),
    }
    tiny = replace(
        STUDY,
        sizes={
            **STUDY.sizes,
            "quick": Size(
                1,
                ({"part": "tracr", "program": "proportion"},),
                TINY["tracr"],
                also=tuple(Size(1, settings[part], TINY[part]) for part in settings),
            ),
        },
    )
    evidence = run_study(tiny, "quick", tmp_path / "study", workers=1, progress=False)
    assert evidence.failures == ()
    made = {figure.slug: figure for figure in STUDY.figures(evidence)}
    assert set(made) == {"verdicts", "sizes", "faithfulness", "idle", "level"}
    for figure in made.values():
        assert figure.png().startswith(b"\x89PNG")
    assert STUDY.figures(replace(evidence, rows=(), parameters=())) == []
    measured = {row["metric"] for row in evidence.rows}
    assert measured == {metric.slug for metric in STUDY.metrics}
    assert all(np.isfinite(row["value"]) for row in evidence.rows)
