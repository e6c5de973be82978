"""The month's issue as a static site: every system with what its claims came to here.

    index.html                      the issue: the newsletter's sections, a card per system
    systems/SLUG.html               a system: claims, verdicts, figures, how to use and rerun it
    areas/SLUG.html                 all methods of an area in one comparison
    runs/STUDY/RUN.html             every other run: smaller ones, and those on the user's models
    figures/STUDY/RUN/NAME.png, .svg
    evidence/STUDY/RUN/             the numbers, as they were read
    assets/                         one style sheet, one script, the charts' library, the index

Pages are files that load nothing from outside and need no server.
"""

import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tqdm import tqdm

from zeitgeist import catalogue
from zeitgeist.catalogue_record import Area, System
from zeitgeist.catalogue_record import load as load_path
from zeitgeist.checkpoints import check_output, new_directory
from zeitgeist.errors import ExtraMissing
from zeitgeist.evidence import Study
from zeitgeist.evidence.record import RECORD, ROWS
from zeitgeist.report.claims_chart import claims_chart
from zeitgeist.report.pages import render, script_data, write_assets
from zeitgeist.report.results import Results, results
from zeitgeist.report.runs import Run, main_run, read_runs
from zeitgeist.report.sentences import count, tally

MONTH = "November 2024"
SECTIONS = (
    "Featured",
    "LLMs",
    "VLMs",
    "Object Detection",
    "Tracking",
    "Gaussian Splatting",
    "Computational Enhancement",
    "Catastrophic Forgetting",
    "Model Merging",
    "Theory",
    "Applications",
    "New Models",
    "Seminar",
)
"""The newsletter's sections, in its order."""
REPLACES = ("index.html",)
NARROW = 310  # pixels that a chart has on a telephone


@dataclass(frozen=True)
class StudyRuns:
    """A study with its runs: the main one, and the others, which have pages of their own."""

    study: Study | None
    slug: str
    main: Results | None
    others: tuple[Results, ...]

    @property
    def takes_model(self) -> bool:
        """Whether it runs on a checkpoint of the user's."""
        return self.study is not None and self.study.takes_model

    @property
    def runs(self) -> tuple[Results, ...]:
        """All of them, the main one first."""
        return (*((self.main,) if self.main else ()), *self.others)


@dataclass(frozen=True)
class SystemPage:
    """A system of the catalogue and what was found about it."""

    system: System
    tested: StudyRuns

    @property
    def path(self) -> str:
        """Of its page in the site."""
        return f"systems/{self.system.slug}.html"


@dataclass(frozen=True)
class AreaPage:
    """An area, the comparison of its methods, and its systems."""

    area: Area
    tested: StudyRuns
    systems: tuple[SystemPage, ...]

    @property
    def path(self) -> str:
        """Of its page in the site."""
        return f"areas/{self.area.slug}.html"


@dataclass(frozen=True)
class Page:
    """A page that was written: ``path`` in the site, its title, and the run it shows, if any."""

    path: str
    title: str
    kind: str
    results: Results | None = None


@dataclass(frozen=True)
class Site:
    """What was written, the front page first."""

    place: Path
    pages: tuple[Page, ...]

    @property
    def index(self) -> Path:
        """The page to open."""
        return self.place / "index.html"


def write_site(
    out: Path,
    evidence: Path,
    *,
    systems: Sequence[System] = catalogue.SYSTEMS,
    areas: Sequence[Area] = catalogue.AREAS,
    load: Callable[[str], Study] = load_path,
    overwrite: bool = False,
    progress: bool | None = None,
) -> Site:
    """Write the issue.

    Parameters
    ----------
    out
        Directory to make; it appears complete or not at all.
    evidence
        Directory with ``STUDY/RUN/study.json``.
    systems, areas
        Of the catalogue.
    load
        From the import path of a study to the study.
    overwrite
        Replace an earlier site.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Raises
    ------
    InputInvalid
        There is no evidence, or ``out`` overlaps it.
    EvidenceInvalid
        A run is damaged or was edited.
    OutputExists
        ``out`` is there and ``overwrite`` is false.

    Examples
    --------
    >>> import tempfile
    >>> write_site(Path(tempfile.mkdtemp()) / "site", Path("no-evidence"))
    Traceback (most recent call last):
    zeitgeist.errors.InputInvalid: there is no directory 'no-evidence'; make evidence with ...
    """
    check_output(out, overwrite=overwrite, inputs=[evidence], replaces=REPLACES)
    runs = read_runs(evidence)
    known: dict[str, StudyRuns] = {}

    def runs_of(each: System | Area) -> StudyRuns:
        study, note = _loaded(each.study, load)
        slug = each.slug if study is None else study.slug
        if slug not in known:
            known[slug] = _study_runs(slug, study, note, runs)
        return known[slug]

    pages = [SystemPage(system, runs_of(system)) for system in systems]
    area_pages = [
        AreaPage(area, runs_of(area), tuple(p for p in pages if p.system.area == area.slug))
        for area in areas
    ]
    unknown = [
        _study_runs(slug, None, "", runs)
        for slug in dict.fromkeys(run.study for run in runs)
        if slug not in known
    ]
    every = _unique([*known.values(), *unknown])
    with new_directory(out, overwrite=overwrite, inputs=[evidence], replaces=REPLACES) as place:
        write_assets(place / "assets", _search_index(pages))
        for each in tqdm(
            every, desc="figures", unit="run", disable=None if progress is None else not progress
        ):
            _write_run(each, place)
        written = list(_write_pages(place, pages, area_pages, unknown, every))
    return Site(out, tuple(written))


