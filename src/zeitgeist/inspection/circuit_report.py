"""What came of testing a circuit: a record per test, for programs and for people."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

Outcome = Literal["passes", "fails", "not testable"]


@dataclass(frozen=True)
class TestRecord:
    """One test of a circuit.

    ``null`` says what is assumed until it is rejected. In an ideal test rejection is bad news, in
    the others it is what a special circuit needs; ``outcome`` says which it was. ``effects`` stand
    beside p because p says nothing of size. ``table`` has a row per edge, or per size of random
    circuits; ``reference`` is what the circuit was compared with.
    """

    __test__ = False  # not one of pytest's

    name: str
    null: str
    n: int
    statistic: float
    p: float
    rejected: bool
    outcome: Outcome
    effects: Mapping[str, float | None]
    warnings: tuple[str, ...] = ()
    table: tuple[Mapping[str, Any], ...] = ()
    reference: tuple[float, ...] = ()


@dataclass(frozen=True)
class CircuitReport:
    """A circuit, how it scores, and what every test says.

    ``scores`` holds one number per example, lower is better, of the whole model, the circuit, its
    complement and of everything cut; ``faithfulness`` is the share of the way from everything cut
    to the model that the circuit goes, None where both are one.
    """

    graph: Mapping[str, Any]
    edges: tuple[str, ...]
    total: int
    options: Mapping[str, Any]
    scores: Mapping[str, tuple[float, ...]]
    faithfulness: Mapping[str, float | None]
    tests: tuple[TestRecord, ...]
    forwards: int

    def test(self, name: str) -> TestRecord:
        """The record of one test."""
        return next(each for each in self.tests if each.name == name)

    def to_json(self) -> dict[str, Any]:
        """Everything, for a file."""
        return asdict(self)

    def text(self) -> str:
        """For people."""
        return "\n".join(self._lines())

    def _lines(self) -> Iterator[str]:
        share = 100 * len(self.edges) / self.total
        yield f"{len(self.edges):,} of {self.total:,} edges ({share:.3g} %)"
        means = {key: sum(values) / len(values) for key, values in self.scores.items()}
        yield (
            f"mean score, lower is better: model {means['model']:.4g}, circuit "
            f"{means['circuit']:.4g}, complement {means['complement']:.4g}, all cut "
            f"{means['cut']:.4g}"
        )
        for key, value in self.faithfulness.items():
            yield f"faithfulness of the {key}: {'none' if value is None else f'{value:.3f}'}"
        yield ""
        yield f"{'test':14s} {'outcome':13s} {'p':>9s} {'statistic':>10s}  effects"
        for each in self.tests:
            told = ", ".join(
                f"{key} {'-' if value is None else f'{value:.4g}'}"
                for key, value in each.effects.items()
            )
            yield f"{each.name:14s} {each.outcome:13s} {each.p:9.3g} {each.statistic:10.4g}  {told}"
        for each in self.tests:
            for words in each.warnings:
                yield f"{each.name}: {words}"
        flagged = [
            row["edge"]
            for each in self.tests
            for row in each.table
            if row.get("rejected") is True and "edge" in row
        ]
        if flagged:
            shown = ", ".join(flagged[:12]) + (" ..." if len(flagged) > 12 else "")
            yield f"edges that matter no more than random ones: {shown}"
