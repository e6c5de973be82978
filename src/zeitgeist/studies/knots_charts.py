"""The pictures of KnOTS: every method with and without the basis that experts share."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence, summary
from zeitgeist.evidence.figures import Figure
from zeitgeist.studies.looks_charts import (
    ORANGE,
    REFERENCE,
    SKY,
    SOLID,
    Layers,
    Look,
    across,
    ends,
    frame,
    how_sure,
    in_rows,
    language_model,
    stacked,
    tooltips,
)

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

METHODS = ("task_arithmetic", "ties", "dare_ties")
OWN, SHARED = "as they come", "in the shared basis (KnOTS)"
LOOKS: Mapping[str, Look] = {OWN: (ORANGE, "circle", SOLID), SHARED: (SKY, "square", SOLID)}
PANEL = {"width": 230, "height": {"step": 34, "for": "position"}}
TRAINED = ("digits", "smollm2")


@dataclass(frozen=True)
class Cell:
    """One setting: what it is called, in short and alone, and which rows are its."""

    title: str
    whole: str
    where: Mapping[str, Any]


def figures(evidence: Evidence) -> list[Figure]:
    """Every picture of the page, in order; what was not measured is left out.

    Parameters
    ----------
    evidence
        Of the study, at any size.
    """
    made = []
    if scored := list(_scores(evidence)):
        made.append(
            Figure(
                "kept",
                "What merges keep, with and without the shared basis",
                "Every method twice, joined by a line: experts merged as they come, and in the "
                "basis that KnOTS finds. Further right is better; a line that leads right from "
                "circle to square is a gain. Task arithmetic is linear and gains nothing in "
                "theory. Every panel has its own scale. All are tuned on validation data by "
                f"equally many merges. {how_sure(*(panel.points for panel in scored))}",
                kept(scored),
            )
        )
    if gains := list(_gains(evidence)):
        made.append(
            Figure(
                "gain",
                "What the shared basis gives TIES, seed by seed",
                "What KnOTS-TIES keeps less what TIES keeps, of the same experts: small points are "
                "seeds, squares their mean. Right of the dashed line the shared basis helped. "
                "Settings with a width and a rank are small networks. "
                f"{how_sure(gains)}",
                gain(gains),
            )
        )
    if conflicts := list(_conflicts(evidence)):
        made.append(
            Figure(
                "sign-conflict",
                "Do experts disagree less in the shared basis?",
                "Of the entries that both experts of a pair change, nothing trimmed, the share "
                "whose signs differ, mean over pairs: as the experts come, and in the shared "
                "basis. The dashed line is chance; an arrow leads to what lies further left. "
                "Random adapters, which nobody trained, show what the rotation does by itself: "
                "where subspaces are orthogonal no entry is common, and nothing disagrees. "
                f"{how_sure(conflicts)}",
                sign_conflict(conflicts),
            )
        )
    return made


@dataclass(frozen=True)
class Panel:
    """A metric in a setting, by method and basis."""

    title: str
    axis: str
    points: Sequence[Mapping[str, Any]]


def kept(panels: Sequence[Panel]) -> alt.TopLevelMixin:
    """Methods down, what they keep across, with and without rotation; a panel per setting."""
    drawn: dict[str, Layers] = {
        panel.title: in_rows(
            panel.points,
            LOOKS,
            title=panel.axis,
            words={"arm": "merge", "series": "merged"},
            form=".1%",
            axis=alt.Axis(minExtent=88),
            joined=True,
            columns=1,
        )
        for panel in panels
    }
    return stacked(drawn, **PANEL)


def _scores(evidence: Evidence) -> Iterator[Panel]:
    axes = {
        "kept": "score / own expert's, mean over tasks",
        "recovered": "share of the experts' gain in loss",
    }
    for cell in _cells(evidence, TRAINED):
        for metric, axis in axes.items():
            points = [
                {
                    **point,
                    **ends(point),
                    "row": evidence.arm(point["arm"].removeprefix("knots_")).title,
                    "series": SHARED if point["arm"].startswith("knots_") else OWN,
                    "arm": evidence.arm(point["arm"]).title,
                }
                for method in METHODS
                for point in summary(
                    evidence.rows,
                    metric,
                    ["arm"],
                    {**cell.where, "arm": (method, f"knots_{method}")},
                )
            ]
            if points:
                what = {"kept": "", "recovered": ": gain in loss"}[metric]
                yield Panel(cell.whole + what, axis, points)


def gain(points: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin:
    """Settings down, the paired difference across: every seed, and their mean."""
    cells = [point["cell"] for point in points]
    seeds = [
        {"cell": point["cell"], "value": value, "seed": seed}
        for point in points
        for seed, value in point["each"].items()
    ]
    means = [{k: v for k, v in point.items() if k != "each"} for point in points]
    title = "kept by KnOTS-TIES less by TIES (share)"
    scale = alt.Scale(domain=frame(means, [0.0, *(seed["value"] for seed in seeds)]), nice=False)
    x = alt.X("value:Q", title=title, scale=scale, axis=alt.Axis(format="+.0%", tickCount=6))
    y = alt.Y("cell:N", title=None, sort=cells, axis=alt.Axis(labelLimit=140))
    data = alt.InlineData(values=means)
    return alt.layer(
        across(0.0, title, scale),
        alt.Chart(alt.InlineData(values=seeds))
        .mark_point(size=22, opacity=0.55, color=REFERENCE["color"], yOffset=9)
        .encode(
            x=x,
            y=y,
            tooltip=[
                alt.Tooltip("cell:N", title="where"),
                alt.Tooltip("seed:Q", format="d"),
                alt.Tooltip("value:Q", format="+.1%", title="difference"),
            ],
        ),
        alt.Chart(data)
        .mark_rule(strokeWidth=2, color=SKY, yOffset=-6, clip=True)
        .encode(x=alt.X("low:Q", title=title, scale=scale), x2="high:Q", y=y),
        alt.Chart(data)
        .mark_point(size=80, filled=True, opacity=1, color=SKY, shape="square", yOffset=-6)
        .encode(x=x, y=y, tooltip=tooltips({"cell": "where"}, "mean difference", "+.2%")),
    ).properties(width="container", height={"step": 44})


def _gains(evidence: Evidence) -> Iterator[dict[str, Any]]:
    for cell in _cells(evidence, TRAINED):
        sides = [
            {
                (row["seed"], row.get("task")): row["value"]
                for row in evidence.rows
                if row["metric"] == "kept"
                and row["arm"] == arm
                and all(row.get(key) == value for key, value in cell.where.items())
            }
            for arm in ("knots_ties", "ties")
        ]
        paired = [
            {"seed": seed, "metric": "gain", "value": value - sides[1][seed, task], "task": task}
            for (seed, task), value in sides[0].items()
            if (seed, task) in sides[1]
        ]
        seeds = sorted({row["seed"] for row in paired})
        for point in summary(paired, "gain", []):
            yield {
                **point,
                **ends(point),
                "cell": cell.title,
                "each": {
                    seed: float(np.mean([r["value"] for r in paired if r["seed"] == seed]))
                    for seed in seeds
                },
            }


def sign_conflict(points: Sequence[Mapping[str, Any]]) -> alt.TopLevelMixin:
    """Settings down, sign conflict across: own and shared basis, joined by a line."""
    return in_rows(
        points,
        LOOKS,
        title="common entries in conflict (share)",
        words={"row": "adapters", "series": "compared"},
        form=".1%",
        axis=alt.Axis(labelLimit=140),
        reference=0.5,
        joined=True,
        columns=1,
    ).properties(width="container", height={"step": 34, "for": "position"})


def _conflicts(evidence: Evidence) -> Iterator[dict[str, Any]]:
    for cell in _cells(evidence, (*TRAINED, "random")):
        for basis, name in (("own", OWN), ("shared", SHARED)):
            where = {**cell.where, "basis": basis}
            # Without common entries there is no conflict, far from all that is to be told apart.
            nothing = (cell.where.get("spaces"), basis) == ("orthogonal", "shared")
            for point in summary(evidence.rows, "sign_conflict", [], where):
                yield {**point, **ends(point), "row": cell.title, "series": name, "aside": nothing}


def _cells(evidence: Evidence, families: Sequence[str]) -> Iterator[Cell]:
    """Settings of some families: by width and rank, or by how random subspaces lie."""
    for family in families:
        rows = [row for row in evidence.rows if row.get("family") == family]
        if family == "smollm2" and rows:
            name = language_model(evidence)
            yield Cell(name, name, {"family": family})
        elif family == "digits":
            for width, rank in sorted({(row["width"], row["rank"]) for row in rows}):
                where = {"family": family, "width": width, "rank": rank}
                name = f"width {width}, rank {rank}"
                yield Cell(name, f"small network, {name}", where)
        else:
            for spaces in ("generic", "orthogonal"):
                if any(row.get("spaces") == spaces for row in rows):
                    name = f"random, {spaces}"
                    yield Cell(name, name, {"family": family, "spaces": spaces})
