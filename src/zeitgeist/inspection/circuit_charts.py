"""Pictures of circuits and of what tests say of them."""

import re
from collections.abc import Mapping, Sequence, Set
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure
from zeitgeist.inspection.circuit_graph import ARROW
from zeitgeist.inspection.circuit_report import CircuitReport, TestRecord

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

ORANGE, SKY, GREEN, VERMILION, GREY = "#E69F00", "#56B4E9", "#009E73", "#D55E00", "#999999"
KINDS = {"input": GREEN, "head": SKY, "MLP": ORANGE, "logits": VERMILION}
SHAPES = {"input": "square", "head": "circle", "MLP": "diamond", "logits": "triangle-up"}


def circuit_chart(
    graph: Mapping[str, Any],
    edges: Sequence[str],
    effects: Mapping[str, float] | None = None,
) -> Figure:
    """The circuit by layers, input at the bottom; wider lines matter more.

    Parameters
    ----------
    graph
        Of the model, as a record holds it: ``layers``, ``heads``, ``inputs``.
    edges
        Names.
    effects
        Of edges; lines are wide by their square root. None: all alike.
    """
    places, sources = _places(graph, edges), {edge.partition(ARROW)[0] for edge in edges}
    largest = max((effects or {}).values(), default=0.0) or 1.0
    lines = []
    for name in edges:
        weight = (effects or {}).get(name, largest if effects is None else 0.0)
        x1, y1, _ = places[name.partition(ARROW)[0]]
        for into in _into(graph, name, sources):
            x2, y2, _ = places[into]
            width = 0.4 + 3.0 * (max(weight, 0.0) / largest) ** 0.5
            line = {"edge": name, "effect": weight, "width": width}
            lines.append({**line, "x": x1, "y": y1, "x2": x2, "y2": y2})
    nodes = [{"node": name, "x": x, "y": y, "kind": kind} for name, (x, y, kind) in places.items()]
    kinds = [kind for kind in KINDS if any(node["kind"] == kind for node in nodes)]
    height = max(180, min(640, 26 * (2 * int(graph["layers"]) + 2)))
    x = alt.X("x:Q", axis=None, scale=alt.Scale(zero=False, nice=False, padding=20))
    y = alt.Y("y:Q", axis=None, scale=alt.Scale(nice=False, padding=20))
    drawn = alt.Chart(alt.InlineData(values=lines)).mark_rule(opacity=0.45, color=GREY)
    points = alt.Chart(alt.InlineData(values=nodes))
    few = len(nodes) <= 60
    layers = [
        drawn.encode(
            x=x,
            y=y,
            x2="x2:Q",
            y2="y2:Q",
            strokeWidth=alt.StrokeWidth("width:Q", scale=None),
            tooltip=[alt.Tooltip("edge:N"), alt.Tooltip("effect:Q", format=".3g")],
        ),
        points.mark_point(filled=True, size=130 if few else 45, opacity=1).encode(
            x=x,
            y=y,
            color=alt.Color(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=kinds, range=[KINDS[kind] for kind in kinds]),
                legend=alt.Legend(orient="bottom"),
            ),
            shape=alt.Shape(
                "kind:N",
                title=None,
                scale=alt.Scale(domain=kinds, range=[SHAPES[kind] for kind in kinds]),
            ),
            tooltip=["node:N"],
        ),
    ]
    if few:
        layers.append(
            points.mark_text(dy=-12, fontSize=10).encode(x=x, y=y, text="node:N", tooltip="node:N")
        )
    told = "wider lines change more where they are cut" if effects else "every line is an edge"
    return Figure(
        "circuit",
        "The circuit",
        f"{len(edges):,} edges between {len(nodes):,} nodes, inputs below, logits above; {told}.",
        alt.layer(*layers).properties(width=560, height=height),
    )


