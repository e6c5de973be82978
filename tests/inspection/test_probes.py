"""Batched probes are scikit-learn's, one by one; areas under the curve are Mann and Whitney's."""

import pytest
import torch
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedGroupKFold

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.entity_folds import grouped_folds, shuffled
from zeitgeist.inspection.probes import (
    PUBLISHED,
    ProbeOptions,
    check_classes,
    fit_plainly,
    fit_probes,
    moments,
    row_costs,
    solve,
    solve_many,
)
from zeitgeist.inspection.roc import auc, entity_draws, pairs_auc


def cells(c=3, n=63, d=90, seed=0):
    draw = torch.Generator().manual_seed(seed)
    y = torch.rand(n, generator=draw) > 0.6
    x = torch.randn(c, n, d, generator=draw)
    x[1, :, 4] += 2 * y
    x[:, :, 2] = 7.0  # never changes
    x[:, :, 3] *= 1000  # a massive coordinate
    return x, y


@pytest.mark.parametrize("d", [5, 90])
@pytest.mark.parametrize(
    "options",
    [
        ProbeOptions(),
        ProbeOptions(C=1.0),
        ProbeOptions(class_weight="balanced"),
        ProbeOptions(C=100.0),
    ],
    ids=["default", "C=1", "balanced", "C=100"],
)
def test_every_cell_is_scikit_learns(options, d):
    x, y = cells(d=d)
    found = fit_probes(x, y, options)
    for at in range(len(x)):
        one = fit_plainly(x[at], y, options)
        assert torch.allclose(found.weights[at], one.weights[0], atol=1e-4)
        assert torch.allclose(found.intercept[at], one.intercept[0], atol=1e-4)
        assert torch.allclose(found.score(x)[at], one.score(x[at : at + 1])[0], atol=1e-3)


def test_the_published_probe_is_scikit_learns_on_raw_features():
    x, y = cells()
    x[:, :, 3] /= 1000
    found = fit_probes(x, y, PUBLISHED)
    one = fit_plainly(x[1], y, PUBLISHED)
    assert torch.allclose(found.weights[1], one.weights[0], atol=1e-4)
    assert torch.equal(found.scale, torch.ones_like(found.scale))


def test_scaling_a_feature_changes_nothing_when_standardised():
    x, y = cells()
    stretched = x * torch.logspace(-2, 2, x.shape[-1]) + 3
    assert torch.allclose(
        fit_probes(x, y).score(x), fit_probes(stretched, y).score(stretched), atol=1e-4
    )


def test_a_row_without_the_token_is_as_good_as_left_out():
    x, y = cells()
    present = torch.rand(3, 63, generator=torch.Generator().manual_seed(1)) > 0.2
    found = fit_probes(x, y, present=present)
    for at in range(3):
        rows = present[at]
        kept = fit_probes(x[at : at + 1, rows], y[rows], ProbeOptions(min_class=2))
        assert torch.allclose(found.weights[at], kept.weights[0], atol=1e-6)
        assert torch.allclose(found.mean[at], kept.mean[0], atol=1e-5)


@pytest.mark.parametrize("weight", ["none", "balanced"])
def test_many_labellings_at_once_are_one_after_the_other(weight):
    x, y = cells(c=2, n=41)
    options = ProbeOptions(class_weight=weight)
    mean, scale = moments(x.double())
    z = (x.double() - mean[:, None]) / scale[:, None]
    gram = z @ z.mT
    labels = torch.stack([y.roll(shift) for shift in range(4)])
    cost = row_costs(labels[None].expand(2, -1, -1), options)
    a, b = solve_many(
        gram, labels, cost, options=ProbeOptions(), tolerance=1e-9, max_iterations=500
    )
    for m, each in enumerate(labels):
        ys = each.expand(2, -1)
        exact = solve(gram, ys, row_costs(ys, options), options)
        assert torch.allclose(a[..., m], exact[0], atol=1e-9)
        assert torch.allclose(b[..., m], exact[1], atol=1e-6)


def test_auc_is_mann_whitneys_u_and_scikit_learns_with_ties():
    draw = torch.Generator().manual_seed(3)
    y = torch.rand(57, generator=draw) > 0.4
    score = torch.randint(0, 9, (4, 57), generator=draw).double()
    found = auc(y, score)
    for value, each in zip(found, score, strict=True):
        assert value == pytest.approx(roc_auc_score(y, each), abs=1e-12)
        u = mannwhitneyu(each[y], each[~y]).statistic
        assert value == pytest.approx(float(u / (y.sum() * (~y).sum())), abs=1e-6)
        assert pairs_auc(y, each).item() == pytest.approx(float(value), abs=1e-12)
    assert torch.allclose(auc(y, -score), 1 - found)
    assert torch.allclose(auc(y.expand(4, -1), score), found)


