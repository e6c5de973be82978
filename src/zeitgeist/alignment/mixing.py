"""Mixed contexts: gold answers with some tokens replaced by the model's own, targets gold.

BASH of Cen, Liu, Zeng, Chaudhari, Rangwala, Karypis, Fakoor: "Bridging the Training-Inference Gap
in LLMs by Leveraging Self-Generated Tokens", arXiv 2410.14655, after Bengio et al., 1506.03099. For
a prompt x with the gold answer y_1 .. y_T and the gold share beta, for t = 1 .. T in turn,

    u_t ~ Bernoulli(beta);   m_t = y_t if u_t else a token of p(. | x, m_<t)        (sequential)

and the model learns -(1/T) sum_t log p(y_t | x, m_<t): inputs mixed, targets gold. *parallel*
draws every replacement from p(. | x, y_<t) in one forward pass, so that errors do not compound;
*uniform* takes any token of text, the control that asks whether it matters whose tokens they are.

The last token of an answer is never replaced: nothing is predicted from it. Nor is one that opens
or ends a turn. Replacements are tokens of text: what ends an answer is not drawn before its end.
Everything is per token of the gold tokenisation; nothing is decoded and tokenised again.

The paper's body was not at hand when this was written. Temperature 1, no early end and no control
tokens are this library's reading (spec), not quotations.

b: sequences, v: vocabulary, t: positions of answers.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from zeitgeist.alignment.decoding import (
    check_temperature,
    draw_tokens,
    numbers,
    rollout,
    watched,
)
from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.training import Example, answer_logits, collate
from zeitgeist.training.contexts import Context, gold_context

MODES = ("sequential", "parallel", "uniform")


@dataclass(frozen=True)
class Replaced:
    """What became of the positions of answers that may be replaced.

    ``replaced`` of ``positions`` were not left to gold, and of those ``differing`` got another
    token than gold. ``read`` tokens went through the model to find out.
    """

    positions: int = 0
    replaced: int = 0
    differing: int = 0
    read: int = 0

    def __add__(self, other: "Replaced") -> "Replaced":
        return Replaced(
            self.positions + other.positions,
            self.replaced + other.replaced,
            self.differing + other.differing,
            self.read + other.read,
        )

    @property
    def agreement(self) -> float:
        """How often a token of the model's, after a mixed prefix, was gold; 1 without any."""
        return 1.0 - self.differing / self.replaced if self.replaced else 1.0


def replaceable(example: Example, forbidden: Bool[Tensor, " v"]) -> list[bool]:
    """Which tokens of an answer may give way: all but the last and those of the template.

    Examples
    --------
    >>> end = torch.tensor([True, False, False])
    >>> replaceable(Example(prompt=(1,), answer=(1, 2, 0, 2, 0)), end)
    [True, True, False, True, False]
    """
    return [not bool(forbidden[token]) for token in example.answer[:-1]] + [False]


