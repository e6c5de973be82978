"""The Bigram-Backcopy task: text in which some characters ask for a copy and all others do not.

Guo, Pai, Bai, Jiao, Jordan, Mei, arXiv 2410.13835. With a bigram table P and some characters as
triggers T,

    x_0 = BOS;  x_1 ~ pi without T;  x_{t+1} = x_{t-1} if x_t in T, else x_{t+1} ~ P(. | x_t)

After a character that is no trigger a table of bigrams is enough, which an MLP can hold; after a
trigger attention must find the token before it. So a head has work at triggers and none elsewhere.
No two triggers are neighbours. The best loss there is: 0 after triggers, the entropy of P(. | x_t)
after others.

Letters: b sequences, n tokens, v characters; BOS is the number v.
"""

from collections import Counter
from dataclasses import dataclass
from itertools import pairwise

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from zeitgeist.errors import InputInvalid


@dataclass(frozen=True)
class Bigrams:
    """A bigram table: characters, how often each is (pi), and what follows each (P)."""

    characters: str
    marginal: Float[Tensor, " v"]
    following: Float[Tensor, "v v"]

    @property
    def bos(self) -> int:
        """The number of BOS."""
        return len(self.characters)


def bigram_table(text: str | None = None, *, size: int = 64) -> Bigrams:
    """Bigrams of the commonest characters of a text.

    Parameters
    ----------
    text
        None: the help topics that every Python ships with.
    size
        How many characters; all others are left out of the text.

    Raises
    ------
    InputInvalid
        The text has fewer than three different characters.

    Examples
    --------
    >>> table = bigram_table("abacabad", size=3)
    >>> table.characters, table.following[0].tolist()
    ('abc', [0.0, 0.6666..., 0.3333...])
    """
    if text is None:
        from pydoc_data.topics import topics

        text = "\n".join(topics[name] for name in sorted(topics))
    common = sorted(Counter(text).items(), key=lambda each: (-each[1], each[0]))[:size]
    if len(common) < 3:
        raise InputInvalid(
            f"the text has {len(common)} different characters", mend="give a longer text"
        )
    characters = "".join(character for character, _ in common)
    numbers = {character: number for number, character in enumerate(characters)}
    kept = [numbers[character] for character in text if character in numbers]
    counts = torch.zeros(len(common), len(common), dtype=torch.float64)
    for (first, second), count in Counter(pairwise(kept)).items():
        counts[first, second] = count
    marginal = torch.tensor([count for _, count in common], dtype=torch.float64)
    marginal = marginal / marginal.sum()
    total = counts.sum(1, keepdim=True)
    # The last character of a text may have nothing behind it.
    following = torch.where(total > 0, counts / total.clamp_min(1), marginal)
    return Bigrams(characters, marginal.float(), following.float())


def choose_triggers(table: Bigrams, count: int, *, seed: int | None = None) -> tuple[int, ...]:
    """The commonest characters, or with a seed any.

    Raises
    ------
    InputInvalid
        More than half of the characters, or fewer than none.

    Examples
    --------
    >>> choose_triggers(bigram_table("abacabad", size=4), 2)
    (0, 1)
    """
    known = len(table.characters)
    if not 0 <= count <= known // 2:
        raise InputInvalid(
            f"{count} of {known} characters are to be triggers", mend=f"give 0 to {known // 2}"
        )
    if seed is None:
        return tuple(range(count))
    drawn = torch.randperm(known, generator=torch.Generator().manual_seed(seed))
    return tuple(sorted(drawn[:count].tolist()))


def is_trigger(ids: Int[Tensor, "b n"], triggers: tuple[int, ...]) -> Bool[Tensor, "b n"]:
    """Where a copy is asked for."""
    return torch.isin(ids, torch.tensor(triggers, dtype=ids.dtype, device=ids.device))


def start_distribution(table: Bigrams, triggers: tuple[int, ...]) -> Float[Tensor, " v"]:
    """Of the first character: pi without triggers."""
    start = table.marginal.clone()
    start[list(triggers)] = 0
    return start / start.sum()


def backcopy(
    table: Bigrams,
    triggers: tuple[int, ...],
    *,
    count: int,
    length: int,
    generator: torch.Generator,
    bos: bool = True,
) -> Int[Tensor, "b n"]:
    """Sequences of the task, all drawn at once by inverting cumulative distributions.

    Parameters
    ----------
    table, triggers
        P and T; no triggers: a plain Markov chain.
    count, length
        How many sequences, of how many tokens.
    generator
        Draws.
    bos
        Begin with BOS; else with a character that is no trigger.

    Examples
    --------
    >>> table = bigram_table("abacabadabacabae", size=5)
    >>> x = backcopy(table, (0,), count=2, length=6, generator=torch.Generator().manual_seed(0))
    >>> x.shape, x[:, 0].tolist()
    (torch.Size([2, 6]), [5, 5])
    """
    wide = table.following.double().cumsum(1)
    uniform = torch.rand(length, count, generator=generator, dtype=torch.float64)
    known = len(table.characters)

    def drawn(cumulative: Tensor, u: Tensor) -> Tensor:
        below: Tensor = (cumulative < (u * cumulative[..., -1])[:, None]).sum(1)
        return below.clamp_max(known - 1)

    start = start_distribution(table, triggers).double().cumsum(0).expand(count, known)
    x = torch.empty(count, length, dtype=torch.int64)
    first = 0
    if bos:
        x[:, 0] = table.bos
        first = 1
    if length > first:
        x[:, first] = drawn(start, uniform[first])
    asked = torch.zeros(known + 1, dtype=torch.bool)
    asked[list(triggers)] = True
    for t in range(first + 1, length):
        now = x[:, t - 1]
        x[:, t] = torch.where(asked[now], x[:, t - 2], drawn(wide[now], uniform[t]))
    return x


def oracle_loss(
    table: Bigrams, triggers: tuple[int, ...], ids: Int[Tensor, "b n"]
) -> Float[Tensor, "b n"]:
    """The least loss (nats) with which what follows each token can be told.

    Examples
    --------
    >>> table = bigram_table("abacabadabacabae", size=5)
    >>> oracle_loss(table, (0,), torch.tensor([[5, 1, 0]]))[0, 1:]
    tensor([0., 0.])
    """
    start = torch.special.entr(start_distribution(table, triggers)).sum()
    rows = torch.cat([torch.special.entr(table.following).sum(1), start[None]])
    rows[list(triggers)] = 0
    made: Tensor = rows.to(ids.device)[ids]
    return made
