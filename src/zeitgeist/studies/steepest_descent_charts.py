"""The pictures of steepest descent: sweeps by width, where their best rates lie, equalities."""

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
    REFERENCE,
    SHORT,
    SKY,
    SOLID,
    VERMILION,
    Layers,
    Look,
    encodings,
    ends,
    how_sure,
    stacked,
    tooltips,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

LOOKS: Mapping[str, Look] = {
    "sgd": (GREY, "circle", SOLID),
    "frobenius": (PINK, "triangle-down", SHORT),
    "sign": (VERMILION, "cross", MIXED),
    "spectral": (SKY, "square", LONG),
    "modular": (GREEN, "diamond", SOLID),
}
SHADES: Sequence[Look] = (
    (ORANGE, "circle", SOLID),
    (SKY, "square", LONG),
    (GREEN, "diamond", SHORT),
    (PINK, "triangle-up", MIXED),
    (VERMILION, "cross", SOLID),
    (GREY, "triangle-down", LONG),
)
CEILING = 4.0
"""Losses above are drawn here: what diverged would press everything else together."""
ROUND = 1e-17


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    if panels := sweeps(evidence):
        widths = list(dict.fromkeys(p["series"] for points in panels.values() for p in points))
        looks = {name: SHADES[i % len(SHADES)] for i, name in enumerate(widths)}
        made.append(
            Figure(
                "sweeps",
                "Does the best rate stay where it is?",
                "Held-out loss against the learning rate, one curve per width. Where the lowest "
                "points lie above each other a rate found at one width can be kept at another. "
                f"Losses above {CEILING:g} are drawn there. {how_sure(*panels.values())}",
                stacked(
                    {title: sweep_chart(points, looks) for title, points in panels.items()},
                    width=520,
                    height=130,
                ),
            )
        )
    if points := best_rates(evidence):
        looks = {evidence.arm(arm).title: look for arm, look in LOOKS.items()
                 if any(p["arm"] == arm for p in points)}  # fmt: skip
        made.append(
            Figure(
                "best-rates",
                "How far the best rate moves with width",
                "The best rate at each width, relative to that at the narrowest. A factor 2 "
                f"either way lies between the dashed lines. {how_sure(points)}",
                rates_chart(points, looks),
            )
        )
    if points := errors(evidence):
        made.append(
            Figure(
                "equalities",
                "Known optimisers against the rule",
                "Largest difference in float64; the dashed line is the tolerance, 1e-12. Means "
                "over seeds; what is equal to the last bit is drawn at 1e-17.",
                errors_chart(points),
            )
        )
    return made


def sweeps(evidence: Evidence) -> dict[str, list[dict[str, Any]]]:
    """By the title of an arm: mean loss by width and rate."""
    found = summary(evidence.rows, "loss", ["arm", "width", "rate"], {"part": "transfer"})
    panels: dict[str, list[dict[str, Any]]] = {}
    # Where some seeds diverged an interval goes far below every loss.
    floor = min((p["value"] for p in found), default=0.0) - 0.2
    for p in found:
        drawn = {**p, **ends(p), "at": 2.0 ** p["rate"], "series": f"width {p['width']:.0f}"}
        for key in ("value", "low", "high"):
            drawn[key] = max(floor, min(drawn[key], CEILING))
        panels.setdefault(evidence.arm(p["arm"]).title, []).append(drawn)
    return panels


def best_rates(evidence: Evidence) -> list[dict[str, Any]]:
    """The best rate by arm and width, as a multiple of that at the narrowest, paired by seed."""
    rows = [row for row in evidence.rows if row["metric"] == "best_rate"]
    if not rows:
        return []
    narrowest = min(row["width"] for row in rows)
    start = {(row["arm"], row["seed"]): row["value"] for row in rows if row["width"] == narrowest}
    moved = [{**row, "value": row["value"] - start[row["arm"], row["seed"]]} for row in rows]
    return [
        {**p, **ends(p), "series": evidence.arm(p["arm"]).title}
        for p in summary(moved, "best_rate", ["arm", "width"])
    ]


