"""What is measured of subquadratic mixers: constructions, the cost curve, the state-size law.

Alman, Yu: "Fundamental Limitations on Subquadratic Alternatives to Transformers", arXiv 2410.04271,
and the experiments that `zeitgeist.compression.state_size` explains. Three parts, one per setting:

    constructions  softmax attention with weights written by hand, right or wrong per instance
    curve          all mixers find the most similar pair: time, operations, recall, by n
    learned        all mixers are trained on "B then A" with equal steps: accuracy by n

No two parts share a number.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log2
from typing import Any

import torch

from zeitgeist.compression.state_size import (
    MIXERS,
    StateSizeOptions,
    load,
    state_size,
    train_reader,
    unexplained,
)
from zeitgeist.evidence import Group, Measured
from zeitgeist.evidence.study import Setting

CURVE = ("exact", "softmax", "linear", "window", "lsh", "projection")
PRECISIONS = {
    "float64": torch.float64,
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
EXPECTED: Mapping[str, float] = {"exact": 2.0, "softmax": 2.0, "linear": 1.0, "window": 1.0}
"""Exponents of time in n."""
KNEE = 0.85
"""The accuracy whose n is called the knee."""


def applies(arm: str, setting: Setting) -> bool:
    """Which arms a part has.

    Examples
    --------
    >>> [applies("lsh", {"part": part}) for part in ("constructions", "curve", "learned")]
    [False, True, False]
    """
    return (
        arm
        in {"constructions": ("softmax",), "curve": CURVE, "learned": MIXERS}[str(setting["part"])]
    )


def measure(arm: str, group: Group) -> Iterable[Measured]:
    """The numbers of one arm in one part.

    Constructions, by ``construction``, ``n``, ``signs`` and ``precision``: ``wrong``,
    ``margin_yes``, ``margin_no``. Curve, by ``n``: ``time``, ``flops``, ``recall``; and
    ``exponent``, with ``exponent_error`` where theory has one. Learned, by ``n`` (and ``features``
    for linear attention and the hybrid): ``accuracy``, ``state``, ``load``; over all n ``worst``,
    ``fall`` and ``knee``; for linear attention ``unexplained``, by ``variable``.
    """
    part = {"constructions": _constructions, "curve": _curve, "learned": _learned}
    return list(part[str(group.setting["part"])](arm, group.seed, group.parameters))


def _constructions(_arm: str, seed: int, numbers: Mapping[str, Any]) -> Iterator[Measured]:
    from zeitgeist.compression.limits_constructions import check_construction

    for name in ("ov", "threshold", "cosine"):
        for n in numbers["sizes"]:
            for signs in numbers["signs"]:
                for precision, dtype in PRECISIONS.items():
                    found = check_construction(name, n, signs, dtype=dtype, seed=seed)
                    labels = {
                        "construction": name,
                        "n": n,
                        "signs": signs,
                        "precision": precision,
                    }
                    yield Measured("wrong", 1.0 - float(found["correct"]), labels)
                    yield Measured("margin_yes", float(found["margin_yes"]), labels)
                    yield Measured("margin_no", float(found["margin_no"]), labels)


def _curve(arm: str, seed: int, numbers: Mapping[str, Any]) -> Iterator[Measured]:
    from zeitgeist.compression.limits_curve import exponent, measure_curve

    points = measure_curve(
        [arm], numbers["sizes"], length=numbers["l"], seed=seed, repeats=numbers["repeats"]
    )
    for point in points:
        labels = {"n": int(point["n"])}
        yield Measured("time", float(point["seconds"]), labels)
        yield Measured("flops", float(point["flops"]), labels)
        yield Measured("recall", float(point["recall"]), labels)
    fitted = exponent([int(p["n"]) for p in points], [float(p["seconds"]) for p in points])
    yield Measured("exponent", fitted)
    if arm in EXPECTED:
        yield Measured("exponent_error", fitted - EXPECTED[arm])


def _learned(arm: str, seed: int, numbers: Mapping[str, Any]) -> Iterator[Measured]:
    options, sizes = StateSizeOptions(**numbers["options"]), numbers["sizes"]
    several = {"linear": numbers["features"], "hybrid": numbers["hybrid"]}.get(arm, (0,))
    together: list[tuple[float, int, float, float]] = []
    mixer = next(each for each in MIXERS if each == arm)
    for features in several:
        named = {"features": features} if features else {}
        accuracy = train_reader(mixer, sizes, options, features=features or 2, seed=seed)
        for n, share in accuracy.items():
            state = state_size(mixer, n, options, features)
            full = load(n, options.signs, state)
            yield Measured("accuracy", share, {**named, "n": n})
            yield Measured("state", state, {**named, "n": n})
            yield Measured("load", full, {**named, "n": n})
            per_feature = load(n, options.signs, features) if features else full
            together.append((share, n, full, per_feature))
        yield Measured("worst", min(accuracy.values()), named)
        yield Measured("fall", accuracy[min(sizes)] - accuracy[max(sizes)], named)
        yield Measured("knee", knee(sizes, [accuracy[n] for n in sizes]), named)
    if arm == "linear":
        shares, *variables = (
            torch.tensor(x, dtype=torch.float64) for x in zip(*together, strict=True)
        )
        for variable, values in zip(("n", "load", "load_per_feature"), variables, strict=True):
            yield Measured("unexplained", unexplained(shares, values), {"variable": variable})


def knee(sizes: Sequence[int], accuracy: Sequence[float], level: float = KNEE) -> float:
    """log2 of the n at which accuracy first falls below a level.

    Parameters
    ----------
    sizes, accuracy
        By rising n; between them accuracy is taken as straight in log n.
    level
        Of accuracy.

    Returns
    -------
    float
        At least log2 of the least n and at most that of the greatest, where the curve lies below
        or above the level throughout.

    Examples
    --------
    >>> knee([4, 16, 64], [0.95, 0.75, 0.6])
    3.0
    >>> knee([4, 16], [0.99, 0.98]), knee([4, 16], [0.7, 0.6])
    (4.0, 2.0)
    """
    if accuracy[0] < level:
        return log2(sizes[0])
    for i in range(1, len(sizes)):
        if accuracy[i] < level:
            through = (accuracy[i - 1] - level) / (accuracy[i - 1] - accuracy[i])
            start, end = log2(sizes[i - 1]), log2(sizes[i])
            return round(start + through * (end - start), 9)
    return log2(sizes[-1])
