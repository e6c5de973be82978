"""The pictures of merging at scale: how merges fare with more experts, wider nets, better bases."""

import math
from collections.abc import Mapping, Sequence
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
    SHORT,
    SKY,
    SOLID,
    SPARSE,
    VERMILION,
    Look,
    across,
    encodings,
    ends,
    how_sure,
    in_rows,
    language_model,
    stacked,
)
from zeitgeist.studies.merging_at_scale_digits import METHODS
from zeitgeist.studies.merging_at_scale_effects import effect_sizes

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

LOOKS: Mapping[str, Look] = {
    "average": (ORANGE, "circle", SOLID),
    "task_arithmetic": (SKY, "square", LONG),
    "ties": (GREEN, "triangle-up", SHORT),
    "dare_ties": (PINK, "diamond", DOTS),
    "multitask": (VERMILION, "cross", MIXED),
    "base": (GREY, "triangle-left", SPARSE),
    "expert": (GREY, "triangle-down", SOLID),
}
BASES: Mapping[str, Look] = {"weak": (ORANGE, "circle", SOLID), "strong": (SKY, "square", LONG)}
DODGE = 0.12  # between methods at one number of experts, so that intervals do not hide each other
PANEL = {"width": 122, "height": 100}
ROWS_OF: dict[str, Any] = {"width": 300, "height": {"step": 26}}
ROWS: dict[str, Any] = {"width": "container", "height": {"step": 30}}
_DIGITS: dict[str, Any] = {"family": "digits"}


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    families = {row.get("family") for row in evidence.rows}
    return [
        *(_of_networks(evidence) if "digits" in families else ()),
        *(_of_language(evidence) if "smollm2" in families else ()),
    ]


def _of_networks(evidence: Evidence) -> list[Figure]:
    """Small networks: widths, bases and methods."""
    made = [
        Figure(
            "held-in",
            "What merges keep of their experts' skill",
            "Accuracy on the tasks of the merged experts, relative to each task's own expert (1: "
            "nothing lost), against the number of experts; rows are widths, columns bases. Bars "
            "are 95 % intervals over seeds. The base is zero-shot; the multitask model is one "
            "model trained on all eight tasks.",
            against_experts(evidence, "held_in"),
        ),
        Figure(
            "held-out",
            "What merges do to tasks nobody fine-tuned on",
            "Accuracy on the held-out tasks relative to the base (1: as the base), against the "
            "number of experts; rows are widths, columns bases. Bars are 95 % intervals over "
            "seeds.",
            against_experts(evidence, "held_out"),
        ),
        Figure(
            "room",
            "How much room there was",
            "Absolute accuracy on the held-in tasks: the base before any fine-tuning, eight "
            "experts merged by task arithmetic, the multitask model, and each task's own expert. "
            "Where the base stands next to the expert, no merge can be far from it.",
            room(evidence),
        ),
        Figure(
            "methods-apart",
            "How far apart the methods are",
            "Mean distance of the four methods' held-in scores from their common mean, with eight "
            "experts, against width. Bars are 95 % intervals over seeds.",
            apart(evidence),
        ),
    ]
    effects = [effect for effect in effect_sizes(evidence.rows) if math.isfinite(effect.low)]
    if effects:
        made.append(
            Figure(
                "effects",
                "What matters, and how much",
                "Standardised effects on held-in performance from one regression over all merges: "
                "by how many standard deviations it moves when a number moves by one of its own, "
                "or when averaging is exchanged for another method. Bars are 95 % intervals over "
                "seeds; the interval of an effect that does not matter crosses 0.",
                effects_chart(evidence, effects),
            )
        )
    return made


def _of_language(evidence: Evidence) -> list[Figure]:
    panels = {
        title: points
        for metric, title in (
            ("held_in", "Exact answers / own expert's"),
            ("recovered", "Share of the expert's gain in loss"),
        )
        if (points := language_points(evidence, metric))
    }
    if not panels:
        return []
    return [
        Figure(
            "language",
            f"The same question on {language_model(evidence)}",
            "Merges of two and of four LoRA experts, scored on the tasks that stand in both, "
            f"relative to each task's own expert (100 %). {how_sure(*panels.values())}",
            stacked({title: _language_rows(evidence, p) for title, p in panels.items()}, **ROWS_OF),
        )
    ]


