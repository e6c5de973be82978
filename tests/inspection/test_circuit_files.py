"""Pairs as people write them, and what is wrong with a line."""

import json

import pytest

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_files import read_pairs


class Words:
    """A tokenizer of one token per letter."""

    def __call__(self, text, add_special_tokens):
        return {"input_ids": [ord(letter) % 128 for letter in text]}


def written(tmp_path, *lines):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def test_tokens_need_no_tokenizer_and_are_padded_behind(tmp_path):
    pairs = read_pairs(
        written(
            tmp_path,
            '{"clean": [1, 2, 3], "corrupted": [1, 4, 3], "answers": [5], "positions": [-2, -1]}',
            "",
            '{"clean": [6, 7], "corrupted": [8, 7], "answers": [9, 10]}',
        ),
        None,
    )
    assert pairs.clean.tolist() == [[1, 2, 3], [6, 7, 0]]
    assert pairs.corrupted.tolist() == [[1, 4, 3], [8, 7, 0]]
    assert pairs.scored.tolist() == [[False, True, True], [False, True, False]]
    assert pairs.answers.tolist() == [[5, -1], [9, 10]]


def test_line_ends_inside_a_text_are_text(tmp_path):
    line = json.dumps({"clean": "a\u2028b\x85c"}, ensure_ascii=False)
    assert read_pairs(written(tmp_path, line), Words()).clean.shape == (1, 5)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "4: no JSON"),
        ("[" * 100_000, "4: no JSON"),
        ("[]", '4: there is no "clean"'),
        ('{"clean": []}', '4: "clean" is empty'),
        ('{"clean": [true]}', "4: 'clean' is "),
        ('{"clean": [-1]}', "4: 'clean' is "),
        ('{"clean": [99999999999999999999]}', "4: 'clean' is "),
        ('{"clean": "ab"}', "4: 'clean' is text, and this model has no tokenizer"),
        ('{"clean": [1], "position": [0]}', "4: 'position' is not known here.*'positions'"),
        ('{"clean": [1], "positions": [true]}', "4: positions"),
        ('{"clean": [1], "positions": [1]}', "4: positions"),
        ('{"clean": [1], "corrupted": [1, 2]}', '4: "corrupted" has 2 tokens and "clean" 1'),
        ('{"clean": [1], "answers": 5}', "4: 'answers' is no list"),
        ('{"clean": [1], "answers": [[5, 6]]}', "4: .* is 2 tokens"),
        ('{"clean": [1]}', "line 4 has no 'answers' and others have"),
    ],
)
def test_a_bad_line_is_told_by_its_number(tmp_path, line, told):
    path = written(tmp_path, '{"clean": [1, 2], "answers": [3]}', "", "", line)
    with pytest.raises(InputInvalid, match=told):
        read_pairs(path, None)


def test_a_file_without_pairs_and_one_that_is_no_text(tmp_path):
    with pytest.raises(InputInvalid, match="no pair"):
        read_pairs(written(tmp_path, "", ""), None)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    for path in (tmp_path / "bytes", tmp_path, tmp_path / "missing"):
        with pytest.raises(InputInvalid, match="cannot be read"):
            read_pairs(path, None)


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('{"clean": [9]}', ":2: 'clean' has the token 9 and the model knows 9"),
        ('{"clean": [1], "corrupted": [12]}', ":2: 'corrupted' has the token 12"),
        ('{"clean": [1], "answers": [4]}', ":2: 'answers' has the token 4 .*from 0 to 3"),
        ('{"clean": [1], "wrong": [7]}', ":2: 'wrong' has the token 7"),
        ('{"clean": [1, 2, 3, 4]}', ':2: "clean" has 4 tokens and the model reads 3'),
        (r'{"clean": "\ud800"}', ":2: 'clean' has half a character"),
    ],
)
def test_what_the_model_does_not_know_is_told_with_its_line(tmp_path, line, told):
    path = written(tmp_path, '{"clean": [8]}', line)
    with pytest.raises(InputInvalid, match=told):
        read_pairs(path, Words(), vocabulary=9, outputs=4, context=3)


def test_a_mark_of_byte_order_is_no_text(tmp_path):
    assert read_pairs(written(tmp_path, '\ufeff{"clean": [1]}'), None).clean.tolist() == [[1]]
