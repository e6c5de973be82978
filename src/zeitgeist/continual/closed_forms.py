"""Directions from one reference gradient, in closed form: A-GEM, MEGA-I, MEGA-II.

    A-GEM     z = g - (<g, r> / <r, r>) r   where <g, r> < 0, else g
    MEGA-I    z = g + (l_r / l_g) r         where l_g > eps, else r
    MEGA-II   z = |g| * direction of  g / |g| + (l_r / l_g) r / |r|,  no further than r itself

with g, l_g gradient and loss of the current batch and r, l_r those of a batch of memories of all
old tasks. MEGA-II is published as a search for the angle theta in [0, pi/2] that maximises
l_g cos(theta) + l_r cos(phi - theta), phi the angle between g and r; its solution is

    theta = clip(atan2(q sin(phi), 1 + q cos(phi)), 0, pi/2),   q = l_r / l_g

Chaudhry, Ranzato, Rohrbach, Elhoseiny: "Efficient Lifelong Learning with A-GEM", arXiv 1812.00420.
Guo, Liu, Yang, Rosing: "Improved Schemes for Episodic Memory-based Lifelong Learning", arXiv
1909.11763.

All that is needed of the vectors are three inner products, so these return coefficients (a, b) of
z = a g + b r; S: any number of leading dimensions.
"""

from math import pi
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

EPSILON = 1e-10
"""Losses below it count as none, as in MEGA's code."""


class Mix(NamedTuple):
    """z = a g + b r."""

    a: Float[Tensor, "*S"]
    b: Float[Tensor, "*S"]


def agem(rr: Float[Tensor, "*S"], gr: Float[Tensor, "*S"]) -> Mix:
    """A-GEM's coefficients.

    Parameters
    ----------
    rr, gr
        <r, r> and <g, r>.

    Examples
    --------
    >>> agem(torch.tensor(4.0), torch.tensor(-2.0)).b.item()
    0.5
    """
    there = rr > 0
    b = torch.where(there, (-gr / rr.where(there, torch.ones_like(rr))).clamp(min=0.0), 0.0)
    return Mix(torch.ones_like(b), b)


def mega_one(loss: Float[Tensor, "*S"], reference_loss: Float[Tensor, "*S"]) -> Mix:
    """MEGA-I's coefficients.

    Parameters
    ----------
    loss, reference_loss
        l_g and l_r.

    Examples
    --------
    >>> mega_one(torch.tensor(2.0), torch.tensor(1.0)).b.item()
    0.5
    """
    there = loss > EPSILON
    ratio = reference_loss / loss.where(there, torch.ones_like(loss))
    return Mix(there.to(ratio.dtype), torch.where(there, ratio, torch.ones_like(ratio)))


def mega_two(
    gg: Float[Tensor, "*S"],
    rr: Float[Tensor, "*S"],
    gr: Float[Tensor, "*S"],
    loss: Float[Tensor, "*S"],
    reference_loss: Float[Tensor, "*S"],
) -> Mix:
    """MEGA-II's coefficients.

    Parameters
    ----------
    gg, rr, gr
        <g, g>, <r, r> and <g, r>.
    loss, reference_loss
        l_g and l_r.

    Examples
    --------
    >>> one, none = torch.tensor(1.0), torch.tensor(0.0)
    >>> [round(float(c), 6) for c in mega_two(one, one, none, one, one)]
    [0.707107, 0.707107]
    """
    sizes = (gg * rr).sqrt()
    there = sizes > 0
    cosine = (gr / sizes.where(there, torch.ones_like(sizes))).clamp(-1.0, 1.0)
    phi = cosine.acos()
    # atan2 with both losses on their sides needs no division: a loss of zero is no special case.
    theta = torch.atan2(reference_loss * phi.sin(), loss + reference_loss * cosine).clamp(0, pi / 2)
    # z / |g| = cos(theta) g / |g| + sin(theta) e, with e the part of r across g.
    across = phi.sin()
    turned = there & (across > 1e-7)
    safe = across.where(turned, torch.ones_like(across))
    b = torch.where(turned, theta.sin() / safe, 0.0)
    a = torch.where(turned, theta.cos() - b * cosine, torch.ones_like(b))
    return Mix(a, b * (gg / rr.where(there, torch.ones_like(rr))).sqrt())