def language_points(evidence: Evidence, metric: str) -> list[dict[str, Any]]:
    """Means per method and number of experts, over the tasks that both merges have."""
    rows = [row for row in evidence.rows if row.get("family") == "smollm2"]
    few = min((row["experts"] for row in rows if row.get("experts")), default=0)
    tasks = tuple({row["task"]: 0 for row in rows if row.get("experts") == few and "task" in row})
    found = summary(rows, metric, ["arm", "experts"], {"arm": METHODS, "task": tasks})
    return [
        {**p, **ends(p), "row": evidence.arm(p["arm"]).title, "series": f"{p['experts']} experts"}
        for p in found
    ]


def _language_rows(evidence: Evidence, points: Sequence[Mapping[str, Any]]) -> Any:
    series = dict.fromkeys(point["series"] for point in points)
    looks = dict(zip(series, (BASES["weak"], BASES["strong"]), strict=False))
    return in_rows(
        points,
        looks,
        title="share of the expert's",
        words={"row": "method", "series": "merged"},
        form=".1%",
        axis=alt.Axis(labelLimit=160),
        joined=True,
    )


def against_experts(evidence: Evidence, metric: str) -> alt.TopLevelMixin:
    """A metric against the number of experts: methods and baselines, in panels."""
    by = ["width", "base", "arm"]
    merged = summary(evidence.rows, metric, [*by, "experts"], {**_DIGITS, "arm": METHODS})
    counts = sorted({point["experts"] for point in merged})
    still = summary(evidence.rows, metric, by, {**_DIGITS, "arm": ("multitask", "base")})
    flat = [{**point, "experts": count} for point in still for count in counts]
    arms = [*METHODS, "multitask", "base"]
    points = [
        {
            **point,
            **ends(point),
            "model": evidence.arm(point["arm"]).title,
            "across": point["experts"] + DODGE * (arms.index(point["arm"]) - 2.5),
            "row": f"width {point['width']}",
            "column": f"{point['base']} base",
        }
        for point in [*merged, *flat]
    ]
    x = alt.X(
        "across:Q",
        title="experts (number)",
        axis=alt.Axis(values=counts, format="d"),
        scale=alt.Scale(domain=[counts[0] - 0.5, counts[-1] + 0.5], nice=False),
    )
    y = alt.Y("value:Q", title=_short(metric), scale=alt.Scale(zero=False))
    low = alt.Y("low:Q", title=_short(metric))
    rows = [f"width {width}" for width in sorted({point["width"] for point in points})]
    columns = [f"{base} base" for base in BASES]
    colour, shape, dash = encodings("model", _looks(evidence, arms))
    base = alt.Chart().encode(x=x, color=colour)
    layers = alt.layer(
        base.mark_line(strokeWidth=1.6).encode(y=y, strokeDash=dash),
        base.mark_rule(opacity=0.6)
        .encode(y=low, y2="high:Q")
        .transform_filter(alt.FieldOneOfPredicate("arm", list(METHODS))),
        base.mark_point(size=34, filled=True, opacity=1).encode(
            y=y,
            shape=shape,
            tooltip=[
                alt.Tooltip("model:N"),
                alt.Tooltip("experts:Q"),
                alt.Tooltip("value:Q", format=".3f"),
                alt.Tooltip("low:Q", format=".3f", title="95 % from"),
                alt.Tooltip("high:Q", format=".3f", title="to"),
            ],
        ),
        data=alt.InlineData(values=points),
    ).properties(**PANEL)
    chart: alt.TopLevelMixin = layers.facet(
        row=alt.Row("row:N", title=None, sort=rows, header=alt.Header(labelPadding=2)),
        column=alt.Column("column:N", title=None, sort=columns),
        spacing=8,
    )
    return chart


