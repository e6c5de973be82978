"""Forms of demonstrations, their tokens, and everything that is none."""

import json

import pytest
from transformers import AutoTokenizer

from zeitgeist.alignment.demonstrations import (
    encode,
    encode_all,
    encode_prompt,
    is_chat,
    read_demonstrations,
    read_prompts,
    turn_between,
)
from zeitgeist.errors import InputInvalid

TEMPLATE = (
    "{% for m in messages %}<s>{{ m['role'] }} {{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}<s>assistant {% endif %}"
)


@pytest.fixture
def tokenizer(tiny_tokenizer):
    made = AutoTokenizer.from_pretrained(tiny_tokenizer, local_files_only=True)
    made.chat_template = TEMPLATE
    return made


def test_text_is_tokenised_apart_and_ended(tokenizer, texts):
    example = encode(tokenizer, texts[0])
    assert tokenizer.decode(example.prompt) == "the cat"
    assert tokenizer.decode(example.answer) == " sat on the mat</s>"
    assert example.answer.count(tokenizer.eos_token_id) == 1


def test_a_conversation_is_what_the_template_writes(tokenizer, chats):
    example = encode(tokenizer, chats[0])
    assert tokenizer.decode(example.prompt) == "<s>user the cat</s><s>assistant "
    assert tokenizer.decode(example.answer) == "sat on the mat</s>"
    whole = tokenizer.apply_chat_template(chats[0]["messages"], tokenize=False)
    assert tokenizer.decode(example.prompt + example.answer) == whole


def test_all_conversational_forms_are_one(tokenizer, chats):
    messages = chats[1]["messages"]
    other = {"prompt": messages[:1], "completion": messages[1:]}
    assert encode(tokenizer, other) == encode(tokenizer, chats[1])
    earlier = [*chats[0]["messages"], *messages]
    longer = encode(tokenizer, {"messages": earlier})
    assert tokenizer.decode(longer.prompt).startswith("<s>user the cat</s><s>assistant sat on")
    assert longer.answer == encode(tokenizer, chats[1]).answer


def test_what_stands_between_is_what_the_template_writes_between(tokenizer, chats):
    between = turn_between(tokenizer, "Check it.", chat=True)
    messages = [
        *chats[0]["messages"],
        {"role": "user", "content": "Check it."},
    ]
    example = encode(tokenizer, chats[0])
    # The token that ends the draft belongs to what stands between.
    mine = [*example.prompt, *example.answer[:-1], *between]
    assert tokenizer.decode(mine) == tokenizer.decode(encode_prompt(tokenizer, messages))
    assert tokenizer.decode(turn_between(tokenizer, "Check it.", chat=False)) == "\n\nCheck it.\n"


def test_files_of_every_format_are_one(texts, tmp_path):
    from pyarrow import Table, parquet

    lines, whole, table = (tmp_path / f"d.{end}" for end in ("jsonl", "json", "parquet"))
    lines.write_text("\n".join(map(json.dumps, texts)) + "\n\n")
    whole.write_text(json.dumps(texts))
    parquet.write_table(Table.from_pylist(texts), table)
    for path in (lines, whole, table):
        assert read_demonstrations(path) == texts
        assert read_prompts(path) == [row["prompt"] for row in texts]


def test_a_data_set_is_read_as_it_is(texts, chats, tokenizer):
    from datasets import Dataset

    for rows in (texts, chats):
        made = read_demonstrations(Dataset.from_list(rows))
        assert [encode(tokenizer, row) for row in made] == [encode(tokenizer, r) for r in rows]


MESSAGE = {"role": "user", "content": "x"}


@pytest.mark.parametrize(
    ("rows", "told"),
    [
        ([], "no demonstrations"),
        ([3], "row 0: a demonstration is a int"),
        ([{"prompt": "x"}], "no 'completion' among \\['prompt'\\]"),
        ([{"text": "x"}], "no 'prompt'"),
        ([{"prompt": "", "completion": "x"}], "prompt is empty"),
        ([{"prompt": "x", "completion": [MESSAGE]}], "is text and the other is not"),
        ([{"prompt": [], "completion": []}], "no list of messages"),
        ([{"prompt": [{"role": "user"}], "completion": [MESSAGE]}], "has no role and content"),
        ([{"messages": [MESSAGE]}], "do not end with an answer"),
        ([{"messages": [MESSAGE, MESSAGE]}], "do not end with an answer"),
        ([{"messages": "hi"}], "no list of messages"),
    ],
)
def test_what_is_no_demonstration_is_told_with_its_row(rows, told):
    with pytest.raises(InputInvalid, match=told):
        read_demonstrations(rows)


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("missing.jsonl", None, "there is no file"),
        ("d.csv", b"prompt,completion", "no .jsonl, .json or .parquet"),
        ("d.jsonl", b'{"prompt": "a", "completion": "b"}\n{"prompt', "d.jsonl:2: this is no JSON"),
        ("d.jsonl", b"\xff\xfe", "not UTF-8"),
        ("d.json", b"[", "no JSON"),
        ("d.parquet", b"PAR0", "no Parquet"),
        ("d.jsonl", b"", "no demonstrations"),
    ],
)
def test_damaged_files_are_told(tmp_path, name, content, told):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputInvalid, match=told):
        read_demonstrations(path)


def test_tokenizers_that_cannot_are_told(tokenizer, chats, texts):
    tokenizer.chat_template = None
    with pytest.raises(InputInvalid, match="no chat template"):
        encode(tokenizer, chats[0])
    tokenizer.chat_template = "{{ messages[-1]['content'] }}"
    with pytest.raises(InputInvalid, match="leaves out what the assistant said"):
        turn_between(tokenizer, "Check it.", chat=True)
    with pytest.raises(InputInvalid, match="does not write the prompt alone"):
        encode(tokenizer, chats[0])
    tokenizer.eos_token = None
    with pytest.raises(InputInvalid, match="no token that ends"):
        encode(tokenizer, texts[0])


def test_too_long_and_of_two_kinds_are_told(tokenizer, texts, chats):
    with pytest.raises(InputInvalid, match="demonstration 0 has"):
        encode_all(tokenizer, texts, max_length=4)
    assert is_chat(chats) and not is_chat(texts)
    with pytest.raises(InputInvalid, match="some are text"):
        is_chat([*texts, *chats])


@pytest.mark.parametrize("row", [{"completion": "x"}, {"prompt": ""}, 3, {"prompt": [3]}])
def test_a_row_without_a_prompt_is_told(tmp_path, row):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(row))
    with pytest.raises(InputInvalid, match="row 0"):
        read_prompts(path)


def test_only_line_feeds_end_a_line(tmp_path):
    path = tmp_path / "d.jsonl"
    row = {"prompt": "a\u2028b\x85", "completion": "c"}
    path.write_text(json.dumps(row, ensure_ascii=False) + "\r\n", encoding="utf-8")
    assert read_demonstrations(path) == [row]


@pytest.mark.parametrize(
    "line", ["[" * 100_000, '{"prompt": "a\\ud800", "completion": "b"}'], ids=["deep", "half"]
)
@pytest.mark.parametrize("read", [read_demonstrations, read_prompts])
def test_what_no_tokenizer_could_read_is_refused(tmp_path, line, read):
    path = tmp_path / "d.jsonl"
    path.write_text(line)
    with pytest.raises(InputInvalid, match=r"d\.jsonl.*(no JSON|half a character)"):
        read(path)
