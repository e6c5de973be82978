"""Exact means what greedy decoding gives; ratios are paired; intervals hold at the ends."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from zeitgeist.studies.language_scores import ALL, Scores, compare, lookup, score, wilson
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


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilsons_bounds_enclose_the_share_and_mirror(drawn: tuple[int, int]) -> None:
    right, count = drawn
    low, high = wilson(right, count)
    assert 0 <= low <= right / count + 1e-12
    assert right / count - 1e-12 <= high <= 1
    assert wilson(count - right, count) == pytest.approx((1 - high, 1 - low))
    # The bounds solve (share - p)^2 = z^2 p (1 - p) / n.
    for bound in (low, high):
        assert (right / count - bound) ** 2 == pytest.approx(
            1.959964**2 * bound * (1 - bound) / count, abs=1e-9
        )


def synthetic() -> dict[str, Scores]:
    def model(shift: int, nll: float) -> Scores:
        exact = {task: [(i + shift) % 4 != 0 for i in range(16)] for task in ("a", "b")}
        losses = {task: [nll] * 16 for task in ("a", "b")}
        return Scores(exact, losses | {"text": [nll + i / 10 for i in range(12)]})

    return {
        "base": Scores(
            {"a": [False] * 16, "b": [False] * 16},
            {"a": [3.0] * 16, "b": [3.0] * 16, "text": [i / 10 for i in range(12)]},
        ),
        "expert-a": model(0, 0.5),
        "expert-b": model(0, 0.5),
        "merge": model(1, 0.25),
    }


EXPERTS = {"a": "expert-a", "b": "expert-b"}


def test_the_base_loses_nothing_and_an_expert_keeps_itself() -> None:
    found = lookup(compare(synthetic(), base="base", experts=EXPERTS))
    for text in ("text", ALL):
        row = found["base", text, "perplexity_ratio"]
        assert (row.value, row.low, row.high) == (1, 1, 1)
    row = found["expert-a", "a", "kept"]
    assert (row.value, row.low, row.high) == (1, 1, 1)


def test_ratios_are_paired_over_items() -> None:
    row = lookup(compare(synthetic(), base="base", experts=EXPERTS))["merge", "text", "nll"]
    ratio = lookup(compare(synthetic(), base="base", experts=EXPERTS))[
        "merge", "text", "perplexity_ratio"
    ]
    assert row.low < row.value < row.high
    # Every window costs the same, so the ratio is certain although the text's NLL is not.
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((math.exp(0.25),) * 3)


def test_means_over_tasks_are_means_of_the_tasks() -> None:
    found = lookup(compare(synthetic(), base="base", experts=EXPERTS))
    for metric in ("exact_match", "kept"):
        parts = [found["merge", task, metric].value for task in EXPERTS]
        assert found["merge", ALL, metric].value == pytest.approx(sum(parts) / 2)


def test_a_task_that_no_expert_learned_has_no_share_kept() -> None:
    scores = synthetic()
    scores["expert-b"] = scores["base"]
    found = lookup(compare(scores, base="base", experts=EXPERTS))
    assert ("merge", "b", "kept") not in found
    assert found["merge", ALL, "kept"].value == found["merge", "a", "kept"].value


def test_the_seed_decides_the_intervals() -> None:
    one, again, other = (
        compare(synthetic(), base="base", experts=EXPERTS, seed=seed) for seed in (0, 0, 1)
    )
    assert one == again
    assert one != other
    assert [row.value for row in one] == [row.value for row in other]