def _places(graph: Mapping[str, Any], edges: Sequence[str]) -> dict[str, tuple[float, float, str]]:
    """By node of the circuit: across, up, and what it is."""
    sources = {edge.partition(ARROW)[0] for edge in edges}
    names = sources | {into for edge in edges for into in _into(graph, edge, sources)}
    heads, inputs, found = int(graph["heads"]), list(graph["inputs"]), {}
    for name in sorted(names):
        if name in inputs:
            share = (1 + inputs.index(name)) / (1 + len(inputs))
            found[name] = (share * (heads + 1), 0.0, "input")
        elif name == "logits":
            found[name] = ((heads + 1) / 2, 2.0 * int(graph["layers"]) + 1, "logits")
        elif parts := re.fullmatch(r"a(\d+)\.h(\d+)", name):
            layer, head = map(int, parts.groups())
            found[name] = (float(head), 2.0 * layer + 1, "head")
        else:
            found[name] = (heads + 1.0, 2.0 * int(name[1:]) + 2, "MLP")
    return found


def _into(graph: Mapping[str, Any], edge: str, sources: Set[str]) -> list[str]:
    """The nodes that an edge leads to: with query groups all heads of the circuit that share it."""
    last = edge.partition(ARROW)[2]
    parts = re.fullmatch(r"(a\d+)\.h(\d+)\.([qkv])", last)
    if parts is None:
        return [last]
    layer, head, port = parts[1], int(parts[2]), parts[3]
    group = 1 if port == "q" else int(graph["heads"]) // int(graph["kv_heads"])
    names = [f"{layer}.h{each}" for each in range(head * group, (head + 1) * group)]
    return [name for name in names if name in sources] or names[:1]


def effects_chart(record: TestRecord) -> Figure:
    """Sorted effects of edges beside those of random ones; what lies below the cut could go.

    Parameters
    ----------
    record
        Of minimality.
    """
    rows = [
        {
            "rank": i + 1,
            "effect": row["effect"],
            "edge": row["edge"],
            "told": "could go" if row["rejected"] else "matters",
        }
        for i, row in enumerate(record.table)
    ]
    random = [{"effect": value} for value in record.reference]
    # What changes nothing has no place on a logarithmic axis: it is drawn at its foot.
    least = min((x["effect"] for x in (*rows, *random) if x["effect"] > 0), default=1.0)
    for each in (*rows, *random):
        each["at"] = max(each["effect"], least / 3)
    scale = alt.Scale(type="log", nice=False)
    title = "effect of cutting the edge (squared score)"
    colour = alt.Color(
        "told:N",
        title=None,
        scale=alt.Scale(domain=["matters", "could go"], range=[SKY, VERMILION]),
        legend=alt.Legend(orient="bottom"),
    )
    axis = alt.Axis(format=".0e", tickCount=5)
    y = alt.Y("at:Q", title=title, scale=scale, axis=axis)
    own = alt.Chart(alt.InlineData(values=rows), width=340, height=280)
    layers = [
        own.mark_point(filled=True, size=35, opacity=1).encode(
            x=alt.X("rank:Q", title="edges, most important first", axis=alt.Axis(tickMinStep=1)),
            y=y,
            color=colour,
            tooltip=["edge:N", alt.Tooltip("effect:Q", format=".3g"), "told:N"],
        )
    ]
    gone = [row["effect"] for row in rows if row["told"] == "could go"]
    if gone:
        cut = alt.Chart(alt.InlineData(values=[{"at": max(max(gone), least / 3)}]))
        layers.append(cut.mark_rule(strokeDash=[4, 3], color=GREY).encode(y=y))
    ordered = sorted(value["effect"] for value in random)
    shares = [{"effect": value, "share": (i + 1) / len(ordered)} for i, value in enumerate(ordered)]
    beside = (
        alt.Chart(alt.InlineData(values=shares), width=180, height=280)
        .mark_line(interpolate="step-after", color=ORANGE)
        .encode(
            x=alt.X("share:Q", title="share of random edges below", axis=alt.Axis(format="%")),
            y=alt.Y("at:Q", title=None, scale=scale, axis=axis),
        )
    )
    return Figure(
        "effects",
        "What every edge is worth",
        f"{int(record.effects.get('edges that could go') or 0)} of {len(rows)} edges matter no "
        "more than random ones that are added to the circuit (right); the dashed line is the "
        "cut. What changes nothing is drawn at the foot.",
        alt.hconcat(alt.layer(*layers), beside).resolve_scale(y="shared"),
    )


