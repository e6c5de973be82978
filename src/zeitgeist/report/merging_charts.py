"""The merging demo's pictures: what every model can do, and what it cost."""

import re
from collections.abc import Sequence
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure, place_labels
from zeitgeist.studies.merging_arms import MergingResults, ScoredModel
from zeitgeist.studies.merging_scores import ALL, lookup

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

KINDS = {
    # Okabe and Ito's colours, which people who see fewer colours tell apart; shapes say it again.
    "base": ("Base", "#999999", "square"),
    "expert": ("Expert", "#E69F00", "triangle-up"),
    "merge": ("Merge", "#3A8FD0", "circle"),
    "lines": ("Merge + LiNeS", "#CC79A7", "diamond"),
}
ROWS: dict[str, Any] = {"width": "container", "height": {"step": 26}}
WIDTH, HEIGHT = 620.0, 400.0  # of the scatter, whose labels are placed for this size


def figures(results: MergingResults) -> list[Figure]:
    """Every picture of the page, in order.

    Parameters
    ----------
    results
        Of a run; pictures whose numbers are not in it are left out.
    """
    made = [
        Figure(
            "tasks",
            "What each model can do",
            "Share of test items answered exactly, per task. An expert masters its own task and "
            "no other; a merge should be bright in every column.",
            task_map(results),
        ),
        Figure(
            "kept-and-lost",
            "Kept against lost",
            "Up: more of the experts' skill is kept. Left: less of the base's command of English "
            "and Python is lost. The best corner is the upper left. Bars are 95 % intervals.",
            kept_and_lost(results),
        ),
        Figure(
            "held-out",
            "What it cost on text nobody trained on",
            "Perplexity relative to the base, per text; 1 is the base, larger is worse. "
            "Bars are 95 % intervals.",
            held_out(results),
        ),
    ]
    if results.conflicts:
        made += [
            Figure(
                "conflicts",
                "Where the experts pull apart",
                "Of the entries that both experts of a pair change most (the largest 20 % of "
                "each), the share that they push in opposite directions, layer by layer. 0.5 is "
                "what chance would give.",
                layer_map(results, "sign conflict", "share in conflict", 0.5),
            ),
            Figure(
                "updates",
                "How far each expert moved",
                "Size of the update of every layer, relative to the layer's weights.",
                layer_map(results, "relative norm", "norm of update / norm of base", None),
            ),
        ]
    return made


def task_map(results: MergingResults) -> alt.TopLevelMixin:
    """Models by tasks, coloured by the share of exact answers."""
    found = lookup(results.rows)
    columns = {**results.tasks, ALL: "All tasks"}
    cells = [
        {
            "model": model.title,
            "task": title,
            "value": row.value,
            "low": row.low,
            "high": row.high,
        }
        for model in results.models
        for task, title in columns.items()
        if (row := found.get((model.slug, task, "exact_match")))
    ]
    cell = alt.Chart(alt.InlineData(values=cells)).encode(
        x=alt.X(
            "task:N",
            sort=list(columns.values()),
            title="task",
            axis=alt.Axis(labelAngle=-30, labelLimit=160, orient="top"),
        ),
        y=alt.Y("model:N", sort=_titles(results), title=None, axis=alt.Axis(labelLimit=190)),
        tooltip=[
            alt.Tooltip("model:N"),
            alt.Tooltip("task:N"),
            alt.Tooltip("value:Q", format=".1%", title="exact answers"),
            alt.Tooltip("low:Q", format=".1%", title="95 % from"),
            alt.Tooltip("high:Q", format=".1%", title="to"),
        ],
    )
    shade = alt.Color(
        "value:Q",
        title="exact answers",
        scale=alt.Scale(domain=[0, 1], scheme="cividis"),
        legend=alt.Legend(format=".0%", orient="bottom", values=[0, 0.5, 1]),
    )
    number = alt.condition("datum.value > 0.45", alt.value("black"), alt.value("white"))
    text = cell.mark_text(fontSize=12).encode(text=alt.Text("value:Q", format=".0%"), color=number)
    return alt.layer(cell.mark_rect().encode(color=shade), text).properties(**ROWS)


def kept_and_lost(results: MergingResults) -> alt.TopLevelMixin:
    """Every model as a point: perplexity ratio across, share of the experts' skill up."""
    found = lookup(results.rows)
    points: list[dict[str, Any]] = [
        {
            "model": model.title.removeprefix("Expert: "),
            "kind": KINDS[model.kind][0],
            "kept": kept.value,
            "kept_low": kept.low,
            "kept_high": kept.high,
            "ratio": ratio.value,
            "ratio_low": ratio.low,
            "ratio_high": ratio.high,
        }
        for model in results.models
        if (kept := found.get((model.slug, ALL, "kept")))
        and (ratio := found.get((model.slug, ALL, "perplexity_ratio")))
    ]
    right = max((p["ratio_high"] for p in points), default=1.0)
    left = min((p["ratio_low"] for p in points), default=1.0)
    across = alt.Scale(domain=[left - 0.02, right + 0.02], zero=False, nice=False)
    top = max(1.0, *(p["kept_high"] for p in points)) if points else 1.0
    sides = place_labels(
        [
            (
                WIDTH * (p["ratio"] - left + 0.02) / (right - left + 0.04),
                HEIGHT * (1 - p["kept"] / top),
                p["model"],
            )
            for p in points
        ],
        width=WIDTH,
    )
    x = alt.X("ratio:Q", title="held-out perplexity / the base's (1: nothing lost)", scale=across)
    y = alt.Y(
        "kept:Q",
        title="exact answers / the expert's, mean over tasks",
        scale=alt.Scale(domain=[0, top]),
        axis=alt.Axis(format=".0%"),
    )
    low_x, low_y = x.copy(), y.copy()
    low_x.shorthand, low_y.shorthand = "ratio_low:Q", "kept_low:Q"
    data = alt.InlineData(values=points)
    kind = alt.Color("kind:N", title=None, scale=_colours(results), legend=_legend())
    # Points first: the legend takes its looks from the first layer.
    layers = [
        alt.Chart(data)
        .mark_point(size=110, filled=True, opacity=1)
        .encode(
            x=x,
            y=y,
            color=kind,
            shape=alt.Shape("kind:N", title=None, scale=_shapes(results), legend=_legend()),
            tooltip=[
                alt.Tooltip("model:N"),
                alt.Tooltip("kept:Q", format=".1%"),
                alt.Tooltip("ratio:Q", format=".3f", title="perplexity ratio"),
            ],
        ),
        alt.Chart(data).mark_rule().encode(x=x, y=low_y, y2="kept_high:Q", color=kind),
        alt.Chart(data).mark_rule().encode(x=low_x, x2="ratio_high:Q", y=y, color=kind),
    ]
    for point, (dx, dy, align) in zip(points, sides, strict=True):
        layers.append(
            alt.Chart(alt.InlineData(values=[point]))
            .mark_text(align=align, dx=dx, dy=dy, fontSize=11)
            .encode(x=x, y=y, text="model:N")
        )
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


