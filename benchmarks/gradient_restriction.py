"""Seconds per step of GEM's projection, against the published arithmetic on the same gradients.

The peer is what GEM's code, Mammoth and Avalanche do per step: the Gram matrix of the memory
gradients in double precision on the processor, .001 added to its diagonal, and quadprog's
``solve_qp`` (GPL, so it is no dependency; ``--peer DIR`` names where it was installed with
``pip install --target DIR quadprog``). Left out on both sides are the memories' backward passes.

For every number of tasks: milliseconds of both, and the worst cosine between a direction and a
memory's gradient (the constraint says at least 0), at gradients of length 1 and of length .01.
"""

import argparse
import importlib
import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any

import numpy as np
import torch

from zeitgeist.continual.grains import partition
from zeitgeist.continual.restriction import Restricted, restrict, restrict_pieces

NET = torch.nn.Sequential(
    torch.nn.Linear(784, 100), torch.nn.Linear(100, 100), torch.nn.Linear(100, 10)
)
SHAPES = {name: p.shape for name, p in NET.named_parameters()}
PARAMETERS, RIDGE = sum(p.numel() for p in NET.parameters()), 1e-3
NEURONS = partition(dict(NET.named_parameters()), "neuron")


def drawn(tasks: int, length: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of some networks' kind: alike among themselves, and against the current one."""
    random = torch.Generator().manual_seed(seed)
    own = torch.randn(tasks + 1, PARAMETERS, generator=random)
    memory = own[:-1] + 0.5 * own[:1]
    gradient = own[-1] - 0.3 * memory.mean(dim=0)
    return (
        length * gradient / gradient.norm(),
        length * memory / memory.norm(dim=1, keepdim=True),
    )


def published(gradient: torch.Tensor, memory: torch.Tensor, solve: Callable[..., Any]) -> Any:
    """The arithmetic of the published code, in our words."""
    m, g = memory.double().numpy(), gradient.double().numpy()
    k = len(m)
    gram = m @ m.T
    gram = (gram + gram.T) / 2 + RIDGE * np.eye(k)
    v = solve(gram, -(m @ g), np.eye(k), np.zeros(k))[0]
    return torch.from_numpy(v @ m + g).float()


def per_neuron(gradient: torch.Tensor, memory: torch.Tensor) -> Restricted:
    """Ours with a constraint per task and neuron, on gradients as a network has them."""
    sizes = [shape.numel() for shape in SHAPES.values()]
    parts = zip(gradient.split(sizes), memory.split(sizes, dim=1), SHAPES.values(), strict=True)
    shaped = [(g.view(shape), m.reshape(len(m), *shape)) for g, m, shape in parts]
    return restrict_pieces([g for g, _ in shaped], [m for _, m in shaped], NEURONS)


def timed(function: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    """Median CPU milliseconds, and what came out."""
    found, out = [], None
    for _ in range(repeats):
        started = time.process_time()
        out = function()
        found.append(time.process_time() - started)
    return 1e3 * median(found), out


def worst(z: torch.Tensor, memory: torch.Tensor) -> float:
    """The smallest cosine with a memory's gradient."""
    return float((memory @ z / (memory.norm(dim=1) * z.norm())).min())


def main(arguments: list[str] | None = None) -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--peer", default="")
    given = parser.parse_args(arguments)
    if given.peer:
        sys.path.insert(0, given.peer)
    try:
        solve = importlib.import_module("quadprog").solve_qp
    except ImportError:
        solve = None
        print("quadprog is not installed: ours alone\n")
    torch.set_num_threads(1)
    print("| tasks | ours, ms | quadprog, ms | ours per neuron, ms | worst cosine at 1: ours,"
          " peer | at .01: ours, peer |")  # fmt: skip
    print("|---|---|---|---|---|---|")
    for tasks in (2, 9) if given.quick else (2, 5, 9, 19, 49):
        cosines = []
        cells: list[float | None] = []
        for length in (1.0, 0.01):
            g, m = drawn(tasks, length, tasks)
            repeats = 3 if given.quick else 15
            ours, z = timed(lambda g=g, m=m: restrict(g, m).direction[0], repeats)
            pair = [worst(z, m)]
            theirs = None
            if solve is not None:
                theirs, z = timed(lambda g=g, m=m: published(g, m, solve), repeats)
                pair.append(worst(z, m))
            cosines.append(", ".join(f"{max(-1.0, c):.0e}" for c in pair))
            if length == 1.0:
                fine, _ = timed(lambda g=g, m=m: per_neuron(g, m), repeats)
                cells = [ours, theirs, fine]
        told = " | ".join("" if c is None else f"{c:.1f}" for c in cells)
        print(f"| {tasks} | {told} | {' | '.join(cosines)} |", flush=True)


if __name__ == "__main__":
    main()
