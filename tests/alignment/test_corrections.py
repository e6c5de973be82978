"""Corrections: masks, truncation, copying, and inference in two passes."""

import pytest
import torch

from zeitgeist.alignment.answering import answer
from zeitgeist.alignment.corrections import corrected_prompt, correction, two_passes
from zeitgeist.alignment.decoding import control_tokens, drafts
from zeitgeist.alignment.demonstrations import turn_between
from zeitgeist.alignment.policies import open_policy
from zeitgeist.errors import InputInvalid
from zeitgeist.training import Example, answer_logits, collate
from zeitgeist.training.contexts import collate_contexts, context_loss


@pytest.fixture(scope="module")
def opened(tiny_llama):
    return open_policy(tiny_llama)


def test_a_draft_that_is_gold_is_an_example_of_copying(opened):
    model, _ = opened
    gold, between = (20, 21, 22, 2), (30, 31)
    made = correction(Example((5, 6), gold), gold[:-1], between, max_length=64)
    copying = Example((5, 6, *gold[:-1], *between), gold)
    batch = collate([copying], pad=3)
    logits, targets = answer_logits(model, batch["input_ids"], batch["predicts"])
    wanted = torch.nn.functional.cross_entropy(logits, targets)
    assert torch.equal(context_loss(model, collate_contexts([made], pad=3)), wanted)


def test_nothing_before_the_correction_is_learned(opened):
    model, _ = opened
    made = correction(Example((5, 6), (20, 21, 2)), (40, 41, 42), (30,), max_length=64)
    batch = collate_contexts([made], pad=3)
    logits = model(batch["input_ids"]).logits.detach().requires_grad_()
    loss = model.loss_function(
        logits=logits, labels=batch["labels"], vocab_size=model.config.vocab_size
    )
    loss.backward()
    moved = logits.grad[0].abs().sum(dim=1) > 0
    # Prompt 0-1, draft 2-4, between 5; the answer 6-8 is predicted from 5-7.
    assert moved.nonzero().squeeze(1).tolist() == [5, 6, 7]
    assert batch["labels"][0, -1] == 2


def test_a_long_draft_loses_its_beginning_and_the_prompt_nothing():
    example = Example((5, 6), (9, 2))
    assert correction(example, (7, 8), (4,), max_length=7).input_ids == (5, 6, 7, 8, 4, 9, 2)
    assert correction(example, (7, 8), (4,), max_length=6).input_ids == (5, 6, 8, 4, 9, 2)
    assert correction(example, (7, 8), (4,), max_length=5).input_ids == (5, 6, 4, 9, 2)
    assert correction(example, (), (4,), max_length=5).input_ids == (5, 6, 4, 9, 2)
    with pytest.raises(InputInvalid, match="no place for a draft"):
        correction(example, (7, 8), (4,), max_length=4)
    assert corrected_prompt((5,), (), (4,), room=2) == (5, 4)


def test_the_second_pass_reads_the_first(opened):
    model, tokenizer = opened
    forbidden = control_tokens(model, tokenizer)
    prompts = [(5, 6, 7), (8,), (9, 10)]
    known = {"limit": 6, "ending": 2, "forbidden": forbidden, "pad": 3}
    found = two_passes(model, prompts, (30, 31), max_length=32, **known)
    again = [(*p, *d, 30, 31) for p, d in zip(prompts, found.drafts, strict=True)]
    wanted = drafts(model, again, temperature=0.0, seeds=[(0, i) for i in range(3)], **known)
    assert found.corrected == tuple(a for _, a in sorted(wanted))


def test_answers_are_text_and_one_pass_is_the_first_of_two(opened):
    model, tokenizer = opened
    asked = ["the cat", "a dog ran"]
    known = {"max_new_tokens": 5, "progress": False}
    one = answer(model, tokenizer, asked, passes=1, **known)
    two = answer(model, tokenizer, asked, **known)
    assert [a.draft for a in one] == [a.draft for a in two]
    assert [a.prompt for a in two] == asked
    assert all(a.corrected is None for a in one)
    assert all(isinstance(a.corrected, str) for a in two)
    chat = [[{"role": "user", "content": text}] for text in asked]
    assert len(answer(model, tokenizer, chat, **known)) == 2
    hot = [
        answer(model, tokenizer, asked, passes=1, temperature=1.0, seed=seed, **known)
        for seed in (0, 0, 1)
    ]
    assert hot[0] == hot[1] != hot[2]


@pytest.mark.parametrize(
    ("prompts", "further", "told"),
    [
        ([], {}, "no prompts"),
        (["x"], {"passes": 3}, "passes is 3"),
        (["x"], {"max_new_tokens": 0}, "max_new_tokens is 0"),
        (["x"], {"temperature": -1.0}, "temperature is -1.0"),
        (["x"], {"max_length": 8, "max_new_tokens": 8}, "prompt 0 has 1 tokens"),
        (["x", [{"role": "user", "content": "x"}]], {}, "some are text"),
    ],
)
def test_what_cannot_be_answered_is_told(opened, prompts, further, told):
    with pytest.raises(InputInvalid, match=told):
        answer(*opened, prompts, progress=False, **further)


def test_what_stands_between_drafts_has_no_padding(opened):
    _, tokenizer = opened
    assert turn_between(tokenizer, "Check it.", chat=True)[0] == tokenizer.eos_token_id
