"""Pairwise problems solved exactly: which two of n items are most or least alike.

Alman, Yu: "Fundamental Limitations on Subquadratic Alternatives to Transformers", arXiv 2410.04271.
The problems that, under SETH, nothing solves in n^(2 - eps) in the worst case:

    msd, lsd          most and least similar documents, by cosine
    max-ip, min-ip    greatest and least inner product
    ov                two orthogonal binary vectors, if there are any

Within one set (no item with itself) or between two (*bichromatic*). All pairs are compared, in
blocks of rows and columns, so that memory does not grow with n^2. Integer data (counts, keywords)
are compared as fractions where floating point cannot tell: different squared cosines of binary
vectors of length l may be only 1/(2 l^4) apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import sqrt
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from zeitgeist.errors import ExtraMissing, InputInvalid, did_you_mean

__all__ = ["PROBLEMS", "Answer", "Certificate", "LimitsOptions", "most_similar_pair", "solve"]

PROBLEMS = ("msd", "lsd", "max-ip", "min-ip", "ov")
NEAR = 1e-12
"""Cosines closer than this (inner products: times the longest vectors) are told apart as fractions,
or are ties."""
HELD = 1_000_000
"""Ties that are held; further ones are only counted."""


@dataclass(frozen=True)
class LimitsOptions:
    """How pairs are compared.

    Parameters
    ----------
    block
        Rows and columns at a time; a block of 2,048 takes 32 MiB.
    """

    block: int = field(
        default=2048, metadata={"meaning": "rows and columns at a time", "source": "ours"}
    )

    def __post_init__(self) -> None:
        if self.block < 1:
            raise InputInvalid(f"block is {self.block}", mend="give at least 1")


@dataclass(frozen=True)
class Certificate:
    """Why an answer is right.

    ``compared`` pairs were looked at, which is all of them; ``ties`` of them have the value that is
    reported (at least that many where ``exact`` is false); ``next_value`` is the best other value
    (None: every pair ties); ``fraction`` is the value without rounding where the data are whole
    numbers: an inner product, or a squared cosine with its sign.
    """

    compared: int
    ties: int
    next_value: float | None
    fraction: Fraction | None
    exact: bool


@dataclass(frozen=True)
class Answer:
    """The first pair, in the order of indices, that no other beats.

    ``second`` counts in the other set where there are two. ``exists`` answers the decision problem:
    a pair is orthogonal, or reaches the threshold; None where nothing was asked.
    """

    problem: str
    first: int
    second: int
    value: float
    exists: bool | None
    certificate: Certificate


def most_similar_pair(
    items: Any,
    other: Any = None,
    *,
    mode: str = "most",
    threshold: float | None = None,
    options: LimitsOptions | None = None,
) -> Answer:
    """The two most or least similar items, by cosine.

    The problem of Alman, Yu, arXiv 2410.04271; see `solve` for inner products and orthogonality.

    Parameters
    ----------
    items
        n vectors of length l: an array, a tensor or a sparse matrix; or n documents as strings,
        which become binary vectors of their words.
    other
        A second set: pairs are taken between both. None: within the first.
    mode
        ``"most"`` or ``"least"``.
    threshold
        Also say whether a pair reaches this cosine (falls to it, for ``"least"``).
    options
        None: the defaults of `LimitsOptions`.

    Returns
    -------
    Answer
        Indices, cosine and certificate.

    Raises
    ------
    InputInvalid
        Fewer than two items, vectors of different lengths, a zero vector, or a value that is no
        number.

    Examples
    --------
    >>> texts = ["cats and dogs", "the stock market fell", "dogs and cats run"]
    >>> found = most_similar_pair(texts)
    >>> found.first, found.second, found.certificate.fraction
    (0, 2, Fraction(3, 4))
    """
    if mode not in ("most", "least"):
        raise InputInvalid(f"the mode is {mode!r}", mend="give most or least")
    problem = "msd" if mode == "most" else "lsd"
    return solve(problem, items, other, threshold=threshold, options=options)


def solve(
    problem: str,
    items: Any,
    other: Any = None,
    *,
    threshold: float | None = None,
    options: LimitsOptions | None = None,
) -> Answer:
    """Solve a pairwise problem by comparing all pairs.

    Parameters
    ----------
    problem
        One of `PROBLEMS`.
    items, other, threshold, options
        See `most_similar_pair`. ``"ov"`` wants vectors of zeros and ones.

    Raises
    ------
    InputInvalid
        No such problem, or items it is not about.

    Examples
    --------
    >>> found = solve("ov", np.array([[1, 0, 1], [0, 1, 0], [1, 1, 0]]))
    >>> found.first, found.second, found.exists
    (0, 1, True)
    """
    if problem not in PROBLEMS:
        raise InputInvalid(f"there is no problem {problem!r}", mend=did_you_mean(problem, PROBLEMS))
    if threshold is not None and (problem == "ov" or not np.isfinite(threshold)):
        raise InputInvalid(
            f"a threshold of {threshold} for {problem}",
            mend="ov has none" if problem == "ov" else "give a number",
        )
    chosen = options or LimitsOptions()
    a, b = _vectors(items, other)
    cosine = problem in ("msd", "lsd")
    whole = _whole(a) and _whole(b)
    if cosine and not whole:  # squares of very large and very small numbers are none
        a, b = levelled(a), levelled(b)
    norms = [squared_norms(x) for x in (a, b)]
    for name, squares in zip(("the items", "the other items"), norms, strict=True):
        if cosine and not squares.all():
            raise InputInvalid(
                f"item {int((squares == 0).argmax())} of {name} has nothing in it, and no cosine",
                mend="leave it out",
            )
    if problem == "ov" and not all(_binary(x) for x in (a, b)):
        raise InputInvalid("the vectors hold other than zeros and ones", mend="or ask for min-ip")
    sign = -1.0 if problem in ("lsd", "min-ip", "ov") else 1.0
    scales = [1 / np.sqrt(squares) if cosine else None for squares in norms]
    reach = NEAR if cosine else NEAR * sqrt(norms[0].max() * norms[1].max())
    best, seen = -np.inf, 0
    kept: list[np.ndarray] = []
    runner_up, dropped = -np.inf, 0
    for rows, columns, values in _blocks(a, b, other is None, scales, chosen.block):
        values = np.where(np.isnan(values), -np.inf, sign * values)
        seen += int(np.isfinite(values).sum())
        top = float(values.max())
        if top > best + reach:
            runner_up, kept, dropped = max(runner_up, best), [], 0
        best = max(best, top)
        near = values >= best - reach
        runner_up = max(runner_up, float(values.max(where=~near, initial=-np.inf)))
        if top > -np.inf and near.any():
            found = np.argwhere(near) + np.array([rows, columns])
            room = HELD - sum(map(len, kept))
            dropped += max(0, len(found) - room)
            kept.append(found[:room])
    pairs = np.concatenate(kept)
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    pairs, fraction, second = _tell_apart(pairs, a, b, norms, cosine, whole, sign)
    first, other_one = (int(index) for index in pairs[0])
    value = _value(fraction, cosine) if fraction is not None else sign * best
    apart = [x for x in (second, runner_up if runner_up > -np.inf else None) if x is not None]
    next_value = sign * max(apart) if apart else None
    exists = value == 0 if problem == "ov" else None
    if threshold is not None:
        exists = bool(sign * value >= sign * threshold - (0 if whole and not cosine else reach))
    proof = Certificate(seen, len(pairs) + dropped, next_value, fraction, whole and not dropped)
    return Answer(problem, first, other_one, float(value), exists, proof)


def _blocks(
    a: Any, b: Any, same: bool, scales: Sequence[Any], block: int
) -> Iterator[tuple[int, int, Float[np.ndarray, "rows columns"]]]:
    """Products of rows with columns; within one set every pair once, NaN for the rest."""
    for rows in range(0, a.shape[0], block):
        for columns in range(rows if same else 0, b.shape[0], block):
            left, right = a[rows : rows + block], b[columns : columns + block]
            product = left @ right.T
            values = np.asarray(product.toarray() if hasattr(product, "toarray") else product)
            values = values.astype(np.float64, copy=False)
            if scales[0] is not None:
                values = values * scales[0][rows : rows + block, None]
                values *= scales[1][columns : columns + block]
            if same and columns == rows:
                values[np.tril_indices_from(values)] = np.nan
            yield rows, columns, values


def _tell_apart(
    pairs: Int[np.ndarray, "p 2"],
    a: Any,
    b: Any,
    norms: Sequence[np.ndarray],
    cosine: bool,
    whole: bool,
    sign: float,
) -> tuple[Int[np.ndarray, "k 2"], Fraction | None, float | None]:
    """Those of nearly equal pairs that are best as fractions, their value, and the next signed."""
    if not whole:
        return pairs, None, None
    i, j = pairs.T
    product = np.concatenate(
        [_products(a, b, i[at : at + 4096], j[at : at + 4096]) for at in range(0, len(i), 4096)]
    )
    squares = norms[0][i].astype(np.int64) * norms[1][j].astype(np.int64)
    keys, which = np.unique(
        np.stack([product, squares if cosine else np.ones_like(product)], 1),
        axis=0,
        return_inverse=True,
    )
    values = [
        Fraction(int(p) * abs(int(p)), int(s)) if cosine else Fraction(int(p)) for p, s in keys
    ]
    ordered = sorted(set(values), reverse=sign > 0)
    equal = np.array([value == ordered[0] for value in values])[which.ravel()]
    second = sign * _value(ordered[1], cosine) if len(ordered) > 1 else None
    return pairs[equal], ordered[0], second


def _products(a: Any, b: Any, i: np.ndarray, j: np.ndarray) -> Int[np.ndarray, " p"]:
    left, right = a[i], b[j]
    both = left.multiply(right) if hasattr(left, "multiply") else left * right
    return np.asarray(np.rint(both.sum(axis=1)), dtype=np.int64).ravel()


def _value(fraction: Fraction, cosine: bool) -> float:
    if not cosine:
        return float(fraction)
    return sqrt(fraction) if fraction >= 0 else -sqrt(-fraction)


def _vectors(items: Any, other: Any) -> tuple[Any, Any]:
    """Both sets as float64, dense or sparse; the first twice where there is no other."""
    if isinstance(items, str) or isinstance(other, str):
        raise InputInvalid("one text has no pairs", mend="give a list of documents")
    words = [
        isinstance(x, Sequence) and len(x) > 0 and isinstance(x[0], str) for x in (items, other)
    ]
    if words[0]:
        if other is not None and not words[1]:
            raise InputInvalid("documents and vectors", mend="give two sets of the same kind")
        return _keywords(items, other)
    a = as_matrix(items, "the items")
    b = a if other is None else as_matrix(other, "the other items")
    if hasattr(a, "tocsr") != hasattr(b, "tocsr"):
        from scipy.sparse import csr_array

        a, b = csr_array(a), csr_array(b)
    if a.shape[1] != b.shape[1]:
        raise InputInvalid(
            f"the items have length {a.shape[1]} and the others {b.shape[1]}",
            mend="give vectors of the same length",
        )
    least = 2 if other is None else 1
    if a.shape[0] < least or b.shape[0] < least:
        raise InputInvalid(
            f"there are {a.shape[0]} and {b.shape[0]} items", mend="give two or more"
        )
    return a, b


def as_matrix(x: Any, name: str) -> Any:
    """Vectors as float64, dense or sparse; anything else is refused by name."""
    if hasattr(x, "tocsr"):
        from scipy.sparse import csr_array

        found = csr_array(x)
    else:
        if hasattr(x, "detach"):
            x = x.detach().cpu()
            x = (x if x.is_complex() else x.double()).numpy()
        try:
            found = np.asarray(x)
        except (TypeError, ValueError) as error:
            raise InputInvalid(
                f"{name} are no vectors: {error}", mend="give n x l numbers"
            ) from error
    if found.dtype.kind not in "biuf":
        raise InputInvalid(f"{name} are no vectors of real numbers", mend="give n x l of them")
    found = found.astype(np.float64)
    values = found.data if hasattr(found, "tocsr") else found
    if found.ndim != 2 or found.shape[1] == 0:
        raise InputInvalid(f"{name} have shape {found.shape}", mend="give n vectors of length l")
    if not np.isfinite(values).all():
        raise InputInvalid(f"{name} hold a value that is no number", mend="take it out")
    return found


def _keywords(items: Sequence[Any], other: Sequence[Any] | None) -> tuple[Any, Any]:
    try:
        from sklearn.feature_extraction.text import CountVectorizer
    except ImportError:
        raise ExtraMissing.named("studies", "comparing documents") from None
    for text in [*items, *(other or ())]:
        if not isinstance(text, str):
            raise InputInvalid(f"{text!r} is no document", mend="give strings")
    vectorizer = CountVectorizer(binary=True, token_pattern=r"(?u)\b\w+\b")
    try:
        vectorizer.fit([*items, *(other or ())])
    except ValueError:
        raise InputInvalid("the documents hold no words", mend="give others") from None
    a = vectorizer.transform(items).astype(np.float64)
    return _vectors(a, None if other is None else vectorizer.transform(other).astype(np.float64))


def squared_norms(x: Any) -> Float[np.ndarray, " n"]:
    """Squared length of each vector."""
    squared = x.multiply(x) if hasattr(x, "multiply") else x * x
    return np.asarray(squared.sum(axis=1)).ravel()


def levelled(x: Any) -> Any:
    """Each vector over its largest entry; zero vectors stay."""
    if hasattr(x, "tocsr"):
        peak = np.asarray(abs(x).max(axis=1).toarray()).ravel()
        return (x.T / np.where(peak == 0, 1.0, peak)).T.tocsr()
    peak = np.abs(x).max(axis=1, keepdims=True)
    return x / np.where(peak == 0, 1.0, peak)


def _stored(x: Any) -> np.ndarray:
    values: np.ndarray = x.data if hasattr(x, "tocsr") else x
    return values


def _binary(x: Any) -> bool:
    return bool(np.isin(_stored(x), (0.0, 1.0)).all())


def _whole(x: Any) -> bool:
    """Whether all are whole numbers whose products and sums are exact."""
    values = _stored(x)
    largest = float(np.abs(values).max(initial=0.0))
    return bool((values == np.rint(values)).all()) and largest < sqrt(2**31 / x.shape[1])
