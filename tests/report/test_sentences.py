"""Numbers and verdicts in words: the notation of charts, and honest about what has no end."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zeitgeist.evidence import Claim, Metric, Verdict
from zeitgeist.report.sentences import MINUS, claimed, finding, in_points, number

ACCURACY = Metric("accuracy", "accuracy", "higher", ".1%")
LOSS = Metric("loss", "loss", "lower", ".3f")


def verdict(
    outcome: str = "holds",
    difference: float = 0.031,
    low: float = 0.012,
    high: float = 0.05,
    seeds: int = 5,
    reason: str = "",
) -> Verdict:
    return Verdict("c", "", outcome, difference, low, high, 0.01, seeds, seeds, 0, reason)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (verdict(), "holds: difference +0.031 (0.012 to 0.050), five seeds"),
        (
            verdict("does not hold", -0.004, -0.01, 0.002, 20),
            f"does not hold: difference {MINUS}0.004 ({MINUS}0.010 to 0.002), 20 seeds",
        ),
        (
            verdict("undecided", low=-math.inf, high=math.inf, seeds=3, reason="3 seeds are few"),
            "undecided: difference +0.031, no interval from three seeds",
        ),
        (
            verdict("undecided", high=math.inf, seeds=4, reason="4 seeds are too few"),
            "undecided: difference +0.031 (0.012 or more), four seeds; 4 seeds are too few",
        ),
        (
            verdict("undecided", low=-math.inf, seeds=4),
            "undecided: difference +0.031 (0.050 or less), four seeds",
        ),
        (
            verdict("undecided", math.nan, -math.inf, math.inf, 0, "nothing was measured"),
            "undecided: nothing was measured",
        ),
    ],
)
def test_a_finding_says_the_verdict_the_difference_and_what_it_rests_on(
    given: Verdict, said: str
) -> None:
    assert finding(given, LOSS) == said


def test_two_seeds_have_no_interval_whatever_their_items_say() -> None:
    two = verdict("undecided", seeds=2, reason="2 seeds cannot tell")
    assert finding(two, LOSS) == "undecided: difference +0.031, no interval from two seeds"


def test_differences_of_shares_are_percentage_points() -> None:
    assert in_points(verdict(), ACCURACY) == ("+3.1 points", "1.2 to 5.0")


def test_differences_too_small_for_the_metrics_digits_are_still_told() -> None:
    small = verdict(difference=3.1e-6, low=1.2e-6, high=5e-6)
    assert in_points(small, LOSS) == ("+3.1e-06", "1.2e-06 to 5e-06")


@pytest.mark.parametrize(
    ("direction", "margin", "said"),
    [
        ("greater", 0.02, "above +2.0 points"),
        ("less", 0.02, f"below {MINUS}2.0 points"),
        ("equal", 0.02, "within ±2.0 points"),
        ("greater", 0.0, "above zero"),
        ("less", 0.0, "below zero"),
        ("equal", 0.0004, "within ±0.04 points"),
    ],
)
def test_what_is_claimed_is_said_with_its_margin(direction: str, margin: float, said: str) -> None:
    claim = Claim("c", "", "", "accuracy", {}, None, direction, margin)  # type: ignore[arg-type]
    assert claimed(claim, ACCURACY) == said


@pytest.mark.parametrize(
    ("value", "d3", "said"),
    [
        (1234.5, ",.0f", "1,234"),
        (1234.0, ",d", "1,234"),
        (0.5, ".0%", "50%"),
        (1500.0, ".3s", "1.50k"),
        (0.0002, ".2s", "200µ"),
        (1.5, ".3~f", "1.5"),
        (0.000012, ".2e", "1.20e-05"),
        (2.0, "", "2"),
        (2.5, "no format", "2.5"),
        (0.0, ".2s", "0"),
        (-0.0004, ".3f", "0.000"),
        (-math.inf, ".3f", f"{MINUS}∞"),
    ],
)
def test_numbers_are_written_as_charts_write_them(value: float, d3: str, said: str) -> None:
    assert number(value, d3) == said


@given(st.floats(), st.text("+,.0123456789~efgsdpr%", max_size=6), st.booleans())
def test_any_number_in_any_notation_can_be_said(value: float, d3: str, signed: bool) -> None:
    text = number(value, d3, signed=signed)
    assert text and "-0.0" not in text
