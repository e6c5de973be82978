"""Pages that need nothing from outside.

A page holds the Vega libraries once and every chart as data. It follows the reader's choice of
light or dark, and shows a still picture where scripts are off.
"""

import json
from base64 import b64encode
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence.figures import DARK, LIGHT, Figure, colours

try:
    import vl_convert
    from jinja2 import Environment, PackageLoader, StrictUndefined
except ImportError as missing:
    raise ExtraMissing.named("report", "drawing a page") from missing


def write_page(out: Path, template: str, figures: Sequence[Figure], **words: Any) -> None:
    """Write ``index.html`` and a PNG of every figure into a directory.

    Parameters
    ----------
    out
        An existing directory.
    template
        Name of a template in ``zeitgeist/report/templates``.
    figures
        In order.
    words
        What else the template needs.
    """
    for figure in figures:
        (out / f"{figure.slug}.png").write_bytes(figure.png())
    environment = Environment(
        loader=PackageLoader("zeitgeist.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    bundle = vl_convert.javascript_bundle("window.drawChart = (e, s, o) => vegaEmbed(e, s, o);")
    page = environment.get_template(template).render(
        figures=figures,
        specs={figure.slug: inside_script(json.dumps(figure.spec())) for figure in figures},
        stills={
            figure.slug: f"data:image/svg+xml;base64,{b64encode(figure.svg().encode()).decode()}"
            for figure in figures
        },
        bundle=bundle.replace("</script", "<\\/script"),
        light=inside_script(json.dumps(colours(*LIGHT))),
        dark=inside_script(json.dumps(colours(*DARK))),
        **words,
    )
    (out / "index.html").write_text(page, encoding="utf-8")


def inside_script(text: str) -> str:
    """JSON that may stand in a script element.

    Examples
    --------
    >>> print(inside_script('"</script>"'))
    "\\u003c/script>"
    """
    return text.replace("<", "\\u003c")
