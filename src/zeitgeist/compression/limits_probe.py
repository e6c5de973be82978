"""Would a cheaper mixer still find the nearest items of *your* vectors?

After Alman, Yu: "Fundamental Limitations on Subquadratic Alternatives to Transformers",
arXiv 2410.04271. For each of some items, the true nearest other is found by comparing all; then
every cheap mixer looks for it with about as many operations per item as comparing ``window``
others takes, as near as it can (`Probe.operations` says how near):

    window       the items nearest in order
    lsh          the items nearest in the order of random sign bits, several times
    linear       products of Hedgehog features, one state; its answer's nearest item
    projection   all items in so few random dimensions that it costs the same

That a mixer finds them here is a fact about these vectors; that it does not is one about this
mixer. Neither says anything about the worst case, which is what the theorem is about.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeitgeist.compression.limits import as_matrix, levelled, squared_norms
from zeitgeist.errors import InputInvalid

__all__ = ["Probe", "ProbeOptions", "probe"]

TABLES = 4
QUANTILES = (0.5, 0.99, 0.999)


def _told(meaning: str) -> dict[str, str]:
    return {"meaning": meaning, "source": "ours"}


@dataclass(frozen=True)
class ProbeOptions:
    """What is spent, and on how many items.

    Parameters
    ----------
    window
        Others that are compared per item; every mixer gets about as many operations.
    queries
        Items whose nearest is looked for, evenly spaced.
    seed
        Of random projections.
    """

    window: int = field(default=64, metadata=_told("others compared per item"))
    queries: int = field(default=1024, metadata=_told("items whose nearest is looked for"))
    seed: int = field(default=0, metadata=_told("of random projections"))

    def __post_init__(self) -> None:
        for name in ("window", "queries"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")


@dataclass(frozen=True)
class Probe:
    """What `probe` found.

    ``nearest`` and ``second`` are mean cosines over the items that were asked, ``bulk`` those of
    all pairs with them at the quantiles of `QUANTILES`; ``margin`` is how many standard deviations
    of the bulk the nearest lies above its mean. ``recall`` is the share of items whose nearest was
    found, ``chance`` that of a guess; ``load`` is n l over the numbers of linear attention's state:
    far above 1 it cannot hold what it read.
    """

    items: int
    length: int
    queries: int
    nearest: float
    second: float
    bulk: tuple[float, ...]
    margin: float
    recall: dict[str, float]
    operations: dict[str, float]
    chance: float
    load: float


def probe(vectors: Any, options: ProbeOptions | None = None) -> Probe:
    """How far the nearest items stand out of your vectors, and which cheap mixer finds them.

    Parameters
    ----------
    vectors
        n x l, in their order: an array, a tensor or a sparse matrix.
    options
        None: the defaults of `ProbeOptions`.

    Raises
    ------
    InputInvalid
        Fewer than three vectors, a zero vector, or a value that is no number.

    Examples
    --------
    >>> x = np.random.default_rng(0).normal(size=(200, 16))
    >>> x[1::2] = x[::2] + 0.1 * np.random.default_rng(1).normal(size=(100, 16))
    >>> found = probe(x, ProbeOptions(window=2))
    >>> found.recall["window"], found.margin > 2
    (1.0, True)
    """
    chosen = options or ProbeOptions()
    given = levelled(as_matrix(vectors, "the vectors"))
    if given.shape[0] < 3:
        raise InputInvalid(f"there are {given.shape[0]} vectors", mend="give three or more")
    squares = squared_norms(given)
    if not squares.all():
        raise InputInvalid(
            f"vector {int((squares == 0).argmax())} is zero and has no cosine", mend="leave it out"
        )
    dense = np.asarray(given.toarray() if hasattr(given, "toarray") else given)
    x = torch.from_numpy(dense / np.sqrt(squares)[:, None]).float()
    n, length = x.shape
    window = min(chosen.window, n - 1)
    asked = torch.arange(min(chosen.queries, n)) * n // min(chosen.queries, n)
    products = (x[asked] @ x.T).double()
    rows = torch.arange(len(asked))
    products[rows, asked] = -math.inf
    top = products.topk(2, dim=1).values
    others = products[products > -math.inf]
    bulk = tuple(float(np.quantile(others.numpy(), q)) for q in QUANTILES)
    spread = float(others.std()) or 1.0
    generator = torch.Generator().manual_seed(chosen.seed)
    recall, operations = {}, {}
    for name, (find, cost) in MIXERS.items():
        found = find(x, asked, window, generator)
        value = products[rows, found]
        recall[name] = float((value >= top[:, 0] - 1e-6).double().mean())
        operations[name] = cost(n, length, window)
    features = _features(length, window)
    return Probe(
        n,
        length,
        len(asked),
        float(top[:, 0].mean()),
        float(top[:, 1].mean()),
        bulk,
        (float(top[:, 0].mean()) - float(others.mean())) / spread,
        recall,
        operations,
        1 / (n - 1),
        n * length / (features * (length + 1)),
    )


def _best_of(
    x: Float[Tensor, "n l"], asked: Int[Tensor, " q"], candidates: Int[Tensor, "q c"]
) -> Int[Tensor, " q"]:
    """The most similar of each item's candidates, never itself."""
    values = torch.einsum("ql,qcl->qc", x[asked], x[candidates])
    values = values.masked_fill(candidates == asked[:, None], -math.inf)
    found: Tensor = candidates.gather(1, values.argmax(1, keepdim=True)).squeeze(1)
    return found


