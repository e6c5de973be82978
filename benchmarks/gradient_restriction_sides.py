"""One side of `benchmarks.gradient_restriction_steps`, in its own Python.

    PYTHON benchmarks/gradient_restriction_sides.py ours | avalanche | mammoth SOURCE

Reads a JSON line per job from stdin, ``{"inputs": npz, "way": name, "save": npy or null}``, takes
as many steps as there are batches and answers with a JSON line: CPU and wall seconds of all steps.
What a peer needs is imported in its own function; nothing is changed in a peer but where a way says
so. The first line that is written tells versions and ways.
"""

import json
import os
import sys

os.environ["OMP_NUM_THREADS"] = "1"

import time
from argparse import Namespace
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

RATE, MEMORIES = 0.1, 256  # of SGD; of every past task, and of a step of A-GEM


class Inputs(NamedTuple):
    """What all sides get: T tasks of n memories, S batches of b, and where training starts."""

    weights: list[Tensor]
    memory_x: Tensor  # T n 784
    memory_y: Tensor  # T n
    x: Tensor  # S b 784
    y: Tensor  # S b


def network(weights: list[Tensor] | None = None) -> torch.nn.Sequential:
    """784-100-100-10."""
    sizes = (784, 100, 100, 10)
    layers: list[torch.nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [torch.nn.Linear(before, after), torch.nn.ReLU()]
    net = torch.nn.Sequential(*layers[:-1])
    if weights is not None:
        with torch.no_grad():
            for parameter, weight in zip(net.parameters(), weights, strict=True):
                parameter.copy_(weight)
    return net


def read(path: str) -> Inputs:
    """As the driver wrote it."""
    with np.load(path) as found:
        weights = [torch.from_numpy(found[f"weight{i}"]) for i in range(6)]
        return Inputs(weights, *(torch.from_numpy(found[name]) for name in Inputs._fields[1:]))


Way = Callable[[Inputs], tuple[torch.nn.Module, Callable[[], tuple[float, float]]]]


class Watch:
    """CPU and wall seconds from `start` to `stop`."""

    def start(self) -> None:
        """From here."""
        self.cpu, self.wall = time.process_time(), time.perf_counter()

    def stop(self) -> tuple[float, float]:
        """To here."""
        return time.process_time() - self.cpu, time.perf_counter() - self.wall


def looped(inputs: Inputs, step: Callable[[Tensor, Tensor], object]) -> tuple[float, float]:
    """A plain loop over the batches."""
    watch = Watch()
    watch.start()
    for x, y in zip(inputs.x, inputs.y, strict=True):
        step(x, y)
    return watch.stop()


def passes(inputs: Inputs, *, memories: bool) -> Any:
    """SGD, with a bare backward pass of every task's memories before a step or without."""
    net = network(inputs.weights)
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE)

    def step(x: Tensor, y: Tensor) -> None:
        for old_x, old_y in zip(inputs.memory_x, inputs.memory_y, strict=True) if memories else ():
            optimiser.zero_grad()
            cross_entropy(net(old_x), old_y).backward()
        optimiser.zero_grad()
        cross_entropy(net(x), y).backward()
        optimiser.step()

    return net, partial(looped, inputs, step)


def ours() -> tuple[dict[str, Way], dict[str, str]]:
    """zeitgeist's GradientRestriction in a plain loop, and what any GEM must do at least."""
    from zeitgeist.continual.gradient_restriction import GradientRestriction, RestrictionOptions

    def restricted(inputs: Inputs, **told: Any) -> Any:
        net = network(inputs.weights)
        optimiser = torch.optim.SGD(net.parameters(), lr=RATE)
        # Memories are places in a tensor, as zeitgeist's own loop keeps them.
        memory_x, memory_y = inputs.memory_x.flatten(0, 1), inputs.memory_y.flatten()

        def loss(net: Any, places: list[int]) -> Tensor:
            rows = torch.tensor(places)
            return cross_entropy(net(memory_x[rows]), memory_y[rows])

        guard = GradientRestriction(net, loss, RestrictionOptions(memory=MEMORIES, **told))
        for task in range(len(inputs.memory_y)):
            guard.remember(range(task * MEMORIES, (task + 1) * MEMORIES))
            guard.end_task()

        def step(x: Tensor, y: Tensor) -> None:
            optimiser.zero_grad()
            cross_entropy(net(x), y).backward()
            guard.restrict()
            optimiser.step()

        return net, partial(looped, inputs, step)

    ways: dict[str, Way] = {
        "sgd": partial(passes, memories=False),
        "passes": partial(passes, memories=True),
        "gem": partial(restricted, grain="model"),
        "neuron": partial(restricted, grain="neuron"),
        "agem": partial(restricted, grain="model", method="agem", per_step=MEMORIES),
    }
    return ways, {}


