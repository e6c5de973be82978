"""Pictures of truthfulness probes: where the signal is, where it carries, what picking gains."""

from collections.abc import Mapping, Sequence
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure
from zeitgeist.inspection.answer_selection import WAYS, Selection
from zeitgeist.inspection.error_types import TYPES
from zeitgeist.inspection.probe_evaluation import HeatMap
from zeitgeist.inspection.truth_calibration import Reliability
from zeitgeist.inspection.truth_score import Scored
from zeitgeist.inspection.truth_transfer import Transfer

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

COLOURS = ("#999999", "#56B4E9", "#009E73", "#E69F00", "#CC79A7")
"""Okabe and Ito's, which people who see fewer colours tell apart."""


def map_chart(found: HeatMap, layers: Sequence[int], positions: Sequence[str]) -> Figure:
    """Layers upwards, tokens to the right; colour from a coin's 0.5 to 1.

    What shuffled labels reach is drawn: framed cells lie above it, and the title says how high.

    Parameters
    ----------
    found
        Areas under the curve.
    layers, positions
        What its axes are.
    """
    cells = [
        {"layer": str(layer), "token": token, "auc": max(0.5, value), "value": value}
        for layer, row in zip(layers, found.auc.tolist(), strict=True)
        for token, value in zip(positions, row, strict=True)
        if value == value  # NaN: too few rows have the token
    ]
    base = alt.Chart(
        alt.InlineData(values=cells), width=34 * len(positions), height=max(90, 14 * len(layers))
    ).encode(
        x=alt.X("token:N", title=None, sort=list(positions), axis=alt.Axis(labelAngle=-40)),
        y=alt.Y("layer:N", title="layer", sort=[str(layer) for layer in layers][::-1]),
    )
    colour = alt.Color("auc:Q", title="AUC", scale=alt.Scale(scheme="viridis", domain=[0.5, 1.0]))
    best = base.mark_point(shape="diamond", color="#1b1b1b", filled=True, size=40).transform_filter(
        f"datum.layer == '{layers[found.best[0]]}' && datum.token == '{positions[found.best[1]]}'"
    )
    area = base.mark_rect().encode(color=colour, tooltip=["layer:N", "token:N", "value:Q"])
    chart, luck = alt.layer(area, best), ""
    if len(found.null):
        bound = float(found.null.quantile(0.95))
        luck = (
            f"With shuffled labels the best of all cells reaches {float(found.null.mean()):.2f} "
            f"on average and {bound:.2f} in one of twenty cases"
        )
        above = base.mark_rect(filled=False, stroke="white").transform_filter(
            f"datum.value > {bound}"
        )
        title = alt.Title([luck, "(framed: above that)"], fontSize=11, anchor="start")
        chart = alt.layer(area, above, best).properties(title=title)
        luck = f" {luck}."
    return Figure(
        "truth-map",
        "Where a probe tells right answers from wrong ones",
        "Cross-validated area under the ROC curve; the diamond is the largest, "
        f"{float(found.auc[found.best]):.2f}.{luck}",
        chart,
    )


def transfer_chart(found: Transfer) -> Figure:
    """Two panels: the areas, and what is left of them after the best score without training.

    Parameters
    ----------
    found
        Rows teach, columns are tested.
    """
    names = list(found.names)

    def panel(values: list[list[float]], title: str, low: float, high: float) -> Any:
        cells = [
            {"taught": taught, "tested": tested, "value": value}
            for taught, row in zip(names, values, strict=True)
            for tested, value in zip(names, row, strict=True)
        ]
        base = alt.Chart(
            alt.InlineData(values=cells),
            width=70 * len(names),
            height=46 * len(names),
            title=title,
        ).encode(
            x=alt.X("tested:N", title="tested on", sort=names, axis=alt.Axis(labelAngle=-30)),
            y=alt.Y("taught:N", title="taught by", sort=names),
        )
        middle, edge = (low + high) / 2, (high - low) * 0.28
        scale = alt.Scale(scheme="purplegreen", domain=[low, high])
        ink = alt.condition(
            f"abs(datum.value - {middle}) > {edge}", alt.value("white"), alt.value("#1b1b1b")
        )
        return alt.layer(
            base.mark_rect().encode(color=alt.Color("value:Q", title=None, scale=scale)),
            base.mark_text(fontSize=11).encode(text=alt.Text("value:Q", format=".2f"), color=ink),
        )

    chart = alt.hconcat(
        panel(found.auc.tolist(), "AUC", 0.0, 1.0),
        panel(found.gain.tolist(), "minus the best score without training", -0.5, 0.5),
    ).resolve_scale(color="independent")
    free = ", ".join(
        f"{name}: {score} {value:.2f}"
        for name, score, value in zip(
            found.names, found.free_names, found.free.tolist(), strict=True
        )
    )
    return Figure(
        "truth-transfer",
        "Which set's probe works on which set",
        f"Only above 0 on the right is there more than confidence ({free}).",
        chart,
    )


