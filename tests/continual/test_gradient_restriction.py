"""The object in a plain loop: what it does to gradients, and what it leaves alone."""

import copy
import json

import pytest
import torch
from torch.nn import functional

from zeitgeist.continual.closed_forms import agem, mega_two
from zeitgeist.continual.gradient_restriction import GradientRestriction, RestrictionOptions, Step
from zeitgeist.errors import InputInvalid


class Net(torch.nn.Module):
    """With everything that a memory pass could disturb, and a head that is not always used."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.first = torch.nn.Linear(5, 6)
        self.norm = torch.nn.BatchNorm1d(6)
        self.drop = torch.nn.Dropout(dropout)
        self.heads = torch.nn.ModuleList([torch.nn.Linear(6, 3), torch.nn.Linear(6, 3)])

    def forward(self, x, head=0):
        return self.heads[head](self.drop(torch.relu(self.norm(self.first(x)))))


def loss_of(model, samples):
    x, y = (torch.stack(each) for each in zip(*samples, strict=True))
    return functional.cross_entropy(model(x), y)


def samples(seed, count=12):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 5, generator=generator)
    return [(row, label) for row, label in zip(x, (x[:, seed % 5] > 0).long(), strict=True)]


def guarded(dropout=0.0, tasks=2, seed=0, **options):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = Net(dropout)
    guard = GradientRestriction(net, loss_of, RestrictionOptions(**{"memory": 8, **options}))
    for task in range(tasks):
        guard.remember(samples(task))
        guard.end_task()
    return net, guard


def backward(net, seed=7):
    net.zero_grad()
    loss = loss_of(net, samples(seed))
    # Away from the memories, so that constraints bind.
    (-loss).backward()
    return float(loss.detach())


def flat(net):
    return torch.cat([p.grad.flatten() for p in net.parameters() if p.grad is not None])


def memory_rows(net, slices):
    live = [p for p in net.parameters() if p.grad is not None]
    rows = []
    for each in slices:
        found = torch.autograd.grad(loss_of(net, each), live)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


@pytest.mark.parametrize("grain", ["model", "layer", "tensor", "neuron"])
@pytest.mark.parametrize("groups", [1, 3])
def test_no_remembered_loss_rises_to_first_order(grain, groups):
    net, guard = guarded(grain=grain, data_groups=groups)
    backward(net)
    step = guard.restrict()
    slices = [g for task in (0, 1) for g in guard.memory.groups(task, groups)]
    rows, z = memory_rows(net, slices), flat(net)
    assert float((rows @ z / (rows.norm(dim=1) * z.norm())).min()) > -1e-5
    assert step.exact and step.residual < 1e-5 and 0 < step.active <= 1 and step.degrees > 0
    assert step.evaluations == 16
    live = {n for n, p in net.named_parameters() if p.grad is not None}
    assert set(step.binding) == set(step.violated) == live


@pytest.mark.parametrize("strength", [0.0, 0.5])
def test_violations_are_of_the_gradient_before_anything_is_restricted(strength):
    net, guard = guarded(grain="tensor", data_groups=2, strength=strength)
    backward(net)
    slices = [g for task in (0, 1) for g in guard.memory.groups(task, 2)]
    rows, g = memory_rows(net, slices), flat(net)
    live = [(n, p.numel()) for n, p in net.named_parameters() if p.grad is not None]
    shares = [
        float(((row * part).sum(dim=-1) < 0).double().mean())
        for row, part in zip(
            (rows.double()).split([size for _, size in live], dim=-1),
            g.double().split([size for _, size in live]),
            strict=True,
        )
    ]
    step = guard.restrict()
    assert list(step.violated.values()) == shares and sum(shares) > 0
    assert step.binding != step.violated  # several constraints of a block need not all bind


def test_the_first_task_is_free():
    net, guard = guarded(tasks=0)
    guard.remember(samples(0))
    backward(net)
    before = flat(net)
    assert guard.restrict() == Step()
    assert torch.equal(flat(net), before)


def test_the_current_task_does_not_restrict_itself():
    net, guard = guarded(tasks=1)
    backward(net)
    other, same = guarded(tasks=1)
    same.remember(samples(9))
    backward(other)
    guard.restrict()
    same.restrict()
    assert torch.equal(flat(net), flat(other))


def test_agem_is_its_formula():
    net, guard = guarded(method="agem", grain="model")
    backward(net)
    g = flat(net)
    pool = guard.memory.draw(99)
    r = memory_rows(net, [pool])[0]
    mix = agem((r @ r).double(), (g @ r).double())
    guard.restrict()
    assert torch.allclose(flat(net), mix.a * g + mix.b * r, atol=1e-6)


def test_mega_and_replay_mix():
    for method in ("mega1", "mega2", "replay"):
        net, guard = guarded(method=method)
        loss = backward(net)
        g = flat(net)
        pool = guard.memory.draw(99)
        r = memory_rows(net, [pool])[0]
        then = float(loss_of(net, pool).detach())
        step = guard.restrict(loss)
        if method == "mega2":
            wide = [torch.tensor(x, dtype=torch.float64) for x in (loss, then)]
            a, b = mega_two((g @ g).double(), (r @ r).double(), (g @ r).double(), *wide)
        else:
            a, b = 1.0, then / loss if method == "mega1" else 1.0
        assert torch.allclose(flat(net), a * g + b * r, atol=1e-5)
        assert step.degrees > 0


def test_a_head_without_gradient_stays_without_and_zero_gradients_are_fine():
    net, guard = guarded()
    backward(net)
    assert net.heads[1].weight.grad is None
    guard.restrict()
    assert net.heads[1].weight.grad is None
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    step = guard.restrict()
    assert float(flat(net).abs().max()) == 0.0 and step.degrees == 0.0


def test_a_gradient_that_is_no_number_is_refused_and_nothing_changes():
    net, guard = guarded()
    backward(net)
    net.norm.weight.grad[1] = float("nan")
    before = net.first.weight.grad.clone()
    with pytest.raises(InputInvalid, match=r"gradient of 'norm\.weight'"):
        guard.restrict()
    assert torch.equal(net.first.weight.grad, before)


def test_memories_that_stand_twice_change_nothing():
    net, guard = guarded(grain="model", tasks=1)
    backward(net)
    guard.restrict()
    twice, doubled = guarded(grain="model", tasks=1)
    doubled.remember(samples(0))
    doubled.end_task()
    backward(twice)
    doubled.restrict()
    assert torch.allclose(flat(net), flat(twice), atol=1e-6)


def test_batch_norm_and_dropout_do_not_notice_memory_passes():
    net, guard = guarded(dropout=0.5)
    backward(net)
    buffers = {name: b.clone() for name, b in net.named_buffers()}
    random = torch.random.get_rng_state()
    guard.restrict()
    assert torch.equal(torch.random.get_rng_state(), random)
    for name, buffer in net.named_buffers():
        assert torch.equal(buffer, buffers[name]), name


def test_accumulated_batches_are_one_gradient():
    net, guard = guarded()
    net.zero_grad()
    for seed in (5, 6):
        (-loss_of(net, samples(seed)) / 2).backward()
    wanted, one = guarded()
    both = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    for parameter, grad in zip(
        (p for n, p in wanted.named_parameters() if not n.startswith("heads.1")), both, strict=True
    ):
        parameter.grad = grad
    wanted.load_state_dict(net.state_dict())
    guard.restrict()
    one.restrict()
    assert torch.allclose(flat(net), flat(wanted), atol=1e-7)


@pytest.mark.parametrize("grain", ["model", "neuron"])
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_streaming_gives_the_same_direction(grain, dropout):
    made = []
    for at_once in (0, 1, 70):
        net, guard = guarded(grain=grain, at_once=at_once, dropout=dropout)
        with torch.random.fork_rng():
            torch.manual_seed(3)
            backward(net)
            step = guard.restrict()
        made.append(flat(net))
    assert all(torch.allclose(made[0], other, atol=1e-6) for other in made[1:])
    assert step.evaluations > 16


def test_sweeps_tell_that_they_are_not_done():
    net, guard = guarded(solver="sweeps", sweeps=1, data_groups=4, grain="model", tasks=3)
    backward(net)
    step = guard.restrict()
    assert not step.exact and step.residual > 1e-6


def test_a_run_is_taken_up_where_it_was():
    def steps(guard, net, times):
        optimiser = torch.optim.SGD(net.parameters(), lr=0.1)
        for seed in times:
            backward(net, seed)
            guard.restrict()
            optimiser.step()
        return torch.cat([p.flatten() for p in net.parameters()])

    numbers = {"memory": 6, "sampler": "reservoir", "per_step": 2, "seed": 5}

    def fresh():
        with torch.random.fork_rng():
            torch.manual_seed(0)
            net = Net()
        data = samples(0, 40)

        def loss(model, kept):
            return loss_of(model, [data[i] for i in kept])

        return net, GradientRestriction(net, loss, RestrictionOptions(**numbers))

    net, guard = fresh()
    guard.remember(range(20))
    guard.end_task()
    steps(guard, net, range(3))
    saved, weights = json.loads(json.dumps(guard.state())), copy.deepcopy(net.state_dict())
    whole = steps(guard, net, range(3, 6))
    other, taken = fresh()
    other.load_state_dict(weights)
    taken.resume(saved)
    assert torch.equal(steps(taken, other, range(3, 6)), whole)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"method": "ogd"}, "no method 'ogd'"),
        ({"solver": "qp"}, "no solver 'qp'"),
        ({"data_groups": 0}, "data_groups is 0"),
        ({"strength": -0.5}, r"strength is -0\.5"),
        ({"strength": float("nan")}, "strength is nan"),
        ({"memory": 0}, "memory is 0"),
        ({"sampler": "fifo"}, "no sampler"),
        ({"grain": "row"}, "no grain"),
        ({"grain": "head"}, "number of heads"),
        ({"at_once": -1}, "at_once is -1"),
    ],
)
def test_bad_options_are_told(options, told):
    with pytest.raises(InputInvalid, match=told):
        guarded(**options)


def test_mega_needs_the_loss_and_something_must_be_trained():
    net, guard = guarded(method="mega2")
    backward(net)
    with pytest.raises(InputInvalid, match="current one is not known"):
        guard.restrict()
    net.requires_grad_(False)
    with pytest.raises(InputInvalid, match="no parameter is trained"):
        GradientRestriction(net, loss_of)
