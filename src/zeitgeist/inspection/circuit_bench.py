"""A circuit with its scores beside the model's, its complement's, and those of everything cut."""

from collections.abc import Iterator
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float
from tqdm import tqdm

from zeitgeist.inspection.circuit_graph import Graph
from zeitgeist.inspection.circuit_options import CircuitOptions
from zeitgeist.inspection.circuit_runner import CircuitRunner
from zeitgeist.inspection.circuit_statistics import differences


class Bench:
    """A circuit with its scores, from which every test is made.

    Parameters
    ----------
    runner
        Scores circuits.
    circuit
        The one in question.
    settings
        Of the tests.
    """

    def __init__(
        self,
        runner: CircuitRunner,
        circuit: Bool[np.ndarray, "s r"],
        settings: CircuitOptions,
    ) -> None:
        self.runner, self.circuit, self.settings = runner, circuit, settings
        self.progress: tqdm | None = None
        """A bar over circuits to move on."""
        self.graph: Graph = runner.graph
        self.whole = runner.model_scores
        self.complement = self.graph.allowed & ~circuit
        three = [circuit, self.complement, self.graph.empty()]
        self.own, self.without, self.cut = self.scores(iter(three), 3)

    def scores(
        self, circuits: Iterator[Bool[np.ndarray, "s r"]], count: int
    ) -> Float[np.ndarray, "c n"]:
        """Scores of circuits that are made as they are needed."""
        return self.runner.scores(circuits, count, progress=self.progress)

    def sides(self) -> dict[str, Float[np.ndarray, " n"]]:
        """Scores per example of everything that is compared."""
        return {
            "model": self.whole,
            "circuit": self.own,
            "complement": self.without,
            "cut": self.cut,
        }

    def rng(self, test: int) -> np.random.Generator:
        """Random numbers of one test."""
        return np.random.default_rng([self.settings.seed, test])

    def squared(
        self, scores: Float[np.ndarray, "c n"], other: Float[np.ndarray, "*_ n"]
    ) -> Float[np.ndarray, " c"]:
        """Mean squared difference of every circuit's scores to some, or each to its own."""
        apart = differences(scores, other, self.settings.tolerance)
        made: Float[np.ndarray, " c"] = np.square(apart).mean(axis=-1)
        return made

    @cached_property
    def delta(self) -> Float[np.ndarray, " n"]:
        """What the circuit scores above the model."""
        return differences(self.own, self.whole, self.settings.tolerance)

    @property
    def half(self) -> float:
        """What a tie counts."""
        return 0.5 if self.settings.ties == "half" else 0.0

    def faithfulness(self, scores: Float[np.ndarray, " n"]) -> float | None:
        """The share of the way from everything cut to the model."""
        far = float(self.cut.mean() - self.whole.mean())
        near = self.settings.tolerance * max(1.0, float(np.abs(self.whole).max()))
        return None if abs(far) <= near else float(self.cut.mean() - scores.mean()) / far
