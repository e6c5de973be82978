"""Every claim of a study in one picture: difference, interval, and where the claim is true.

One panel per metric, since differences of different metrics have different units; one row per
claim, with the words above its interval so that the picture can be read alone.
"""

import math
from collections.abc import Iterator, Sequence
from textwrap import wrap
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Claim, Evidence, Metric, Verdict
from zeitgeist.evidence.figures import WIDTH, Figure
from zeitgeist.evidence.verdicts import Outcome
from zeitgeist.report.sentences import ends, finding, p_value

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

# Okabe and Ito's green, vermilion and a grey; shapes say it again.
LOOKS: dict[Outcome, tuple[str, str]] = {
    "holds": ("#009E73", "circle"),
    "does not hold": ("#D55E00", "square"),
    "undecided": ("#808080", "diamond"),
}
TRUE = "#56B4E9"
LINE, STRIP, GAP = 15.0, 26.0, 16.0  # pixels: a line of words, an interval, the space below it
LETTER = 7.0  # pixels of a statement's letter, in a wide font


def claims_chart(evidence: Evidence, *, width: int = WIDTH) -> Figure:
    """The verdicts of a study as a forest plot.

    Parameters
    ----------
    evidence
        With at least one claim.
    width
        In pixels; words are wrapped to it.

    Returns
    -------
    Figure
        Called ``claims``.
    """
    used = dict.fromkeys(claim.metric for claim in evidence.claims)
    panels = [_panel(evidence, evidence.metric(slug), width) for slug in used]
    chart = alt.vconcat(*panels, spacing=28).configure_concat(spacing=28)
    return Figure(
        "claims",
        "Claim by claim",
        "Shape: difference between treatment and control, mean over seeds. Line: its 95 % "
        "interval, with an arrowhead where it has no end. Shaded: where the claim is true, beyond "
        "its margin (dashed). Solid: no difference. Verdicts follow from p-values adjusted for "
        "the number of claims, so that a claim may stay undecided though its interval, which is "
        "not adjusted, lies on one side.",
        chart,
    )


def _panel(evidence: Evidence, metric: Metric, width: int) -> alt.LayerChart:
    claims = [claim for claim in evidence.claims if claim.metric == metric.slug]
    verdicts = [evidence.verdict(claim.slug) for claim in claims]
    left, right = _domain(claims, verdicts)
    letters = int(width / LETTER)
    rows, words, height = _rows(claims, verdicts, metric, (left, right), letters)
    y_scale = alt.Scale(domain=[height, 0], nice=False, zero=False)
    compared = any(claim.control is not None for claim in claims)
    x = alt.X(
        "x:Q",
        title=wrap(f"difference in {metric.title}" if compared else metric.title, letters),
        scale=alt.Scale(domain=[left, right], nice=False, zero=False),
        axis=alt.Axis(
            tickCount=int(width / 90), grid=False, format="%" if "%" in metric.format else ""
        ),
    )

    def y(name: str) -> alt.Y:
        return alt.Y(f"{name}:Q", scale=y_scale, axis=None)

    def drawn(values: Sequence[dict[str, Any]]) -> alt.Chart:
        return alt.Chart(alt.InlineData(values=list(values)))

    strips = [{**row, "x": a, "x2": b} for row in rows for a, b in row["true"]]
    margins = [{**row, "x": at} for row in rows for at in row["margins"]]
    heads = [{**row, "x": at, "side": side} for row in rows for at, side in row["endless"]]
    known = [{**row, "x": row["low"]} for row in rows if row["difference"] is not None]
    points = [{**row, "x": row["difference"]} for row in known]
    colour = alt.Color("verdict:N", legend=None, scale=_scale(0))
    layers = [
        drawn(strips)
        .mark_rect(color=TRUE, opacity=0.22, aria=False)
        .encode(x=x, x2="x2:Q", y=y("top"), y2="bottom:Q"),
        drawn(rows)
        .mark_rule(strokeWidth=1, aria=False)
        .encode(x="zero:Q", y=y("top"), y2="bottom:Q"),
        drawn(margins)
        .mark_rule(strokeDash=[3, 3], aria=False)
        .encode(x=x, y=y("top"), y2="bottom:Q"),
        drawn(known)
        .mark_rule(strokeWidth=2.5, aria=False)
        .encode(x=x, x2="high:Q", y=y("middle"), color=colour),
        drawn(heads)
        .mark_point(size=90, filled=True, opacity=1, aria=False)
        .encode(
            x=x,
            y=y("middle"),
            color=colour,
            shape=alt.Shape("side:N", legend=None, scale=_arrowheads()),
        ),
        drawn(points)
        .mark_point(size=130, filled=True, opacity=1)
        .encode(
            x=x,
            y=y("middle"),
            color=colour,
            shape=alt.Shape("verdict:N", legend=None, scale=_scale(1)),
            tooltip=[
                alt.Tooltip("claim:N"),
                alt.Tooltip("finding:N"),
                alt.Tooltip("p:N", title="p (Holm)"),
            ],
        ),
        *(
            drawn([line for line in words if line["weight"] == weight])
            .mark_text(align="left", baseline="middle", fontSize=12, fontWeight=weight, aria=False)
            .encode(x=alt.value(0), y=y("at"), text="text:N")
            for weight in ("bold", "normal")
        ),
    ]
    made: alt.LayerChart = alt.layer(*layers).resolve_scale(shape="independent")
    return made.properties(width=width, height=height, view=alt.ViewConfig(stroke=None))


