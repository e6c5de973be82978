"""A text as windows, whole and in order; what is too short says how short."""

import pytest

from zeitgeist.compression.drop_ranking import file_or_text
from zeitgeist.compression.texts import read_windows
from zeitgeist.errors import InputInvalid


def letters(text, add_special_tokens):
    assert not add_special_tokens
    return {"input_ids": [ord(letter) for letter in text]}


@pytest.mark.parametrize(("length", "count", "shape"), [(3, None, (3, 3)), (5, 1, (1, 5))])
def test_windows_follow_each_other_from_the_start(length, count, shape):
    found = read_windows(letters, "abcdefghijk", length=length, count=count)
    assert found.shape == shape
    assert "".join(map(chr, found.flatten().tolist())) == "abcdefghijk"[: shape[0] * shape[1]]


def test_a_file_is_its_text(tmp_path):
    (tmp_path / "text.txt").write_text("abcdef")
    assert read_windows(letters, tmp_path / "text.txt", length=3).shape == (2, 3)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"length": 1}, "windows of 1 tokens"),
        ({"length": 2, "count": 0}, "0 windows of 2 tokens"),
        ({"length": 8}, "has 6 tokens and 8 are needed"),
        ({"length": 2, "count": 4}, r"has 6 tokens and 8 are needed \(4 windows of 2\)"),
    ],
)
def test_too_little_is_told(arguments, told):
    with pytest.raises(InputInvalid, match=told):
        read_windows(letters, "abcdef", **arguments)


def test_files_that_are_none_are_told(tmp_path):
    (tmp_path / "picture.txt").write_bytes(b"\xff\xfe\xfa")
    for name in ("picture.txt", "missing.txt"):
        with pytest.raises(InputInvalid, match="cannot be read"):
            read_windows(letters, tmp_path / name, length=2)
    with pytest.raises(InputInvalid, match=r"no text file 'missing\.txt'"):
        file_or_text("missing.txt")
