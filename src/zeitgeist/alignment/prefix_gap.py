"""The gap between training and inference: how right a model is after gold and after its own tokens.

Fine-tuning shows a model gold prefixes; answering, it reads its own. For demonstrations (x, y),

    gold accuracy at t    argmax p(. | x, y_<t) = y_t
    own accuracy at t     d_t = y_t, with d the greedy answer to x
    gap                   gold accuracy - own accuracy, over all tokens

and on whole answers exact match and edit distance (Levenshtein's, of tokens, over the length of
gold). With a correction instruction the answers are corrected as well: how many wrong ones became
right and *right ones wrong*, and how many were copied. Do not take for granted that errors
compound: He, Zhang, Zhou, Glass (arXiv 1905.10617) found little of it in open text.

n: demonstrations, t: positions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import Tensor

from zeitgeist.alignment.corrections import two_passes
from zeitgeist.alignment.decoding import (
    batches,
    check_context,
    check_known,
    control_tokens,
    drafts,
    evaluating,
)
from zeitgeist.alignment.demonstrations import Source, encode_all, is_chat, turn_between
from zeitgeist.errors import InputInvalid
from zeitgeist.training import Example, answer_logits, collate

__all__ = ["Corrected", "GapReport", "gap"]


@dataclass(frozen=True)
class Corrected:
    """Second answers against first ones, as shares of all demonstrations.

    ``first`` and ``second`` are exact matches; ``wrong_to_right`` and ``right_to_wrong`` are the
    flips; ``copied`` answers are the draft again.
    """

    first: float
    second: float
    wrong_to_right: float
    right_to_wrong: float
    copied: float
    own_accuracy: float
    edit_distance: float


@dataclass(frozen=True)
class GapReport:
    """Accuracy after gold and after own tokens, in all and by position.

    ``counts`` says how many answers are that long. ``corrected`` is None where nothing was asked
    to be corrected.
    """

    demonstrations: int
    gold_accuracy: float
    own_accuracy: float
    gap: float
    exact_match: float
    edit_distance: float
    gold_by_position: tuple[float, ...]
    own_by_position: tuple[float, ...]
    counts: tuple[int, ...]
    corrected: Corrected | None = None


def token_hits(
    answers: Sequence[Sequence[int]], gold: Sequence[Sequence[int]]
) -> Bool[np.ndarray, "n t"]:
    """Which gold tokens stand where they should; beyond either answer: none.

    Examples
    --------
    >>> token_hits([(1, 2), (5,)], [(1, 3, 0), (5, 0)]).tolist()
    [[True, False, False], [True, False, False]]
    """
    hits = np.zeros((len(gold), max(map(len, gold))), dtype=bool)
    for row, (answer, wanted) in enumerate(zip(answers, gold, strict=True)):
        for t, (token, right) in enumerate(zip(answer, wanted, strict=False)):
            hits[row, t] = token == right
    return hits


def by_position(hits: Bool[np.ndarray, "n t"], lengths: Int[np.ndarray, " n"]) -> tuple[float, ...]:
    """Share of answers that are right at each position, of those that reach it.

    Examples
    --------
    >>> by_position(np.array([[True, True], [False, False]]), np.array([2, 1]))
    (0.5, 1.0)
    """
    reach = np.arange(hits.shape[1]) < lengths[:, None]
    return tuple(((hits & reach).sum(axis=0) / reach.sum(axis=0)).tolist())


def edit_distance(one: Sequence[int], other: Sequence[int]) -> int:
    """Fewest insertions, deletions and replacements from one to the other (Levenshtein).

    Examples
    --------
    >>> edit_distance([1, 2, 3], [2, 3, 4])
    2
    """
    row = list(range(len(other) + 1))
    for i, left in enumerate(one, 1):
        diagonal, row[0] = row[0], i
        for j, right in enumerate(other, 1):
            least = min(row[j] + 1, row[j - 1] + 1, diagonal + (left != right))
            diagonal, row[j] = row[j], least
    return row[-1]


@torch.no_grad()
def gold_hits(
    model: Any, examples: Sequence[Example], *, pad: int, batch_size: int = 32
) -> Bool[np.ndarray, "n t"]:
    """Which gold tokens are the likeliest after the gold ones before them."""
    hits = np.zeros((len(examples), max(len(e.answer) for e in examples)), dtype=bool)
    for rows in batches([len(example) for example in examples], batch_size):
        batch = collate([examples[row] for row in rows], pad=pad)
        ids, predicts = (batch[name].to(model.device) for name in ("input_ids", "predicts"))
        logits, targets = answer_logits(model, ids, predicts)
        right = (logits.argmax(dim=-1) == targets).cpu().numpy()
        for row in rows:
            count = len(examples[row].answer)
            hits[row, :count], right = right[:count], right[count:]
    return hits


def compare(
    examples: Sequence[Example],
    gold: Bool[np.ndarray, "n t"],
    answers: Sequence[Sequence[int]],
    corrected: Sequence[Sequence[int]] | None = None,
) -> GapReport:
    """The report from what was found, without a model.

    Parameters
    ----------
    examples
        Demonstrations; their answers end with the token that ends an answer.
    gold
        From `gold_hits`.
    answers
        Greedy ones, without that token.
    corrected
        Second ones; None: none.
    """
    wanted = [example.answer for example in examples]
    lengths = np.array([len(answer) for answer in wanted])
    total = int(lengths.sum())
    ended = [_ended(answer, right) for answer, right in zip(answers, wanted, strict=True)]
    own = token_hits(ended, wanted)
    first = np.array([tuple(a) == b[:-1] for a, b in zip(answers, wanted, strict=True)])
    second = None
    if corrected is not None:
        again = np.array([tuple(a) == b[:-1] for a, b in zip(corrected, wanted, strict=True)])
        copied = [tuple(a) == tuple(b) for a, b in zip(answers, corrected, strict=True)]
        later = [_ended(answer, right) for answer, right in zip(corrected, wanted, strict=True)]
        second = Corrected(
            float(first.mean()),
            float(again.mean()),
            float((~first & again).mean()),
            float((first & ~again).mean()),
            float(np.mean(copied)),
            int(token_hits(later, wanted).sum()) / total,
            _distance(corrected, wanted),
        )
    share_gold, share_own = int(gold.sum()) / total, int(own.sum()) / total
    return GapReport(
        len(examples),
        share_gold,
        share_own,
        share_gold - share_own,
        float(first.mean()),
        _distance(answers, wanted),
        by_position(gold, lengths),
        by_position(own, lengths),
        tuple(int((lengths > t).sum()) for t in range(int(lengths.max()))),
        second,
    )


def _ended(answer: Sequence[int], wanted: Sequence[int]) -> tuple[int, ...]:
    """With the token that ends it."""
    return (*answer, wanted[-1])


def _distance(answers: Sequence[Sequence[int]], wanted: Sequence[Sequence[int]]) -> float:
    each = [
        edit_distance(answer, right[:-1]) / max(1, len(right) - 1)
        for answer, right in zip(answers, wanted, strict=True)
    ]
    return float(np.mean(each))


def measure_gap(
    model: Any,
    examples: Sequence[Example],
    *,
    forbidden: Bool[Tensor, " v"],
    between: Sequence[int] | None = None,
    max_length: int = 1024,
    pad: int = 0,
    batch_size: int = 32,
    progress: bool | None = False,
) -> GapReport:
    """The report of a model on encoded demonstrations; see `gap`.

    Parameters
    ----------
    model
        A causal transformers model in evaluation mode.
    examples
        Encoded demonstrations.
    forbidden
        Tokens that no answer holds, as from `control_tokens`.
    between
        Asks for a correction; None: nothing is corrected.
    max_length
        Of prompt, draft and correction together.
    pad
        Token id to fill with.
    batch_size
        Demonstrations at a time.
    progress
        Show a bar on stderr; None: when it is a terminal.
    """
    check_context(model, map(len, examples))
    limit = max(len(example.answer) for example in examples)
    ending = examples[0].answer[-1]
    prompts = [example.prompt for example in examples]
    gold = gold_hits(model, examples, pad=pad, batch_size=batch_size)
    if between is None:
        found = drafts(
            model,
            prompts,
            limit=limit,
            ending=ending,
            forbidden=forbidden,
            temperature=0.0,
            pad=pad,
            seeds=[(0, row) for row in range(len(prompts))],
            batch_size=batch_size,
            progress=progress,
        )
        return compare(examples, gold, [answer for _, answer in sorted(found)])
    passes = two_passes(
        model,
        prompts,
        between,
        limit=limit,
        ending=ending,
        forbidden=forbidden,
        max_length=max_length,
        pad=pad,
        batch_size=batch_size,
        progress=progress,
    )
    return compare(examples, gold, passes.drafts, passes.corrected)


def gap(
    model: Any,
    tokenizer: Any,
    demonstrations: Source,
    *,
    correction: str | None = None,
    max_length: int = 1024,
    batch_size: int = 32,
    progress: bool | None = None,
) -> GapReport:
    """How right a model is after gold prefixes and after its own, on demonstrations it never saw.

    Cen et al., arXiv 2410.14655, call the difference the training-inference gap.

    Parameters
    ----------
    model
        A causal transformers model; every module is left in the mode it was in.
    tokenizer
        Its own.
    demonstrations
        In one of TRL's forms; see `zeitgeist.alignment.demonstrations`.
    correction
        Asks for a second answer; None: one answer is enough.
    max_length
        Tokens of prompt and answers together.
    batch_size
        Demonstrations at a time.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    GapReport
        Accuracies, in all and by position, exact match, edit distance; flips where asked.

    Raises
    ------
    InputInvalid
        Demonstrations of another form, or longer than ``max_length``.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
    >>> from tokenizers import Tokenizer, models
    >>> words = Tokenizer(models.WordLevel({"a": 0, "b": 1, ".": 2}, unk_token="a"))
    >>> tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, eos_token=".")
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=4,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    >>> report = gap(model, tokenizer, [{"prompt": "a", "completion": "b"}], progress=False)
    >>> report.demonstrations, len(report.own_by_position), report.counts
    (1, 2, (1, 1))
    """
    if batch_size < 1:
        raise InputInvalid(f"batch_size is {batch_size}", mend="give at least 1")
    rows, examples = encode_all(tokenizer, demonstrations, max_length=max_length)
    between = None
    if correction is not None:
        between = turn_between(tokenizer, correction, chat=is_chat(rows))
    check_known(model, [example.prompt + example.answer for example in examples])
    with evaluating(model):
        return measure_gap(
            model,
            examples,
            forbidden=control_tokens(model, tokenizer),
            between=between,
            max_length=max_length,
            pad=int(tokenizer.pad_token_id or 0),
            batch_size=batch_size,
            progress=progress,
        )