def _around(places: Int[Tensor, " q"], window: int, n: int) -> Int[Tensor, "q c"]:
    """As many places around each, without it, as there are in the window, inside 0, ..., n - 1."""
    count = min(window, n - 1)
    start = (places - (count + 1) // 2).clamp(0, n - 1 - count)
    return start[:, None] + torch.arange(count + 1)


def _window(x: Tensor, asked: Tensor, window: int, _: torch.Generator) -> Tensor:
    return _best_of(x, asked, _around(asked, window, len(x)))


def _lsh(x: Tensor, asked: Tensor, window: int, generator: torch.Generator) -> Tensor:
    bits = max(1, math.ceil(math.log2(len(x))))
    near = []
    for _ in range(TABLES):
        planes = torch.randn(x.shape[1], bits, generator=generator)
        order = (((x @ planes) > 0).long() @ (2 ** torch.arange(bits))).argsort()
        place = torch.empty_like(order)
        place[order] = torch.arange(len(x))
        near.append(order[_around(place[asked], _share(len(x), window), len(x))])
    return _best_of(x, asked, torch.cat(near, 1))


def _share(n: int, window: int) -> int:
    """Others that are compared per table, the cost of hashing taken off."""
    return max(1, window // TABLES - math.ceil(math.log2(n)))


def _features(length: int, window: int) -> int:
    return max(2, window * length // (2 * (length + 1)))


def _linear(x: Tensor, asked: Tensor, window: int, generator: torch.Generator) -> Tensor:
    length = x.shape[1]
    half = max(1, _features(length, window) // 2)
    drawn = torch.randn(max(length, half), max(length, half), generator=generator)
    weight = torch.linalg.qr(drawn).Q[:length, :half] * math.sqrt(length) * 2
    features = torch.cat([(x @ weight).softmax(-1), (-x @ weight).softmax(-1)], 1)
    own = features[asked].square().sum(1, keepdim=True)
    answers = features[asked] @ (features.T @ x) - own * x[asked]
    products = answers @ x.T
    products[torch.arange(len(asked)), asked] = -math.inf
    return products.argmax(1)


def _projection(x: Tensor, asked: Tensor, window: int, generator: torch.Generator) -> Tensor:
    width = max(1, window * x.shape[1] // len(x))
    small = x @ torch.randn(x.shape[1], width, generator=generator)
    small = small / small.norm(dim=1, keepdim=True)
    products = small[asked] @ small.T
    products[torch.arange(len(asked)), asked] = -math.inf
    found: Tensor = products.argmax(1)
    return found


MIXERS: dict[
    str,
    tuple[
        Callable[[Tensor, Tensor, int, torch.Generator], Tensor], Callable[[int, int, int], float]
    ],
] = {
    "window": (_window, lambda n, length, w: 2.0 * min(w, n - 1) * length),
    "lsh": (
        _lsh,
        lambda n, length, w: 2.0 * TABLES * length * (_share(n, w) + math.log2(n)),
    ),
    "linear": (_linear, lambda n, length, w: 4.0 * _features(length, w) * length),
    "projection": (
        _projection,
        lambda n, length, w: 2.0 * max(1, w * length // n) * (n + length),
    ),
}
"""How each finds the nearest, and its multiplications and additions per item."""
