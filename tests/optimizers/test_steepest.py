"""The optimiser's mathematics: recursions, torch's optimisers, roles of layers."""

import warnings

import pytest
import torch
from tests.optimizers.networks import PLAIN, Net, gaussian, parameter, run
from torch import nn

from zeitgeist.errors import InputInvalid
from zeitgeist.optimizers.averages import inverse_root
from zeitgeist.optimizers.norms import NORMS, dual_norm, duality_map, norm
from zeitgeist.optimizers.presets import PRESETS, preset
from zeitgeist.optimizers.steepest import Steepest

# Against the rule


@pytest.mark.parametrize("kind", NORMS)
def test_one_step_is_the_direction(kind):
    p = parameter(4, 6)
    before, g = p.detach().clone(), p.grad.clone()
    Steepest([p], kind, lr=0.3, **PLAIN).step()
    torch.testing.assert_close(p.detach(), before - 0.3 * duality_map(g, kind))
    assert torch.equal(p.grad, g)


def test_the_rule_itself_attains_its_optimum_and_nothing_nearby_is_better():
    kinds, lam = ("spectral", "max_entry", "rms_spectral", "column_rms", "row_l2"), 2.5
    weights = (1.0, 2.0, 0.5, 1.0, 3.0)
    ps = [parameter(4, 3, seed=i) for i in range(5)]
    starts = [p.detach().clone() for p in ps]
    groups = [
        {"params": [p], "norm": k, "weight": s} for p, k, s in zip(ps, kinds, weights, strict=True)
    ]
    Steepest(groups, lr=1 / lam, normalised=False, **PLAIN).step()
    steps = [p.detach() - start for p, start in zip(ps, starts, strict=True)]

    def value(updates):
        longest = max(s * norm(d, k) for d, k, s in zip(updates, kinds, weights, strict=True))
        return sum((p.grad * d).sum() for p, d in zip(ps, updates, strict=True)) + (
            lam / 2 * longest**2
        )

    duals = [dual_norm(p.grad, k) / s for p, k, s in zip(ps, kinds, weights, strict=True)]
    best = -(sum(duals) ** 2) / (2 * lam)
    torch.testing.assert_close(value(steps), best, rtol=1e-12, atol=0)
    for seed in range(200):
        size = 10.0 ** -(seed % 5)
        near = [d + size * gaussian(4, 3, seed=1000 + 5 * seed + i) for i, d in enumerate(steps)]
        assert value(near) >= best


def test_momentum_and_nesterov_by_hand():
    for nesterov in (False, True):
        p = parameter(3, 4)
        w, b = p.detach().clone(), torch.zeros(3, 4, dtype=torch.float64)
        told = {"momentum": 0.8, "nesterov": nesterov, "weight_decay": 0.1}
        optimizer = Steepest([p], "frobenius", lr=0.2, **told)
        for i in range(4):
            g = gaussian(3, 4, seed=i)
            p.grad = g.clone()
            optimizer.step()
            b = 0.8 * b + 0.2 * g
            n = 0.2 * g + 0.8 * b if nesterov else b
            w = (1 - 0.2 * 0.1) * w - 0.2 * n / n.norm()
            assert torch.equal(p.grad, g)
        torch.testing.assert_close(p.detach(), w)


# Presets


def test_adam_without_averages_is_torchs_and_signs_exactly():
    ours, theirs = parameter(5, 4), parameter(5, 4)
    start, g = ours.detach().clone(), ours.grad.clone()
    preset("adam", [ours], averages=False, lr=0.1).step()
    torch.optim.Adam([theirs], lr=0.1, betas=(0.0, 0.0), eps=0.0).step()
    assert torch.equal(ours, theirs)
    torch.testing.assert_close(ours.detach(), start - 0.1 * g.sign(), atol=1e-15, rtol=0)


