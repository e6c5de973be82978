"""Pictures of `zeitgeist continual`: the accuracy matrix, and learning against remembering."""

from collections.abc import Sequence

from zeitgeist.continual.metrics import backward_transfer, learning_accuracy
from zeitgeist.continual.sequence import SequenceReport
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