def curves_chart(report: CircuitReport) -> Figure:
    """How many random circuits are beaten, against how large they are.

    Parameters
    ----------
    report
        With sufficiency and necessity, at several sizes.
    """
    points = [
        {"edges": row["size"] / report.total, "share": row["share"], "test": each.name}
        for each in report.tests
        if each.name in ("sufficiency", "necessity")
        for row in each.table
    ]
    q_star = float(report.options["q_star"])
    y = alt.Y(
        "share:Q",
        title="share of random circuits beaten",
        scale=alt.Scale(domain=[0, 1]),
        axis=alt.Axis(format="%"),
    )
    base = alt.Chart(alt.InlineData(values=points), width=460, height=260).encode(
        x=alt.X("edges:Q", title="edges of random circuits", axis=alt.Axis(format="%")),
        y=y,
        color=alt.Color(
            "test:N",
            title=None,
            scale=alt.Scale(domain=["sufficiency", "necessity"], range=[SKY, ORANGE]),
            legend=alt.Legend(orient="bottom"),
        ),
        shape=alt.Shape("test:N", legend=None),
    )
    line = alt.Chart(alt.InlineData(values=[{"share": q_star}]))
    return Figure(
        "curves",
        "Against random circuits of every size",
        f"The circuit has {len(report.edges) / report.total:.1%} of all edges. Sufficiency: it is "
        "closer to the model; necessity: cutting it hurts more. The dashed line is the share to "
        "be beaten.",
        alt.layer(
            line.mark_rule(strokeDash=[4, 3], color=GREY).encode(y=y),
            base.mark_line(),
            base.mark_point(filled=True, size=60, opacity=1),
        ),
    )


def scores_chart(report: CircuitReport) -> Figure:
    """Every example: what the model scores, and what is left without the circuit.

    Parameters
    ----------
    report
        Of any tests.
    """
    pairs = zip(report.scores["model"], report.scores["complement"], strict=True)
    rows = [{"model": model, "complement": rest, "example": i} for i, (model, rest) in
            enumerate(pairs)]  # fmt: skip
    chart = (
        alt.Chart(alt.InlineData(values=rows), width=380, height=300)
        .mark_point(filled=True, size=45, opacity=0.7, color=SKY)
        .encode(
            x=alt.X("model:Q", title="score of the model", scale=alt.Scale(zero=False)),
            y=alt.Y("complement:Q", title="score without the circuit", scale=alt.Scale(zero=False)),
            tooltip=["example:O", "model:Q", "complement:Q"],
        )
    )
    return Figure(
        "scores",
        "What is left without the circuit",
        "One point per example, lower is better. Where the circuit is all there is, what is left "
        "says nothing of the model.",
        chart,
    )


def report_chart(report: CircuitReport) -> Figure:
    """Everything that a report has a picture for, below each other.

    Parameters
    ----------
    report
        Of any tests.
    """
    by_name = {each.name: each for each in report.tests}
    minimal = by_name.get("minimality")
    effects = {row["edge"]: row["effect"] for row in minimal.table} if minimal else None
    made = [circuit_chart(report.graph, report.edges, effects), scores_chart(report)]
    if minimal is not None and minimal.table:
        made.append(effects_chart(minimal))
    flexible = [by_name[name] for name in ("sufficiency", "necessity") if name in by_name]
    if any(len(each.table) > 1 for each in flexible):
        made.append(curves_chart(report))
    charts: list[Any] = [
        each.chart.properties(title=alt.TitleParams(each.title, anchor="start")) for each in made
    ]
    return Figure(
        "report",
        "A circuit, tested",
        " ".join(each.caption for each in made),
        alt.vconcat(*charts, spacing=24).resolve_scale(
            color="independent", shape="independent", strokeWidth="independent"
        ),
    )
