"""The dual: closed forms, brute force over active sets, scipy, and no scale anywhere."""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from zeitgeist.continual.duals import solve_dual
from zeitgeist.errors import InputInvalid


def drawn(seed, k, n, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    draw = torch.randn(k + 1, n, generator=generator, dtype=torch.float64)
    # Alike, as gradients of one network are, and against g, so that many constraints bind.
    memory = scale * (draw[:-1] + 0.7 * draw[:1])
    gradient = scale * (draw[-1] - 0.8 * memory.mean(dim=0) / scale)
    return gradient, memory


def inner(gradient, memory):
    return memory @ memory.mT, memory @ gradient


def brute_force(gradient, memory):
    """The feasible direction nearest to g, of all that some set of active constraints gives."""
    best, nearest = None, np.inf
    for chosen in product([False, True], repeat=len(memory)):
        rows = memory[list(chosen)]
        z = gradient
        if len(rows):
            z = gradient - rows.T @ torch.linalg.pinv(rows @ rows.T, hermitian=True) @ (
                rows @ gradient
            )
        if bool((memory @ z >= -1e-9 * memory.norm(dim=1) * (gradient.norm() + 1e-300)).all()):
            away = float((z - gradient).norm())
            if away < nearest:
                best, nearest = z, away
    return best


@settings(max_examples=60, deadline=None)
@given(
    st.integers(0, 10_000),
    st.integers(1, 6),
    st.integers(1, 9),
    st.sampled_from([1e-12, 1e-3, 1.0, 1e6]),
)
def test_the_exact_solver_finds_what_brute_force_finds(seed, k, n, scale):
    gradient, memory = drawn(seed, k, n, scale)
    v = solve_dual(*inner(gradient, memory)).v
    z = gradient + memory.T @ v
    assert bool((v >= 0).all())
    assert torch.allclose(z, brute_force(gradient, memory), atol=1e-7 * scale, rtol=0)


@pytest.mark.parametrize(("k", "n"), [(1, 3), (5, 40), (20, 11), (63, 300), (80, 30)])
def test_it_is_the_residual_of_nonnegative_least_squares(k, n):
    for seed in range(5):
        gradient, memory = drawn(seed, k, n)
        found = solve_dual(*inner(gradient, memory))
        assert bool(found.converged)
        wanted, distance = nnls(memory.T.numpy(), -gradient.numpy())
        z = gradient + memory.T @ found.v
        assert float(z.norm()) == pytest.approx(distance, rel=1e-9, abs=1e-9)
        if k < n:  # else several multipliers give the same direction
            assert found.v.numpy() == pytest.approx(wanted, rel=1e-7, abs=1e-9)


def test_the_conditions_of_karush_kuhn_and_tucker_hold():
    gradient, memory = drawn(3, 12, 100)
    v = solve_dual(*inner(gradient, memory)).v
    slope = memory @ (gradient + memory.T @ v)
    assert bool((v >= 0).all()) and bool((v > 0).any())
    assert float(slope.min()) > -1e-9 * float(gradient.norm() * memory.norm())
    assert float((v * slope).abs().max()) < 1e-9


def test_one_constraint_is_agem():
    gradient, memory = drawn(0, 1, 20)
    wanted = max(0.0, -float(memory[0] @ gradient / (memory[0] @ memory[0])))
    assert float(solve_dual(*inner(gradient, memory)).v) == pytest.approx(wanted, rel=1e-12)


def test_orthogonal_memories_are_projected_out_one_by_one():
    memory = torch.eye(4, 6, dtype=torch.float64) * torch.tensor([[1.0], [2.0], [3.0], [4.0]])
    gradient = torch.tensor([-1.0, 2.0, -3.0, 4.0, -5.0, 6.0], dtype=torch.float64)
    z = gradient + memory.T @ solve_dual(*inner(gradient, memory)).v
    assert z.tolist() == pytest.approx([0.0, 2.0, 0.0, 4.0, -5.0, 6.0], abs=1e-14)


@pytest.mark.parametrize("scale", [1e-150, 1e-8, 1e-2, 1.0, 1e8])
def test_no_ridge_lets_small_gradients_violate(scale):
    gradient, memory = drawn(1, 6, 50)
    v = solve_dual(scale**2 * (memory @ memory.mT), scale**2 * (memory @ gradient)).v
    assert torch.allclose(v, solve_dual(*inner(gradient, memory)).v, rtol=1e-9)


def test_a_ridge_would():
    """The published .001: at gradients of length .01 the constraint is broken, as the card says."""
    gradient, memory = drawn(1, 1, 50)
    small = 0.01 / float(gradient.norm())
    gradient, memory = gradient * small, memory * small
    gram, cross = inner(gradient, memory)
    ridged = gradient + memory.T @ solve_dual(gram + 1e-3, cross).v
    ours = gradient + memory.T @ solve_dual(gram, cross).v

    def cosine(z):
        return float(memory[0] @ z / (memory[0].norm() * z.norm()))

    assert cosine(ours) > -1e-12
    assert cosine(ridged) < -0.3


def test_doubled_and_empty_memories_are_no_special_case():
    gradient, memory = drawn(2, 4, 30)
    direction = gradient + memory.T @ solve_dual(*inner(gradient, memory)).v
    doubled = torch.cat([memory, memory[:2], 3 * memory[1:2], torch.zeros(2, 30)])
    found = solve_dual(*inner(gradient, doubled))
    assert bool(found.converged)
    assert torch.allclose(gradient + doubled.T @ found.v, direction, atol=1e-10)
    assert found.v[-2:].tolist() == [0.0, 0.0]


def test_strength_is_replay_and_then_projection():
    for strength in (0.1, 0.5, 2.0):
        gradient, memory = drawn(5, 7, 60)
        gram, cross = inner(gradient, memory)
        strong = gradient + memory.T @ solve_dual(gram, cross, strength).v
        moved = gradient + strength * memory.sum(dim=0)
        wanted = moved + memory.T @ solve_dual(*inner(moved, memory)).v
        assert torch.allclose(strong, wanted, atol=1e-12)
        assert bool((solve_dual(gram, cross, strength).v >= strength).all())


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 5), st.booleans())
def test_blocks_together_are_blocks_one_by_one(seed, blocks, k, strong):
    pairs = [inner(*drawn(seed + b, k, 3 + b, 10.0 ** (b - 3))) for b in range(blocks)]
    strength = torch.arange(blocks, dtype=torch.float64) / 3 if strong else 0.0
    gram, cross = (torch.stack(each) for each in zip(*pairs, strict=True))
    together = solve_dual(gram, cross, strength)
    for b, pair in enumerate(pairs):
        alone = solve_dual(*pair, float(strength[b]) if strong else 0.0)
        assert torch.allclose(together.v[b], alone.v, rtol=1e-8, atol=1e-12)


def test_sweeps_come_nearer_and_say_when_they_have_arrived():
    gradient, memory = drawn(4, 10, 60)
    gram, cross = inner(gradient, memory)
    exact = solve_dual(gram, cross)
    away = []
    for sweeps in (1, 5, 30):
        found = solve_dual(gram, cross, solver="sweeps", sweeps=sweeps)
        away.append(float((found.v - exact.v).norm()))
    assert away == sorted(away, reverse=True)
    assert not bool(solve_dual(gram, cross, solver="sweeps", sweeps=1).converged)
    assert bool(solve_dual(gram, cross, solver="sweeps", sweeps=2000).converged)


def test_no_constraints_are_no_multipliers():
    found = solve_dual(torch.zeros(3, 0, 0), torch.zeros(3, 0))
    assert found.v.shape == (3, 0) and bool(found.converged.all())


def test_what_is_no_number_is_refused():
    good = torch.eye(2)
    with pytest.raises(InputInvalid, match="not numbers"):
        solve_dual(good, torch.tensor([1.0, float("nan")]))
    with pytest.raises(InputInvalid, match=r"strength is -1\.0"):
        solve_dual(good, torch.ones(2), -1.0)
