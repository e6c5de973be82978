"""What was learned and what was lost, from a matrix of accuracies.

R[i, j] is the accuracy on task j after task i was learned (T x T), b[j] that of the untrained
model.

    ACC = mean_j R[T, j]                                LA  = mean_j R[j, j]
    BWT = mean_{j<T} (R[T, j] - R[j, j])                FWT = mean_{j>1} (R[j-1, j] - b[j])
    F   = mean_{j<T} (max_{i<T} R[i, j] - R[T, j])      LCA = mean over tasks and first mini-batches

GEM's published script divides the sum of BWT by T, the zero of the last task included; most others
divide by T - 1, as here. ``over`` chooses.

Lopez-Paz, Ranzato, arXiv 1706.08840 (ACC, BWT, FWT); Chaudhry et al., arXiv 1801.10112 (forgetting)
and arXiv 1812.00420 (LCA).
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np
from jaxtyping import Float

from zeitgeist.errors import InputInvalid

Matrix = Float[np.ndarray, "T T"]


def _square(accuracy: Matrix, least: int = 1) -> Matrix:
    if len(accuracy) < least:
        raise InputInvalid(
            f"there are {len(accuracy)} tasks", mend=f"this needs at least {least} of them"
        )
    return accuracy


def average_accuracy(accuracy: Matrix) -> float:
    """ACC.

    Examples
    --------
    >>> average_accuracy(np.array([[0.9, 0.1], [0.7, 0.8]]))
    0.75
    """
    return float(_square(accuracy)[-1].mean())


def learning_accuracy(accuracy: Matrix) -> float:
    """LA: how well every task was learned when it was its turn.

    Examples
    --------
    >>> round(learning_accuracy(np.array([[0.9, 0.1], [0.7, 0.8]])), 6)
    0.85
    """
    return float(_square(accuracy).diagonal().mean())


def backward_transfer(accuracy: Matrix, *, over: Literal["T-1", "T"] = "T-1") -> float:
    """BWT: what learning on did to tasks; negative where they were forgotten.

    Parameters
    ----------
    accuracy
        R.
    over
        What the sum is divided by; ``"T"`` as GEM's published script does.

    Examples
    --------
    >>> round(backward_transfer(np.array([[0.9, 0.1], [0.7, 0.8]])), 6)
    -0.2
    """
    tasks = len(_square(accuracy, 2))
    total = float((accuracy[-1] - accuracy.diagonal()).sum())
    return total / (tasks if over == "T" else tasks - 1)


def forward_transfer(accuracy: Matrix, untrained: Float[np.ndarray, " T"]) -> float:
    """FWT: what earlier tasks gave a task before its turn.

    Parameters
    ----------
    accuracy
        R.
    untrained
        b.

    Examples
    --------
    >>> round(forward_transfer(np.array([[0.9, 0.3], [0.7, 0.8]]), np.array([0.1, 0.1])), 6)
    0.2
    """
    _square(accuracy, 2)
    return float((accuracy.diagonal(1) - untrained[1:]).mean())


def forgetting(accuracy: Matrix) -> float:
    """F: how far every task fell from its best.

    Examples
    --------
    >>> round(forgetting(np.array([[0.9, 0.3], [0.7, 0.8]])), 6)
    0.2
    """
    _square(accuracy, 2)
    return float((accuracy[:-1, :-1].max(axis=0) - accuracy[-1, :-1]).mean())


def learning_curve_area(curves: Float[np.ndarray, "T batches"], beta: int = 10) -> float:
    """LCA: accuracy on a task after its first 0, 1, ..., beta mini-batches, mean over tasks.

    Parameters
    ----------
    curves
        Accuracy on task k after its b-th mini-batch, from b = 0.
    beta
        The last one that counts.

    Examples
    --------
    >>> learning_curve_area(np.array([[0.0, 0.5, 1.0]]), beta=2)
    0.5
    """
    if curves.shape[1] <= beta:
        raise InputInvalid(
            f"the curves have {curves.shape[1]} points", mend=f"beta={beta} needs {beta + 1}"
        )
    return float(curves[:, : beta + 1].mean())


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """The area that points dominate, both coordinates better when larger.

    Parameters
    ----------
    points
        Such as (learning, remembering) of one method at several strengths.
    reference
        Its lower left corner; what does not lie above and to the right of it counts nothing.

    Examples
    --------
    >>> hypervolume([(2.0, 1.0), (1.0, 2.0), (0.5, 0.5)], (0.0, 0.0))
    3.0
    """
    inside = [p for p in points if p[0] > reference[0] and p[1] > reference[1]]
    area, height = 0.0, reference[1]
    for x, y in sorted(inside, reverse=True):
        if y > height:
            area += (x - reference[0]) * (y - height)
            height = y
    return area
