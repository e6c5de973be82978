"""What finding the most similar pair costs, exactly and by cheaper means, and whether it is found.

After Alman, Yu: "Fundamental Limitations on Subquadratic Alternatives to Transformers",
arXiv 2410.04271, which has no experiment. n random sign vectors of length l with one planted pair;
every mixer names a pair, and recall is whether its cosine is the greatest there is.

    exact        all inner products, in blocks of rows
    softmax      attention without the own key, then the best key of the best output
    linear       the same with products of Hedgehog features: one state of 2 l x l
    window       the neighbours within 32 places
    lsh          signs of random projections, sorted; neighbours within 4 places, 8 times
    projection   exact in a quarter of the dimensions
    faiss        a graph of near vectors (HNSW), where the package faiss is installed

Random instances are easy: a cheap method that finds the pair here refutes nothing, and one that
does not proves nothing about others.
"""

import math
import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean

BLOCK, NEAR, TABLES = 512, 32, 8
Pair = tuple[int, int]


def instance(n: int, length: int, seed: int) -> Float[Tensor, "n length"]:
    """Unit vectors of random signs; one differs from another in a single sign."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 2, (n, length), generator=generator).float() * 2 - 1
    first, second = torch.randperm(n, generator=generator)[:2].tolist()
    x[second] = x[first]
    x[second, 0] *= -1
    return x / math.sqrt(length)


def _exact(x: Tensor, _seed: int) -> Pair:
    best, pair = -math.inf, (0, 1)
    for start in range(0, len(x), BLOCK):
        products = x[start : start + BLOCK] @ x.T
        rows = torch.arange(len(products))
        products[rows, rows + start] = -math.inf
        value, at = products.flatten().max(0)
        if float(value) > best:
            row, column = divmod(int(at), len(x))
            best, pair = float(value), (start + row, column)
    return pair


def _nearest(x: Tensor, i: int) -> Pair:
    products = x @ x[i]
    products[i] = -math.inf
    return i, int(products.argmax())


def _softmax(x: Tensor, _seed: int) -> Pair:
    beta, agree = 4 * math.log(len(x)) * x.shape[1], []
    for start in range(0, len(x), BLOCK):
        logits = beta * (x[start : start + BLOCK] @ x.T)
        rows = torch.arange(len(logits))
        logits[rows, rows + start] = -math.inf
        agree.append(((logits.softmax(-1) @ x) * x[start : start + BLOCK]).sum(1))
    return _nearest(x, int(torch.cat(agree).argmax()))


def _linear(x: Tensor, _seed: int) -> Pair:
    sharp = math.sqrt(x.shape[1]) * x
    features = torch.cat([sharp.softmax(-1), (-sharp).softmax(-1)], 1)
    own = features.square().sum(1, keepdim=True)
    sums = features @ (features.T @ x) - own * x
    total = features @ features.sum(0)[:, None] - own
    return _nearest(x, int(((sums / total) * x).sum(1).argmax()))


def _neighbours(x: Tensor, order: Tensor, reach: int) -> tuple[float, Pair]:
    best, pair, laid = -math.inf, (0, 1), x[order]
    for step in range(1, min(reach, len(x) - 1) + 1):
        value, at = (laid[:-step] * laid[step:]).sum(1).max(0)
        if float(value) > best:
            best, pair = float(value), (int(order[int(at)]), int(order[int(at) + step]))
    return best, pair


def _window(x: Tensor, _seed: int) -> Pair:
    return _neighbours(x, torch.arange(len(x)), NEAR)[1]


def _lsh(x: Tensor, seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    bits = math.ceil(math.log2(len(x)))
    found = []
    for _ in range(TABLES):
        planes = torch.randn(x.shape[1], bits, generator=generator)
        code = ((x @ planes) > 0).long() @ (2 ** torch.arange(bits))
        found.append(_neighbours(x, code.argsort(), 4))
    return max(found)[1]


def _projection(x: Tensor, seed: int) -> Pair:
    generator = torch.Generator().manual_seed(seed)
    small = x @ torch.randn(x.shape[1], max(1, x.shape[1] // 4), generator=generator)
    return _exact(small / small.norm(dim=1, keepdim=True), seed)


def _faiss(x: Tensor, _seed: int) -> Pair:
    try:
        import faiss
    except ImportError:
        raise InputInvalid(
            "the package faiss is not installed", mend="pip install faiss-cpu, or leave faiss out"
        ) from None
    index = faiss.IndexHNSWFlat(x.shape[1], NEAR, faiss.METRIC_INNER_PRODUCT)
    index.add(x.numpy())
    values, near = (torch.from_numpy(found) for found in index.search(x.numpy(), 2))
    other = near != torch.arange(len(x))[:, None]
    row, column = divmod(int(values.where(other, -math.inf).argmax()), 2)
    return row, int(near[row, column])


MIXERS: dict[str, tuple[Callable[[Tensor, int], Pair], Callable[[int, int], float]]] = {
    "exact": (_exact, lambda n, length: 2.0 * n * n * length),
    "softmax": (_softmax, lambda n, length: 4.0 * n * n * length),
    "linear": (_linear, lambda n, length: 8.0 * n * length * length),
    "window": (_window, lambda n, length: 2.0 * n * NEAR * length),
    "lsh": (_lsh, lambda n, length: TABLES * 2.0 * n * length * (math.log2(n) + 4)),
    "projection": (_projection, lambda n, length: 0.5 * n * n * length + 0.5 * n * length * length),
    "faiss": (_faiss, lambda n, length: 2.0 * n * length * NEAR * math.log2(n)),
}
"""How each finds a pair, and its multiplications and additions."""


def measure_curve(
    mixers: Sequence[str],
    sizes: Sequence[int],
    *,
    length: int = 32,
    seed: int = 0,
    repeats: int = 3,
) -> list[dict[str, Any]]:
    """Time, operations and recall of each mixer at each n.

    Parameters
    ----------
    mixers
        Of `MIXERS`.
    sizes
        Numbers of vectors, at least 8.
    length
        Their length.
    seed
        Of instances and random projections.
    repeats
        Runs whose median time counts, after one that does not.

    Returns
    -------
    list of dict
        ``mixer``, ``n``, ``seconds`` (processor time), ``flops``, ``recall`` (1 or 0).

    Raises
    ------
    InputInvalid
        No such mixer, or fewer than 8 vectors.

    Examples
    --------
    >>> [row["recall"] for row in measure_curve(["exact", "softmax"], [64], repeats=1)]
    [1.0, 1.0]
    """
    for mixer in mixers:
        if mixer not in MIXERS:
            raise InputInvalid(f"there is no mixer {mixer!r}", mend=did_you_mean(mixer, MIXERS))
    if min(sizes) < 8:
        raise InputInvalid(f"{min(sizes)} vectors", mend="give at least 8")
    rows: list[dict[str, Any]] = []
    for n in sizes:
        x = instance(n, length, seed)
        i, j = _exact(x, seed)
        best = float(x[i] @ x[j])
        for mixer in mixers:
            find, flops = MIXERS[mixer]
            found = find(x, seed)
            times = []
            for _ in range(repeats):
                started = time.process_time()
                find(x, seed)
                times.append(time.process_time() - started)
            recall = float(float(x[found[0]] @ x[found[1]]) >= best - 1e-5)
            rows.append(
                {
                    "mixer": mixer,
                    "n": n,
                    "seconds": max(median(times), 1e-9),
                    "flops": flops(n, length),
                    "recall": recall,
                }
            )
    return rows


def exponent(sizes: Sequence[int], seconds: Sequence[float]) -> float:
    """Slope of log time over log n, by least squares.

    Examples
    --------
    >>> round(exponent([10, 100, 1000], [3e-6, 3e-4, 3e-2]), 6)
    2.0
    """
    return float(np.polyfit(np.log(sizes), np.log(seconds), 1)[0])
