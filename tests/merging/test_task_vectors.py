"""Trim, elect, average: laws of TIES and hand cases."""

import math
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeitgeist.merging.task_vectors import (
    disjoint_mean,
    elect_sign,
    global_thresholds,
    keep_count,
    magnitude,
    order_statistic,
    sign_balance,
    trim_by_magnitude,
    trim_threshold,
    weighted_sum,
)

# multiples of 1/8 make exact ties and exact zero sums common
eighths = st.integers(-24, 24).map(lambda i: i / 8)


@st.composite
def stacks(draw: st.DrawFn) -> Tensor:
    n, size = draw(st.integers(1, 5)), draw(st.integers(1, 13))
    rows = st.lists(eighths, min_size=size, max_size=size)
    return torch.tensor(draw(st.lists(rows, min_size=n, max_size=n)), dtype=torch.float64)


def ones(stack: Tensor) -> Tensor:
    return torch.ones(len(stack), dtype=torch.float64)


def ties(stack: Tensor, density: float, majority: int | None = None) -> Tensor:
    trimmed = trim_by_magnitude(stack, [density] * len(stack))
    balance = sign_balance(trimmed, ones(stack)) if majority is None else majority
    signs = elect_sign(trimmed, ones(stack), zero_sum=-1 if balance < 0 else 1)
    return disjoint_mean(trimmed, ones(stack), signs)


def ties_by_hand(stack: Tensor, density: float) -> list[float]:
    """The three steps of the paper, entry by entry in plain Python."""
    rows = [row.tolist() for row in stack]
    kept = []
    for row in rows:
        limit = sorted((abs(v) for v in row), reverse=True)[keep_count(density, len(row)) - 1]
        kept.append([v if abs(v) >= limit else 0.0 for v in row])
    columns = list(zip(*kept, strict=True))
    signs = [(sum(c) > 0) - (sum(c) < 0) for c in columns]
    majority = -1 if sum(signs) < 0 else 1
    merged = []
    for column, sign in zip(columns, signs, strict=True):
        agreeing = [v for v in column if v * (sign or majority) > 0]
        merged.append(sum(agreeing) / len(agreeing) if agreeing else 0.0)
    return merged


@given(stacks(), st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=150)
def test_ties_is_its_three_steps_entry_by_entry(stack: Tensor, density: float) -> None:
    expected = torch.tensor(ties_by_hand(stack, density), dtype=torch.float64)
    torch.testing.assert_close(ties(stack, density), expected, rtol=1e-15, atol=0)


def test_the_hand_case_elects_plus_and_averages_two_of_three() -> None:
    stack = torch.tensor([[0.5], [0.4], [-0.6]], dtype=torch.float64)
    assert ties(stack, 1.0).item() == pytest.approx(0.45, abs=1e-15)
    assert weighted_sum(stack, ones(stack), normalize=True).item() == pytest.approx(0.1)


@given(stacks(), st.floats(0.01, 1.0), st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=60)
def test_ties_does_not_depend_on_the_order_of_experts(
    stack: Tensor, density: float, shuffle: random.Random
) -> None:
    order = torch.tensor(shuffle.sample(range(len(stack)), len(stack)))
    # sums of eighths are exact, so the order of addition cannot matter either
    shuffled = ties(stack[order], density)
    torch.testing.assert_close(shuffled, ties(stack, density), rtol=1e-15, atol=0)


@given(stacks(), st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=60)
def test_ties_does_not_change_when_every_expert_comes_twice(stack: Tensor, density: float) -> None:
    twice = torch.cat([stack, stack])
    torch.testing.assert_close(ties(twice, density), ties(stack, density), rtol=1e-15, atol=0)


@given(stacks(), st.floats(0.01, 1.0), st.integers(-3, 3))
@settings(deadline=None, max_examples=60)
def test_ties_scales_with_the_task_vectors(stack: Tensor, density: float, power: int) -> None:
    assert torch.equal(ties(stack * 2.0**power, density), ties(stack, density) * 2.0**power)


