"""Pictures of `zeitgeist drop`: how similar sub-layers are, and what dropping costs and saves."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import Figure

if TYPE_CHECKING:
    from zeitgeist.compression.drop_sweep import SweepRow

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#999999")
"""Okabe and Ito's, which people who see fewer colours tell apart."""


def similarity_chart(similarity: Mapping[str, Sequence[float]]) -> Figure:
    """One line per kind of sub-layer over the depth of the model.

    Parameters
    ----------
    similarity
        Kind to the mean cosine of every layer.
    """
    points = [
        {"kind": kind, "layer": layer, "change": max(1.0 - value, 1e-6)}
        for kind, values in similarity.items()
        for layer, value in enumerate(values)
    ]
    scale = alt.Scale(domain=list(similarity), range=list(COLOURS[: len(similarity)]))
    chart = (
        alt.Chart(alt.InlineData(values=points), width=520, height=260)
        .mark_line(point=True)
        .encode(
            x=alt.X("layer:Q", title="layer"),
            y=alt.Y("change:Q", title="1 - cosine", scale=alt.Scale(type="log")),
            color=alt.Color("kind:N", title=None, scale=scale),
            strokeDash=alt.StrokeDash("kind:N", title=None, scale=alt.Scale(domain=[*similarity])),
        )
    )
    return Figure(
        "similarity",
        "How much every sub-layer changes the residual stream",
        "Lower: closer to doing nothing, and first to go.",
        chart,
    )


def pareto_chart(rows: "Sequence[SweepRow]") -> Figure:
    """Perplexity against decoding speed, a point per model.

    Parameters
    ----------
    rows
        Of a sweep.
    """
    points = [
        {"way": row.way, "count": row.count, "speed": row.decode, "perplexity": row.perplexity}
        for row in rows
    ]
    ways = list(dict.fromkeys(row.way for row in rows))
    base = alt.Chart(alt.InlineData(values=points), width=520, height=320).encode(
        x=alt.X("speed:Q", title="decoding (tokens/s)", scale=alt.Scale(zero=False)),
        y=alt.Y("perplexity:Q", title="perplexity", scale=alt.Scale(type="log")),
        color=alt.Color("way:N", title=None, scale=alt.Scale(domain=ways, range=[*COLOURS])),
    )
    marks = base.mark_point(filled=True, size=70, opacity=1).encode(
        shape=alt.Shape("way:N", title=None, scale=alt.Scale(domain=ways))
    )
    names = base.mark_text(dx=8, align="left", fontSize=10).encode(text="count:Q")
    return Figure(
        "pareto",
        "What dropping costs and saves",
        "Down and to the right is better; numbers say how many were dropped.",
        alt.layer(marks, names),
    )
