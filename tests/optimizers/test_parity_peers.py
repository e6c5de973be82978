"""Presets against other people's optimisers, where these are installed; they are no dependency."""

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor, nn

from zeitgeist.optimizers.presets import preset

SHAPES = ((12, 5), (5, 12), (8, 8))
STEPS = 6
Made = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


def ends(make: Made, dtype: torch.dtype, shapes: Sequence[tuple[int, ...]] = SHAPES) -> Tensor:
    """All weights after a few steps down a bowl, from the same start."""
    draw = torch.Generator().manual_seed(0)
    start = [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes]
    goal = [torch.randn(*shape, generator=draw, dtype=torch.float64) for shape in shapes]
    weights = [nn.Parameter(each.to(dtype)) for each in start]
    optimizer = make(weights)
    for _ in range(STEPS):
        for w, to in zip(weights, goal, strict=True):
            w.grad = (w.detach() - to.to(dtype)) * (1 + to.to(dtype).abs())
        optimizer.step()
    return torch.cat([w.detach().double().flatten() for w in weights])


@pytest.mark.parametrize("scale", ["reference", "match_adamw"])
@pytest.mark.parametrize("nesterov", [True, False])
def test_muon_is_pytorch_optimizers(scale, nesterov):
    peer = pytest.importorskip("pytorch_optimizer", reason="a peer of this test")
    told = {"lr": 0.02, "momentum": 0.95, "nesterov": nesterov, "weight_decay": 0.1}
    ours = ends(lambda ps: preset("muon", ps, scale=scale, **told), torch.float32)
    theirs = ends(
        lambda ps: peer.Muon(
            [{"params": ps, "use_muon": True}], use_adjusted_lr=scale == "match_adamw", **told
        ),
        torch.float32,
    )
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_what_muon_leaves_to_adam_is_pytorch_optimizers():
    peer = pytest.importorskip("pytorch_optimizer", reason="a peer of this test")
    shapes = ((7,), (1,))
    ours = ends(lambda ps: preset("muon", ps), torch.float64, shapes)
    theirs = ends(lambda ps: peer.Muon([{"params": ps, "use_muon": False}]), torch.float64, shapes)
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_shampoo_is_pytorch_optimizers():
    peer = pytest.importorskip("pytorch_optimizer", reason="a peer of this test")
    # Its matrices start at eps I, to which sums are added; ours get eps I when a root is taken.
    ours = ends(lambda ps: preset("shampoo", ps, lr=0.1, eps=1e-4), torch.float64)
    theirs = ends(lambda ps: peer.Shampoo(ps, lr=0.1, matrix_eps=1e-4), torch.float64)
    torch.testing.assert_close(ours, theirs, atol=1e-9, rtol=0)


@pytest.mark.parametrize("decay", [0.0, 0.1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_prodigy_is_prodigyopts(decay, dtype):
    peer = pytest.importorskip("prodigyopt", reason="a peer of this test")
    # Its denominator has eps times the d after the step, the paper's and ours the d before.
    told = {"weight_decay": decay, "eps": 1e-30}
    ours = ends(lambda ps: preset("prodigy", ps, **told), dtype)
    theirs = ends(lambda ps: peer.Prodigy(ps, **told), dtype)
    close = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(ours, theirs, atol=close, rtol=close)
