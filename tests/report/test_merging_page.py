"""The demo's page: valid, self-contained, complete; honest when nothing was learned."""

from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from zeitgeist.report.merging_charts import figures
from zeitgeist.report.merging_page import change, findings, table, write_merging_page
from zeitgeist.report.merging_table import terminal_table
from zeitgeist.studies.merging_arms import TEXTS, MergingResults, ScoredModel, StudySettings
from zeitgeist.studies.merging_scores import Scores, compare

VOID = {"meta", "img", "br", "hr", "link", "input"}


def scores(quality: float, nll: float) -> Scores:
    exact = {t: [i < 16 * quality for i in range(16)] for t in ("dates", "sums")}
    texts = {t: [nll + i / 50 for i in range(8)] for t in TEXTS}
    return Scores(exact, {t: [nll] * 16 for t in exact} | texts)


@pytest.fixture(scope="module")
def results() -> MergingResults:
    models = (
        ScoredModel("base", "Base", "base", "before", "/base", 0.0),
        ScoredModel("expert-dates", "Expert: ISO dates", "expert", "LoRA", "/e/1", 9.0),
        ScoredModel("expert-sums", "Expert: Sums", "expert", "LoRA", "/e/2", 9.0),
        ScoredModel(
            "ties", "TIES <b>", "merge", "votes", "models/ties", 1.0, {"merge_method": "ties"}
        ),
        ScoredModel(
            "ties_lines",
            "TIES + LiNeS",
            "lines",
            "scaled",
            "models/ties_lines",
            1.0,
            {"merge_method": "ties", "lines": {}},
            alpha=0.4,
            beta=0.6,
        ),
        ScoredModel(
            "knots_ties",
            "KnOTS-TIES",
            "merge",
            "aligned",
            "models/knots_ties",
            1.0,
            {"merge_method": "knots_ties"},
        ),
    )
    found = {
        "base": scores(0.0, 2.0),
        "expert-dates": scores(1.0, 2.2),
        "expert-sums": scores(0.75, 2.2),
        "ties": scores(0.5, 2.1),
        "ties_lines": scores(0.25, 2.05),
        "knots_ties": scores(0.5, 2.3),
    }
    rows = compare(found, base="base", experts={"dates": "expert-dates", "sums": "expert-sums"})
    conflicts = [
        {"block": f"model.layers.{i}", "expert": "sums", "other": "dates",
         "quantity": "sign conflict", "value": i / 10}
        for i in range(4)
    ] + [
        {"block": block, "expert": "sums", "quantity": "relative norm", "value": 0.01}
        for block in ("model.layers.0", "other", "all")
    ]  # fmt: skip
    return MergingResults(
        settings=StudySettings(tasks=("dates", "sums")),
        models=models,
        tasks={"dates": "ISO dates", "sums": "Sums"},
        texts=TEXTS,
        rows=tuple(rows),
        conflicts=tuple(conflicts),
        experts=({"task": "dates"}, {"task": "sums"}),
        seconds={"scoring": 1.0},
        versions={"torch": "2.13"},
        precision="bfloat16",
    )


