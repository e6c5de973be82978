"""Pick one of K sampled answers: the first guess, chance, the majority, a probe, the best there is.

Orgad et al., "LLMs know more than they show", arXiv 2410.02707, section 6. The probe's pick is the
sample of the highest P(right); a sample whose exact answer cannot be found scores nothing. The
majority is right where right answers outnumber the largest cluster of wrong ones, chance is right
c / K of the time, and the oracle wherever c > 0.

q questions   K samples   k bootstrap draws
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.roc import entity_draws

__all__ = ["WAYS", "Picked", "Selection", "select"]

WAYS = ("greedy", "random", "majority", "probe", "oracle")


@dataclass(frozen=True)
class Picked:
    """Accuracy of one way among some questions, and how far the probe's pick is above it."""

    way: str
    kind: str
    questions: int
    accuracy: float
    low: float
    high: float
    gain: float
    gain_low: float
    gain_high: float


@dataclass(frozen=True)
class Selection:
    """``right`` has how surely each way is right on every question, ``rows`` the accuracies."""

    right: Mapping[str, Float[Tensor, " q"]]
    rows: tuple[Picked, ...]

    def accuracy(self, way: str, kind: str = "all") -> float:
        """Of one way, among all questions or those of an error type."""
        return next(row.accuracy for row in self.rows if (row.way, row.kind) == (way, kind))


def chances(
    correct: Bool[Tensor, "q K"],
    score: Float[Tensor, "q K"],
    valid: Bool[Tensor, "q K"],
    largest: Int[Tensor, " q"],
    greedy: Bool[Tensor, " q"],
) -> dict[str, Float[Tensor, " q"]]:
    """How surely each way is right on each question.

    Samples that tie for the highest score are picked from by chance, and so are all where none is
    valid: a pick must not depend on the order of the samples.

    Examples
    --------
    >>> correct = torch.tensor([[True, False, False, False]])
    >>> score, valid = torch.tensor([[0.9, 0.9, 0.1, 1.0]]), torch.tensor([[True] * 3 + [False]])
    >>> found = chances(correct, score, valid, torch.tensor([2]), torch.tensor([True]))
    >>> [float(found[way]) for way in WAYS]
    [1.0, 0.25, 0.0, 0.5, 1.0]
    """
    counted = correct.sum(-1)
    seen = torch.where(valid, score.double(), -torch.inf)
    top = seen == seen.amax(-1, keepdim=True)
    return {
        "greedy": greedy.double(),
        "random": correct.double().mean(-1),
        "majority": (counted > largest).double(),
        "probe": (top & correct).sum(-1).double() / top.sum(-1),
        "oracle": (counted > 0).double(),
    }


def select(
    correct: Bool[Tensor, "q K"],
    score: Float[Tensor, "q K"],
    valid: Bool[Tensor, "q K"],
    largest: Int[Tensor, " q"],
    greedy: Bool[Tensor, " q"],
    groups: Sequence[str],
    *,
    kinds: Sequence[frozenset[str]] = (),
    draws: int = 2000,
    level: float = 0.95,
    seed: int = 0,
) -> Selection:
    """Compare ways of picking one of K samples, over all questions and by error type.

    Parameters
    ----------
    correct
        Whether each sample is right.
    score
        The probe's P(right), from a probe that has not seen the question's entity.
    valid
        Whether its exact answer was found.
    largest
        Size of each question's largest wrong cluster.
    greedy
        Whether the greedy answer is right.
    groups
        The entity of each question; entities are drawn again.
    kinds
        Error types of every question; empty: only all questions.
    draws, level, seed
        Of the bootstrap.

    Returns
    -------
    Selection
        A row per way and type, with the probe's gain over that way on the same drawn questions.

    Raises
    ------
    InputInvalid
        There is no sample or no question.

    Examples
    --------
    >>> correct = torch.arange(20).view(10, 2) % 2 == 0
    >>> wrong, valid = torch.ones(10, dtype=torch.int64), torch.ones_like(correct)
    >>> found = select(correct, 1.0 * correct, valid, wrong, correct[:, 1], list("abcdefghij"))
    >>> [found.accuracy(way) for way in WAYS]
    [0.0, 0.5, 0.0, 1.0, 1.0]
    """
    if not correct.numel():
        raise InputInvalid(
            f"there are {correct.shape[1]} samples of {correct.shape[0]} questions",
            mend="give at least one of each",
        )
    right = chances(correct, score, valid, largest, greedy)
    weight = torch.cat([torch.ones(1, len(groups)), entity_draws(groups, draws, seed)]).double()
    tails = torch.tensor([(1 - level) / 2, (1 + level) / 2], dtype=torch.float64)

    def interval(values: Tensor, among: Tensor) -> tuple[float, float, float]:
        kept = weight[:, among]
        means = (kept @ values[among]) / kept.sum(-1)
        drawn = means[1:][torch.isfinite(means[1:])]
        low, high = torch.quantile(drawn, tails).tolist()
        return float(means[0]), low, high

    among = {"all": torch.ones(len(groups), dtype=torch.bool)}
    for name in sorted({name for each in kinds for name in each}):
        among[name] = torch.tensor([name in each for each in kinds])
    rows = [
        Picked(
            way,
            kind,
            int(members.sum()),
            *interval(right[way], members),
            *interval(right["probe"] - right[way], members),
        )
        for kind, members in among.items()
        for way in WAYS
    ]
    return Selection(right, tuple(rows))
