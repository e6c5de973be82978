"""A planted signal is found where it is and as strong as it is; noise is worth one half."""

from math import erf, sqrt

import pytest
import torch

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.entity_folds import grouped_folds, shuffled
from zeitgeist.inspection.probe_comparison import compare
from zeitgeist.inspection.probe_evaluation import heat_map, nested, null_maximum, out_of_fold
from zeitgeist.inspection.probes import ProbeOptions, fit_probes
from zeitgeist.inspection.roc import auc, pairs_auc


def noise(n=120, layers=4, positions=3, d=16, seed=0):
    draw = torch.Generator().manual_seed(seed)
    x = torch.randn(n, layers, positions, d, generator=draw)
    y = torch.arange(n) % 2 == 0
    return x, y, [f"entity {i}" for i in range(n)]


def phi(x):
    return (1 + erf(x / sqrt(2))) / 2


def test_a_planted_signal_is_the_brightest_cell_and_as_strong_as_it_is():
    strength = 2.0
    x, y, groups = noise(n=400, d=4)
    direction = torch.tensor([0.5, 0.5, -0.5, 0.5])
    x[:, 2, 1] += strength * y[:, None] * direction
    found = heat_map(x, y, groups, progress=False)
    assert found.best == (2, 1)
    # Two Gaussians apart by alpha: one exceeds the other with probability Phi(alpha / sqrt 2).
    assert float(found.auc[2, 1]) == pytest.approx(phi(strength / sqrt(2)), abs=0.04)
    others = found.auc.flatten()[[i for i in range(12) if i != 7]]
    assert float(others.mean()) == pytest.approx(0.5, abs=0.03)
    assert found.rows == (400, 400, 400)
    one = nested(x, y, groups)
    assert one.cells == ((2, 1),) * 5
    assert one.auc == pytest.approx(phi(strength / sqrt(2)), abs=0.04)


def test_a_score_of_noise_spreads_as_mann_and_whitney_say_and_cross_validation_wider():
    """sqrt((n1 + n0 + 1) / (12 n1 n0)) is of scores that know no row; folds share their rows."""
    n = 100
    y = torch.arange(n) % 2 == 0
    draw = torch.Generator().manual_seed(0)
    formula = sqrt((n + 1) / (12 * 50 * 50))
    free = auc(y, torch.randn(600, n, generator=draw))
    assert float(free.std()) == pytest.approx(formula, rel=0.1)
    x = torch.randn(150, 2 * n, 24, generator=draw)
    twice = torch.cat([y, y])
    half = fit_probes(x[:, :n], y)
    assert float(auc(y, half.score(x[:, n:])).std()) == pytest.approx(formula, rel=0.15)
    fold = grouped_folds(twice, list(map(str, range(2 * n))), 5, 0)
    crossed = out_of_fold(x, twice, fold, ProbeOptions())
    values = torch.stack([pairs_auc(twice, each, fold)[0] for each in crossed])
    assert float(values.mean()) == pytest.approx(0.5, abs=0.01)
    assert 1.1 < float(values.std()) / sqrt((2 * n + 1) / (12 * n * n)) < 2.0


def test_choosing_the_best_of_pure_noise_gains_nothing_nested_and_much_naively():
    honest, naive = [], []
    for seed in range(8):
        x, y, groups = noise(n=60, layers=6, positions=3, d=8, seed=seed)
        honest.append(nested(x, y, groups, seed=seed).auc)
        naive.append(float(heat_map(x, y, groups, seeds=(seed,), progress=False).auc.max()))
    assert sum(honest) / 8 == pytest.approx(0.5, abs=0.05)
    assert sum(naive) / 8 > 0.6


def test_shuffled_labels_are_worth_one_half():
    x, y, groups = noise(n=200, layers=3, positions=1)
    x[:, 1] += 3 * y[:, None, None]
    found = [
        nested(x, y[torch.randperm(200, generator=torch.Generator().manual_seed(s))], groups).auc
        for s in range(6)
    ]
    assert sum(found) / 6 == pytest.approx(0.5, abs=0.05)


def test_the_null_maximum_is_that_of_maps_of_shuffled_labels():
    x, y, groups = noise(n=60, layers=3, positions=2, d=70)
    made = null_maximum(x, y, groups, permutations=12, seed=4, progress=False)
    fold = grouped_folds(y, groups, 5, 4)
    for value, labels in zip(made, shuffled(y, groups, fold, 12, 4), strict=True):
        cells = x.flatten(1, 2).transpose(0, 1)
        scores = out_of_fold(cells, labels, fold, ProbeOptions())
        highest = max(float(pairs_auc(labels, each, fold)) for each in scores)
        assert float(value) == pytest.approx(highest, abs=0.01)


