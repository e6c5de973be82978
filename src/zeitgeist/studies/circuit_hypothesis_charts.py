"""The pictures of circuit hypotheses: who passes what, against how many, and at what level."""

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
    ORANGE,
    REFERENCE,
    SKY,
    SOLID,
    Layers,
    Look,
    encodings,
    ends,
    how_sure,
    in_rows,
    tooltips,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

PARTS = {"tracr": "programs", "induction": "induction", "recall": "SmolLM2"}
TESTS = ("equivalence", "independence", "minimality", "sufficiency", "necessity", "within")
CURVES: Mapping[str, Look] = {
    "sufficiency": (SKY, "circle", SOLID),
    "necessity": (ORANGE, "square", LONG),
}
ARMS: Mapping[str, Look] = {
    "canonical": (GREEN, "diamond", SOLID),
    "pruned": (SKY, "circle", SOLID),
    "top": (ORANGE, "square", LONG),
    "random": (GREY, "triangle-down", DOTS),
}


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    points = _points(evidence, "passes", ["part", "arm", "test"])
    if points:
        made.append(
            Figure(
                "verdicts",
                "Who passes which test",
                "Share of runs that pass, over seeds and sets of examples. Equivalence, "
                "independence and minimality pass unless their null is rejected; sufficiency, "
                "necessity and within pass where it is. Compiled circuits pass independence "
                "because their scores are all alike, random ones because nothing works without "
                "them either.",
                verdicts(points),
            )
        )
    points = _points(evidence, "beaten", ["arm", "test", "edges"])
    if points:
        made.append(
            Figure(
                "sizes",
                "How large a random circuit is as good",
                "The pruned circuit of the trained induction model against random circuits of "
                "every size: the share that it is closer to the model than (sufficiency), and "
                "the share whose loss hurts less than its own (necessity). The dashed line is "
                f"what must be beaten. {how_sure(points)}",
                curves(points),
            )
        )
    rows = _points(evidence, "faithfulness", ["part", "arm"])
    if rows:
        made.append(
            Figure(
                "faithfulness",
                "How much of the model a circuit is",
                "The share of the way from everything cut to the model that the circuit alone "
                f"goes (1: all of it). {how_sure(rows)}",
                _by_arm(rows, "faithfulness", ".3f", 1.0),
            )
        )
    rows = _points(evidence, "idle", ["part", "arm"])
    if rows:
        made.append(
            Figure(
                "idle",
                "Edges that matter no more than random ones",
                "The share of a circuit's edges that minimality rejects (of SmolLM2's, of those "
                f"that were tried). {how_sure(rows)}",
                _by_arm(rows, "share of idle edges", ".1%", None),
            )
        )
    rows = [
        {**point, "row": point["test"], "series": "Null"}
        for point in _points(evidence, "type_one", ["test"])
    ]
    if rows:
        made.append(
            Figure(
                "level",
                "How often a true null is rejected",
                "Simulated data at the edge of every null, at a level of 5 % (dashed). Counts "
                "of 100 are coarse, so that some tests stay below it. "
                f"{how_sure(rows)}",
                _rows(rows, {"Null": (SKY, "circle", SOLID)}, "wrong rejections", ".1%", 0.05),
            )
        )
    return made


def _points(evidence: Evidence, metric: str, by: list[str]) -> list[dict[str, Any]]:
    titles = {arm.slug: arm.title for arm in evidence.arms}
    return [
        {**point, **ends(point), "title": titles.get(point.get("arm", ""), "")}
        for point in summary(evidence.rows, metric, by)
    ]


def verdicts(points: list[dict[str, Any]]) -> alt.TopLevelMixin:
    """Circuits down, tests across, the share that passes as colour and number.

    Parameters
    ----------
    points
        With ``part``, ``title``, ``test`` and ``value``.
    """
    rows = [{**p, "row": f"{PARTS.get(p['part'], p['part'])}: {p['title']}"} for p in points]
    order = [
        f"{PARTS[part]}: {title}"
        for part in PARTS
        for title in dict.fromkeys(p["title"] for p in points if p["part"] == part)
    ]
    base = alt.Chart(alt.InlineData(values=rows)).encode(
        x=alt.X("test:N", title=None, sort=list(TESTS), axis=alt.Axis(orient="top", labelAngle=0)),
        y=alt.Y("row:N", title=None, sort=order, axis=alt.Axis(labelLimit=220)),
    )
    colour = alt.Color(
        "value:Q", title="passes", scale=alt.Scale(domain=[0, 1], range=["#f2e6d8", "#1f6f8b"]),
        legend=None,
    )  # fmt: skip
    ink = alt.condition("datum.value > 0.6", alt.value("white"), alt.value("#1b1b1b"))
    layers = alt.layer(
        base.mark_rect(stroke="white").encode(
            color=colour,
            tooltip=tooltips({"row": "circuit", "test": "test"}, "passes", ".0%"),
        ),
        base.mark_text(fontSize=12).encode(text=alt.Text("value:Q", format=".0%"), color=ink),
    )
    made: alt.TopLevelMixin = layers.properties(width="container", height={"step": 34})
    return made


def curves(points: list[dict[str, Any]]) -> Layers:
    """The share of random circuits beaten, against their size.

    Parameters
    ----------
    points
        With ``edges``, ``test``, ``value``, ``low`` and ``high``.
    """
    clipped = [{**p, "low": max(p["low"], 0.0), "high": min(p["high"], 1.0)} for p in points]
    colour, shape, dash = encodings("test", CURVES, columns=2)
    title, scale = "random circuits beaten", alt.Scale(domain=[0, 1])
    axis = alt.Axis(format="%")
    base = alt.Chart(alt.InlineData(values=clipped)).encode(
        x=alt.X("edges:Q", title="edges of random circuits / all edges", axis=axis), color=colour
    )
    y = alt.Y("value:Q", title=title, scale=scale, axis=axis)
    line = alt.Chart(alt.InlineData(values=[{"at": 0.9}])).mark_rule(**REFERENCE)
    layers = [
        line.encode(y=alt.Y("at:Q", title=title, scale=scale)),
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"),
        base.mark_line(strokeWidth=1.5).encode(y=y, strokeDash=dash),
        base.mark_point(filled=True, size=55, opacity=1).encode(
            y=y, shape=shape, tooltip=tooltips({"test": "test", "edges": "size"}, title, ".0%")
        ),
    ]
    return alt.layer(*layers).properties(width="container", height=300)


def _by_arm(
    points: list[dict[str, Any]], title: str, form: str, at: float | None
) -> alt.TopLevelMixin:
    rows = [
        {**point, "row": PARTS[part], "series": point["title"]}
        for part in PARTS
        for point in points
        if point["part"] == part
    ]
    looks = {p["title"]: look for arm, look in ARMS.items() for p in points if p["arm"] == arm}
    return _rows(rows, looks, title, form, at)


def _rows(
    rows: list[dict[str, Any]],
    looks: Mapping[str, Look],
    title: str,
    form: str,
    at: float | None,
) -> alt.TopLevelMixin:
    drawn = in_rows(
        rows,
        looks,
        title=title,
        words={"row": "what", "series": "which"},
        form=form,
        axis=alt.Axis(labelLimit=220),
        reference=at,
        columns=4,
    )
    made: alt.TopLevelMixin = drawn.properties(width="container", height={"step": 16})
    return made
