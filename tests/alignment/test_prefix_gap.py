"""The gap: what it counts, against an independent count, on answers that are known."""

import difflib

import numpy as np
import pytest
import torch

from zeitgeist.alignment.decoding import control_tokens
from zeitgeist.alignment.demonstrations import encode
from zeitgeist.alignment.policies import open_policy
from zeitgeist.alignment.prefix_gap import (
    by_position,
    compare,
    edit_distance,
    gap,
    gold_hits,
    measure_gap,
    token_hits,
)
from zeitgeist.alignment.prefix_gap_charts import gap_chart
from zeitgeist.errors import InputInvalid
from zeitgeist.training import Example


@pytest.fixture(scope="module")
def opened(tiny_llama):
    return open_policy(tiny_llama)


EXAMPLES = [Example((1,), (5, 6, 7, 0)), Example((2,), (8, 0)), Example((3,), (9, 9, 0))]


def test_answers_that_are_gold_have_no_gap():
    gold = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]], dtype=bool)
    report = compare(EXAMPLES, gold, [(5, 6, 7), (8,), (9, 9)], [(5, 6, 7), (8,), (9,)])
    assert report.gold_accuracy == report.own_accuracy == report.exact_match == 1.0
    assert report.gap == report.edit_distance == 0.0
    assert report.counts == (3, 3, 2, 1)
    assert report.own_by_position == (1.0,) * 4
    again = report.corrected
    assert again.first == 1.0 and again.second == pytest.approx(2 / 3)
    assert again.right_to_wrong == pytest.approx(1 / 3) and again.wrong_to_right == 0
    assert again.copied == pytest.approx(2 / 3)


def test_every_kind_of_wrong_is_counted_where_it_stands():
    gold = np.zeros((3, 4), dtype=bool)
    # One wrong token, one that goes on too long, one that ends too soon.
    report = compare(EXAMPLES, gold, [(5, 1, 7), (8, 8), (9,)], [(5, 6, 7), (8,), (9,)])
    # Hits: 5 . 7 end, 8, 9; the end of the second stands too late, that of the third too soon.
    assert report.own_accuracy == pytest.approx(5 / 9)
    assert report.own_by_position == pytest.approx((1.0, 0.0, 0.5, 1.0))
    assert report.exact_match == 0.0
    assert report.edit_distance == pytest.approx((1 / 3 + 1 + 1 / 2) / 3)
    assert report.gap == pytest.approx(-5 / 9)
    again = report.corrected
    assert again.wrong_to_right == pytest.approx(2 / 3) and again.right_to_wrong == 0
    assert again.copied == pytest.approx(1 / 3)
    assert again.own_accuracy == pytest.approx(7 / 9)


def test_edit_distance_is_a_metric_and_levenshteins():
    generator = np.random.default_rng(0)
    words = [generator.integers(0, 3, generator.integers(0, 7)).tolist() for _ in range(12)]
    for a in words:
        assert edit_distance(a, a) == 0
        assert edit_distance(a, []) == len(a)
        for b in words:
            found = edit_distance(a, b)
            assert found == edit_distance(b, a)
            same = sum(m.size for m in difflib.SequenceMatcher(None, a, b).get_matching_blocks())
            assert abs(len(a) - len(b)) <= found <= max(len(a), len(b))
            assert found <= len(a) + len(b) - 2 * same
            for c in words[:4]:
                assert found <= edit_distance(a, c) + edit_distance(c, b)
    assert edit_distance([*b"kitten"], [*b"sitting"]) == 3


@torch.no_grad()
def test_gold_accuracy_is_that_of_one_pass_per_example(opened, texts):
    model, tokenizer = opened
    examples = [encode(tokenizer, row) for row in texts]
    hits = gold_hits(model, examples, pad=3, batch_size=2)
    for row, example in zip(hits, examples, strict=True):
        ids = torch.tensor([example.prompt + example.answer])
        start, count = len(example.prompt) - 1, len(example.answer)
        wanted = model(ids).logits[0, start : start + count].argmax(1)
        right = [int(w) == a for w, a in zip(wanted, example.answer, strict=True)]
        assert row[:count].tolist() == right and not row[count:].any()


def test_up_to_its_first_own_error_a_model_is_as_right_as_after_gold(opened, texts):
    model, tokenizer = opened
    report = gap(model, tokenizer, texts, batch_size=2, progress=False)
    assert report.demonstrations == 5
    assert report.gold_by_position[0] == report.own_by_position[0]
    assert report.gap == pytest.approx(report.gold_accuracy - report.own_accuracy)
    assert report.counts[0] == 5 and list(report.counts) == sorted(report.counts, reverse=True)
    assert gap(model, tokenizer, texts, batch_size=64, progress=False) == report


def test_a_model_that_learned_by_heart_has_none(tiny_llama, texts):
    from zeitgeist.training import Schedule, finetune_full

    model, tokenizer = open_policy(tiny_llama)
    examples = [encode(tokenizer, row) for row in texts]
    finetune_full(
        model,
        examples,
        settings=Schedule(steps=80, batch_size=5, learning_rate=1e-2),
        progress=False,
    )
    known = {"forbidden": control_tokens(model, tokenizer), "pad": 3}
    report = measure_gap(model, examples, between=(30,), **known)
    assert report.gold_accuracy == report.own_accuracy == report.exact_match == 1.0
    assert report.corrected is not None and report.corrected.first == 1.0


def test_conversations_are_measured_and_drawn(opened, chats):
    report = gap(*opened, chats, correction="Check it.", progress=False)
    assert report.corrected is not None and 0 <= report.corrected.copied <= 1
    figure = gap_chart({"before": report, "after": report})
    assert figure.png().startswith(b"\x89PNG")
    assert "after gold" in figure.caption


def test_shares_by_position_are_of_those_that_reach_it():
    hits = token_hits([(1, 2, 3), (1,)], [(1, 2, 4), (2,)])
    assert by_position(hits, np.array([3, 1])) == (0.5, 1.0, 0.0)


def test_what_does_not_fit_is_told(opened, texts):
    with pytest.raises(InputInvalid, match="raise max_length"):
        gap(*opened, texts, max_length=5, progress=False)
