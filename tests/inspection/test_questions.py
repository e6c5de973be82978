"""Questions: three sources, and each bad row told in its own words."""

import json

import pytest

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.questions import Question, read_questions

PARIS = {"question": "Capital of France?", "aliases": ["Paris"]}


class Frame:
    """What a DataFrame shows of itself here."""

    def __init__(self, records):
        self.records, self.columns = records, list(records[0])

    def to_dict(self, orient):
        assert orient == "records"
        return self.records


def test_jsonl_csv_records_and_a_frame_are_the_same_questions(tmp_path):
    full = {
        "question": "Who, \u201cshe\u201d?",
        "aliases": ["the nurse", "nurse"],
        "wrong": "surgeon",
        "entity": "nurse and surgeon",
        "answer": "It is the nurse.",
        "exact": "nurse",
    }
    lines = tmp_path / "q.jsonl"
    lines.write_text(f"{json.dumps(full)}\n\n{json.dumps(PARIS)}\n", encoding="utf-8")
    table = tmp_path / "q.csv"
    table.write_text(
        "question,aliases,wrong,entity,answer,exact\n"
        '"Who, \u201cshe\u201d?",the nurse | nurse,surgeon,nurse and surgeon,'
        "It is the nurse.,nurse\n"
        "Capital of France?,Paris,,,,\n",
        encoding="utf-8",
    )
    nan = float("nan")
    frame = Frame([full, {**PARIS, "wrong": nan, "entity": None, "answer": nan, "exact": nan}])
    wanted = (
        Question(full["question"], ("the nurse", "nurse"), *list(full.values())[2:]),
        Question("Capital of France?", ("Paris",)),
    )
    for source in (lines, str(table), [full, PARIS], frame, wanted):
        assert read_questions(source) == wanted


def test_a_line_may_hold_characters_that_python_takes_for_its_end(tmp_path):
    path = tmp_path / "q.jsonl"
    row = {"question": "a\u2028b?", "aliases": ["x\x85"]}
    path.write_text(json.dumps(row, ensure_ascii=False), encoding="utf-8")
    assert read_questions(path)[0].question == "a\u2028b?"


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"question": " ", "aliases": ["x"]}, "the question is empty"),
        ({"question": 3, "aliases": ["x"]}, "'question' is 3"),
        ({"question": "q"}, "there is no 'aliases'"),
        ({"aliases": ["x"]}, "there is no 'question'"),
        ({"question": "q", "aliases": []}, "there are no aliases"),
        ({"question": "q", "aliases": "Paris"}, "'Paris', not a list"),
        ({"question": "q", "aliases": ["x", " "]}, "an alias is empty, .* every answer"),
        ({"question": "q", "aliases": [5]}, "the alias 5 is no text"),
        ({"question": "q", "aliasses": ["x"]}, "'aliasses' is no field.*did you mean 'aliases'"),
        ({**PARIS, "answer": "Rome", "exact": "Paris"}, "'Paris' is not in the answer 'Rome'"),
        ({**PARIS, "entity": 1}, "'entity' is 1"),
        (["q"], "is a list, not a record"),
        ({**PARIS, "answer": ""}, "the answer is empty; leave the field out"),
        ({**PARIS, "answer": " "}, "the answer is empty"),
        ({**PARIS, "question": None}, "'question' is None"),
        ({**PARIS, "aliases": None}, "the aliases are None"),
        ({**PARIS, "entitty": None}, "'entitty' is no field"),
        ({**PARIS, "entity": "a\ud800?"}, r"'entity' is 'a\\ud800\?', with a lone surrogate"),
        ({**PARIS, "aliases": ["a\ud800"]}, "'aliases' is .* with a lone surrogate"),
    ],
)
def test_a_bad_row_is_told_with_its_line(tmp_path, row, told):
    path = tmp_path / "q.jsonl"
    path.write_text(f"{json.dumps(PARIS)}\n{json.dumps(row)}\n")
    with pytest.raises(InputInvalid, match=rf"q\.jsonl:2: .*{told}"):
        read_questions(path)
    with pytest.raises(InputInvalid, match=rf"questions:2: .*{told}"):
        read_questions([PARIS, row])


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("q.jsonl", "", "there are no questions"),
        ("q.jsonl", "{", r"q\.jsonl:1: is no JSON"),
        ("q.csv", "question,aliases\n", "there are no questions"),
        ("q.csv", "question,aliases\nq,a,b\n", r"q\.csv:2: has more cells"),
        ("q.csv", 'question,aliases\n"q"x,a\n', r"q\.csv:\d: is no CSV"),
        ("q.csv", "question,aliases\nq,a|\n", "an alias is empty"),
        ("q.csv", "question,aliases\nq,\n", "there is no 'aliases'"),
        ("q.csv", "question,aliases,aliases\nq,a,b\n", r"q\.csv:1: 2 columns are named 'aliases'"),
        ("q.csv", f"question,aliases\nq,{'a' * 131_073}\n", r"q\.csv:\d: a cell is too long"),
        ("q.csv", f"question,{'a' * 131_073}\nq,a\n", r"q\.csv:\d: a cell is too long"),
        ("q.txt", "q", r"are no \.jsonl or \.csv"),
    ],
)
def test_a_bad_file_is_told(tmp_path, name, text, told):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(InputInvalid, match=told):
        read_questions(path)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("Q.JSONL", json.dumps(PARIS)),
        ("Q.Csv", f"question,aliases\n{PARIS['question']},Paris\n"),
        # A spreadsheet leaves nameless columns at its margin.
        ("margin.csv", f"question,aliases,,\n{PARIS['question']},Paris,,\n"),
        # pandas: to_json(orient="records", lines=True) of a table with empty cells.
        ("null.jsonl", json.dumps({**PARIS, "wrong": None, "entity": None, "answer": None})),
    ],
)
def test_what_other_programs_write_is_read(tmp_path, name, text):
    path = tmp_path / name
    path.write_text(text)
    assert read_questions(path) == (Question("Capital of France?", ("Paris",)),)


def test_a_frame_with_one_column_twice_is_told():
    frame = Frame([PARIS])
    frame.columns = ["question", "aliases", "aliases"]
    with pytest.raises(InputInvalid, match="questions: 2 columns are named 'aliases'; keep one"):
        read_questions(frame)


def test_a_file_that_cannot_be_read_is_told(tmp_path):
    with pytest.raises(InputInvalid, match="cannot be read"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "latin.csv").write_bytes(b"question,aliases\nBogot\xe1?,x\n")
    with pytest.raises(InputInvalid, match=r"cannot be read.*UTF-8"):
        read_questions(tmp_path / "latin.csv")


@pytest.mark.parametrize("source", [3, PARIS])
def test_what_is_no_list_of_questions_is_told(source):
    with pytest.raises(InputInvalid, match="the questions are a "):
        read_questions(source)
