"""Pictures of `zeitgeist inspect heads`: sinks, streams, values, one head's weights, the toy."""

from collections.abc import Mapping, Sequence
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure
from zeitgeist.inspection.heads_report import HeadsReport
from zeitgeist.inspection.heads_toy import ToyRecord

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

COLOURS = ("#D55E00", "#56B4E9", "#999999", "#009E73", "#CC79A7", "#E69F00")
"""Okabe and Ito's, which people who see fewer colours tell apart."""
POSITIONS = 12
"""First tokens whose values are drawn."""


def sink_chart(report: HeadsReport) -> Figure:
    """Sink mass of every layer and head, a map per domain and their difference.

    Parameters
    ----------
    report
        Of a scan.
    """
    points = [
        {"domain": row.domain, "layer": row.layer, "head": row.head, "value": row.sink_mass}
        for row in report.heads
    ]
    return Figure(
        "sinks",
        "Where attention goes to sinks",
        "Sink mass of every head on each domain, and the first less the last.",
        sink_maps(points),
    )


def sink_maps(points: list[dict[str, Any]]) -> alt.TopLevelMixin:
    """Layer x head maps: a domain each, and the first less the last.

    Parameters
    ----------
    points
        With ``domain``, ``layer``, ``head`` and ``value``.
    """
    domains = list(dict.fromkeys(point["domain"] for point in points))
    maps = [
        heat([p for p in points if p["domain"] == domain], domain, "viridis", [0.0, 1.0])
        for domain in domains
    ]
    if len(domains) > 1:
        first, last = domains[0], domains[-1]
        known = {(p["layer"], p["head"]): p["value"] for p in points if p["domain"] == last}
        gaps = [
            {**p, "value": p["value"] - known[p["layer"], p["head"]]}
            for p in points
            if p["domain"] == first
        ]
        widest = max(0.05, *(abs(gap["value"]) for gap in gaps))
        maps.append(heat(gaps, f"{first} - {last}", "purpleorange", [-widest, widest]))
    made: alt.TopLevelMixin = alt.hconcat(*maps, spacing=12).resolve_scale(color="independent")
    return made


