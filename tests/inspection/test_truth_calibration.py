"""Calibrations are scikit-learn's; reliability is arithmetic."""

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LogisticRegression

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.truth_calibration import (
    Calibration,
    calibrate,
    cross_calibrated,
    reliability,
)


def scored(n=83, seed=0):
    draw = torch.Generator().manual_seed(seed)
    y = torch.rand(n, generator=draw) > 0.4
    score = (2.0 * y - 1 + 2 * torch.randn(n, generator=draw)).double()
    return (4 * score).round() / 4, y  # with ties


def test_platt_is_scikit_learns_logistic_regression_on_his_targets():
    """A target between 0 and 1 is both labels, weighted."""
    score, y = scored()
    ones = int(y.sum())
    target = torch.where(y, (ones + 1) / (ones + 2), 1 / (83 - ones + 2)).numpy()
    model = LogisticRegression(C=1e12, tol=1e-12, max_iter=10_000)
    rows = np.tile(score.numpy(), 2)[:, None]
    model.fit(rows, np.repeat([1, 0], 83), np.concatenate([target, 1 - target]))
    found = calibrate(score, y).parameters[:, 0]
    assert found.tolist() == pytest.approx([model.coef_[0, 0], model.intercept_[0]], abs=1e-5)


def test_isotonic_is_scikit_learns_between_and_beyond_knots():
    score, y = scored()
    ask = torch.linspace(-12, 12, 501, dtype=torch.float64)
    peer = IsotonicRegression(out_of_bounds="clip").fit(score.numpy(), y.double().numpy())
    found = calibrate(score, y, "isotonic").probability(ask)
    assert torch.allclose(found, torch.from_numpy(peer.predict(ask.numpy())), atol=1e-9)
    assert (found.diff() >= 0).all()


def test_scores_that_are_log_odds_are_left_as_they_are():
    draw = torch.Generator().manual_seed(0)
    score = 2 * torch.randn(20000, generator=draw).double()
    y = torch.rand(20000, generator=draw) < score.sigmoid()
    slope, offset = calibrate(score, y).parameters[:, 0].tolist()
    assert slope == pytest.approx(1, abs=0.05) and offset == pytest.approx(0, abs=0.05)


def test_constant_scores_say_the_base_rate_and_separable_ones_stay_finite():
    y = torch.arange(40) % 4 == 0
    p = calibrate(torch.zeros(40), y).probability(torch.zeros(1))
    assert float(p) == pytest.approx(0.25, abs=0.02)
    p = calibrate(100.0 * y, y).probability(100.0 * y)
    assert torch.isfinite(p).all() and (p[y] > 0.85).all() and (p[~y] < 0.05).all()


@pytest.mark.parametrize("method", ["platt", "isotonic"])
def test_a_rows_own_label_does_not_reach_its_probability(method):
    score, y = scored()
    fold = torch.arange(83) % 5
    before = cross_calibrated(score, y, fold, method)
    flipped = torch.where(fold == 2, ~y, y)
    after = cross_calibrated(score, flipped, fold, method)
    assert torch.equal(before[fold == 2], after[fold == 2])
    assert not torch.equal(before[fold != 2], after[fold != 2])


def test_reliability_by_hand():
    p = torch.tensor([0.1, 0.1, 0.9, 0.9, 0.9, 1.0])
    y = torch.tensor([False, True, True, True, False, True])
    found = reliability(p, y, bins=2)
    assert found.rows == (2, 4)
    assert found.said == pytest.approx((0.1, 0.925)) and found.right == (0.5, 0.75)
    assert found.ece == pytest.approx((2 * 0.4 + 4 * 0.175) / 6)
    assert found.brier == pytest.approx((0.01 + 0.81 + 0.01 + 0.01 + 0.81 + 0) / 6)
    assert reliability(y.double(), y).ece == reliability(y.double(), y).brier == 0


def test_what_cannot_be_calibrated_is_refused():
    score, y = scored()
    with pytest.raises(InputInvalid, match="all 83 answers are right"):
        calibrate(score, torch.ones_like(y))
    with pytest.raises(InputInvalid, match="all 83 answers are wrong"):
        calibrate(score, torch.zeros_like(y))
    with pytest.raises(InputInvalid, match="bins is 0"):
        reliability(score.sigmoid(), y, bins=0)
    assert Calibration("platt", torch.zeros(2, 1)).probability(score)[0] == 0.5
