"""Gold shares: closed forms, floors and everything that is no share."""

import math

import pytest

from zeitgeist.alignment.schedules import NAMES, gold_shares
from zeitgeist.errors import InputInvalid


def test_schedules_are_their_closed_forms():
    assert gold_shares("linear", 2, floor=0.5) == (0.75, 0.5)
    assert gold_shares("exponential", 3, floor=0.0) == pytest.approx((0.9, 0.81, 0.729))
    assert gold_shares("inverse_sigmoid", 2, floor=0.0) == pytest.approx(
        (3 / (3 + math.exp(1 / 3)), 3 / (3 + math.exp(2 / 3)))
    )
    assert gold_shares("constant", 2, floor=0.7) == (0.7, 0.7)
    assert gold_shares(lambda i, n: i / n, 4, floor=0.8) == (0.25, 0.5, 0.75, 1.0)
    assert gold_shares([1, 0.5], 2, floor=0.8) == (1.0, 0.5)


@pytest.mark.parametrize("name", NAMES)
def test_schedules_never_rise_and_keep_their_floor(name):
    found = gold_shares(name, 9, floor=0.6)
    assert sorted(found, reverse=True) == list(found)
    assert all(0.6 <= share <= 1 for share in found)
    assert gold_shares(name, 5, floor=1.0) == (1.0,) * 5


@pytest.mark.parametrize(
    ("share", "rounds", "floor", "told"),
    [
        ("liner", 3, 0.8, "did you mean 'linear'"),
        (1.2, 3, 0.8, "gold share is 1.2"),
        (True, 1, 0.8, "gold share is True"),
        ([0.5], 2, 0.8, "1 gold shares for 2 rounds"),
        (["x", 0.5], 2, 0.8, "gold share is 'x'"),
        (float("nan"), 1, 0.8, "gold share is nan"),
        (lambda i, n: -i, 1, 0.8, "gold share is -1"),
        ("linear", 0, 0.8, "rounds is 0"),
        ("linear", 1, 1.5, "floor is 1.5"),
    ],
)
def test_what_is_no_schedule_is_told(share, rounds, floor, told):
    with pytest.raises(InputInvalid, match=told):
        gold_shares(share, rounds, floor=floor)
