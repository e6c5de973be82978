"""Bands, random masks, variance, agreement: laws, and the bugs that peers have had."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.randomness import uniforms
from zeitgeist.merging.sparsify import (
    band_limits,
    breadcrumbs,
    consensus,
    drop_at_random,
    energy_weights,
    keep_probabilities,
    l1_rescale,
    select_by_variance,
    selected_count,
    tall_mask,
    variance_across,
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def draws(seed: int, shape: tuple[int, ...]) -> Tensor:
    row = torch.from_numpy(uniforms(seed, 0, "w", 0, math.prod(shape))).double() * 2.0**-32
    return row.reshape(1, *shape)


# --- breadcrumbs --------------------------------------------------------------------------------


@given(st.integers(1, 60), st.floats(0.01, 1.0), st.floats(0.0, 0.99))
@settings(deadline=None, max_examples=100)
def test_the_band_is_a_run_of_ranks_below_the_outliers(
    size: int, density: float, gamma: float
) -> None:
    delta = normal(size, seed=size)
    kept = breadcrumbs(delta[None], [density], [gamma])[0]
    ranked = delta.abs().to(torch.float32).argsort(descending=True).tolist()
    above = min(int(gamma * size), size - 1)
    wanted = ranked[above : above + max(1, int(density * size))]
    assert sorted(kept.nonzero().flatten().tolist()) == sorted(wanted)


def test_no_outliers_to_drop_leaves_a_plain_trim() -> None:
    # int(gamma N) = 0 zeroed whole tensors in mergekit before 0.1.5
    delta = normal(1, 50)
    kept = breadcrumbs(delta, [0.4], [0.01])
    assert kept.count_nonzero() == 20
    assert kept.abs().max() == delta.abs().max()


@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_tensors_keep_something(size: int) -> None:
    assert breadcrumbs(normal(1, size), [0.1], [0.9]).count_nonzero() == 1


def test_density_one_still_drops_outliers_unless_it_is_mergekit() -> None:
    delta = normal(1, 100)
    assert breadcrumbs(delta, [1.0], [0.05]).count_nonzero() == 95
    assert torch.equal(breadcrumbs(delta, [1.0], [0.05], as_mergekit=True), delta)


def test_mergekit_keeps_fewer_outliers_out_where_both_do_not_fit() -> None:
    delta = normal(1, 10)
    assert breadcrumbs(delta, [0.9], [0.3]).count_nonzero() == 7
    assert breadcrumbs(delta, [0.9], [0.3], as_mergekit=True).count_nonzero() == 9


def test_equal_magnitudes_at_a_limit_of_the_band_are_all_kept() -> None:
    low, high = band_limits(torch.tensor([2.0, -2.0, 1.0, 1.0]), 0.25, 0.25)
    assert (low, high) == (2.0, 2.0)


# --- DARE and DELLA -----------------------------------------------------------------------------


@pytest.mark.parametrize("density", [0.1, 0.5, 0.9])
def test_dare_is_unbiased_entry_by_entry(density: float) -> None:
    delta, seeds = normal(1, 8), 4000
    chance = torch.tensor([[density]], dtype=torch.float64)
    total = sum(drop_at_random(delta, chance, draws(seed, (8,))) for seed in range(seeds))
    sigma = delta.abs() * math.sqrt((1 - density) / density / seeds)
    assert ((total / seeds - delta).abs() < 4 * sigma).all()


def test_dare_keeps_a_binomial_share() -> None:
    density, size = 0.3, 100_000
    chance = torch.tensor([[density]], dtype=torch.float64)
    kept = drop_at_random(torch.ones(1, size), chance, draws(0, (size,)))
    share = kept.count_nonzero().item() / size
    assert abs(share - density) < 4 * math.sqrt(density * (1 - density) / size)


def test_dare_divides_by_the_density_not_by_the_share_it_happened_to_keep() -> None:
    # rescaling to the L1 norm gave a 64-entry norm vector 1.74 instead of 2 in mergekit
    delta = normal(1, 64)
    chance = torch.tensor([[0.5]], dtype=torch.float64)
    mask = draws(3, (64,))
    kept = drop_at_random(delta, chance, mask)
    assert torch.equal(kept[kept != 0], 2 * delta[kept != 0])
    by_norm = l1_rescale(drop_at_random(delta, chance, mask, rescale=False), delta)
    factor = (by_norm / delta)[by_norm != 0]
    assert (factor - 2).abs().min() > 1e-3


def test_dare_of_density_one_changes_nothing() -> None:
    delta = normal(1, 33)
    chance = torch.ones(1, 1, dtype=torch.float64)
    assert torch.equal(drop_at_random(delta, chance, draws(0, (33,))), delta)


def test_tiny_task_vectors_are_rescaled_too() -> None:
    # L1 norms under 1e-7 are not rescaled in mergekit
    delta = normal(1, 16) * 1e-12
    chance = torch.tensor([[0.5]], dtype=torch.float64)
    kept = drop_at_random(delta, chance, draws(0, (16,)))
    assert torch.equal(kept[kept != 0], 2 * delta[kept != 0])
    unscaled = drop_at_random(delta, chance, draws(0, (16,)), rescale=False)
    assert torch.equal(l1_rescale(unscaled, delta), unscaled)


@given(st.integers(2, 40), st.floats(0.2, 0.8), st.floats(0.0, 0.39))
@settings(deadline=None, max_examples=60)
def test_della_probabilities_are_linear_in_the_rank(
    cols: int, density: float, width: float
) -> None:
    delta = normal(3, cols, seed=cols)
    probabilities = keep_probabilities(delta, density, width)
    ordered = probabilities.gather(1, delta.abs().argsort(dim=1))
    ramp = torch.linspace(density - width / 2, density + width / 2, cols, dtype=torch.float64)
    torch.testing.assert_close(ordered, ramp.expand(3, -1), rtol=0, atol=1e-15)
    torch.testing.assert_close(
        probabilities.mean(1), torch.full((3,), density, dtype=torch.float64), rtol=0, atol=1e-14
    )


def test_equal_magnitudes_are_ranked_by_index() -> None:
    probabilities = keep_probabilities(torch.tensor([1.0, -1.0, 1.0]), 0.5, 0.5)
    assert probabilities.tolist() == [0.25, 0.5, 0.75]


def test_della_is_unbiased_for_small_and_for_large_entries() -> None:
    # rescaled to the L1 norm, small entries came out at .38 and large ones at 1.23 in mergekit
    delta, seeds = normal(1, 6), 6000
    probabilities = keep_probabilities(delta, 0.5, 0.8)
    total = sum(drop_at_random(delta, probabilities, draws(seed, (6,))) for seed in range(seeds))
    sigma = delta.abs() * ((1 - probabilities) / probabilities / seeds).sqrt()
    assert ((total / seeds - delta).abs() < 4 * sigma).all()


@pytest.mark.parametrize("shape", [(1,), (5, 1), ()])
def test_rows_of_one_entry_are_kept_with_the_density(shape: tuple[int, ...]) -> None:
    # 0 / 0 in mergekit
    delta = torch.ones(shape, dtype=torch.float64)
    assert torch.equal(
        keep_probabilities(delta, 0.6, 0.2), torch.full(shape, 0.6, dtype=torch.float64)
    )


@pytest.mark.parametrize(("density", "width"), [(0.1, 0.2), (0.1, 0.3), (0.95, 0.2)])
def test_a_window_outside_the_probabilities_is_refused_by_its_numbers(
    density: float, width: float
) -> None:
    with pytest.raises(InputInvalid, match=rf"density {density}, window {width}.*epsilon smaller"):
        keep_probabilities(normal(4, 4), density, width)


def test_a_density_under_mergekits_epsilon_works_with_a_small_window() -> None:
    assert keep_probabilities(normal(4, 4), 0.1, 0.1).min() == pytest.approx(0.05)


def test_the_ranks_of_a_row_do_not_depend_on_other_rows() -> None:
    delta = normal(7, 9)
    whole = keep_probabilities(delta, 0.5, 0.4)
    assert torch.equal(torch.cat([keep_probabilities(d, 0.5, 0.4) for d in delta.split(2)]), whole)


# --- mergekit's rescale -------------------------------------------------------------------------


def test_l1_rescale_restores_the_norm_of_each_expert() -> None:
    delta = normal(3, 5, 7)
    kept = torch.where(delta > 0, delta, 0.0)
    rescaled = l1_rescale(kept, delta)
    torch.testing.assert_close(rescaled.abs().sum((1, 2)), delta.abs().sum((1, 2)))


# --- SCE ----------------------------------------------------------------------------------------


@given(st.integers(2, 6), st.integers(1, 20))
@settings(deadline=None, max_examples=30)
def test_variance_is_that_of_the_population(n: int, size: int) -> None:
    delta = normal(n, size, seed=n)
    expected = delta.var(dim=0, correction=0).to(torch.float32)
    torch.testing.assert_close(variance_across(delta), expected, rtol=2e-7, atol=0)


def test_the_selected_entries_are_those_that_vary_most() -> None:
    delta = normal(3, 40)
    mask = select_by_variance(delta, 0.25)
    variance = variance_across(delta)
    assert mask.sum() == 10
    assert variance[mask].min() > variance[~mask].max()


def test_entries_on_which_all_agree_do_not_count_towards_the_fraction() -> None:
    delta = torch.cat([normal(2, 10), torch.ones(2, 90, dtype=torch.float64)], dim=1)
    assert select_by_variance(delta, 0.5).sum() == 5


def test_small_tensors_keep_at_least_one_entry_unless_it_is_mergekit() -> None:
    delta = normal(2, 4)
    assert select_by_variance(delta, 0.1).sum() == 1
    assert select_by_variance(delta, 0.1, as_mergekit=True).sum() == 0


def test_experts_that_agree_everywhere_are_kept_unless_it_is_mergekit() -> None:
    delta = normal(1, 8).expand(3, 8)
    assert select_by_variance(delta, 0.1).all()
    assert not select_by_variance(delta, 0.1, as_mergekit=True).any()


def test_mergekit_counts_in_float32() -> None:
    assert (selected_count(100, 0.29), selected_count(100, 0.29, as_mergekit=True)) == (28, 29)


@pytest.mark.parametrize("size", [1.0, 1e-4, 1e-9])
def test_energy_weights_do_not_depend_on_the_size_of_the_updates(size: float) -> None:
    # below a sum of 1e-6 all experts weighed the same in mergekit: for any small learning rate
    stack = torch.tensor([[1.0], [3.0], [0.01]], dtype=torch.float64) * size
    expected = torch.tensor([1.0, 9.0, 1e-4], dtype=torch.float64) / 10.0001
    torch.testing.assert_close(energy_weights(stack), expected, rtol=1e-12, atol=0)


def test_experts_that_did_not_move_weigh_the_same() -> None:
    assert energy_weights(torch.zeros(4, 3, dtype=torch.float64)).tolist() == [0.25] * 4


# --- TALL masks and consensus -------------------------------------------------------------------


@given(st.integers(2, 6), st.floats(0.1, 1.0))
@settings(deadline=None, max_examples=40)
def test_a_tall_mask_is_its_definition(n: int, tall_lambda: float) -> None:
    delta = normal(n, 12, seed=n)
    merged = delta.sum(0)
    for one in delta:
        expected = [
            abs(d) >= abs(m - d) * tall_lambda
            for d, m in zip(one.tolist(), merged.tolist(), strict=True)
        ]
        assert tall_mask(one, merged, tall_lambda).tolist() == expected


def test_consensus_limits_are_everything_and_nothing() -> None:
    delta = normal(3, 20)
    merged = delta.sum(0)
    assert torch.equal(consensus(delta, merged, 0.4, 0), merged)
    assert torch.equal(consensus(delta, merged, 0.4, 4), torch.zeros_like(merged))


def test_consensus_keeps_less_the_more_masks_must_agree() -> None:
    delta = normal(4, 200)
    kept = [consensus(delta, delta.sum(0), 0.4, k).count_nonzero().item() for k in range(6)]
    assert kept == sorted(kept, reverse=True)
    assert kept[0] > kept[2] > kept[5] == 0


def test_an_entry_that_only_one_expert_moved_is_selfish() -> None:
    delta = torch.tensor([[1.0, 1.0], [0.0, 1.0], [0.0, 1.0]], dtype=torch.float64)
    assert consensus(delta, delta.sum(0), 0.4, 1).tolist() == [1.0, 3.0]
    assert consensus(delta, delta.sum(0), 0.4, 2).tolist() == [0.0, 3.0]
