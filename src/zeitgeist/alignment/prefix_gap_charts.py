"""A picture of the gap: accuracy against position, after gold and after own tokens."""

from collections.abc import Mapping

from zeitgeist.alignment.prefix_gap import GapReport
from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

COLOURS = ("#0072B2", "#D55E00")


def gap_chart(reports: Mapping[str, GapReport]) -> Figure:
    """Lines by position; solid after gold, dashed after own tokens.

    Parameters
    ----------
    reports
        By what they are called, such as ``before`` and ``after``; two at most.
    """
    points = [
        {"model": name, "prefix": prefix, "position": t, "accuracy": value, "answers": count}
        for name, report in reports.items()
        for prefix, values in (
            ("gold", report.gold_by_position),
            ("own", report.own_by_position),
        )
        for t, (value, count) in enumerate(zip(values, report.counts, strict=True), 1)
    ]
    names = list(reports)
    dashes = alt.Scale(domain=["gold", "own"], range=[[1, 0], [6, 3]])
    shapes = alt.Scale(domain=["gold", "own"], range=["circle", "triangle-up"])
    base = alt.Chart(alt.InlineData(values=points), width=520, height=260).encode(
        x=alt.X("position:Q", title="position in the answer (tokens)", axis={"tickMinStep": 1}),
        y=alt.Y("accuracy:Q", title="token accuracy", scale=alt.Scale(domain=[0, 1])),
        color=alt.Color("model:N", title=None, scale=alt.Scale(domain=names, range=[*COLOURS])),
    )
    lines = base.mark_line().encode(
        strokeDash=alt.StrokeDash("prefix:N", title="prefix", scale=dashes)
    )
    dots = base.mark_point(filled=True, opacity=1).encode(
        shape=alt.Shape("prefix:N", title="prefix", scale=shapes),
        tooltip=["model:N", "prefix:N", "position:Q", "accuracy:Q", "answers:Q"],
    )
    told = "; ".join(
        f"{name}: {report.gold_accuracy:.1%} after gold, {report.own_accuracy:.1%} after own "
        f"tokens, {report.exact_match:.1%} of answers wholly right"
        for name, report in reports.items()
    )
    return Figure(
        "gap",
        "Accuracy after gold and after own tokens",
        f"{told}. Later positions rest on fewer answers.",
        lines + dots,
    )
