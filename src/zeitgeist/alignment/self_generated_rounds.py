"""One round: contexts from the model as it is, then training on them.

Nothing here knows files of models or tokenizers: a study with a network of its own runs the same
rounds as `zeitgeist.alignment.self_generated.train`.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Bool
from torch import Tensor

from zeitgeist.alignment.corrections import corrected_prompt, correction
from zeitgeist.alignment.decoding import check_context, drafts, numbers
from zeitgeist.alignment.mixing import Replaced, mix
from zeitgeist.alignment.self_generated_options import SelfGeneratedOptions, Stage
from zeitgeist.training import Example
from zeitgeist.training.contexts import Context, collate_contexts, context_loss, gold_context
from zeitgeist.training.objective import train_objective

_MIX, _DRAFT, _SPLICE = 0, 1, 2
"""Which draws a seed is for."""


@dataclass(frozen=True)
class Vocabulary:
    """What a tokenizer says: tokens no text holds, the one that ends, one to fill with, the turn
    between a draft and its correction."""

    forbidden: Bool[Tensor, " v"]
    ending: int
    pad: int
    between: tuple[int, ...]


@dataclass(frozen=True)
class Mixed:
    """Contexts to learn from, and what became of the positions of the mixed ones."""

    contexts: tuple[Context, ...]
    replaced: Replaced


def make_contexts(
    model: Any,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    options: SelfGeneratedOptions,
    *,
    gold_share: float,
    round_: int = 1,
    progress: bool | None = False,
) -> Mixed:
    """What a round learns from.

    Parameters
    ----------
    model
        A causal transformers model in evaluation mode.
    examples
        Demonstrations.
    vocabulary
        Of its tokenizer.
    options
        How.
    gold_share
        Of this round.
    round_
        Its number, with the seed, of all draws.
    progress
        Show bars on stderr; None: when it is a terminal.
    """
    contexts = [gold_context(example) for example in examples]
    replaced = Replaced()
    if options.method != "rac":
        for row, context, found in mix(
            model,
            examples,
            gold_share,
            forbidden=vocabulary.forbidden,
            mode=options.mode,
            temperature=options.temperature,
            clean_share=options.clean_share,
            seed=(options.seed, round_, _MIX),
            pad=vocabulary.pad,
            batch_size=options.generation_batch,
            progress=progress,
        ):
            contexts[row] = context
            replaced += found
    if options.method != "bash":
        contexts += _corrections(model, examples, vocabulary, options, round_, progress)
    return Mixed(tuple(contexts), replaced)


def check_room(
    model: Any,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    options: SelfGeneratedOptions,
) -> None:
    """Refuse demonstrations that leave no place for a draft, before anything is drafted."""
    if options.method != "bash":
        longest = max(len(example.answer) for example in examples)
        for example in examples:
            corrected_prompt(
                example.prompt, (), vocabulary.between, room=options.max_length - longest
            )
        if options.splice:  # a draft that begins as gold does goes on for as long as any
            check_context(model, (len(example) + longest - 2 for example in examples))


def _corrections(
    model: Any,
    examples: Sequence[Example],
    vocabulary: Vocabulary,
    options: SelfGeneratedOptions,
    round_: int,
    progress: bool | None,
) -> list[Context]:
    begun = []
    for row, example in enumerate(examples):
        spliced, place = numbers((options.seed, round_, _SPLICE, row), 2)
        count = int(place * len(example.answer)) if spliced < options.splice else 0
        begun.append(example.answer[:count])
    found = drafts(
        model,
        [example.prompt + start for example, start in zip(examples, begun, strict=True)],
        limit=max(len(example.answer) for example in examples),
        ending=vocabulary.ending,
        forbidden=vocabulary.forbidden,
        temperature=options.temperature,
        pad=vocabulary.pad,
        seeds=[(options.seed, round_, _DRAFT, row) for row in range(len(examples))],
        batch_size=options.generation_batch,
        progress=progress,
    )
    return [
        correction(
            examples[row], begun[row] + own, vocabulary.between, max_length=options.max_length
        )
        for row, own in sorted(found)
    ]


def learn(
    model: Any,
    mixed: Mixed,
    vocabulary: Vocabulary,
    options: SelfGeneratedOptions,
    *,
    gold_share: float,
    round_: int,
    place: Path | None = None,
    autocast: bool = True,
    progress: bool | None = False,
) -> Stage:
    """Train a model on contexts, in place.

    Parameters
    ----------
    model
        What is trainable of it learns.
    mixed
        From `make_contexts`.
    vocabulary, options, gold_share
        As there.
    round_
        0: the warm start.
    place
        For checkpoints of the Trainer; None: none.
    autocast
        See `zeitgeist.training.objective.train_objective`.
    progress
        Show a bar on stderr; None: when it is a terminal.
    """
    started = time.monotonic()
    losses = train_objective(
        model,
        mixed.contexts,
        options.schedule(len(mixed.contexts), warm_start=round_ == 0),
        collate=partial(collate_contexts, pad=vocabulary.pad),
        loss=context_loss,
        place=place,
        autocast=autocast,
        title=f"round {round_}" if round_ else "warm start",
        progress=progress,
    )
    found = mixed.replaced
    seconds = time.monotonic() - started
    contexts = len(mixed.contexts)
    return Stage(round_, gold_share, found, found.agreement, contexts, losses, seconds)
