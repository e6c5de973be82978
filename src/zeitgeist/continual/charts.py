"""Pictures of `zeitgeist continual`: accuracies, learning against remembering, violations."""

from collections.abc import Sequence
from typing import Any

from zeitgeist.continual.metrics import backward_transfer, learning_accuracy
from zeitgeist.continual.sequence import SequenceReport
from zeitgeist.continual.violations import spans
from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing


def matrix_chart(report: SequenceReport, score: str = "tokens") -> Figure:
    """Heat map of R[i, j], the score on task j after task i.

    Parameters
    ----------
    report
        Of a sequence.
    score
        tokens, exact or nll.
    """
    after = ["untrained", *(f"{i + 1} {name}" for i, name in enumerate(report.tasks))]
    rows = [report.untrained, *report.rows]
    on = after[1:]
    cells = [
        {"after": after[i], "on": on[j], "value": value, "light": value > 0.5}
        for i, row in enumerate(rows)
        for j, value in enumerate(row.scores[score])
    ]
    domain = alt.Undefined if score == "nll" else [0, 1]
    base = alt.Chart(alt.InlineData(values=cells)).encode(
        x=alt.X("on:N", sort=on, title="score on", axis=alt.Axis(labelAngle=-30)),
        y=alt.Y("after:N", sort=after, title="after learning"),
    )
    boxes = base.mark_rect().encode(
        color=alt.Color("value:Q", title=score, scale=alt.Scale(scheme="viridis", domain=domain))
    )
    words = base.mark_text(fontSize=11).encode(
        text=alt.Text("value:Q", format=".2f"),
        color=alt.condition("datum.light", alt.value("black"), alt.value("white")),
    )
    size = {"width": 70 * len(on) + 40, "height": 34 * len(after)}
    return Figure(
        "accuracy-matrix",
        "What is known after every task",
        f"Score ({score}) on every task after each was learned. The diagonal is what was learned; "
        "what darkens below it was forgotten.",
        alt.layer(boxes, words).properties(**size),
    )


def pareto_chart(reports: Sequence[SequenceReport], score: str = "tokens") -> Figure:
    """Learning accuracy against backward transfer, a point per run.

    Parameters
    ----------
    reports
        Of at least two tasks each.
    score
        tokens or exact.
    """
    points = [
        {
            "run": report.out,
            "la": learning_accuracy(report.matrix(score)),
            "bwt": backward_transfer(report.matrix(score)),
        }
        for report in reports
    ]
    base = alt.Chart(alt.InlineData(values=points), width=520, height=320).encode(
        x=alt.X("la:Q", title="accuracy when learned", scale=alt.Scale(zero=False, padding=20)),
        y=alt.Y("bwt:Q", title="backward transfer", scale=alt.Scale(zero=False, padding=20)),
    )
    marks = base.mark_point(filled=True, size=70, opacity=1, color="#E69F00")
    names = base.mark_text(dx=8, align="left", fontSize=10).encode(text="run:N")
    return Figure(
        "learning-remembering",
        "Remembering against learning",
        "Up and to the right is better; a point per run.",
        alt.layer(marks, names),
    )


def violations_chart(reports: Sequence[SequenceReport]) -> Figure:
    """Heat maps of the share of constraints that gradients violated, layers by steps.

    Parameters
    ----------
    reports
        Of runs with ``violations`` in a row.
    """
    return Figure(
        "violations",
        "Where new tasks pull against the old ones",
        "Share of constraints that the gradient violates before it is restricted, in every layer. "
        "A line is where a task begins; nothing restricts the first.",
        alt.vconcat(*map(_violations, reports)),
    )


def _violations(report: SequenceReport) -> Any:
    cells: list[dict[str, Any]] = []
    begins: list[dict[str, Any]] = []
    step = 0
    for name, row in zip(report.tasks, report.rows, strict=True):
        edges = spans(len(row.losses))
        if row.violations:
            begins.append({"task": name, "step": step})
        cells += [
            {"layer": layer, "start": step + start, "end": step + end, "share": share}
            for layer, shares in row.violations.items()
            for start, end, share in zip(edges, edges[1:], shares, strict=False)
        ]
        step += len(row.losses)
    layers = list(dict.fromkeys(cell["layer"] for cell in cells))
    across = alt.Scale(domain=[begins[0]["step"], step], nice=False)
    boxes = (
        alt.Chart(alt.InlineData(values=cells))
        .mark_rect()
        .encode(
            x=alt.X("start:Q", title="step", scale=across),
            x2="end:Q",
            y=alt.Y("layer:N", sort=layers, title=None),
            color=alt.Color(
                "share:Q", title="violated", scale=alt.Scale(scheme="viridis", domain=[0, 1])
            ),
        )
    )
    base = alt.Chart(alt.InlineData(values=begins)).encode(x=alt.X("step:Q", scale=across))
    rules = base.mark_rule(strokeWidth=2)
    names = base.mark_text(align="left", dx=3, dy=-7, y=0).encode(text="task:N")
    title = alt.TitleParams(report.out, anchor="start", offset=18)
    return alt.layer(boxes, rules, names).properties(
        width=560, height=14 * max(4, len(layers)), title=title
    )
