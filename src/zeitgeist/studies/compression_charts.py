"""The room on one chart: what a cheaper token costs in loss, by time and by memory."""

from collections.abc import Iterator, Mapping
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.studies.looks_charts import (
    GREY,
    LONG,
    ORANGE,
    SHORT,
    SKY,
    SOLID,
    SPARSE,
    VERMILION,
    Layers,
    Look,
    encodings,
    ends,
    how_sure,
    language_model,
    stacked,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

LOOKS: Mapping[str, Look] = {
    "full": (GREY, "circle", SOLID),
    "attention_4": (SKY, "square", SHORT),
    "attention_8": (SKY, "diamond", LONG),
    "block_2": (ORANGE, "triangle-up", SHORT),
    "block_4": (ORANGE, "triangle-down", LONG),
    "lolcats": (VERMILION, "cross", SPARSE),
}
COSTS = {
    "seconds_per_token": ("time", "time of a decoded token (ms)", 1e3),
    "bytes": ("memory", "kept between tokens (MB)", 1e-6),
}
PANEL = {"width": 300, "height": 150}


def figures(evidence: Evidence) -> list[Figure]:
    """Loss against time, and against memory, at every context.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    for metric, (slug, title, unit) in COSTS.items():
        if points := list(_points(evidence, metric, unit)):
            contexts = dict.fromkeys(point["context"] for point in points)
            made.append(
                Figure(
                    f"loss-{slug}",
                    f"{language_model(evidence)} made cheaper: loss against {slug}",
                    "Loss on held-out prose after the same LoRA, against the "
                    f"{title.partition(' (')[0]} after so many tokens. Lower left is better. "
                    f"{how_sure(points)}",
                    stacked(
                        {
                            f"after {context:,} tokens": _panel(
                                [p for p in points if p["context"] == context], title
                            )
                            for context in contexts
                        },
                        **PANEL,
                    ),
                )
            )
    return made


def _points(evidence: Evidence, metric: str, unit: float) -> Iterator[dict[str, Any]]:
    losses = {p["arm"]: p for p in summary(evidence.rows, "nll", ["arm"])}
    for cost in summary(evidence.rows, metric, ["arm", "context"]):
        loss = losses.get(cost["arm"])
        if loss is not None:
            yield {
                **loss,
                **ends(loss),
                "cost": unit * cost["value"],
                "context": cost["context"],
                "series": evidence.arm(cost["arm"]).title,
            }


def _panel(points: list[dict[str, Any]], title: str) -> Layers:
    looks = {p["series"]: LOOKS[p["arm"]] for p in points}
    colour, shape, _ = encodings("series", looks)
    room = alt.Scale(zero=False, padding=12)
    x = alt.X("cost:Q", title=title, scale=room)
    label = "loss (nats per token)"
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, color=colour)
    bars = base.mark_rule(opacity=0.5).encode(
        y=alt.Y("low:Q", title=label, scale=room), y2="high:Q"
    )
    marks = base.mark_point(size=70, filled=True, opacity=1).encode(
        y=alt.Y("value:Q", title=label, scale=room),
        shape=shape,
        tooltip=[
            alt.Tooltip("series:N"),
            alt.Tooltip("cost:Q", format=".3s", title=title),
            alt.Tooltip("value:Q", format=".2f", title=label),
        ],
    )
    return alt.layer(bars, marks)
