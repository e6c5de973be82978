"""Testing a circuit, many circuits in one pass against the published scheme.

    python -m benchmarks.circuits            40 random circuits and edges per test
    python -m benchmarks.circuits --quick    10

The published scheme runs one circuit at a time and sums every receiver's input edge by edge from
objects; it deep-copies the graph of such objects for every circuit. Written here without the rest
of that code, it runs as many circuits as we do: those of sufficiency, necessity and minimality of a
random circuit of 30 edges. Graphs of the induction model (2 layers x 4 heads, 10 and 100 sequences)
and of the docstring model (4 x 8, 10 sequences). One thread, CPU time. Beside it: one pass of edge
attribution patching, and discovery by pruning with all tests.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from zeitgeist.inspection.circuit import CircuitOptions, DiscoveryOptions, discover, verify
from zeitgeist.inspection.circuit_discovery import eap
from zeitgeist.inspection.circuit_graph import Graph, PathSampler
from zeitgeist.inspection.circuit_models import SmallConfig, SmallTransformer
from zeitgeist.inspection.circuit_runner import CircuitRunner, trace
from zeitgeist.inspection.circuit_tasks import nll, repeated_tokens


@dataclass
class Edge:
    """An edge as an object."""

    source: int
    receiver: int
    present: bool


class Network:
    """A graph of edge objects around a model, run one circuit at a time."""

    def __init__(self, graph: Graph) -> None:
        self.edges = {
            (int(u), int(r)): Edge(int(u), int(r), True) for u, r in np.argwhere(graph.allowed)
        }

    def only(self, circuit: np.ndarray) -> "Network":
        """A deep copy with other edges present."""
        made = copy.deepcopy(self)
        for key, edge in made.edges.items():
            edge.present = bool(circuit[key])
        return made

    def logits(self, model: SmallTransformer, tokens: Tensor, ablated: Tensor) -> Tensor:
        """One run."""
        graph, written = model.graph, list(model.embed(tokens))
        into: dict[int, list[Edge]] = {}
        for edge in self.edges.values():
            into.setdefault(edge.receiver, []).append(edge)

        def received(column: int, biases: int) -> Tensor:
            total = torch.zeros_like(written[0])
            for edge in into[column]:
                total = total + (written if edge.present else ablated)[edge.source]
            for layer in range(biases):
                total = total + model.bias(layer)
            return total

        for layer in range(graph.layers):
            first, heads = graph.first_receiver(layer), graph.heads
            inputs = torch.stack([received(first + i, layer) for i in range(3 * heads)])
            written += list(model.heads(layer, *inputs.split(heads), range(heads)))
        return model.logits(received(len(graph.receivers) - 1, graph.layers))


@torch.no_grad()
def one_at_a_time(
    model: SmallTransformer, runner: CircuitRunner, circuit: np.ndarray, draws: int
) -> tuple[float, int]:
    """CPU seconds and forward passes of the three verdicts, as published."""
    pairs, graph = runner.pairs, model.graph
    ablated, own = trace(model, pairs.corrupted).outputs, model(pairs.clean)
    network, passes = Network(graph), 0

    def score(edges: np.ndarray) -> np.ndarray:
        nonlocal passes
        passes += 1
        out = network.only(edges).logits(model, pairs.clean, ablated)
        return nll(out, pairs, own).double().numpy()

    sampler, rng = PathSampler(graph), np.random.default_rng(0)
    started = time.process_time()
    whole = score(circuit)
    for row, column in np.argwhere(circuit):
        less = circuit.copy()
        less[row, column] = False
        np.square(score(less) - whole).mean()
    for _ in range(draws):
        more = circuit | sampler.path(rng)
        row, column = np.argwhere(more)[rng.integers(int(more.sum()))]
        less = more.copy()
        less[row, column] = False
        np.square(score(more) - score(less)).mean()
        drawn = sampler.circuit(int(circuit.sum()), rng)
        score(drawn)
        score(graph.allowed & ~drawn)
    score(graph.allowed & ~circuit)
    return time.process_time() - started, passes


SETTINGS = {
    "2 x 4 heads, 10 sequences": (2, 4, 10, 512),
    "2 x 4 heads, 100 sequences": (2, 4, 100, 512),
    "2 x 4 heads, 100 sequences, one circuit a pass": (2, 4, 100, 100),
    "4 x 8 heads, 10 sequences": (4, 8, 10, 128),
}
"""Layers, heads, sequences, rows of a pass."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per setting."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    draws = 10 if parser.parse_args(arguments).quick else 40
    torch.set_num_threads(1)
    tests = ("minimality", "sufficiency", "necessity")
    print("| graph | edges | CPU s, one at a time | ours | ratio | passes | ours | ratio |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (layers, heads, count, rows) in SETTINGS.items():
        model = SmallTransformer(SmallConfig(24, 16, 48, layers, heads, 12)).eval()
        pairs = repeated_tokens(count, 16, periods=(4, 8), tokens=(0, 24), seed=0)
        runner = CircuitRunner(model, pairs, nll)
        circuit = PathSampler(model.graph).circuit(30, np.random.default_rng(1))
        theirs, passes = one_at_a_time(model, runner, circuit, draws)
        options = CircuitOptions(draws=draws, batch_size=rows)
        started = time.process_time()
        report = verify(model, pairs, circuit, "nll", options, tests=tests, progress=False)
        own = time.process_time() - started
        print(
            f"| {name} | {model.graph.edge_count:,} | {theirs:.2f} | {own:.2f} | "
            f"{theirs / own:.1f}x | {passes} | {report.forwards} | "
            f"{passes / report.forwards:.1f}x |",
            flush=True,
        )
    model = SmallTransformer(SmallConfig(24, 16, 48, 2, 4, 12)).eval()
    pairs = repeated_tokens(100, 16, periods=(4, 8), tokens=(0, 24), seed=0)
    runner, spent = CircuitRunner(model, pairs, nll), []
    for _ in range(5):
        started = time.process_time()
        eap(runner)
        spent.append(time.process_time() - started)
    print(f"\nEdge attribution patching of 106 edges, 100 sequences: {min(spent):.3f} CPU s.")
    started = time.process_time()
    options = CircuitOptions(batch_size=100)
    found = discover(
        model, pairs, "nll", DiscoveryOptions(method="prune", batch_size=100), progress=False
    )
    verify(model, pairs, found.circuit, "nll", options, progress=False)
    print(
        f"Discovery by pruning and all tests, 100 draws: {time.process_time() - started:.2f} CPU s."
    )


if __name__ == "__main__":
    main()