def _rows(
    claims: Sequence[Claim],
    verdicts: Sequence[Verdict],
    metric: Metric,
    domain: tuple[float, float],
    letters: int,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], float]:
    """What is drawn of each claim, the lines of words above, and the height of it all."""
    left, right = domain
    rows: list[dict[str, Any]] = []
    words: list[dict[str, Any]] = []
    down = 0.0
    for claim, verdict in zip(claims, verdicts, strict=True):
        said = finding(verdict, metric)
        lines = [(line, "bold") for line in wrap(claim.statement, letters)]
        lines += [(line, "normal") for line in wrap(said, letters)]
        for line, weight in lines:
            words.append({"text": line, "weight": weight, "at": down + LINE / 2})
            down += LINE
        top, down = down + 3, down + 3 + STRIP
        low, high = ends(verdict)
        measured = math.isfinite(verdict.difference)
        rows.append(
            {
                "claim": claim.statement,
                "finding": said,
                "p": p_value(verdict.p, verdict.seeds),
                "verdict": verdict.verdict,
                "difference": verdict.difference if measured else None,
                "low": max(low, left),
                "high": min(high, right),
                "zero": 0,
                "top": top,
                "middle": (top + down) / 2,
                "bottom": down,
                "true": list(_true(claim, left, right)),
                "margins": [at for at in _margins(claim) if at],
                "endless": [
                    (at, side)
                    for at, end, side in ((left, low, "left"), (right, high, "right"))
                    if measured and math.isinf(end)
                ],
            }
        )
        down += GAP
    return rows, words, down - GAP


def _margins(claim: Claim) -> tuple[float, ...]:
    m = claim.margin
    return {"greater": (m,), "less": (-m,), "equal": (-m, m)}[claim.direction]


def _true(claim: Claim, left: float, right: float) -> Iterator[tuple[float, float]]:
    """Where the claim is true, as far as it is in the picture."""
    m = claim.margin
    if claim.direction == "greater":
        yield m, right
    elif claim.direction == "less":
        yield left, -m
    else:
        yield -m, m


def _domain(claims: Sequence[Claim], verdicts: Sequence[Verdict]) -> tuple[float, float]:
    """From left to right: every end that is known, every margin and zero, and some room."""
    known = [0.0, *(at for claim in claims for at in _margins(claim))]
    known += [
        value
        for verdict in verdicts
        for value in (verdict.difference, *ends(verdict))
        if math.isfinite(value)
    ]
    left, right = min(known), max(known)
    room = 0.08 * (right - left) or 1.0
    return left - room, right + room


def _scale(which: int) -> alt.Scale:
    return alt.Scale(domain=list(LOOKS), range=[look[which] for look in LOOKS.values()])


def _arrowheads() -> alt.Scale:
    return alt.Scale(domain=["left", "right"], range=["triangle-left", "triangle-right"])