def selection_chart(found: Selection) -> Figure:
    """Accuracy of every way to pick, by error type, with intervals over entities.

    Parameters
    ----------
    found
        Of `zeitgeist.inspection.answer_selection.select`.
    """
    kinds = list(dict.fromkeys(row.kind for row in found.rows))
    labels = {
        row.kind: f"{row.kind} ({row.questions})"
        if row.kind == "all"
        else f"{row.kind} {TYPES[row.kind]} ({row.questions})"
        for row in found.rows
    }
    bars = [
        {
            "kind": labels[row.kind],
            "way": row.way,
            "accuracy": row.accuracy,
            "low": row.low,
            "high": row.high,
        }
        for row in found.rows
    ]
    base = alt.Chart(alt.InlineData(values=bars), width=520, height=92).encode(
        y=alt.Y("way:N", title=None, sort=list(WAYS))
    )
    scale = alt.Scale(domain=list(WAYS), range=list(COLOURS))
    rows = alt.Row(
        "kind:N",
        title=None,
        sort=[labels[kind] for kind in kinds],
        header=alt.Header(labelAnchor="start", labelOrient="top", labelPadding=2),
    )
    chart = alt.layer(
        base.mark_bar().encode(
            x=alt.X("accuracy:Q", title="accuracy", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("way:N", title=None, scale=scale, legend=None),
        ),
        base.mark_rule(strokeWidth=1.5).encode(x="low:Q", x2="high:Q"),
    ).facet(row=rows, spacing=8)
    return Figure(
        "truth-selection",
        "How often the picked answer is right, by how the samples err",
        "Lines are 95 % intervals over entities; the oracle is right where any sample is.",
        chart,
    )


def tokens_chart(found: Scored) -> Figure:
    """The tokens of an answer, coloured by what the probe says at each.

    Parameters
    ----------
    found
        Of `zeitgeist.inspection.truth_score.score_answer`.
    """
    width, at, line, rows = 640, 0.0, 0, []
    for token, value in zip(found.tokens, found.each, strict=True):
        shown = token.replace("\n", "\u21b5")
        long = 8.0 * max(1, len(shown)) + 4
        if at and at + long > width:
            at, line = 0.0, line + 1
        rows.append(
            {"token": shown, "p": value, "from": at, "to": at + long, "mid": at + long / 2,
             "line": line, "end": line + 0.8, "base": line + 0.4}
        )  # fmt: skip
        at += long
    height = 28 * (line + 1)
    across = alt.Scale(domain=[0, width], nice=False)
    down = alt.Scale(domain=[0, line + 1], reverse=True, nice=False)
    base = alt.Chart(alt.InlineData(values=rows), width=width, height=height)
    boxes = base.mark_rect().encode(
        x=alt.X("from:Q", scale=across, axis=None),
        x2="to:Q",
        y=alt.Y("line:Q", scale=down, axis=None),
        y2="end:Q",
        color=alt.Color(
            "p:Q", title="P(right)", scale=alt.Scale(scheme="redyellowblue", domain=[0, 1])
        ),
    )
    ink = alt.condition("abs(datum.p - 0.5) > 0.3", alt.value("white"), alt.value("#1b1b1b"))
    words = base.mark_text(font="monospace", fontSize=12).encode(
        color=ink,
        x=alt.X("mid:Q", scale=across, axis=None),
        y=alt.Y("base:Q", scale=down, axis=None),
        text="token:N",
    )
    return Figure(
        "truth-tokens",
        "What the probe says at every token",
        f"P(right) is {found.probability:.2f}, read where the probe was fitted; "
        f"elsewhere colours only compare. The answer that decides: {found.exact or 'none'}.",
        alt.layer(boxes, words).configure_view(stroke=None),
    )


def reliability_chart(found: Reliability, *, name: str = "probe") -> Figure:
    """How often answers are right against how often they were said to be.

    Parameters
    ----------
    found
        Of `zeitgeist.inspection.truth_calibration.reliability`.
    name
        Of what said it.
    """
    points = [
        {"said": said, "right": right, "answers": rows}
        for said, right, rows in zip(found.said, found.right, found.rows, strict=True)
    ]
    scale = alt.Scale(domain=[0, 1])
    ideal = (
        alt.Chart(alt.InlineData(values=[{"x": 0, "y": 0}, {"x": 1, "y": 1}]))
        .mark_line(strokeDash=[4, 4], color="#999999")
        .encode(x=alt.X("x:Q", scale=scale), y=alt.Y("y:Q", scale=scale))
    )
    marks = (
        alt.Chart(alt.InlineData(values=points))
        .mark_point(filled=True, opacity=1, color=COLOURS[1])
        .encode(
            x=alt.X("said:Q", title="said to be right", scale=scale),
            y=alt.Y("right:Q", title="right", scale=scale),
            size=alt.Size("answers:Q", title="answers", scale=alt.Scale(range=[30, 400])),
        )
    )
    return Figure(
        "truth-reliability",
        f"Whether the {name}'s probabilities can be believed",
        f"On the line they can. Expected calibration error {found.ece:.3f}, "
        f"Brier score {found.brier:.3f}.",
        alt.layer(ideal, marks).properties(width=300, height=300),
    )


def comparison_bars(values: Mapping[str, tuple[float, float, float]]) -> Figure:
    """Area under the curve of every detector, with its interval.

    Parameters
    ----------
    values
        Name to the area, its lower and its upper end.
    """
    names = sorted(values, key=lambda name: -values[name][0])
    rows = [
        {"name": name, "auc": at, "low": low, "high": high, "probe": name.startswith("probe")}
        for name, (at, low, high) in values.items()
    ]
    base = alt.Chart(alt.InlineData(values=rows), width=420, height=17 * len(rows)).encode(
        y=alt.Y("name:N", title=None, sort=names, axis=alt.Axis(labelLimit=240))
    )
    scale = alt.Scale(domain=[True, False], range=[COLOURS[3], COLOURS[0]])
    return Figure(
        "truth-detectors",
        "What tells right answers from wrong ones",
        "Area under the ROC curve with 95 % intervals over entities; probes in orange.",
        alt.layer(
            base.mark_rule(strokeWidth=2).encode(
                x=alt.X("low:Q", title="AUC", scale=alt.Scale(domain=[0, 1])), x2="high:Q"
            ),
            base.mark_point(filled=True, size=60, opacity=1).encode(
                x="auc:Q", color=alt.Color("probe:N", legend=None, scale=scale)
            ),
        ),
    )
