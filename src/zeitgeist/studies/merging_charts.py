"""The pictures of the merging comparison: what every model can do, and what it cost."""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import CHARACTER, LINE, Figure, Side, place_labels
from zeitgeist.studies.language_tasks import TASKS
from zeitgeist.studies.looks_charts import (
    GREY,
    ORANGE,
    PINK,
    REFERENCE,
    SKY,
    SOLID,
    Look,
    across,
    encodings,
    ends,
    frame,
    how_sure,
    in_rows,
    interval_of,
    language_model,
    number_of_seeds,
    tooltips,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

KINDS: Mapping[str, Look] = {
    "Base": (GREY, "square", SOLID),
    "Expert": (ORANGE, "triangle-up", SOLID),
    "Merge": (SKY, "circle", SOLID),
    "Merge + LiNeS": (PINK, "diamond", SOLID),
}
TEXTS: Mapping[str, str] = {"english": "English", "code": "Python"}
TEXT_LOOKS: Mapping[str, Look] = {
    "English": (SKY, "circle", SOLID),
    "Python": (ORANGE, "square", SOLID),
}
ALL = "All"
ROWS: dict[str, Any] = {"width": "container", "height": {"step": 26}}
WIDTH, HEIGHT = 560.0, 400.0  # of the scatter, whose labels are placed for this size

Point = dict[str, Any]


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    if cells := list(_exact(evidence)):
        made.append(
            Figure(
                "tasks",
                "What each model can do",
                "Share of test items answered exactly, per task "
                f"({number_of_seeds(cells)}). An expert masters its own task and no other; a merge "
                f"should be bright in every column. Hovering tells {interval_of(cells)}.",
                task_map(cells),
            )
        )
    if both := _kept_and_lost(evidence):
        made.append(
            Figure(
                "kept-and-lost",
                "Kept against lost",
                "Up: more of the experts' skill is kept. Left: less of the base's command of "
                "English and Python is lost. The best corner is the upper left; the dashed line is "
                "the base. A thin line leads from a merge to the same merge with LiNeS. "
                f"{how_sure(both)}",
                kept_and_lost(both),
            )
        )
    if costs := list(_ratios(evidence)):
        made.append(
            Figure(
                "held-out",
                "What it cost on text nobody trained on",
                "Perplexity relative to the base, per text; 1 (dashed) is the base, larger is "
                f"worse. {how_sure(costs)}",
                held_out(costs),
            )
        )
    if conflicts := list(_layers(evidence, "sign_conflict")):
        made.append(
            Figure(
                "conflicts",
                "Where the experts pull apart",
                "Of the entries that both experts of a pair change most (the largest 20 % of "
                "each), the share that they push in opposite directions, layer by layer of "
                f"{language_model(evidence)} ({number_of_seeds(conflicts)}). 50 % is what chance "
                "would give.",
                layer_map(conflicts, "share in conflict (50 %: chance)", "%", 0.5),
            )
        )
    if norms := list(_layers(evidence, "relative_norm")):
        made.append(
            Figure(
                "updates",
                "How far each expert moved",
                "Size of the update of every layer, relative to the layer's weights "
                f"({number_of_seeds(norms)}).",
                layer_map(norms, "norm of update / norm of base", ".1~%", None),
            )
        )
    return made


def task_map(cells: Sequence[Point]) -> alt.TopLevelMixin:
    """Models by tasks, coloured by the share of exact answers."""
    models, tasks = (list(dict.fromkeys(cell[key] for cell in cells)) for key in ("model", "task"))
    cell = alt.Chart(alt.InlineData(values=list(cells))).encode(
        x=alt.X(
            "task:N",
            sort=tasks,
            title="task",
            axis=alt.Axis(labelAngle=-30, labelLimit=160, orient="top"),
        ),
        y=alt.Y("model:N", sort=models, title=None, axis=alt.Axis(labelLimit=190)),
        tooltip=tooltips({"model": "model", "task": "task"}, "exact answers", ".1%"),
    )
    shade = alt.Color(
        "value:Q",
        title="exact answers (share of items)",
        scale=alt.Scale(domain=[0, 1], scheme="cividis"),
        legend=alt.Legend(format=".0%", orient="bottom", values=[0, 0.5, 1], titleLimit=300),
    )
    number = alt.condition("datum.value > 0.45", alt.value("black"), alt.value("white"))
    text = cell.mark_text(fontSize=12).encode(text=alt.Text("value:Q", format=".0%"), color=number)
    return alt.layer(cell.mark_rect().encode(color=shade), text).properties(**ROWS)


def _exact(evidence: Evidence) -> Iterator[Point]:
    tasks = _tasks(evidence)
    single = _found(evidence, "exact", tuple(tasks), ["task"])
    whole = _found(evidence, "exact", tuple(tasks), [])
    for _, name, who in _models(evidence):
        for task, title in tasks.items():
            if (*who, task) in single:
                yield {**single[*who, task], "model": name, "task": title}
        if who in whole:
            yield {**whole[who], "model": name, "task": ALL}


def kept_and_lost(points: Sequence[Point]) -> alt.TopLevelMixin:
    """Every model as a point: perplexity ratio across, share of the experts' skill up."""
    costs = [{"value": p["ratio"], "low": p["x_low"], "high": p["x_high"]} for p in points]
    wide, high = frame(costs, [1.0]), frame(points, [0.0, 1.0])
    # Room for labels left of the best merges and above them.
    wide[0] -= 0.1 * (wide[1] - wide[0])
    high[1] += 0.06 * (high[1] - high[0])
    sides = clear_labels(
        [
            (
                WIDTH * (p["ratio"] - wide[0]) / (wide[1] - wide[0]),
                HEIGHT * (high[1] - p["value"]) / (high[1] - high[0]),
                p["short"],
            )
            for p in points
        ]
    )
    titles = (
        "held-out perplexity / the base's (1: nothing lost)",
        "exact answers / the expert's, mean over tasks",
    )
    scale = alt.Scale(domain=wide, zero=False, nice=False)
    tall = alt.Scale(domain=high, nice=False)
    x = alt.X("ratio:Q", title=titles[0], scale=scale, axis=alt.Axis(tickCount=6))
    y = alt.Y(
        "value:Q",
        title=titles[1],
        scale=tall,
        axis=alt.Axis(format="%", values=[i / 5 for i in range(6)]),
    )
    present = dict.fromkeys(p["kind"] for p in points)
    colour, shape, _ = encodings("kind", {k: look for k, look in KINDS.items() if k in present})
    base = alt.Chart(alt.InlineData(values=list(points)))
    tip = [
        alt.Tooltip("model:N"),
        alt.Tooltip("value:Q", format=".1%", title="kept"),
        alt.Tooltip("low:Q", format=".1%", title="95 % from"),
        alt.Tooltip("high:Q", format=".1%", title="to"),
        alt.Tooltip("ratio:Q", format=".3f", title="perplexity ratio"),
        alt.Tooltip("x_low:Q", format=".3f", title="95 % from"),
        alt.Tooltip("x_high:Q", format=".3f", title="to"),
    ]
    layers: list[alt.Chart] = [
        across(1.0, titles[0], scale),
        alt.Chart(alt.InlineData(values=_pairs(points)))
        .mark_rule(strokeWidth=1, opacity=0.7, color=REFERENCE["color"])
        .encode(x=x, y=y, x2="to_ratio:Q", y2="to_value:Q"),
        base.mark_rule(opacity=0.45, clip=True).encode(
            x=x, y=alt.Y("low:Q", title=titles[1], scale=tall), y2="high:Q", color=colour
        ),
        base.mark_rule(opacity=0.45, clip=True).encode(
            x=alt.X("x_low:Q", title=titles[0], scale=scale), x2="x_high:Q", y=y, color=colour
        ),
        base.mark_point(size=100, filled=True, opacity=1).encode(
            x=x, y=y, color=colour, shape=shape, tooltip=tip
        ),
    ]
    for point, (dx, dy, align) in zip(points, sides, strict=True):
        layers.append(
            alt.Chart(alt.InlineData(values=[point]))
            .mark_text(align=align, dx=dx, dy=dy, fontSize=11)
            .encode(x=x, y=y, text="short:N")
        )
    return alt.layer(*layers).properties(width=WIDTH, height=HEIGHT)


Spot = tuple[float, float, str]
Placed = tuple[float, float, Side]


def clear_labels(spots: Sequence[Spot]) -> list[Placed]:
    """Where labels go: the clearest of what placing them in several orders gives."""
    numbers = range(len(spots))
    orders: list[list[int]] = [
        list(numbers),
        sorted(numbers, key=lambda i: spots[i][0]),
        sorted(numbers, key=lambda i: -spots[i][0]),
        sorted(numbers, key=lambda i: spots[i][1]),
        sorted(numbers, key=lambda i: -spots[i][1]),
        sorted(numbers, key=lambda i: -len(spots[i][2])),
    ]
    found: list[list[Placed]] = []
    for order in orders:
        placed = dict(zip(order, place_labels([spots[i] for i in order], width=WIDTH), strict=True))
        found.append([placed[i] for i in numbers])
    return min(found, key=lambda sides: clutter(spots, sides))


def clutter(spots: Sequence[Spot], sides: Sequence[Placed]) -> float:
    """Pixels that labels share with labels and points, and lie outside the picture."""
    boxes, lost = [], 0.0
    for (x, y, label), (dx, dy, align) in zip(spots, sides, strict=True):
        long = CHARACTER * len(label)
        start, top = x + dx - (long if align == "right" else 0.0), y + dy - LINE / 2
        outside = max(0.0, -start) + max(0.0, start + long - WIDTH)
        above = max(0.0, -top) + max(0.0, top + LINE - HEIGHT)
        lost += LINE * outside + long * above
        boxes.append((start, top, start + long, top + LINE))
    boxes += [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in spots]
    return lost + sum(
        max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
        for i, a in enumerate(boxes[: len(spots)])
        for b in boxes[i + 1 :]
    )


def _pairs(points: Sequence[Point]) -> list[Point]:
    """From every merge to the same merge with LiNeS."""
    known = {point["model"]: point for point in points}
    return [
        {**point, "to_ratio": other["ratio"], "to_value": other["value"]}
        for point in points
        if (other := known.get(f"{point['model']} + LiNeS"))
    ]


def _kept_and_lost(evidence: Evidence) -> list[Point]:
    kept = _found(evidence, "kept", tuple(_tasks(evidence)), [])
    ratio = _found(evidence, "perplexity_ratio", tuple(TEXTS), [])
    return [
        {
            **kept[who],
            "ratio": ratio[who]["value"],
            "x_low": ratio[who]["low"],
            "x_high": ratio[who]["high"],
            "model": name,
            "short": name.removeprefix("Expert: "),
            "kind": kind,
        }
        for kind, name, who in _models(evidence)
        if who in kept and who in ratio
    ]


def held_out(points: Sequence[Point]) -> alt.TopLevelMixin:
    """Perplexity relative to the base of every model, per text."""
    return in_rows(
        points,
        TEXT_LOOKS,
        title="perplexity / the base's",
        words={"row": "model", "series": "text"},
        form=".3f",
        axis=alt.Axis(labelLimit=190),
        reference=1.0,
    ).properties(**{**ROWS, "height": {"step": 30, "for": "position"}})


def _ratios(evidence: Evidence) -> Iterator[Point]:
    found = _found(evidence, "perplexity_ratio", tuple(TEXTS), ["task"])
    for _, name, who in _models(evidence):
        for text, title in TEXTS.items():
            if (*who, text) in found:
                yield {**found[*who, text], "row": name, "series": title}


def layer_map(cells: Sequence[Point], title: str, form: str, top: float | None) -> alt.Chart:
    """Layers across, experts or pairs of experts down, coloured by a quantity of the updates."""
    scale = alt.Scale(scheme="cividis", zero=True)
    if top is not None:
        most = max(top, *(cell["value"] for cell in cells))
        scale = alt.Scale(scheme="cividis", domain=[0, most])
    made: alt.Chart = (
        alt.Chart(alt.InlineData(values=list(cells)))
        .mark_rect()
        .encode(
            x=alt.X(
                "layer:O",
                title="layer",
                axis=alt.Axis(labelAngle=0, labelOverlap=True, labelSeparation=5),
            ),
            y=alt.Y("who:N", title=None, sort=None, axis=alt.Axis(labelLimit=190)),
            color=alt.Color(
                "value:Q",
                title=title,
                scale=scale,
                legend=alt.Legend(orient="bottom", titleLimit=320, format=form),
            ),
            tooltip=[
                alt.Tooltip("who:N", title="experts"),
                alt.Tooltip("layer:O"),
                alt.Tooltip("value:Q", format=".3g", title=title),
            ],
        )
        .properties(**ROWS)
    )
    return made


def _layers(evidence: Evidence, metric: str) -> Iterator[Point]:
    tasks = _tasks(evidence)
    for point in summary(evidence.rows, metric, ["block", "expert"], {"arm": "experts"}):
        if number := re.search(r"(\d+)$", point["block"]):
            who = " / ".join(tasks.get(each, each) for each in point["expert"].split(" / "))
            kept = {key: point[key] for key in ("value", "seeds")}
            yield {**kept, "layer": int(number[1]), "who": who}


def _tasks(evidence: Evidence) -> dict[str, str]:
    """Titles of the tasks, by slug, in the study's order."""
    slugs = dict.fromkeys(
        row["task"] for row in evidence.rows if row["metric"] in ("exact", "recovered")
    )
    return {slug: TASKS[slug].title if slug in TASKS else slug for slug in slugs}


def _models(evidence: Evidence) -> Iterator[tuple[str, str, tuple[str, str | None]]]:
    """Kind, title, and arm and expert, of everything that was scored: base, experts, merges."""
    tasks = _tasks(evidence)
    for arm in evidence.arms:
        if arm.slug == "experts":
            for task, title in tasks.items():
                yield "Expert", f"Expert: {title}", (arm.slug, task)
        else:
            kind = "Merge + LiNeS" if arm.slug.endswith("_lines") else "Merge"
            yield "Base" if arm.slug == "base" else kind, arm.title, (arm.slug, None)


def _found(
    evidence: Evidence, metric: str, tasks: tuple[str, ...], by: Sequence[str]
) -> dict[tuple[Any, ...], Point]:
    """A metric of some tasks by arm, expert and perhaps more."""
    columns = ["arm", "expert", *by]
    return {
        tuple(point[column] for column in columns): {**point, **ends(point)}
        for point in summary(evidence.rows, metric, columns, {"task": tasks})
    }
