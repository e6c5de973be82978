"""What an optimiser owes: batches, state, closures, schedules, compilation, trainers, refusals."""

import copy
import math
import pickle
import subprocess
import sys

import pytest
import torch
from tests.optimizers.networks import PLAIN, Net, gaussian, parameter, run
from torch import nn

from zeitgeist.errors import InputInvalid
from zeitgeist.optimizers.norms import NORMS, OF_VECTORS, duality_map
from zeitgeist.optimizers.options import SteepestOptions
from zeitgeist.optimizers.presets import PRESETS, preset
from zeitgeist.optimizers.steepest import Steepest


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


def test_copies_and_pickles_go_on_as_the_optimiser_does():
    model = Net()
    optimizer = Steepest(model, lr=0.02)
    run(model, optimizer, 2)
    twin, other = copy.deepcopy((model, optimizer))
    assert other.explain() == optimizer.explain()
    assert pickle.loads(pickle.dumps(optimizer)).explain() == optimizer.explain()
    assert run(twin, other, 3, start=2) == run(model, optimizer, 3, start=2)


@pytest.mark.parametrize("kind", [*NORMS, "adam", "shampoo", "prodigy"])
def test_a_parameter_without_entries_stays_one(kind):
    p = nn.Parameter(torch.zeros(0, 3))
    p.grad = torch.zeros(0, 3)
    Steepest([p], kind).step()
    assert p.shape == (0, 3)


def test_below_the_floor_fast_steps_shrink_and_exact_ones_do_not():
    steps = {}
    for method in ("fast", "exact"):
        p = nn.Parameter(torch.zeros(4, 4))
        p.grad = gaussian(4, 4, dtype=torch.float32) * 1e-20
        Steepest([p], "spectral", lr=1.0, momentum=0.0, orthogonalise=method).step()
        steps[method] = float(torch.linalg.matrix_norm(p.detach(), 2))
    assert steps["exact"] == pytest.approx(1, abs=1e-4) and steps["fast"] < 1e-6