@given(stacks(), st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=60)
def test_flipping_all_signs_flips_ties_except_at_zero_sums(stack: Tensor, density: float) -> None:
    trimmed = trim_by_magnitude(stack, [density] * len(stack))
    decided = trimmed.sum(0) != 0
    assert torch.equal(ties(-stack, density)[decided], -ties(stack, density)[decided])


@given(stacks())
@settings(deadline=None, max_examples=60)
def test_ties_of_one_untrimmed_expert_is_that_expert(stack: Tensor) -> None:
    assert torch.equal(ties(stack[:1], 1.0), stack[0])


@given(stacks())
@settings(deadline=None, max_examples=60)
def test_ties_of_agreeing_untrimmed_experts_is_their_mean(stack: Tensor) -> None:
    positive = stack.abs() + 0.125
    torch.testing.assert_close(ties(positive, 1.0), positive.mean(0), rtol=1e-15, atol=0)


@pytest.mark.parametrize(
    ("density", "numel", "kept"),
    [(0.2, 10, 2), (0.2, 3, 1), (1e-9, 5, 1), (1.0, 7, 7), (0.999, 1000, 999), (0.29, 100, 28)],
)
def test_keep_count_rounds_down_but_keeps_one(density: float, numel: int, kept: int) -> None:
    assert keep_count(density, numel) == kept


@given(stacks(), st.data())
@settings(deadline=None, max_examples=60)
def test_order_statistic_is_the_sorted_entry(stack: Tensor, data: st.DataObject) -> None:
    k = data.draw(st.integers(1, stack.numel()))
    assert order_statistic(stack, k) == sorted(stack.flatten().tolist(), reverse=True)[k - 1]


@given(stacks(), st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=60)
def test_a_trim_keeps_all_entries_at_its_threshold_and_nothing_below(
    stack: Tensor, density: float
) -> None:
    trimmed = trim_by_magnitude(stack, [density] * len(stack))
    for row, kept in zip(stack, trimmed, strict=True):
        limit = trim_threshold([row], density)
        assert torch.equal(kept, torch.where(row.abs() >= limit, row, 0.0))
        assert (row.abs() >= limit).sum() >= keep_count(density, row.numel())
        assert (row.abs() > limit).sum() < keep_count(density, row.numel())


def test_each_expert_has_its_own_density() -> None:
    stack = torch.tensor([[1.0, 2.0, 3.0, 4.0]] * 2)
    assert trim_by_magnitude(stack, [0.25, 0.75]).tolist() == [[0, 0, 0, 4], [0, 2, 3, 4]]


def test_ranks_compare_float32_so_that_a_fast_path_can_count_bit_patterns() -> None:
    close = torch.tensor([[1.0, 1.0 + 2.0**-40, 0.5]], dtype=torch.float64)
    assert magnitude(close).dtype == torch.float32
    assert trim_by_magnitude(close, [0.34]).count_nonzero() == 2  # a tie in float32: both stay


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 1), (1, 3), (2, 3, 4)])
def test_any_shape_of_tensor_is_trimmed_as_a_whole(shape: tuple[int, ...]) -> None:
    flat = torch.linspace(-1, 2, math.prod(shape) * 2).reshape(2, -1)
    trimmed = trim_by_magnitude(flat.reshape(2, *shape), [0.5, 0.5])
    assert torch.equal(trimmed.reshape(2, -1), trim_by_magnitude(flat, [0.5, 0.5]))


@given(stacks(), stacks(), st.floats(0.01, 1.0))
@settings(deadline=None, max_examples=60)
def test_global_thresholds_are_those_of_the_flattened_model(
    first: Tensor, second: Tensor, density: float
) -> None:
    n = min(len(first), len(second))
    model = [first[:n], second[:n]]
    flat = torch.cat(model, dim=1)
    limits = global_thresholds(model, [density] * n)
    assert limits == global_thresholds([flat], [density] * n)
    parts = [trim_by_magnitude(part, [0.0] * n, thresholds=limits) for part in model]
    assert torch.equal(torch.cat(parts, dim=1), trim_by_magnitude(flat, [density] * n))


