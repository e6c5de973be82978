"""The optimiser: the recursions of the card, torch's optimisers, and what an optimiser owes."""

import copy
import math
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn

from zeitgeist.errors import InputInvalid
from zeitgeist.optimizers.averages import inverse_root
from zeitgeist.optimizers.norms import NORMS, OF_VECTORS, dual_norm, duality_map, norm
from zeitgeist.optimizers.options import SteepestOptions
from zeitgeist.optimizers.presets import PRESETS, preset
from zeitgeist.optimizers.steepest import Steepest

PLAIN = {"momentum": 0.0, "orthogonalise": "exact"}


def gaussian(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def parameter(*shape, seed=0, dtype=torch.float64):
    p = nn.Parameter(gaussian(*shape, seed=seed, dtype=dtype))
    p.grad = gaussian(*shape, seed=seed + 100, dtype=dtype)
    return p


class Net(nn.Module):
    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.embed = nn.Embedding(11, 6)
            self.conv = nn.Conv2d(1, 3, 2)
            self.hidden = nn.Linear(15, 6)
            self.again = nn.Linear(6, 6)
            self.norm = nn.LayerNorm(6)
            self.head = nn.Linear(6, 11, bias=False)

    def forward(self, ids):
        x = self.conv(self.embed(ids)[:, None]).flatten(1)
        return self.head(self.norm(torch.relu(self.again(torch.relu(self.hidden(x))))))


def run(model, optimizer, steps, start=0):
    losses = []
    for step in range(start, start + steps):
        ids = torch.randint(11, (8, 2), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(ids), ids.sum(1) % 11)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


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


# What an optimiser owes


def test_same_shapes_in_one_batch_equal_one_by_one():
    together = [parameter(6, 4, seed=i) for i in range(5)] + [parameter(4, 7, seed=9)]
    alone = copy.deepcopy(together)
    for p, q in zip(together, alone, strict=True):
        q.grad = p.grad.clone()
    told = {"orthogonalise": "polar_express", "precision": "float64"}
    Steepest(together, "spectral", **told).step()
    for p in alone:
        Steepest([p], "spectral", **told).step()
    for p, q in zip(together, alone, strict=True):
        torch.testing.assert_close(p, q)


def test_no_gradient_no_step_and_a_zero_one_only_decays():
    p, q = parameter(3, 3), parameter(3, 3, seed=1)
    p.grad, q.grad = None, torch.zeros(3, 3, dtype=torch.float64)
    before = [x.detach().clone() for x in (p, q)]
    for kind in (*NORMS, "adam", "shampoo", "prodigy"):
        Steepest([p, q], kind, eps=0.0).step()
        assert torch.equal(p, before[0]) and torch.equal(q, before[1]), kind
    Steepest([p, q], "spectral", lr=0.1, weight_decay=0.5).step()
    assert torch.equal(p, before[0])
    torch.testing.assert_close(q.detach(), 0.95 * before[1])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_changes_nothing(bad):
    p, q = parameter(3, 3), parameter(2, 2, seed=1)
    before = p.detach().clone()
    q.grad[0, 0] = bad
    optimizer = Steepest([("first", p), ("second", q)], "spectral")
    with pytest.raises(InputInvalid, match=r"gradient of second, shape \(2, 2\), has 1 NaN"):
        optimizer.step()
    assert torch.equal(p, before) and not optimizer.state


def test_sparse_and_complex_are_refused():
    embedding = nn.Embedding(5, 3, sparse=True)
    embedding(torch.tensor([1])).sum().backward()
    with pytest.raises(InputInvalid, match="is sparse"):
        Steepest(embedding).step()
    with pytest.raises(InputInvalid, match="is complex"):
        Steepest([nn.Parameter(torch.zeros(2, 2, dtype=torch.complex64))], "spectral")


def test_a_closure_is_called_once_with_gradients():
    p = nn.Parameter(torch.tensor([[3.0, 1.0]]))
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = p.square().sum()
        loss.backward()
        calls.append(1)
        return loss.detach()

    optimizer = Steepest([p], "max_entry", lr=0.5, momentum=0.0)
    assert float(optimizer.step(closure)) == 10.0 and calls == [1]
    assert torch.equal(p.detach(), torch.tensor([[2.5, 0.5]]))


def test_groups_have_options_of_their_own_and_follow_a_schedule():
    p, q = parameter(3, 2), parameter(4)
    groups = [{"params": [p], "norm": "spectral"}, {"params": [q], "norm": "rms", "lr": 0.5}]
    optimizer = Steepest(groups, lr=0.1, **PLAIN)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    before, g = q.detach().clone(), q.grad.clone()
    optimizer.step()
    schedule.step()
    optimizer.step()
    expected = before - (0.5 + 0.25) * duality_map(g, "rms")
    torch.testing.assert_close(q.detach(), expected)
    optimizer.add_param_group({"params": [parameter(2, 2)], "norm": "row_l2"})
    with pytest.raises(InputInvalid, match="'row_l2' is a norm of matrices"):
        optimizer.add_param_group({"params": [parameter(2)], "norm": "row_l2"})
    assert len(optimizer.param_groups) == 3


@pytest.mark.parametrize("name", ["auto", *PRESETS])
def test_state_goes_through_a_file_in_the_middle_of_training(name, tmp_path):
    make = (lambda m: Steepest(m, momentum=0.9)) if name == "auto" else lambda m: preset(name, m)
    straight, stopped = Net(), Net()
    run(straight, make(straight), 6)
    optimizer = make(stopped)
    run(stopped, optimizer, 3)
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.pt")
    fresh = Net(seed=5)
    fresh.load_state_dict(stopped.state_dict())
    again = make(fresh)
    again.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    run(fresh, again, 3, start=3)
    for p, q in zip(straight.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(p, q)


COMPILED = """
import copy, torch
from torch import nn
from zeitgeist.optimizers.presets import preset
from zeitgeist.optimizers.steepest import Steepest

torch.manual_seed(0)
start = nn.Sequential(nn.Embedding(11, 6), nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 4))
for name in ("auto", "prodigy"):
    models = [copy.deepcopy(start) for _ in range(2)]
    optimizers = [Steepest(m) if name == "auto" else preset(name, m) for m in models]
    steps = [optimizers[0].step, torch.compile(optimizers[1].step, backend="eager")]
    for _ in range(2):
        for model, optimizer, step in zip(models, optimizers, steps):
            optimizer.zero_grad()
            model(torch.arange(11)).square().sum().backward()
            step()
    for p, q in zip(*(m.parameters() for m in models)):
        torch.testing.assert_close(p, q)
        assert torch.isfinite(p).all()
print("the same")
"""


def test_a_compiled_step_is_the_same_step():
    # In a process of its own: the checks of annotations in tests cannot be traced.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.stdout == "the same\n", done.stderr[-2000:]


def test_a_rate_may_be_a_tensor():
    p, q = parameter(3, 2), parameter(3, 2)
    Steepest([p], "spectral", lr=torch.tensor(0.1), weight_decay=0.1).step()
    Steepest([q], "spectral", lr=0.1, weight_decay=0.1).step()
    torch.testing.assert_close(p, q, atol=1e-7, rtol=1e-7)


def test_half_precision_weights_move():
    p = parameter(8, 8, dtype=torch.bfloat16)
    before = p.detach().clone()
    Steepest([p], "rms_spectral", lr=0.5).step()
    assert p.dtype == torch.bfloat16 and not torch.equal(p, before)


def test_the_trainer_of_transformers_takes_it(tmp_path, tiny_llama):
    pytest.importorskip("accelerate")
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    rows = [{"input_ids": [1, 5, 6, 7], "labels": [1, 5, 6, 7]}] * 8
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=4,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        save_strategy="no",
        logging_strategy="no",
    )
    optimizer = Steepest(model, lr=0.05)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trainer = Trainer(
        model, arguments, train_dataset=Dataset.from_list(rows), optimizers=(optimizer, None)
    )
    trainer.train()
    moved = [n for n, p in model.named_parameters() if not torch.equal(p, before[n])]
    assert len(moved) > len(before) // 2


@pytest.mark.parametrize(
    "told, match",
    [
        ({"lr": -1.0}, "lr is -1.0; give at least 0"),
        ({"lr": math.nan}, "lr is nan"),
        ({"momentum": 1.0}, "momentum is 1.0; give at least 0 and less than 1"),
        ({"weight_decay": -0.1}, "weight_decay is -0.1"),
        ({"weight": 0.0}, "weight is 0.0; give more than 0"),
        ({"betas": (0.9, 1.5)}, r"betas\[1\] is 1.5"),
        ({"eps": -1.0}, "eps is -1.0"),
        ({"orthogonalise": "svd"}, "orthogonalise is 'svd'"),
        ({"scale": "adam"}, "scale is 'adam'"),
        ({"precision": "float8"}, "precision is 'float8'"),
    ],
)
def test_options_that_cannot_be(told, match):
    with pytest.raises(InputInvalid, match=match):
        SteepestOptions(**told)
    with pytest.raises(InputInvalid, match=match):
        Steepest([parameter(2, 2)], "spectral", **told)


def test_what_parameters_cannot_tell_is_asked_for():
    with pytest.raises(InputInvalid, match="give the module, or name a norm"):
        Steepest([parameter(2, 2)])
    with pytest.raises(InputInvalid, match="by name need a module"):
        Steepest([parameter(2, 2)], {"*": "spectral"})
    with pytest.raises(InputInvalid, match="there is no norm 'spektral'"):
        Steepest([parameter(2, 2)], "spektral")
    with pytest.raises(InputInvalid, match="view is 'rows'"):
        Steepest([{"params": [parameter(2, 2)], "norm": "spectral", "view": "rows"}])
    for kind in set(NORMS) - set(OF_VECTORS):
        with pytest.raises(InputInvalid, match="is a norm of matrices"):
            Steepest([parameter(2)], kind)


def test_an_optimiser_without_a_module_still_says_what_it_follows():
    told = preset("muon", nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 4))).explain()
    assert [line.split()[-3] for line in told.splitlines()] == ["adam", "spectral", "adam"]
    assert "spectral" in Steepest([nn.Parameter(torch.zeros(3, 3))], norm="spectral").explain()
