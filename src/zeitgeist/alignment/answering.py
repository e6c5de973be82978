"""Answers to prompts, in one pass or in two: a draft, then its correction.

A model that learned corrections (RAC, arXiv 2410.14655) is used with two passes. Nothing says
whether a draft was right, so that a right one may be spoilt; `zeitgeist.alignment.prefix_gap`
counts how often.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from zeitgeist.alignment.corrections import INSTRUCTION, two_passes
from zeitgeist.alignment.decoding import (
    check_known,
    check_temperature,
    control_tokens,
    drafts,
    evaluating,
)
from zeitgeist.alignment.demonstrations import (
    check_whole,
    encode_prompt,
    ending_of,
    turn_between,
)
from zeitgeist.errors import InputInvalid


@dataclass(frozen=True)
class Answer:
    """What a model says to a prompt; ``corrected`` is None after one pass."""

    prompt: Any
    draft: str
    corrected: str | None = None


def check_answering(
    *,
    passes: int,
    correction: str,
    max_new_tokens: int,
    temperature: float,
    seed: int,
    batch_size: int,
) -> None:
    """Refuse what `answer` could not do, before a model is opened for it.

    Raises
    ------
    InputInvalid
        A number out of range, or half a character in the correction.
    """
    if passes not in (1, 2):
        raise InputInvalid(f"passes is {passes}", mend="give 1 or 2")
    if max_new_tokens < 1:
        raise InputInvalid(f"max_new_tokens is {max_new_tokens}", mend="give at least 1")
    for name, number, least in (("seed", seed, 0), ("batch_size", batch_size, 1)):
        if number < least:
            raise InputInvalid(f"{name} is {number}", mend=f"give at least {least}")
    check_temperature(temperature)
    check_whole(correction, "the correction")


def answer(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Any],
    *,
    passes: int = 2,
    correction: str = INSTRUCTION,
    max_new_tokens: int = 128,
    max_length: int = 1024,
    temperature: float = 0.0,
    seed: int = 0,
    batch_size: int = 32,
    progress: bool | None = None,
) -> list[Answer]:
    """Answer prompts, and correct the answers.

    Parameters
    ----------
    model
        A causal transformers model; every module is left in the mode it was in.
    tokenizer
        Its own.
    prompts
        Texts, or conversations that the assistant continues.
    passes
        1: drafts alone; 2: each is corrected.
    correction
        Asks for a corrected answer; what the model was trained with.
    max_new_tokens
        Of an answer.
    max_length
        Tokens of prompt, draft and correction together; a longer draft loses its beginning.
    temperature
        0: the likeliest token.
    seed
        Of the draws.
    batch_size
        Prompts at a time.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    list of Answer
        In the order of the prompts.

    Raises
    ------
    InputInvalid
        No prompts, a prompt that is neither text nor messages or does not fit, or other than one
        or two passes.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> from tokenizers import Tokenizer, models
    >>> words = Tokenizer(models.WordLevel({"a": 0, "b": 1, ".": 2}, unk_token="a"))
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".")
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=4,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    >>> found = answer(model, tokenizer, ["a"], passes=1, max_new_tokens=2, progress=False)
    >>> found[0].prompt, found[0].corrected
    ('a', None)
    """
    check_answering(
        passes=passes,
        correction=correction,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        seed=seed,
        batch_size=batch_size,
    )
    if not prompts:
        raise InputInvalid("there are no prompts", mend="give at least one")
    chat = {not isinstance(prompt, str) for prompt in prompts}
    if passes == 2 and len(chat) > 1:
        raise InputInvalid(
            "some prompts are conversations and some are text", mend="give all in one form"
        )
    ending = ending_of(tokenizer)
    asked = [encode_prompt(tokenizer, prompt) for prompt in prompts]
    for number, ids in enumerate(asked):
        if not ids:
            raise InputInvalid(
                f"prompt {number}, {prompts[number]!r:.60}, has no tokens", mend="leave it out"
            )
        if len(ids) + max_new_tokens > max_length:
            raise InputInvalid(
                f"prompt {number} has {len(ids)} tokens and {max_new_tokens} are to follow",
                mend=f"leave it out, or raise max_length (now {max_length})",
            )
    check_known(model, [*asked, (ending,)])
    known: dict[str, Any] = {
        "limit": max_new_tokens,
        "ending": ending,
        "forbidden": control_tokens(model, tokenizer),
        "temperature": temperature,
        "pad": int(tokenizer.pad_token_id or 0),
        "batch_size": batch_size,
        "progress": progress,
    }
    with evaluating(model):
        if passes == 1:
            seeds = [(seed, 0, row) for row in range(len(asked))]
            found = [ids for _, ids in sorted(drafts(model, asked, seeds=seeds, **known))]
            return [
                Answer(prompt, tokenizer.decode(list(ids)))
                for prompt, ids in zip(prompts, found, strict=True)
            ]
        between = turn_between(tokenizer, correction, chat=chat == {True})
        both = two_passes(model, asked, between, max_length=max_length, seed=seed, **known)
    return [
        Answer(prompt, tokenizer.decode(list(draft)), tokenizer.decode(list(corrected)))
        for prompt, draft, corrected in zip(prompts, both.drafts, both.corrected, strict=True)
    ]
