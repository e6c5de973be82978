"""U V' of a matrix G = U S V': exactly, or by matrix products alone.

With X_0 = G / |G|_F, transposed so that rows are not more than columns, an odd polynomial

    X <- a X + b (X X') X + c (X X')^2 X

acts on every singular value and leaves U and V as they are.

    exact           SVD; singular values that are 0 up to rounding stay 0
    quintic         (15/8, -10/8, 3/8): converges; small singular values grow 1.875 times per step
    fast            Muon's (3.4445, -4.7750, 2.0315): 5 steps, in bfloat16, ends in [.68, 1.13]
    polar_express   per step the (a, b, c) of least largest error on what the steps before left:
                    Amsel, Persson, Musco, Gower: "The Polar Express", arXiv 2505.16932

m, n rows and columns; further dimensions in front are a batch
"""

import math
from collections.abc import Sequence
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean

METHODS = ("exact", "quintic", "fast", "polar_express")
Coefficients = tuple[float, float, float]

CONVERGENT: Coefficients = (15 / 8, -10 / 8, 3 / 8)
TUNED: Coefficients = (3.4445, -4.7750, 2.0315)
QUINTIC_STEPS, FAST_STEPS, EXPRESS_STEPS = 24, 5, 5
SMALLEST = 1e-7
"""What a norm is not taken smaller than."""
LOWER = 1e-3
"""The singular value, relative to the Frobenius norm, that Polar Express is made for."""
ROOM = 1.01
"""Polar Express leaves so much room above 1 for rounding in half precision."""


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype norms are computed in: float32 for what is narrower."""
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def orthogonalise(
    g: Float[Tensor, "... m n"],
    method: str = "exact",
    *,
    dtype: torch.dtype | None = None,
) -> Float[Tensor, "... m n"]:
    """U V' of every matrix of a batch.

    Parameters
    ----------
    g
        Matrices.
    method
        One of `METHODS`.
    dtype
        What the products are taken in; None: float32 or wider, and bfloat16 for ``"fast"`` and
        ``"polar_express"``. The SVD is never narrower than float32.

    Returns
    -------
    Tensor
        In the dtype of ``g``. A matrix of zeros stays one.

    Raises
    ------
    InputInvalid
        No such method.

    Examples
    --------
    >>> g = torch.tensor([[0.0, 2.0], [-3.0, 0.0]])
    >>> orthogonalise(g)
    tensor([[ 0.,  1.],
            [-1.,  0.]])
    """
    if method == "exact":
        return polar(g)
    if method == "quintic":
        steps = [CONVERGENT] * QUINTIC_STEPS
        return newton_schulz(g, steps, dtype=dtype or wide(g.dtype))
    if method == "fast":
        return newton_schulz(g, [TUNED] * FAST_STEPS, dtype=dtype or torch.bfloat16)
    if method == "polar_express":
        steps = list(polar_express_coefficients())
        return newton_schulz(g, steps, dtype=dtype or torch.bfloat16)
    raise InputInvalid(f"orthogonalise is {method!r}", mend=did_you_mean(method, METHODS))


def polar(g: Float[Tensor, "... m n"]) -> Float[Tensor, "... m n"]:
    """U_r V_r' from the SVD, r being the numerical rank."""
    u, s, vt = torch.linalg.svd(g.to(wide(g.dtype)), full_matrices=False)
    least = max(g.shape[-2:]) * torch.finfo(s.dtype).eps * s.amax(-1, keepdim=True)
    kept = (s > least).to(s.dtype)
    found: Tensor = (u * kept[..., None, :]) @ vt
    return found.to(g.dtype)


