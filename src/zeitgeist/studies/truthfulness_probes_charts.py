"""The pictures of truthfulness probes: areas, leads, where, elsewhere, picks."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.inspection.answers import POSITIONS
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
    ends,
    how_sure,
    in_rows,
    language_model,
    stacked,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

ARMS: Mapping[str, tuple[str, Look]] = {
    "exact_last": ("probe, exact answer's last token", (ORANGE, "circle", SOLID)),
    "exact_first": ("probe, exact answer's first token", (GREEN, "triangle-up", SHORT)),
    "last": ("probe, last token", (SKY, "square", LONG)),
    "question_last": ("probe, question's last token", (VERMILION, "cross", MIXED)),
    "best_score": ("best score without training", (PINK, "diamond", DOTS)),
    "length": ("answer's length", (GREY, "triangle-down", DOTS)),
    "span_length": ("exact answer's length", (GREY, "triangle-left", SPARSE)),
}
WAYS = {
    "pick": "probe's pick",
    "majority": "majority",
    "greedy": "greedy answer",
    "random": "a sample at random",
    "oracle": "best of the samples",
}
EXTRACTIONS = {
    "blind": "exact answers located by one rule for all",
    "published": "exact answers located with a look at the label",
}
SETS: Sequence[Look] = (
    (ORANGE, "circle", SOLID),
    (SKY, "square", LONG),
    (GREEN, "triangle-up", SHORT),
    (VERMILION, "cross", MIXED),
    (PINK, "diamond", DOTS),
)
AREA = "area under the ROC curve"
FORM = ".2f"


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    model = language_model(evidence)
    drawn = (areas, leads, maps, elsewhere, picks)
    return [figure for draw in drawn for figure in draw(evidence, model)]


def areas(evidence: Evidence, model: str) -> Iterator[Figure]:
    """Every arm on every set, once for each extraction."""
    panels: dict[str, list[dict[str, Any]]] = {}
    for extraction, title in EXTRACTIONS.items():
        where = {"part": "detect", "extraction": extraction}
        if found := summary(evidence.rows, "auc", ["arm", "set"], where):
            panels[title] = [
                {**point, **ends(point), "row": point["set"], "series": ARMS[point["arm"]][0]}
                for point in found
            ]
    if panels:
        yield Figure(
            "areas",
            "Who tells right answers from wrong ones",
            f"{model}: {AREA} by set (0.5: chance). Above, the same rule finds the exact answer "
            "in all answers; below, the gold answer is looked for first, which tells the probe "
            f"where to look. {how_sure(*panels.values())}",
            stacked(
                {
                    title: in_rows(
                        points,
                        dict(ARMS.values()),
                        title=AREA,
                        words={"row": "set", "series": "by"},
                        form=FORM,
                        axis=alt.Axis(labelLimit=120),
                        reference=0.5,
                    )
                    for title, points in panels.items()
                },
                width=480,
                height=alt.Step(11),
            ),
        )


def leads(evidence: Evidence, model: str) -> Iterator[Figure]:
    """How far the probe is above everything else, with intervals over all entities."""
    by: dict[tuple[str, str], dict[str, float]] = {}
    for row in evidence.rows:
        if row["metric"] in ("lead", "lead_low", "lead_high") and row["extraction"] == "blind":
            by.setdefault((row["over"], row["set"]), {})[row["metric"]] = row["value"]
    shown = ("last", "question_last", "logprob_min_exact", "logprob_mean", "logit_min_exact",
             "logit_mean", "p_true", "p_true_swapped")  # fmt: skip
    points = [
        {
            "row": ARMS[over][0] if over in ARMS else over.replace("_", " "),
            "series": name,
            "value": known["lead"],
            "low": known["lead_low"],
            "high": known["lead_high"],
            "seeds": 1,
            "over": "items",
        }
        for over in shown
        for (other, name), known in by.items()
        if other == over
    ]
    if points:
        names = list(dict.fromkeys(str(point["series"]) for point in points))
        yield Figure(
            "leads",
            "The probe at the exact answer against each rival",
            f"{model}, exact answers located by one rule for all: the probe's area minus the "
            "rival's (right of the line: the probe is better). Bars are 95 % intervals over "
            "entities drawn again.",
            in_rows(
                points,
                dict(zip(names, SETS, strict=False)),
                title="lead of the probe (area)",
                words={"row": "rival", "series": "set"},
                form="+.2f",
                axis=alt.Axis(labelLimit=220),
                reference=0.0,
                columns=5,
            ).properties(width=420, height=alt.Step(9)),
        )


def maps(evidence: Evidence, model: str) -> Iterator[Figure]:
    """Layer by token, set by set."""
    where = {"part": "detect", "extraction": "blind"}
    found = summary(evidence.rows, "map", ["set", "layer", "position"], where)
    if found:
        names = list(dict.fromkeys(point["set"] for point in found))
        yield Figure(
            "map",
            "Where in the model an error can be seen",
            f"{model}: area of a probe of each layer and token, cross-validated by entity, one "
            "seed, exact answers located by one rule for all. The largest of so many cells is "
            "optimistic.",
            alt.hconcat(
                *(
                    _squares(
                        [point for point in found if point["set"] == name],
                        alt.X("position:N", sort=list(POSITIONS), title=None),
                        alt.Y("layer:O", sort="descending"),
                        alt.Color(
                            "value:Q",
                            title="area",
                            scale=alt.Scale(domain=[0.5, 1.0], scheme="viridis", clamp=True),
                        ),
                    ).properties(title=name, width=150, height=150)
                    for name in names
                )
            ),
        )


def elsewhere(evidence: Evidence, model: str) -> Iterator[Figure]:
    """The matrix of transfer, and what is left of it beside the best score without training."""
    panels = []
    for metric, title, scale in (
        ("transfer", "area", alt.Scale(domain=[0.5, 1.0], scheme="viridis", clamp=True)),
        (
            "gain",
            "area minus the best score without training",
            alt.Scale(domain=[-0.4, 0.4], scheme="purpleorange", clamp=True),
        ),
    ):
        found = summary(evidence.rows, metric, ["teacher", "tested"], {"part": "transfer"})
        if found:
            names = list(dict.fromkeys(point["teacher"] for point in found))
            colour = alt.Color("value:Q", title=None, scale=scale)
            x = alt.X("tested:N", sort=names, title="tested on")
            y = alt.Y("teacher:N", sort=names, title="taught by")
            squares = _squares(found, x, y, colour)
            numbers = (
                alt.Chart(alt.InlineData(values=found))
                .mark_text(color="black", fontSize=11, stroke="white", strokeWidth=0.3)
                .encode(x=x, y=y, text=alt.Text("value:Q", format=FORM))
            )
            panels.append(
                alt.layer(squares, numbers).properties(title=title, width=210, height=210)
            )
    if panels:
        yield Figure(
            "transfer",
            "One notion of truth, or one for every kind of question?",
            f"{model}: probes at the exact answer's last token, taught by one set and tested on "
            "the unseen entities of another. Only what is above nought on the right is more than "
            "confidence, which any set teaches.",
            alt.hconcat(*panels).resolve_scale(color="independent"),
        )


def picks(evidence: Evidence, model: str) -> Iterator[Figure]:
    """Accuracy of every way to pick one of several samples."""
    found = summary(evidence.rows, "picked", ["arm"], {"part": "select"})
    if found:
        points = [
            {**point, **ends(point), "row": WAYS[point["arm"]], "series": "right"}
            for point in found
        ]
        yield Figure(
            "picks",
            "Which of several samples to take",
            f"{model}: share of questions about capitals that are answered rightly. "
            f"{how_sure(points)}",
            in_rows(
                points,
                {"right": (ORANGE, "circle", SOLID)},
                title="share of questions answered rightly",
                words={"row": "way"},
                form=".1%",
                axis=alt.Axis(labelLimit=200),
            ).properties(width=420, height=alt.Step(24)),
        )


def _squares(
    points: Sequence[Mapping[str, Any]], x: alt.X, y: alt.Y, colour: alt.Color
) -> alt.Chart:
    kept = [{key: value for key, value in point.items() if key not in ("low", "high")}
            for point in points]  # fmt: skip
    made: alt.Chart = (
        alt.Chart(alt.InlineData(values=kept))
        .mark_rect()
        .encode(x=x, y=y, color=colour, tooltip=alt.Tooltip("value:Q", format=".3f"))
    )
    return made
