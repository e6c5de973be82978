"""Coefficients from inner products, against plain vector arithmetic and geometry."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.interpolation import (
    gram_matrix,
    karcher_coefficients,
    linear_coefficients,
    model_stock_ratio,
    multislerp_coefficients,
    nearswap,
    nuslerp_coefficients,
    slerp_coefficients,
)

seeds = st.integers(0, 10_000)
positions = st.floats(-0.5, 1.5)


def vectors(n: int, size: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.rand(n, 1, generator=generator, dtype=torch.float64) * 5 + 0.1
    return lengths * torch.randn(n, size, generator=generator, dtype=torch.float64)


def weights_of(n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed + 1)
    return torch.rand(n, generator=generator, dtype=torch.float64) + 0.05


def close(one: Tensor, two: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


# --- linear -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [[1.0, -1.0], [0.0, 0.0], [0.1, 0.2, -0.3]])
def test_weights_that_sum_to_zero_cannot_be_normalized(weights: list[float]) -> None:
    values = torch.tensor(weights, dtype=torch.float64)
    with pytest.raises(InputInvalid, match="sum to 0"):
        linear_coefficients(values)
    assert torch.equal(linear_coefficients(values, normalize=False), values)


def test_negative_weights_extrapolate() -> None:
    weights = torch.tensor([2.0, -1.0], dtype=torch.float64)
    assert torch.equal(linear_coefficients(weights), weights)


# --- slerp --------------------------------------------------------------------------------------


def slerp_by_rotation(start: Tensor, end: Tensor, t: float) -> Tensor:
    """Turn the first direction by t of the angle, in the plane of both, scaling each raw vector."""
    u, v = start / start.norm(), end / end.norm()
    angle = torch.atan2((u - v).norm(), (u + v).norm()) * 2
    # the arc through raw vectors: the coefficients of the unit arc applied to raw vectors
    sideways = (v - (u @ v) * u) / (v - (u @ v) * u).norm()
    point = (t * angle).cos() * u + (t * angle).sin() * sideways
    basis = torch.stack([u, v], dim=1)
    along = torch.linalg.lstsq(basis, point).solution
    return along[0] * start + along[1] * end


@given(seeds, positions, st.integers(2, 30))
@settings(deadline=None, max_examples=80)
def test_slerp_turns_the_direction_by_its_share_of_the_angle(
    seed: int, t: float, size: int
) -> None:
    pair = vectors(2, size, seed)
    coefficients = slerp_coefficients(gram_matrix(pair), t)
    close(coefficients @ pair, slerp_by_rotation(pair[0], pair[1], t), 1e-8)


@given(seeds, st.integers(1, 20))
@settings(deadline=None, max_examples=40)
def test_slerp_starts_at_the_first_and_ends_at_the_second(seed: int, size: int) -> None:
    gram = gram_matrix(vectors(2, size, seed))
    close(slerp_coefficients(gram, 0.0), torch.tensor([1.0, 0.0]).double(), 1e-12)
    close(slerp_coefficients(gram, 1.0), torch.tensor([0.0, 1.0]).double(), 1e-12)


@given(seeds, positions)
@settings(deadline=None, max_examples=40)
def test_slerp_backwards_is_slerp_from_the_other_end(seed: int, t: float) -> None:
    gram = gram_matrix(vectors(2, 9, seed))
    close(slerp_coefficients(gram, t), slerp_coefficients(gram.flip(0, 1), 1 - t).flip(0), 1e-9)


def test_slerp_of_unit_vectors_stays_on_the_sphere() -> None:
    pair = torch.nn.functional.normalize(vectors(2, 5, 0))
    gram = gram_matrix(pair)
    for t in torch.linspace(0, 1, 11).tolist():
        assert (slerp_coefficients(gram, t) @ pair).norm().item() == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("factor", [2.0, -2.0, 0.0])
def test_slerp_along_one_line_is_linear(factor: float) -> None:
    one = vectors(1, 7, 0)
    gram = gram_matrix(torch.cat([one, factor * one]))
    close(slerp_coefficients(gram, 0.25), torch.tensor([0.75, 0.25]).double(), 1e-12)


def test_close_models_are_still_slerped_unless_it_is_mergekit() -> None:
    angle = math.acos(0.9999)
    pair = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    gram = gram_matrix(pair)
    assert (slerp_coefficients(gram, 0.5) @ pair).norm().item() == pytest.approx(1, abs=1e-13)
    assert slerp_coefficients(gram, 0.5, as_mergekit=True).tolist() == [0.5, 0.5]


def test_rows_are_slerped_independently() -> None:
    rows = torch.stack([vectors(2, 6, seed) for seed in range(4)])
    together = slerp_coefficients(gram_matrix(rows), 0.3)
    for row, coefficients in zip(rows, together, strict=True):
        close(coefficients, slerp_coefficients(gram_matrix(row), 0.3), 1e-12)


@given(seeds)
@settings(deadline=None, max_examples=20)
def test_nuslerp_is_slerp_at_the_share_of_the_second_weight(seed: int) -> None:
    gram, weights = gram_matrix(vectors(2, 8, seed)), weights_of(2, seed)
    expected = slerp_coefficients(gram, (weights[1] / weights.sum()).item())
    close(nuslerp_coefficients(gram, weights), expected, 1e-12)
    close(nuslerp_coefficients(gram, weights, as_mergekit=True), expected, 1e-9)


def test_nuslerp_weights_that_cancel_are_refused_and_mergekit_goes_half_way() -> None:
    gram, weights = torch.eye(2, dtype=torch.float64), torch.tensor([1.0, -1.0]).double()
    with pytest.raises(InputInvalid, match="sum to 0"):
        nuslerp_coefficients(gram, weights)
    half = slerp_coefficients(gram, 0.5)
    close(nuslerp_coefficients(gram, weights, as_mergekit=True), half, 1e-12)


# --- multislerp ---------------------------------------------------------------------------------


def multislerp_through_the_tangent_space(rows: Tensor, weights: Tensor) -> Tensor:
    """Unit vectors, their mean, tangent vectors there, their mean, and back onto the sphere."""
    weights = weights / weights.sum()
    norms = rows.norm(dim=1)
    units = rows / norms[:, None]
    mean = (weights[:, None] * units).sum(0)
    mean = mean / mean.norm()
    tangents = units - (units @ mean)[:, None] * mean
    tangent = (weights[:, None] * tangents).sum(0)
    length = tangent.norm() + 1e-300
    point = mean * length.cos() + tangent * (length.sin() / length)
    return point * (weights @ norms)


@given(seeds, st.integers(2, 5), st.integers(2, 20))
@settings(deadline=None, max_examples=60)
def test_multislerp_needs_no_tangent_space(seed: int, n: int, size: int) -> None:
    rows, weights = vectors(n, size, seed), weights_of(n, seed)
    merged = multislerp_coefficients(gram_matrix(rows), weights, eps=0.0) @ rows
    close(merged, multislerp_through_the_tangent_space(rows, weights), 1e-8)


def test_multislerp_of_one_is_that_one() -> None:
    gram = gram_matrix(vectors(1, 4, 0))
    assert multislerp_coefficients(gram, torch.tensor([3.0]).double()).tolist() == [1.0]


@pytest.mark.parametrize("n", [2, 4])
def test_directions_that_cancel_are_averaged(n: int) -> None:
    one = vectors(1, 5, 0)
    gram = gram_matrix(torch.cat([one, -2 * one] * (n // 2)))
    ones = torch.ones(n, dtype=torch.float64)
    assert multislerp_coefficients(gram, ones).tolist() == [1 / n] * n


def test_mergekit_refuses_more_than_two_directions_that_cancel() -> None:
    one = vectors(1, 5, 0)
    gram = gram_matrix(torch.cat([one, -one, one, -one]))
    with pytest.raises(InputInvalid, match="cancel"):
        multislerp_coefficients(gram, torch.ones(4).double(), as_mergekit=True)


# --- karcher ------------------------------------------------------------------------------------


@given(seeds, st.integers(2, 5), st.integers(4, 20))
@settings(deadline=None, max_examples=40)
def test_at_the_karcher_mean_the_pulls_cancel(seed: int, n: int, size: int) -> None:
    # within a half sphere, where the mean is unique
    rows = vectors(n, size, seed)
    rows[:, 0] = rows[:, 0].abs() + 2 * rows.norm(dim=1)
    merged = karcher_coefficients(gram_matrix(rows), max_iter=200, tol=1e-12) @ rows
    mean, units = merged / merged.norm(), torch.nn.functional.normalize(rows)
    dots = units @ mean
    logs = (dots.acos() / (1 - dots**2).sqrt())[:, None] * (units - dots[:, None] * mean)
    assert logs.mean(0).norm() < 1e-7
    assert merged.norm().item() == pytest.approx(rows.norm(dim=1).mean().item(), rel=1e-9)


def test_karcher_of_two_is_slerp_half_way() -> None:
    pair = torch.nn.functional.normalize(vectors(2, 9, 3))
    gram = gram_matrix(pair)
    close(karcher_coefficients(gram, tol=1e-10), slerp_coefficients(gram, 0.5), 1e-9)


@pytest.mark.parametrize("n", [1, 3])
def test_karcher_of_copies_is_the_copy(n: int) -> None:
    one = vectors(1, 6, 0)
    close(karcher_coefficients(gram_matrix(one.expand(n, 6))) @ one.expand(n, 6), one[0])


def test_zero_vectors_have_no_direction_but_shorten_the_mean() -> None:
    pair = torch.cat([vectors(1, 4, 0), torch.zeros(1, 4, dtype=torch.float64)])
    close(karcher_coefficients(gram_matrix(pair)) @ pair, pair[0] / 2)
    nothing = torch.zeros(2, 2, dtype=torch.float64)
    assert karcher_coefficients(nothing).tolist() == [0.0, 0.0]


def test_opposites_have_no_unique_mean_and_are_averaged() -> None:
    one = vectors(1, 4, 0)
    both = torch.cat([one, -one, -one])
    assert karcher_coefficients(gram_matrix(both)).tolist() == [1 / 3] * 3


def test_short_vectors_have_a_direction_unless_it_is_mergekit() -> None:
    # norms under tol, 1e-5, are left out in mergekit
    pair = torch.diag(torch.tensor([1e-6, 1e-6], dtype=torch.float64))
    assert karcher_coefficients(gram_matrix(pair)).count_nonzero() == 2
    assert karcher_coefficients(gram_matrix(pair), as_mergekit=True).count_nonzero() == 0


def test_order_of_inputs_does_not_matter() -> None:
    rows = vectors(4, 7, 5)
    order = torch.tensor([2, 0, 3, 1])
    one, two = (karcher_coefficients(gram_matrix(r), tol=1e-12) @ r for r in (rows, rows[order]))
    close(one, two)


# --- model stock --------------------------------------------------------------------------------


@given(st.integers(2, 6), st.floats(0.05, 0.95))
@settings(deadline=None, max_examples=40)
def test_model_stock_is_the_foot_of_the_perpendicular_from_the_centre(
    n: int, cosine: float
) -> None:
    # equal lengths and angles: the paper's geometry. The centre m is as far from every expert and
    # sees them at right angles: <d_i - m, d_j - m> = 0 and <d_i - m, m> = 0.
    gram = torch.full((n, n), cosine, dtype=torch.float64).fill_diagonal_(1.0)
    t = model_stock_ratio(gram).item()
    assert t == pytest.approx(n * cosine / (1 + (n - 1) * cosine))
    mean_square = gram.mean().item()
    centre = cosine  # |m|^2 = <d_i, m> = <d_i, d_j>
    # projecting m onto the plane of base and mean: t mean d, with <m - t mean, mean> = 0
    assert t * mean_square == pytest.approx(centre)


def test_experts_at_right_angles_fall_back_to_the_base_and_equal_ones_stay() -> None:
    assert model_stock_ratio(torch.eye(3, dtype=torch.float64)).item() == 0
    assert model_stock_ratio(torch.ones(3, 3, dtype=torch.float64)).item() == 1


@pytest.mark.parametrize("size", [1.0, 1e-6, 1e-20])
def test_the_ratio_does_not_depend_on_the_size_of_the_updates(size: float) -> None:
    # products of norms under 1e-6 are replaced in mergekit: updates of small tensors vanish
    gram = torch.tensor([[1.0, 0.5], [0.5, 1.0]], dtype=torch.float64) * size**2
    assert model_stock_ratio(gram).item() == pytest.approx(2 / 3)
    if size < 1e-3:
        assert model_stock_ratio(gram, as_mergekit=True).item() < 1e-3


def test_a_negative_cosine_gives_the_base_unless_it_is_mergekit() -> None:
    gram = torch.tensor([[1.0, -0.5], [-0.5, 1.0]], dtype=torch.float64)
    assert model_stock_ratio(gram).item() == 0
    assert model_stock_ratio(gram, as_mergekit=True).item() == pytest.approx(-2)
    opposite = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    assert model_stock_ratio(opposite, as_mergekit=True).item() == 0


def test_experts_that_did_not_move_give_the_base() -> None:
    assert model_stock_ratio(torch.zeros(2, 2, dtype=torch.float64)).item() == 0


# --- nearswap -----------------------------------------------------------------------------------


@given(seeds, st.floats(0, 2))
@settings(deadline=None, max_examples=40)
def test_nearswap_moves_by_at_most_t_and_arrives_when_near(seed: int, t: float) -> None:
    base, other = vectors(2, 30, seed)
    moved = nearswap(base, other, t)
    near = (other - base).abs() <= t
    assert torch.equal(moved[near], other[near])
    close((moved - base)[~near], t * (other - base)[~near].sign(), 1e-12)


def test_nearswap_of_equal_tensors_is_that_tensor() -> None:
    same = vectors(1, 5, 0)[0]
    assert torch.equal(nearswap(same, same, 0.0), same)
    assert torch.equal(nearswap(same, same, 1e-9, as_mergekit=True), same)
