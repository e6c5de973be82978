"""Folds that keep an entity whole, and labels shuffled inside them.

n rows   m labellings
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from zeitgeist.errors import InputInvalid

__all__ = ["grouped_folds", "shuffled"]


def grouped_folds(
    y: Int[Tensor, " n"] | Bool[Tensor, " n"], groups: Sequence[str], folds: int, seed: int
) -> Int[Tensor, " n"]:
    """A fold for every row: groups stay whole, classes are spread evenly.

    Groups come in a drawn order, those that hold most of a class first, and each goes where the
    classes it holds are fewest.

    Raises
    ------
    InputInvalid
        Too few groups to give every fold rows of every class.

    Examples
    --------
    >>> grouped_folds(torch.tensor([1, 1, 0, 0]), ["a", "b", "c", "d"], 2, seed=0).bincount()
    tensor([2, 2])
    """
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    classes = int(y.max()) + 1 if len(y) else 0
    counts = np.zeros((len(names), classes))
    np.add.at(counts, (member, y.cpu().numpy().astype(int)), 1)
    total = counts.sum(0).clip(1)
    draw = np.random.default_rng(seed).permutation(len(names))
    order = draw[np.argsort(-(counts[draw] / total).max(1), kind="stable")]
    filled = np.zeros((folds, classes))
    fold = np.zeros(len(names), dtype=np.int64)
    for group in order:
        # The squares grow least where what this group brings is rare.
        wish = ((filled + counts[group]) ** 2 - filled**2) / total
        fold[group] = min(range(folds), key=lambda k: (wish[k].sum(), filled[k].sum(), k))
        filled[fold[group]] += counts[group]
    if len(names) < folds or (filled[:, counts.sum(0) > 0] == 0).any():
        raise InputInvalid(
            f"{len(names)} entities do not fill {folds} folds with answers of every class",
            mend="give more questions or fewer folds",
        )
    return torch.from_numpy(fold[member])


def shuffled(
    y: Bool[Tensor, " n"],
    groups: Sequence[str],
    fold: Int[Tensor, " n"],
    count: int,
    seed: int,
) -> Bool[Tensor, "m n"]:
    """Labels shuffled inside folds, so that classes stay spread; entities keep theirs together.

    Entities swap labels with entities of as many rows in their fold.
    """
    draws = np.random.default_rng(seed)
    rows: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        rows.setdefault(group, []).append(index)
    alike: dict[tuple[int, int], list[list[int]]] = {}
    for indices in rows.values():
        alike.setdefault((int(fold[indices[0]]), len(indices)), []).append(indices)
    places = [np.array(each) for each in alike.values()]
    labels = y.cpu().numpy()
    made = np.empty((count, len(y)), dtype=bool)
    for row in made:
        for place in places:
            row[place] = labels[place[draws.permutation(len(place))]]
    return torch.from_numpy(made)
