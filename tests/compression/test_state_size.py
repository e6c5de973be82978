"""The scan against a loop, mixers against their limits, and what cannot be asked."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeitgeist.compression.state_size import (
    MIXERS,
    Mixing,
    Reader,
    StateSizeOptions,
    attend,
    attend_hybrid,
    attend_linear,
    b_then_a,
    load,
    mingru_last,
    state_size,
    train_reader,
    unexplained,
)
from zeitgeist.errors import InputInvalid

TINY = StateSizeOptions(
    signs=8, width=8, window=3, recurrent=6, steps=3, batch=2, queries=5, test=2
)
NULL = torch.tensor(0.3, dtype=torch.float64)


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def one_step_at_a_time(gates: Tensor, candidates: Tensor, start: Tensor) -> Tensor:
    """The recurrence as written."""
    h = start
    for t in range(gates.shape[1]):
        z = torch.sigmoid(gates[:, t])
        h = (1 - z) * h + z * candidates[:, t]
    return h


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(1, 5), st.integers(0, 9))
def test_the_parallel_scan_is_the_recurrence(n: int, h: int, seed: int) -> None:
    inputs = [drawn(2, n, h, seed=seed), drawn(2, n, h, seed=seed + 1), drawn(2, h, seed=seed + 2)]
    fast, slow = ([x.clone().requires_grad_() for x in inputs] for _ in range(2))
    one, other = mingru_last(*fast), one_step_at_a_time(*slow)
    torch.testing.assert_close(one, other)
    one.sum().backward()
    other.sum().backward()
    for a, b in zip(fast, slow, strict=True):
        torch.testing.assert_close(a.grad, b.grad)


def test_the_scan_continues_where_it_stopped() -> None:
    gates, candidates = 30 * drawn(1, 11, 4), drawn(1, 11, 4, seed=1)
    half = mingru_last(gates[:, :5], candidates[:, :5])
    torch.testing.assert_close(
        mingru_last(gates[:, 5:], candidates[:, 5:], half), mingru_last(gates, candidates)
    )


def test_a_hybrid_with_nothing_before_its_window_is_softmax_attention() -> None:
    q, k, v = 20 * drawn(2, 3, 4), drawn(2, 5, 4, seed=1), drawn(2, 5, 6, seed=2)
    nothing = (drawn(2, 3, 7).exp(), k.new_zeros(2, 0, 7), v.new_zeros(2, 0, 6))
    torch.testing.assert_close(attend_hybrid(q, k, v, nothing, NULL), attend(q, k, v, NULL))


def test_a_hybrid_of_exact_features_is_softmax_attention() -> None:
    # One dimension, keys of 0 or 1: e^{q k} = phi(q) phi(k) with phi(q) = (1, e^q).
    q, k, v = drawn(1, 3, 1), torch.tensor([[[0.0], [1.0], [1.0], [0.0]]]).double(), drawn(1, 4, 2)
    phi_q = torch.cat([torch.ones_like(q), q.exp()], -1)
    phi_k = torch.cat([1 - k, k], -1)
    whole = attend(q, k, v, NULL)
    torch.testing.assert_close(attend_linear(phi_q, phi_k, v, NULL), whole)
    features = (phi_q, phi_k[:, :2], v[:, :2])
    torch.testing.assert_close(attend_hybrid(q, k[:, 2:], v[:, 2:], features, NULL), whole)


@pytest.mark.parametrize("mixer", MIXERS)
def test_queries_do_not_see_each_other(mixer: Mixing) -> None:
    random = torch.Generator().manual_seed(0)
    reader = Reader(mixer, TINY, 4, random)
    vectors, queries, _ = b_then_a(7, TINY, batch=2, random=random)
    together = reader(vectors, queries)
    alone = torch.cat([reader(vectors, queries[:, i : i + 1]) for i in range(5)], 1)
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize(("mixer", "sees"), [("window", False), ("hybrid", True), ("linear", True)])
def test_a_window_forgets_what_lies_before(mixer: Mixing, sees: bool) -> None:
    random = torch.Generator().manual_seed(0)
    reader = Reader(mixer, TINY, 4, random)
    vectors, queries, _ = b_then_a(7, TINY, batch=2, random=random)
    changed = vectors.clone()
    changed[:, :4] *= -1
    assert bool((reader(vectors, queries) != reader(changed, queries)).any()) == sees


def test_as_many_signs_flip_as_asked_and_half_are_copies() -> None:
    options = StateSizeOptions(flips=0.1, queries=400)
    random = torch.Generator().manual_seed(0)
    vectors, queries, known = b_then_a(3, options, batch=20, random=random)
    nearest = (queries @ vectors.mT).amax(-1)[known]
    assert 0.09 < float((24 - nearest).mean() / 48) < 0.11
    assert 0.48 < float(known.double().mean()) < 0.52


def test_softmax_learns_what_chance_does_not() -> None:
    options = StateSizeOptions(signs=12, flips=0.0, width=16, steps=250, batch=8)
    found = train_reader("softmax", [2, 4], options, seed=1)
    assert min(found.values()) > 0.75
    assert found == train_reader("softmax", [2, 4], options, seed=1)


def test_states_are_what_is_carried() -> None:
    options = StateSizeOptions(width=10, window=4)
    assert state_size("window", 99, options) == state_size("softmax", 4, options) == 80
    assert state_size("hybrid", 99, options, 10) == 80 + state_size("linear", 99, options, 10)
    assert load(50, 24, 1200) == 1.0


def test_the_right_variable_leaves_nothing_over() -> None:
    n = torch.tensor([4.0, 16, 64, 4, 16, 64])
    state = torch.tensor([16.0, 16, 16, 256, 256, 256])
    accuracy = 0.9 - 0.05 * (n / state).log()
    assert unexplained(accuracy, n / state) < 1e-6
    assert unexplained(accuracy, n) > 0.3
    assert unexplained(torch.ones(6), n) == 0.0


@pytest.mark.parametrize(
    ("field", "value"), [("flips", 0.5), ("signs", 0), ("steps", -1), ("learning_rate", 0.0)]
)
def test_options_that_mean_nothing_are_refused(field: str, value: Any) -> None:
    with pytest.raises(InputInvalid, match=f"{field} is {value}"):
        StateSizeOptions(**{field: value})


def test_a_training_that_cannot_be_is_refused_before_work() -> None:
    with pytest.raises(InputInvalid, match="sizes are"):
        train_reader("softmax", [], TINY)
    with pytest.raises(InputInvalid, match="features is 3"):
        train_reader("linear", [2], TINY, features=3)
