"""Greedy soup against the recipe of the paper."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.soups import greedy_soup


def table(scores: dict[tuple[int, ...], float], asked: list[tuple[int, ...]]):
    def score(members: tuple[int, ...]) -> float:
        asked.append(members)
        return scores[tuple(sorted(members))]

    return score


def test_models_are_tried_best_first_and_kept_only_if_the_soup_does_not_fall():
    asked: list[tuple[int, ...]] = []
    scores = {(0,): 0.5, (1,): 0.8, (2,): 0.7, (1, 2): 0.6, (0, 1): 0.9}
    soup = greedy_soup(3, table(scores, asked))
    assert asked == [(0,), (1,), (2,), (1, 2), (1, 0)]
    assert soup.members == (1, 0)
    assert soup.score == 0.9
    assert [trial.kept for trial in soup.trials] == [False, True]


def test_an_equal_score_is_kept_by_the_paper_and_not_by_the_official_code():
    assert greedy_soup(2, lambda members: 1.0).members == (0, 1)
    assert greedy_soup(2, lambda members: 1.0, strict=True).members == (0,)


def test_known_single_scores_are_not_asked_again():
    asked: list[tuple[int, ...]] = []
    soup = greedy_soup(2, table({(0, 1): 3.0}, asked), singles=[1.0, 2.0])
    assert asked == [(1, 0)]
    assert soup.singles == (1.0, 2.0)


def test_one_model_is_its_own_soup():
    soup = greedy_soup(1, lambda members: 0.25)
    assert (soup.members, soup.score, soup.trials) == ((0,), 0.25, ())


def test_a_score_that_is_not_a_number_never_enters():
    soup = greedy_soup(3, lambda members: math.nan if 1 in members else 1.0)
    assert soup.members == (0, 2)
    broken_average = greedy_soup(2, lambda members: math.nan if len(members) > 1 else 1.0)
    assert broken_average.members == (0,)
    with pytest.raises(InputInvalid, match="none of the 2 models"):
        greedy_soup(2, lambda members: math.nan)


@pytest.mark.parametrize("n, singles", [(0, None), (2, [1.0])])
def test_wrong_counts_are_refused(n, singles):
    with pytest.raises(InputInvalid):
        greedy_soup(n, lambda members: 1.0, singles=singles)


@given(st.integers(1, 6), st.randoms(use_true_random=False), st.booleans())
def test_the_soup_is_never_worse_than_the_best_single_model(n, random, strict):
    subsets = itertools.chain.from_iterable(
        itertools.combinations(range(n), k) for k in range(1, n + 1)
    )
    scores = {subset: random.choice([0.0, 0.25, 0.5, 1.0]) for subset in subsets}
    soup = greedy_soup(n, table(scores, []), strict=strict)
    assert soup.score >= max(soup.singles)
    assert scores[tuple(sorted(soup.members))] == soup.score
    assert len(soup.trials) == n - 1