@pytest.fixture(scope="module")
def page(results: MergingResults, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page")
    write_merging_page(results, out)
    return out


class Reader(HTMLParser):
    """Checks nesting; collects ids, what is referred to, and the visible text."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        self.ids += [value for name, value in attrs if name == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self.open):
            self.text += data


@pytest.fixture(scope="module")
def read(page: Path) -> Reader:
    reader = Reader()
    reader.feed((page / "index.html").read_text(encoding="utf-8"))
    return reader


def test_tags_are_closed_in_order_and_ids_are_unique(read: Reader) -> None:
    assert read.open == []
    assert len(read.ids) == len(set(read.ids))
    for tag, name, value in read.attributes:
        if name in ("aria-labelledby", "for") or (name == "href" and value.startswith("#")):
            assert value.lstrip("#") in read.ids, tag


def test_the_page_asks_for_nothing_from_outside(read: Reader, page: Path) -> None:
    loaded = [v for _, name, v in read.attributes if name in ("src", "srcset", "data", "poster")]
    assert all(value.startswith("data:") for value in loaded)
    links = {v for _, name, v in read.attributes if name == "href" and not v.startswith("#")}
    assert links == {"results.json", *(f"{f}.png" for f in pictures(page))}
    policy = next(v for _, name, v in read.attributes if v.startswith("default-src"))
    assert "default-src 'none'" in policy
    assert "http" not in policy


def pictures(page: Path) -> set[str]:
    return {path.stem for path in page.glob("*.png")}


def test_every_picture_is_there_as_png_data_and_still(
    results: MergingResults, read: Reader, page: Path
) -> None:
    slugs = {figure.slug for figure in figures(results)}
    assert pictures(page) == slugs == {"tasks", "kept-and-lost", "held-out", "conflicts", "updates"}
    for slug in slugs:
        assert (page / f"{slug}.png").read_bytes().startswith(b"\x89PNG\r\n")
        assert {f"spec-{slug}", f"chart-{slug}"} <= set(read.ids)
    stills = [v for tag, name, v in read.attributes if (tag, name) == ("img", "alt")]
    assert len(stills) == len(slugs)
    assert all(len(words) > 40 for words in stills)


def encodings(spec: Any) -> Iterator[dict[str, Any]]:
    """Every channel of a specification, however deep."""
    parts = spec.values() if isinstance(spec, dict) else spec if isinstance(spec, list) else ()
    if isinstance(spec, dict):
        yield from (spec["encoding"][axis] for axis in "xy" if axis in spec.get("encoding", {}))
    for part in parts:
        yield from encodings(part)


def test_axes_of_numbers_have_titles(results: MergingResults) -> None:
    for figure in figures(results):
        axes = [e for e in encodings(figure.spec()) if e.get("type") == "quantitative"]
        assert all(axis.get("title") or axis["field"] == "one" for axis in axes)


def test_what_scrolls_can_be_reached_by_keyboard(read: Reader) -> None:
    scrolling = sum(v == "scroll" for _, name, v in read.attributes if name == "class")
    reachable = sum(v == "0" for _, name, v in read.attributes if name == "tabindex")
    assert scrolling == reachable > 0


def test_every_model_and_its_limits_are_in_the_text(results: MergingResults, read: Reader) -> None:
    assert all(model.title in read.text for model in results.models)
    assert "4-bit" in read.text
    assert "Intervals are over items" in read.text
    assert "0.40 in the first layer to 1.00 in the last" in read.text
    assert 'from_pretrained("models/ties")' in read.text
    assert "KnOTS-TIES: adapters for" in read.text


def test_titles_cannot_become_markup(page: Path) -> None:
    assert "TIES <b>" not in (page / "index.html").read_text(encoding="utf-8")


def test_the_table_has_a_cell_per_column_and_groups_by_kind(results: MergingResults) -> None:
    lines = table(results)
    assert {len(line.cells) for line in lines} == {2 + 1 + 2}
    assert [line.first for line in lines] == [False, True, False, True, True, True]


def test_findings_follow_the_numbers(results: MergingResults) -> None:
    said = " ".join(findings(results))
    assert "The experts answer 75% to 100%" in said
    assert "TIES <b> kept most of the experts' skill: 58%" in said
    assert "TIES + LiNeS lost least on held-out text (perplexity +5%" in said
    assert "KnOTS-TIES most (+35%)" in said
    assert "LiNeS on top of TIES <b>: kept 58% → 29%, perplexity +11% → +5%." in said


def test_experts_that_learned_nothing_are_said_to_have_learned_nothing(
    results: MergingResults, tmp_path: Path
) -> None:
    rows = tuple(row for row in results.rows if row.metric != "kept")
    nothing = replace(results, rows=rows, conflicts=())
    assert "No expert learned its task" in list(findings(nothing))[-1]
    write_merging_page(nothing, tmp_path)
    assert pictures(tmp_path) == {"tasks", "kept-and-lost", "held-out"}


def test_the_terminals_table_fits_eighty_columns(results: MergingResults) -> None:
    console = Console(width=80, record=True, file=None, quiet=False)
    with console.capture() as captured:
        console.print(terminal_table(results))
    text = captured.get()
    assert "…" not in text
    assert all(model.slug in text for model in results.models)


@pytest.mark.parametrize(("ratio", "said"), [(1.0, "+0%"), (1.256, "+26%"), (0.9, "-10%")])
def test_a_ratio_is_said_as_a_change(ratio: float, said: str) -> None:
    assert change(ratio) == said
