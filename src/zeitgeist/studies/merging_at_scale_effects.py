"""How much each circumstance of a merge matters: one regression for all of them.

With y the held-in accuracy of a merge relative to its experts, ordinary least squares inside every
seed s on all its merges,

    y = a_s + b_w log2(width) + b_k K + b_z z + b_m [method = m] + e

K the number of experts, z the base's zero-shot accuracy on the tasks that are merged, and averaging
the method that others are compared with. Merges of one seed share their experts, so the seed is
the unit: an effect is the mean of its coefficients over seeds, with the bootstrap-t interval that
verdicts use. Standardised effects say by how many standard deviations y moves when a number moves
by one of its own, or when the method changes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from zeitgeist.evidence.verdicts import pivot
from zeitgeist.studies.merging_at_scale_digits import METHODS

NUMBERS = {
    "log2 width": "per doubling of the width",
    "experts": "per expert more",
    "base score": "per point of zero-shot accuracy",
}
_POINT = 0.01


@dataclass(frozen=True)
class Effect:
    """One coefficient: standardised, and as it is in the unit that ``unit`` names.

    Ends of intervals are infinite where there are too few seeds.
    """

    name: str
    unit: str
    standardised: float
    low: float
    high: float
    raw: float
    raw_low: float
    raw_high: float
    seeds: int


def effect_sizes(rows: Iterable[Mapping[str, Any]]) -> list[Effect]:
    """Effects of width, number of experts, base score and method on held-in accuracy.

    Parameters
    ----------
    rows
        Of the study; those of the digits family are used. What does not vary is left out.

    Returns
    -------
    list of Effect
        Numbers first, then methods against averaging. Empty where a seed has fewer merges than
        there are coefficients.

    Examples
    --------
    >>> cell = {"family": "digits", "seed": 0, "set": 0}
    >>> rows = [
    ...     {**cell, "arm": arm, "width": w, "base": "weak", "experts": k, "metric": m, "value": v}
    ...     for arm in ("average", "ties") for w in (8, 16) for k in (2, 8)
    ...     for m, v in (("held_in", 0.1 * w / 8 - 0.01 * k + 0.02 * (arm == "ties")),
    ...                  ("zero_shot", 0.5))
    ... ]
    >>> [(effect.name, round(effect.raw, 3)) for effect in effect_sizes(rows)]
    [('log2 width', 0.1), ('experts', -0.01), ('ties', 0.02)]
    """
    merges = _merges(rows)
    if not merges:
        return []
    methods = [m for m in METHODS[1:] if any(merge["arm"] == m for merge in merges)]
    names = [*NUMBERS, *methods]
    x = np.array(
        [
            [
                np.log2(merge["width"]),
                merge["experts"],
                merge["zero_shot"] / _POINT,
                *(merge["arm"] == method for method in methods),
            ]
            for merge in merges
        ],
        dtype=np.float64,
    )
    y = np.array([merge["held_in"] for merge in merges])
    seeds = np.array([merge["seed"] for merge in merges])
    varies = x.std(axis=0) > 0
    x, names = x[:, varies], [name for name, kept in zip(names, varies, strict=True) if kept]
    if min(np.unique(seeds, return_counts=True)[1]) <= len(names):
        return []
    found = np.stack([_slopes(x[seeds == s], y[seeds == s]) for s in np.unique(seeds)])
    spread = np.array(
        [x[:, i].std() if name in NUMBERS else 1.0 for i, name in enumerate(names)]
    ) / (y.std() or 1.0)
    return [_effect(n, found[:, i].tolist(), float(spread[i])) for i, n in enumerate(names)]


def _merges(rows: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One record per merge of the digits family, with its held-in and zero-shot scores."""
    found: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        wanted = row["metric"] in ("held_in", "zero_shot") and row["arm"] in METHODS
        if wanted and row.get("family") == "digits" and row.get("experts") is not None:
            columns = ("seed", "arm", "width", "base", "experts", "set")
            key = tuple(row[column] for column in columns)
            merge = found.setdefault(key, dict(zip(columns, key, strict=True)))
            merge[row["metric"]] = row["value"]
    return [merge for merge in found.values() if "held_in" in merge and "zero_shot" in merge]


def _slopes(x: Float[np.ndarray, "n p"], y: Float[np.ndarray, " n"]) -> Float[np.ndarray, " p"]:
    solution: Float[np.ndarray, " p"] = np.linalg.lstsq(
        x - x.mean(axis=0), y - y.mean(), rcond=None
    )[0]
    return solution


def _effect(name: str, slopes: Iterable[float], spread: float) -> Effect:
    known = pivot([np.array([slope]) for slope in slopes])
    low, high = known.interval()
    return Effect(
        name,
        NUMBERS.get(name, "against averaging"),
        known.mean * spread,
        low * spread,
        high * spread,
        known.mean,
        low,
        high,
        known.seeds,
    )
