"""The pictures of LiNeS: what scaling by depth gives beside uniform and reversed scaling."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.studies.language_tasks import TASKS
from zeitgeist.studies.lines_digits import KEEP, MERGES, SCALINGS
from zeitgeist.studies.lines_language import TOLERANCE
from zeitgeist.studies.looks_charts import (
    GREEN,
    GREY,
    LONG,
    SHORT,
    SKY,
    SOLID,
    SPARSE,
    VERMILION,
    Layers,
    Look,
    across,
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
    "lines": (VERMILION, "diamond", SOLID),
    "uniform": (SKY, "square", LONG),
    "reversed": (GREEN, "triangle-up", SHORT),
    "none": (GREY, "triangle-down", SOLID),
    "base": (GREY, "triangle-left", SPARSE),
}
CURVES = {"width": 240, "height": 170}


@dataclass(frozen=True)
class Curves:
    """Target against control of every way to scale, and the target where they are compared."""

    title: str
    target: str
    control: str
    form: str
    points: Sequence[Mapping[str, Any]]
    limit: float


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    how = (
        "Every curve is one way to scale the update, from much (alpha 0) to not at all (alpha 1, "
        "where all meet the fine-tune as it is); points are its strengths, which hovering tells. "
    )
    if spoken := list(_language_curves(evidence)):
        made.append(
            Figure(
                "trade-off-language",
                f"What {language_model(evidence)} forgets for what it learns",
                f"{how}Both losses are better when lower: the best corner is the lower left. The "
                f"dashed line is where ways are compared: {_percent(TOLERANCE)} of the fine-tune's "
                "gain given up. Every panel has its own scales. Points are means over "
                f"{_seeds(spoken)}, which differ in level; the shares undone, below, are compared "
                "inside each seed.",
                stacked({panel.title: trade_off(panel) for panel in spoken}, **CURVES),
            )
        )
    if small := list(_digits_curves(evidence)):
        made.append(
            Figure(
                "trade-off-digits",
                "What small networks forget for what they learn",
                f"{how}Both accuracies are better when higher: the best corner is the upper right. "
                f"The dashed line is where ways are compared: {_percent(KEEP)} of the fine-tune's "
                f"accuracy. Points are means over {_seeds(small)} and all tasks.",
                trade_off(small[0]).properties(width="container", height=260),
            )
        )
    if undone := list(_undone(evidence)):
        made.append(
            Figure(
                "undone",
                "Forgetting undone at equal target",
                "How much of what fine-tuning made the model forget each way undoes where the "
                "target is as good as at the dashed line above. 0 % (dashed) is no scaling, 100 % "
                f"is the base's control score. {how_sure(undone)}",
                forgetting(undone),
            )
        )
    if merged := dict(_merges(evidence)):
        made.append(
            Figure(
                "merges",
                "What scaling gives to merges",
                "What merges of eight experts keep of their experts' accuracy, with one tuned "
                "factor (uniform), with LiNeS, with its slope reversed, and as they are; the base "
                "stands beside them. An arrow with a number is a mark that lies left of the "
                f"picture. Every panel has its own scale. {how_sure(*merged.values())}",
                merges(merged),
            )
        )
    return made


def trade_off(curves: Curves) -> Layers:
    """Control against target of every way to scale."""
    points = [dict(point) for point in curves.points]
    ways = [point for point in points if point["arm"] in SCALINGS]
    marked = [point for point in points if point["arm"] not in SCALINGS]
    looks = {p["model"]: LOOKS[p["arm"]] for p in points}
    colour, shape, dash = encodings("model", looks)
    room = alt.Scale(zero=False, padding=12)
    axis = alt.Axis(tickCount=5, format="%" if "%" in curves.form else alt.Undefined)
    x = alt.X("target:Q", title=curves.target, scale=room, axis=axis)
    y = alt.Y("control:Q", title=curves.control, scale=room, axis=axis)
    tip = [
        alt.Tooltip("model:N", title="scaling"),
        alt.Tooltip("alpha:Q", format=".2f"),
        alt.Tooltip("target:Q", format=curves.form),
        alt.Tooltip("control:Q", format=curves.form),
    ]
    base = alt.Chart(alt.InlineData(values=ways)).encode(x=x, y=y, color=colour)
    made: Layers = alt.layer(
        across(curves.limit, curves.target, room),
        base.mark_line(strokeWidth=1.6).encode(strokeDash=dash, order="alpha:Q"),
        base.mark_point(size=40, filled=True, opacity=1).encode(shape=shape, tooltip=tip),
        alt.Chart(alt.InlineData(values=marked))
        .mark_point(size=130, filled=True, opacity=1)
        .encode(x=x, y=y, color=colour, shape=shape, tooltip=tip),
    )
    return made


def _language_curves(evidence: Evidence) -> Iterator[Curves]:
    rows = [row for row in evidence.rows if row.get("part") == "language"]
    for task in dict.fromkeys(row["task"] for row in rows):
        points = _curve(evidence, {"part": "language", "task": task}, "loss")
        whole = {point["arm"]: point["target"] for point in points}
        if points and {"base", "none"} <= whole.keys():
            gain = whole["base"] - whole["none"]
            yield Curves(
                _task(task),
                "task loss (nats per token)",
                "held-out loss (nats per token)",
                ".3f",
                points,
                whole["none"] + TOLERANCE * gain,
            )


def _digits_curves(evidence: Evidence) -> Iterator[Curves]:
    points = _curve(evidence, {"part": "digits"}, "accuracy")
    whole = {point["arm"]: point["target"] for point in points}
    if "none" in whole:
        yield Curves(
            "small networks",
            "accuracy on the fine-tune's task (share right)",
            "accuracy on other tasks (share right)",
            ".1%",
            points,
            KEEP * whole["none"],
        )


def _curve(evidence: Evidence, where: Mapping[str, Any], what: str) -> list[dict[str, Any]]:
    """Mean target and control by arm and alpha, in the order of alphas."""
    target, control = (
        {
            (point["arm"], point["alpha"]): point
            for point in summary(evidence.rows, f"{side}_{what}", ["arm", "alpha"], where)
        }
        for side in ("target", "control")
    )
    return [
        {
            "arm": arm,
            "model": evidence.arm(arm).title,
            "alpha": alpha,
            "target": target[arm, alpha]["value"],
            "control": control[arm, alpha]["value"],
            "seeds": target[arm, alpha]["seeds"],
        }
        for arm in LOOKS
        for alpha in sorted(
            alpha for other, alpha in target.keys() & control.keys() if other == arm
        )
    ]


def _seeds(panels: Sequence[Curves]) -> str:
    return number_of_seeds(point for panel in panels for point in panel.points)


def forgetting(points: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin:
    """Tasks and parts down, the share of the forgetting that is undone across."""
    title = "forgetting undone at equal target (share)"
    axis = alt.Axis(labelLimit=140)
    return _dodged(points, title, axis, 0.0).properties(
        width="container", height={"step": 56, "for": "position"}
    )


def _dodged(
    points: Sequence[Mapping[str, Any]], title: str, axis: alt.Axis, reference: float | None = None
) -> Layers:
    """The ways to scale beside each other in every row."""
    looks = {p["series"]: LOOKS[look] for look in LOOKS for p in points if p["look"] == look}
    words = {"row": "where", "series": "scaling"}
    return in_rows(
        points, looks, title=title, words=words, form=".1%", axis=axis, reference=reference
    )


def _undone(evidence: Evidence) -> Iterator[dict[str, Any]]:
    spoken = [row for row in evidence.rows if row.get("part") == "language"]
    tasks = list(dict.fromkeys(row["task"] for row in spoken))
    cells: list[tuple[str, dict[str, Any]]] = [
        (_task(task), {"part": "language", "task": task}) for task in tasks
    ]
    if len(tasks) > 1:
        cells.append((f"{language_model(evidence)}, all tasks", {"part": "language"}))
    for cell, where in [*cells, ("small networks", {"part": "digits"})]:
        for arm in ("lines", "uniform", "reversed", "none"):
            for point in summary(evidence.rows, "undone", ["arm"], {**where, "arm": arm}):
                series = evidence.arm(arm).title
                yield {**point, **ends(point), "row": cell, "series": series, "look": arm}


Panels = Mapping[str, Sequence[Mapping[str, Any]]]


def merges(panels: Panels) -> alt.TopLevelMixin:
    """Merge methods down, what they keep across, per way to scale; a panel per base."""
    title, axis = "accuracy / own expert's, mean over tasks", alt.Axis(minExtent=88)
    drawn: dict[str, Layers] = {
        name: _dodged(points, title, axis) for name, points in panels.items()
    }
    return stacked(drawn, width=230, height={"step": 76, "for": "position"})


def _merges(evidence: Evidence) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    merged = [row for row in evidence.rows if row.get("part") == "merge"]
    ways = {"unscaled": "none"} | {way: way for way in SCALINGS}
    for base in sorted({row["base"] for row in merged}, key="weak strong".find):
        points = []
        for merge in MERGES:
            name = evidence.arm(f"{merge}_unscaled").title.rpartition(", ")[0]
            for arm, look in {**{f"{merge}_{w}": ways[w] for w in ways}, "base": "base"}.items():
                where = {"part": "merge", "base": base, "arm": arm}
                for point in summary(evidence.rows, "kept", [], where):
                    named = {"row": name, "series": evidence.arm(look).title, "look": look}
                    # Far from the others, which are to be told apart.
                    aside = look in ("none", "base")
                    points.append({**point, **ends(point), **named, "aside": aside})
        if points:
            yield f"{base} base", points


def _task(slug: str) -> str:
    return TASKS[slug].title if slug in TASKS else slug


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
