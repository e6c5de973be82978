"""Directions by block: laws of grains, of data groups, of strength; brute force over blocks."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import nnls

from zeitgeist.continual.grains import partition
from zeitgeist.continual.restriction import restrict, restrict_pieces


def drawn(seed, k, n, against=0.8):
    generator = torch.Generator().manual_seed(seed)
    memory = torch.randn(k, n, generator=generator, dtype=torch.float64)
    gradient = torch.randn(n, generator=generator, dtype=torch.float64) - against * memory.sum(0)
    return gradient, memory


def test_no_violation_leaves_every_bit():
    gradient, memory = drawn(0, 3, 20)
    gradient = memory.sum(dim=0) * 10
    found = restrict(gradient, memory)
    assert found.direction[0] is gradient
    assert float(found.cosine) == pytest.approx(1.0) and float(found.active) == 0.0
    assert float(found.residual) == 0.0


@pytest.mark.parametrize(
    ("dtype", "length", "share"),
    [(torch.float32, 1e-42, 1e-2), (torch.float16, 1e-7, 0.3), (torch.bfloat16, 1e-38, 2e-2)],
)
def test_memory_gradients_of_next_to_no_length_restrict_by_their_direction(dtype, length, share):
    gradient, memory = drawn(2, 3, 40)
    scales = torch.tensor([[1.0], [length], [1.0]], dtype=torch.float64)
    g, m = gradient.to(dtype), (memory * scales).to(dtype)
    found = restrict(g, m).direction[0]
    wanted = restrict(g.double(), m.double()).direction[0]
    assert found.dtype == dtype and bool(torch.isfinite(found).all())
    assert float((found.double() - wanted).norm() / wanted.norm()) < 2 * torch.finfo(dtype).eps
    undisturbed = restrict(gradient, memory).direction[0]
    assert float((found.double() - undisturbed).norm() / undisturbed.norm()) < share


def test_one_block_is_gem_and_every_entry_a_block_is_agreement_of_signs():
    gradient, memory = drawn(1, 4, 30)
    whole = restrict(gradient, memory).direction[0]
    one = restrict(gradient, memory, blocks=torch.zeros(30).long()).direction[0]
    assert torch.allclose(one, whole, atol=1e-13)
    each = restrict(gradient, memory, blocks=torch.arange(30)).direction[0]
    disagree = (gradient * memory < 0).any(dim=0)
    assert torch.allclose(each, torch.where(disagree, 0.0, gradient), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(
    st.integers(0, 1000),
    st.integers(1, 5),
    st.lists(st.integers(0, 4), min_size=1, max_size=24),
    st.sampled_from([0.0, 0.3]),
)
def test_any_block_structure_is_solved_block_by_block(seed, k, ids, strength):
    gradient, memory = drawn(seed, k, len(ids))
    blocks = torch.tensor(ids)
    found = restrict(gradient, memory, strength, blocks=blocks)
    for b in set(ids):
        rows, own = memory[:, blocks == b], gradient[blocks == b]
        moved = own + strength * rows.sum(dim=0)
        v, _ = nnls(rows.T.numpy(), -moved.numpy())
        wanted = moved + rows.T @ torch.from_numpy(v)
        assert torch.allclose(found.direction[0][blocks == b], wanted, atol=1e-8)
    assert float(found.residual) < 1e-5


def test_a_finer_grain_moves_further():
    for seed in range(5):
        gradient, memory = drawn(seed, 4, 60)
        away = [
            float((restrict(gradient, memory, blocks=ids).direction[0] - gradient).norm())
            for ids in (None, torch.arange(60) // 20, torch.arange(60) // 5, torch.arange(60))
        ]
        assert away == sorted(away)


def test_groups_whose_means_are_the_tasks_move_further():
    gradient, memory = drawn(2, 12, 60)
    tasks = memory.view(3, 4, 60).mean(dim=1)
    away = [float((restrict(gradient, m).direction[0] - gradient).norm()) for m in (tasks, memory)]
    assert away[0] <= away[1]


def test_leading_dimensions_and_strengths_of_their_own():
    both = [drawn(seed, 3, 12) for seed in range(4)]
    gradient, memory = (torch.stack(each) for each in zip(*both, strict=True))
    strengths = torch.tensor([0.0, 0.1, 0.5, 2.0], dtype=torch.float64)
    ids = torch.arange(12) % 3
    found = restrict(gradient, memory, strengths, blocks=ids)
    assert found.residual.shape == (4,)
    for i, (g, m) in enumerate(both):
        alone = restrict(g, m, float(strengths[i]), blocks=ids)
        assert torch.allclose(found.direction[0][i], alone.direction[0], atol=1e-12)
        assert float(found.cosine[i]) == pytest.approx(float(alone.cosine))


def test_published_strength_waits_for_a_violation():
    gradient, memory = drawn(3, 2, 10)
    gradient = memory.sum(dim=0) * 10
    assert torch.equal(restrict(gradient, memory, 0.5, always=False).direction[0], gradient)
    assert not torch.equal(restrict(gradient, memory, 0.5).direction[0], gradient)


def test_unfinished_sweeps_say_how_much_is_violated():
    gradient, memory = drawn(4, 8, 12)
    few = restrict(gradient, memory, solver="sweeps", sweeps=1)
    exact = restrict(gradient, memory)
    assert bool(exact.converged) and not bool(few.converged)
    assert float(few.residual) > 1e-4 > 1e-9 > float(exact.residual)


@pytest.mark.parametrize("grain", ["model", "layer", "tensor", "neuron"])
def test_pieces_are_the_flat_problem(grain):
    parts = torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Conv1d(4, 2, 3)
    net = torch.nn.Sequential(*parts)
    named = dict(net.named_parameters())
    split = partition(named, grain)
    ids = torch.cat(
        [p.ids.flatten().repeat_interleave(v.numel() // p.ids.numel())
         for p, v in zip(split.pieces, named.values(), strict=True)]
    )  # fmt: skip
    gradient, memory = drawn(6, 3, len(ids))
    sizes = [p.numel() for p in named.values()]
    parts = [g.view(p.shape) for g, p in zip(gradient.split(sizes), named.values(), strict=True)]
    rows = [
        m.reshape(3, *p.shape) for m, p in zip(memory.split(sizes, 1), named.values(), strict=True)
    ]
    found = restrict_pieces(parts, rows, split)
    wanted = restrict(gradient, memory, blocks=ids)
    flat = torch.cat([z.flatten() for z in found.direction])
    assert torch.allclose(flat, wanted.direction[0], atol=1e-12)
    assert [z.shape for z in found.direction] == [p.shape for p in named.values()]


def test_half_precision_keeps_its_dtype():
    gradient, memory = drawn(7, 2, 50)
    found = restrict(gradient.bfloat16(), memory.bfloat16())
    assert found.direction[0].dtype == torch.bfloat16


def test_no_memories_restrict_nothing():
    gradient, _ = drawn(8, 1, 5)
    found = restrict(gradient, torch.zeros(0, 5, dtype=torch.float64), 0.5)
    assert found.direction[0] is gradient and float(found.residual) == 0.0
