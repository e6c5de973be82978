"""Metrics of hand-made matrices."""

import numpy as np
import pytest

from zeitgeist.continual.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    hypervolume,
    learning_accuracy,
    learning_curve_area,
)
from zeitgeist.errors import InputInvalid

R = np.array([[0.9, 0.2, 0.1], [0.6, 0.8, 0.3], [0.5, 0.9, 0.7]])


def test_metrics_of_three_tasks():
    assert average_accuracy(R) == pytest.approx(0.7)
    assert learning_accuracy(R) == pytest.approx(0.8)
    assert backward_transfer(R) == pytest.approx((-0.4 + 0.1) / 2)
    assert backward_transfer(R, over="T") == pytest.approx((-0.4 + 0.1) / 3)
    assert forward_transfer(R, np.array([0.1, 0.1, 0.1])) == pytest.approx((0.1 + 0.2) / 2)
    assert forgetting(R) == pytest.approx((0.4 - 0.1) / 2)  # the second task got better
    curves = np.array([[0.0, 0.4, 0.8, 9.0], [0.2, 0.4, 0.6, 9.0]])
    assert learning_curve_area(curves, beta=2) == pytest.approx(0.4)


def test_accuracy_is_learning_and_backward_transfer():
    both = learning_accuracy(R) + backward_transfer(R, over="T")
    assert average_accuracy(R) == pytest.approx(both)


def test_a_dominated_point_adds_nothing_and_what_lies_outside_neither():
    front = [(1.0, 0.0), (0.5, 0.5)]
    area = hypervolume(front, (0.0, -1.0))
    assert area == pytest.approx(1.0 + 0.25)
    assert hypervolume([*front, (0.4, 0.4), (-1.0, 5.0)], (0.0, -1.0)) == pytest.approx(area)
    assert hypervolume([], (0.0, 0.0)) == 0.0


def test_too_few_tasks_are_refused():
    with pytest.raises(InputInvalid, match="there are 1 tasks"):
        backward_transfer(R[:1, :1])
    with pytest.raises(InputInvalid, match="4 points"):
        learning_curve_area(np.zeros((2, 4)))
