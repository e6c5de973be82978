"""Seconds per whole training step of GEM and A-GEM: ours, Avalanche's, Mammoth's, on equal inputs.

    python -m benchmarks.gradient_restriction_steps --avalanche PYTHON
        --mammoth PYTHON --mammoth-source DIR

PYTHON has the peer's packages (avalanche-lib; for Mammoth, which is on no index, a checkout and
what it imports); peers that are not named are left out. A network 784-100-100-10, SGD at .1,
batches of 10, 256 memories per past task, no memory strength; generated pictures of MNIST's shape,
permuted per task, and a start that has learned all past tasks. Inputs are written once; every side
is a process of its own with one thread; sides take turns. Medians over rounds of the mean time of a
step, from zeroing gradients to the optimiser's step. "Apart": distance between the weights of two
sides after all steps, relative to the way that ours went; it decides nothing.
"""

import argparse
import json
import os
import subprocess
import sys

os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Sequence
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from benchmarks.gradient_restriction_sides import MEMORIES, RATE, network

SIDES = Path(__file__).with_name("gradient_restriction_sides.py")
BATCH, EPOCHS = 10, 3
ROWS = (
    ("ours", "sgd", "SGD alone"),
    ("ours", "passes", "SGD and bare backward passes of all memories"),
    ("ours", "gem", "GEM, ours"),
    ("avalanche", "gem plugin", "GEM, Avalanche's plugin in a plain loop"),
    ("avalanche", "gem", "GEM, Avalanche"),
    ("mammoth", "gem", "GEM, Mammoth"),
    ("ours", "neuron", "per neuron, ours"),
    ("ours", "agem", "A-GEM, ours"),
    ("avalanche", "agem plugin", "A-GEM, Avalanche's plugin in a plain loop"),
    ("avalanche", "agem", "A-GEM, Avalanche"),
    ("mammoth", "agem", "A-GEM, Mammoth"),
)


def write(path: Path, past: int, steps: int, seed: int) -> None:
    """Weights after the past tasks, their memories, and the batches of the next."""
    random = torch.Generator().manual_seed(seed)
    classes = torch.rand(10, 784, generator=random)
    classes *= torch.rand(10, 784, generator=random) < 0.25  # most of a digit is background

    def pictures(count: int) -> tuple[torch.Tensor, torch.Tensor]:
        order = torch.randperm(784, generator=random)
        labels = torch.randint(0, 10, (count,), generator=random)
        noise = 0.3 * torch.randn(count, 784, generator=random)
        shown = (classes[labels] + noise * (classes[labels] > 0)).clamp(0, 1)
        return shown[:, order].contiguous(), labels

    kept = [pictures(MEMORIES) for _ in range(past)]
    x, y = pictures(steps * BATCH)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = network()
    optimiser = torch.optim.SGD(net.parameters(), lr=RATE)
    for old_x, old_y in kept:
        for _ in range(EPOCHS):
            for some_x, some_y in zip(old_x.split(BATCH), old_y.split(BATCH), strict=True):
                optimiser.zero_grad()
                cross_entropy(net(some_x), some_y).backward()
                optimiser.step()
    np.savez(
        path,
        memory_x=np.stack([each.numpy() for each, _ in kept]),
        memory_y=np.stack([each.numpy() for _, each in kept]),
        x=x.view(steps, BATCH, 784).numpy(),
        y=y.view(steps, BATCH).numpy(),
        **{f"weight{i}": p.detach().numpy() for i, p in enumerate(net.parameters())},
    )


class Side:
    """A process that does jobs."""

    def __init__(self, *command: str, ours: bool = False) -> None:
        environment = {k: v for k, v in os.environ.items() if ours or k != "PYTHONPATH"}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self.told = self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args!r} ended; what it said stands above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def job(self, inputs: Path, way: str, save: Path | None = None) -> dict[str, Any]:
        """One run over all batches."""
        assert self.process.stdin is not None
        told = {"inputs": str(inputs), "way": way, "save": save and str(save)}
        print(json.dumps(told), file=self.process.stdin, flush=True)
        return self._answer()

    def close(self) -> None:
        """No more jobs."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def apart(one: np.ndarray, other: np.ndarray, start: np.ndarray) -> float:
    """How far the ends of two ways are from each other, in lengths of the first."""
    return float(np.linalg.norm(one - other) / np.linalg.norm(one - start))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="2 and 5 past tasks, few steps")
    parser.add_argument("--avalanche", metavar="PYTHON", default="")
    parser.add_argument("--mammoth", metavar="PYTHON", default="")
    parser.add_argument("--mammoth-source", metavar="DIR", default="")
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    if bool(given.mammoth) != bool(given.mammoth_source):
        parser.error("--mammoth and --mammoth-source go together")
    tasks = (2, 5) if given.quick else (2, 5, 10, 20)
    steps, rounds = (5, 2) if given.quick else (given.steps, given.rounds)
    commands = {"ours": [sys.executable, str(SIDES), "ours"]}
    if given.avalanche:
        commands["avalanche"] = [given.avalanche, str(SIDES), "avalanche"]
    if given.mammoth:
        commands["mammoth"] = [given.mammoth, str(SIDES), "mammoth", given.mammoth_source]
    sides = {name: Side(*each, ours=name == "ours") for name, each in commands.items()}
    for name, side in sides.items():
        print(f"{name}: {', '.join(' '.join(each) for each in side.told['versions'].items())}")
    rows = [row for row in ROWS if row[0] in sides]
    cpu: dict[tuple[str, str, int], list[float]] = {}
    wall: dict[tuple[str, str, int], list[float]] = {}
    ends: dict[tuple[str, str, int], np.ndarray] = {}
    with TemporaryDirectory() as work:
        for past in tasks:
            inputs, saved = Path(work, f"{past}.npz"), Path(work, "end.npy")
            write(inputs, past, steps, given.seed)
            with np.load(inputs) as found:
                ends["start", "", past] = np.concatenate(
                    [found[f"weight{i}"].astype(float).ravel() for i in range(6)]
                )
            for name, side in sides.items():
                for way in side.told["ways"]:
                    side.job(inputs, way, saved)  # also warms up
                    ends[name, way, past] = np.load(saved)
            for turn in range(rounds):
                for name, way, _ in rows if turn % 2 else rows[::-1]:
                    taken = sides[name].job(inputs, way)
                    cpu.setdefault((name, way, past), []).append(1e3 * taken["cpu"] / steps)
                    wall.setdefault((name, way, past), []).append(1e3 * taken["wall"] / steps)
    for side in sides.values():
        side.close()
    columns = " | ".join(f"{past} past tasks" for past in tasks)
    for what, times in (("CPU", cpu), ("wall", wall)):
        print(f"\n| {what} ms a step | {columns} | each further task |")
        print(f"|---|{'---|' * (len(tasks) + 1)}")
        for name, way, shown in rows:
            cells = [median(times[name, way, past]) for past in tasks]
            slope = float(np.polyfit(tasks, cells, 1)[0])
            print(f"| {shown} | {' | '.join(f'{c:.2f}' for c in cells)} | {slope:.2f} |")
    if len(sides) == 1:
        return
    print(f"\n| apart from ours after {steps} steps | {columns} |\n|---|{'---|' * len(tasks)}")
    for name, side in sides.items():
        for way in side.told["ways"]:
            if name != "ours" and way.startswith("gem"):
                cells = [
                    apart(ends["ours", "gem", past], ends[name, way, past], ends["start", "", past])
                    for past in tasks
                ]
                print(f"| {name}, {way} | {' | '.join(f'{cell:.0e}' for cell in cells)} |")


if __name__ == "__main__":
    main()