def test_adam_is_torchs_and_its_first_step_is_the_sign():
    ours, theirs = parameter(5), parameter(5)
    pair = (
        preset("adam", [ours], lr=0.01, weight_decay=0.2),
        torch.optim.AdamW([theirs], lr=0.01, weight_decay=0.2),
    )
    start = ours.detach().clone()
    for i in range(30):
        for p, optimizer in zip((ours, theirs), pair, strict=True):
            p.grad = gaussian(5, seed=i)
            optimizer.step()
        if i == 0:
            moved = ours.detach() - (1 - 0.002) * start
            torch.testing.assert_close(moved, -0.01 * ours.grad.sign(), atol=1e-8, rtol=0)
    torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=0)


@pytest.mark.parametrize("shape", [(12, 5), (5, 12), (8, 8)])
@pytest.mark.parametrize("scale", ["reference", "match_adamw"])
def test_muon_is_torchs(shape, scale):
    ours, theirs = (parameter(*shape, dtype=torch.float32) for _ in range(2))
    told = {"lr": 0.02, "weight_decay": 0.1, "momentum": 0.95, "nesterov": True}
    names = {"reference": "original", "match_adamw": "match_rms_adamw"}
    pair = (
        preset("muon", [ours], scale=scale, **told),
        torch.optim.Muon([theirs], adjust_lr_fn=names[scale], **told),
    )
    for i in range(6):
        for p, optimizer in zip((ours, theirs), pair, strict=True):
            p.grad = gaussian(*shape, seed=i, dtype=torch.float32)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_muon_without_momentum_is_torchs_without_momentum():
    ours, theirs = (parameter(32, 16, dtype=torch.float32) for _ in range(2))
    preset("muon", [ours], averages=False, lr=1.0).step()
    torch.optim.Muon([theirs], lr=1.0, weight_decay=0.0, momentum=0.0, nesterov=False).step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def shampoo_by_hand(gradients, betas, eps):
    power = lambda a: torch.linalg.matrix_power(  # noqa: E731
        torch.linalg.inv(inverse_root(a, 4, eps)), -1
    )
    m, n = gradients[0].shape
    left, right, w = (torch.zeros(k, k, dtype=torch.float64) for k in (m, n, 1))
    w = torch.zeros(m, n, dtype=torch.float64)
    for g in gradients:
        new = 1 if betas[1] == 1 else 1 - betas[1]
        left, right = betas[1] * left + new * g @ g.T, betas[1] * right + new * g.T @ g
        w = w - power(left) @ g @ power(right)
    return w


@pytest.mark.parametrize("beta", [1.0, 0.9])
def test_shampoo_with_averages_by_hand(beta):
    gradients = [gaussian(4, 4, seed=i) for i in range(4)]
    p = nn.Parameter(torch.zeros(4, 4, dtype=torch.float64))
    optimizer = preset("shampoo", [p], lr=1.0, betas=(0.0, beta))
    for g in gradients:
        p.grad = g.clone()
        optimizer.step()
    expected = shampoo_by_hand(gradients, (0.0, beta), 1e-4)
    torch.testing.assert_close(p.detach(), expected, atol=1e-9, rtol=1e-9)


def test_an_inverse_root_is_one():
    a = gaussian(5, 8) @ gaussian(5, 8).T
    root = inverse_root(a, 4, 0.0)
    torch.testing.assert_close(
        torch.linalg.matrix_power(root, 4) @ a, torch.eye(5, dtype=torch.float64)
    )


@pytest.mark.parametrize("rank", [5, 2])
def test_shampoo_without_averages_is_the_polar_factor(rank):
    g = gaussian(7, rank) @ gaussian(rank, 5, seed=1)
    p = nn.Parameter(torch.zeros(7, 5, dtype=torch.float64))
    p.grad = g.clone()
    preset("shampoo", [p], averages=False, lr=1.0).step()
    torch.testing.assert_close(-p.detach(), duality_map(g, "spectral"), atol=1e-12, rtol=0)
    # One-sided forms give the same.
    one_sided = inverse_root(g @ g.T, 2, 0.0) @ g
    torch.testing.assert_close(-p.detach(), one_sided, atol=1e-12, rtol=0)


