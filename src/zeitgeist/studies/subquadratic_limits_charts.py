"""The pictures of subquadratic limits: accuracy by length, its collapse, cost, and precision."""

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
    number_of_seeds,
    stacked,
    tooltips,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

LOOKS: Mapping[str, Look] = {
    "softmax": (GREY, "circle", SOLID),
    "exact": (GREY, "triangle-up", SOLID),
    "linear": (SKY, "square", SOLID),
    "hybrid": (GREEN, "diamond", LONG),
    "window": (ORANGE, "triangle-down", SHORT),
    "mingru": (PINK, "cross", MIXED),
    "lsh": (VERMILION, "triangle-right", LONG),
    "projection": (GREEN, "triangle-left", SHORT),
}
SHADES: Sequence[Look] = (
    (ORANGE, "circle", SOLID),
    (SKY, "square", LONG),
    (GREEN, "diamond", SHORT),
    (PINK, "triangle-up", MIXED),
)
PANEL = {"width": 520, "height": 220}
PROBLEMS = {"ov": "OV", "threshold": "threshold", "cosine": "most similar pair"}


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    if points := by_length(evidence):
        made.append(
            Figure(
                "accuracy",
                "Who still knows what it read?",
                "Accuracy on 'have you read this vector, or one close to it?' against the number "
                "of vectors read; half is chance. All were trained with equal steps. Linear "
                "attention and the hybrid with 64 features. Only the state of softmax attention "
                f"grows with n. {how_sure(points)}",
                curves(points, _looks(evidence, points), x="vectors read (n)", y="accuracy"),
            )
        )
    if panels := collapse_points(evidence):
        looks = {
            name: SHADES[i % len(SHADES)]
            for i, name in enumerate(dict.fromkeys(p["series"] for p in panels[0][1]))
        }
        left = ", ".join(f"{100 * share:.0f} % ({name})" for name, _, share in panels)
        made.append(
            Figure(
                "collapse",
                "What does the accuracy of linear attention depend on?",
                "The same accuracies against n, against n l / state, and against n l / features. "
                "In the right variable states of all sizes lie on one curve. What one parabola "
                f"through all points leaves unexplained: {left}. {how_sure(panels[0][1])}",
                stacked(
                    {
                        name: curves(points, looks, x=f"{name} (log)", y="accuracy")
                        for name, points, _ in panels
                    },
                    **PANEL,
                ),
            )
        )
    if points := pareto_points(evidence):
        n = points[0]["n"]
        made.append(
            Figure(
                "pareto",
                "What a cheaper search misses",
                f"How often the true best pair among {n} vectors is found, against operations; "
                f"up and left is better. Means over {number_of_seeds(points)}. Random vectors, on "
                "which hashing may do well; the theorem is about the worst.",
                curves(
                    points,
                    _looks(evidence, points),
                    x="operations (log)",
                    y="best pair found",
                    joined=False,
                ),
            )
        )
    if points := precision_points(evidence):
        looks = {name: SHADES[i] for i, name in enumerate(PROBLEMS.values())}
        made.append(
            Figure(
                "precision",
                "Where precision ends",
                "Share of wrong decisions of the three constructions, by the number format that "
                "attention is computed in; mean over all n and l. In exact arithmetic it is 0. "
                f"{how_sure(points)}",
                by_format(points, looks),
            )
        )
    return made


def curves(
    points: Sequence[Mapping[str, Any]],
    looks: Mapping[str, Look],
    *,
    x: str,
    y: str,
    joined: bool = True,
) -> Layers:
    """Series against a logarithmic axis, with intervals.

    Parameters
    ----------
    points
        With ``at``, ``series``, ``value``, ``low``, ``high`` and ``seeds``.
    looks
        By series.
    x, y
        Titles of axes.
    joined
        Whether the points of a series are a line.
    """
    colour, shape, dash = encodings("series", looks, columns=3)
    across = alt.X("at:Q", title=x, scale=alt.Scale(type="log"), axis=alt.Axis(tickCount=6))
    scale = alt.Scale(zero=False, padding=6)
    up = alt.Y("value:Q", title=y, scale=scale, axis=alt.Axis(format="%"))
    base = alt.Chart(alt.InlineData(values=[dict(point) for point in points])).encode(x=across)
    layers: list[alt.Chart] = []
    if joined:
        layers.append(base.mark_line().encode(y=up, color=colour, strokeDash=dash))
    layers += [
        base.mark_rule(opacity=0.6, strokeWidth=2, clip=True).encode(
            y=alt.Y("low:Q", title=y, scale=scale), y2="high:Q", color=colour
        ),
        base.mark_point(size=60, filled=True, opacity=1).encode(
            y=up,
            color=colour,
            shape=shape,
            tooltip=[
                alt.Tooltip("at:Q", title=x, format=".3~g"),
                *tooltips({"series": "mixer"}, y, ".1%"),
            ],
        ),
    ]
    made: Layers = alt.layer(*layers).properties(**PANEL)
    return made


