"""Measures of sinks, drains and peaks: closed forms, limits, and what they must not see."""

import math

import pytest
import torch

from zeitgeist.inspection.heads_measures import (
    COORDINATES,
    attention_measures,
    classify,
    column_entropy,
    find_sinks,
    head_norms,
    moved_to,
    projection_norms,
    received,
    relative_logits,
    row_entropy,
    stream_measures,
)
from zeitgeist.inspection.heads_report import sink_mass, strongest_sinks


def softmax_pattern(b=2, h=3, n=17, scale=1.0, seed=0):
    logits = scale * torch.randn(b, h, n, n, generator=torch.Generator().manual_seed(seed))
    masked = logits.masked_fill(~torch.ones(n, n, dtype=torch.bool).tril(), -torch.inf)
    return logits, masked.softmax(-1)


def test_received_is_the_sum_over_later_queries():
    _, pattern = softmax_pattern()
    for s in range(17):
        wanted = pattern[:, :, s + 1 :, s].sum(-1)
        assert torch.allclose(received(pattern)[..., s], wanted, atol=1e-6)


@pytest.mark.parametrize("s", [0, 4, 15])
def test_the_relative_logit_is_that_of_the_logits(s):
    logits, pattern = softmax_pattern()
    wanted = torch.zeros(2, 3)
    for t in range(s + 1, 17):
        others = [j for j in range(t + 1) if j != s]
        wanted += logits[:, :, t, s] - logits[:, :, t, others].mean(-1)
    assert torch.allclose(relative_logits(pattern)[..., s], wanted, atol=1e-4)


def test_the_relative_logit_follows_from_the_sink_mass():
    # D = log(A / (1 - A)) + log t + (log-mean-exp - mean of the other logits), exactly.
    logits, pattern = softmax_pattern()
    total = torch.zeros(2, 3)
    for t in range(1, 17):
        a, rest = pattern[:, :, t, 0], logits[:, :, t, 1 : t + 1]
        spread = rest.logsumexp(-1) - math.log(t) - rest.mean(-1)
        total += (a / (1 - a)).log() + math.log(t) + spread
    assert torch.allclose(relative_logits(pattern)[..., 0], total, atol=1e-4)


def test_what_underflowed_stays_finite():
    _, pattern = softmax_pattern(scale=500.0)
    assert (pattern == 0).any()
    for measure in (relative_logits, row_entropy, column_entropy, received):
        assert measure(pattern).isfinite().all()


def test_entropies_are_one_for_equal_weights_and_zero_for_one_key():
    n = 9
    even = torch.ones(1, 1, n, n).tril() / torch.arange(1, n + 1)[:, None]
    assert torch.allclose(row_entropy(even)[0, 0, 1:], torch.ones(n - 1))
    sink = torch.zeros(1, 1, n, n)
    sink[..., 0] = 1
    assert row_entropy(sink).abs().max() == 0
    assert column_entropy(sink)[0, 0, 0] == pytest.approx(1.0)
    assert column_entropy(sink)[0, 0, 1:].abs().max() == 0


def test_the_stack_has_all_measures_in_order():
    _, pattern = softmax_pattern()
    stack = attention_measures(pattern)
    assert stack.shape == (2, 4, 3, 17)
    for place, measure in enumerate((received, relative_logits, row_entropy, column_entropy)):
        assert torch.equal(stack[:, place], measure(pattern))


@pytest.mark.parametrize(("d", "c"), [(5, 20), (8, 8), (7, 3)])
def test_norms_behind_the_projection_need_no_projection(d, c):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(6, d, c, generator=generator)
    values = torch.randn(2, 11, 2, d, generator=generator)
    wide = values.repeat_interleave(3, 2)
    wanted = torch.einsum("bnhd,hdc->bhnc", wide, weight).norm(dim=-1)
    assert torch.allclose(head_norms(values, projection_norms(weight)), wanted, rtol=1e-4)
    assert head_norms(0 * values, projection_norms(weight)).abs().max() == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_norms_of_peaks_do_not_overflow(dtype):
    x = torch.ones(1, 2, 64, dtype=dtype)
    x[0, 0, 7] = -22_500
    found = stream_measures(x)
    assert found.shape == (1, 2, 2 + 2 * COORDINATES)
    assert float(found[0, 0, 0]) == pytest.approx(22_500, rel=0.01)
    assert float(found[0, 0, 2]) == pytest.approx(-22_500, rel=0.01)
    assert int(found[0, 0, 2 + COORDINATES]) == 7
    assert found[0, :, 1].tolist() == [1.0, 1.0]


def test_a_stream_narrower_than_the_list_of_coordinates_is_measured():
    assert stream_measures(torch.randn(2, 3, 2)).shape == (2, 3, 6)


def test_sinks_are_where_attention_is_and_not_at_the_start():
    n = 40
    pattern = torch.ones(1, 1, n, n).tril() / torch.arange(1, n + 1)[:, None]
    for place in (0, 5):
        moved = moved_to(pattern, [0], torch.tensor([place]))
        got = received(moved)[:, None]
        found = find_sinks(got, mass=0.3, share=1.0, queries=4)
        assert found[0].nonzero().flatten().tolist() == ([place] if place == 0 else [0, 5][1:])
        assert strongest_sinks(got, found).tolist() == [place]
        mass = sink_mass(got, found)
        assert float(mass) == pytest.approx((n - 1 - place) / (n - 1))


def test_a_last_token_is_no_sink_and_no_sinks_are_none():
    got = torch.zeros(2, 1, 1, 6)
    got[0, 0, 0, 4] = 1.0  # all of the one query behind it
    found = find_sinks(got, mass=0.3, share=0.5, queries=2)
    assert not found.any()
    assert strongest_sinks(got, found).tolist() == [-1, -1]
    assert sink_mass(got, found).abs().max() == 0


def test_few_heads_make_no_sink():
    got = torch.zeros(1, 1, 10, 5)
    got[0, 0, 0, 0] = 4.0
    assert not find_sinks(got, mass=0.3, share=0.2, queries=1).any()
    assert find_sinks(got, mass=0.3, share=0.1, queries=1).any()


def test_moving_keeps_rows_whole_and_other_heads():
    _, pattern = softmax_pattern()
    moved = moved_to(pattern, [1], torch.tensor([0, 3]))
    assert torch.allclose(moved.sum(-1), torch.ones(2, 3, 17), atol=1e-5)
    assert torch.equal(moved[:, [0, 2]], pattern[:, [0, 2]])
    assert torch.equal(moved[1, 1, :3], pattern[1, 1, :3])
    assert moved[1, 1, 3:, 3].tolist() == [1.0] * 14


def test_thresholds_belong_to_their_class():
    assert classify(0.7, active=0.3, dormant=0.7) == "dormant"
    assert classify(0.3, active=0.3, dormant=0.7) == "active"


def test_weights_that_half_precision_loses_cost_no_more_than_its_own_range():
    p = torch.tensor([[1.0, 0.0, 0.0], [1.0, 1e-8, 0.0], [1.0, 1e-8, 1e-8]])[None, None]
    full, half = relative_logits(p)[0, 0], relative_logits(p.half())[0, 0]
    assert (full - half).abs().max() < 4.0  # twice the log of 6e-8 over 1e-8
