"""The pictures of attention drop: the price of every count, which layers idle, healing, speed."""

import math
from collections.abc import Mapping
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.studies.looks_charts import (
    DOTS,
    GREEN,
    GREY,
    LONG,
    MIXED,
    ORANGE,
    PINK,
    REFERENCE,
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
    in_rows,
    language_model,
    tooltips,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

LOOKS: Mapping[str, Look] = {
    "attention": (ORANGE, "circle", SOLID),
    "joint": (GREEN, "triangle-up", SHORT),
    "mlp": (SKY, "square", LONG),
    "block": (VERMILION, "cross", MIXED),
    "random": (GREY, "triangle-down", DOTS),
    "last": (GREY, "triangle-left", SPARSE),
    "search": (PINK, "diamond", DOTS),
}
KINDS: Mapping[str, Look] = {
    "attention": (ORANGE, "circle", SOLID),
    "MLP": (SKY, "square", LONG),
    "block": (VERMILION, "cross", MIXED),
}
RATIOS = {"prefill_speedup": "prefill speed", "decode_speedup": "decoding speed",
          "kv_share": "bytes of cache"}  # fmt: skip
HEALED: Mapping[str, str] = {
    "recovered": "against the whole model",
    "recovered_net": "against it, trained as much",
}
LIMIT = math.log(1.1)


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    model, made = language_model(evidence), []
    points = _points(evidence, "log_ratio", ["arm", "k"])
    if points:
        made.append(
            Figure(
                "price",
                "What every dropped layer costs",
                f"{model}: lost log-perplexity on prose that nothing was ranked on (0: as the "
                "whole model; the dashed line: 10 % more perplexity), against how many attention "
                f"layers, MLPs or blocks went. A block is both. {how_sure(points)}",
                over_counts(points, "lost log-perplexity (nats per token)", limit=LIMIT),
            )
        )
    points = _points(evidence, "top1", ["arm", "k"])
    if points:
        made.append(
            Figure(
                "agreement",
                "How often the likeliest next token stays the same",
                f"{model}: share of positions at which the model without the layers predicts the "
                f"whole model's token. {how_sure(points)}",
                over_counts(points, "agreement with the whole model", form=".1%"),
            )
        )
    points = _points(evidence, "change", ["kind", "layer"])
    if points:
        made.append(
            Figure(
                "similarity",
                "How much every sub-layer changes the residual stream",
                f"{model}: 1 - cosine of what enters and what leaves, mean over tokens and seeds; "
                "the lowest go first. Early layers do the most, the very last more than those "
                "before.",
                depth(points),
            )
        )
    rows = [
        {**point, "row": f"{point['k']} dropped", "series": words}
        for metric, words in HEALED.items()
        for point in _points(evidence, metric, ["arm", "k"])
    ]
    if rows:
        looks = dict(zip(HEALED.values(), (LOOKS["attention"], LOOKS["mlp"]), strict=True))
        made.append(
            Figure(
                "healing",
                "What a short LoRA training brings back",
                f"{model}: share of the lost log-perplexity that is recovered (1: all of it), "
                "against the whole model and against the whole model trained as much on the same "
                f"text. The dashed line is half. {how_sure(rows)}",
                _rows(rows, looks, "share of the loss recovered", ".1%", 0.5),
            )
        )
    rows = [
        {**point, "row": f"{words}, {point['k']} dropped", "series": evidence.arm(a).title}
        for metric, words in RATIOS.items()
        for point in _points(evidence, metric, ["arm", "k"])
        if (a := point["arm"])
    ]
    if rows:
        looks = {evidence.arm(a).title: LOOKS[a] for a in ("attention", "block")}
        made.append(
            Figure(
                "speed",
                "What is saved",
                f"{model}: speed and bytes of cache relative to the whole model (1: the same), on "
                f"the machine of this run. {how_sure(rows)}",
                _rows(rows, looks, "relative to the whole model", ".2f", 1.0),
            )
        )
    return made


def _points(evidence: Evidence, metric: str, by: list[str]) -> list[dict[str, Any]]:
    titles = {arm.slug: arm.title for arm in evidence.arms}
    return [
        {**point, **ends(point), "title": titles.get(point.get("arm", ""), "")}
        for point in summary(evidence.rows, metric, by)
    ]


def over_counts(
    points: list[dict[str, Any]], title: str, *, form: str = ".3f", limit: float | None = None
) -> Layers:
    """A line per arm over the counts, with intervals.

    Parameters
    ----------
    points
        With ``arm``, ``title``, ``k``, ``value``, ``low`` and ``high``.
    title, form
        Of the values.
    limit
        Where a dashed line is drawn; the axis is then logarithmic above it and linear below.
    """
    looks = {p["title"]: LOOKS[a] for a in LOOKS for p in points if p["arm"] == a}
    scale = alt.Scale(type="symlog", constant=0.1) if limit is not None else alt.Scale(zero=False)
    axis = alt.Axis(format="%") if "%" in form else alt.Axis(tickCount=6)
    colour, shape, dash = encodings("title", looks, columns=3)
    x = alt.X("k:Q", title="dropped", axis=alt.Axis(tickMinStep=1))
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, color=colour)
    y = alt.Y("value:Q", title=title, scale=scale, axis=axis)
    layers = [
        base.mark_rule(opacity=0.5).encode(y=alt.Y("low:Q", title=title, scale=scale), y2="high:Q"),
        base.mark_line(strokeWidth=1.5).encode(y=y, strokeDash=dash),
        base.mark_point(filled=True, size=55, opacity=1).encode(
            y=y, shape=shape, tooltip=tooltips({"title": "dropped by", "k": "count"}, title, form)
        ),
    ]
    if limit is not None:
        line = alt.Chart(alt.InlineData(values=[{"at": limit}])).mark_rule(**REFERENCE)
        layers.insert(0, line.encode(y=alt.Y("at:Q", title=title, scale=scale)))
    return alt.layer(*layers).properties(width="container", height=320)


def depth(points: list[dict[str, Any]]) -> Layers:
    """1 - cosine over the depth, a line per kind.

    Parameters
    ----------
    points
        With ``kind``, ``layer`` and ``value``.
    """
    named = [
        {**p, "kind": "MLP" if p["kind"] == "mlp" else p["kind"], "value": max(p["value"], 1e-6)}
        for p in points
    ]
    colour, shape, dash = encodings("kind", KINDS, columns=3)
    base = alt.Chart(alt.InlineData(values=named)).encode(
        x=alt.X("layer:Q", title="layer"),
        y=alt.Y("value:Q", title="1 - cosine", scale=alt.Scale(type="log")),
        color=colour,
    )
    words = {"kind": "kind", "layer": "layer"}
    layers = [
        base.mark_line(strokeWidth=1.5).encode(strokeDash=dash),
        base.mark_point(filled=True, size=40, opacity=1).encode(
            shape=shape, tooltip=tooltips(words, "1 - cosine", ".4f")
        ),
    ]
    return alt.layer(*layers).properties(width="container", height=260)


def _rows(
    rows: list[dict[str, Any]], looks: Mapping[str, Look], title: str, form: str, at: float
) -> alt.TopLevelMixin:
    drawn = in_rows(
        rows,
        looks,
        title=title,
        words={"row": "what", "series": "how"},
        form=form,
        axis=alt.Axis(labelLimit=220),
        reference=at,
    )
    made: alt.TopLevelMixin = drawn.properties(width="container", height={"step": 30})
    return made
