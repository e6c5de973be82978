"""Random draws as a function of (seed, expert, tensor name, index), and of nothing else."""

import hashlib
import math
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from zeitgeist.merging.randomness import kept, philox_key, uniforms

MASK = 2**64 - 1


def philox_block(counter: int, key: tuple[int, int]) -> list[int]:
    """Four 64-bit words of Philox 4x64-10, written from the paper (Salmon et al., SC 2011)."""
    words = [counter, 0, 0, 0]
    low, high = key
    for _ in range(10):
        first, second = words[0] * 0xD2E7470EE14C6C93, words[2] * 0xCA5A826395121157
        words = [
            (second >> 64) ^ words[1] ^ low,
            second & MASK,
            (first >> 64) ^ words[3] ^ high,
            first & MASK,
        ]
        low, high = (low + 0x9E3779B97F4A7C15) & MASK, (high + 0xBB67AE8584CAA73B) & MASK
    return words


def test_draws_are_philox_of_the_counter_keyed_by_the_name() -> None:
    digest = hashlib.blake2b(b"7\x002\x00model.norm.weight", digest_size=16).digest()
    key = (int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little"))
    expected = [
        half
        for block in range(3)
        for word in philox_block(block + 1, key)
        for half in (word & 0xFFFFFFFF, word >> 32)
    ]
    assert uniforms(7, 2, "model.norm.weight", 0, 24).tolist() == expected
    assert philox_key(7, 2, "model.norm.weight") == key


@given(st.lists(st.integers(0, 70), min_size=1, max_size=6))
@settings(deadline=None, max_examples=60)
def test_any_chunking_gives_the_same_draws(cuts: list[int]) -> None:
    whole = uniforms(3, 1, "w", 0, 70)
    edges = sorted({0, 70, *cuts})
    parts = [uniforms(3, 1, "w", a, b) for a, b in pairwise(edges)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_a_far_chunk_needs_no_draws_before_it() -> None:
    start = 10**12 + 5
    np.testing.assert_array_equal(
        uniforms(0, 0, "w", start, start + 9), uniforms(0, 0, "w", start - 5, start + 9)[5:]
    )


def test_an_empty_range_has_no_draws() -> None:
    assert uniforms(0, 0, "w", 5, 5).shape == (0,)


def test_every_part_of_the_key_changes_the_draws() -> None:
    keys = [(0, 0, "a"), (1, 0, "a"), (-1, 0, "a"), (0, 1, "a"), (0, 0, "b"), (0, 0, "")]
    rows = {tuple(uniforms(*key, 0, 8).tolist()) for key in keys}
    assert len(rows) == len(keys)


def test_digits_do_not_slide_between_the_parts_of_the_key() -> None:
    assert philox_key(1, 11, "w") != philox_key(11, 1, "w")
    assert philox_key(1, 1, "1w") != philox_key(1, 11, "w")


def test_global_random_state_is_neither_read_nor_written() -> None:
    np.random.seed(0)  # noqa: NPY002
    before = np.random.get_state()[1].copy()  # type: ignore[index,union-attr]  # noqa: NPY002
    first = uniforms(0, 0, "w", 0, 100)
    assert (np.random.get_state()[1] == before).all()  # type: ignore[index]  # noqa: NPY002
    np.random.seed(1)  # noqa: NPY002
    np.testing.assert_array_equal(uniforms(0, 0, "w", 0, 100), first)


@pytest.mark.parametrize("probability", [0.1, 0.5, 0.9])
def test_the_kept_fraction_is_binomial(probability: float) -> None:
    count = 200_000
    share = kept(uniforms(0, 0, "w", 0, count), probability).mean()
    assert abs(share - probability) < 4 * math.sqrt(probability * (1 - probability) / count)


def test_draws_of_one_entry_are_uniform_over_seeds() -> None:
    draws = np.array([uniforms(seed, 0, "w", 3, 4)[0] for seed in range(2000)])
    counts = np.bincount((draws >> 29).astype(np.int64), minlength=8)
    chi_square = ((counts - 250) ** 2 / 250).sum()
    assert chi_square < 7 + 4 * math.sqrt(14)  # 7 degrees of freedom, 4 sigma


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
@settings(deadline=None)
def test_kept_compares_exactly(draw: int, probability: float) -> None:
    exact = Fraction(draw, 2**32) < Fraction(probability)
    assert kept(np.array([draw], dtype=np.uint32), probability)[0] == exact


def test_probability_one_keeps_all_and_zero_none() -> None:
    draws = np.array([0, 1, 2**32 - 1], dtype=np.uint32)
    assert kept(draws, 1.0).all()
    assert not kept(draws, 0.0).any()


def test_each_entry_may_have_its_own_probability() -> None:
    draws = np.array([2**31, 2**31], dtype=np.uint32)
    assert kept(draws, np.array([0.5, 0.6])).tolist() == [False, True]
