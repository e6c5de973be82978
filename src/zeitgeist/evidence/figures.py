"""Pictures: one look for all, as interactive charts, PNG and SVG.

A `Figure` is an Altair chart with the words that go with it. The same object gives the
specification for a page, and, through vl-convert, PNG and SVG without a browser.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from zeitgeist.errors import ExtraMissing

try:
    import altair as alt
    import vl_convert
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a picture") from missing

LIGHT, DARK = ("#1b1b1b", "#d6d6d6"), ("#e8e8e8", "#4a4a4a")
PNG_SCALE = 2.0
WIDTH = 620  # of charts that take the width of their page, where there is no page
Side = Literal["left", "right"]
CHARACTER, LINE = 6.2, 13.0  # pixels that a letter and a line of a label take, at size 11


@dataclass(frozen=True)
class Figure:
    """A chart with its name in file names and links, its title, and what to see in it."""

    slug: str
    title: str
    caption: str
    chart: alt.TopLevelMixin

    @cached_property
    def spec(self) -> dict[str, Any]:
        """The Vega-Lite specification; screen readers are told the caption."""
        return {**self.chart.to_dict(), "description": f"{self.title}. {self.caption}"}

    def png(self) -> bytes:
        """The picture on white."""
        return bytes(vl_convert.vegalite_to_png(self.still(), scale=PNG_SCALE, config=ON_WHITE))

    def svg(self) -> str:
        """The same as vectors."""
        return str(vl_convert.vegalite_to_svg(self.still(), config=ON_WHITE))

    def still(self) -> dict[str, Any]:
        """The specification where there is no page to take the width from."""
        spec = self.spec
        return {**spec, "width": WIDTH} if spec.get("width") == "container" else spec


def colours(ink: str, faint: str) -> dict[str, Any]:
    """Vega-Lite's configuration for text in ``ink`` and lines in ``faint``.

    Examples
    --------
    >>> colours("black", "grey")["rule"]
    {'color': 'black'}
    """
    words = {"labelColor": ink, "titleColor": ink}
    return {
        "background": "transparent",
        "axis": {**words, "gridColor": faint, "domainColor": ink, "tickColor": ink},
        "legend": words,
        "title": {"color": ink, "fontSize": 13},
        "text": {"color": ink},
        # Vega-Lite draws rules and the headers of facets in black unless it is told.
        "rule": {"color": ink},
        "header": words,
        "view": {"stroke": faint},
        "font": "system-ui, sans-serif",
    }


ON_WHITE = {**colours(*LIGHT), "background": "white"}


def place_labels(
    points: Sequence[tuple[float, float, str]], *, width: float
) -> list[tuple[float, float, Side]]:
    """Where to write the label of each point so that labels cover neither each other nor points.

    Parameters
    ----------
    points
        Pixels across and down, and the label.
    width
        Of the chart, in pixels; labels stay inside where they can.

    Returns
    -------
    list of tuple
        Per point ``dx``, ``dy`` and the alignment.

    Examples
    --------
    >>> place_labels([(10.0, 10.0, "left"), (390.0, 10.0, "right")], width=400.0)
    [(7.0, -9.1, 'left'), (-7.0, -9.1, 'right')]
    """
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y, _ in points]
    placed: list[tuple[float, float, Side]] = []
    sides: tuple[tuple[float, Side], ...] = ((7.0, "left"), (-7.0, "right"))
    for x, y, label in points:
        long = CHARACTER * len(label)
        options = []
        for lines in (-0.7, 0.7, 0.0, -1.5, 1.5, -2.5, 2.5):
            for dx, align in sides:
                start = x + dx - (long if align == "right" else 0.0)
                middle = y + lines * LINE
                box = (start, middle - LINE / 2, start + long, middle + LINE / 2)
                outside = max(0.0, -start) + max(0.0, start + long - width)
                options.append((outside + sum(_overlap(box, other) for other in taken), box, dx,
                                lines * LINE, align))  # fmt: skip
        _, box, dx, dy, align = min(options, key=lambda option: option[0])
        taken.append(box)
        placed.append((dx, dy, align))
    return placed


def _overlap(one: tuple[float, ...], other: tuple[float, ...]) -> float:
    across = min(one[2], other[2]) - max(one[0], other[0])
    down = min(one[3], other[3]) - max(one[1], other[1])
    return max(0.0, across) * max(0.0, down)


def save_figures(figures: Sequence[Figure], place: Path) -> None:
    """Write every figure as PNG and as an interactive page of its own.

    Parameters
    ----------
    figures
        Of a study.
    place
        An existing directory; files of the same names are replaced.
    """
    for figure in figures:
        (place / f"{figure.slug}.png").write_bytes(figure.png())
        page = vl_convert.vegalite_to_html(figure.still(), bundle=True, config=ON_WHITE)
        (place / f"{figure.slug}.html").write_text(page, encoding="utf-8")