def _loaded(path: str, load: Callable[[str], Study]) -> tuple[Study | None, str]:
    """A study, or why it cannot be had: its evidence is shown all the same."""
    try:
        return (load(path) if path else None), ""
    except ExtraMissing as missing:
        return None, f"The study's own figures are left out: {missing}."


def _study_runs(slug: str, study: Study | None, note: str, runs: Sequence[Run]) -> StudyRuns:
    own = [run for run in runs if run.study == slug]
    main = main_run(own)
    return StudyRuns(
        study,
        slug,
        None if main is None else results(main, study, note),
        tuple(results(run, study, note) for run in own if run is not main),
    )


def _unique(tested: Iterable[StudyRuns]) -> list[Results]:
    found = {each.path: each for group in tested for each in group.runs}
    return list(found.values())


def _search_index(pages: Sequence[SystemPage]) -> list[dict[str, Any]]:
    """What the front page's search looks through."""
    index = []
    for page in pages:
        system, tested = page.system, page.tested
        claims = tested.main.evidence.claims if tested.main else ()
        if not claims and tested.study is not None:
            claims = tested.study.claims
        index.append(
            {
                "slug": system.slug,
                "title": system.title,
                "path": page.path,
                "purpose": system.purpose,
                "authors": system.authors,
                "arxiv": system.arxiv,
                "sections": list(system.sections),
                "claims": [text for c in claims for text in (c.statement, c.paper) if text],
            }
        )
    return index


def _write_run(each: Results, place: Path) -> None:
    """The pictures and the numbers of a run."""
    pictures, numbers = place / "figures" / each.path, place / "evidence" / each.path
    pictures.mkdir(parents=True)
    numbers.mkdir(parents=True)
    for figure in each.figures:
        (pictures / f"{figure.slug}.png").write_bytes(figure.png())
        (pictures / f"{figure.slug}.svg").write_text(figure.svg(), encoding="utf-8")
    for name in (RECORD, ROWS):
        shutil.copyfile(each.run.place / name, numbers / name)


def _write_pages(
    place: Path,
    pages: Sequence[SystemPage],
    areas: Sequence[AreaPage],
    unknown: Sequence[StudyRuns],
    every: Sequence[Results],
) -> Iterator[Page]:
    tested = [*(page.tested for page in pages), *(page.tested for page in areas)]
    mains = {each.main.path: each.main for each in tested if each.main}
    verdicts = [verdict for each in mains.values() for verdict in each.evidence.verdicts]
    sections = _sections(pages)
    title = f"zeitgeist: {MONTH}"
    words: Mapping[str, Any] = {
        "sections": sections,
        "pages": pages,
        "areas": areas,
        "unknown": unknown,
        "tally": tally(verdicts),
        "claims": count(len(verdicts), "claim"),
        "systems": count(len(pages), "system"),
    }
    yield _write(place, Page("index.html", title, "front"), "front.html", words)
    above: dict[str, tuple[str, str]] = {}
    for page in pages:
        name = page.system.title
        above |= {each.path: (page.path, name) for each in page.tested.others}
        shown = Page(page.path, name, "system", page.tested.main)
        yield _write(place, shown, "system.html", {"page": page})
    for area in areas:
        name = area.area.title
        above |= {each.path: (area.path, name) for each in area.tested.others}
        shown = Page(area.path, name, "area", area.tested.main)
        yield _write(place, shown, "area.html", {"page": area})
    for each in every:
        if each.path not in mains:
            shown = Page(f"runs/{each.path}.html", _run_title(each), "run", each)
            words = {"results": each, "above": above.get(each.path)}
            yield _write(place, shown, "run.html", words)


def _run_title(each: Results) -> str:
    found = each.evidence
    return f"{found.title}: {f'on {found.model}, ' if found.model else ''}{found.size}"


def _sections(pages: Sequence[SystemPage]) -> list[tuple[str, list[SystemPage]]]:
    named = dict.fromkeys([*SECTIONS, *(name for p in pages for name in p.system.sections)])
    inside = [(name, [p for p in pages if name in p.system.sections]) for name in named]
    return [(name, found) for name, found in inside if found]


def _write(place: Path, page: Page, template: str, words: Mapping[str, Any]) -> Page:
    path = place / page.path
    path.parent.mkdir(parents=True, exist_ok=True)
    root = "../" * page.path.count("/")
    shown = page.results
    specs = {figure.slug: figure.spec for figure in (shown.figures if shown else ())}
    narrow = {}
    if shown and "claims" in specs:
        narrow["claims"] = claims_chart(shown.evidence, width=NARROW).spec
    text = render(
        template,
        root=root,
        month=MONTH,
        title=page.title,
        specs={name: script_data(spec) for name, spec in specs.items()},
        narrow={name: script_data(spec) for name, spec in narrow.items()},
        **words,
    )
    path.write_text(text, encoding="utf-8")
    return page
