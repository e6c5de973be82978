"""Areas under the ROC curve: batched, inside folds, and with entities drawn again.

The area is how often a right answer scores above a wrong one, ties half: Mann and Whitney's U over
the number of pairs.

n rows   k bootstrap draws
"""

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

__all__ = ["auc", "entity_draws", "pairs_auc"]


def auc(y: Bool[Tensor, "*#b n"], score: Float[Tensor, "*#b n"]) -> Float[Tensor, "*b"]:
    """Area under the ROC curve: how often a positive row scores above a negative one, ties half.

    Examples
    --------
    >>> auc(torch.tensor([True, True, False]), torch.tensor([2.0, 1.0, 1.0]))
    tensor(0.7500, dtype=torch.float64)
    """
    score, _ = torch.broadcast_tensors(score, y)
    score = score.contiguous()
    ordered = score.sort(-1).values
    below = torch.searchsorted(ordered, score)
    upto = torch.searchsorted(ordered, score, right=True)
    rank = (below + upto + 1).double() / 2
    ones = y.sum(-1)
    wins = (rank * y).sum(-1) - ones * (ones + 1) / 2
    return wins / (ones * (y.shape[-1] - ones))


def pairs_auc(
    y: Bool[Tensor, " n"],
    score: Float[Tensor, " n"],
    fold: Int[Tensor, " n"] | None = None,
    weight: Float[Tensor, "k n"] | None = None,
) -> Float[Tensor, " k"]:
    """Area under the curve over pairs of one fold, with rows weighted (by bootstrap counts).

    Examples
    --------
    >>> y = torch.tensor([True, False, True, False])
    >>> pairs_auc(y, torch.tensor([1.0, 0.0, 9.0, 8.0]), torch.tensor([0, 0, 1, 1]))
    tensor([1.], dtype=torch.float64)
    """
    right, wrong = score[y].double(), score[~y].double()
    wins = (right[:, None] > wrong).double() + (right[:, None] == wrong).double() / 2
    pairs = torch.ones_like(wins)
    if fold is not None:
        pairs = (fold[y][:, None] == fold[~y]).double()
        wins = wins * pairs
    if weight is None:
        return (wins.sum() / pairs.sum())[None]
    one, other = weight[:, y].double(), weight[:, ~y].double()
    return ((one @ wins) * other).sum(-1) / ((one @ pairs) * other).sum(-1)


def entity_draws(groups: Sequence[str], draws: int, seed: int) -> Float[Tensor, "k n"]:
    """How often each row is drawn when entities are drawn again with replacement."""
    names, member = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    generator = np.random.default_rng(seed)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)
    return torch.from_numpy(counts[:, member].astype(np.float64))
