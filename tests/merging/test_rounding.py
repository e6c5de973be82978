"""One rounding from float64, against exact rational arithmetic."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.rounding import round_once, round_to_odd

HALF = {torch.bfloat16: (8, -126, 127), torch.float16: (11, -14, 15)}
FORMATS = {**HALF, torch.float32: (24, -126, 127)}


def nearest(value: float, precision: int, lowest: int, highest: int) -> float:
    """The nearest number with ``precision`` bits, ties to even, in rational arithmetic."""
    exact = abs(Fraction(value))
    exponent = max(lowest, math.frexp(float(exact))[1] - 1)
    step = Fraction(2) ** (exponent - precision + 1)
    steps, rest = divmod(exact, step)
    if 2 * rest > step or (2 * rest == step and steps % 2):
        steps += 1
    rounded = steps * step
    if rounded >= Fraction(2) ** (highest + 1):
        return math.copysign(math.inf, value)
    return math.copysign(float(rounded), value)


def every_finite(dtype: torch.dtype) -> Tensor:
    """All numbers of a 16-bit format from 0 up, as float64, in order."""
    bits = torch.arange(2**15, dtype=torch.int32).to(torch.int16)
    values = bits.view(dtype).to(torch.float64)
    return values[values.isfinite()]


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_every_midpoint_goes_to_even_and_its_neighbours_go_home(
    dtype: torch.dtype, sign: float
) -> None:
    values = every_finite(dtype)
    low, high = values[:-1], values[1:]
    middle = (low + high) / 2
    even = torch.where(torch.arange(len(low)) % 2 == 0, low, high)
    below = torch.from_numpy(np.nextafter(middle.numpy(), -np.inf))
    above = torch.from_numpy(np.nextafter(middle.numpy(), np.inf))
    for given_, expected in ((middle, even), (below, low), (above, high), (values, values)):
        rounded = round_once(sign * given_, dtype)
        assert rounded.dtype == dtype
        assert torch.equal(rounded.to(torch.float64), sign * expected)


@pytest.mark.parametrize("dtype", HALF)
def test_the_plain_cast_gets_some_of_these_wrong(dtype: torch.dtype) -> None:
    values = every_finite(dtype)
    middle = (values[:-1] + values[1:]) / 2
    above = torch.from_numpy(np.nextafter(middle.numpy(), np.inf))
    assert not torch.equal(above.to(dtype), round_once(above, dtype))


@pytest.mark.parametrize("dtype", FORMATS)
@given(value=st.floats(allow_nan=False, allow_infinity=False))
@settings(deadline=None, max_examples=300)
def test_any_float64_rounds_as_in_rational_arithmetic(dtype: torch.dtype, value: float) -> None:
    rounded = round_once(torch.tensor([value], dtype=torch.float64), dtype).item()
    expected = nearest(value, *FORMATS[dtype])
    assert (rounded, math.copysign(1, rounded)) == (expected, math.copysign(1, expected))


@pytest.mark.parametrize("dtype", FORMATS)
@given(
    exponent=st.integers(-160, 130),
    leading=st.integers(0, 2**27 - 1),
    nudge=st.sampled_from([-1, 0, 1]),
)
@settings(deadline=None, max_examples=300)
def test_values_close_to_midpoints_round_as_in_rational_arithmetic(
    dtype: torch.dtype, exponent: int, leading: int, nudge: int
) -> None:
    # few leading bits make midpoints of all three formats; the nudge is one unit of float64
    value = math.ldexp(1 + leading / 2**27, exponent)
    value = math.nextafter(value, math.inf * nudge) if nudge else value
    rounded = round_once(torch.tensor([value], dtype=torch.float64), dtype).item()
    assert rounded == nearest(value, *FORMATS[dtype])


@pytest.mark.parametrize("dtype", [*FORMATS, torch.float64])
def test_nan_infinity_and_signed_zero_survive(dtype: torch.dtype) -> None:
    given_ = torch.tensor([math.nan, math.inf, -math.inf, -0.0], dtype=torch.float64)
    rounded = round_once(given_, dtype)
    assert rounded[0].isnan()
    assert rounded[1:].tolist() == [math.inf, -math.inf, 0.0]
    assert rounded[3].signbit()


@pytest.mark.parametrize(("dtype", "largest"), [(torch.float16, 65504.0), (torch.bfloat16, None)])
def test_overflow_starts_half_a_unit_beyond_the_largest(
    dtype: torch.dtype, largest: float | None
) -> None:
    top = torch.finfo(dtype).max if largest is None else largest
    unit = top - every_finite(dtype)[-2].item()
    limit = torch.tensor([top + unit / 2], dtype=torch.float64)
    below = torch.from_numpy(np.nextafter(limit.numpy(), 0.0))
    assert round_once(limit, dtype).isinf().all()
    assert round_once(below, dtype).item() == top


def test_round_to_odd_keeps_what_is_exact_and_marks_what_is_not() -> None:
    exact = torch.tensor([1.0, -0.0, 2.0**-149], dtype=torch.float64)
    assert torch.equal(round_to_odd(exact).to(torch.float64), exact)
    inexact = torch.tensor([1.0 + 2.0**-50, 1e300, 1e-300], dtype=torch.float64)
    assert (round_to_odd(inexact).view(torch.int32) & 1).all()


def test_other_dtypes_are_refused() -> None:
    with pytest.raises(InputInvalid, match="int8"):
        round_once(torch.zeros(1, dtype=torch.float64), torch.int8)
