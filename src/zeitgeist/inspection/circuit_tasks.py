"""What a circuit is tried on: pairs of inputs, and a score per example, lower is better.

Letters: n examples, t positions, v outputs, a answers.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean

NONE = -1
"""Stands in ``answers`` and ``wrong`` where an example has fewer than others."""


@dataclass(frozen=True)
class Pairs:
    """Inputs, and what replaces them where an edge is cut.

    Parameters
    ----------
    clean
        Tokens.
    corrupted
        Tokens of the same length whose run gives what cut edges carry; None: not needed.
    scored
        Positions whose output counts.
    answers, wrong
        Tokens that should follow and that should not, padded by -1; None: not needed.
    """

    clean: Int[Tensor, "n t"]
    corrupted: Int[Tensor, "_ _"] | None
    scored: Bool[Tensor, "n t"]
    answers: Int[Tensor, "n a"] | None = None
    wrong: Int[Tensor, "n b"] | None = None

    def __post_init__(self) -> None:
        if not len(self.clean) or not bool(self.scored.any(dim=1).all()):
            raise InputInvalid(
                "an example has no position that is scored", mend="score at least one of each"
            )
        if self.corrupted is not None and self.corrupted.shape != self.clean.shape:
            raise InputInvalid(
                f"replacements are {tuple(self.corrupted.shape)} and inputs "
                f"{tuple(self.clean.shape)} tokens",
                mend="make every replacement as long as its input",
            )

    def __len__(self) -> int:
        return len(self.clean)

    def some(self, first: int, last: int) -> "Pairs":
        """Examples from ``first`` to before ``last``."""
        parts = (self.clean, self.corrupted, self.scored, self.answers, self.wrong)
        return Pairs(*(None if x is None else x[first:last] for x in parts))  # type: ignore[arg-type]

    def to(self, device: torch.device) -> "Pairs":
        """The same on a device."""
        parts = (self.clean, self.corrupted, self.scored, self.answers, self.wrong)
        return Pairs(*(None if x is None else x.to(device) for x in parts))  # type: ignore[arg-type]


Score = Callable[
    [Float[Tensor, "n t v"], Pairs, Float[Tensor, "n t v"]],
    Float[Tensor, " n"],
]
"""``(outputs, pairs, the model's own outputs) -> one number per example``, lower is better."""


def logit_difference(
    outputs: Float[Tensor, "n t v"], pairs: Pairs, _model: Float[Tensor, "n t v"]
) -> Float[Tensor, " n"]:
    """Largest wrong logit minus the mean logit of the answers, at the last scored position."""
    last = at_last(outputs, pairs)
    right = _mean_of(last, _told(pairs.answers, "answers"))
    wrong, where = _padded(_told(pairs.wrong, "wrong"))
    worst = last.gather(1, wrong).masked_fill(~where, float("-inf")).max(dim=1).values
    return worst - right


def probability_difference(
    outputs: Float[Tensor, "n t v"], pairs: Pairs, _model: Float[Tensor, "n t v"]
) -> Float[Tensor, " n"]:
    """Probability of the wrong tokens minus that of the answers, at the last scored position."""
    chance = at_last(outputs, pairs).softmax(dim=-1)
    sums = []
    for tokens in (_told(pairs.wrong, "wrong"), _told(pairs.answers, "answers")):
        index, where = _padded(tokens)
        sums.append((chance.gather(1, index) * where).sum(dim=1))
    return sums[0] - sums[1]


def nll(
    outputs: Float[Tensor, "n t v"], pairs: Pairs, _model: Float[Tensor, "n t v"]
) -> Float[Tensor, " n"]:
    """Mean negative log likelihood of the token after every scored position.

    With ``answers``: of the answers, at the last scored position.
    """
    if pairs.answers is not None:
        return _mean_of(-at_last(outputs, pairs).log_softmax(dim=-1), pairs.answers)
    where = pairs.scored[:, :-1]
    if bool(pairs.scored[:, -1].any()):
        raise InputInvalid(
            "the last position is scored, and no token follows it",
            mend="score earlier ones, or give answers",
        )
    rows = outputs[:, :-1][where].log_softmax(dim=-1)
    losses = -rows.gather(1, pairs.clean[:, 1:][where][:, None])[:, 0]
    return _mean_at(losses, where)


def kl(
    outputs: Float[Tensor, "n t v"], pairs: Pairs, model: Float[Tensor, "n t v"]
) -> Float[Tensor, " n"]:
    """Mean KL divergence of the outputs from the model's own, at the scored positions."""
    where = pairs.scored
    own = model[where].log_softmax(dim=-1)
    found = outputs[where].log_softmax(dim=-1)
    return _mean_at((own.exp() * (own - found)).sum(dim=-1), where)


def squared(
    outputs: Float[Tensor, "n t v"], pairs: Pairs, model: Float[Tensor, "n t v"]
) -> Float[Tensor, " n"]:
    """Mean squared difference of the outputs and the model's own, at the scored positions."""
    where = pairs.scored
    return _mean_at((outputs[where] - model[where]).square().mean(dim=-1), where)


SCORES: Mapping[str, Score] = {
    "logit_difference": logit_difference,
    "probability_difference": probability_difference,
    "nll": nll,
    "kl": kl,
    "squared": squared,
}


def score_named(score: str | Score) -> Score:
    """A score by its name, or itself."""
    if not isinstance(score, str):
        return score
    if score not in SCORES:
        raise InputInvalid(f"no score is called {score!r}", mend=did_you_mean(score, SCORES))
    return SCORES[score]


def at_last(x: Float[Tensor, "n t v"], pairs: Pairs) -> Float[Tensor, "n v"]:
    """Outputs at the last scored position of every example."""
    places = torch.arange(x.shape[1], device=x.device)
    last = torch.where(pairs.scored, places, -1).max(dim=1).values
    return x[torch.arange(len(x), device=x.device), last]


def _told(tokens: Tensor | None, name: str) -> Tensor:
    if tokens is None:
        raise InputInvalid(f"this score needs {name!r}", mend="give them with the pairs")
    return tokens


def _padded(tokens: Int[Tensor, "n a"]) -> tuple[Int[Tensor, "n a"], Bool[Tensor, "n a"]]:
    return tokens.clamp_min(0), tokens != NONE


def _mean_of(x: Float[Tensor, "n v"], tokens: Int[Tensor, "n a"]) -> Float[Tensor, " n"]:
    index, where = _padded(tokens)
    return (x.gather(1, index) * where).sum(dim=1) / where.sum(dim=1)


def _mean_at(values: Float[Tensor, " p"], where: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    owner = where.nonzero()[:, 0]
    total = values.new_zeros(len(where)).index_add(0, owner, values)
    return total / where.sum(dim=1)


def repeated_tokens(
    count: int,
    length: int,
    *,
    periods: tuple[int, int],
    tokens: tuple[int, int],
    seed: int,
) -> Pairs:
    """Random sequences that repeat themselves, each paired with another of the same period.

    Parameters
    ----------
    count, length
        Of the sequences.
    periods
        Shortest and longest period; drawn per example. A fixed one would let a model look a fixed
        number of positions back.
    tokens
        The first that may be drawn, and the first that may not.
    seed
        Of the draws.

    Returns
    -------
    Pairs
        Every position is scored from which the next token is a repetition that was begun.

    Examples
    --------
    >>> pairs = repeated_tokens(2, 9, periods=(3, 3), tokens=(0, 50), seed=0)
    >>> bool((pairs.clean[:, :6] == pairs.clean[:, 3:]).all()), pairs.scored[0].int().tolist()
    (True, [0, 0, 0, 1, 1, 1, 1, 1, 0])
    """
    if not 1 < periods[0] <= periods[1] or length < periods[1] + 2:
        raise InputInvalid(
            f"periods {periods} do not fit into {length} tokens", mend="take shorter ones"
        )
    if tokens[1] - tokens[0] < periods[1]:
        raise InputInvalid(
            f"{tokens[1] - tokens[0]} tokens cannot fill a period of {periods[1]} without one "
            "coming twice",
            mend="give more tokens",
        )
    rng = np.random.default_rng(seed)
    drawn = rng.integers(periods[0], periods[1] + 1, count)
    rows: list[list[np.ndarray]] = [[], []]
    for period in drawn:
        for row in rows:
            words = tokens[0] + rng.permutation(tokens[1] - tokens[0])[:period]
            row.append(np.resize(words, length))
    places = np.arange(length)[None, :]
    scored = (places >= drawn[:, None]) & (places < length - 1)
    clean, corrupted = (torch.from_numpy(np.stack(row)) for row in rows)
    return Pairs(clean, corrupted, torch.from_numpy(scored))


def recalled_tokens(count: int, period: int, *, tokens: tuple[int, int], seed: int) -> Pairs:
    """One and a half periods of random tokens: what followed the last one the first time?

    In the replacement only that token is another, so that what differs is what must be recalled.

    Parameters
    ----------
    count
        Of the sequences.
    period
        Tokens before they repeat.
    tokens
        The first that may be drawn, and the first that may not.
    seed
        Of the draws.

    Examples
    --------
    >>> pairs = recalled_tokens(1, 4, tokens=(0, 50), seed=0)
    >>> (pairs.clean != pairs.corrupted)[0].int().tolist(), pairs.scored[0].int().tolist()
    ([0, 0, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1])
    >>> bool(pairs.answers[0, 0] == pairs.clean[0, 2])
    True
    """
    if period < 2 or tokens[1] - tokens[0] <= period:
        raise InputInvalid(
            f"{tokens[1] - tokens[0]} tokens do not fill a period of {period} and leave one",
            mend="give more tokens, and a period of at least 2",
        )
    rng, asked = np.random.default_rng(seed), period // 2
    size = tokens[1] - tokens[0]
    drawn = tokens[0] + np.stack([rng.permutation(size)[: period + 1] for _ in range(count)])
    clean = np.concatenate((drawn[:, :period], drawn[:, :asked]), axis=1)
    corrupted = clean.copy()
    corrupted[:, asked] = drawn[:, period]
    scored = np.zeros(clean.shape, dtype=bool)
    scored[:, -1] = True
    right, wrong = clean[:, asked : asked + 1], drawn[:, period:]
    return Pairs(*(torch.from_numpy(x) for x in (clean, corrupted, scored, right, wrong)))
