"""Measures of attention sinks, drained values, residual peaks and idle heads, on tensors.

Guo, Pai, Bai, Jiao, Jordan, Mei: "Active-dormant attention heads: mechanistically demystifying
extreme-token phenomena in LLMs", arXiv 2410.13835. With p(t, s) the attention weight of query t on
key s, in one head:

    received(s)      = sum over t > s of p(t, s)
    sink mass A      = sum over sinks s of received(s) / (n - 1)
    D(t, s)          = log p(t, s) - mean over j <= t, j != s of log p(t, j)
    row entropy(t)   = entropy of p(t, .) / log(t + 1)
    column entropy(s)= entropy of p(., s) / sum of it, / log n
    value norm(s)    = ||W_O^h v_s||

For softmax attention log p differs from the logit by what is the same for all keys, so D is a
difference of logits. The value's norm is taken after the head's slice of the output projection:
before it, it depends on the basis, and means something else where key heads are shared.

Letters: b rows, h heads, r key heads, n tokens, d head width, c model width.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

Kind = Literal["active", "dormant", "mixed"]

COORDINATES = 4
"""Of every token of the residual stream, the largest that are looked at."""


def received(pattern: Float[Tensor, "b h n n"]) -> Float[Tensor, "b h n"]:
    """Attention that every token gets from those after it.

    Examples
    --------
    >>> received(torch.ones(1, 1, 3, 3).tril() / torch.tensor([1.0, 2.0, 3.0])[:, None])[0, 0]
    tensor([0.8333, 0.3333, 0.0000])
    """
    return pattern.float().tril(-1).sum(2)


def relative_logits(pattern: Float[Tensor, "b h n n"]) -> Float[Tensor, "b h n"]:
    """D(t, s), summed over the queries t > s.

    Weights that have underflowed count as the smallest number there is.

    Examples
    --------
    >>> p = torch.tensor([[1.0, 0.0], [0.8, 0.2]])[None, None]
    >>> round(float(relative_logits(p)[0, 0, 0]), 4) == round(math.log(4), 4)
    True
    """
    kind = torch.finfo(pattern.dtype)
    # Half precision goes on below its smallest normal number.
    least = max(kind.tiny * kind.eps, torch.finfo(torch.float32).tiny)
    logs = pattern.float().clamp_min(least).log().tril()
    n = logs.shape[-1]
    others = torch.arange(n, device=logs.device).clamp_min(1)[:, None]
    mean = (logs.sum(-1, keepdim=True) - logs) / others
    return (logs - mean).tril(-1).sum(2)


def row_entropy(pattern: Float[Tensor, "b h n n"]) -> Float[Tensor, "b h n"]:
    """Entropy of every query's weights, 1 where they are all the same; 0 for the first query.

    Examples
    --------
    >>> row_entropy(torch.ones(1, 1, 2, 2).tril() / torch.tensor([1.0, 2.0])[:, None])[0, 0]
    tensor([0., 1.])
    """
    places = torch.arange(pattern.shape[-1], device=pattern.device)
    made: Tensor = _entropy(pattern.float(), -1) / (places + 1).float().log().clamp_min(1e-9)
    return made


def column_entropy(pattern: Float[Tensor, "b h n n"]) -> Float[Tensor, "b h n"]:
    """Entropy of the weights that every key gets, over its queries; 1: from all alike.

    Examples
    --------
    >>> column_entropy(torch.tensor([[1.0, 0.0], [1.0, 0.0]])[None, None])[0, 0]
    tensor([1., 0.])
    """
    wide = pattern.float()
    total = wide.sum(2, keepdim=True)
    shares = wide / torch.where(total > 0, total, 1.0)
    return _entropy(shares, 2) / max(math.log(pattern.shape[-1]), 1e-9)


def _entropy(p: Float[Tensor, "b h n n"], axis: int) -> Float[Tensor, "b h n"]:
    made: Tensor = torch.special.entr(p).sum(axis)
    return made


def attention_measures(pattern: Float[Tensor, "b h n n"]) -> Float[Tensor, "b 4 h n"]:
    """Received attention, relative logits, row and column entropy of one layer, in a stack.

    What `zeitgeist.activations.capture` reduces patterns to: the size of n patterns' rows.
    """
    made = (received, relative_logits, row_entropy, column_entropy)
    return torch.stack([measure(pattern) for measure in made], 1)


def projection_norms(weight: Float[Tensor, "h d c"]) -> Float[Tensor, "h k d"]:
    """Factors R of every head's projection with ||v R^T|| = ||v W||, never wider than the head.

    Examples
    --------
    >>> w = torch.randn(2, 3, 50, generator=torch.Generator().manual_seed(0))
    >>> v = torch.ones(3)
    >>> bool(torch.allclose((projection_norms(w) @ v).norm(dim=-1), (v @ w).norm(dim=-1)))
    True
    """
    made: Tensor = torch.linalg.qr(weight.float().transpose(-1, -2)).R
    return made


def head_norms(
    values: Float[Tensor, "b n r d"], factors: Float[Tensor, "h k d"]
) -> Float[Tensor, "b h n"]:
    """Norm of every head's vectors after its output projection; shared key heads are repeated.

    Parameters
    ----------
    values
        Values of key heads, or outputs of heads.
    factors
        `projection_norms` of the heads.

    Examples
    --------
    >>> head_norms(torch.ones(1, 5, 1, 2), torch.eye(2).expand(3, 2, 2)).shape
    torch.Size([1, 3, 5])
    """
    groups = factors.shape[0] // values.shape[2]
    wide = values.float().repeat_interleave(groups, 2)
    made: Tensor = torch.einsum("bnhd,hkd->bhnk", wide, factors).norm(dim=-1)
    return made


def stream_measures(stream: Float[Tensor, "b n c"]) -> Float[Tensor, "b n m"]:
    """Norm, median magnitude and the largest coordinates of a residual stream, in float32.

    In half precision the squares of a peak overflow. The last axis is the norm, the median of
    |x|, then the `COORDINATES` largest values and their places.

    Examples
    --------
    >>> x = torch.zeros(1, 1, 8)
    >>> x[..., 5] = -3.0
    >>> found = stream_measures(x)[0, 0]
    >>> float(found[0]), float(found[2]), int(found[2 + COORDINATES])
    (3.0, -3.0, 5)
    """
    wide = stream.float()
    size = wide.abs()
    count = min(COORDINATES, wide.shape[-1])
    places = size.topk(count, dim=-1).indices
    values = wide.gather(-1, places)
    return torch.cat(
        [wide.norm(dim=-1)[..., None], size.median(dim=-1).values[..., None], values, places], -1
    )


def find_sinks(
    got: Float[Tensor, "b l h n"], *, mass: float, share: float, queries: int
) -> Bool[Tensor, "b n"]:
    """Tokens that are sinks: many heads put much of their attention on them.

    Nothing is known of what they are or where: of each token that at least ``queries`` others
    follow, the mean weight it gets from those must exceed ``mass`` in at least ``share`` of all
    heads.

    Parameters
    ----------
    got
        `received`, of every layer.
    mass, share, queries
        See above.

    Examples
    --------
    >>> got = torch.tensor([[[[0.2, 2.1, 0.5, 0.0]]]])
    >>> find_sinks(got, mass=0.3, share=0.5, queries=1)
    tensor([[False,  True,  True, False]])
    >>> find_sinks(got, mass=0.3, share=0.5, queries=2)
    tensor([[False,  True, False, False]])
    """
    later = torch.arange(got.shape[-1] - 1, -1, -1, device=got.device)
    often = (got / later.clamp_min(1) > mass).float().mean((1, 2)) >= share
    return often & (later >= queries)


def classify(mass: float, *, active: float, dormant: float) -> Kind:
    """A head with little of its attention on sinks is active, one with most of it is dormant.

    Examples
    --------
    >>> [classify(a, active=0.3, dormant=0.7) for a in (0.1, 0.5, 0.9)]
    ['active', 'mixed', 'dormant']
    """
    if mass >= dormant:
        return "dormant"
    return "active" if mass <= active else "mixed"


def moved_to(
    pattern: Float[Tensor, "b h n n"], heads: Sequence[int], sinks: Int[Tensor, " b"]
) -> Float[Tensor, "b h n n"]:
    """All attention of some heads on one token of each row; queries before it stay as they are.

    Parameters
    ----------
    pattern
        Of a layer.
    heads
        Whose attention moves.
    sinks
        The token of each row.

    Examples
    --------
    >>> p = torch.ones(1, 2, 3, 3).tril() / torch.tensor([1.0, 2.0, 3.0])[:, None]
    >>> moved_to(p, [1], torch.tensor([1]))[0, 1]
    tensor([[1., 0., 0.],
            [0., 1., 0.],
            [0., 1., 0.]])
    """
    n = pattern.shape[-1]
    places = torch.arange(n, device=pattern.device)
    at = sinks.to(pattern.device)
    there = torch.nn.functional.one_hot(at, n).to(pattern)[:, None, None, :]
    chosen = torch.zeros(pattern.shape[1], dtype=torch.bool, device=pattern.device)
    chosen[list(heads)] = True
    moving = chosen[None, :, None, None] & (places >= at[:, None])[:, None, :, None]
    return torch.where(moving, there, pattern)
