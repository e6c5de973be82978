"""The arithmetic of the tests against tables, scipy, brute force, and their own nulls."""

from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_statistics import (
    CALIBRATED,
    at_least,
    at_most,
    beaten,
    binomial,
    differences,
    equivalence_p,
    gaussian_kernel,
    hsic,
    independence_p,
    least_p,
    median_interval,
    minimality_p,
    share_above,
    type_one_error,
    within_p,
)


@pytest.mark.parametrize(
    ("n", "share", "p"),
    [
        (100, 0.5, 1.0),
        (100, 0.4, 0.543),
        (100, 0.35, 0.179),
        (100, 0.3, 0.0248),
        (100, 0.24, 0.00056),
        (40, 0.3, 0.129),
        (40, 0.2, 0.0061),
    ],
)
def test_equivalence_gives_the_known_table(n, share, p):
    assert equivalence_p(share, n, 0.1) == pytest.approx(p, rel=0.01)
    assert equivalence_p(1 - share, n, 0.1) == pytest.approx(equivalence_p(share, n, 0.1))


@given(st.integers(1, 60), st.data())
def test_without_room_equivalence_is_the_sign_test(n, data):
    k = data.draw(st.integers(0, n))
    wanted = stats.binomtest(k, n, 0.5).pvalue
    assert equivalence_p(k / n, n, 0.0) == pytest.approx(wanted, rel=1e-9)


def test_six_examples_can_never_reject():
    assert least_p(6, 0.1) > 0.05 > least_p(7, 0.1)


@given(st.integers(1, 120), st.sampled_from([0.0, 1e-6, 0.1, 0.5, 0.9, 1.0]), st.data())
def test_binomial_tails_are_scipys(n, p, data):
    k = data.draw(st.integers(0, n))
    assert binomial(n, p) == pytest.approx(stats.binom.pmf(range(n + 1), n, p), abs=1e-12)
    assert at_least(k, n, p) == pytest.approx(stats.binom.sf(k - 1, n, p), abs=1e-12)
    assert at_most(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), abs=1e-12)


def test_half_successes_never_help_to_reject():
    assert at_least(95.5, 100, 0.9) == at_least(95, 100, 0.9)
    assert at_most(84.5, 100, 0.9) == at_most(85, 100, 0.9)


@pytest.mark.parametrize(
    ("k", "edges", "least"), [(84, 1, True), (85, 1, False), (80, 20, True), (81, 20, False)]
)
def test_edges_are_rejected_where_the_counts_say(k, edges, least):
    reference = np.concatenate((np.zeros(k), np.full(100 - k, 2.0)))
    counts, p, gone = minimality_p(np.ones(edges), reference, 0.9, 0.05)
    assert counts.tolist() == [k] * edges and gone.tolist() == [least] * edges
    assert p[0] == pytest.approx(stats.binomtest(k, 100, 0.9, alternative="less").pvalue)


@pytest.mark.parametrize(("k", "p"), [(95, 0.058), (96, 0.024)])
def test_special_circuits_need_96_of_100(k, p):
    assert at_least(k, 100, 0.9) == pytest.approx(p, abs=5e-4)


def test_ties_count_half():
    assert share_above(np.zeros(4)) == 0.5 and share_above(np.zeros(4), half=False) == 0.0
    assert beaten(1.0, np.array([0.0, 1.0, 2.0])) == 1.5
    assert beaten(1.0, np.array([0.0, 1.0, 2.0]), ties=1.0) == 2.0


def test_rounding_is_no_difference():
    one, other = np.array([1e3, 1.0, 0.0]), np.array([1e3 + 1e-4, 1.0 + 1e-3, 1e-9])
    assert (differences(one, other, 1e-6) != 0).tolist() == [False, True, False]
    assert (differences(one, other, 0.0) != 0).all()


@given(st.lists(st.integers(-3, 3), min_size=2, max_size=6), st.integers(0, 10**6))
def test_hsic_is_its_definition_and_knows_no_order(x, seed):
    rng = np.random.default_rng(seed)
    a, b = np.array(x, dtype=float), rng.normal(size=len(x))
    k, other, n = gaussian_kernel(a), gaussian_kernel(b), len(x)
    h = np.eye(n) - 1 / n
    wanted = np.trace(k @ h @ other @ h) / (n - 1) ** 2
    assert hsic(k, other) == pytest.approx(wanted, abs=1e-12)
    order = rng.permutation(n)
    assert hsic(k[np.ix_(order, order)], other[np.ix_(order, order)]) == pytest.approx(wanted)


def test_hsic_of_linear_kernels_is_the_squared_covariance():
    a, b = np.random.default_rng(0).normal(size=(2, 30))
    linear = hsic(np.outer(a, a), np.outer(b, b))
    assert linear == pytest.approx(np.cov(a, b)[0, 1] ** 2)


def test_permutations_agree_with_all_of_them():
    rng = np.random.default_rng(3)
    a = rng.normal(size=6)
    b = a**2 + 0.3 * rng.normal(size=6)
    k, other = gaussian_kernel(a), gaussian_kernel(b)
    every = [hsic(k, other[np.ix_(o, o)]) for o in map(list, permutations(range(6)))]
    exact = np.mean(np.array(every) >= hsic(k, other) - 1e-12)
    statistic, p = independence_p(k, other, 20_000, rng)
    assert statistic == pytest.approx(hsic(k, other))
    assert p == pytest.approx(exact, abs=0.01)


def test_a_p_is_never_nothing_and_ties_reach():
    k = gaussian_kernel(np.arange(20.0))
    assert independence_p(k, k, 99, np.random.default_rng(0))[1] == pytest.approx(0.01)
    flat = np.ones((20, 20))
    assert independence_p(k, flat, 99, np.random.default_rng(0))[1] == 1.0


def test_each_side_has_its_own_bandwidth():
    x = np.random.default_rng(0).normal(size=25)
    assert gaussian_kernel(x) == pytest.approx(gaussian_kernel(1e6 * x))
    apart = np.abs(x[:, None] - x)[np.triu_indices(25, 1)]
    assert gaussian_kernel(x) == pytest.approx(gaussian_kernel(x, float(np.median(apart))))
    assert (gaussian_kernel(np.zeros(3)) == 1).all()


def test_within_is_two_sign_tests():
    delta = np.array([0.05] * 9 + [0.2])
    assert within_p(delta, 0.1) == pytest.approx(
        stats.binomtest(9, 10, 0.5, alternative="greater").pvalue
    )
    assert within_p(-delta, 0.1) == within_p(delta, 0.1)
    assert within_p(delta, 0.05) > 0.999  # on the margin is outside


def test_the_interval_of_a_median_holds_it():
    x = np.random.default_rng(0).exponential(size=200)
    middle, low, high = median_interval(x, np.random.default_rng(1))
    assert low < middle == np.median(x) < high
    assert low < np.log(2) < high


@pytest.mark.parametrize("test", CALIBRATED)
def test_no_test_rejects_its_null_too_often(test):
    quick = {"n": 25, "permutations": 99} if test == "independence" else {}
    found = type_one_error(test, repeats=400, **quick)
    assert found <= 0.05 + 3 * (0.05 * 0.95 / 400) ** 0.5


def test_a_p_at_the_level_does_not_reject():
    # 19 permutations give at least p = 1/20, which the test of circuits does not reject either.
    assert type_one_error("independence", repeats=200, n=15, permutations=19) == 0


def test_a_test_that_is_not_there():
    with pytest.raises(InputInvalid, match="no test is called 'magic'"):
        type_one_error("magic")
