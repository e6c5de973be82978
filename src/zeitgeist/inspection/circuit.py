"""Decide with tests whether some edges of a transformer are the circuit of a task, or find some.

Shi, Beltran-Velez, Nazaret, Zheng, Garriga-Alonso, Jesson, Makar, Blei: "Hypothesis testing the
circuit hypothesis in LLMs", arXiv 2410.13032. Three tests ask whether a circuit is ideal (as good
as the model, nothing left without it, nothing in it idle), two whether it is better than random
circuits of its size; each comes with the size of what it found.

    `verify`      test a circuit
    `discover`    find one, by gradients or by cutting

`zeitgeist.inspection.circuit_tests` says what each test asks, `circuit_graph` what an edge is,
`circuit_runner` how many circuits run at once.
"""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.inspection.circuit_bench import Bench
from zeitgeist.inspection.circuit_discovery import find_circuit
from zeitgeist.inspection.circuit_graph import Graph
from zeitgeist.inspection.circuit_llama import circuit_model
from zeitgeist.inspection.circuit_options import CircuitOptions, DiscoveryOptions
from zeitgeist.inspection.circuit_report import CircuitReport, TestRecord
from zeitgeist.inspection.circuit_runner import CircuitRunner
from zeitgeist.inspection.circuit_tasks import Pairs, Score, score_named
from zeitgeist.inspection.circuit_tests import TESTS

__all__ = [
    "CircuitOptions",
    "CircuitReport",
    "Discovery",
    "DiscoveryOptions",
    "TestRecord",
    "discover",
    "score_circuit",
    "verify",
]


@dataclass(frozen=True)
class Discovery:
    """A circuit that was found, and its mean score in a masked run.

    ``scores`` are those of all edges, None where edges were only cut. ``circuit_score`` lies
    between ``model_score`` and ``cut_score`` where the circuit is of any use; lower is better.
    """

    graph: Graph
    circuit: Bool[np.ndarray, "s r"]
    scores: Float[np.ndarray, "s r"] | None
    model_score: float
    circuit_score: float
    cut_score: float
    forwards: int

    @property
    def faithfulness(self) -> float | None:
        """The share of the way from everything cut to the model."""
        far = self.cut_score - self.model_score
        return (self.cut_score - self.circuit_score) / far if far else None


def discover(
    model: Any,
    pairs: Pairs,
    score: str | Score = "kl",
    options: DiscoveryOptions | None = None,
    *,
    progress: bool | None = None,
) -> Discovery:
    """Find the edges of a model that a task needs.

    Parameters
    ----------
    model
        As in `verify`.
    pairs
        Examples of the task. Test the circuit on others.
    score
        As in `verify`.
    options
        Method and size; None: EAP-IG, 200 edges.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    Discovery
        The circuit, and what it is worth in a masked run.

    Raises
    ------
    InputInvalid
        As `verify`; or nothing that leads from an input to the logits is left.
    """
    chosen = options or DiscoveryOptions()
    runner = _runner(model, pairs, score, chosen)
    circuit, scores = find_circuit(runner, chosen, progress=_shown(progress))
    own, cut = runner.scores([circuit, runner.graph.empty()], 2).mean(axis=1)
    return Discovery(
        runner.graph,
        circuit,
        scores,
        float(runner.model_scores.mean()),
        float(own),
        float(cut),
        runner.forwards,
    )


def score_circuit(
    model: Any,
    pairs: Pairs,
    circuit: Bool[np.ndarray, "s r"] | Sequence[str],
    score: str | Score = "kl",
    options: CircuitOptions | None = None,
) -> dict[str, list[float]]:
    """Scores of the model, of a circuit alone, of the model without it, and of everything cut.

    Parameters
    ----------
    model, pairs, circuit, score
        As in `verify`.
    options
        ``ablation`` and ``batch_size``; None: the defaults.

    Returns
    -------
    dict
        One score per example, by ``model``, ``circuit``, ``complement`` and ``cut``.

    Raises
    ------
    InputInvalid
        As `verify`.
    """
    bench = _bench(model, pairs, circuit, score, options or CircuitOptions())
    return {name: [float(x) for x in values] for name, values in bench.sides().items()}


