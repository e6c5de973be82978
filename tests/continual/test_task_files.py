"""Tasks from files: which lines there are, and what is no task."""

import json

import pytest
from transformers import AutoTokenizer

from zeitgeist.continual.task_files import read_task, read_tasks
from zeitgeist.errors import InputInvalid


def written(path, word, count=8):
    lines = [{"prompt": f"the {word} {i}", "completion": f"{word} sat"} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


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


def test_conversations_and_prompts_are_read(tokenizer, tmp_path):
    talk = {
        "messages": [
            {"role": "user", "content": "the cat"},
            {"role": "assistant", "content": "sat"},
        ]
    }
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([json.dumps(talk)] * 3 + [""]), encoding="utf-8")
    task = read_task(path, tokenizer, test=1)
    example = task.train[0]
    assert tokenizer.decode(example.prompt) == "<s>the cat</s>"
    assert tokenizer.decode(example.answer) == "sat</s>"
    assert len(task.train) == 2 and len(task.test) == 1 and task.name == "t"
    plain = read_task(written(tmp_path / "p.jsonl", "dog"), tokenizer, test=3, seed=1)
    assert not set(plain.train) & set(plain.test)
    other = read_task(tmp_path / "p.jsonl", tokenizer, test=3, seed=2)
    assert plain.test != other.test


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", r"t\.jsonl:2: the line is no JSON"),
        ("[1]", r"t\.jsonl:2: the line is '\[1\]', no object"),
        ('{"text": "a"}', r"t\.jsonl:2: the line has \['text'\]"),
        ('{"prompt": "a", "completion": ""}', "completion"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no conversation"),
        ('{"messages": [{"role": "user"}, {"role": "assistant"}]}', "no conversation"),
        ('{"prompt": "' + "cat " * 99 + '", "completion": "a"}', "tokens, more than 50"),
    ],
)
def test_bad_lines_are_told_with_their_number(line, told, tokenizer, tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputInvalid, match=told):
        read_task(path, tokenizer, test=1, longest=50)


def test_bad_files_are_told(tokenizer, tmp_path):
    path = written(tmp_path / "t.jsonl", "cat", 2)
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputInvalid, match="2 examples and 2 are for the test"):
        read_task(path, tokenizer, test=2)
    with pytest.raises(InputInvalid, match="cannot be read"):
        read_task(tmp_path / "missing.jsonl", tokenizer, test=1)
    with pytest.raises(InputInvalid, match="no tasks"):
        read_tasks([], tokenizer, test=1)
    with pytest.raises(InputInvalid, match="two tasks are called 't'"):
        read_tasks([path, written(tmp_path / "sub" / "t.jsonl", "dog")], tokenizer, test=1)