def avalanche() -> tuple[dict[str, Way], dict[str, str]]:
    """Its strategies whole, loader and all, and its plugins in a plain loop."""
    from avalanche.benchmarks import benchmark_from_datasets
    from avalanche.benchmarks.utils import _make_taskaware_tensor_classification_dataset as dataset
    from avalanche.training import AGEM, GEM
    from avalanche.training.plugins import SupervisedPlugin

    class Timed(SupervisedPlugin):  # what is done once per task is left out
        def __init__(self) -> None:
            super().__init__()
            self.watch, self.taken = Watch(), (0.0, 0.0)

        def before_training_epoch(self, strategy: Any, **_: Any) -> None:
            self.watch.start()

        def after_training_epoch(self, strategy: Any, **_: Any) -> None:
            self.taken = self.watch.stop()

    def made(inputs: Inputs, method: str) -> Any:
        net, timed = network(inputs.weights), Timed()
        told = {
            "model": net,
            "optimizer": torch.optim.SGD(net.parameters(), lr=RATE),
            "criterion": torch.nn.CrossEntropyLoss(),
            "patterns_per_exp": MEMORIES,
            "train_mb_size": inputs.x.shape[1],
            "evaluator": None,
            "plugins": [timed],
        }
        if method == "gem":
            strategy = GEM(memory_strength=0.0, **told)
        else:
            strategy = AGEM(sample_size=MEMORIES, **told)
        plugin = strategy.plugins[1]
        for task, (x, y) in enumerate(zip(inputs.memory_x, inputs.memory_y, strict=True)):
            if method == "gem":
                plugin.memory_x[task], plugin.memory_y[task] = x, y
                plugin.memory_tid[task] = torch.zeros_like(y)
            else:
                plugin.update_memory(dataset(x, y))
        strategy.clock.train_exp_counter = len(inputs.memory_y)
        return net, strategy, plugin, timed

    def whole(inputs: Inputs, method: str) -> Any:
        net, strategy, _, timed = made(inputs, method)
        flat = dataset(inputs.x.flatten(0, 1), inputs.y.flatten())
        experience = benchmark_from_datasets(train=[flat]).train_stream[0]

        def run() -> tuple[float, float]:
            strategy.train(experience, shuffle=False)
            return timed.taken

        return net, run

    def alone(inputs: Inputs, method: str) -> Any:
        net, strategy, plugin, _ = made(inputs, method)
        optimiser = strategy.optimizer

        def step(x: Tensor, y: Tensor) -> None:
            plugin.before_training_iteration(strategy)
            optimiser.zero_grad()
            cross_entropy(net(x), y).backward()
            plugin.after_backward(strategy)
            optimiser.step()

        return net, partial(looped, inputs, step)

    ways: dict[str, Way] = {}
    for method in ("gem", "agem"):
        ways[method] = partial(whole, method=method)
        ways[f"{method} plugin"] = partial(alone, method=method)
    return ways, {name: version(name) for name in ("avalanche-lib", "qpsolvers", "quadprog")}


def mammoth(source: str) -> tuple[dict[str, Way], dict[str, str]]:
    """Its models' ``observe`` in a plain loop."""
    os.chdir(source)
    sys.path.insert(0, str(Path.cwd()))
    from models import gem as module
    from models.agem import AGem
    from models.gem import Gem

    published = module.project2cone2

    def observed(inputs: Inputs, kind: type, ridge: float = 1e-3) -> Any:
        tasks, kept = inputs.memory_y.shape
        told = Namespace(
            lr=RATE, optimizer="sgd", optim_wd=0.0, optim_mom=0.0, optim_nesterov=False,
            label_perc=1, buffer_size=tasks * kept, minibatch_size=MEMORIES, gamma=0.0,
        )  # fmt: skip
        scenario = SimpleNamespace(
            N_CLASSES=10, N_TASKS=tasks + 1, SETTING="domain-il", N_CLASSES_PER_TASK=10
        )
        module.project2cone2 = partial(published, eps=ridge)
        net = network(inputs.weights)
        model = kind(net, torch.nn.CrossEntropyLoss(), told, None, dataset=scenario)
        for task, (x, y) in enumerate(zip(inputs.memory_x, inputs.memory_y, strict=True)):
            model.buffer.add_data(
                examples=x, labels=y, task_labels=torch.full_like(y, task) if kind is Gem else None
            )
            if kind is Gem:  # what its end_task does beside filling the buffer
                model.grads_cs.append(torch.zeros_like(model.grads_da))
        return net, partial(looped, inputs, lambda x, y: model.observe(x, y, x))

    ways: dict[str, Way] = {
        "gem": partial(observed, kind=Gem),
        "gem without ridge": partial(observed, kind=Gem, ridge=0.0),
        "agem": partial(observed, kind=AGem),
    }
    return ways, {"quadprog": version("quadprog")}


def serve(side: str, source: str = "") -> None:
    """Do jobs until stdin ends."""
    torch.set_num_threads(1)
    answers, sys.stdout = sys.stdout, sys.stderr  # peers print
    sides: Mapping[str, Callable[[], Any]] = {
        "ours": ours,
        "avalanche": avalanche,
        "mammoth": partial(mammoth, source),
    }
    ways, versions = sides[side]()
    told: dict[str, Any] = {"versions": {"torch": torch.__version__, **versions}}
    print(json.dumps({**told, "ways": list(ways)}), file=answers, flush=True)
    for line in sys.stdin:
        job = json.loads(line)
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002  Mammoth's buffer draws from it
        net, run = ways[job["way"]](read(job["inputs"]))
        cpu, wall = run()
        if job["save"]:
            flat = torch.cat([p.detach().double().flatten() for p in net.parameters()])
            np.save(job["save"], flat.numpy())
        print(json.dumps({"cpu": cpu, "wall": wall}), file=answers, flush=True)


if __name__ == "__main__":
    serve(*sys.argv[1:])
