"""Digits as a stream of tasks: pixels permuted, pictures turned, or two classes at a time.

Pictures of 8 x 8 pixels from scikit-learn's ``load_digits`` (they come with the package), split by
the seed into 1,000 to learn from, 297 to choose by and 500 to score on.

    permuted   every task has an order of the 64 pixels of its own
    rotated    task t is turned by 180 t / T degrees
    split      five tasks of two digits; the label says which of the two (one head for all tasks)

N pictures, T tasks
"""

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from zeitgeist.errors import ExtraMissing

try:
    from sklearn.datasets import load_digits
except ImportError as missing:
    raise ExtraMissing.named("studies", "the digits") from missing

StreamName = Literal["permuted", "rotated", "split"]
TRAIN, VALIDATION = 1000, 297
SIDE, CLASSES, PAIRS = 8, 10, 5


class Part(NamedTuple):
    """Pictures and labels of a task."""

    pictures: Float[Tensor, "N 64"]
    labels: Int[Tensor, " N"]


@dataclass(frozen=True)
class Stream:
    """The tasks, each in three parts."""

    train: tuple[Part, ...]
    validation: tuple[Part, ...]
    test: tuple[Part, ...]


def turned(pictures: Float[Tensor, "N 64"], degrees: float) -> Float[Tensor, "N 64"]:
    """Pictures turned about their middle, bilinear; outside is background.

    Examples
    --------
    >>> bool(torch.allclose(turned(torch.eye(64), 0.0), torch.eye(64), atol=1e-5))
    True
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
    images = pictures.view(-1, 1, SIDE, SIDE) + 1  # the background is -1
    grid = functional.affine_grid(
        turn.expand(len(images), 2, 3), list(images.shape), align_corners=False
    )
    made: Tensor = functional.grid_sample(images, grid, align_corners=False)
    return made.view(-1, SIDE * SIDE) - 1


def stream(name: str, seed: int, tasks: int) -> Stream:
    """Draw a stream.

    Parameters
    ----------
    name
        One of `StreamName`.
    seed
        Of the split, the permutations, and which digits are a pair.
    tasks
        How many; ``split`` has five at most.

    Examples
    --------
    >>> drawn = stream("split", seed=0, tasks=5)
    >>> len(drawn.train), sorted(set(drawn.test[0].labels.tolist()))
    (5, [0, 1])
    """
    found = load_digits()
    pictures = torch.from_numpy(found.data).float() / 8 - 1
    digits = torch.from_numpy(found.target).long()
    random = np.random.default_rng([seed, 11])
    order = torch.from_numpy(random.permutation(len(digits)))
    places = order.split([TRAIN, VALIDATION, len(order) - TRAIN - VALIDATION])
    pairs = random.permutation(CLASSES).reshape(PAIRS, 2)
    parts: list[list[Part]] = [[], [], []]
    for task in range(min(tasks, PAIRS) if name == "split" else tasks):
        pixels = torch.from_numpy(random.permutation(SIDE * SIDE))
        for part, at in zip(parts, places, strict=True):
            shown, labels = pictures[at], digits[at]
            if name == "permuted":
                shown = shown[:, pixels]
            elif name == "rotated":
                shown = turned(shown, 180 * task / tasks)
            else:
                own = torch.isin(labels, torch.from_numpy(pairs[task]))
                shown, labels = shown[own], (labels[own] == int(pairs[task][1])).long()
            part.append(Part(shown, labels))
    return Stream(*(tuple(part) for part in parts))
