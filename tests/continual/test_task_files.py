"""Tasks from files: which lines there are, and what is no task."""

import json

import pytest
from transformers import AutoTokenizer

from zeitgeist.continual.task_files import read_task
from zeitgeist.errors import InputInvalid


@pytest.fixture
def tokenizer(tiny_tokenizer):
    return AutoTokenizer.from_pretrained(tiny_tokenizer, local_files_only=True)


def test_only_line_feeds_end_a_line(tokenizer, tmp_path):
    path = tmp_path / "t.jsonl"
    rows = [{"prompt": f"a\u2028{i}\x85", "completion": "c"} for i in range(3)]
    text = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in rows)
    path.write_bytes(text.encode())
    assert len(read_task(path, tokenizer, test=1).train) == 2


@pytest.mark.parametrize(
    "line",
    ["[" * 100_000, "1" * 5000, '{"prompt": "a\\ud800", "completion": "b"}'],
    ids=["deep", "digits", "half"],
)
def test_what_no_tokenizer_could_read_is_refused(tokenizer, tmp_path, line):
    path = tmp_path / "t.jsonl"
    path.write_text(line)
    with pytest.raises(InputInvalid, match=r"t\.jsonl:1: .*(no JSON|half a character)"):
        read_task(path, tokenizer, test=1)