def verify(
    model: Any,
    pairs: Pairs,
    circuit: Bool[np.ndarray, "s r"] | Sequence[str],
    score: str | Score = "kl",
    options: CircuitOptions | None = None,
    *,
    tests: Sequence[str] | None = None,
    progress: bool | None = None,
) -> CircuitReport:
    """Test whether some edges of a transformer are the circuit of a task.

    Shi, Beltran-Velez, Nazaret, Zheng, Garriga-Alonso, Jesson, Makar, Blei, arXiv 2410.13032. About
    edges + 4 x draws masked runs of all examples.

    Parameters
    ----------
    model
        A causal transformers model of Llama's or GPT-2's layout, or a
        `zeitgeist.inspection.circuit_models.SmallTransformer`.
    pairs
        Examples of the task, with replacements for what is cut.
    circuit
        Edges: names such as ``"a0.h1->a1.h0.q"``, or a boolean array, sources x receivers.
    score
        Per example, lower is better: ``"logit_difference"``, ``"probability_difference"``,
        ``"nll"``, ``"kl"``, ``"squared"``, or ``(outputs, pairs, the model's outputs) -> numbers``.
    options
        Levels, draws, ablation, ties; None: the published ones, with our corrections.
    tests
        Which of ``equivalence``, ``within``, ``independence``, ``minimality``, ``sufficiency`` and
        ``necessity``; None: all.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    CircuitReport
        A record per test, with ``text()`` and ``to_json()``.

    Raises
    ------
    InputInvalid
        The model has another layout or is in training mode, an edge is not there or goes
        backwards, pairs do not fit the score or the ablation, or there is no such test.

    Examples
    --------
    >>> from zeitgeist.inspection.circuit_tracr import tracr_program
    >>> program = tracr_program("proportion")
    >>> report = verify(program.model, program.pairs(20, seed=0), program.circuit, "squared",
    ...                 CircuitOptions(ablation="zero", draws=40), progress=False)
    >>> report.test("minimality").outcome, report.test("sufficiency").outcome
    ('passes', 'passes')
    """
    chosen = options or CircuitOptions()
    names = list(TESTS) if tests is None else list(tests)
    for name in names:
        if name not in TESTS:
            raise InputInvalid(f"no test is called {name!r}", mend=did_you_mean(name, TESTS))
    if not names:
        raise InputInvalid("no test is asked for", mend=f"take some of {', '.join(TESTS)}")
    bench = _bench(model, pairs, circuit, score, chosen)
    runner, size = bench.runner, int(bench.circuit.sum())
    tried = min(size, chosen.minimality_edges or size)
    total = ("minimality" in names) * (tried + 2 * chosen.draws)
    flexible = ("sufficiency" in names) + ("necessity" in names)
    total += flexible * (1 + len(chosen.sizes)) * chosen.draws
    with tqdm(total=total, desc="circuits", unit="circuit", disable=not _shown(progress)) as bar:
        bench.progress = bar
        records = tuple(TESTS[name](bench) for name in names)
    return CircuitReport(
        asdict(runner.graph),
        tuple(runner.graph.names(bench.circuit)),
        runner.graph.edge_count,
        asdict(chosen),
        {name: tuple(float(x) for x in values) for name, values in bench.sides().items()},
        {
            "circuit": bench.faithfulness(bench.own),
            "complement": bench.faithfulness(bench.without),
        },
        records,
        runner.forwards,
    )


def _runner(
    model: Any, pairs: Pairs, score: str | Score, options: CircuitOptions | DiscoveryOptions
) -> CircuitRunner:
    return CircuitRunner(
        circuit_model(model),
        pairs,
        score_named(score),
        ablation=options.ablation,
        rows=options.batch_size,
    )


def _bench(
    model: Any,
    pairs: Pairs,
    circuit: Bool[np.ndarray, "s r"] | Sequence[str],
    score: str | Score,
    options: CircuitOptions,
) -> Bench:
    runner = _runner(model, pairs, score, options)
    return Bench(runner, _edges(runner.graph, circuit), options)


def _edges(
    graph: Graph, circuit: Bool[np.ndarray, "s r"] | Sequence[str]
) -> Bool[np.ndarray, "s r"]:
    if isinstance(circuit, np.ndarray):
        if circuit.shape != graph.allowed.shape:
            raise InputInvalid(
                f"the circuit is {circuit.shape}, and the model {graph.allowed.shape}",
                mend="give sources x receivers of this model",
            )
        if (circuit & ~graph.allowed).any():
            raise InputInvalid(
                f"the circuit has edges that go backwards: {graph.names(circuit & ~graph.allowed)}",
                mend="leave them out",
            )
        found = circuit
    else:
        found = graph.circuit(circuit)
    if not found.any():
        raise InputInvalid("the circuit has no edge", mend="name at least one")
    return found


def _shown(progress: bool | None) -> bool:
    return sys.stderr.isatty() if progress is None else progress
