"""The issue as files: complete, honest, closed in itself, refused before anything is written."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest

from zeitgeist import catalogue
from zeitgeist.errors import EvidenceInvalid, ExtraMissing, InputInvalid, OutputExists
from zeitgeist.evidence import Study
from zeitgeist.report.runs import main_run, read_runs
from zeitgeist.report.site import SECTIONS, Site

VOID = {"meta", "img", "br", "hr", "link", "input", "path", "circle", "rect"}
PAGES = {
    "index.html",
    "systems/knots.html",
    "systems/lines.html",
    "systems/probes.html",
    "systems/quiet.html",
    "areas/merging.html",
    "areas/inspection.html",
    "runs/knots/quick.html",
    "runs/knots/quick-me-my-model.html",
    "runs/gone/quick.html",
}


class Reader(HTMLParser):
    """Collects ids, attributes, headings and the visible text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.headings: list[int] = []
        self.text = ""
        self.source = path.read_text(encoding="utf-8")
        self.feed(self.source)
        self.text = " ".join(self.text.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id" and value]
        if re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag
        if tag in ("td", "th", "dt", "dd", "li", "small", "pre"):
            self.text += " "

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data

    def values(self, *names: str) -> list[str]:
        return [value for _, name, value in self.attributes if name in names]


def read(site: Site, page: str) -> Reader:
    return Reader(site.place / page)


@pytest.fixture(scope="module")
def readers(site: Site) -> dict[str, Reader]:
    return {page.path: read(site, page.path) for page in site.pages}


def test_every_system_area_and_other_run_has_one_page(site: Site) -> None:
    assert {page.path for page in site.pages} == PAGES
    assert {str(p.relative_to(site.place)) for p in site.place.rglob("*.html")} == PAGES


def test_pages_are_well_formed(readers: dict[str, Reader]) -> None:
    for path, page in readers.items():
        assert page.open == [], path
        assert len(page.ids) == len(set(page.ids)), path
        assert set(page.values("aria-labelledby", "for", "aria-controls")) <= set(page.ids), path
        steps = zip([0, *page.headings], page.headings, strict=False)
        assert all(after <= before + 1 for before, after in steps), path
        assert page.headings.count(1) == 1


def test_every_link_leads_to_a_file_and_an_anchor_that_exist(
    site: Site, readers: dict[str, Reader]
) -> None:
    for path, page in readers.items():
        for value in page.values("href", "src"):
            if value.startswith("https://arxiv.org/abs/"):
                continue
            name, _, anchor = value.partition("#")
            target = (site.place / path).parent / unquote(name) if name else site.place / path
            assert target.resolve().is_relative_to(site.place.resolve()), value
            assert target.is_file(), f"{path}: {value}"
            if anchor:
                assert anchor in Reader(target).ids, f"{path}: {value}"


def test_nothing_is_loaded_from_outside_and_nothing_runs_inline(
    readers: dict[str, Reader],
) -> None:
    for path, page in readers.items():
        assert not any(re.match("[a-z]+:|//", v) for v in page.values("src", "srcset", "data"))
        (policy,) = [v for v in page.values("content") if v.startswith("default-src")]
        assert "default-src 'none'" in policy and "http" not in policy and "unsafe" not in policy
        assert not [name for _, name, _ in page.attributes if name.startswith("on")], path
        assert page.values("style") == []
        for opening, body in re.findall(r"<script([^>]*)>(.*?)</script>", page.source, re.DOTALL):
            assert body == "" or 'type="application/json"' in opening


def test_data_and_titles_cannot_break_out(site: Site, readers: dict[str, Reader]) -> None:
    assert "Breaking out </script><b>of markup" in readers["systems/quiet.html"].text
    for path, page in readers.items():
        assert "<b>" not in page.source and "no such <rank>" not in page.source, path
    assert all("NaN" not in page.source for page in readers.values())
    specs = re.findall(
        r'json" class="\w+"[^>]*>(.*?)</script>', readers["systems/knots.html"].source
    )
    assert len(specs) == 4
    assert all("<" not in spec and json.loads(spec) for spec in specs)
    index = (site.place / "assets" / "search.js").read_text(encoding="utf-8")
    assert json.loads(index.removeprefix("window.searchIndex = ").removesuffix(";\n"))


def test_every_figure_is_a_picture_in_two_formats_and_every_run_brings_its_numbers(
    site: Site, issue: Any
) -> None:
    drawn = {str(path.relative_to(site.place)) for path in site.place.glob("figures/**/*.*")}
    for run in ("knots/full", "knots/quick", "lines/quick", "compared/full"):
        for name in ("claims", "kept", "seeds"):
            assert {f"figures/{run}/{name}.png", f"figures/{run}/{name}.svg"} <= drawn
    for source in issue.evidence.glob("*/*/*.*"):
        copy = site.place / "evidence" / source.relative_to(issue.evidence)
        assert copy.read_bytes() == source.read_bytes()


def test_shared_scripts_are_written_once(site: Site) -> None:
    assert {path.name for path in (site.place / "assets").iterdir()} == {
        "charts.js",
        "icon.svg",
        "search.js",
        "site.css",
        "site.js",
    }
    assert all((site.place / page).stat().st_size < 200_000 for page in PAGES)


def test_the_front_page_follows_the_newsletter(readers: dict[str, Reader]) -> None:
    text = readers["index.html"].text
    places = [text.index(name, text.index("Not in the catalogue")) for name in SECTIONS[:2]]
    assert places == sorted(places)
    for absent in ("VLMs", "Seminar"):
        assert absent not in text
    links = readers["index.html"].values("href")
    assert links.count("systems/knots.html") == 2 and links.count("systems/probes.html") == 1
    assert "areas/merging.html" in links and "runs/gone/quick.html" in links


def test_a_card_says_purpose_verdicts_cost_and_command(readers: dict[str, Reader]) -> None:
    text = readers["index.html"].text
    assert "Merge LoRA adapters in one shared basis and get an adapter back." in text
    assert "1 holds 1 does not hold 1 undecided" in text
    assert "4 min of computing to run it again: zeitgeist reproduce knots --size full" in text
    assert "no evidence yet Make it: zeitgeist reproduce quiet" in text
    assert "Four systems of the newsletter run here" in text
    pictures = [
        v for tag, name, v in readers["index.html"].attributes if (tag, name) == ("img", "alt")
    ]
    assert pictures and all(pictures)


def test_a_systems_page_says_what_was_claimed_found_and_cannot_be_shown(
    readers: dict[str, Reader],
) -> None:
    text = readers["systems/knots.html"].text
    for said in (
        "The paper: KnOTS-TIES improves on TIES by 4.3 points",
        "KnOTS-TIES against TIES",
        "above +2.0 points",
        "the seeds fit both answers",
        "Networks of 40,000 parameters say little",
        "ties 4 width 64 ValueError: no such <rank> (knots.py:12)",
        "zeitgeist merge --method knots --expert lora-a",
        'merge_adapters(["lora-a", "lora-b"], "merged", method="knots_ties")',
        "zeitgeist reproduce knots --model YOUR_MODEL",
        "Adapters of one base only.",
        "zeitgeist reproduce knots --size full",
        "EPYC, 2 cores, Linux x86_64, no accelerator",
        "zeitgeist 0.1.0, torch 2.13.0",
        "arXiv 2410.19735",
        "Means are over width 32, 64.",
    ):
        assert said in text
    assert "--model YOUR_MODEL" not in readers["systems/lines.html"].text


def test_the_largest_run_is_the_main_one_and_the_others_are_listed_with_their_findings(
    issue: Any, readers: dict[str, Reader]
) -> None:
    knots = [run for run in read_runs(issue.evidence) if run.study == "knots"]
    assert [run.name for run in knots] == ["full", "quick", "quick-me-my-model"]
    main = main_run(knots)
    assert main is not None and main.name == "full"
    own = [run for run in knots if run.on_own_model]
    assert [run.name for run in own] == ["quick-me-my-model"] and main_run(own) is None
    text = readers["systems/knots.html"].text
    listed = text[text.index("Other runs", text.index("Run it again", 200)) :]
    assert "On hub:me/my-model, quick" in listed
    assert "no interval from three seeds" in listed
    page = readers["runs/knots/quick-me-my-model.html"]
    assert "../../systems/knots.html" in page.values("href")


def test_changed_claims_are_told_with_hashes_and_dates(readers: dict[str, Reader]) -> None:
    text = readers["systems/lines.html"].text
    assert "The claims were changed after evidence existed" in text
    assert "aaaaaaaaaaaa since 2024-11-01" in text
    assert "since 2024-11-09, by which the verdicts on this page were made" in text
    assert "added: same; changed: better" in text
    for path in PAGES - {"systems/lines.html"}:
        assert "claims were changed" not in readers[path].text


def test_evidence_that_no_catalogue_knows_is_kept_and_marked(readers: dict[str, Reader]) -> None:
    assert "This study is not in the catalogue." in readers["runs/gone/quick.html"].text
    assert "Not in the catalogue" in readers["index.html"].text


def test_an_area_without_comparison_lists_its_systems(readers: dict[str, Reader]) -> None:
    page = readers["areas/inspection.html"]
    assert "No comparison yet" in page.text
    assert {"../systems/probes.html", "../systems/quiet.html"} <= set(page.values("href"))
    assert "../systems/knots.html" in readers["areas/merging.html"].values("href")


def test_search_looks_through_titles_purposes_sections_authors_and_claims(site: Site) -> None:
    text = (site.place / "assets" / "search.js").read_text(encoding="utf-8")
    knots, _, _, quiet = json.loads(text.removeprefix("window.searchIndex = ").removesuffix(";\n"))
    assert knots["sections"] == ["Featured", "Model Merging"]
    assert "Aligned adapters keep more accuracy than TIES alone" in knots["claims"]
    assert "Müller" in knots["authors"] and knots["path"] == "systems/knots.html"
    # What is declared is found before there is evidence.
    assert quiet["claims"] == knots["claims"]


def test_every_section_of_the_real_catalogue_is_the_newsletters() -> None:
    assert {name for system in catalogue.SYSTEMS for name in system.sections} <= set(SECTIONS)


@pytest.fixture
def copied(issue: Any, tmp_path: Path) -> Any:
    """The month with one study's evidence, which a test may damage."""
    place = tmp_path / "evidence" / "knots" / "full"
    place.mkdir(parents=True)
    for path in (issue.evidence / "knots" / "full").iterdir():
        (place / path.name).write_bytes(path.read_bytes())
    return replace(issue, evidence=tmp_path / "evidence", systems=issue.systems[:1], areas=())


def test_the_same_evidence_makes_the_same_files(copied: Any, tmp_path: Path) -> None:
    one, two = (copied.write(tmp_path / name) for name in ("one", "two"))
    files = [p.relative_to(one.place) for p in sorted(one.place.rglob("*")) if p.is_file()]
    assert files == [p.relative_to(two.place) for p in sorted(two.place.rglob("*")) if p.is_file()]
    for name in files:
        assert (one.place / name).read_bytes() == (two.place / name).read_bytes(), name


def test_a_study_whose_packages_are_missing_is_shown_without_its_own_figures(
    copied: Any, tmp_path: Path
) -> None:
    def load(path: str) -> Study:
        raise ExtraMissing.named("perception", "this study")

    made = copied.write(tmp_path / "site", load=load)
    assert "pip install 'zeitgeist[perception]'" in read(made, "systems/knots.html").text
    pictures = {path.stem for path in (tmp_path / "site/figures/knots/full").iterdir()}
    assert pictures == {"claims"}


def refusals(copied: Any) -> Iterator[tuple[str, type[Exception], str]]:
    """Ways to go wrong, each with what is raised and said."""
    full = copied.evidence / "knots" / "full"
    record = (full / "study.json").read_text(encoding="utf-8")
    (full / "study.json").write_text(record.replace('"holds"', '"undecided"'))
    yield "edited", EvidenceInvalid, "study.json: the verdicts do not follow"
    (full / "study.json").write_text(record[:-50])
    yield "cut", EvidenceInvalid, "study.json: this record cannot be read"
    (full / "study.json").unlink()
    yield "gone", EvidenceInvalid, "study.json"
    (full / "study.json").write_text(record)
    full.rename(copied.evidence / "full")
    (copied.evidence / "knots").rmdir()
    yield "too deep", InputInvalid, "read from STUDY/RUN/study.json"
    (copied.evidence / "lines").mkdir()
    (copied.evidence / "full").rename(copied.evidence / "lines" / "full")
    yield "elsewhere", EvidenceInvalid, "move it to knots/full"
    (copied.evidence / "lines" / "full" / "study.json").unlink()
    (copied.evidence / "lines" / "full" / "rows.parquet").unlink()
    yield "empty", InputInvalid, "make some with zeitgeist reproduce"


def test_bad_evidence_is_one_error_and_nothing_is_written(copied: Any, tmp_path: Path) -> None:
    for name, kind, said in refusals(copied):
        with pytest.raises(kind) as caught:
            copied.write(tmp_path / "site")
        assert said in str(caught.value), name
        assert "\n" not in str(caught.value)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["evidence"]


def test_figures_that_cannot_be_drawn_from_old_evidence_are_one_error(
    copied: Any, tmp_path: Path
) -> None:
    def stale(evidence: Any) -> Any:
        raise KeyError("width")

    for figures, said in (
        (stale, "cannot be drawn from this evidence (KeyError: 'width')"),
        (lambda evidence: [replace_slug(copied, evidence)], "two figures of 'knots' are called"),
    ):
        study = replace(copied.studies["invented:knots"], figures=figures)
        with pytest.raises(EvidenceInvalid) as caught:
            copied.write(tmp_path / "site", load=lambda path, study=study: study)
        assert said in str(caught.value)
        assert not (tmp_path / "site").exists()


def replace_slug(copied: Any, evidence: Any) -> Any:
    return replace(copied.studies["invented:knots"].figures(evidence)[0], slug="claims")


def test_an_output_that_exists_is_refused_and_a_site_replaced_when_asked(
    copied: Any, tmp_path: Path
) -> None:
    out = tmp_path / "site"
    out.mkdir()
    with pytest.raises(OutputExists, match="--overwrite"):
        copied.write(out)
    (out / "notes.txt").write_text("mine")
    with pytest.raises(InputInvalid, match="no earlier output"):
        copied.write(out, overwrite=True)
    (out / "notes.txt").rename(out / "index.html")
    copied.write(out, overwrite=True)
    assert "KnOTS" in (out / "index.html").read_text(encoding="utf-8")
    with pytest.raises(InputInvalid, match="lies in the input"):
        copied.write(copied.evidence / "site")
    with pytest.raises(InputInvalid, match="contains the input"):
        copied.write(copied.evidence.parent, overwrite=True)


def test_names_that_mean_something_in_addresses_are_quoted(copied: Any, tmp_path: Path) -> None:
    odd = copied.evidence / "knots" / "quick-50%#a b"
    (copied.evidence / "knots" / "full").rename(odd)
    made = replace(copied, systems=()).write(tmp_path / "site")
    front = read(made, "index.html")
    (link,) = [value for value in front.values("href") if value.startswith("runs/")]
    assert link == "runs/knots/quick-50%25%23a%20b.html"
    assert (tmp_path / "site" / unquote(link)).is_file()
