"""What kind of error a question is: ask it K times and look at which answers come how often.

Orgad et al., "LLMs know more than they show", arXiv 2410.02707, section 5. Right answers are one
cluster of size c. Wrong ones are clustered by their exact answer, merged where one contains the
other; w is the size of the largest, d how many there are. With K samples

    A   refuses                 "no answer" is the largest wrong cluster, and larger than c
    B1  mostly right            c >= K/2 and d > 0        B2  always right   c = K
    C1  mostly wrong            w >= K/2, not A, c > 0    C2  always wrong   the same with c = 0
    D   two compete             |c - w| <= K/6, c > K/6, w > K/6
    E1  many answers            d >= K/3 - 1, c > 0       E2  none right     d >= K/3, c = 0

The paper has K = 30 and so 15, 10 and 5 (9 for E1). Types overlap and leave questions out: both are
counted here.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import combinations

import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.probe_evaluation import nested
from zeitgeist.inspection.probes import ProbeOptions

__all__ = ["TYPES", "Clusters", "TypeTable", "cluster", "error_types", "predict_types", "tabulate"]

TYPES = {
    "A": "refuses",
    "B1": "mostly right",
    "B2": "always right",
    "C1": "mostly wrong",
    "C2": "always wrong",
    "D": "two answers compete",
    "E1": "many answers, one right",
    "E2": "many answers, none right",
}


@dataclass(frozen=True)
class Clusters:
    """The samples of one question.

    ``right`` is c, ``wrong`` the sizes of the wrong clusters, largest first, ``unanswered`` how
    many samples hold no answer; these are one of the wrong clusters.
    """

    right: int
    wrong: tuple[int, ...]
    unanswered: int

    @property
    def samples(self) -> int:
        """K."""
        return self.right + sum(self.wrong)

    @property
    def largest(self) -> int:
        """w."""
        return max(self.wrong, default=0)


def cluster(answers: Sequence[str | None], correct: Sequence[bool]) -> Clusters:
    """Put the samples of one question together by what they answer.

    Merging goes on through chains ("the", "the Nile", "Nile"), so that the order of the samples
    does not matter.

    Parameters
    ----------
    answers
        The exact answer of every sample; None or blank: it has none.
    correct
        Whether it is right.

    Raises
    ------
    InputInvalid
        No samples, or as many answers as labels there are not.

    Examples
    --------
    >>> cluster(["Paris", "Lyon", "in lyon", "Nice", None], [True, False, False, False, False])
    Clusters(right=1, wrong=(2, 1, 1), unanswered=1)
    """
    if not answers or len(answers) != len(correct):
        raise InputInvalid(
            f"there are {len(answers)} answers and {len(correct)} labels",
            mend="give one label for each sample, and at least one",
        )
    said = Counter(
        (answer or "").strip().casefold()
        for answer, right in zip(answers, correct, strict=True)
        if not right
    )
    unanswered = said.pop("", 0)
    parent = {word: word for word in said}

    def root(word: str) -> str:
        while parent[word] != word:
            word = parent[word]
        return word

    for one, other in combinations(said, 2):
        if one in other or other in one:
            parent[root(one)] = root(other)
    sizes = Counter[str]()
    for word, count in said.items():
        sizes[root(word)] += count
    wrong = [*sizes.values(), *([unanswered] if unanswered else [])]
    return Clusters(sum(map(bool, correct)), tuple(sorted(wrong, reverse=True)), unanswered)


def error_types(
    right: int, largest: int, distinct: int, unanswered: int, samples: int
) -> frozenset[str]:
    """All types that a question has, by the rules above.

    Parameters
    ----------
    right, largest, distinct
        c, w and d.
    unanswered
        Samples without an answer.
    samples
        K.

    Examples
    --------
    >>> sorted(error_types(15, 12, 3, 0, 30)), sorted(error_types(0, 3, 10, 0, 30))
    (['B1', 'D'], ['E2'])
    >>> error_types(6, 12, 5, 0, 30)
    frozenset()
    """
    c, w, d, k = right, largest, distinct, samples
    refuses = unanswered == w and unanswered > c
    # Compared in whole numbers: K/3 has no exact float.
    found = {
        "A": refuses,
        "B1": 2 * c >= k and d > 0,
        "B2": c == k,
        "C1": 2 * w >= k and not refuses and c > 0,
        "C2": 2 * w >= k and not refuses and c == 0,
        "D": 6 * abs(c - w) <= k and 6 * c > k and 6 * w > k,
        "E1": 3 * (d + 1) >= k and c > 0,
        "E2": 3 * d >= k and c == 0,
    }
    return frozenset(name for name, holds in found.items() if holds)


def types_of(clusters: Clusters) -> frozenset[str]:
    """The types of a question by its clusters.

    Examples
    --------
    >>> types_of(Clusters(0, (6, 4), 6))
    frozenset({'A'})
    """
    return error_types(
        clusters.right,
        clusters.largest,
        len(clusters.wrong),
        clusters.unanswered,
        clusters.samples,
    )


@dataclass(frozen=True)
class TypeTable:
    """How many questions have a type, two at once (a type with itself: that type), or none."""

    questions: int
    counts: Mapping[str, int]
    overlaps: Mapping[tuple[str, str], int]
    untyped: int
    several: int


def tabulate(found: Sequence[frozenset[str]]) -> TypeTable:
    """Count types and their overlaps over questions.

    Examples
    --------
    >>> table = tabulate([frozenset({"B1", "D"}), frozenset({"D"}), frozenset()])
    >>> table.counts["D"], table.overlaps["B1", "D"], table.untyped, table.several
    (2, 1, 1, 1)
    """
    return TypeTable(
        len(found),
        {name: sum(name in each for each in found) for name in TYPES},
        {
            (one, other): sum(one in each and other in each for each in found)
            for one in TYPES
            for other in TYPES
        },
        sum(not each for each in found),
        sum(len(each) > 1 for each in found),
    )


def predict_types(
    x: Float[Tensor, "n L P d"],
    found: Sequence[frozenset[str]],
    groups: Sequence[str],
    options: ProbeOptions | None = None,
    *,
    seed: int = 0,
) -> dict[str, float | None]:
    """Area under the curve of each type against the rest, by probes of the greedy answers' states.

    Parameters
    ----------
    x
        Features of the greedy answers, one row per question.
    found
        Types of every question.
    groups
        The entity of every question.
    options, seed
        See `zeitgeist.inspection.probe_evaluation.nested`.

    Returns
    -------
    dict
        None where fewer than ``min_class`` questions have the type, or have it not, or these are
        about too few entities.
    """
    chosen = options or ProbeOptions()
    values: dict[str, float | None] = dict.fromkeys(TYPES)
    for name in TYPES:
        y = torch.tensor([name in each for each in found])
        rows = int(y.sum())
        enough = min(rows, len(y) - rows) >= chosen.min_class
        with suppress(InputInvalid):
            values[name] = nested(x, y, groups, chosen, seed=seed).auc if enough else None
    return values
