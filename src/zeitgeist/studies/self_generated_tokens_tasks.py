"""Strings of digits whose answers are recoverable after a wrong token, or not.

    reverse, sort, lookup   recoverable: y_t depends on the question x alone, so that gold stays
                            right whatever stood before it
    running_sum             path-dependent: y_t = (y_{t-1} + x_t) mod 10, so that after a wrong
                            y_{t-1} gold contradicts the rule (Huszar, arXiv 1511.05101)

Token ids: the ten digits, a token after the question, one that ends an answer, one that asks for a
correction, one that fills.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from zeitgeist.alignment.self_generated_rounds import Vocabulary
from zeitgeist.training import Example

ASKED, END, AGAIN, PAD = 10, 11, 12, 13
SIZE = 14
"""Of the vocabulary."""
KINDS: Mapping[str, str] = {
    "reverse": "recoverable",
    "sort": "recoverable",
    "lookup": "recoverable",
    "running_sum": "path-dependent",
}


def vocabulary() -> Vocabulary:
    """As a tokenizer would say it."""
    forbidden = torch.arange(SIZE) >= ASKED
    return Vocabulary(forbidden, ending=END, pad=PAD, between=(AGAIN,))


def solve(task: str, digits: Sequence[int], table: Sequence[int]) -> list[int]:
    """The one right answer.

    Parameters
    ----------
    task
        One of `KINDS`.
    digits
        The question.
    table
        What ``lookup`` gives for each digit.

    Examples
    --------
    >>> solve("running_sum", [3, 9, 1], ())
    [3, 2, 3]
    """
    if task == "reverse":
        return list(digits)[::-1]
    if task == "sort":
        return sorted(digits)
    if task == "lookup":
        return [table[digit] for digit in digits]
    return [int(each) % 10 for each in np.cumsum(digits)]


def draw(task: str, *, train: int, test: int, length: int, seed: int) -> tuple[list[Example], ...]:
    """Demonstrations to learn from and others to score on; no question is in both.

    Parameters
    ----------
    task
        One of `KINDS`.
    train, test
        How many.
    length
        Digits of a question.
    seed
        Of the questions, and of what ``lookup`` looks up.
    """
    generator = np.random.default_rng([seed, list(KINDS).index(task)])
    table = generator.permutation(10).tolist()
    questions: dict[tuple[int, ...], None] = {}
    while len(questions) < train + test:
        questions[tuple(generator.integers(0, 10, length).tolist())] = None
    made = [Example((*q, ASKED), (*solve(task, q, table), END)) for q in questions]
    return made[:train], made[train:]
