"""A study's arms as a table: the mean of every metric, with its interval.

Means are over seeds and over whatever else was varied by numbers (widths, numbers of experts).
Settings that are words (a family of models, a kind of base) are different experiments, so that
each has lines of its own.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeitgeist.evidence import Arm, Evidence, Metric, summary
from zeitgeist.report.sentences import count, interval, number

_CONTENT = frozenset({"study", "arm", "seed", "item", "metric", "value", "seconds", "cell"})
MOST_GROUPS = 8
MOST_VALUES = 8  # that a note lists

Circumstances = tuple[tuple[str, Any], ...]


@dataclass(frozen=True)
class Column:
    """A metric, and what its intervals are over; empty where cells differ in that."""

    metric: Metric
    over: str


@dataclass(frozen=True)
class Cell:
    """A mean; ``spread`` is its interval, ``note`` what a reader must know of this cell."""

    value: str
    spread: str
    note: str


@dataclass(frozen=True)
class Line:
    """One arm's line of the table."""

    arm: Arm
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ArmsTable:
    """Lines in groups, each with the setting that its lines have in common; notes go below."""

    columns: tuple[Column, ...]
    groups: tuple[tuple[str, tuple[Line, ...]], ...]
    notes: tuple[str, ...]


def arms_table(evidence: Evidence, metrics: Sequence[Metric]) -> ArmsTable:
    """Mean of some metrics for every arm, with 95 % intervals.

    Parameters
    ----------
    evidence
        Finished evidence.
    metrics
        In the order of the columns; those without a number are left out.
    """
    keys = _word_settings(evidence)
    cells: dict[tuple[Any, ...], dict[str, Any]] = {}
    met: dict[tuple[Any, ...], set[Circumstances]] = {}
    for row in evidence.rows:
        circumstances = {k: v for k, v in row.items() if k not in _CONTENT}
        group = tuple(circumstances.pop(key, None) for key in keys)
        seen = met.setdefault((group, row["arm"], row["metric"]), set())
        seen.add(tuple(sorted(circumstances.items())))
    columns = []
    for metric in metrics:
        found = summary(evidence.rows, metric.slug, ["arm", *keys])
        cells |= {
            (tuple(cell[key] for key in keys), cell["arm"], metric.slug): cell for cell in found
        }
        if found:
            bases = {_basis(cell) for cell in found}
            columns.append(Column(metric, bases.pop() if len(bases) == 1 else ""))
    groups, partly = [], False
    for group in dict.fromkeys(place[0] for place in met):
        lines = []
        for arm in evidence.arms:
            made = []
            for column in columns:
                place = (group, arm.slug, column.metric.slug)
                cell = cells.get(place)
                fewer = cell is not None and met[place] < _everywhere(met, group, column.metric)
                partly |= fewer
                made.append(_cell(cell, column, star="*" if fewer else ""))
            if any(cell.value for cell in made):
                lines.append(Line(arm, tuple(made)))
        if lines:
            groups.append((_named(zip(keys, group, strict=True)), tuple(lines)))
    return ArmsTable(tuple(columns), tuple(groups), _notes(met, partly))


def _word_settings(evidence: Evidence) -> list[str]:
    """Settings whose values are words, where they have few combinations."""
    values: dict[str, set[Any]] = {}
    for setting in evidence.settings:
        for key, value in setting.items():
            values.setdefault(key, set()).add(value)
    keys = [
        key
        for key, seen in values.items()
        if len(seen) > 1 and all(isinstance(value, str) for value in seen)
    ]
    combinations = {tuple(setting.get(key) for key in keys) for setting in evidence.settings}
    return keys if len(combinations) <= MOST_GROUPS else []


def _everywhere(
    met: Mapping[tuple[Any, ...], set[Circumstances]], group: tuple[Any, ...], metric: Metric
) -> set[Circumstances]:
    """Every circumstance in which any arm of a group has a metric."""
    return set().union(
        *(seen for (g, _, slug), seen in met.items() if g == group and slug == metric.slug)
    )


def _basis(cell: Mapping[str, Any]) -> str:
    seeds = count(cell["seeds"], "seed")
    if cell["over"] == "seeds":
        return f"interval over {seeds}"
    if cell["over"] == "items":
        return f"interval over items of {seeds}"
    return f"{seeds}, no interval"


def _cell(cell: Mapping[str, Any] | None, column: Column, *, star: str) -> Cell:
    if cell is None:
        return Cell("", "", "")
    d3 = column.metric.format
    spread = interval(cell["low"], cell["high"], d3, seeds=cell["seeds"]) if cell["over"] else ""
    return Cell(number(cell["value"], d3) + star, spread, "" if column.over else _basis(cell))


def _named(setting: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(
        f"{name.replace('_', ' ')} {value}" for name, value in setting if value is not None
    )


def _notes(met: Mapping[tuple[Any, ...], set[Circumstances]], partly: bool) -> tuple[str, ...]:
    varied: dict[str, dict[Any, None]] = {}
    for name, value in sorted(
        ((name, value) for seen in met.values() for each in seen for name, value in each),
        key=lambda pair: (pair[0], isinstance(pair[1], str), pair[1]),
    ):
        varied.setdefault(name, {})[value] = None
    said = [
        f"{name.replace('_', ' ')} "
        + (", ".join(map(str, seen)) if len(seen) <= MOST_VALUES else f"({len(seen)} values)")
        for name, seen in varied.items()
        if len(seen) > 1
    ]
    notes = [f"Means are over {'; '.join(said)}."] if said else []
    if partly:
        notes.append(
            "* Measured under fewer of these than other arms, so that the mean is not comparable "
            "with theirs."
        )
    return tuple(notes)
