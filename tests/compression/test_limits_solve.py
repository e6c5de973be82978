"""All pairs, against brute force, reductions and independent libraries; and what is refused."""

from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import sparse
from scipy.spatial.distance import cdist
from sklearn.metrics.pairwise import cosine_similarity

from zeitgeist.compression import limits
from zeitgeist.compression.limits import LimitsOptions, most_similar_pair, solve
from zeitgeist.compression.limits_probe import ProbeOptions, probe
from zeitgeist.errors import InputInvalid

BLOCKS = LimitsOptions(block=3)


def binary(n, length):
    return arrays(np.int64, (n, length), elements=st.integers(0, 1))


def brute(problem, a, b):
    """First best pair by fractions, how many are as good, and the next best value."""
    same = b is None
    b = a if same else b
    found = {}
    for i in range(len(a)):
        for j in range(i + 1 if same else 0, len(b)):
            product = int(a[i] @ b[j])
            value = Fraction(product)
            if problem in ("msd", "lsd"):
                value = Fraction(product * abs(product), int(a[i] @ a[i]) * int(b[j] @ b[j]))
            found[i, j] = value
    pick = max if problem in ("msd", "max-ip") else min
    best = pick(found.values())
    winners = [pair for pair, value in found.items() if value == best]
    rest = [value for value in found.values() if value != best]
    return winners[0], best, len(winners), pick(rest) if rest else None, len(found)


@settings(max_examples=60, deadline=None)
@given(st.data(), st.sampled_from(limits.PROBLEMS), st.booleans(), st.booleans())
def test_it_is_what_brute_force_finds_in_fractions(data, problem, two, thin):
    n, length = data.draw(st.integers(2, 9)), data.draw(st.integers(1, 6))
    a = data.draw(binary(n, length))
    b = data.draw(binary(data.draw(st.integers(1, 9)), length)) if two else None
    if problem in ("msd", "lsd"):
        a[:, 0] = 1
        if two:
            b[:, 0] = 1
    pair, best, ties, rest, count = brute(problem, a, b)
    given = [sparse.csr_array(x) if thin and x is not None else x for x in (a, b)]
    found = solve(problem, *given, options=BLOCKS)
    assert (found.first, found.second) == pair
    proof = found.certificate
    assert (proof.fraction, proof.ties, proof.compared, proof.exact) == (best, ties, count, True)
    assert found.exists == (best == 0 if problem == "ov" else None)
    root = problem in ("msd", "lsd")
    expected = None if rest is None else float(rest) ** (0.5 if root else 1)
    assert proof.next_value == (None if rest is None else pytest.approx(expected, abs=1e-12))


@settings(max_examples=30, deadline=None)
@given(binary(7, 5))
def test_orthogonality_is_the_least_inner_product_and_the_least_cosine_being_zero(x):
    x[x.sum(1) == 0, 0] = 1
    answers = [solve(problem, x) for problem in ("ov", "min-ip", "lsd")]
    assert len({answer.value == 0 for answer in answers}) == 1
    if answers[0].exists:
        assert len({(answer.first, answer.second) for answer in answers}) == 1
        assert solve("min-ip", x, threshold=0.0).exists and solve("lsd", x, threshold=0.0).exists


@settings(max_examples=30, deadline=None)
@given(binary(6, 8), binary(5, 8))
def test_the_complement_turns_the_greatest_product_into_the_least(a, b):
    a, b = a[:, :4], b[:, :4]
    a = np.concatenate([a, 1 - a], 1)  # equal weight
    b = np.concatenate([b, 1 - b], 1)
    most, least = solve("max-ip", a, b), solve("min-ip", a, 1 - b)
    assert (most.first, most.second) == (least.first, least.second)
    assert most.value == 4 - least.value


@pytest.mark.parametrize("mode", ["most", "least"])
@pytest.mark.parametrize("block", [7, 64, 2048])
def test_reals_agree_with_scipy_and_sklearn(mode, block):
    x, y = np.random.default_rng(0).normal(size=(2, 131, 17))
    pick = np.argmax if mode == "most" else np.argmin
    options = LimitsOptions(block=block)
    found = most_similar_pair(x, y, mode=mode, options=options)
    distances = 1 - cdist(x, y, metric="cosine")
    assert (found.first, found.second) == np.unravel_index(pick(distances), distances.shape)
    assert found.value == pytest.approx(distances[found.first, found.second], abs=1e-12)
    within = most_similar_pair(torch.from_numpy(x), mode=mode, options=options)
    own = cosine_similarity(x)
    own[np.tril_indices_from(own)] = np.nan
    pick = np.nanargmax if mode == "most" else np.nanargmin
    assert (within.first, within.second) == np.unravel_index(pick(own), own.shape)
    ordered = np.sort(own[~np.isnan(own)])
    assert within.certificate.next_value == pytest.approx(ordered[-2 if mode == "most" else 1])
    assert within.certificate.fraction is None and not within.certificate.exact


def test_cosines_that_floating_point_cannot_tell_apart_are_told_apart():
    near = 3000
    x = np.zeros((4, near + 2), dtype=np.int64)
    x[0, :near], x[1, : near - 1] = 1, 1  # squared cosine (near - 1) / near
    x[2, : near + 1], x[3, :near] = 1, 1  # with the first: near / (near + 1), and itself again
    found = solve("msd", x[[0, 1, 2]])
    assert (found.first, found.second) == (0, 2)
    assert found.certificate.fraction == Fraction(near, near + 1)
    assert solve("msd", x).certificate.fraction == 1