def mix(
    model: Any,
    examples: Sequence[Example],
    gold_share: float,
    *,
    forbidden: Bool[Tensor, " v"],
    mode: str = "sequential",
    temperature: float = 1.0,
    clean_share: float = 0.0,
    seed: Sequence[int] = (0,),
    pad: int = 0,
    batch_size: int = 32,
    progress: bool | None = False,
) -> Iterator[tuple[int, Context, Replaced]]:
    """Mixed contexts of demonstrations, as they become ready.

    Parameters
    ----------
    model
        A causal transformers model in evaluation mode.
    examples
        Prompts and gold answers.
    gold_share
        beta: how likely the gold token stays.
    forbidden
        Tokens that no replacement is, as from `control_tokens`.
    mode, temperature
        See above; temperature 0 is the likeliest token.
    clean_share
        Share of examples that stay gold throughout.
    seed
        With the number of an example, of its draws. For one seed the positions that are replaced
        at a high gold share are replaced at every lower one.
    pad
        Token id to fill with.
    batch_size
        Examples at a time.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Yields
    ------
    tuple
        The number of an example, its context, and what became of its positions.

    Raises
    ------
    InputInvalid
        No such mode, a share outside 0 to 1, or a negative temperature.
    """
    if mode not in MODES:
        raise InputInvalid(f"there is no mode {mode!r}", mend=did_you_mean(mode, MODES))
    for name, share in (("gold share", gold_share), ("clean share", clean_share)):
        if not 0 <= share <= 1:
            raise InputInvalid(f"the {name} is {share}", mend="give 0 to 1")
    check_temperature(temperature)
    for rows in watched([len(example) for example in examples], batch_size, "mix", progress):
        chosen = [examples[row] for row in rows]
        width = max(len(example.answer) for example in chosen)
        gold = torch.full((len(rows), width), pad)
        gives_way = torch.zeros(gold.shape, dtype=torch.bool)
        uniform = np.zeros(gold.shape)
        for i, (row, example) in enumerate(zip(rows, chosen, strict=True)):
            count = len(example.answer)
            clean, *drawn = numbers((*seed, row), 1 + 2 * count).tolist()
            gold[i, :count] = torch.tensor(example.answer)
            uniform[i, :count] = drawn[count:]
            if clean >= clean_share:
                coins = torch.tensor(drawn[:count], dtype=torch.float64)
                may = torch.tensor(replaceable(example, forbidden))
                gives_way[i, :count] = may & (coins >= gold_share)
        draws = torch.from_numpy(uniform)
        known = (model, chosen, gold, gives_way, draws, forbidden, temperature, pad)
        mixed, read = _nothing(gold) if not gives_way.any() else _WAYS[mode](*known)
        for i, (row, example) in enumerate(zip(rows, chosen, strict=True)):
            count = len(example.answer)
            answer = tuple(mixed[i, :count].tolist())
            context = Context(example.prompt + answer, gold_context(example).labels)
            yield (
                row,
                context,
                Replaced(
                    sum(replaceable(example, forbidden)),
                    int(gives_way[i].sum()),
                    int((mixed[i] != gold[i]).sum()),
                    len(example.prompt) + count - 1 if read else 0,
                ),
            )


_Mixed = tuple[Int64[Tensor, "b t"], bool]
"""Mixed answers, and whether the model read something for them."""


def _nothing(gold: Int64[Tensor, "b t"]) -> _Mixed:
    return gold, False


def _sequential(
    model: Any,
    examples: Sequence[Example],
    gold: Int64[Tensor, "b t"],
    gives_way: Bool[Tensor, "b t"],
    draws: Float[Tensor, "b t"],
    forbidden: Bool[Tensor, " v"],
    temperature: float,
    pad: int,
) -> _Mixed:
    device = model.device

    def choose(step: int, logits: Tensor) -> Tensor:
        own = draw_tokens(logits, draws[:, step], temperature=temperature, forbidden=forbidden)
        return torch.where(gives_way[:, step].to(device), own, gold[:, step].to(device))

    # After the last replacement of the batch everything is gold.
    steps = 1 + int(gives_way.any(dim=0).nonzero().max())
    found = rollout(model, [example.prompt for example in examples], steps, choose, pad=pad)
    return torch.cat([found, gold[:, steps:]], dim=1), True


@torch.no_grad()
def _parallel(
    model: Any,
    examples: Sequence[Example],
    gold: Int64[Tensor, "b t"],
    gives_way: Bool[Tensor, "b t"],
    draws: Float[Tensor, "b t"],
    forbidden: Bool[Tensor, " v"],
    temperature: float,
    pad: int,
) -> _Mixed:
    ids = collate(examples, pad=pad)["input_ids"].to(model.device)
    predicts = torch.zeros(ids.shape, dtype=torch.bool, device=model.device)
    for i, example in enumerate(examples):
        start, count = len(example.prompt) - 1, len(example.answer)
        predicts[i, start : start + count] = gives_way[i, :count].to(model.device)
    logits, _ = answer_logits(model, ids, predicts)
    own = draw_tokens(logits, draws[gives_way], temperature=temperature, forbidden=forbidden)
    mixed = gold.clone()
    mixed[gives_way] = own.cpu()
    return mixed, True


def _uniform(
    model: Any,
    examples: Sequence[Example],
    gold: Int64[Tensor, "b t"],
    gives_way: Bool[Tensor, "b t"],
    draws: Float[Tensor, "b t"],
    forbidden: Bool[Tensor, " v"],
    temperature: float,
    pad: int,
) -> _Mixed:
    text = (~forbidden).nonzero().squeeze(1)
    mixed = gold.clone()
    mixed[gives_way] = text[(draws[gives_way] * len(text)).long()]
    return mixed, False


_WAYS = {"sequential": _sequential, "parallel": _parallel, "uniform": _uniform}
