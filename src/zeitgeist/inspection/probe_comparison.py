"""Detectors side by side: probes and scores that need no training, on the same answers.

n rows
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.probe_evaluation import Nested
from zeitgeist.inspection.roc import entity_draws, pairs_auc

__all__ = ["Compared", "compare"]


@dataclass(frozen=True)
class Compared:
    """A detector's area under the curve, and how far the reference is above it, with intervals."""

    name: str
    auc: float
    low: float
    high: float
    behind: float
    behind_low: float
    behind_high: float


def compare(
    y: Bool[Tensor, " n"],
    groups: Sequence[str],
    probes: Mapping[str, Sequence[Nested]],
    scores: Mapping[str, Float[Tensor, " n"]],
    *,
    reference: str,
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> tuple[Compared, ...]:
    """Probes beside scores that need no training, on the same rows, entities drawn again together.

    Parameters
    ----------
    y
        Labels; True: the answer is right.
    groups
        The entity each row is about.
    probes
        Name to what `nested` found, one per seed; seeds are averaged.
    scores
        Name to a score per row, higher for answers that look right.
    reference
        The name that the others are compared with.
    draws, level, seed
        Of the bootstrap.

    Returns
    -------
    tuple of Compared
        Probes first, in the order given.

    Raises
    ------
    InputInvalid
        The reference is not among the names.

    Examples
    --------
    >>> y = torch.arange(40) % 2 == 0
    >>> rows = compare(y, list(map(str, range(40))), {}, {"says": y.float(), "not": -y.float()},
    ...                reference="says", draws=50)
    >>> rows[1].auc, rows[1].behind
    (0.0, 1.0)
    """
    names = [*probes, *scores]
    if reference not in names:
        raise InputInvalid(f"the reference {reference!r} is not known", mend=f"of {names}")
    weight = torch.cat([torch.ones(1, len(y)), entity_draws(groups, draws, seed)])
    found = {
        name: torch.stack([pairs_auc(y, each.score, each.fold, weight) for each in runs]).mean(0)
        for name, runs in probes.items()
    }
    found |= {name: pairs_auc(y, score, None, weight) for name, score in scores.items()}
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)

    def interval(values: Tensor) -> tuple[float, float, float]:
        drawn = values[1:][torch.isfinite(values[1:])]
        low, high = torch.quantile(drawn, tails).tolist()
        return float(values[0]), low, high

    return tuple(
        Compared(name, *interval(found[name]), *interval(found[reference] - found[name]))
        for name in names
    )
