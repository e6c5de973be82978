"""Items with one right answer, none of which is both learned and scored."""

import csv
import datetime
import re
from pathlib import Path
from random import Random

import pytest
from transformers import AutoTokenizer

from zeitgeist.errors import InputInvalid
from zeitgeist.studies.language_tasks import (
    CODE_FROM,
    IDENTIFIERS_FROM,
    MONTHS,
    TASKS,
    Task,
    encode,
    held_out,
    split,
)


@pytest.fixture(params=TASKS)
def task(request: pytest.FixtureRequest) -> Task:
    return TASKS[request.param]


def test_no_input_is_both_learned_and_scored(task: Task) -> None:
    drawn = split(task, train=480, test=64, seed=0)
    learned, scored = dict(drawn.train), dict(drawn.test)
    assert (len(learned), len(scored)) == (480, 64)
    assert not learned.keys() & scored.keys()


def test_scored_items_are_the_same_for_every_seed_and_learned_ones_are_not(task: Task) -> None:
    one, other = (split(task, train=20, test=20, seed=seed) for seed in (0, 1))
    assert one.test == other.test
    assert one.train != other.train
    assert one == split(task, train=20, test=20, seed=0)


def test_more_items_than_there_are_is_refused() -> None:
    coin = Task("coin", "Coin", "Toss.", "generated", 1, lambda r: (r.choice("ht"), "x"))
    with pytest.raises(InputInvalid, match="'coin' has no 3 different items"):
        split(coin, train=2, test=1, seed=0)


def test_dates_are_the_dates_that_are_written() -> None:
    for written, iso in split(TASKS["dates"], train=200, test=1, seed=3).train:
        day = datetime.date.fromisoformat(iso)
        numbers = re.findall(r"\d+", written)
        assert sorted(map(int, numbers)) == sorted([day.day, day.year])
        assert MONTHS[day.month - 1][:3] in written
        if "," in written and "day" in written:
            assert written.startswith(day.strftime("%A"))


def test_ordinals_end_as_in_english() -> None:
    endings = {}
    for written, _ in split(TASKS["dates"], train=900, test=1, seed=3).train:
        if found := re.search(r"(\d+)(st|nd|rd|th)", written):
            endings[int(found[1])] = found[2]
    irregular = {1: "st", 2: "nd", 3: "rd", 21: "st", 22: "nd", 23: "rd", 31: "st"}
    assert endings == {day: irregular.get(day, "th") for day in range(1, 32)}


def test_records_hold_what_the_sentence_says() -> None:
    for sentence, answer in split(TASKS["records"], train=200, test=1, seed=3).train:
        (fields,) = csv.reader([answer])
        assert len(fields) == 4
        assert all(re.search(rf"\b{word}\b", sentence) for word in fields)
        assert not re.search(r"\ba [aeiou]\w+ aged|\ban [^aeiou]\w+ aged", sentence)


def test_identifiers_are_the_same_words() -> None:
    for snake, camel in split(TASKS["identifiers"], train=200, test=1, seed=3).train:
        assert re.sub(r"[A-Z]", lambda m: "_" + m[0].lower(), camel) == snake


def test_sums_are_right() -> None:
    for question, answer in split(TASKS["sums"], train=200, test=1, seed=3).train:
        assert sum(map(int, question.split(" + "))) == int(answer)


def test_an_answer_ends_with_the_end_token(task: Task, tiny_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    item = task.draw(Random(0))
    example = encode(tokenizer, task, item)
    assert tokenizer.decode(example.answer) == item[1] + tokenizer.eos_token
    prompt = tokenizer.decode(example.prompt)
    assert task.instruction in prompt
    assert item[0] in prompt


def test_held_out_windows_have_their_length_and_differ(tiny_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    texts = held_out(tokenizer, windows=20, context=32, length=64)
    assert list(texts) == ["english", "code"]
    for windows in texts.values():
        assert [(len(w.prompt), len(w.answer)) for w in windows] == [(32, 64)] * 20
        assert len(set(windows)) == 20
    assert texts == held_out(tokenizer, windows=20, context=32, length=64)
    assert all(tokenizer.decode(w.prompt + w.answer)[:3] in ("def", "cla") for w in texts["code"])


def test_more_text_than_there_is_is_refused(tiny_tokenizer: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    with pytest.raises(InputInvalid, match="pieces of english have 96 tokens, not 100000"):
        held_out(tokenizer, windows=100_000, context=32, length=64)


def test_code_that_is_held_out_gives_no_identifiers() -> None:
    assert not set(CODE_FROM) & set(IDENTIFIERS_FROM)
