"""A direction two sets share transfers, another does not, an entity never teaches its own test."""

import pytest
import torch

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.probe_evaluation import nested
from zeitgeist.inspection.roc import auc
from zeitgeist.inspection.truth_transfer import ProbedSet, transfer


def planted(feature, *, n=80, layers=2, seed=0, strength=4.0, prefix="e", sign=1):
    draw = torch.Generator().manual_seed(seed)
    y = torch.rand(n, generator=draw) > 0.4
    x = torch.randn(n, layers, 1, 6, generator=draw)
    x[:, -1, 0, feature] += sign * strength * y
    weak = y + 2 * torch.randn(n, generator=draw)
    scores = {"weak": weak, "none": torch.zeros(n)}
    return ProbedSet(x, y, [f"{prefix}{i}" for i in range(n)], scores)


def test_what_is_shared_transfers_and_what_is_not_does_not():
    sets = {
        "one": planted(0, seed=1),
        "same": planted(0, seed=2, n=67),
        "other": planted(3, seed=3, prefix="x"),
        "against": planted(0, seed=4, sign=-1),
    }
    found = transfer(sets, seeds=(0, 1), progress=False)
    assert found.names == tuple(sets)
    assert (found.auc.diagonal() > 0.9).all()
    assert found.auc[0, 1] > 0.9 and found.auc[1, 0] > 0.9
    assert abs(found.auc[0, 2] - 0.5) < 0.2 and abs(found.auc[2, 0] - 0.5) < 0.2
    assert found.auc[0, 3] < 0.1
    for at, each in enumerate(sets.values()):
        assert found.free_names[at] == "weak"
        assert found.free[at] == auc(each.y, each.scores["weak"])
    assert torch.allclose(found.gain, found.auc - found.free[None])


def test_a_set_alone_is_nested_cross_validation():
    each = planted(1, strength=1.0)
    found = transfer({"one": each}, progress=False)
    assert float(found.auc) == pytest.approx(nested(each.x, each.y, each.groups).auc, abs=1e-9)


def test_an_entity_that_two_sets_share_is_not_taught_where_it_is_tested():
    """Features say who, labels are drawn per entity: only having seen the entity could help."""
    draw = torch.Generator().manual_seed(0)
    who = 4 * torch.randn(60, 1, 1, 40, generator=draw)
    y = torch.rand(60, generator=draw) > 0.5
    groups = [f"e{i}" for i in range(60)]
    free = {"none": torch.zeros(60)}
    again = who + 0.1 * torch.randn(60, 1, 1, 40, generator=draw)
    sets = {"a": ProbedSet(who, y, groups, free), "b": ProbedSet(again, y, groups, free)}
    shared = transfer(sets, progress=False).auc
    strangers = [f"other{i}" for i in range(60)]
    sets["b"] = ProbedSet(again, y, strangers, free)
    apart = transfer(sets, progress=False).auc
    assert abs(shared[0, 1] - 0.5) < 0.2 and apart[0, 1] > shared[0, 1] + 0.2


@pytest.mark.parametrize(
    ("sets", "said"),
    [
        ({}, "layers, tokens and widths"),
        ({"a": planted(0), "b": planted(0, layers=3)}, "same layers and positions"),
        (
            {"few": ProbedSet(torch.zeros(40, 1, 1, 2), torch.arange(40) < 9, ["e"] * 40, {})},
            "few: 9 answers are right and 31 wrong",
        ),
        (
            {"bare": ProbedSet(torch.zeros(40, 1, 1, 2), torch.arange(40) < 20, ["e"] * 40, {})},
            "bare: there is no score without training",
        ),
    ],
)
def test_sets_that_do_not_fit_are_refused(sets, said):
    with pytest.raises(InputInvalid, match=said):
        transfer(sets, progress=False)
