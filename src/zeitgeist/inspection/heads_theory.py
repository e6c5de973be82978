"""Why sinks grow and values drain: the one-layer model that can be solved.

Guo, Pai, Bai, Jiao, Jordan, Mei, arXiv 2410.13835. A token v that is no trigger, bigrams P already
known, logit alpha_v on BOS and 0 on everything else, value beta of BOS, value xi_k e_k of a token
k, which has been seen W_k times (W in all):

    q_v = softmax(log p_v + (e^{alpha_v} beta + sum_k W_k xi_k e_k) / (e^{alpha_v} + W))
    loss = sum_v pi_v KL(p_v || q_v)

Attention can only do harm here. With a constant beta the loss falls as e^{-2 alpha}, so gradient
flow gives alpha(t) = (1/2) log t + O(1): the sink forms, slowly. With alpha fixed the loss is
convex in beta, whose best value cancels what the others add: the value drains.

Letters: v characters.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def predicted(
    log_p: Float[Tensor, "v v"],
    alpha: Float[Tensor, " v"],
    beta: Float[Tensor, " v"],
    others: Float[Tensor, " v"],
    total: float,
) -> Float[Tensor, "v v"]:
    """log q_v, a row per token v.

    Parameters
    ----------
    log_p
        log P.
    alpha, beta
        See above.
    others
        W_k xi_k.
    total
        W.

    Examples
    --------
    >>> log_p = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]]))
    >>> q = predicted(log_p, torch.zeros(2), torch.ones(2), torch.ones(2), 3.0)
    >>> bool(torch.allclose(q, log_p))  # what is added is constant
    True
    """
    weight = alpha.exp()[:, None]
    return (log_p + (weight * beta + others) / (weight + total)).log_softmax(-1)


def simplified_loss(
    pi: Float[Tensor, " v"],
    log_p: Float[Tensor, "v v"],
    alpha: Float[Tensor, " v"],
    beta: Float[Tensor, " v"],
    others: Float[Tensor, " v"],
    total: float,
) -> Float[Tensor, ""]:
    """sum_v pi_v KL(p_v || q_v); 0 exactly where attention does no harm."""
    q = predicted(log_p, alpha, beta, others, total)
    return (pi * (log_p.exp() * (log_p - q)).sum(-1)).sum()


def alpha_gradient(
    pi: Float[Tensor, " v"],
    log_p: Float[Tensor, "v v"],
    alpha: Float[Tensor, " v"],
    beta: Float[Tensor, " v"],
    others: Float[Tensor, " v"],
    total: float,
) -> Float[Tensor, " v"]:
    """d loss / d alpha_v = pi_v e^{alpha_v} (q_v - p_v).(W beta - others) / (e^{alpha_v} + W)^2."""
    q = predicted(log_p, alpha, beta, others, total).exp()
    weight = alpha.exp()
    inner = ((q - log_p.exp()) * (total * beta - others)).sum(-1)
    return pi * weight * inner / (weight + total) ** 2


def alpha_flow(
    pi: Float[Tensor, " v"],
    log_p: Float[Tensor, "v v"],
    beta: Float[Tensor, " v"],
    others: Float[Tensor, " v"],
    total: float,
    *,
    until: float,
    step: float = 0.01,
) -> tuple[Float[Tensor, " t"], Float[Tensor, "t v"]]:
    """Gradient flow of alpha from 0 with beta fixed, in logarithmic time.

    Parameters
    ----------
    pi, log_p, beta, others, total
        See `simplified_loss`.
    until
        log t at the end; it begins at t = 1.
    step
        In log t.

    Returns
    -------
    tuple
        log t, and alpha at each.

    Examples
    --------
    >>> log_p = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64))
    >>> pi = torch.tensor([0.4, 0.6], dtype=torch.float64)
    >>> others = torch.tensor([3.0, 1.0], dtype=torch.float64)
    >>> log_t, alpha = alpha_flow(pi, log_p, 0 * pi, others, 2.0, until=20.0)
    >>> [round(float(x), 2) for x in (alpha[-1] - alpha[-500]) / (log_t[-1] - log_t[-500])]
    [0.5, 0.5]
    """
    count = max(1, math.ceil(until / step))
    size = until / count
    alpha = torch.zeros_like(pi)
    found = [alpha]
    for i in range(count):
        # Midpoint rule for d alpha / d log t = -t d loss / d alpha.
        first = -math.exp(i * size) * alpha_gradient(pi, log_p, alpha, beta, others, total)
        middle = alpha + size / 2 * first
        slope = -math.exp((i + 0.5) * size) * alpha_gradient(pi, log_p, middle, beta, others, total)
        alpha = alpha + size * slope
        found.append(alpha)
    return torch.arange(count + 1, dtype=pi.dtype) * size, torch.stack(found)


def best_beta(
    pi: Float[Tensor, " v"],
    log_p: Float[Tensor, "v v"],
    alpha: Float[Tensor, " v"],
    others: Float[Tensor, " v"],
    total: float,
    *,
    steps: int = 50,
) -> Float[Tensor, " v"]:
    """The value of BOS that minimises the loss with alpha fixed, by Newton's method.

    A constant added to beta changes nothing; the answer sums to 0.

    Examples
    --------
    >>> log_p = torch.log(torch.tensor([[0.25, 0.75], [0.5, 0.5]], dtype=torch.float64))
    >>> pi, same = torch.tensor([[0.4, 0.6], [1.0, 1.0]], dtype=torch.float64)
    >>> others = torch.tensor([3.0, 1.0], dtype=torch.float64)
    >>> [round(float(x), 6) for x in best_beta(pi, log_p, same, others, 2.0)]  # -(3 - 2) / e, ...
    [-0.367879, 0.367879]
    """
    beta = torch.zeros_like(pi)
    share = alpha.exp() / (alpha.exp() + total)
    p = log_p.exp()
    for _ in range(steps):
        q = predicted(log_p, alpha, beta, others, total).exp()
        gradient = ((pi * share)[:, None] * (q - p)).sum(0)
        hessian = torch.diag(((pi * share**2)[:, None] * q).sum(0)) - torch.einsum(
            "v,vi,vj->ij", pi * share**2, q, q
        )
        move = torch.linalg.pinv(hessian, hermitian=True) @ gradient
        before = simplified_loss(pi, log_p, alpha, beta, others, total)
        scale = 1.0
        while scale > 1e-6 and bool(
            simplified_loss(pi, log_p, alpha, beta - scale * move, others, total) > before
        ):
            scale /= 2
        beta = beta - scale * move
        if float(move.abs().max()) < 1e-12:
            break
    return beta - beta.mean()
