"""Answers are found by their length, and cost no logits that nobody reads."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from zeitgeist.errors import InputInvalid
from zeitgeist.training import Example, answer_logits, collate

ids = st.lists(st.integers(0, 50), min_size=1, max_size=9).map(tuple)
pairs = st.lists(st.tuples(ids, ids), min_size=1, max_size=7)
Pairs = list[tuple[tuple[int, ...], tuple[int, ...]]]


@given(pairs, st.integers(0, 50))
def test_every_answer_token_is_predicted_once_whatever_pads(drawn: Pairs, pad: int) -> None:
    made = collate([Example(*pair) for pair in drawn], pad=pad)
    targets = made["input_ids"].roll(-1, dims=1)[made["predicts"]]
    assert targets.tolist() == [token for _, answer in drawn for token in answer]


@given(pairs, st.integers(0, 50))
def test_prompt_and_answer_stand_at_the_left(drawn: Pairs, pad: int) -> None:
    rows = collate([Example(*pair) for pair in drawn], pad=pad)["input_ids"].tolist()
    for row, (prompt, answer) in zip(rows, drawn, strict=True):
        whole = [*prompt, *answer]
        assert row[: len(whole)] == whole
        assert set(row[len(whole) :]) <= {pad}


def test_an_example_without_an_answer_is_refused() -> None:
    with pytest.raises(InputInvalid, match="1 prompt and 0 answer tokens"):
        Example((1,), ())


def test_logits_are_those_of_the_whole_model(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    batch = collate([Example((5, 6, 7), (8, 9)), Example((10,), (11, 12, 13, 14, 15))], pad=3)
    with torch.inference_mode():
        logits, targets = answer_logits(model, **batch)
        whole = model(input_ids=batch["input_ids"]).logits
    torch.testing.assert_close(logits, whole[batch["predicts"]])
    assert targets.tolist() == [8, 9, 11, 12, 13, 14, 15]


def test_company_in_the_batch_changes_nothing(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    short, long = Example((5, 6), (7,)), Example((8, 9, 10, 11), (12, 13, 14))
    with torch.inference_mode():
        together, _ = answer_logits(model, **collate([short, long], pad=3))
        alone, _ = answer_logits(model, **collate([short], pad=3))
    torch.testing.assert_close(together[:1], alone)


def test_the_model_gives_all_its_logits_again_afterwards(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    batch = collate([Example((5, 6), (7,))], pad=3)
    with torch.inference_mode():
        answer_logits(model, **batch)
        assert model(input_ids=batch["input_ids"]).logits.shape[:2] == (1, 3)
