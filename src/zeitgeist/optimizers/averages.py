"""Adam, Shampoo and Prodigy with their averages, as pure updates of their state.

Without averages (betas 0, eps 0) each is steepest descent under a norm of
`zeitgeist.optimizers.norms`: Adam and Prodigy under *max_entry*, Shampoo under *spectral*.

    Adam      m = b1 m + (1 - b1) G;  v = b2 v + (1 - b2) G.G
              W -= lr (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
    Shampoo   L = b2 L + (1 - b2) G G';  R = b2 R + (1 - b2) G' G   (b2 = 1: sums, L += G G')
              W -= lr L^(-1/4) m R^(-1/4), powers of what is not 0
    Prodigy   s = b3 s + (d / d0) d lr G;  r = b3 r + (d / d0) d lr <G, w0 - w>;  b3 = sqrt(b2)
              m = b1 m + (1 - b1) d G;  v = b2 v + (1 - b2) d^2 G.G
              w -= d lr m / (sqrt v + d eps);  d <- max(d, r / |s|_1)

Kingma, Ba, arXiv 1412.6980; Gupta, Koren, Singer, arXiv 1802.09568; Mishchenko, Defazio,
arXiv 2306.06101. Averages m, v, L, R and s are changed in place; gradients are not.
"""

from collections.abc import MutableMapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.optimizers.orthogonalise import wide

AVERAGED = ("adam", "shampoo", "prodigy")
FIRST_STEP = 1e-6
"""d_0 of Prodigy."""


def ratio(above: Tensor, below: Tensor) -> Tensor:
    """above / below, and 0 where both are 0: without eps there is no step without a gradient."""
    return above / torch.where(below > 0, below, 1.0)


def adam(
    g: Float[Tensor, "..."],
    state: MutableMapping[str, Any],
    betas: tuple[float, float],
    eps: float,
) -> Float[Tensor, "..."]:
    """The direction of Adam; ``state`` has ``step``, ``exp_avg``, ``exp_avg_sq``."""
    b1, b2 = betas
    if not state:
        state.update(
            {
                "step": torch.zeros((), dtype=torch.float32, device=g.device),
                "exp_avg": torch.zeros_like(g),
                "exp_avg_sq": torch.zeros_like(g),
            }
        )
    m, v, t = state["exp_avg"], state["exp_avg_sq"], state["step"]
    t += 1
    m.lerp_(g, 1 - b1)
    v.mul_(b2).addcmul_(g, g, value=1 - b2)
    count = t.double() if t.device.type != "mps" else t
    first, second = 1 - b1**count, (1 - b2**count).sqrt()
    found: Tensor = ratio(m, v.sqrt() / second.to(v.dtype) + eps) / first.to(m.dtype)
    return found


def shampoo(
    g: Float[Tensor, "m n"],
    state: MutableMapping[str, Any],
    betas: tuple[float, float],
    eps: float,
) -> Float[Tensor, "m n"]:
    """The direction of Shampoo; ``state`` has ``exp_avg``, ``left`` and ``right``.

    ``eps`` is added to L and R. Without it what is 0 in them stays 0: the inverse is Moore and
    Penrose's.
    """
    b1, b2 = betas
    if not state:
        m, n = g.shape
        state.update(
            {
                "exp_avg": torch.zeros_like(g),
                "left": g.new_zeros(m, m),
                "right": g.new_zeros(n, n),
            }
        )
    average, left, right = state["exp_avg"], state["left"], state["right"]
    average.lerp_(g, 1 - b1)
    new = 1.0 if b2 == 1 else 1 - b2
    left.mul_(b2).addmm_(g, g.mT, alpha=new)
    right.mul_(b2).addmm_(g.mT, g, alpha=new)
    x = average.to(wide(g.dtype))
    found: Tensor = inverse_root(left, 4, eps) @ x @ inverse_root(right, 4, eps)
    return found.to(g.dtype)


def inverse_root(a: Float[Tensor, "k k"], p: int, eps: float) -> Float[Tensor, "k k"]:
    """(A + eps I)^(-1/p) of a symmetric A; eigenvalues that are 0 up to rounding are left out."""
    x = a.to(wide(a.dtype))
    values, vectors = torch.linalg.eigh(x + eps * torch.eye(len(x), dtype=x.dtype, device=x.device))
    # Squares: what was rounded in G is relative to the largest eigenvalue here.
    least = 10 * len(x) * torch.finfo(x.dtype).eps * values[-1:].clamp(min=0)
    kept = values > least
    powers = torch.where(kept, torch.where(kept, values, 1.0) ** (-1 / p), 0.0)
    found: Tensor = (vectors * powers) @ vectors.mT
    return found


def prodigy(
    weight: Float[Tensor, "..."],
    g: Float[Tensor, "..."],
    state: MutableMapping[str, Any],
    d: Tensor,
    lr: float | Tensor,
    betas: tuple[float, float],
    eps: float,
) -> tuple[Float[Tensor, "..."], Tensor, Tensor]:
    """The update of Prodigy (times -1), what r grows by, and |s|_1.

    ``state`` has ``start`` (w0), ``exp_avg``, ``exp_avg_sq`` and ``sum``; ``d`` is before the step.
    """
    b1, b2 = betas
    if not state:
        state.update(
            {
                "start": weight.detach().clone(),
                "exp_avg": torch.zeros_like(g),
                "exp_avg_sq": torch.zeros_like(g),
                "sum": torch.zeros_like(g),
            }
        )
    gained = d / FIRST_STEP * d * lr
    m, v, s = state["exp_avg"], state["exp_avg_sq"], state["sum"]
    scaled = d.to(g.dtype) * g
    s.mul_(b2**0.5).add_(gained.to(g.dtype) * g)
    m.mul_(b1).add_(scaled, alpha=1 - b1)
    v.mul_(b2).addcmul_(scaled, scaled, value=1 - b2)
    step = ratio(m, v.sqrt() + d.to(g.dtype) * eps) * (d * lr).to(g.dtype)
    grown = gained * (g.double() * (state["start"] - weight).double()).sum()
    return step, grown, s.abs().sum().double()
