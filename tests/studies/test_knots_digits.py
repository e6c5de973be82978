"""The rotation changes nothing linear, tuning costs the same, orthogonal adapters are summed."""

from dataclasses import replace

import pytest
import torch

from zeitgeist.evidence import Group, Measured
from zeitgeist.studies.digits_family import score
from zeitgeist.studies.knots_digits import (
    ARMS,
    RANDOM_ARMS,
    Layers,
    Prepared,
    Random,
    applies,
    flat_updates,
    measure,
    merged,
    on_trunk,
    prepare,
    random_adapters,
)

TINY = {"blocks": 2, "experts": 3, "others": 1, "pretraining": 20, "steps": 20}
Rows = dict[str, list[Measured]]


@pytest.fixture(scope="module")
def cell() -> Prepared:
    made = prepare(Group(0, {"family": "digits", "width": 8, "rank": 2}, TINY))
    assert isinstance(made, Prepared)
    return made


@pytest.fixture(scope="module")
def rows(cell: Prepared) -> Rows:
    return {arm: list(measure(arm, cell)) for arm in ARMS}


@pytest.fixture(scope="module")
def random_rows() -> Rows:
    drawn = prepare(Group(3, {"family": "random", "width": 24, "rank": 3}, {"experts": 4}))
    assert isinstance(drawn, Random)
    return {arm: list(measure(arm, drawn)) for arm in RANDOM_ARMS}


def _value(found: list[Measured], metric: str, **labels: str) -> float:
    (value,) = [r.value for r in found if r.metric == metric and dict(r.labels) == labels]
    return value


def test_task_arithmetic_does_not_see_the_basis(cell: Prepared, rows: Rows) -> None:
    plain = merged("task_arithmetic", cell.layers)
    rotated = merged("knots_task_arithmetic", cell.layers)
    torch.testing.assert_close(rotated, plain, rtol=0, atol=1e-10 * float(plain.norm()))
    assert _value(rows["knots_task_arithmetic"], "weight_difference") < 1e-10
    for metric in ("kept", "accuracy", "lambda", "evaluations"):
        assert _value(rows["knots_task_arithmetic"], metric) == _value(
            rows["task_arithmetic"], metric
        )


@pytest.mark.parametrize("arm", ARMS)
def test_one_expert_merged_at_lambda_one_is_the_expert(cell: Prepared, arm: str) -> None:
    alone: Layers = {name: pairs[:1] for name, pairs in cell.layers.items()}
    density = None if arm.endswith("task_arithmetic") else 1.0
    torch.testing.assert_close(
        merged(arm, alone, density), flat_updates(alone)[0], rtol=1e-9, atol=1e-12
    )


def test_experts_score_as_their_own_trunk_does(cell: Prepared) -> None:
    trunks = cell.base.trunk.double() + on_trunk(cell.base.net, flat_updates(cell.layers))
    tested = score(cell.base, trunks, cell.digits.test).accuracy
    assert torch.equal(tested.diagonal(), cell.test)
    changed = cell.base.net.split(trunks[0] - cell.base.trunk)
    moved = {name for name, tensor in changed.items() if bool(tensor.any())}
    assert moved == set(cell.base.net.adapted)


def test_every_arm_has_the_same_number_of_evaluations(rows: Rows) -> None:
    assert {_value(rows[arm], "evaluations") for arm in ARMS} == {32}


def test_the_same_seed_gives_the_same_rows(rows: Rows) -> None:
    again = prepare(Group(0, {"family": "digits", "width": 8, "rank": 2}, TINY))
    assert {arm: list(measure(arm, again)) for arm in ARMS} == rows


def test_dare_masks_follow_the_seed(cell: Prepared) -> None:
    for arm in ("dare_ties", "knots_dare_ties"):
        one, other = (merged(arm, cell.layers, 0.5, seed=seed) for seed in (1, 2))
        assert not torch.equal(one, other)
        assert torch.equal(one, merged(arm, cell.layers, 0.5, seed=1))


def test_cosines_survive_the_rotation(rows: Rows) -> None:
    own, shared = (_value(rows["knots_ties"], "cosine", basis=b) for b in ("own", "shared"))
    assert shared == pytest.approx(own, abs=1e-9)


def test_orthogonal_adapters_are_summed_and_never_conflict(random_rows: Rows) -> None:
    """Every row of the shared basis then has one owner; plain TIES averages what it should sum."""
    at = {"spaces": "orthogonal"}
    assert _value(random_rows["knots_ties"], "distance_from_sum", **at) < 1e-9
    assert _value(random_rows["ties"], "distance_from_sum", **at) > 0.3
    assert _value(random_rows["knots_ties"], "sign_conflict", basis="shared", **at) == 0
    assert _value(random_rows["knots_ties"], "shared_entries", basis="shared", **at) == 0
    before = _value(random_rows["knots_ties"], "sign_conflict", basis="own", **at)
    assert before == pytest.approx(0.5, abs=0.05)


def test_generic_adapters_share_every_entry_in_either_basis(random_rows: Rows) -> None:
    for basis in ("own", "shared"):
        at = {"spaces": "generic", "basis": basis}
        assert _value(random_rows["knots_ties"], "shared_entries", **at) == 1
    assert _value(random_rows["knots_task_arithmetic"], "distance_from_sum", spaces="generic") < (
        1e-10
    )


def test_random_adapters_have_the_shape_and_the_spaces_asked_for() -> None:
    generic = random_adapters(0, 3, 16, 4, "generic")
    for a, b in [*generic, *random_adapters(0, 3, 16, 4, "orthogonal")]:
        assert (a.shape, b.shape) == ((4, 16), (16, 4))
        torch.testing.assert_close(b.T @ b, torch.eye(4, dtype=torch.float64))
        assert len(set((b @ a).svd().S[:4].round(decimals=6).tolist())) == 4
    assert float((generic[0][1].T @ generic[1][1]).norm()) > 0.1


def test_arms_of_a_setting_are_those_that_measure_something(random_rows: Rows) -> None:
    for family, arms in (("digits", ARMS), ("random", RANDOM_ARMS)):
        assert tuple(arm for arm in ARMS if applies(arm, {"family": family})) == arms
    assert all(random_rows.values())


def test_a_base_that_is_already_right_keeps_everything(cell: Prepared) -> None:
    """Updates of zero merge to zero, at any lambda and share."""
    still: Layers = {
        name: [(a, torch.zeros_like(b)) for a, b in pairs] for name, pairs in cell.layers.items()
    }
    own = score(cell.base, cell.base.trunk[None], cell.digits.test, [0, 1, 2]).accuracy[0]
    idle = replace(cell, layers=still, test=own, validation=torch.ones(3))
    for arm in ("task_arithmetic", "ties", "dare_ties"):
        assert _value(list(measure(arm, idle)), "kept") == 1
