"""Rounding float64 to the dtype of a checkpoint, once.

``tensor64.to(torch.bfloat16)`` rounds twice: to float32, then to bfloat16. When the first step
lands exactly between two bfloat16 numbers, the second breaks the tie without knowing on which side
the value was. Rounding the first step *to odd* instead (truncate, and if anything was lost set the
last bit) keeps that knowledge: the last bit of the float32 says "not exactly here", and the second
rounding is then the correct one (Boldo and Melquiond, "Emulation of FMA and correctly rounded
sums: proved algorithms using rounding to odd", IEEE Trans. Computers 2008; it needs two bits more
than the target has, float32 has 16 more than bfloat16 and 13 more than float16).
"""

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from zeitgeist.errors import InputInvalid

ROUNDABLE = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def round_to_odd(values: Float64[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Float64 to float32, truncated, with the last bit set if anything was lost.

    Infinities and NaN stay what they are; a finite value beyond float32 becomes the largest
    finite float32.

    Examples
    --------
    >>> round_to_odd(torch.tensor([1.0, 1.0 + 2.0**-40], dtype=torch.float64)).tolist()
    [1.0, 1.0000001192092896]
    """
    nearest = values.to(torch.float32)
    back = nearest.to(torch.float64)
    lost = (back != values) & ~values.isnan()
    bits = nearest.view(torch.int32)
    # one step towards zero where rounding to nearest went away from it
    bits = bits - (lost & (back.abs() > values.abs())).to(torch.int32)
    return (bits | lost.to(torch.int32)).view(torch.float32)


def round_once(values: Float64[Tensor, "*shape"], dtype: torch.dtype) -> Float[Tensor, "*shape"]:
    """The nearest number of ``dtype``, ties to even, in a single rounding.

    Parameters
    ----------
    values
        Float64 values.
    dtype
        bfloat16, float16, float32 or float64.

    Returns
    -------
    torch.Tensor
        The same shape in ``dtype``. Beyond the largest finite number: infinity, as IEEE 754 rounds.

    Raises
    ------
    InputInvalid
        Any other dtype.

    Examples
    --------
    Just above the middle of 1 and the next bfloat16, so that rounding up is right:

    >>> above = torch.tensor([1.0 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    >>> round_once(above, torch.bfloat16).item(), above.to(torch.bfloat16).item()
    (1.0078125, 1.0)
    """
    if dtype not in ROUNDABLE:
        raise InputInvalid(
            f"cannot round to {dtype}", mend="give bfloat16, float16, float32 or float64"
        )
    if dtype in (torch.float64, torch.float32):
        return values.to(dtype)
    return round_to_odd(values).to(dtype)