def test_the_null_of_a_map_tells_signal_from_luck():
    x, y, groups = noise(n=90)
    quiet = heat_map(x, y, groups, permutations=39, progress=False)
    x[:, 1, 1] += y[:, None] * 1.0
    loud = heat_map(x, y, groups, permutations=39, progress=False)
    assert loud.p == 1 / 40
    assert quiet.p > 0.1
    assert quiet.null.mean() > 0.55


def test_an_entity_in_two_folds_flatters_a_probe():
    """Labels drawn per entity, features that say only which entity: nothing is to be learnt."""
    draw = torch.Generator().manual_seed(0)
    who = torch.arange(160) % 40
    y = torch.rand(40, generator=draw)[who] > 0.5
    x = (3 * torch.randn(40, 20, generator=draw))[who] + torch.randn(160, 20, generator=draw)
    x = x[:, None, None]
    by_entity = nested(x, y, [f"e{int(i)}" for i in who]).auc
    at_random = nested(x, y, list(map(str, range(160)))).auc
    assert at_random > by_entity + 0.15


def test_a_token_that_rows_lack_is_judged_by_those_that_have_it():
    x, y, groups = noise(n=120, layers=2, positions=2)
    x[:, 1, 1] += y[:, None]
    present = torch.ones(120, 2, dtype=torch.bool)
    present[::5, 1] = False
    x[::5, :, 1] = 99.0  # whatever is stored there is not looked at
    found = heat_map(x, y, groups, present=present, permutations=5, progress=False)
    assert found.rows == (120, 96)
    assert found.best == (1, 1) and found.auc[1, 1] > 0.9
    assert found.null.max() < 0.85
    one = nested(x, y, groups, present=present)
    assert one.cells == ((1, 1),) * 5
    assert pairs_auc(y[present[:, 1]], one.score[present[:, 1]]).item() > 0.9
    absent = ~present[:, 1]
    assert one.score[absent].std() < 0.5 * one.score[~absent].std()


def test_detectors_are_compared_on_the_same_drawn_entities():
    x, y, groups = noise(n=150, layers=2, positions=1)
    x[:, 1] += 0.3 * y[:, None, None]
    runs = [nested(x, y, groups, seed=seed) for seed in (0, 1)]
    weak = y + 9 * torch.randn(150, generator=torch.Generator().manual_seed(1))
    scores = {"weak": weak, "itself": runs[0].score}
    rows = {
        row.name: row
        for row in compare(y, groups, {"probe": runs}, scores, reference="probe", draws=300)
    }
    assert list(rows) == ["probe", "weak", "itself"]
    assert rows["probe"].behind == rows["probe"].behind_low == rows["probe"].behind_high == 0
    assert rows["weak"].behind_low > 0
    assert rows["weak"].low < rows["weak"].auc < rows["weak"].high
    assert rows["itself"].behind_low < 0 < rows["itself"].behind_high
    # Together they move less than apart.
    wide = rows["probe"].high - rows["probe"].low
    assert rows["itself"].behind_high - rows["itself"].behind_low < wide / 2
    with pytest.raises(InputInvalid, match="'strong' is not known"):
        compare(y, groups, {"probe": runs}, scores, reference="strong")


def test_one_class_is_refused_everywhere():
    x, y, groups = noise(n=40)
    for door in (nested, heat_map):
        with pytest.raises(InputInvalid, match="40 answers are right and 0 wrong"):
            door(x, torch.ones_like(y), groups)


def test_shuffled_labels_stay_by_a_half_whatever_the_strength_of_the_penalty():
    """Steps that do not converge hand over to Newton's."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(120, 1, 1, 64, generator=generator) + 30 * torch.randn(
        120, 1, 1, 1, generator=generator
    )
    y = torch.arange(120) % 2 == 0
    groups = list(map(str, range(120)))
    for strength in (0.01, 100.0):
        found = null_maximum(x, y, groups, ProbeOptions(C=strength), permutations=6)
        assert bool(((found > 0.2) & (found < 0.8)).all())


def test_a_token_that_few_rows_have_is_no_best_cell():
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(200) % 2 == 0
    x = torch.randn(200, 2, 3, 8, generator=generator)
    x[:, 1, 0, 0] += 1.5 * y
    present = torch.ones(200, 3, dtype=torch.bool)
    present[8:, 2] = False
    x[:, :, 2] = torch.where(present[:, 2, None, None], y[:, None, None] * 9.0, 0.0)
    groups = list(map(str, range(200)))
    found = heat_map(x, y, groups, permutations=10, present=present, progress=False)
    assert found.best == (1, 0)
    assert bool(found.auc[:, 2].isnan().all()) and not found.auc[:, :2].isnan().any()
    assert found.null.max() < 0.75 and found.p < 0.1
    assert found.rows == (200, 200, 8)
