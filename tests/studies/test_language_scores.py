"""Exact means what greedy decoding gives; NLL is the mean over the answer."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from zeitgeist.studies.language_scores import score
from zeitgeist.training import Example

PROMPTS = [(5, 6, 7), (8,), (9, 10), (11, 12, 13, 14)]


def test_exact_is_what_greedy_decoding_gives(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    examples = []
    for number, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        for _ in range(3):
            ids = torch.cat([ids, model(input_ids=ids).logits[:, -1:].argmax(-1)], dim=1)
        answer = ids[0, len(prompt) :].tolist()
        if number % 2:  # one wrong token at any place makes the answer wrong
            answer[number % 3] = (answer[number % 3] + 1) % 288
        examples.append(Example(prompt, tuple(answer)))
    scores = score(model, {"task": examples}, pad=3, batch_size=3)
    assert scores.exact["task"] == [True, False, True, False]


def test_nll_is_the_mean_over_the_answer_in_the_order_given(tiny_llama: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()
    examples = [Example(prompt, (20, 21)) for prompt in PROMPTS]
    scores = score(model, {"task": examples}, pad=3, batch_size=2)
    for example, nll in zip(examples, scores.nll["task"], strict=True):
        ids = torch.tensor([example.prompt + example.answer])
        with torch.inference_mode():
            logs = model(input_ids=ids).logits.log_softmax(-1)[0]
        at = len(example.prompt) - 1
        expected = -(logs[at, 20] + logs[at + 1, 21]) / 2
        assert nll == pytest.approx(float(expected), rel=1e-5)
