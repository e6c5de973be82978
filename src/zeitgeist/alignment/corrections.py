"""Learn to repair a draft of one's own: the draft is read and never learned.

RAC (reference-answer-based correction) of Cen et al., arXiv 2410.14655: a model answers a prompt x
with a draft d, and learns the gold answer y after it,

    input:   x  d  c  y          loss on y alone, and on y after x alone as well (weight 1)

where c asks for the correction: a turn of the user's, or a paragraph. At inference the model drafts
and corrects, with nobody who says whether the draft was right (`two_passes`).

c, the second term and drafts that begin as gold are this library's reading (spec): the paper's body
was not at hand.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from zeitgeist.alignment.decoding import drafts
from zeitgeist.errors import InputInvalid
from zeitgeist.training import Example
from zeitgeist.training.contexts import UNLABELLED, Context
from zeitgeist.training.positions import longest_input

INSTRUCTION = "Check your answer and give a corrected one."


def corrected_prompt(
    prompt: Sequence[int], draft: Sequence[int], between: Sequence[int], *, room: int
) -> tuple[int, ...]:
    """Prompt, draft and what asks for a correction, in at most ``room`` tokens.

    Parameters
    ----------
    prompt, draft, between
        Token ids. A draft that is too long loses its beginning; the prompt loses nothing.
    room
        For all of them.

    Raises
    ------
    InputInvalid
        Not even an empty draft fits.

    Examples
    --------
    >>> corrected_prompt([1, 2], [7, 8, 9], [5], room=5)
    (1, 2, 8, 9, 5)
    """
    left = room - len(prompt) - len(between)
    if left < 0:
        raise InputInvalid(
            f"a prompt of {len(prompt)} tokens leaves no place for a draft within {room}",
            mend="raise max_length, or leave out the longest prompts",
        )
    kept = tuple(draft)[max(0, len(draft) - left) :]
    return (*prompt, *kept, *between)


def correction(
    example: Example, draft: Sequence[int], between: Sequence[int], *, max_length: int
) -> Context:
    """What RAC learns from: the gold answer after a draft that is masked.

    Parameters
    ----------
    example
        Prompt and gold answer.
    draft
        The model's own answer, without the token that ends it; may be empty.
    between
        Asks for the correction.
    max_length
        Of the whole.

    Examples
    --------
    >>> correction(Example((1, 2), (3, 0)), [4], [5], max_length=8)
    Context(input_ids=(1, 2, 4, 5, 3, 0), labels=(-100, -100, -100, -100, 3, 0))
    """
    room = max_length - len(example.answer)
    prompt = corrected_prompt(example.prompt, draft, between, room=room)
    return Context(prompt + example.answer, (UNLABELLED,) * len(prompt) + example.answer)


@dataclass(frozen=True)
class TwoPasses:
    """Drafts and what became of them, as token ids without the token that ends an answer."""

    drafts: tuple[tuple[int, ...], ...]
    corrected: tuple[tuple[int, ...], ...]


def two_passes(
    model: Any,
    prompts: Sequence[Sequence[int]],
    between: Sequence[int],
    *,
    limit: int,
    ending: int,
    forbidden: Bool[Tensor, " v"],
    max_length: int = 1024,
    temperature: float = 0.0,
    seed: int = 0,
    pad: int = 0,
    batch_size: int = 32,
    progress: bool | None = False,
) -> TwoPasses:
    """Answer prompts, then correct the answers.

    Parameters
    ----------
    model
        A causal transformers model in evaluation mode.
    prompts
        Token ids.
    between
        Asks for the correction.
    limit
        Tokens of an answer, at most.
    ending
        Token id that ends an answer.
    forbidden
        Tokens that are never drawn; the ending is.
    max_length
        Of prompt, draft and correction together.
    temperature
        0: the likeliest token.
    seed
        Of the draws.
    pad, batch_size, progress
        See `zeitgeist.alignment.decoding.drafts`.
    """

    def answers(asked: Sequence[Sequence[int]], number: int) -> tuple[tuple[int, ...], ...]:
        found = drafts(
            model,
            asked,
            limit=limit,
            ending=ending,
            forbidden=forbidden,
            temperature=temperature,
            pad=pad,
            seeds=[(seed, number, row) for row in range(len(asked))],
            batch_size=batch_size,
            progress=progress,
        )
        return tuple(answer for _, answer in sorted(found))

    room = min(max_length, longest_input(model)) - limit
    for prompt in prompts:  # what does not fit is told before anything is drafted
        corrected_prompt(prompt, (), between, room=room)
    first = answers(prompts, 0)
    again = [
        corrected_prompt(prompt, draft, between, room=room)
        for prompt, draft in zip(prompts, first, strict=True)
    ]
    return TwoPasses(first, answers(again, 1))