def by_format(points: Sequence[Mapping[str, Any]], looks: Mapping[str, Look]) -> Layers:
    """Number formats across, share of wrong decisions up."""
    colour, shape, _ = encodings("series", looks, columns=3)
    order = list(dict.fromkeys(point["precision"] for point in points))
    side = alt.XOffset("series:N", sort=list(looks))
    base = alt.Chart(alt.InlineData(values=[dict(point) for point in points])).encode(
        x=alt.X("precision:N", sort=order, title="number format", axis=alt.Axis(labelAngle=0)),
        xOffset=side,
    )
    title = "decisions wrong (share)"
    made: Layers = alt.layer(
        base.mark_rule(opacity=0.6, strokeWidth=2, clip=True).encode(
            y=alt.Y("low:Q", title=title), y2="high:Q", color=colour
        ),
        base.mark_point(size=70, filled=True, opacity=1).encode(
            y=alt.Y("value:Q", title=title, axis=alt.Axis(format="%")),
            color=colour,
            shape=shape,
            tooltip=tooltips({"precision": "format", "series": "construction"}, title, ".2%"),
        ),
    ).properties(**PANEL)
    return made


def by_length(evidence: Evidence) -> list[dict[str, Any]]:
    """Mean accuracy by mixer and n; of mixers with features those with 64."""
    found = summary(evidence.rows, "accuracy", ["arm", "n", "features"], {"part": "learned"})
    return [
        {**p, **ends(p), "at": p["n"], "series": evidence.arm(p["arm"]).title}
        for p in found
        if p["features"] in (None, 64)
    ]


def collapse_points(evidence: Evidence) -> list[tuple[str, list[dict[str, Any]], float]]:
    """Accuracy of linear attention against each variable, and what that leaves unexplained."""
    where = {"part": "learned", "arm": "linear"}
    accuracy = summary(evidence.rows, "accuracy", ["n", "features"], where)
    loads = {
        (p["n"], p["features"]): p["value"]
        for p in summary(evidence.rows, "load", ["n", "features"], where)
    }
    left = {
        p["variable"]: p["value"]
        for p in summary(evidence.rows, "unexplained", ["variable"], where)
    }
    if not accuracy or not left:
        return []
    made = []
    for variable, title in (
        ("n", "n"),
        ("load", "n l / state"),
        ("load_per_feature", "n l / features"),
    ):
        points = []
        for p in accuracy:
            s, full = p["features"], loads[p["n"], p["features"]]
            # The state of linear attention is s^2 + s numbers.
            at = {"n": p["n"], "load": full, "load_per_feature": full * (s + 1)}[variable]
            points.append({**p, **ends(p), "at": at, "series": f"{s:.0f} features"})
        made.append((title, points, left[variable]))
    return made


def pareto_points(evidence: Evidence) -> list[dict[str, Any]]:
    """Recall and operations of every mixer at the greatest n of the curve."""
    sizes = [row["n"] for row in evidence.rows if row["metric"] == "recall"]
    if not sizes:
        return []
    where = {"part": "curve", "n": max(sizes)}
    cost = {p["arm"]: p["value"] for p in summary(evidence.rows, "flops", ["arm"], where)}
    return [
        {
            **p,
            **ends(p),
            "at": cost[p["arm"]],
            "n": int(max(sizes)),
            "series": evidence.arm(p["arm"]).title,
        }
        for p in summary(evidence.rows, "recall", ["arm"], where)
        if cost.get(p["arm"], 0) > 0
    ]


def precision_points(evidence: Evidence) -> list[dict[str, Any]]:
    """Wrong decisions by construction and number format."""
    found = summary(evidence.rows, "wrong", ["construction", "precision"])
    return [{**p, **ends(p), "series": PROBLEMS[p["construction"]]} for p in found]


def _looks(evidence: Evidence, points: Sequence[Mapping[str, Any]]) -> dict[str, Look]:
    """Of the arms that some points belong to, in one order."""
    known = {point["arm"] for point in points}
    return {evidence.arm(arm).title: look for arm, look in LOOKS.items() if arm in known}
