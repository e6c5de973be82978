"""How sure a model is of an answer, without any training.

    logit_*      the emitted tokens' raw logits                     mean, min, max, last
    logprob_*    their log-probabilities                            mean, min, max, last
    *_exact      the same over the exact answer's tokens alone
    p_true       P(A) where the model is asked whether its answer is (A) True or (B) False
    p_true_swapped    P(B) where (A) is False and (B) is True

and, as controls that know nothing of the model's certainty, ``length`` and ``span_length`` in
tokens. Each is higher where the model is surer. (Kadavath et al. 2022, arXiv 2207.05221, for
p(True); Orgad et al., arXiv 2410.02707, for the rest. They take raw logits; log-probabilities are
comparable between tokens and are usually the stronger baseline.)
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.answer_generation import (
    answering,
    check_fits,
    pad_id,
    padded,
    prompt_ids,
    run,
)

NAN = float("nan")
_FRAME = "Question: {question}\nPossible answer: {answer}\nIs the possible answer:\n(A) {first}\n" \
    "(B) {second}\nThe possible answer is:"  # fmt: skip


def token_scores(
    logits: Float[Tensor, " t"], logprobs: Float[Tensor, " t"], span: tuple[int, int] | None
) -> dict[str, float]:
    """Scores of one answer by its emitted tokens.

    Parameters
    ----------
    logits, logprobs
        Of the emitted tokens.
    span
        First and last token of the exact answer, both inside; None: those scores are NaN.

    Examples
    --------
    >>> scores = token_scores(torch.tensor([1.0, 3.0]), torch.tensor([-0.5, -0.1]), (1, 1))
    >>> scores["logit_mean"], scores["logit_min_exact"], scores["span_length"]
    (2.0, 3.0, 1.0)
    """
    found: dict[str, float] = {}
    for name, values in (("logit", logits), ("logprob", logprobs)):
        exact = values[:0] if span is None else values[span[0] : span[1] + 1]
        for suffix, some in (("", values), ("_exact", exact)):
            known = some.double()
            empty = not len(known)
            found |= {
                f"{name}_mean{suffix}": NAN if empty else float(known.mean()),
                f"{name}_min{suffix}": NAN if empty else float(known.min()),
                f"{name}_max{suffix}": NAN if empty else float(known.max()),
                f"{name}_last{suffix}": NAN if empty else float(known[-1]),
            }
    found["length"] = float(len(logits))
    found["span_length"] = NAN if span is None else float(span[1] - span[0] + 1)
    return found


CONTROLS = ("length", "span_length")


def p_true(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    answers: Sequence[str],
    *,
    chat: bool,
    batch_size: int,
) -> Mapping[str, Float[Tensor, " n"]]:
    """Ask a model whether answers are right, with the options in either order.

    Parameters
    ----------
    model, tokenizer
        A causal transformers model and its tokenizer.
    questions, answers
        One of each per row.
    chat
        Whether it is asked in its chat template.
    batch_size
        Rows at a time.

    Returns
    -------
    mapping
        ``p_true`` and ``p_true_swapped``: the probability of the letter of *True* among the two.
    """
    with answering(model):
        return _p_true(model, tokenizer, questions, answers, chat=chat, batch_size=batch_size)


def _p_true(
    model: Any,
    tokenizer: Any,
    questions: Sequence[str],
    answers: Sequence[str],
    *,
    chat: bool,
    batch_size: int,
) -> Mapping[str, Float[Tensor, " n"]]:
    letters = torch.tensor(letter_ids(tokenizer, chat=chat), device=model.device)
    found = {}
    for name, options in (("p_true", ("True", "False")), ("p_true_swapped", ("False", "True"))):
        rows = [
            _asked(tokenizer, question, answer, options, chat=chat)
            for question, answer in zip(questions, answers, strict=True)
        ]
        parts = torch.zeros(len(rows))
        order = sorted(range(len(rows)), key=lambda row: len(rows[row]))
        for at in range(0, len(rows), batch_size):
            batch = order[at : at + batch_size]
            ids, mask = padded([rows[row] for row in batch], pad_id(tokenizer), model.device)
            with torch.no_grad():
                logits = run(model, ids, mask, last_only=True, use_cache=False).logits[:, -1]
            chances = logits.index_select(1, letters).float().softmax(-1)
            parts[torch.tensor(batch)] = chances[:, options.index("True")].cpu()
        found[name] = parts
    return found


def check_p_true(
    model: Any, tokenizer: Any, questions: Sequence[str], *, chat: bool, room: Sequence[int]
) -> None:
    """Refuse questions that leave no room to ask about their answers, before any is generated."""
    letter_ids(tokenizer, chat=chat)
    frames = [
        _asked(tokenizer, question, "", ("True", "False"), chat=chat) for question in questions
    ]
    check_fits(model, frames, room, "its answer, asked about by p_true,")


def letter_ids(tokenizer: Any, *, chat: bool) -> tuple[int, int]:
    """The tokens of the letters A and B as the model would say them first.

    Raises
    ------
    InputInvalid
        They are no single tokens.
    """
    forms = [("A", "B"), (" A", " B")]
    for pair in forms if chat else forms[::-1]:
        ids = [list(tokenizer(each, add_special_tokens=False)["input_ids"]) for each in pair]
        if all(len(each) == 1 for each in ids) and ids[0] != ids[1]:
            return int(ids[0][0]), int(ids[1][0])
    raise InputInvalid(
        "the letters A and B are no single tokens of this tokenizer", mend="take p_true=False"
    )


def _asked(
    tokenizer: Any, question: str, answer: str, options: tuple[str, str], *, chat: bool
) -> list[int]:
    text = _FRAME.format(
        question=question, answer=answer.strip(), first=options[0], second=options[1]
    )
    return prompt_ids(tokenizer, text, chat=chat, asked=False)
