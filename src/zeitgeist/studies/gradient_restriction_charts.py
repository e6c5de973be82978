"""The pictures of gradient restriction: fronts, tuned accuracy, what a step costs, the LM."""

from collections.abc import Mapping
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.studies.looks_charts import (
    DOTS,
    GREEN,
    GREY,
    LONG,
    MIXED,
    ORANGE,
    SHORT,
    SKY,
    SOLID,
    SPARSE,
    VERMILION,
    Layers,
    Look,
    encodings,
    ends,
    how_sure,
    in_rows,
    language_model,
    stacked,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

LOOKS: Mapping[str, Look] = {
    "fine": (ORANGE, "circle", SOLID),
    "both": (GREEN, "triangle-up", SHORT),
    "strength": (SKY, "square", LONG),
    "replay": (VERMILION, "cross", MIXED),
    "replay_all": (VERMILION, "triangle-right", SPARSE),
    "ewc": (GREY, "triangle-down", DOTS),
    "agem": (GREY, "triangle-left", SOLID),
    "mega1": (GREY, "square", SPARSE),
    "mega2": (GREY, "diamond", SHORT),
    "none": (GREY, "cross", LONG),
}
NEAR = (0.035, 0.2)
"""What of learning, and of remembering, the fronts are drawn over."""
METRICS = ("la", "bwt", "acc", "evaluations")
STREAMS: Mapping[str, str] = {
    "permuted": "permuted digits",
    "rotated": "rotated digits",
    "split": "split digits",
}


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    points = {stream: _points(evidence, stream) for stream in STREAMS}
    points = {stream: found for stream, found in points.items() if found}
    if points:
        made.append(
            Figure(
                "fronts",
                "Remembering against learning",
                "Small networks on streams of digits: accuracy on every task when it was learned "
                "(right is better) against what later tasks did to it (up is better), a point per "
                "value of an arm's knob, a line through those that no other of the arm dominates; "
                f"means over seeds. Equal memory everywhere. Points that learn over {NEAR[0]:.1%} "
                f"worse than the best, or forget over {NEAR[1]:.0%}, lie outside: the picture of "
                "costs has every value.",
                stacked(
                    {STREAMS[stream]: _front(_near(found)) for stream, found in points.items()},
                    width=540,
                    height=300,
                ),
            )
        )
    tuned = _tuned(evidence)
    if tuned:
        looks = _looks(evidence, [point["arm"] for point in tuned])
        made.append(
            Figure(
                "tuned",
                "Accuracy at the end, every knob chosen by validation",
                f"Small networks: mean accuracy on all tasks after the last. {how_sure(tuned)}",
                in_rows(
                    tuned,
                    looks,
                    title="accuracy on all tasks",
                    words={"row": "stream", "series": "arm"},
                    form=".1%",
                    axis=alt.Axis(labelLimit=220),
                    columns=3,
                ).properties(width="container", height={"step": 15}),
            )
        )
    if points:
        made.append(
            Figure(
                "cost",
                "What remembering costs",
                "Accuracy on all tasks at the end against gradients of memories per step; every "
                "value of every knob. GEM and replay of all look at the whole memory, the others "
                "at one batch of it.",
                stacked(
                    {STREAMS[stream]: _cost(found) for stream, found in points.items()},
                    width=540,
                    height=260,
                ),
            )
        )
    rows = _language(evidence)
    if rows:
        made.append(
            Figure(
                "language",
                "A language model learns three tasks in turn",
                f"{language_model(evidence)} with LoRA and AdamW: loss on all tasks at the end, "
                "loss that later tasks added, and loss on each task when it was learned; lower is "
                f"better. {how_sure(rows)}",
                in_rows(
                    rows,
                    _looks(evidence, [row["arm"] for row in rows]),
                    title="nats per answer token",
                    words={"row": "what", "series": "arm"},
                    form=".3f",
                    axis=alt.Axis(labelLimit=220),
                    reference=0.0,
                ).properties(width="container", height={"step": 22}),
            )
        )
    return made


def _titles(evidence: Evidence) -> dict[str, str]:
    return {arm.slug: arm.title for arm in evidence.arms}


def _looks(evidence: Evidence, arms: list[str]) -> dict[str, Look]:
    return {_titles(evidence)[arm]: LOOKS[arm] for arm in LOOKS if arm in arms}


def _points(evidence: Evidence, stream: str) -> list[dict[str, Any]]:
    """A point per arm and knob with the mean of every metric."""
    rows = [row for row in evidence.rows if row.get("stream") == stream]
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for metric in METRICS:
        for point in summary(rows, metric, ["arm", "knob"]) if rows else []:
            at = found.setdefault((point["arm"], point["knob"]), {})
            at[metric] = point["value"]
    titles = _titles(evidence)
    order = {arm: i for i, arm in enumerate(LOOKS)}
    points = [
        {"arm": arm, "title": titles[arm], "knob": knob, **values}
        for (arm, knob), values in sorted(
            found.items(), key=lambda item: (order[item[0][0]], item[1]["la"])
        )
    ]
    return [{**point, "front": not _dominated(point, points)} for point in points]


def _dominated(point: dict[str, Any], points: list[dict[str, Any]]) -> bool:
    """Whether another knob of the arm both learns and remembers better."""
    return any(
        other["arm"] == point["arm"] and other["la"] > point["la"] and other["bwt"] > point["bwt"]
        for other in points
    )


def _scatter(
    points: list[dict[str, Any]], x: alt.X, y: alt.Y, *, lines: bool, columns: int = 4
) -> Layers:
    looks = {point["title"]: LOOKS[point["arm"]] for point in points}
    colour, shape, dash = encodings("title", looks, columns=columns)
    told = [
        alt.Tooltip("title:N", title="arm"),
        alt.Tooltip("knob:N", title="knob"),
        *(alt.Tooltip(f"{m}:Q", title=m, format=".1f" if m == "evaluations" else ".1%")
          for m in METRICS),
    ]  # fmt: skip
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, y=y, color=colour)
    marks = base.mark_point(filled=True, size=55, opacity=1).encode(shape=shape, tooltip=told)
    if not lines:
        return alt.layer(marks)
    front = alt.InlineData(values=[point for point in points if point["front"]])
    line = alt.Chart(front).mark_line(strokeWidth=1.2).encode(x=x, y=y, color=colour)
    return alt.layer(line.encode(strokeDash=dash), marks)