def held_out(results: MergingResults) -> alt.TopLevelMixin:
    """Perplexity relative to the base of every model, per text."""
    found = lookup(results.rows)
    points: list[dict[str, Any]] = [
        {
            "model": model.title,
            "text": title,
            "ratio": ratio.value,
            "low": ratio.low,
            "high": ratio.high,
            "perplexity": found[model.slug, text, "perplexity"].value,
        }
        for model in results.models
        for text, title in results.texts.items()
        if (ratio := found.get((model.slug, text, "perplexity_ratio")))
    ]
    texts = list(results.texts.values())
    data = alt.InlineData(values=points)
    model = alt.Y("model:N", sort=_titles(results), title=None, axis=alt.Axis(labelLimit=190))
    side = alt.YOffset("text:N", sort=texts)
    colour = alt.Color(
        "text:N",
        title=None,
        sort=texts,
        scale=alt.Scale(domain=texts, range=["#3A8FD0", "#E69F00"]),
        legend=_legend(),
    )
    shape = alt.Shape(
        "text:N",
        title=None,
        sort=texts,
        scale=alt.Scale(domain=texts, range=["circle", "square"]),
        legend=_legend(),
    )
    across = alt.X(
        "ratio:Q", title="perplexity / the base's", scale=alt.Scale(zero=False, nice=True)
    )
    bars = (
        alt.Chart(data)
        .mark_rule()
        .encode(
            x=alt.X("low:Q", title="perplexity / the base's"),
            x2="high:Q",
            y=model,
            yOffset=side,
            color=colour,
        )
    )
    dots = (
        alt.Chart(data)
        .mark_point(size=60, filled=True, opacity=1)
        .encode(
            x=across,
            y=model,
            yOffset=side,
            color=colour,
            shape=shape,
            tooltip=[
                alt.Tooltip("model:N"),
                alt.Tooltip("text:N"),
                alt.Tooltip("perplexity:Q", format=".2f"),
                alt.Tooltip("ratio:Q", format=".3f"),
            ],
        )
    )
    one = alt.Chart(alt.InlineData(values=[{"one": 1}])).mark_rule(strokeDash=[4, 3])
    layered = alt.layer(one.encode(x="one:Q"), bars, dots)
    return layered.properties(**{**ROWS, "height": {"step": 30, "for": "position"}})


def layer_map(results: MergingResults, quantity: str, title: str, top: float | None) -> alt.Chart:
    """Layers across, experts or pairs of experts down, coloured by a quantity of the updates."""
    names = results.tasks
    cells = [
        {
            "layer": int(found[1]),
            "who": " / ".join(
                names.get(row[key], row[key]) for key in ("other", "expert") if key in row
            ),
            "value": row["value"],
        }
        for row in results.conflicts
        if row["quantity"] == quantity and (found := re.search(r"(\d+)$", row["block"]))
    ]
    scale = alt.Scale(scheme="cividis", zero=True, clamp=True)
    if top is not None:
        scale = alt.Scale(scheme="cividis", domain=[0, top], clamp=True)
    chart = (
        alt.Chart(alt.InlineData(values=cells))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer", axis=alt.Axis(labelAngle=0, labelOverlap=True)),
            y=alt.Y("who:N", title=None, sort=None, axis=alt.Axis(labelLimit=190)),
            color=alt.Color(
                "value:Q",
                title=title,
                scale=scale,
                legend=alt.Legend(orient="bottom", titleLimit=320),
            ),
            tooltip=["who:N", "layer:O", alt.Tooltip("value:Q", format=".3g", title=title)],
        )
    )
    made: alt.Chart = chart.properties(**ROWS)
    return made


def _titles(results: MergingResults) -> list[str]:
    return [model.title for model in results.models]


def _kinds(models: Sequence[ScoredModel]) -> list[tuple[str, str, str]]:
    present = {model.kind for model in models}
    return [look for kind, look in KINDS.items() if kind in present]


def _colours(results: MergingResults) -> alt.Scale:
    looks = _kinds(results.models)
    return alt.Scale(domain=[name for name, _, _ in looks], range=[c for _, c, _ in looks])


def _shapes(results: MergingResults) -> alt.Scale:
    looks = _kinds(results.models)
    return alt.Scale(domain=[name for name, _, _ in looks], range=[s for _, _, s in looks])


def _legend() -> Any:
    return alt.Legend(orient="bottom", direction="horizontal", columns=2, labelLimit=320)
