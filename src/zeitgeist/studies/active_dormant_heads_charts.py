"""The pictures of active-dormant heads: how the toy gets there, and the inside of a real model."""

from collections.abc import Mapping
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.inspection.heads_charts import sink_maps
from zeitgeist.studies.looks_charts import (
    GREEN,
    GREY,
    LONG,
    ORANGE,
    SHORT,
    SKY,
    SOLID,
    VERMILION,
    Layers,
    Look,
    encodings,
    ends,
    how_sure,
    language_model,
    stacked,
    tooltips,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

ARMS: Mapping[str, Look] = {
    "adam": (ORANGE, "circle", SOLID),
    "sgd": (SKY, "square", LONG),
    "relu": (GREEN, "triangle-up", SHORT),
}
TOKENS: Mapping[str, Look] = {
    "sink": (VERMILION, "circle", SOLID),
    "largest elsewhere": (SKY, "square", LONG),
    "median elsewhere": (GREY, "triangle-up", SHORT),
}
KINDS: Mapping[str, Look] = {
    "MLP": (SKY, "square", LONG),
    "attention": (ORANGE, "circle", SOLID),
}
PANELS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "sink_at": ("attention on the first token where nothing is to be copied", {"tokens": "idle"}),
    "value_at": ("value norm of the first token / others'", {}),
    "stream_at": ("its residual norm behind layer 0", {"layer": 0, "token": "first"}),
    "logit_at": ("relative sink logit", {}),
}


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = [f for layers in (3, 1) if (f := forming(evidence, layers)) is not None]
    model = language_model(evidence)
    points = _points(evidence, "mass_in", ["domain", "layer", "head"])
    if points:
        made.append(
            Figure(
                "heads",
                "Where attention goes to sinks",
                f"{model}: sink mass of every head on prose and on code, and the difference. "
                "Mean over seeds.",
                sink_maps(points),
            )
        )
    points = _points(evidence, "stream_in", ["domain", "layer", "token"])
    if points:
        made.append(
            Figure(
                "peak",
                "The residual stream of a sink",
                f"{model}: norm behind every layer (-1: before the first), at sinks, the largest "
                f"elsewhere and the median elsewhere, prose and code. {how_sure(points)}",
                streams(points),
            )
        )
    points = _points(evidence, "left", ["kind", "layer"])
    if points:
        made.append(
            Figure(
                "peak-makers",
                "Which sub-layer makes the peak",
                f"{model}: share of the peak that is left without one MLP or one attention layer "
                f"(1: all of it; the peak is the largest ratio to the median, less 1). "
                f"{how_sure(points)}",
                makers(points),
            )
        )
    return made


def _points(
    evidence: Evidence, metric: str, by: list[str], where: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    titles = {arm.slug: arm.title for arm in evidence.arms}
    return [
        {**point, **ends(point), "title": titles.get(point.get("arm", ""), "")}
        for point in summary(evidence.rows, metric, by, where)
    ]


def forming(evidence: Evidence, layers: int) -> Figure | None:
    """Sink, drain, peak and logit over training, a line per arm.

    Parameters
    ----------
    evidence
        Of the study.
    layers
        Of the toy.
    """
    panels = {}
    for metric, (title, where) in PANELS.items():
        points = _points(evidence, metric, ["arm", "step"], {**where, "layers": layers})
        if points:
            each = summary(
                evidence.rows, metric, ["arm", "step", "seed"], {**where, "layers": layers}
            )
            panels[title] = over_steps(points, each, title, log=metric == "stream_at")
    if not panels:
        return None
    number = "three layers" if layers == 3 else "one layer"
    return Figure(
        f"forming-{layers}",
        f"Sink, drain and peak as they form, {number}",
        "Bigram-Backcopy: the copying head is idle except at triggers. Softmax attention sinks and "
        "drains with either optimiser, and its residual stream grows with Adam alone; ReLU "
        "attention forms no sink. Faint: each seed; marked: their mean.",
        stacked(panels, width=460, height=130),
    )


def over_steps(
    points: list[dict[str, Any]], each: list[dict[str, Any]], title: str, *, log: bool
) -> Layers:
    """A line per arm over training steps, and a faint one per seed.

    An interval of five seeds would reach far beyond what any of them did.

    Parameters
    ----------
    points
        With ``arm``, ``title``, ``step`` and ``value``.
    each
        With ``arm``, ``step``, ``seed`` and ``value``.
    title
        Of the values.
    log
        Draw them on a logarithmic axis.
    """
    titles = {p["arm"]: p["title"] for p in points}
    looks = {titles[arm]: look for arm, look in ARMS.items() if arm in titles}
    colour, shape, dash = encodings("title", looks, columns=3)
    scale = alt.Scale(type="log", nice=False) if log else alt.Scale(zero=False)
    x = alt.X("step:Q", title="step")
    y = alt.Y("value:Q", title=None, scale=scale, axis=alt.Axis(tickCount=4))
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, y=y, color=colour)
    seeds = [{**p, "title": titles[p["arm"]]} for p in each]
    faint = alt.Chart(alt.InlineData(values=seeds)).encode(
        x=x, y=y, color=colour, detail=alt.Detail("seed:N")
    )
    return alt.layer(
        faint.mark_line(strokeWidth=0.8, opacity=0.45),
        base.mark_line(strokeWidth=1.5).encode(strokeDash=dash),
        base.mark_point(filled=True, size=25, opacity=1).encode(
            shape=shape, tooltip=tooltips({"title": "arm", "step": "step"}, title, ".3f")
        ),
    )


def streams(points: list[dict[str, Any]]) -> alt.TopLevelMixin:
    """Residual norms over the depth on a logarithmic axis, a panel per domain.

    Parameters
    ----------
    points
        With ``domain``, ``layer``, ``token``, ``value``, ``low`` and ``high``.
    """
    words = {"sink": "sink", "largest": "largest elsewhere", "median": "median elsewhere"}
    panels = {}
    for domain in dict.fromkeys(point["domain"] for point in points):
        own = [{**p, "token": words[p["token"]]} for p in points if p["domain"] == domain]
        panels[str(domain)] = _lines(own, "token", TOKENS, "residual norm", log=True)
    return stacked(panels, width=460, height=180)


def makers(points: list[dict[str, Any]]) -> Layers:
    """What is left of the peak without each sub-layer.

    Parameters
    ----------
    points
        With ``kind``, ``layer``, ``value``, ``low`` and ``high``.
    """
    named = [{**p, "kind": "MLP" if p["kind"] == "mlp" else p["kind"]} for p in points]
    return _lines(named, "kind", KINDS, "peak that is left", log=False).properties(
        width="container", height=260
    )


def _lines(
    points: list[dict[str, Any]], field: str, looks: Mapping[str, Look], title: str, *, log: bool
) -> Layers:
    colour, shape, dash = encodings(field, looks, columns=3)
    scale = alt.Scale(type="log") if log else alt.Scale(zero=True)
    base = alt.Chart(alt.InlineData(values=points)).encode(
        x=alt.X("layer:Q", title="layer", scale=alt.Scale(nice=False)), color=colour
    )
    y = alt.Y("value:Q", title=title, scale=scale, axis=alt.Axis(tickCount=5))
    words = {field: field, "layer": "layer"}
    return alt.layer(
        base.mark_line(strokeWidth=1.5).encode(y=y, strokeDash=dash),
        base.mark_point(filled=True, size=30, opacity=1).encode(
            y=y, shape=shape, tooltip=tooltips(words, title, ".3g")
        ),
    )
