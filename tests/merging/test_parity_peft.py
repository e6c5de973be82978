"""Task-vector functions against `peft.utils.merge_utils`, which merges live LoRA adapters.

PEFT trims each tensor to exactly int(density N) entries, elects signs without weights and divides
the weighted sum by the *number* of experts that agree, not by their weights. With weights of 1 that
is what the TIES paper says; with others the sum is compared before the division.
"""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from zeitgeist.merging.randomness import uniforms
from zeitgeist.merging.sparsify import drop_at_random
from zeitgeist.merging.task_vectors import (
    disjoint_mean,
    elect_sign,
    per_expert,
    trim_by_magnitude,
    weighted_sum,
)
from zeitgeist.merging.tensors import merge_tensors

peft = pytest.importorskip("peft.utils.merge_utils", reason="peft is a test extra")

SHAPES = [(40,), (16, 12), (3, 4, 5)]
DENSITIES = [0.1, 0.5, 0.8]
WEIGHTS = torch.tensor([0.7, 0.2, 1.4], dtype=torch.float64)
ONES = torch.ones(3, dtype=torch.float64)


def task_vectors(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((3, *shape), generator=generator, dtype=torch.float64)


def close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-13, atol=1e-13)


def counted(deltas: Tensor, weights: Tensor) -> Tensor:
    """Our election and sum, divided as PEFT divides."""
    signs = elect_sign(deltas, weights)
    total = disjoint_mean(deltas, weights, signs, normalize=False)
    agreeing = (deltas.sign() == signs).sum(0)
    return total / agreeing.clamp(min=1)


@pytest.fixture
def draws(monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """Uniform numbers for three experts; PEFT's Bernoulli masks are made from the same ones."""
    rows = [torch.from_numpy(uniforms(1, i, "w", 0, 192)).double() * 2.0**-32 for i in range(3)]
    unused: Iterator[Tensor] = iter(rows)

    def bernoulli(probabilities: Tensor) -> Tensor:
        row = next(unused)[: probabilities.numel()].reshape(probabilities.shape)
        return (row < probabilities).to(probabilities.dtype)

    monkeypatch.setattr(torch, "bernoulli", bernoulli)
    return torch.stack(rows)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
def test_ties(shape: tuple[int, ...], density: float) -> None:
    deltas = task_vectors(shape)
    zero = torch.zeros(shape, dtype=torch.float64)
    ours = merge_tensors("ties", list(deltas), base=zero, density=density, zero_sum="positive")
    close(ours, peft.ties(list(deltas), ONES, density))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
def test_weighted_ties_up_to_its_division_by_the_count(
    shape: tuple[int, ...], density: float
) -> None:
    deltas = task_vectors(shape)
    trimmed = trim_by_magnitude(deltas, [density] * 3)
    close(counted(trimmed, WEIGHTS), peft.ties(list(deltas), WEIGHTS, density))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_task_arithmetic(shape: tuple[int, ...]) -> None:
    deltas = task_vectors(shape)
    close(weighted_sum(deltas, WEIGHTS), peft.task_arithmetic(list(deltas), WEIGHTS))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
def test_magnitude_prune(shape: tuple[int, ...], density: float) -> None:
    deltas = task_vectors(shape)
    ours = weighted_sum(trim_by_magnitude(deltas, [density] * 3), WEIGHTS)
    close(ours, peft.magnitude_prune(list(deltas), WEIGHTS, density))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
def test_dare_linear_under_the_same_masks(
    shape: tuple[int, ...], density: float, draws: Tensor
) -> None:
    deltas = task_vectors(shape)
    kept = _dropped(deltas, density, draws)
    close(weighted_sum(kept, WEIGHTS), peft.dare_linear(list(deltas), WEIGHTS, density))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("weights", [ONES, WEIGHTS], ids=["equal", "weighted"])
def test_dare_ties_under_the_same_masks(
    shape: tuple[int, ...], density: float, weights: Tensor, draws: Tensor
) -> None:
    deltas = task_vectors(shape)
    kept = _dropped(deltas, density, draws)
    close(counted(kept, weights), peft.dare_ties(list(deltas), weights, density))


def _dropped(deltas: Tensor, density: float, draws: Tensor) -> Tensor:
    chances = per_expert(torch.full((3,), density, dtype=torch.float64), deltas)
    mine = draws[:, : deltas[0].numel()].reshape(deltas.shape)
    return drop_at_random(deltas, chances, mine)


def test_equal_weights_make_the_count_and_the_sum_of_weights_one_thing() -> None:
    deltas = task_vectors((50,))
    close(counted(deltas, ONES), disjoint_mean(deltas, ONES, elect_sign(deltas, ONES)))
    halves = ONES / 2
    ours = disjoint_mean(deltas, halves, elect_sign(deltas, halves))
    close(counted(deltas, halves), ours / 2)
