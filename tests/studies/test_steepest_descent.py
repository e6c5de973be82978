"""Tiny cells of both parts, the words of claims, and pictures of what was measured."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zeitgeist.evidence import Evidence, Size, run_study
from zeitgeist.studies.steepest_descent import STUDY
from zeitgeist.studies.steepest_descent_numbers import (
    CENTRE,
    ROLES,
    TRANSFER,
    _start,
    at_rate,
    equalities,
    losses_of,
    lowest,
    train,
)

TRAINED: Mapping[str, Any] = {"widths": (16, 256), "rates": 3, "steps": 2, "batch": 4}
TINY = Size(
    2,
    ({"part": "transfer"},),
    TRAINED,
    also=(Size(2, ({"part": "equalities"},)),),
)


@pytest.fixture(scope="module")
def evidence(tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    study = replace(STUDY, sizes={"quick": TINY})
    place = Path(tmp_path_factory.mktemp("steepest")) / "quick"
    return run_study(study, "quick", place, workers=1, progress=False)


def test_every_cell_of_every_part_runs(evidence: Evidence) -> None:
    assert not evidence.failures
    assert {row["metric"] for row in evidence.rows} == {metric.slug for metric in STUDY.metrics}


def test_every_claim_finds_rows_that_pair(evidence: Evidence) -> None:
    for verdict in evidence.verdicts:
        assert verdict.pairs >= 2 and verdict.unpaired == 0, verdict.claim


def test_there_is_a_picture_of_each_part(evidence: Evidence) -> None:
    assert STUDY.figures is not None
    drawn = STUDY.figures(evidence)
    assert [figure.slug for figure in drawn] == ["sweeps", "best-rates", "equalities"]
    assert all(figure.svg().startswith("<svg") for figure in drawn)


@pytest.mark.parametrize("seed", [0, 3, 17])
def test_equalities_hold(seed: int) -> None:
    found = equalities(seed)
    assert max(found.values()) < 1e-12, found
    assert {claim.slug for claim in STUDY.claims} >= found.keys()


@pytest.mark.parametrize("arm", TRANSFER)
def test_a_sweep_in_one_batch_is_its_rates_one_by_one(arm: str) -> None:
    rates = [CENTRE[arm] - 1, CENTRE[arm]]
    together = train(arm, 32, rates, 0, 3, 8)
    alone = [train(arm, 32, [rate], 0, 3, 8)[0] for rate in rates]
    assert together == pytest.approx(alone, rel=1e-3)


def test_the_network_is_what_torch_computes() -> None:
    weights = _start(32, 1, torch.Generator().manual_seed(0))
    windows = torch.arange(16).view(2, 8)
    x = torch.nn.functional.embedding(windows, weights["embedding"][0]).flatten(1)
    for name in ("first", "second"):
        x = torch.relu(torch.nn.functional.linear(x, weights[name][0]))
    logits = torch.nn.functional.linear(x, weights["head"][0])
    following = torch.tensor([3, 5])
    expected = torch.nn.functional.cross_entropy(logits, following)
    torch.testing.assert_close(losses_of(weights, windows, following)[0], expected)


def test_training_lowers_the_loss_and_running_away_is_worst() -> None:
    losses = train("modular", 32, [-20.0, -4.0, 30.0], 0, 30, 16)
    assert losses[1] < losses[0] < losses[2] <= 99


def test_best_rates_between_those_tried() -> None:
    parabola = [(x - 0.3) ** 2 for x in (-1.0, 0.0, 1.0)]
    assert lowest([-1.0, 0.0, 1.0], parabola) == pytest.approx(0.3)
    assert lowest([0.0, 1.0, 2.0], [float("inf"), 1.0, 2.0]) == 1.0
    assert at_rate([0.0, 1.0], [2.0, 3.0], 1.0) == 3.0
    assert set(ROLES) == set(TRANSFER) - {"sgd"}
