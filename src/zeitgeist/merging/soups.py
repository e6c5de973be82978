"""Greedy soup: which of many fine-tunes to average.

Several fine-tunes of one base (a sweep over learning rates, say) are averaged; the average costs at
inference what one of them costs. Averaging all of them is ``linear`` with equal weights. The greedy
soup asks a held-out set which ones belong.

Wortsman, Ilharco, Gadre, Roelofs, Gontijo-Lopes, Morcos, Namkoong, Farhadi, Carmon, Kornblith,
Schmidt: "Model soups: averaging weights of multiple fine-tuned models improves accuracy without
increasing inference time", arXiv 2203.05482 (ICML 2022), Recipe 1:

    sort theta_1..theta_n by held-out score, best first;  soup = {}
    for each theta_i:  soup = soup + {theta_i}  if  score(soup + {theta_i}) >= score(soup)

where the score of a set is that of the mean of its weights.

The official code (mlfoundations/model-soups) asks for > instead of >=; that is ``strict=True``.

What a member is and how a mean is made and scored stays with the caller: here are indices only.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from tqdm import tqdm

from zeitgeist.errors import InputInvalid


@dataclass(frozen=True)
class Trial:
    """One average that was scored.

    Parameters
    ----------
    members
        Indices of the averaged models, in the order they were added.
    score
        Its held-out score.
    kept
        Whether the soup took the last of ``members`` in.
    """

    members: tuple[int, ...]
    score: float
    kept: bool


@dataclass(frozen=True)
class GreedySoup:
    """What the greedy recipe chose.

    Parameters
    ----------
    members
        Indices of the models to average, best single model first.
    score
        Held-out score of their average.
    singles
        Held-out score of every model alone.
    trials
        Everything that was tried after the best single model, in order.
    """

    members: tuple[int, ...]
    score: float
    singles: tuple[float, ...]
    trials: tuple[Trial, ...]


def greedy_soup(
    n: int,
    score: Callable[[tuple[int, ...]], float],
    *,
    singles: Sequence[float] | None = None,
    strict: bool = False,
    progress: bool | None = None,
) -> GreedySoup:
    """Choose the members of a soup, one held-out score at a time.

    Parameters
    ----------
    n
        Number of models.
    score
        Held-out score, higher is better, of the average of the models with these indices. A loss
        goes in with its sign changed. Called n - 1 times, and n times more for the single models
        unless ``singles`` is given.
    singles
        Scores of the single models, if they are known.
    strict
        Add a model only when the score rises (official code), not already when it does not fall
        (paper).
    progress
        Show a bar on stderr; ``None``: when it is a terminal.

    Returns
    -------
    GreedySoup
        Equal single scores keep the order of the models. A score that is not a number never
        enters the soup.

    Raises
    ------
    InputInvalid
        No models, a wrong number of ``singles``, or no single score that is a number.

    Examples
    --------
    >>> skill = [0.7, 0.1, 0.9]
    >>> soup = greedy_soup(3, lambda members: sum(skill[i] for i in members) / len(members) ** 0.5)
    >>> soup.members, round(soup.score, 2)
    ((2, 0), 1.13)
    """
    if n < 1:
        raise InputInvalid(f"a soup of {n} models", mend="give at least one")
    if singles is not None and len(singles) != n:
        raise InputInvalid(f"{len(singles)} single scores for {n} models")
    hidden = None if progress is None else not progress
    with tqdm(
        total=n - 1 + (0 if singles is not None else n),
        desc="greedy soup",
        unit="score",
        disable=hidden,
    ) as bar:

        def scored(members: tuple[int, ...]) -> float:
            value = float(score(members))
            bar.update()
            return value

        alone = tuple(scored((i,)) for i in range(n)) if singles is None else tuple(singles)
        numbers = [i for i in range(n) if not math.isnan(alone[i])]
        if not numbers:
            raise InputInvalid(
                f"none of the {n} models has a score that is a number",
                mend="check the held-out data",
            )
        order = sorted(numbers, key=lambda i: -alone[i])
        members: tuple[int, ...] = (order[0],)
        best, trials = alone[order[0]], []
        for i in order[1:]:
            value = scored((*members, i))
            kept = value > best if strict else value >= best
            trials.append(Trial((*members, i), value, kept))
            if kept:
                members, best = (*members, i), value
    return GreedySoup(members, best, alone, tuple(trials))