def test_weights_are_rows_written_so_often():
    draw = torch.Generator().manual_seed(4)
    y = torch.rand(30, generator=draw) > 0.5
    score = torch.randint(0, 9, (30,), generator=draw).double()
    fold = torch.arange(30) % 3
    weight = torch.randint(0, 3, (2, 30), generator=draw)
    found = pairs_auc(y, score, fold, weight.double())
    for value, times in zip(found, weight, strict=True):
        rows = torch.repeat_interleave(torch.arange(30), times)
        assert value == pytest.approx(pairs_auc(y[rows], score[rows], fold[rows]).item())


def test_pairs_of_different_folds_do_not_count():
    y = torch.tensor([True, False, True, False])
    score = torch.tensor([1.0, 0.0, -5.0, -6.0])
    fold = torch.tensor([0, 0, 1, 1])
    assert pairs_auc(y, score, fold).item() == 1
    assert auc(y, score).item() == 0.75


def test_folds_keep_entities_whole_and_classes_even():
    draw = torch.Generator().manual_seed(5)
    y = torch.rand(203, generator=draw) > 0.3
    groups = [f"e{int(i)}" for i in torch.randint(0, 70, (203,), generator=draw)]
    fold = grouped_folds(y, groups, 5, seed=1)
    for name in set(groups):
        assert len({int(fold[i]) for i in range(203) if groups[i] == name}) == 1
    shares = [y[fold == k].double().mean() for k in range(5)]
    sizes = [int((fold == k).sum()) for k in range(5)]
    peer = torch.zeros(203, dtype=torch.int64)
    split = StratifiedGroupKFold(5, shuffle=True, random_state=1).split(y, y, groups)
    for k, (_, test) in enumerate(split):
        peer[torch.from_numpy(test)] = k
    theirs = [y[peer == k].double().mean() for k in range(5)]
    assert max(shares) - min(shares) <= max(theirs) - min(theirs) + 0.03
    assert max(sizes) - min(sizes) <= 6
    assert torch.equal(fold, grouped_folds(y, groups, 5, seed=1))
    assert not torch.equal(fold, grouped_folds(y, groups, 5, seed=2))


def test_shuffling_keeps_folds_balanced_and_entities_together():
    y = torch.arange(40) % 4 < 2
    groups = [f"pair{i // 2}" for i in range(40)]
    fold = grouped_folds(y, groups, 4, seed=0)
    made = shuffled(y, groups, fold, 30, seed=0)
    assert (made[:, ::2] == made[:, 1::2]).all()  # a pair is right or wrong together here
    for k in range(4):
        assert (made[:, fold == k].sum(1) == y[fold == k].sum()).all()
    assert not (made == y).all(1).all()


def test_drawing_entities_draws_all_their_rows():
    drawn = entity_draws(["a", "a", "b", "c"], 200, seed=0)
    assert torch.equal(drawn[:, 0], drawn[:, 1])
    assert (drawn[:, 1:].sum(1) == 3).all()


@pytest.mark.parametrize("y", [[True] * 40, [False] * 40, [True] * 14 + [False] * 26])
def test_a_class_of_too_few_rows_is_refused(y):
    with pytest.raises(InputInvalid, match=r"a probe needs 15 of each"):
        check_classes(torch.tensor(y))
    with pytest.raises(InputInvalid, match="answers are right"):
        fit_probes(torch.zeros(1, 40, 2), torch.tensor(y))


def test_overflowed_features_are_refused():
    x, y = cells()
    x[0, 0, 0] = torch.inf
    with pytest.raises(InputInvalid, match="overflow float16"):
        fit_probes(x, y)


def test_too_few_entities_are_refused():
    with pytest.raises(InputInvalid, match="3 entities do not fill 5 folds"):
        grouped_folds(torch.tensor([True, False, True]), ["a", "b", "c"], 5, seed=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"C": 0.0},
        {"tolerance": -1.0},
        {"folds": 1},
        {"inner_folds": 0},
        {"min_class": 1},
        {"max_iterations": 0},
    ],
)
def test_options_out_of_range_are_refused(wrong):
    with pytest.raises(InputInvalid, match=next(iter(wrong))):
        ProbeOptions(**wrong)


def test_a_stopped_fit_is_refused():
    x, y = cells()
    with pytest.raises(InputInvalid, match="raise max_iterations"):
        fit_probes(x, y, ProbeOptions(C=100.0, max_iterations=1))
