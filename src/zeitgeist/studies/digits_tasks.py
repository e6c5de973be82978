"""Many tasks on the same handwritten digits: every task is a map from the digits to four labels.

Pictures of 8 x 8 pixels from scikit-learn's ``load_digits`` (they come with the package). Task t
asks for y = m_t(digit), where m_t gives each of the ten digits one of four labels at random: tasks
share everything about seeing and nothing about naming.

N pictures, T tasks
"""

from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeitgeist.errors import ExtraMissing

try:
    from sklearn.datasets import load_digits
except ImportError as missing:
    raise ExtraMissing.named("studies", "the digits") from missing

PIXELS, DIGITS, LABELS = 64, 10, 4
TRAIN, VALIDATION = 1000, 297  # the other 500 pictures are the test


class Part(NamedTuple):
    """Pictures, and their labels in every task."""

    pictures: Float[Tensor, "N 64"]
    labels: Int[Tensor, "N T"]


@dataclass(frozen=True)
class Digits:
    """The pictures in three parts."""

    train: Part
    validation: Part
    test: Part


def label_maps(seed: int, tasks: int) -> Int[Tensor, "T 10"]:
    """One random map from digits to four labels per task; every label occurs.

    Examples
    --------
    >>> maps = label_maps(0, 12)
    >>> maps.shape, sorted(set(maps[0].tolist()))
    (torch.Size([12, 10]), [0, 1, 2, 3])
    """
    random = np.random.default_rng([seed, 0])
    made: list[list[int]] = []
    while len(made) < tasks:
        drawn = random.integers(LABELS, size=DIGITS).tolist()
        if len(set(drawn)) == LABELS and drawn not in made:
            made.append(drawn)
    return torch.tensor(made)


def split_digits(seed: int, tasks: int) -> Digits:
    """The pictures shuffled by the seed into train, validation and test, labelled for all tasks."""
    pictures, digits = _digits()
    order = torch.from_numpy(np.random.default_rng([seed, 1]).permutation(len(digits)))
    labels = label_maps(seed, tasks)[:, digits].T
    parts = order.split([TRAIN, VALIDATION, len(order) - TRAIN - VALIDATION])
    return Digits(*(Part(pictures[part], labels[part]) for part in parts))


@cache
def _digits() -> tuple[Float[Tensor, "N 64"], Int[Tensor, " N"]]:
    found = load_digits()
    pictures = torch.from_numpy(found.data).float() / 8 - 1
    return pictures, torch.from_numpy(found.target).long()
