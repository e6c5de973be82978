"""Chance is c / K, nothing beats the oracle, and the order of samples does not matter."""

import pytest
import torch

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.answer_selection import WAYS, chances, select


def drawn(q=60, k=7, seed=0):
    draw = torch.Generator().manual_seed(seed)
    correct = torch.rand(q, k, generator=draw) > torch.rand(q, 1, generator=draw)
    score = torch.rand(q, k, generator=draw) + 0.3 * correct
    valid = torch.rand(q, k, generator=draw) > 0.1
    valid[0] = False
    wrong = k - correct.sum(1)
    largest = (torch.rand(q, generator=draw) * (wrong + 1)).long()
    greedy = torch.rand(q, generator=draw) > 0.5
    return correct, score, valid, largest, greedy


def test_chance_is_the_mean_of_c_over_k_exactly():
    correct, *rest = drawn()
    found = select(correct, *rest, list(map(str, range(60))), draws=50)
    assert found.accuracy("random") == pytest.approx(float(correct.double().mean()), abs=1e-15)


def test_the_oracle_bounds_everything_question_by_question():
    correct, *rest = drawn()
    found = chances(correct, *rest)
    for way in ("random", "majority", "probe"):
        assert (found[way] <= found["oracle"]).all()
    assert (found["oracle"] == correct.any(1).double()).all()


def test_a_pick_does_not_see_the_order_of_samples():
    correct, score, valid, largest, greedy = drawn()
    score = (score * 3).round()  # ties
    order = torch.randperm(7, generator=torch.Generator().manual_seed(1))
    one = chances(correct, score, valid, largest, greedy)
    other = chances(correct[:, order], score[:, order], valid[:, order], largest, greedy)
    for way in WAYS:
        assert torch.equal(one[way], other[way])


def test_a_perfect_probe_is_the_oracle_and_a_silent_one_is_chance():
    correct, score, valid, largest, greedy = drawn()
    all_valid = torch.ones_like(valid)
    found = chances(correct, correct.double(), all_valid, largest, greedy)
    assert torch.equal(found["probe"], found["oracle"])
    found = chances(correct, torch.zeros_like(score), all_valid, largest, greedy)
    assert torch.allclose(found["probe"], found["random"])
    found = chances(correct, score, ~all_valid, largest, greedy)
    assert torch.allclose(found["probe"], found["random"])


def test_an_answer_that_was_not_found_is_not_picked():
    correct = torch.tensor([[True, False]])
    valid = torch.tensor([[True, False]])
    found = chances(
        correct, torch.tensor([[0.1, 0.9]]), valid, torch.tensor([1]), torch.tensor([False])
    )
    assert float(found["probe"]) == 1.0


def test_rows_by_error_type_and_gains_on_the_same_questions():
    correct, score, valid, largest, greedy = drawn()
    kinds = [frozenset({"D"} if i < 20 else {"B1", "E1"} if i < 30 else ()) for i in range(60)]
    groups = [f"e{i // 2}" for i in range(60)]
    found = select(correct, score, valid, largest, greedy, groups, kinds=kinds, draws=300)
    assert {row.kind for row in found.rows} == {"all", "B1", "D", "E1"}
    assert {row.questions for row in found.rows if row.kind == "D"} == {20}
    assert found.accuracy("greedy", "D") == pytest.approx(float(greedy[:20].double().mean()))
    for row in found.rows:
        assert row.low <= row.accuracy <= row.high
        assert row.gain == pytest.approx(found.accuracy("probe", row.kind) - row.accuracy)
        assert row.gain_low <= row.gain <= row.gain_high
        if row.way == "probe":
            assert row.gain_low == row.gain_high == 0
        if row.way == "oracle":
            assert row.gain_high <= 0


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_nothing_to_pick_from_is_refused(shape):
    empty = torch.zeros(shape, dtype=torch.bool)
    none = torch.zeros(shape[0], dtype=torch.int64)
    with pytest.raises(InputInvalid, match="at least one of each"):
        select(empty, empty.double(), empty, none, none.bool(), ["e"] * shape[0])
