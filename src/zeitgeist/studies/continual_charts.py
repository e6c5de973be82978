"""The room on one chart: what was forgotten against what was learned, and what that cost."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.studies.continual_language import SCALED, TOLERANCE, TRAINED
from zeitgeist.studies.looks_charts import (
    DOTS,
    GREEN,
    GREY,
    LONG,
    MIXED,
    ORANGE,
    PINK,
    SHORT,
    SKY,
    SOLID,
    VERMILION,
    Layers,
    Look,
    encodings,
    ends,
    how_sure,
    in_rows,
    language_model,
    number_of_seeds,
    stacked,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

LOOKS: Mapping[str, Look] = {
    "none": (GREY, "cross", SOLID),
    "replay": (VERMILION, "square", SOLID),
    "gem": (SKY, "triangle-down", SOLID),
    "strength": (SKY, "triangle-up", SOLID),
    "fine": (ORANGE, "circle", SOLID),
    "uniform": (GREEN, "diamond", LONG),
    "lines": (PINK, "triangle-right", SHORT),
    "reversed": (GREY, "triangle-left", DOTS),
    "replay_uniform": (VERMILION, "diamond", MIXED),
}
BEST, GENTLE = "best", "gentle"
PANELS: Mapping[str, tuple[str, str]] = {
    "earlier tasks against the last": ("last", "forgotten"),
    "general text against all tasks": ("nll", "text_forgotten"),
}
"""What is drawn across and up in the panels of the one chart."""
AXES: Mapping[str, str] = {
    "last": "loss on the last task (nats per token)",
    "nll": "loss on all tasks (nats per token)",
    "forgotten": "gained on earlier tasks (nats)",
    "text_forgotten": "gained on text (nats)",
}
ENDS: Mapping[str, str] = {
    "nll": "on all tasks",
    "forgotten": "gained, earlier tasks",
    "text_forgotten": "gained, general text",
}
COSTS: Mapping[str, str] = {
    "evaluations": "memory gradients per training step",
    "kept": "samples kept of earlier tasks",
    "passes": "forward passes after training, to choose a strength",
}


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    learner = f"{language_model(evidence)} with LoRA, a sequence of tasks"
    if points := list(_points(evidence)):
        made.append(
            Figure(
                "forgetting",
                "What each way forgets for what it learns",
                f"{learner}: what the loss gained by the end against the loss that is left. Lower "
                "left is better in both panels. A line is one way to scale an update after "
                "training, from not at all, where it meets the model as trained, to the most; its "
                "points are strengths, which hovering tells. Losses are drawn on a logarithmic "
                f"axis. Means over {number_of_seeds(points)}.",
                stacked(
                    {title: _panel(points, *axes) for title, axes in PANELS.items()},
                    width=420,
                    height=280,
                ),
            )
        )
    if rows := list(_ends(evidence)):
        made.append(
            Figure(
                "ends",
                "What is left at the end",
                f"{learner}: loss on all tasks, and what the losses of earlier tasks and of "
                "general text gained. Scalings are at the strength that validation items "
                "chose: the lowest loss (best), or the least strength that gives up "
                f"{100 * TOLERANCE:.0f} % of what was gained (gentle). Lower is better. "
                f"{how_sure(rows)}",
                in_rows(
                    rows,
                    {row["series"]: LOOKS[row["arm"]] for row in rows},
                    title="nats per token",
                    words={"row": "what", "series": "arm"},
                    form=".3f",
                    axis=alt.Axis(labelLimit=220),
                    reference=0.0,
                ).properties(width="container", height={"step": 15}),
            )
        )
    costs = {title: list(_costs(evidence, metric)) for metric, title in COSTS.items()}
    if costs := {title: points for title, points in costs.items() if points}:
        made.append(
            Figure(
                "cost",
                "What remembering costs",
                f"{learner}: loss on all tasks at the end against what it took. Scalings at their "
                f"best strength; they train without memories. {how_sure(*costs.values())}",
                stacked(
                    {title: _cost(points, title) for title, points in costs.items()},
                    width=420,
                    height=160,
                ),
            )
        )
    return made


def _points(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """A point per arm and strength, with every metric of the one chart."""
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for metric in AXES:
        for point in summary(evidence.rows, metric, ["arm", "knob"]):
            if point["knob"] not in (BEST, GENTLE):
                at = found.setdefault((point["arm"], point["knob"]), {"seeds": point["seeds"]})
                at[metric] = point["value"]
    for (arm, knob), values in found.items():
        yield {
            "arm": arm,
            "series": evidence.arm(arm).title,
            "strength": float(knob),
            **values,
        }


def _panel(points: Sequence[Mapping[str, Any]], across: str, up: str) -> Layers:
    order = [arm for arm in LOOKS if arm in {point["arm"] for point in points}]
    series = {point["arm"]: point["series"] for point in points}
    looks = {series[arm]: LOOKS[arm] for arm in order}
    colour, shape, dash = encodings("series", looks, columns=3)
    x = alt.X(
        f"{across}:Q", title=AXES[across], scale=alt.Scale(type="log", nice=False, padding=14)
    )
    y = alt.Y(f"{up}:Q", title=AXES[up], scale=alt.Scale(zero=False, padding=14))
    told = [
        alt.Tooltip("series:N", title="arm"),
        alt.Tooltip("strength:Q", format=".2f"),
        *(alt.Tooltip(f"{metric}:Q", title=title, format=".3f") for metric, title in AXES.items()),
    ]
    curves = [dict(point) for point in points if point["arm"] in SCALED]
    trained = [dict(point) for point in points if point["arm"] not in SCALED]
    # A scaling of strength 1 is the model as trained, which has a mark of its own.
    between = [point for point in curves if point["strength"] != float(TRAINED)]
    layers: list[alt.Chart] = []
    if curves:
        line = alt.Chart(alt.InlineData(values=curves)).mark_line(strokeWidth=1.5)
        layers.append(line.encode(x=x, y=y, color=colour, strokeDash=dash, order="strength:Q"))
    for group, size in ((between, 35), (trained, 110)):
        marks = alt.Chart(alt.InlineData(values=group)).mark_point(filled=True, size=size)
        layers.append(
            marks.encode(x=x, y=y, color=colour, shape=shape, opacity=alt.value(1), tooltip=told)
        )
    return alt.layer(*layers)


def _ends(evidence: Evidence) -> Iterator[dict[str, Any]]:
    """Rows by what was lost, the arms in their order; scalings at the rules' strengths."""
    order = list(LOOKS)
    for metric, what in ENDS.items():
        found = [
            point
            for point in summary(evidence.rows, metric, ["arm", "knob"])
            if point["knob"] in ((BEST, GENTLE) if point["arm"] in SCALED else (TRAINED,))
        ]
        for point in sorted(found, key=lambda p: (order.index(p["arm"]), p["knob"])):
            rule = point["knob"] if point["arm"] in SCALED else ""
            title = evidence.arm(point["arm"]).title
            yield {
                **point,
                **ends(point),
                "row": what,
                "series": f"{title}, {rule}" if rule else title,
            }