def newton_schulz(
    g: Float[Tensor, "... m n"],
    steps: Sequence[Coefficients],
    *,
    dtype: torch.dtype,
) -> Float[Tensor, "... m n"]:
    """One odd quintic after the other; three matrix products each.

    Parameters
    ----------
    g
        Matrices.
    steps
        (a, b, c) of every step.
    dtype
        What the products are taken in.
    """
    tall = g.shape[-2] > g.shape[-1]
    x = g.to(dtype)
    x = x.mT if tall else x
    # The norm of a huge matrix would be lost in bfloat16; torch's Muon rounds it once, so do we.
    size = torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True, dtype=wide(dtype)).to(dtype)
    x = x / size.clamp(min=SMALLEST)
    for a, b, c in steps:
        gram = x @ x.mT
        x = _fused(x, _fused(gram, gram, gram, b, c), x, a)
    return (x.mT if tall else x).to(g.dtype)


def _fused(start: Tensor, one: Tensor, other: Tensor, beta: float, alpha: float = 1.0) -> Tensor:
    """beta start + alpha one other, in one pass."""
    if start.ndim == 2:
        return torch.addmm(start, one, other, beta=beta, alpha=alpha)
    batch = start.shape[:-2]
    flat = [t.reshape(-1, *t.shape[-2:]) for t in (start, one, other)]
    return torch.baddbmm(flat[0], flat[1], flat[2], beta=beta, alpha=alpha).view(
        *batch, *start.shape[-2:]
    )


@cache
def polar_express_coefficients(
    lower: float = LOWER, steps: int = EXPRESS_STEPS, room: float = ROOM
) -> tuple[Coefficients, ...]:
    """The best quintic for the singular values that the steps before have left, step by step.

    On [l, u] the p(x) = a x + b x^3 + c x^5 that minimises E = max |1 - p(x)| maps it to
    [1 - E, 1 + E], where the next one starts.

    Parameters
    ----------
    lower
        l of the first step; u is 1.
    steps
        How many.
    room
        Every polynomial but the last is p(x / room), made for [l / room, u]: rounding may push a
        singular value above u, where p would run away.

    Examples
    --------
    >>> [round(a, 2) for a, _, _ in polar_express_coefficients(room=1.0)][:2]
    [8.47, 4.18]
    """
    if not 0 < lower < 1 or steps < 1 or room < 1:
        raise InputInvalid(
            f"lower is {lower}, steps is {steps}, room is {room}",
            mend="give 0 < lower < 1, at least one step, and room of at least 1",
        )
    made: list[Coefficients] = []
    low, high = lower, 1.0
    for step in range(steps):
        r = room if step < steps - 1 else 1.0
        (a, b, c), error = best_quintic(low / r, high)
        low, high = 1 - error, 1 + error
        made.append((a / r, b / r**3, c / r**5))
    return tuple(made)


def best_quintic(low: float, high: float) -> tuple[Coefficients, float]:
    """The odd quintic nearest to 1 on [low, high], and its largest error.

    Remez' exchange: 1 - p alternates between +E and -E at low, two points between, and high.
    """
    if high - low < 1e-4 * high:  # too short to tell the four points apart: Taylor at its middle
        middle = (low + high) / 2
        a, b, c = (k / middle**p for k, p in zip(CONVERGENT, (1, 3, 5), strict=True))
        return (a, b, c), max(abs(1 - (a * x + b * x**3 + c * x**5)) for x in (low, high))
    q, r = low + (high - low) / 4, low + 3 * (high - low) / 4
    error, before = 0.0, math.inf
    a = b = c = 0.0
    for _ in range(100):
        points = torch.tensor([low, q, r, high], dtype=torch.float64)
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
        rows = torch.stack([points, points**3, points**5, signs], dim=1)
        a, b, c, error = torch.linalg.solve(rows, torch.ones(4, dtype=torch.float64)).tolist()
        if abs(error - before) <= 1e-14:
            break
        before = error
        # p'(x) = a + 3 b x^2 + 5 c x^4 vanishes where 1 - p is largest inside.
        root = math.sqrt(max(9 * b * b - 20 * a * c, 0.0))
        q, r = (math.sqrt((-3 * b - side * root) / (10 * c)) for side in (1, -1))
    return (a, b, c), abs(error)
