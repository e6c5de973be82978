"""Attention heads that solve pairwise problems, with the margins that prove it.

Alman, Yu: "Fundamental Limitations on Subquadratic Alternatives to Transformers", arXiv 2410.04271.
Binary vectors v_1..v_n of length l, one head of softmax attention each:

    ov          logits -3 ln(n) <v_i, v_j>, values |v_j|_1, a zero vector beside them. Some output
                is at least 1/(n + 1) exactly when two vectors are orthogonal (theirs).
    threshold   a in A attends over B with logits beta <a, b> and value 1, and over a null key with
                logit beta (t - 1/2) and value 0; beta = 2 ln n + 6. An output is above 1/2 exactly
                when some <a, b> >= t (derived from theirs).
    cosine      normalised vectors, logits beta cos; the values are codes of the keys. Different
                squared cosines are at least 1/(2 l^4) apart, so beta is of the order l^4 ln n.

That a head can is unconditional. That nothing subquadratic can is conditional, worst-case and
asymptotic, and no run shows it.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean

NAMES = ("ov", "threshold", "cosine")


def attend(logits: Float[Tensor, "n m"], values: Float[Tensor, "m d"]) -> Float[Tensor, "n d"]:
    """Softmax attention from its logits."""
    return logits.softmax(-1) @ values


def ov_outputs(v: Float[Tensor, "n length"]) -> Float[Tensor, " n"]:
    """Outputs of the head that finds orthogonal pairs.

    Examples
    --------
    >>> bool(ov_outputs(torch.eye(4, dtype=torch.float64)).max() >= 1 / 5)
    True
    """
    keys = torch.cat([v, v.new_zeros(1, v.shape[1])])
    logits = -3 * math.log(len(v)) * (v @ keys.T)
    return attend(logits, keys.sum(1, keepdim=True)).squeeze(1)


def threshold_outputs(
    a: Float[Tensor, "n length"], b: Float[Tensor, "m length"], t: int
) -> Float[Tensor, " n"]:
    """Outputs of the head that asks whether some inner product reaches t.

    Examples
    --------
    >>> x = torch.eye(3, dtype=torch.float64)
    >>> [bool((threshold_outputs(x, x, t) > 0.5).all()) for t in (1, 2)]
    [True, False]
    """
    beta = 2 * math.log(len(b)) + 6
    null = a.new_full((len(a), 1), beta * (t - 0.5))
    logits = torch.cat([beta * (a @ b.T), null], 1)
    values = torch.cat([b.new_ones(len(b), 1), b.new_zeros(1, 1)])
    return attend(logits, values).squeeze(1)


def cosine_weights(v: Float[Tensor, "n length"], beta: float) -> Float[Tensor, "n n"]:
    """Weights of the head that looks for the most similar other vector."""
    unit = v / v.square().sum(1, keepdim=True).sqrt()
    cosines = (unit @ unit.T).fill_diagonal_(-math.inf)
    sharp = min(beta, torch.finfo(v.dtype).max / 8)
    return ((cosines - cosines.amax(1, keepdim=True)) * sharp).softmax(-1)


def drawn(n: int, length: int, seed: int) -> Float[Tensor, "n length"]:
    """Binary vectors, half of the entries one, none zero, every first entry one."""
    generator = torch.Generator().manual_seed(seed)
    v = (torch.rand(n, length, generator=generator, dtype=torch.float64) < 0.5).double()
    v[:, 0] = 1.0  # so that no two are orthogonal
    return v


def check_construction(
    name: str, n: int, length: int, *, dtype: torch.dtype = torch.float64, seed: int = 0
) -> dict[str, Any]:
    """Run a construction on an instance with an answer and on one without.

    Parameters
    ----------
    name
        ``"ov"``, ``"threshold"`` or ``"cosine"``.
    n, length
        Vectors and their length, both at least 4.
    dtype
        In which the head computes.
    seed
        Of the vectors.

    Returns
    -------
    dict
        ``correct`` (share of decisions that agree with brute force), ``margin_yes`` and
        ``margin_no``: how far above the threshold the least output that must be above it lies, and
        how far below it the greatest that must be below.

    Raises
    ------
    InputInvalid
        No such construction, or an instance too small to plant a pair in.

    Examples
    --------
    >>> check_construction("threshold", 64, 24)["correct"]
    1.0
    """
    if name not in NAMES:
        raise InputInvalid(f"there is no construction {name!r}", mend=did_you_mean(name, NAMES))
    if n < 4 or length < 4:
        raise InputInvalid(f"{n} vectors of length {length}", mend="give at least 4 of each")
    v = drawn(n, length, seed)
    if name == "ov":
        yes = v.clone()
        yes[0], yes[1] = 0.0, 0.0
        yes[0, : length // 2], yes[1, length // 2 :] = 1.0, 1.0
        limit = 1 / (n + 1)
        outputs = [float(ov_outputs(x.to(dtype)).double().max()) for x in (yes, v)]
        right = [outputs[0] >= limit, outputs[1] < limit]
        margins = outputs[0] - limit, limit - outputs[1]
    elif name == "threshold":
        other = drawn(n, length, seed + 1)
        most = int((v @ other.T).max())
        outputs = [
            float(threshold_outputs(v.to(dtype), other.to(dtype), t).double().max())
            for t in (most, most + 1)
        ]
        right = [outputs[0] > 0.5, outputs[1] <= 0.5]
        margins = outputs[0] - 0.5, 0.5 - outputs[1]
    else:
        weights = cosine_weights(v.to(dtype), 4 * length**4 * math.log(n)).double()
        unit = v / v.norm(dim=1, keepdim=True)
        exact = (unit @ unit.T).fill_diagonal_(-math.inf)
        best = exact >= exact.amax(1, keepdim=True) - 1e-12
        mass = (weights * best).sum(1)
        right = (mass > 0.5).tolist()
        margins = float(mass.min()) - 0.5, 0.5 - float((weights * ~best).sum(1).max())
    return {
        "construction": name,
        "n": n,
        "length": length,
        "dtype": str(dtype).removeprefix("torch."),
        "correct": sum(right) / len(right),
        "margin_yes": margins[0],
        "margin_no": margins[1],
    }
