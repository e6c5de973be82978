"""Tiny cells of every part, the words of claims, and pictures of what was measured."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from zeitgeist.evidence import Evidence, Group, Measured, Size, run_study
from zeitgeist.studies.subquadratic_limits import STUDY
from zeitgeist.studies.subquadratic_limits_measures import applies, knee, measure

OPTIONS = {
    "signs": 8,
    "width": 8,
    "recurrent": 8,
    "window": 2,
    "steps": 3,
    "batch": 2,
    "queries": 4,
    "test": 4,
}
LEARNED: Mapping[str, Any] = {
    "sizes": (2, 5, 9),
    "features": (16, 64),
    "hybrid": (64,),
    "options": OPTIONS,
}
TINY = Size(
    2,
    ({"part": "learned"},),
    LEARNED,
    also=(
        Size(2, ({"part": "constructions"},), {"sizes": (16,), "signs": (16,)}),
        Size(2, ({"part": "curve"},), {"sizes": (64, 128), "l": 16, "repeats": 1}),
    ),
)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    study = replace(STUDY, sizes={"quick": TINY})
    place = Path(tmp_path_factory.mktemp("limits")) / "quick"
    return run_study(study, "quick", place, workers=1, progress=False)


def test_every_cell_of_every_part_runs(evidence: Evidence) -> None:
    assert not evidence.failures
    known = {metric.slug for metric in STUDY.metrics}
    assert {row["metric"] for row in evidence.rows} <= known
    assert known - {row["metric"] for row in evidence.rows} == set()


def test_every_claim_finds_rows_that_pair(evidence: Evidence) -> None:
    for verdict in evidence.verdicts:
        if verdict.claim != "larger-state-succeeds":  # 128 features and n = 16 are not tiny
            assert verdict.pairs >= 2, verdict.claim
            assert verdict.unpaired == 0, verdict.claim


def test_constructions_are_right_where_numbers_are_exact(evidence: Evidence) -> None:
    wrong = {
        row["construction"]: row["value"]
        for row in evidence.rows
        if row["metric"] == "wrong" and row["precision"] == "float64"
    }
    assert wrong == {"ov": 0.0, "threshold": 0.0, "cosine": 0.0}


def test_there_is_a_picture_of_each_part(evidence: Evidence) -> None:
    assert STUDY.figures is not None
    drawn = STUDY.figures(evidence)
    assert [figure.slug for figure in drawn] == ["accuracy", "collapse", "pareto", "precision"]
    assert all(figure.png().startswith(b"\x89PNG") for figure in drawn)


def test_the_same_seed_learns_the_same() -> None:
    group = Group(1, {"part": "learned"}, LEARNED)

    def found() -> list[Measured]:
        return list(measure("window", group))

    assert found() == found()


def test_parts_have_their_arms() -> None:
    arms = {
        part: [arm.slug for arm in STUDY.arms if applies(arm.slug, {"part": part})]
        for part in ("constructions", "curve", "learned")
    }
    assert arms["constructions"] == ["softmax"]
    assert "mingru" not in arms["curve"]
    assert arms["learned"] == ["softmax", "linear", "mingru", "window", "hybrid"]


def test_the_knee_is_where_the_curve_crosses() -> None:
    assert knee([4, 16, 64], [0.9, 0.9, 0.8], level=0.85) == 5.0
