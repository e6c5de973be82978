"""Constructions decide as brute force does, with their margins; the curve finds what it can."""

import math
import sys

import pytest
import torch

from zeitgeist.compression.limits_constructions import (
    NAMES,
    check_construction,
    drawn,
    ov_outputs,
    threshold_outputs,
)
from zeitgeist.compression.limits_curve import MIXERS, exponent, instance, measure_curve
from zeitgeist.errors import InputInvalid


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("n", "length"), [(16, 8), (65, 24), (250, 33)])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_every_construction_is_right_in_float64(name, n, length, seed):
    found = check_construction(name, n, length, seed=seed)
    assert found["correct"] == 1.0
    assert found["margin_yes"] >= 0 and found["margin_no"] > 0


@pytest.mark.parametrize("seed", range(5))
def test_orthogonal_pairs_are_seen_exactly_where_brute_force_finds_them(seed):
    v = drawn(40, 10, seed)[:, 1:]
    v = v[v.sum(1) > 0]
    exists = bool(((v @ v.T) == 0).any())
    assert bool(ov_outputs(v).max() >= 1 / (len(v) + 1)) == exists


def test_the_threshold_head_keeps_its_margin_with_decoys_one_short():
    t, n = 6, 200
    a = torch.zeros(1, 12, dtype=torch.float64)
    a[0, :t] = 1
    short = a.clone()
    short[0, 0] = 0
    decoys = short.repeat(n, 1)
    half = (2 * math.log(n) + 6) / 2
    low = float(threshold_outputs(a, decoys, t))
    assert low == pytest.approx(n * math.exp(-half) / (1 + n * math.exp(-half)))
    decoys[0] = a[0]
    assert float(threshold_outputs(a, decoys, t)) >= 1 / (1 + math.exp(-half))


def test_sdpa_computes_the_same_head():
    a, b = drawn(30, 12, 0), drawn(40, 12, 1)
    t, beta = 7, 2 * math.log(40) + 6
    keys = torch.cat([torch.cat([b, b.new_zeros(40, 1)], 1), b.new_zeros(1, 13)])
    keys[-1, -1] = t - 0.5
    queries = torch.cat([a, a.new_ones(30, 1)], 1)
    values = torch.cat([b.new_ones(40, 1), b.new_zeros(1, 1)]).expand(-1, 13)
    peer = torch.nn.functional.scaled_dot_product_attention(
        queries[None], keys[None], values[None], scale=beta
    )
    assert (peer[0, :, 0] - threshold_outputs(a, b, t)).abs().max() < 1e-12


def test_half_precision_loses_what_float64_sees():
    exact, low = (
        check_construction("cosine", 200, 32, dtype=dtype)["correct"]
        for dtype in (torch.float64, torch.bfloat16)
    )
    assert exact == 1.0 and low < 1.0


def test_exact_search_and_softmax_find_the_planted_pair_and_projection_mostly():
    rows = measure_curve(list(MIXERS), [64, 300], repeats=1)
    assert [(row["mixer"], row["n"]) for row in rows[:2]] == [("exact", 64), ("softmax", 64)]
    found = {(row["mixer"], row["n"]): row["recall"] for row in rows}
    for n in (64, 300):
        assert found["exact", n] == found["softmax", n] == 1.0
    assert set(found.values()) <= {0.0, 1.0}
    assert found["faiss", 300] == 1.0


def test_faiss_is_named_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputInvalid, match="faiss is not installed; pip install faiss-cpu"):
        measure_curve(["faiss"], [64], repeats=1)


def test_the_planted_pair_differs_in_one_sign():
    x = instance(50, 16, 3)
    products = (x @ x.T).fill_diagonal_(-1)
    assert float(products.max()) == pytest.approx(1 - 2 / 16, abs=1e-6)


def test_operations_grow_as_said():
    rows = measure_curve(["exact", "linear"], [256, 1024], repeats=1)
    for mixer, slope in (("exact", 2.0), ("linear", 1.0)):
        flops = [row["flops"] for row in rows if row["mixer"] == mixer]
        assert exponent([256, 1024], flops) == pytest.approx(slope)


@pytest.mark.parametrize(
    ("run", "told"),
    [
        (lambda: check_construction("cosin", 8, 8), "did you mean 'cosine'"),
        (lambda: check_construction("ov", 2, 8), "2 vectors"),
        (lambda: measure_curve(["lhs"], [64]), "did you mean 'lsh'"),
        (lambda: measure_curve(["lsh"], [4]), "4 vectors"),
    ],
)
def test_what_cannot_be_run_is_refused(run, told):
    with pytest.raises(InputInvalid, match=told):
        run()