def heat(points: list[dict[str, Any]], title: str, scheme: Any, domain: list[float]) -> alt.Chart:
    """One map, layers across and heads down.

    Parameters
    ----------
    points
        With ``layer``, ``head`` and ``value``.
    title, scheme, domain
        Of the map, its colours, and from where to where they go.
    """
    chart: alt.Chart = (
        alt.Chart(alt.InlineData(values=points), title=title)
        .mark_rect()
        .encode(
            x=alt.X("head:O", title="head", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            y=alt.Y("layer:O", title="layer", axis=alt.Axis(labelOverlap=True)),
            color=alt.Color(
                "value:Q",
                title=None,
                scale=alt.Scale(scheme=scheme, domain=domain),
                legend=alt.Legend(orient="bottom", gradientLength=130, tickCount=3),
            ),
            tooltip=[
                alt.Tooltip("layer:O"),
                alt.Tooltip("head:O"),
                alt.Tooltip("value:Q", format=".2f", title="sink mass"),
            ],
        )
        .properties(width=150, height=330)
    )
    return chart


def stream_chart(report: HeadsReport) -> Figure:
    """Norm of the residual stream behind every layer, on a logarithmic axis.

    Parameters
    ----------
    report
        Of a scan.
    """
    points = [
        {"domain": row.domain, "layer": row.layer, "token": token, "norm": norm}
        for row in report.peaks
        for token, norm in (("sink", row.sink), ("largest other", row.largest),
                            ("median other", row.median))
        if norm is not None
    ]  # fmt: skip
    tokens = list(dict.fromkeys(str(point["token"]) for point in points))
    chart = (
        alt.Chart(alt.InlineData(values=points), width=420, height=180)
        .mark_line(point=True)
        .encode(
            x=alt.X(
                "layer:Q", title="behind layer (-1: before the first)", scale=alt.Scale(nice=False)
            ),
            y=alt.Y(
                "norm:Q",
                title="residual norm",
                scale=alt.Scale(type="log"),
                axis=alt.Axis(tickCount=5),
            ),
            color=_colour("token", tokens),
            strokeDash=alt.StrokeDash("token:N", title=None, scale=alt.Scale(domain=tokens)),
            row=alt.Row("domain:N", title=None),
        )
    )
    return Figure("stream", "The residual stream of a sink", "Means over windows.", chart)


def value_chart(report: HeadsReport) -> Figure:
    """Value norms of the first tokens over all heads, relative to each head's mean.

    Parameters
    ----------
    report
        Of a scan.
    """
    points = []
    for domain in report.domains:
        values = report.tensors[f"{domain}.values"]
        relative = values / values.mean(-1, keepdim=True)
        points += [
            {"domain": domain, "position": position, "value": float(value)}
            for position in range(min(POSITIONS, relative.shape[-1]))
            for value in relative[..., position].flatten()
        ]
    chart = (
        alt.Chart(alt.InlineData(values=points), width=420, height=180)
        .mark_boxplot(extent="min-max", color=COLOURS[1])
        .encode(
            x=alt.X("position:O", title="position", axis=alt.Axis(labelAngle=0)),
            y=alt.Y("value:Q", title="value norm / its head's mean"),
            row=alt.Row("domain:N", title=None),
        )
    )
    return Figure("values", "Which tokens' values drain", "Boxes are over all heads.", chart)


def pattern_chart(
    patterns: Mapping[str, tuple[Sequence[str], Any]], name: str, *, hide_first: bool = False
) -> Figure:
    """One head's attention weights on a text of each domain, in logarithmic colours.

    Parameters
    ----------
    patterns
        Domain to its tokens and their weights (n x n).
    name
        Of the head.
    hide_first
        Leave out the first token, which otherwise swamps the rest.
    """
    least = 1e-3
    maps = []
    for domain, (tokens, weights) in patterns.items():
        points = [
            {"query": q, "key": k, "weight": max(float(weights[q, k]), least),
             "tokens": f"{tokens[q]!r} on {tokens[k]!r}"}
            for q in range(len(tokens))
            for k in range(int(hide_first), q + 1)
        ]  # fmt: skip
        axis = alt.Axis(labelOverlap=True, labelAngle=0)
        maps.append(
            alt.Chart(alt.InlineData(values=points), title=domain, width=260, height=260)
            .mark_rect()
            .encode(
                x=alt.X("key:O", axis=axis),
                y=alt.Y("query:O", axis=axis),
                color=alt.Color(
                    "weight:Q",
                    title="weight",
                    scale=alt.Scale(type="log", domain=[least, 1], scheme="viridis"),
                ),
                tooltip=["tokens:N", alt.Tooltip("weight:Q", format=".3f")],
            )
        )
    return Figure(
        "pattern",
        f"Attention of head {name}",
        "Queries down, keys across.",
        alt.hconcat(*maps, spacing=12),
    )


def toy_chart(records: Sequence[ToyRecord]) -> Figure:
    """The dynamics of a toy, each as a share of its largest value.

    Parameters
    ----------
    records
        Of a run.
    """
    where = records[-1].copying_layer
    series = {
        "loss after triggers": [each.copy_loss or 0.0 for each in records],
        "idle attention on the first token": [
            each.layers[where].sink_idle or 0.0 for each in records
        ],
        "relative sink logit": [each.layers[where].sink_logit or 0.0 for each in records],
        "its value norm / others'": [
            (each.layers[where].value_first or 0.0) / (each.layers[where].value_others or 1.0)
            for each in records
        ],
        "its residual norm behind layer 0": [each.layers[0].stream_first for each in records],
    }
    points = [
        {"step": record.step, "what": f"{name} (1 = {max(values):.3g})",
         "value": value / (max(values) or 1.0)}
        for name, values in series.items()
        for record, value in zip(records, values, strict=True)
    ]  # fmt: skip
    names = list(dict.fromkeys(str(point["what"]) for point in points))
    chart = (
        alt.Chart(alt.InlineData(values=points), width=460, height=280)
        .mark_line(point=True)
        .encode(
            x=alt.X("step:Q", title="step"),
            y=alt.Y("value:Q", title="share of its largest value"),
            color=_colour("what", names),
            strokeDash=alt.StrokeDash("what:N", title=None, scale=alt.Scale(domain=names)),
        )
    )
    return Figure(
        "toy",
        "Sink, drain and peak as they form",
        f"At the layer that copies ({where}).",
        chart,
    )


def _colour(field: str, names: list[str]) -> alt.Color:
    scale = alt.Scale(domain=names, range=[*COLOURS[: len(names)]])
    legend = alt.Legend(orient="bottom", columns=2, labelLimit=300)
    return alt.Color(f"{field}:N", title=None, scale=scale, legend=legend)