def test_more_ties_than_are_held_are_counted(monkeypatch):
    monkeypatch.setattr(limits, "HELD", 10)
    found = solve("lsd", np.eye(9, dtype=np.int64), options=BLOCKS)
    assert (found.first, found.second, found.certificate.ties) == (0, 1, 36)
    assert not found.certificate.exact


def test_documents_are_sets_of_words():
    texts = ["the cat sat", "a dog ran off", "sat the CAT", "dog, ran"]
    found = most_similar_pair(texts)
    assert (found.first, found.second, found.value) == (0, 2, 1.0)
    found = most_similar_pair(texts[:2], texts[2:], mode="least")
    assert (found.first, found.second, found.value) == (0, 1, 0.0)
    assert found.certificate.ties == 2


@pytest.mark.parametrize(("threshold", "exists"), [(0.5, True), (0.75**0.5, True), (0.9, False)])
def test_a_threshold_is_decided(threshold, exists):
    x = np.array([[1, 1, 1, 1], [1, 1, 1, 0], [1, 0, 0, 0]])
    assert most_similar_pair(x, threshold=threshold).exists == exists


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("most", np.eye(2)), "no problem 'most'"),
        (("msd", np.eye(3)[:1]), "1 and 1 items"),
        (("msd", np.zeros((2, 2))), "item 0 of the items has nothing in it"),
        (("lsd", np.eye(2), np.zeros((1, 2))), "item 0 of the other items has nothing"),
        (("msd", np.array([[1.0, np.nan], [1, 1]])), "a value that is no number"),
        (("msd", np.eye(2), np.eye(3)), "length 2 and the others 3"),
        (("msd", np.ones(3)), r"shape \(3,\)"),
        (("msd", [["a"], ["b", "c"]]), "no vectors"),
        (("ov", 2 * np.eye(2)), "other than zeros and ones"),
        (("msd", ["a b", "b"], np.eye(2)), "documents and vectors"),
        (("msd", ["...", "!"]), "hold no words"),
        (("msd", "one text"), "one text has no pairs"),
        (("msd", ["a b", 3]), "3 is no document"),
        (("msd", np.array([[1j, 1], [1, 1]])), "real numbers"),
    ],
)
def test_what_is_no_problem_is_told(arguments, told):
    with pytest.raises(InputInvalid, match=told):
        solve(*arguments)


@pytest.mark.parametrize("scale", [1e-200, 1e-7, 1e7, 1e200])
def test_a_scale_changes_nothing(scale):
    x = np.random.default_rng(0).normal(size=(50, 8))
    for problem in ("msd", "lsd", *(("max-ip", "min-ip") if 1e-100 < scale < 1e100 else ())):
        plain, scaled = solve(problem, x), solve(problem, scale * x)
        assert (scaled.first, scaled.second) == (plain.first, plain.second)
        assert scaled.certificate.ties == 1
        size = 1 if problem in ("msd", "lsd") else scale**2
        assert scaled.certificate.next_value == pytest.approx(size * plain.certificate.next_value)


def test_tensors_and_mixed_kinds_are_taken():
    x = np.random.default_rng(0).integers(0, 2, size=(20, 6))
    x[:, 0] = 1
    expected = solve("lsd", x, x[:7])
    assert solve("lsd", torch.from_numpy(x).bfloat16(), x[:7]) == expected
    assert solve("lsd", x, sparse.csr_matrix(x[:7])) == expected
    assert solve("lsd", sparse.coo_array(x), x[:7]) == expected


@pytest.mark.parametrize("threshold", [float("nan"), float("inf")])
def test_thresholds_that_are_none_are_told(threshold):
    with pytest.raises(InputInvalid, match="a threshold of"):
        solve("msd", np.eye(2), threshold=threshold)
    with pytest.raises(InputInvalid, match="ov has none"):
        solve("ov", np.eye(2), threshold=1.0)


def test_modes_and_blocks_that_mean_nothing_are_told():
    with pytest.raises(InputInvalid, match="the mode is 'best'"):
        most_similar_pair(np.eye(2), mode="best")
    with pytest.raises(InputInvalid, match="block is 0"):
        LimitsOptions(block=0)


def test_the_probe_finds_what_is_near_in_order_and_what_stands_out():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(400, 24))
    x[1::2] = x[::2] + 0.05 * rng.normal(size=(200, 24))
    found = probe(x, ProbeOptions(window=16, queries=100))
    assert found.recall["window"] == 1.0 and found.recall["lsh"] > 0.8
    assert found.nearest > 0.99 and found.margin > 3
    far = x[rng.permutation(400)]
    assert probe(far, ProbeOptions(window=16)).recall["window"] < 0.2
    everything = probe(far, ProbeOptions(window=400))
    assert everything.recall["window"] == 1.0
    assert everything.load < found.load


def test_the_probe_gives_every_mixer_about_the_same_to_do():
    x = np.random.default_rng(0).normal(size=(256, 32))
    for window in (64, 5000):
        operations = probe(x, ProbeOptions(window=window)).operations
        assert max(operations.values()) < 3 * min(operations.values())


@pytest.mark.parametrize(
    ("x", "told"), [(np.eye(2), "2 vectors"), (np.diag([1.0, 0, 1]), "vector 1 is zero")]
)
def test_what_cannot_be_probed_is_told(x, told):
    with pytest.raises(InputInvalid, match=told):
        probe(x)
    with pytest.raises(InputInvalid, match="window is 0"):
        ProbeOptions(window=0)
