"""A-GEM and MEGA against their definitions."""

import math

import pytest
import torch

from zeitgeist.continual.closed_forms import agem, mega_one, mega_two


def wide(*values):
    return [torch.tensor(value, dtype=torch.float64) for value in values]


def test_agem_is_the_projection():
    g, r = torch.randn(2, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for sign in (1.0, -1.0):
        mix = agem(r @ r, sign * (g @ r))
        z = sign * g + mix.b * r
        assert float(z @ r) >= -1e-12
        assert bool(mix.b == 0) == bool(sign * (g @ r) >= 0)


def test_no_reference_changes_nothing():
    (none,) = wide(0.0)
    assert tuple(map(float, agem(none, none))) == (1.0, 0.0)
    assert tuple(map(float, mega_two(*wide(1.0, 0.0, 0.0, 1.0, 1.0)))) == (1.0, 0.0)


def test_mega_one_weighs_by_losses_and_forgets_a_task_without_loss():
    assert tuple(map(float, mega_one(*wide(2.0, 3.0)))) == (1.0, 1.5)
    assert tuple(map(float, mega_one(*wide(0.0, 3.0)))) == (0.0, 1.0)


@pytest.mark.parametrize("losses", [(1.0, 1.0), (0.3, 2.0), (2.0, 0.3), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize("seed", range(4))
def test_mega_two_is_the_best_angle_of_a_grid(losses, seed):
    generator = torch.Generator().manual_seed(seed)
    g, r = torch.randn(2, 5, generator=generator, dtype=torch.float64)
    r = 3 * r - seed * g / 2
    phi = math.acos(float(g @ r / (g.norm() * r.norm())))
    grid = torch.linspace(0, math.pi / 2, 400_001, dtype=torch.float64)
    best = float(grid[(losses[0] * grid.cos() + losses[1] * (phi - grid).cos()).argmax()])
    mix = mega_two(g @ g, r @ r, g @ r, *wide(*losses))
    z = mix.a * g + mix.b * r
    assert float(z.norm()) == pytest.approx(float(g.norm()), rel=1e-9)
    turned = math.acos(min(1.0, float(z @ g / (z.norm() * g.norm()))))
    assert turned == pytest.approx(best, abs=1e-5)


def test_mega_two_is_batched():
    one = torch.ones(4, dtype=torch.float64)
    mix = mega_two(one, 4 * one, 0 * one, one, one)
    assert mix.a.tolist() == pytest.approx([math.sqrt(0.5)] * 4)
    assert mix.b.tolist() == pytest.approx([math.sqrt(0.5) / 2] * 4)
