"""Norms, duals, directions, orthogonalisation: laws, independent implementations, limits."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import polar as scipy_polar
from scipy.optimize import linprog
from torch.optim._muon import _zeropower_via_newtonschulz

from zeitgeist.errors import InputInvalid
from zeitgeist.optimizers.norms import NORMS, OF_VECTORS, dual_norm, duality_map, norm
from zeitgeist.optimizers.orthogonalise import (
    METHODS,
    TUNED,
    best_quintic,
    newton_schulz,
    orthogonalise,
    polar,
    polar_express_coefficients,
)

every_norm = pytest.mark.parametrize("kind", NORMS)
shapes = st.tuples(st.integers(1, 7), st.integers(1, 7))


def gaussian(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def orthogonal(n, seed):
    return torch.linalg.qr(gaussian(n, n, seed=seed))[0]


@every_norm
@settings(max_examples=15, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99))
def test_the_direction_reaches_the_dual_norm_and_has_norm_one(kind, shape, seed):
    g = gaussian(*shape, seed=seed)
    t, dual = duality_map(g, kind), dual_norm(g, kind)
    torch.testing.assert_close((g * t).sum(), dual, rtol=1e-11, atol=0)
    torch.testing.assert_close(norm(t, kind), torch.ones_like(dual), rtol=1e-11, atol=0)


@every_norm
@settings(max_examples=15, deadline=None)
@given(shape=shapes, seed=st.integers(0, 99))
def test_no_update_of_norm_one_does_better(kind, shape, seed):
    g, other = gaussian(*shape, seed=seed), gaussian(*shape, seed=seed + 1000)
    assert (g * other).sum() <= dual_norm(g, kind) * norm(other, kind) * (1 + 1e-12)


@every_norm
def test_the_dual_of_the_dual_is_the_norm(kind):
    # max over |G|* = 1 of <G, X> is |X|: reached by a subgradient of the norm at X.
    x = gaussian(4, 6, seed=3).requires_grad_()
    norm(x, kind).backward()
    g = x.grad
    torch.testing.assert_close(dual_norm(g, kind), torch.ones((), dtype=torch.float64))
    torch.testing.assert_close((g * x).sum(), norm(x.detach(), kind))


@every_norm
def test_the_direction_knows_no_length(kind):
    g = gaussian(5, 3)
    torch.testing.assert_close(duality_map(17.5 * g, kind), duality_map(g, kind))
    torch.testing.assert_close(duality_map(-g, kind), -duality_map(g, kind))


@pytest.mark.parametrize("kind", ["spectral", "rms_spectral", "frobenius", "rms"])
def test_rotations_pass_through(kind):
    g, q, p = gaussian(5, 3), orthogonal(5, 1), orthogonal(3, 2)
    torch.testing.assert_close(duality_map(q @ g @ p, kind), q @ duality_map(g, kind) @ p)


def test_signs_pass_through_permutations_and_flips_only():
    g, order = gaussian(5, 3), torch.tensor([3, 1, 4, 0, 2])
    flips = torch.tensor([1.0, -1, 1, -1, -1], dtype=torch.float64)
    moved = flips[:, None] * g[order]
    expected = flips[:, None] * duality_map(g, "max_entry")[order]
    assert torch.equal(duality_map(moved, "max_entry"), expected)
    q = orthogonal(5, 1)
    assert not torch.allclose(duality_map(q @ g, "max_entry"), q @ duality_map(g, "max_entry"))


def test_norms_by_hand():
    x = torch.tensor([[3.0, 0.0], [4.0, 0.0], [0.0, 2.0]], dtype=torch.float64)
    expected = {
        "frobenius": 29**0.5,
        "max_entry": 4,
        "spectral": 5,
        "rms_spectral": (2 / 3) ** 0.5 * 5,
        "column_rms": 5 / 3**0.5,
        "row_rms": 4 / 2**0.5,
        "row_l2": 4,
        "rms_inf": 2**0.5 * 4,
        "rms": (29 / 6) ** 0.5,
    }
    assert {k: float(norm(x, k)) for k in NORMS} == pytest.approx(expected)


def test_operator_norms_bound_what_a_layer_does():
    w, x = gaussian(4, 6), gaussian(6, 500, seed=1)
    rms = lambda v: v.square().mean(0).sqrt()  # noqa: E731
    assert (rms(w @ x) <= norm(w, "rms_spectral") * rms(x) + 1e-12).all()
    assert ((w @ x).abs().amax(0) <= norm(w, "rms_inf") * rms(x) + 1e-12).all()
    assert (rms(w @ x) <= norm(w, "column_rms") * x.abs().sum(0) + 1e-12).all()
    assert ((w @ x).abs().amax(0) <= norm(w, "max_entry") * x.abs().sum(0) + 1e-12).all()


def test_an_embedding_stored_by_rows_is_the_transpose():
    g = gaussian(7, 4)
    torch.testing.assert_close(duality_map(g, "row_rms"), duality_map(g.T, "column_rms").T)
    torch.testing.assert_close(dual_norm(g, "row_rms"), dual_norm(g.T, "column_rms"))


@every_norm
def test_zeros_have_no_direction_and_stay_zero(kind):
    zero = torch.zeros(3, 4)
    assert torch.equal(duality_map(zero, kind), zero)
    assert dual_norm(zero, kind) == norm(zero, kind) == 0
    for method in METHODS:
        assert torch.equal(orthogonalise(zero, method), zero)
    g = torch.zeros(3, 4, dtype=torch.float64)
    g[1] = 2.0
    t = duality_map(g, kind)
    assert torch.isfinite(t).all() and torch.equal(t[0], torch.zeros(4, dtype=torch.float64))


@every_norm
def test_what_is_not_finite_is_refused(kind):
    for bad in (float("nan"), float("inf")):
        g = torch.tensor([[1.0, bad], [0.0, 1.0]])
        for function in (norm, dual_norm, duality_map):
            with pytest.raises(InputInvalid, match="1 of 4 values"):
                function(g, kind)


def test_vectors_have_norms_of_vectors_only():
    g = gaussian(6)
    assert float(norm(g, "rms")) == pytest.approx(float(g.square().mean().sqrt()))
    for kind in set(NORMS) - set(OF_VECTORS):
        with pytest.raises(InputInvalid, match=r"shape \(6,\)"):
            duality_map(g, kind)
    assert all(duality_map(g, kind).shape == (6,) for kind in OF_VECTORS)
    assert duality_map(torch.tensor(-3.0), "rms") == -1


def test_a_norm_nobody_knows_is_told_with_the_nearest():
    with pytest.raises(InputInvalid, match=r"'spectrl'; did you mean 'spectral'"):
        norm(gaussian(2, 2), "spectrl")
    with pytest.raises(InputInvalid, match="no values"):
        norm(torch.zeros(0, 3), "spectral")
    with pytest.raises(InputInvalid, match="orthogonalise is 'fats'"):
        orthogonalise(gaussian(2, 2), "fats")


@every_norm
def test_a_batch_is_its_matrices(kind):
    g = gaussian(2, 3, 4, 5)
    for function in (norm, dual_norm, duality_map):
        whole = function(g, kind)
        torch.testing.assert_close(whole[1, 2], function(g[1, 2], kind))


@every_norm
def test_half_precision_is_computed_in_float32(kind):
    g = gaussian(5, 4).bfloat16()
    assert duality_map(g, kind).dtype == torch.bfloat16
    assert dual_norm(g, kind).dtype == torch.float32
    torch.testing.assert_close(dual_norm(g, kind), dual_norm(g.float(), kind))


# Orthogonalisation


@pytest.mark.parametrize("shape", [(5, 5), (9, 4), (4, 9), (1, 6), (6, 1)])
def test_exact_is_scipys_polar_factor(shape):
    g = gaussian(*shape, seed=7)
    np.testing.assert_allclose(orthogonalise(g).numpy(), scipy_polar(g.numpy())[0], atol=1e-12)
    torch.testing.assert_close(orthogonalise(g, "quintic"), polar(g), atol=1e-10, rtol=0)


def test_low_rank_keeps_its_rank():
    g = gaussian(8, 3) @ gaussian(3, 6, seed=1)
    s = torch.linalg.svdvals(orthogonalise(g))
    torch.testing.assert_close(s, torch.tensor([1.0, 1, 1, 0, 0, 0]).double(), atol=1e-12, rtol=0)


@pytest.mark.parametrize("shape", [(32, 16), (16, 33), (64, 64)])
def test_fast_is_torchs_muon(shape):
    g = gaussian(*shape, seed=1).float()
    theirs = _zeropower_via_newtonschulz(g, TUNED, 5, 1e-7)
    assert torch.equal(orthogonalise(g, "fast"), theirs.float())


def test_fast_ends_where_the_card_says():
    g = gaussian(32, 16, seed=0).float()
    o = orthogonalise(g, "fast", dtype=torch.float32)
    s = torch.linalg.svdvals(o)
    assert s.min() > 0.65 and s.max() < 1.2
    cosine = torch.nn.functional.cosine_similarity(o.flatten(), polar(g).flatten(), dim=0)
    assert cosine > 0.97


def test_batches_equal_one_by_one():
    g = gaussian(3, 10, 6).float()
    for method in METHODS:
        one = torch.stack([orthogonalise(x, method, dtype=torch.float32) for x in g])
        together = orthogonalise(g, method, dtype=torch.float32)
        torch.testing.assert_close(together, one, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("low, high", [(1e-3, 1.0), (0.1, 1.9), (0.6, 1.4), (0.99, 1.01)])
def test_best_quintic_is_what_linear_programming_finds(low, high):
    (a, b, c), error = best_quintic(low, high)
    x = np.linspace(low, high, 1500)
    powers = np.stack([x, x**3, x**5], axis=1)
    ones = np.ones((len(x), 1))
    found = linprog(
        [0, 0, 0, 1],
        A_ub=np.block([[powers, -ones], [-powers, -ones]]),
        b_ub=np.concatenate([np.ones(len(x)), -np.ones(len(x))]),
        bounds=[(None, None)] * 3 + [(0, None)],
    )
    assert error == pytest.approx(found.fun, rel=1e-3, abs=2e-8)
    assert np.abs(1 - powers @ [a, b, c]).max() <= error * (1 + 1e-9) + 1e-12


def test_polar_express_keeps_its_promise():
    steps = polar_express_coefficients(1e-3, 6, 1.0)
    x = torch.linspace(1e-3, 1, 2001, dtype=torch.float64)
    for a, b, c in steps:
        x = a * x + b * x**3 + c * x**5
    assert (x - 1).abs().max() < 1e-2
    tuned = torch.linspace(1e-3, 1, 2001, dtype=torch.float64)
    a, b, c = TUNED
    for _ in range(6):
        tuned = a * tuned + b * tuned**3 + c * tuned**5
    assert (x - 1).abs().max() < (tuned - 1).abs().max() / 10
    with pytest.raises(InputInvalid, match="lower is 2"):
        polar_express_coefficients(2.0)


def test_a_short_interval_is_taylors():
    (a, b, c), error = best_quintic(0.99999, 1.00001)
    assert (a, b, c) == pytest.approx((1.875, -1.25, 0.375), rel=1e-4)
    assert error < 1e-12


def test_polar_express_comes_nearer_than_fast():
    g = gaussian(40, 24, seed=2).float()
    far = {
        method: (orthogonalise(g, method, dtype=torch.float32) - polar(g)).norm()
        for method in METHODS
    }
    assert far["polar_express"] < far["fast"] / 2 and far["quintic"] < 1e-3


def test_newton_schulz_of_nothing_is_normalising():
    g = gaussian(3, 4)
    torch.testing.assert_close(newton_schulz(g, [], dtype=torch.float64), g / g.norm())
