"""The merging demo's page: one HTML file that says what every merge kept and what it lost."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from zeitgeist.report.merging_charts import figures
from zeitgeist.report.pages import write_page
from zeitgeist.studies.merging_arms import MergingResults, ScoredModel
from zeitgeist.studies.merging_scores import ALL, Row, lookup
from zeitgeist.studies.merging_tasks import TASKS, split


@dataclass(frozen=True)
class Cell:
    """A number and what stands under it."""

    value: str
    detail: str


@dataclass(frozen=True)
class Line:
    """One model's line of the table; ``first`` of its kind."""

    model: ScoredModel
    cells: tuple[Cell, ...]
    first: bool


def write_merging_page(results: MergingResults, out: Path) -> None:
    """Write ``index.html`` and its pictures.

    Parameters
    ----------
    results
        Of `zeitgeist.studies.merging.run`.
    out
        An existing directory.
    """
    merges = merged(results)
    learned = [TASKS[slug] for slug in results.tasks]
    write_page(
        out,
        "merging.html",
        figures(results),
        results=results,
        merges=merges,
        table=table(results),
        findings=list(findings(results)),
        examples=[(task, split(task, train=0, test=1, seed=0).test[0]) for task in learned],
        whole=next((m for m in merges if not is_adapter_merge(m)), merges[0]),
        adapters=[m for m in merges if is_adapter_merge(m)],
    )


def merged(results: MergingResults) -> list[ScoredModel]:
    """The models that were made by merging."""
    return [model for model in results.models if model.kind in ("merge", "lines")]


def is_adapter_merge(model: ScoredModel) -> bool:
    """Whether the merge is itself an adapter."""
    return str(model.recipe.get("merge_method", "")).startswith("knots")


def table(results: MergingResults) -> list[Line]:
    """Every model: exact answers per task, share kept, perplexity per text."""
    found = lookup(results.rows)
    lines = []
    for model, before in zip(results.models, (None, *results.models), strict=False):
        cells = (
            *(_share(found, model.slug, task, "exact_match") for task in results.tasks),
            _share(found, model.slug, ALL, "kept"),
            *(_perplexity(found, model.slug, text) for text in results.texts),
        )
        lines.append(Line(model, cells, before is not None and before.kind != model.kind))
    return lines


def _share(found: Mapping[tuple[str, str, str], Row], model: str, task: str, metric: str) -> Cell:
    row = found.get((model, task, metric))
    if row is None:
        return Cell("", "")
    return Cell(f"{row.value:.0%}", f"{100 * row.low:.0f} to {100 * row.high:.0f}")


def _perplexity(found: Mapping[tuple[str, str, str], Row], model: str, text: str) -> Cell:
    value, ratio = found[model, text, "perplexity"], found[model, text, "perplexity_ratio"]
    if ratio.low == ratio.high == 1:
        return Cell(f"{value.value:.1f}", "")
    low, high = (change(bound).removesuffix("%") for bound in (ratio.low, ratio.high))
    return Cell(f"{value.value:.1f} ({change(ratio.value)})", f"{low} to {high}")


def change(ratio: float) -> str:
    """A ratio as a change.

    Examples
    --------
    >>> change(1.184), change(0.9961)
    ('+18%', '-0%')
    """
    return f"{100 * (ratio - 1):+.0f}%"


def findings(results: MergingResults) -> Iterator[str]:
    """What the numbers say, in sentences that could have come out otherwise."""
    found = lookup(results.rows)
    own = [found[f"expert-{task}", task, "exact_match"].value for task in results.tasks]
    start = [found["base", task, "exact_match"].value for task in results.tasks]
    yield (
        f"The experts answer {min(own):.0%} to {max(own):.0%} of their own task's items exactly; "
        f"the base answers {min(start):.0%} to {max(start):.0%}."
    )
    merges = merged(results)
    kept = {m.title: row for m in merges if (row := found.get((m.slug, ALL, "kept")))}
    if not kept:
        yield "No expert learned its task, so nothing can be said about what merges keep."
        return
    most = max(kept, key=lambda title: kept[title].value)
    close = [t for t in kept if t != most and kept[t].high >= kept[most].low]
    yield (
        f"{most} kept most of the experts' skill: {kept[most].value:.0%} "
        f"({kept[most].low:.0%} to {kept[most].high:.0%}). "
        + (
            f"The intervals of {_listed(close)} overlap with that."
            if close
            else "No other merge's interval reaches that."
        )
    )
    cost = {m.title: found[m.slug, ALL, "perplexity_ratio"] for m in merges}
    least, worst = (pick(cost, key=lambda title: cost[title].value) for pick in (min, max))
    yield (
        f"{least} lost least on held-out text (perplexity {change(cost[least].value)} against the "
        f"base), {worst} most ({change(cost[worst].value)}). The experts alone stand at "
        + _listed(
            [
                change(found[f"expert-{task}", ALL, "perplexity_ratio"].value)
                for task in results.tasks
            ]
        )
        + "."
    )
    for plain in merges:
        scaled = next((m for m in merges if m.slug == f"{plain.slug}_lines"), None)
        if scaled is not None and plain.title in kept and scaled.title in kept:
            yield (
                f"LiNeS on top of {plain.title}: kept {kept[plain.title].value:.0%} → "
                f"{kept[scaled.title].value:.0%}, perplexity {change(cost[plain.title].value)} → "
                f"{change(cost[scaled.title].value)}."
            )


def _listed(words: list[str]) -> str:
    """Words as a person would list them.

    Examples
    --------
    >>> _listed(["a", "b", "c"])
    'a, b and c'
    """
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
