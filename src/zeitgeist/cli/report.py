"""``zeitgeist report``: evidence as a site that opens without a server."""

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from zeitgeist.errors import ExtraMissing

if TYPE_CHECKING:
    from zeitgeist.report.site import Site

NEEDED = ("altair", "jinja2", "pyarrow", "scipy", "vl_convert")


def report(
    *,
    output: Annotated[Path, Parameter(name=["--output", "-o"])] = Path("site"),
    evidence: Path = Path("evidence"),
    overwrite: bool = False,
    open_: Annotated[bool, Parameter(name="--open")] = False,
    json: bool = False,
) -> None:
    """Make the month's issue from evidence: a page per system with what its claims came to.

    The site loads nothing from outside and needs no server. Runs on your own models, which
    `zeitgeist reproduce SYSTEM --model MODEL` puts beside the others, have pages of their own.

    Parameters
    ----------
    output
        Directory to make: pages, pictures and the numbers behind them.
    evidence
        Directory that holds STUDY/RUN/study.json.
    overwrite
        Replace an earlier site.
    open_
        Open it in the browser.
    json
        Print the pages and verdicts, machine-readable.
    """
    if not all(map(find_spec, NEEDED)):
        raise ExtraMissing.named("studies", "the report")
    from rich.console import Console

    from zeitgeist.report.site import write_site

    site = write_site(output, evidence, overwrite=overwrite)
    if json:
        from json import dumps

        print(dumps(_record(site), indent=2, ensure_ascii=False, allow_nan=False))
    index = site.index.absolute()
    Console(stderr=True, highlight=False).print(f"page: {index}", soft_wrap=True, markup=False)
    if open_:
        import webbrowser

        webbrowser.open(index.as_uri())


def _record(site: "Site") -> dict[str, Any]:
    """Pages and verdicts; a bound that is null has no end."""
    verdicts = [
        {
            "study": page.results.run.study,
            "run": page.results.run.name,
            "size": page.results.evidence.size,
            "model": page.results.evidence.model,
            "page": page.path,
            "claim": each.claim.slug,
            "statement": each.claim.statement,
            "verdict": each.verdict.verdict,
            **{
                name: _number(getattr(each.verdict, name))
                for name in ("difference", "low", "high", "p")
            },
            "seeds": each.verdict.seeds,
            "finding": each.finding,
        }
        for page in site.pages
        if page.results is not None
        for each in page.results.judged
    ]
    pages = [{"path": page.path, "title": page.title, "kind": page.kind} for page in site.pages]
    return {"site": str(site.place.absolute()), "pages": pages, "verdicts": verdicts}


def _number(value: float) -> float | None:
    from math import isfinite

    return value if isfinite(value) else None