def _near(points: list[dict[str, Any]]) -> list[dict[str, Any]]:
    best = max(point["la"] for point in points)
    return [p for p in points if p["la"] > best - NEAR[0] and p["bwt"] > -NEAR[1]]


def _front(points: list[dict[str, Any]]) -> Layers:
    x = alt.X("la:Q", title="accuracy when learned", scale=alt.Scale(zero=False), axis=_PERCENT)
    y = alt.Y("bwt:Q", title="backward transfer", scale=alt.Scale(zero=False), axis=_PERCENT)
    return _scatter(points, x, y, lines=True)


def _cost(points: list[dict[str, Any]]) -> Layers:
    scale = alt.Scale(type="symlog", constant=10)
    x = alt.X("evaluations:Q", title="memory gradients per step", scale=scale)
    y = alt.Y("acc:Q", title="accuracy at the end", scale=alt.Scale(zero=False), axis=_PERCENT)
    return _scatter(points, x, y, lines=False)


_PERCENT = alt.Axis(format="%", tickCount=6)


def _tuned(evidence: Evidence) -> list[dict[str, Any]]:
    titles = _titles(evidence)
    order = {arm: i for i, arm in enumerate(LOOKS)}
    found = [
        {**point, **ends(point), "row": STREAMS[point["stream"]], "series": titles[point["arm"]]}
        for point in summary(evidence.rows, "tuned_acc", ["arm", "stream"])
    ]
    streams = list(STREAMS)
    return sorted(found, key=lambda p: (streams.index(p["stream"]), order[p["arm"]]))


def _language(evidence: Evidence) -> list[dict[str, Any]]:
    titles = _titles(evidence)
    words = {
        "nll": "at the end",
        "nll_forgotten": "forgotten",
        "nll_learned": "when learned",
    }
    return [
        {**point, **ends(point), "row": what, "series": titles[point["arm"]]}
        for metric, what in words.items()
        for point in summary(evidence.rows, metric, ["arm"])
    ]