def room(evidence: Evidence) -> alt.TopLevelMixin:
    """Absolute held-in accuracy of base, merge, multitask model and expert, per width and base."""
    by = ["width", "base", "arm"]
    metric = "held_in_absolute"
    most = max(row["experts"] for row in evidence.rows if row.get("experts") is not None)
    merged = {**_DIGITS, "arm": "task_arithmetic", "experts": most}
    arms = ["base", "task_arithmetic", "multitask", "expert"]
    points = [
        {
            **point,
            **ends(point),
            "row": f"{point['base']}, width {point['width']}",
            "series": evidence.arm(point["arm"]).title,
        }
        for point in [
            *summary(evidence.rows, metric, by, merged),
            *summary(
                evidence.rows, metric, by, {**_DIGITS, "arm": tuple(set(arms) - {merged["arm"]})}
            ),
        ]
    ]
    points.sort(key=lambda point: (list(BASES).index(point["base"]), point["width"]))
    return in_rows(
        points,
        _looks(evidence, arms),
        title="held-in accuracy (share right)",
        words={"series": "model", "row": "where"},
        form=".3f",
        axis=alt.Axis(labelLimit=190),
    ).properties(**{**ROWS, "height": {"step": 44, "for": "position"}})


def apart(evidence: Evidence) -> alt.TopLevelMixin:
    """Mean distance of the methods from their mean against width, one line per base."""
    most = max(row["experts"] for row in evidence.rows if row.get("experts") is not None)
    where = {**_DIGITS, "arm": METHODS, "experts": most}
    found = summary(evidence.rows, "apart", ["width", "base"], where)
    points = [{**point, **ends(point)} for point in found]
    widths = sorted({point["width"] for point in points})
    bases = {b: look for b, look in BASES.items() if any(p["base"] == b for p in points)}
    title = "distance from the methods' mean (held-in)"
    x = alt.X(
        "width:Q",
        title="width (units per layer)",
        scale=alt.Scale(type="log", base=2, nice=False, padding=20),
        axis=alt.Axis(values=widths, format="d"),
    )
    colour, shape, dash = encodings("base", bases, title="base")
    base = alt.Chart(alt.InlineData(values=points)).encode(x=x, color=colour)
    y = alt.Y("value:Q", title=title)
    return alt.layer(
        base.mark_line().encode(y=y, strokeDash=dash),
        base.mark_rule(opacity=0.6).encode(y=alt.Y("low:Q", title=title), y2="high:Q"),
        base.mark_point(size=70, filled=True, opacity=1).encode(
            y=y,
            shape=shape,
            tooltip=[
                alt.Tooltip("base:N"),
                alt.Tooltip("width:Q"),
                alt.Tooltip("value:Q", format=".4f", title="distance"),
            ],
        ),
    ).properties(width="container", height=240)


def effects_chart(evidence: Evidence, effects: Sequence[Any]) -> alt.TopLevelMixin:
    """Standardised effects with their intervals; hovering tells them in their own unit."""
    points = [
        {
            "effect": evidence.arm(e.name).title + " v. averaging" if e.name in METHODS else e.name,
            "value": e.standardised,
            "low": e.low,
            "high": e.high,
            "own": f"{e.raw:+.4f} ({e.raw_low:+.4f} to {e.raw_high:+.4f}) {e.unit}",
        }
        for e in effects
    ]
    y = alt.Y("effect:N", title=None, sort=None, axis=alt.Axis(labelLimit=190))
    data = alt.InlineData(values=points)
    title = "standardised effect (standard deviations)"
    tip = [
        alt.Tooltip("effect:N"),
        alt.Tooltip("value:Q", format="+.2f", title="standardised"),
        alt.Tooltip("own:N", title="in its own unit"),
    ]
    return alt.layer(
        across(0.0, title),
        alt.Chart(data)
        .mark_rule(color=SKY, strokeWidth=2)
        .encode(x=alt.X("low:Q", title=title), x2="high:Q", y=y),
        alt.Chart(data)
        .mark_point(size=80, filled=True, opacity=1, color=SKY)
        .encode(x=alt.X("value:Q", title=title), y=y, tooltip=tip),
    ).properties(**ROWS)


def _looks(evidence: Evidence, arms: Sequence[str]) -> dict[str, Look]:
    return {evidence.arm(arm).title: LOOKS[arm] for arm in arms}


def _short(metric: str) -> str:
    return {"held_in": "held-in / expert's", "held_out": "held-out / base's"}[metric]