def prodigy_by_hand(gradient, w0, steps, betas, eps, lr):
    (b1, b2), w = betas, w0.clone()
    d = d0 = 1e-6
    s, m, v = (torch.zeros_like(w0) for _ in range(3))
    r = 0.0
    for _ in range(steps):
        g = gradient(w)
        s = b2**0.5 * s + d / d0 * d * lr * g
        r = b2**0.5 * r + d / d0 * d * lr * float((g * (w0 - w)).sum())
        m, v = b1 * m + (1 - b1) * d * g, b2 * v + (1 - b2) * d * d * g * g
        w = w - d * lr * m / (v.sqrt() + d * eps)
        d = max(d, r / float(s.abs().sum()))
    return w, d


@pytest.mark.parametrize("averages", [True, False])
def test_prodigy_by_hand(averages):
    a, target = gaussian(9, 5), gaussian(5, seed=1)
    gradient = lambda w: a.T @ (a @ (w - target))  # noqa: E731
    p = nn.Parameter(torch.zeros(5, dtype=torch.float64))
    optimizer = preset("prodigy", [p], averages=averages)
    for _ in range(60):
        p.grad = gradient(p.detach())
        optimizer.step()
    betas, eps = ((0.9, 0.999), 1e-8) if averages else ((0.0, 0.0), 0.0)
    w, d = prodigy_by_hand(gradient, torch.zeros(5, dtype=torch.float64), 60, betas, eps, 1.0)
    torch.testing.assert_close(p.detach(), w, atol=1e-12, rtol=1e-10)
    assert float(optimizer.param_groups[0]["d"]) == pytest.approx(d) and d > 1e-3


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("averages", [True, False])
def test_every_preset_trains_a_module_and_stays_finite(name, averages):
    model = Net()
    optimizer = preset(name, model, averages=averages)
    run(model, optimizer, 3)
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_muon_leaves_embedding_head_and_vectors_to_adam():
    model = Net()
    kinds = {}
    for group in preset("muon", model).param_groups:
        kinds |= dict.fromkeys(group["param_names"], group["norm"])
    assert {n for n, k in kinds.items() if k == "spectral"} == {
        "conv.weight",
        "hidden.weight",
        "again.weight",
    }


def test_presets_nobody_knows_are_told_with_the_nearest():
    with pytest.raises(InputInvalid, match=r"'moun'; did you mean 'muon'"):
        preset("moun", [parameter(2, 2)])


# Roles


def test_auto_goes_by_the_type_of_the_module_and_says_so():
    chosen = {each.name: each for each in Steepest(Net()).chosen}
    assert {name: each.norm for name, each in chosen.items()} == {
        "embed.weight": "row_rms",
        "conv.weight": "rms_spectral",
        "conv.bias": "rms",
        "hidden.weight": "rms_spectral",
        "hidden.bias": "rms",
        "again.weight": "rms_spectral",
        "again.bias": "rms",
        "norm.weight": "rms",
        "norm.bias": "rms",
        "head.weight": "rms_inf",
    }
    told = Steepest(Net()).explain()
    assert "output head: one logit per row" in told and "Conv2d: kernels flattened" in told


