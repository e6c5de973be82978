"""Pictures of `zeitgeist limits`: what finding the most similar pair costs, and who finds it."""

from collections.abc import Mapping, Sequence
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#999999")


def curve_chart(rows: Sequence[Mapping[str, Any]]) -> Figure:
    """Time against the number of vectors, a line per mixer; crosses where the pair was missed.

    Parameters
    ----------
    rows
        Of `zeitgeist.compression.limits_curve.measure_curve`.
    """
    points = [{**row, "found": "found" if row["recall"] else "missed"} for row in rows]
    mixers = list(dict.fromkeys(row["mixer"] for row in rows))
    base = alt.Chart(alt.InlineData(values=points), width=460, height=300).encode(
        x=alt.X("n:Q", title="vectors", scale=alt.Scale(type="log", base=2)),
        y=alt.Y("seconds:Q", title="processor time (s)", scale=alt.Scale(type="log")),
        color=alt.Color("mixer:N", title=None, scale=alt.Scale(domain=mixers, range=[*COLOURS])),
    )
    marks = base.mark_point(filled=True, size=70, opacity=1).encode(
        shape=alt.Shape(
            "found:N",
            title="the pair",
            scale=alt.Scale(domain=["found", "missed"], range=["circle", "cross"]),
        )
    )
    return Figure(
        "curve",
        "What finding the most similar pair costs",
        "Random vectors with one planted pair. Exact search and attention grow as n squared.",
        alt.layer(base.mark_line(), marks),
    )