@given(stacks(), stacks())
@settings(deadline=None, max_examples=60)
def test_sign_balances_of_tensors_add_up_to_that_of_the_model(
    first: Tensor, second: Tensor
) -> None:
    n = min(len(first), len(second))
    first, second = first[:n], second[:n]
    whole = sign_balance(torch.cat([first, second], dim=1), ones(first))
    assert whole == sign_balance(first, ones(first)) + sign_balance(second, ones(second))


@pytest.mark.parametrize(("zero_sum", "expected"), [(1, 0.5), (-1, -0.5)])
def test_an_exact_zero_sum_takes_the_sign_it_is_given(zero_sum: int, expected: float) -> None:
    stack = torch.tensor([[0.5], [-0.5]], dtype=torch.float64)
    signs = elect_sign(stack, ones(stack), zero_sum=zero_sum)
    assert disjoint_mean(stack, ones(stack), signs).item() == expected


def test_a_zero_sum_follows_the_majority_of_the_other_entries() -> None:
    stack = torch.tensor([[0.5, -1.0, -1.0], [-0.5, -1.0, 0.5]], dtype=torch.float64)
    assert ties(stack, 1.0)[0] == -0.5
    assert ties(-stack, 1.0)[0] == 0.5


def test_without_a_majority_a_zero_sum_elects_plus() -> None:
    assert ties(torch.tensor([[0.5], [-0.5]], dtype=torch.float64), 1.0).item() == 0.5


def test_zeros_never_take_part_in_the_mean() -> None:
    stack = torch.tensor([[0.0], [0.5], [0.0]], dtype=torch.float64)
    assert ties(stack, 1.0).item() == 0.5


def test_where_nobody_has_an_entry_the_result_is_zero() -> None:
    stack = torch.zeros(3, 4, dtype=torch.float64)
    assert torch.equal(ties(stack, 1.0), torch.zeros(4, dtype=torch.float64))


def test_weights_vote_only_in_a_weighted_election() -> None:
    stack = torch.tensor([[1.0], [-0.6]], dtype=torch.float64)
    weights = torch.tensor([1.0, 3.0], dtype=torch.float64)
    assert elect_sign(stack, weights).item() == 1
    assert elect_sign(stack, weights, election="weighted").item() == -1


def test_weights_weigh_the_disjoint_mean() -> None:
    stack = torch.tensor([[1.0], [3.0], [-1.0]], dtype=torch.float64)
    weights = torch.tensor([3.0, 1.0, 7.0], dtype=torch.float64)
    signs = elect_sign(stack, weights)
    assert disjoint_mean(stack, weights, signs).item() == (3 * 1 + 1 * 3) / 4
    assert disjoint_mean(stack, weights, signs, normalize=False).item() == 6


@given(stacks(), st.floats(0.05, 1.0))
@settings(deadline=None, max_examples=60)
def test_the_disjoint_mean_lies_between_its_members(stack: Tensor, density: float) -> None:
    merged = ties(stack, density)
    assert (merged.abs() <= stack.abs().amax(0) + 1e-15).all()


def test_a_weighted_sum_may_subtract() -> None:
    stack = torch.tensor([[2.0], [0.5]], dtype=torch.float32)
    weights = torch.tensor([1.0, -2.0], dtype=torch.float64)
    assert weighted_sum(stack, weights).item() == 1.0


@given(stacks())
@settings(deadline=None, max_examples=30)
def test_trimming_a_part_with_given_thresholds_is_trimming_the_whole(stack: Tensor) -> None:
    limits = global_thresholds([stack], [0.4] * len(stack))
    whole = trim_by_magnitude(stack, [0.4] * len(stack))
    parts = [
        trim_by_magnitude(stack[:, j : j + 3], [], thresholds=limits)
        for j in range(0, stack.shape[1], 3)
    ]
    assert torch.equal(torch.cat(parts, dim=1), whole)