def test_a_tied_head_is_never_silently_one_of_both():
    model = Net()
    model.head.weight = model.embed.weight
    with pytest.warns(UserWarning, match=r"'embed.weight' is embedding and output head at once"):
        chosen = Steepest(model).chosen
    assert [each.norm for each in chosen if each.name == "embed.weight"] == ["row_rms"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Steepest(model, {"embed.weight": "rms_inf"})


def test_patterns_choose_and_a_pattern_that_fits_nothing_is_refused():
    optimizer = Steepest(Net(), {"*.bias": "frobenius", "hid*": "max_entry"})
    norms = {each.name: each.norm for each in optimizer.chosen}
    assert norms["hidden.weight"] == "max_entry" and norms["again.bias"] == "frobenius"
    with pytest.raises(InputInvalid, match=r"'attn\*' fits no parameter"):
        Steepest(Net(), {"attn*": "spectral"})


def test_a_convolution_is_its_flattened_matrix():
    conv = nn.Conv2d(3, 5, 2, bias=False).double()
    before = conv.weight.detach().clone()
    conv.weight.grad = gaussian(5, 3, 2, 2)
    Steepest(conv, lr=1.0, **PLAIN).step()
    expected = duality_map(gaussian(5, 3, 2, 2).flatten(1), "rms_spectral").view(5, 3, 2, 2)
    torch.testing.assert_close(before - conv.weight.detach(), expected)


def test_stacked_experts_are_matrices_of_their_own():
    class Experts(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Parameter(gaussian(3, 4, 5))

    model = Experts()
    before = model.down.detach().clone()
    model.down.grad = gaussian(3, 4, 5, seed=9)
    Steepest(model, lr=1.0, **PLAIN).step()
    for i in range(3):
        expected = duality_map(gaussian(3, 4, 5, seed=9)[i], "rms_spectral")
        torch.testing.assert_close(before[i] - model.down[i].detach(), expected)


def test_gpt2s_fused_and_transposed_layer_is_split():
    from transformers.pytorch_utils import Conv1D

    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.c_attn = Conv1D(12, 4)  # nf = 3 x 4 outputs, 4 inputs; stored inputs first

    model = Attention().double()
    before, g = model.c_attn.weight.detach().clone(), gaussian(4, 12)
    model.c_attn.weight.grad = g.clone()
    optimizer = Steepest(model, lr=1.0, **PLAIN)
    assert optimizer.chosen[0].split == (4, 4, 4) and optimizer.chosen[0].view == "transpose"
    optimizer.step()
    parts = [duality_map(part.T, "rms_spectral").T for part in g.split(4, dim=1)]
    torch.testing.assert_close(before - model.c_attn.weight.detach(), torch.cat(parts, dim=1))


def test_fused_matrices_are_split_as_told_and_unknown_ones_are_said():
    model = nn.ModuleDict({"qkv_proj": nn.Linear(6, 10, bias=False)}).double()
    with pytest.warns(UserWarning, match="looks fused and its parts are not known"):
        Steepest(model)
    told = {"qkv_proj.*": (6, 2, 2)}
    g = model["qkv_proj"].weight.grad = gaussian(10, 6)
    before = model["qkv_proj"].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer = Steepest(model, split=told, lr=1.0, **PLAIN)
    optimizer.step()
    parts = [duality_map(part, "rms_spectral") for part in g.split((6, 2, 2))]
    torch.testing.assert_close(before - model["qkv_proj"].weight.detach(), torch.cat(parts))
    with pytest.raises(InputInvalid, match="split 3 does not divide the 10 outputs"):
        Steepest(model, split={"qkv_proj.*": 3})
    attention = nn.MultiheadAttention(4, 2)
    chosen = {each.name: each.split for each in Steepest(attention).chosen}
    assert chosen["in_proj_weight"] == (4, 4, 4) and chosen["out_proj.weight"] == ()


def test_heads_fused_one_by_one_are_said():
    model = nn.ModuleDict({"query_key_value": nn.Linear(4, 12)})
    with pytest.warns(UserWarning, match="fused head by head"):
        Steepest(model)


def test_prodigy_has_one_distance_over_all_groups():
    whole, parts = Net(), Net()
    one = preset("prodigy", list(whole.parameters()))
    many = preset("prodigy", parts)
    assert len(many.param_groups) > 1
    assert run(parts, many, 12) == pytest.approx(run(whole, one, 12), rel=1e-12)
    (distance,) = {float(group["d"]) for group in many.param_groups}
    assert distance == pytest.approx(float(one.param_groups[0]["d"]), rel=1e-12)
    assert distance > 1e-6
