"""The pictures of self-generated tokens: against fine-tuning, by position, and corrections."""

from collections.abc import Mapping, Sequence
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.studies.looks_charts import (
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
    stacked,
    tooltips,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

TASKS: Mapping[str, str] = {
    "reverse": "reverse",
    "sort": "sort",
    "lookup": "look up",
    "running_sum": "running sum",
    "two_step_sums": "two-step sums (language model)",
}
LOOKS: Mapping[str, Look] = {
    "reverse": (SKY, "circle", SOLID),
    "sort": (GREEN, "square", LONG),
    "lookup": (ORANGE, "diamond", SHORT),
    "running_sum": (VERMILION, "triangle-up", MIXED),
    "two_step_sums": (PINK, "cross", SOLID),
}
CURVES: Mapping[str, str] = {"start": GREY, "sft": SKY, "bash_8": VERMILION}
ANSWERS: Mapping[str, Look] = {
    "sft": (GREY, "circle", SOLID),
    "best_of_4": (ORANGE, "diamond", SHORT),
    "rac": (SKY, "square", LONG),
    "rac_two": (VERMILION, "triangle-up", MIXED),
}


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    if points := against_fine_tuning(evidence):
        looks = {TASKS[task]: LOOKS[task] for task in LOOKS if _among(points, "task", task)}
        made.append(
            Figure(
                "own-prefix",
                "What each way of training changes on own prefixes",
                "Token accuracy after the model's own tokens, less that of fine-tuning for as many "
                "steps (dashed line). Recoverable tasks are right again after a wrong token; the "
                f"sums are not. {how_sure(points)}",
                _rows(points, looks, "own-prefix accuracy less fine-tuning's", 0.0),
            )
        )
    if panels := by_position(evidence):
        made.append(
            Figure(
                "position",
                "Accuracy after gold and after own tokens, by position",
                "The gap between the lines of one colour is what training on gold prefixes hides. "
                f"{how_sure(*panels.values())}",
                stacked(
                    {TASKS[task]: curves(points) for task, points in panels.items()},
                    width=520,
                    height=180,
                ),
            )
        )
    if points := answers(evidence):
        looks = {
            evidence.arm(arm).title: look
            for arm, look in ANSWERS.items()
            if _among(points, "arm", arm)
        }
        made.append(
            Figure(
                "corrections",
                "Does a second answer correct the first?",
                f"Answers wholly right. {flips(evidence)} {how_sure(points)}",
                _rows(points, looks, "answers wholly right", None),
            )
        )
    return made


def against_fine_tuning(evidence: Evidence) -> list[dict[str, Any]]:
    """Own-prefix accuracy of every arm and task, less fine-tuning's of the same seed."""
    rows = [row for row in evidence.rows if row["metric"] == "own_accuracy"]
    tuned = {(row["task"], row["seed"]): row["value"] for row in rows if row["arm"] == "sft"}
    less = [
        {**row, "value": row["value"] - tuned[row["task"], row["seed"]]}
        for row in rows
        if row["arm"] != "sft" and (row["task"], row["seed"]) in tuned
    ]
    order = [arm.slug for arm in evidence.arms]
    return [
        {**p, **ends(p), "row": evidence.arm(p["arm"]).title, "series": TASKS[p["task"]]}
        for p in sorted(
            summary(less, "own_accuracy", ["arm", "task"]), key=lambda p: order.index(p["arm"])
        )
    ]


def by_position(evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    """Points of `curves`, per task."""
    found = summary(evidence.rows, "accuracy", ["task", "arm", "prefix", "position"])
    panels: dict[str, list[dict[str, Any]]] = {}
    for p in found:
        if p["arm"] in CURVES:
            series = f"{evidence.arm(p['arm']).title}, {p['prefix']} prefix"
            panels.setdefault(p["task"], []).append({**p, **ends(p), "series": series})
    return {task: panels[task] for task in TASKS if task in panels}


def answers(evidence: Evidence) -> list[dict[str, Any]]:
    """Exact match of first and second answers, fine-tuning's and the likeliest of four."""
    return [
        {**p, **ends(p), "row": TASKS[p["task"]], "series": evidence.arm(p["arm"]).title}
        for p in sorted(
            summary(evidence.rows, "exact", ["task", "arm"]),
            key=lambda p: [*TASKS].index(p["task"]),
        )
        if p["arm"] in ANSWERS
    ]


def flips(evidence: Evidence) -> str:
    """What second answers did to first ones, as a sentence."""
    means = {
        metric: found[0]["value"]
        for metric in ("wrong_to_right", "right_to_wrong", "copied")
        if (found := summary(evidence.rows, metric, ["arm"]))
    }
    if not means:
        return ""
    return (
        f"Over all tasks {means['wrong_to_right']:.1%} of answers went from wrong to right, "
        f"{means['right_to_wrong']:.1%} from right to wrong, and {means['copied']:.1%} were "
        "copied."
    )


def curves(points: Sequence[Mapping[str, Any]]) -> Layers:
    """Accuracy by position; colour for how it was trained, dashes for own prefixes."""
    looks: dict[str, Look] = {}
    for point in points:
        own = point["prefix"] == "own"
        shape, dash = ("triangle-up", LONG) if own else ("circle", SOLID)
        looks[point["series"]] = (CURVES[point["arm"]], shape, dash)
    colour, shape_of, dash_of = encodings("series", looks, columns=2)
    title = "token accuracy"
    base = alt.Chart(alt.InlineData(values=[dict(point) for point in points])).encode(
        x=alt.X("position:Q", title="position in the answer", axis=alt.Axis(tickMinStep=1)),
        color=colour,
    )
    y = alt.Y("value:Q", title=title, axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1]))
    made: Layers = alt.layer(
        base.mark_line().encode(y=y, strokeDash=dash_of),
        base.mark_rule(opacity=0.4, clip=True).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
        base.mark_point(filled=True, size=45, opacity=1).encode(
            y=y,
            shape=shape_of,
            tooltip=[
                alt.Tooltip("position:Q", title="position"),
                *tooltips({"series": "after"}, title, ".1%"),
            ],
        ),
    )
    return made


def _among(points: Sequence[Mapping[str, Any]], field: str, value: str) -> bool:
    return any(point[field] == value for point in points)


def _rows(
    points: list[dict[str, Any]], looks: Mapping[str, Look], title: str, at: float | None
) -> alt.TopLevelMixin:
    drawn = in_rows(
        points,
        looks,
        title=title,
        words={"row": "row", "series": "series"},
        form=".1%",
        axis=alt.Axis(labelLimit=220),
        reference=at,
        columns=3,
    )
    made: alt.TopLevelMixin = drawn.properties(width="container", height={"step": 12})
    return made