def _costs(evidence: Evidence, metric: str) -> Iterator[dict[str, Any]]:
    losses = {(p["arm"], p["knob"]): p for p in summary(evidence.rows, "nll", ["arm", "knob"])}
    for cost in summary(evidence.rows, metric, ["arm", "knob"]):
        if cost["knob"] in (TRAINED, BEST):
            loss = losses[cost["arm"], cost["knob"]]
            yield {
                **loss,
                **ends(loss),
                "cost": cost["value"],
                "series": evidence.arm(cost["arm"]).title,
            }


def _cost(points: Sequence[Mapping[str, Any]], title: str) -> Layers:
    looks = {point["series"]: LOOKS[point["arm"]] for point in points}
    colour, shape, _ = encodings("series", looks, columns=3)
    x = alt.X("cost:Q", title=title, scale=alt.Scale(padding=14))
    room = alt.Scale(zero=False, padding=10)
    label = "loss on all tasks"
    base = alt.Chart(alt.InlineData(values=[dict(p) for p in points])).encode(x=x, color=colour)
    bars = base.mark_rule(opacity=0.5).encode(
        y=alt.Y("low:Q", title=label, scale=room), y2="high:Q"
    )
    marks = base.mark_point(size=70, filled=True, opacity=1).encode(
        y=alt.Y("value:Q", title=label, scale=room),
        shape=shape,
        tooltip=[
            alt.Tooltip("series:N", title="arm"),
            alt.Tooltip("cost:Q", format=".3s", title=title),
            alt.Tooltip("value:Q", format=".3f", title=label),
        ],
    )
    return alt.layer(bars, marks)
