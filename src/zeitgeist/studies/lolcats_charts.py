"""The pictures of LoLCATs: what each step of linearizing keeps, and where attention is missed."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.studies.looks_charts import (
    GREEN,
    GREY,
    LONG,
    ORANGE,
    PINK,
    SHORT,
    SKY,
    SOLID,
    VERMILION,
    Layers,
    Look,
    encodings,
    ends,
    how_sure,
    in_rows,
    language_model,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

WINDOW, LINEAR = "window of 64", "no window"
LOOKS: Mapping[str, Look] = {WINDOW: (SKY, "circle", SOLID), LINEAR: (ORANGE, "square", LONG)}
TAUGHT: Mapping[str, Look] = {
    "window, swapped": (GREY, "circle", SHORT),
    "window, taught": (SKY, "circle", SOLID),
    "no window, swapped": (ORANGE, "square", SHORT),
    "no window, taught": (VERMILION, "square", SOLID),
    "window alone": (GREEN, "diamond", LONG),
    "window and first token, taught": (PINK, "triangle-up", LONG),
}


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    if scored := list(_perplexity(evidence)):
        made.append(
            Figure(
                "perplexity",
                f"What linearizing {language_model(evidence)} costs, step by step",
                "Perplexity of held-out prose (logarithmic: the loss), lower is better. The dashed "
                "line is the softmax model as it comes; softmax + LoRA is the fair goal, because "
                f"LoRA learns the text as well. {how_sure(scored)}",
                in_rows(
                    scored,
                    {
                        look: LOOKS[look]
                        for look in LOOKS
                        if any(p["series"] == look for p in scored)
                    },
                    title="loss on held-out text (nats per token)",
                    words={"row": "arm", "series": "window"},
                    form=".2f",
                    axis=alt.Axis(labelLimit=160),
                    reference=next(p["value"] for p in scored if p["arm"] == "teacher"),
                ).properties(width="container", height={"step": 40, "for": "position"}),
            )
        )
    if missed := list(_missed(evidence)):
        made.append(
            Figure(
                "layers",
                "How far attention is missed, layer by layer",
                "Squared error of each layer's attention outputs, relative to their variance, on "
                "held-out windows: with the maps as they begin, and after teaching. 1 is as bad as "
                "answering with the mean.",
                _by_layer(missed),
            )
        )
    if wide := list(_entropies(evidence)):
        made.append(
            Figure(
                "entropy",
                "What is missed against how widely softmax attends",
                "One point per layer: squared error of attention over its variance, against "
                "the entropy of softmax's weights, before and after teaching (window of 64).",
                _against_entropy(wide),
            )
        )
    if gates := list(summary(evidence.rows, "gamma", ["window", "layer", "head"])):
        made.append(
            Figure(
                "gamma",
                "How much the window weighs",
                "Gamma per head and layer after teaching, mean over seeds; it starts at 0.1.",
                _heat([gate for gate in gates if gate["window"]]),
            )
        )
    return made


def _perplexity(evidence: Evidence) -> Iterator[dict[str, Any]]:
    for point in summary(evidence.rows, "nll", ["arm", "window"]):
        known = {**point, **ends(point), "row": evidence.arm(point["arm"]).title}
        yield {**known, "series": WINDOW if point["window"] else LINEAR}


def _missed(evidence: Evidence) -> Iterator[dict[str, Any]]:
    names = {("before"): "swapped", ("after"): "taught"}
    by = ["arm", "window", "stage", "layer"]
    for point in summary(evidence.rows, "relative_mse", by):
        if point["arm"] == "kaiming":
            continue
        window = "window" if point["window"] else "no window"
        series = f"{window}, {names[point['stage']]}"
        if point["arm"] == "window_only":
            series = "window alone"
        elif point["arm"] == "sink":
            if point["stage"] == "before":
                continue
            series = "window and first token, taught"
        if point["value"] > 0:
            yield {"layer": point["layer"], "value": point["value"], "series": series}


def _by_layer(points: list[dict[str, Any]]) -> Layers:
    looks = {name: TAUGHT[name] for name in TAUGHT if any(p["series"] == name for p in points)}
    colour, shape, dash = encodings("series", looks)
    base = alt.Chart(alt.InlineData(values=points)).encode(
        x=alt.X("layer:Q", title="layer", axis=alt.Axis(tickMinStep=1)),
        y=alt.Y(
            "value:Q",
            title="squared error / variance",
            scale=alt.Scale(type="log", nice=False, domain=_decades(points)),
        ),
        color=colour,
    )
    tips = [alt.Tooltip("series:N"), alt.Tooltip("layer:Q"), alt.Tooltip("value:Q", format=".3f")]
    lines = base.mark_line(strokeWidth=1.5).encode(strokeDash=dash)
    marks = base.mark_point(size=30, filled=True, opacity=1).encode(shape=shape, tooltip=tips)
    return alt.layer(lines, marks).properties(width="container", height=260)


def _entropies(evidence: Evidence) -> Iterator[dict[str, Any]]:
    by = ["arm", "window", "layer"]
    entropy = {
        (point["window"], point["layer"]): point["value"]
        for point in summary(evidence.rows, "entropy", by)
    }
    for point in summary(evidence.rows, "relative_mse", [*by, "stage"]):
        at = (point["window"], point["layer"])
        if point["arm"] == "transfer" and point["window"] and at in entropy:
            series = "window, swapped" if point["stage"] == "before" else "window, taught"
            yield {
                "layer": point["layer"],
                "entropy": entropy[at],
                "value": point["value"],
                "series": series,
            }


def _against_entropy(points: list[dict[str, Any]]) -> Any:
    looks = {
        "window, swapped": (GREY, "square", SHORT),
        "window, taught": TAUGHT["window, taught"],
    }
    colour, shape, _ = encodings("series", looks)
    tips = [alt.Tooltip("layer:Q"), alt.Tooltip("value:Q", format=".3f")]
    return (
        alt.Chart(alt.InlineData(values=points))
        .mark_point(size=40, filled=True, opacity=1)
        .encode(
            x=alt.X("entropy:Q", title="entropy of softmax (nats)", scale=alt.Scale(zero=False)),
            y=alt.Y(
                "value:Q",
                title="squared error / variance",
                scale=alt.Scale(type="log", nice=False, domain=_decades(points)),
            ),
            color=colour,
            shape=shape,
            tooltip=tips,
        )
        .properties(width="container", height=260)
    )


def _heat(gates: list[dict[str, Any]]) -> Any:
    tips = [alt.Tooltip("layer:O"), alt.Tooltip("head:O"), alt.Tooltip("value:Q", format=".3f")]
    return (
        alt.Chart(alt.InlineData(values=gates))
        .mark_rect()
        .encode(
            x=alt.X("layer:O", title="layer"),
            y=alt.Y("head:O", title="head"),
            color=alt.Color("value:Q", title="gamma", scale=alt.Scale(scheme="cividis")),
            tooltip=tips,
        )
        .properties(width="container", height=200)
    )


def _decades(points: list[dict[str, Any]]) -> list[float]:
    values = [point["value"] for point in points]
    return [10 ** math.floor(math.log10(min(values))), 10 ** math.ceil(math.log10(max(values)))]
