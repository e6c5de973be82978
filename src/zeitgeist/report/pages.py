"""Pages that need nothing from outside, and what they share.

A page holds every chart as data, follows the reader's choice of light or dark, and shows still
pictures where scripts are off. Templates and assets lie in ``templates``.
"""

import json
import math
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import DARK, LIGHT, colours

try:
    import vl_convert
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a page") from missing


def inside_script(text: str) -> str:
    """JSON that may stand in a script element.

    Examples
    --------
    >>> print(inside_script('"</script>"'))
    "\\u003c/script>"
    """
    return text.replace("<", "\\u003c")


@cache
def _templates() -> Environment:
    return Environment(
        loader=PackageLoader("zeitgeist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **words: Any) -> str:
    """A page of the site.

    Parameters
    ----------
    template
        Name of a template in ``zeitgeist/report/templates``.
    words
        What it needs; a word that is missing is an error.
    """
    return _templates().get_template(template).render(**words)


def script_data(value: Any) -> str:
    """A value as JSON that may stand in a script element; numbers that are not finite become null.

    Examples
    --------
    >>> print(script_data({"low": float("nan"), "label": "</script>"}))
    {"low": null, "label": "\\u003c/script>"}
    """
    return inside_script(json.dumps(_finite(value), ensure_ascii=False, allow_nan=False))


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(each) for each in value]
    return value


def write_assets(place: Path, search_index: Sequence[Mapping[str, Any]]) -> None:
    """Write what all pages of a site share: style sheet, scripts, icon and search index.

    Parameters
    ----------
    place
        Directory to make.
    search_index
        One record per system. It is a script, since pages that are opened as files may not fetch.
    """
    place.mkdir(parents=True)
    for name in ("site.css", "site.js", "icon.svg"):
        text = (files("zeitgeist.report") / "templates" / name).read_text(encoding="utf-8")
        (place / name).write_text(text, encoding="utf-8")
    looks = json.dumps({"light": colours(*LIGHT), "dark": colours(*DARK)})
    (place / "charts.js").write_text(
        f"{_library()}\nwindow.chartLooks = {looks};\n", encoding="utf-8"
    )
    index = json.dumps(search_index, ensure_ascii=False)
    (place / "search.js").write_text(f"window.searchIndex = {index};\n", encoding="utf-8")


@cache
def _library() -> str:
    """Vega and its kin, and the one function of them that pages call."""
    return str(vl_convert.javascript_bundle("window.drawChart = (e, s, o) => vegaEmbed(e, s, o);"))
