"""The picture of where experts pull apart."""

import json

import pytest

from zeitgeist.errors import InputInvalid, OutputExists
from zeitgeist.merging import ConflictReport
from zeitgeist.merging.conflicts import BlockConflicts
from zeitgeist.report.conflict_map import conflict_chart, write_conflict_map


@pytest.fixture
def report():
    pair = ((1.0, 0.2), (0.2, 1.0))
    against = ((0.0, 0.4), (0.4, 0.0))
    parts = [
        BlockConflicts(name, 10, 2.0, (0.5, 0.25), pair, against, (0.2, 0.2))
        for name in ("h.0", "h.1", "h.2", "h.10", "all")
    ]
    return ConflictReport(("models/a", "hub:org/b"), 0.2, tuple(parts))


def test_every_block_and_pair_is_drawn_in_the_order_of_the_model(report):
    heat, size = conflict_chart(report.rows()).hconcat
    assert [row["block"] for row in heat.data.values] == ["h.0", "h.1", "h.2", "h.10"]
    assert {row["pair"] for row in heat.data.values} == {"a / b"}
    assert heat.to_dict()["encoding"]["y"]["sort"] == ["h.0", "h.1", "h.2", "h.10"]
    assert {row["value"] for row in size.data.values} == {0.25, 0.125}


def test_page_asks_for_nothing_outside(report, tmp_path):
    write_conflict_map(report, tmp_path / "map.html")
    text = (tmp_path / "map.html").read_text()
    assert "<script src" not in text
    assert json.dumps("h.10") in text


def test_picture_is_a_png(report, tmp_path):
    write_conflict_map(report, tmp_path / "deep" / "map.png")
    assert (tmp_path / "deep" / "map.png").read_bytes().startswith(b"\x89PNG")


def test_existing_picture_and_unknown_ending_are_refused(report, tmp_path):
    (tmp_path / "map.svg").write_text("mine")
    with pytest.raises(OutputExists, match=r"map\.svg"):
        write_conflict_map(report, tmp_path / "map.svg")
    with pytest.raises(InputInvalid, match=r"map\.gif.*\.html"):
        write_conflict_map(report, tmp_path / "map.gif")
    assert (tmp_path / "map.svg").read_text() == "mine"
