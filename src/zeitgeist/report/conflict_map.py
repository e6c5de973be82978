"""Where experts pull apart, as a picture: a heat map of blocks by pairs of experts."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zeitgeist.errors import ExtraMissing, InputInvalid, OutputExists
from zeitgeist.merging import ConflictReport

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

FORMATS = (".html", ".png", ".svg")


def conflict_chart(rows: Sequence[dict[str, Any]]) -> alt.HConcatChart:
    """Sign conflict of every pair and relative norm of every expert, block by block.

    Parameters
    ----------
    rows
        From `zeitgeist.merging.ConflictReport.rows`.

    Examples
    --------
    >>> norm = {"block": "h.0", "expert": "a", "quantity": "relative norm", "value": 0.1}
    >>> pair = {"block": "h.0", "expert": "b", "other": "a", "quantity": "sign conflict"}
    >>> len(conflict_chart([norm, {**pair, "value": 0.4}]).hconcat)
    2
    """
    blocks = [b for b in dict.fromkeys(row["block"] for row in rows) if b != "all"]
    own = [row for row in rows if row["block"] != "all"]
    conflict = [
        {**row, "pair": f"{_short(row['other'])} / {_short(row['expert'])}"}
        for row in own
        if row["quantity"] == "sign conflict"
    ]
    norms = [
        {**row, "expert": _short(row["expert"])}
        for row in own
        if row["quantity"] == "relative norm"
    ]
    block = alt.Y("block:N", sort=blocks, title="block of layers")
    height = {"step": 14}
    heat = (
        alt.Chart(
            alt.InlineData(values=conflict), title="Entries on which a pair disagrees in sign"
        )
        .mark_rect()
        .encode(
            x=alt.X("pair:N", title="pair of experts", axis=alt.Axis(labelAngle=-40)),
            y=block,
            color=alt.Color(
                "value:Q",
                title="share of kept entries",
                scale=alt.Scale(domain=[0, 1], scheme="cividis"),
            ),
            tooltip=["block:N", "pair:N", alt.Tooltip("value:Q", format=".3f")],
        )
        .properties(height=height)
    )
    size = (
        alt.Chart(alt.InlineData(values=norms), title="Size of each update")
        .mark_point(filled=True, size=40)
        .encode(
            x=alt.X("value:Q", title="norm of the update / norm of the base"),
            y=block.title(None),
            shape=alt.Shape("expert:N", title="expert"),
            color=alt.Color("expert:N", title="expert", scale=alt.Scale(scheme="cividis")),
            tooltip=["block:N", "expert:N", alt.Tooltip("value:Q", format=".4g")],
        )
        .properties(height=height, width=220)
    )
    both: alt.HConcatChart = (heat | size).resolve_scale(color="independent", shape="independent")
    return both


def write_conflict_map(report: ConflictReport, out: Path, *, overwrite: bool = False) -> None:
    """Save the heat map as a page of its own (.html), or as .png or .svg.

    Raises
    ------
    OutputExists
        The file is there and ``overwrite`` was not asked for.
    InputInvalid
        Another ending.
    """
    check_picture(out, overwrite=overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    chart = conflict_chart(report.rows())
    if out.suffix == ".html":
        chart.save(out, inline=True)
    else:
        chart.save(out, scale_factor=2)


def check_picture(out: Path, *, overwrite: bool = False) -> None:
    """Refuse a name that cannot be written, before any work."""
    if out.suffix not in FORMATS:
        raise InputInvalid(f"{str(out)!r} is no picture", mend=f"end it in {', '.join(FORMATS)}")
    if out.exists() and not overwrite:
        raise OutputExists(f"{str(out)!r} is already there", mend="choose another name")


def _short(reference: str) -> str:
    """The last part of a path or a hub name."""
    return reference.rstrip("/").rpartition("/")[2] or reference