def errors(evidence: Evidence) -> list[dict[str, Any]]:
    """The mean error of each equality."""
    found = summary(evidence.rows, "error", ["equality"])
    return [{**p, "at": max(p["value"], ROUND)} for p in found]


def sweep_chart(points: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]) -> Layers:
    """Loss against rate, a line per width.

    Parameters
    ----------
    points
        With ``at``, ``series``, ``value``, ``low``, ``high`` and ``seeds``.
    looks
        By series.
    """
    colour, shape, dash = encodings("series", looks, columns=4)
    title = "loss (nats)"
    scale = alt.Scale(zero=False, padding=4)
    axis = alt.Axis(format=".1~e", tickCount=5)
    base = alt.Chart(alt.InlineData(values=[dict(p) for p in points])).encode(
        x=alt.X("at:Q", title="learning rate", scale=alt.Scale(type="log"), axis=axis), color=colour
    )
    y = alt.Y("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=4))
    return alt.layer(
        base.mark_line().encode(y=y, strokeDash=dash),
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"),
        base.mark_point(filled=True, size=40, opacity=1).encode(
            y=y,
            shape=shape,
            tooltip=[
                alt.Tooltip("at:Q", title="learning rate", format=".3~g"),
                *tooltips({"series": "network"}, title, ".3f"),
            ],
        ),
    )


def rates_chart(points: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]) -> Layers:
    """Octaves the best rate has moved, a line per arm.

    Parameters
    ----------
    points
        With ``width``, ``series``, ``value``, ``low``, ``high`` and ``seeds``.
    looks
        By series.
    """
    colour, shape, dash = encodings("series", looks, columns=3)
    title = "best rate / that of the narrowest (log2)"
    widths = sorted({p["width"] for p in points})
    x = alt.X("width:Q", title="width", scale=alt.Scale(type="log", base=2),
              axis=alt.Axis(values=widths))  # fmt: skip
    base = alt.Chart(alt.InlineData(values=[dict(p) for p in points])).encode(x=x, color=colour)
    lines = alt.Chart(alt.InlineData(values=[{"at": -1}, {"at": 1}])).mark_rule(**REFERENCE)
    y = alt.Y("value:Q", title=title)
    made: Layers = alt.layer(
        lines.encode(y=alt.Y("at:Q", title=title)),
        base.mark_line().encode(y=y, strokeDash=dash),
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
        base.mark_point(filled=True, size=60, opacity=1).encode(
            y=y, shape=shape, tooltip=tooltips({"series": "way", "width": "width"}, title, ".2f")
        ),
    ).properties(width="container", height=300)
    return made


def errors_chart(points: Sequence[Mapping[str, Any]]) -> Layers:
    """A row per equality, its error on a logarithmic axis.

    Parameters
    ----------
    points
        With ``equality`` and ``at``.
    """
    scale, title = alt.Scale(type="log", domain=[ROUND, 1e-11]), "largest difference"
    axis = alt.Axis(format=".0e", tickCount=6)
    names = [p["equality"] for p in points]
    line = alt.Chart(alt.InlineData(values=[{"at": 1e-12}])).mark_rule(**REFERENCE)
    base = alt.Chart(alt.InlineData(values=[dict(p) for p in points]))
    return alt.layer(
        line.encode(x=alt.X("at:Q", title=title, scale=scale, axis=axis)),
        base.mark_point(filled=True, size=70, opacity=1, color=SKY).encode(
            x=alt.X("at:Q", title=title, scale=scale, axis=axis),
            y=alt.Y("equality:N", title=None, sort=names),
            tooltip=[
                alt.Tooltip("equality:N", title="equality"),
                alt.Tooltip("value:Q", title=title, format=".1e"),
            ],
        ),
    ).properties(width="container", height=alt.Step(26))
