"""P(right) of one answer by a probe that was kept, and what the probe says at each token."""

from dataclasses import dataclass
from typing import Any

import torch

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.inspection.answer_generation import (
    answer_ids,
    answering,
    check_fits,
    generate,
    is_chat,
    prompt_ids,
    read,
)
from zeitgeist.inspection.answer_records import places
from zeitgeist.inspection.exact_answer import (
    Extractor,
    blind,
    by_pattern,
    decoded,
    published,
    token_window,
)
from zeitgeist.inspection.questions import Question
from zeitgeist.inspection.truth_files import Probe, fingerprint

__all__ = ["Scored", "extractor_of", "score_answer"]

PATTERN = "pattern:"


def extractor_of(rule: str) -> Extractor:
    """The rule that a probe remembers: ``blind``, ``published`` or ``pattern:`` and a pattern.

    Raises
    ------
    InputInvalid
        There is no such rule.

    Examples
    --------
    >>> extractor_of("blind") is blind
    True
    """
    if rule.startswith(PATTERN):
        return by_pattern(rule.removeprefix(PATTERN))
    known = {"blind": blind, "published": published}
    if rule not in known:
        raise InputInvalid(f"{rule!r} finds no exact answers", mend=did_you_mean(rule, known))
    return known[rule]


@dataclass(frozen=True)
class Scored:
    """An answer with the probe's opinion.

    ``probability`` is read at the token the probe was fitted for, ``exact`` is the piece of the
    answer that decides; ``tokens`` and ``each`` say what the same probe would say at every token.
    It was fitted at one kind of token, so only there is its word a probability.
    """

    question: str
    answer: str
    exact: str
    probability: float
    tokens: tuple[str, ...]
    each: tuple[float, ...]


def score_answer(
    model: Any,
    tokenizer: Any,
    probe: Probe,
    question: str,
    answer: str = "",
    *,
    chat: bool | None = None,
    max_new_tokens: int = 64,
) -> Scored:
    """How likely an answer is right, by the model's state while it says it.

    Parameters
    ----------
    model, tokenizer
        The model that the probe was fitted on.
    probe
        Of `zeitgeist.inspection.truth_files.load_probe`.
    question
        What the model is asked.
    answer
        What it answered; empty: let it answer, greedily.
    chat
        Whether to ask in the chat template; None: where there is one.
    max_new_tokens
        After which an answer is cut off.

    Returns
    -------
    Scored
        With a value for every token of the answer.

    Raises
    ------
    InputInvalid
        The probe is another model's, question and answer are longer than its context, there is no
        answer, or it has no exact answer.
    """
    probe.check_model(fingerprint(model))
    spoken = is_chat(tokenizer) if chat is None else chat
    prompt = [prompt_ids(tokenizer, question, chat=spoken)]
    with answering(model):
        if answer.strip():
            given = [answer_ids(tokenizer, answer, chat=spoken)]
            check_fits(model, prompt, [len(given[0])], "its answer")
            traced = read(model, tokenizer, prompt, given, site=probe.site, layers=[probe.layer])
        else:
            check_fits(model, prompt, [max_new_tokens], "its answer")
            traced = generate(
                model,
                tokenizer,
                prompt,
                site=probe.site,
                layers=[probe.layer],
                max_new_tokens=max_new_tokens,
                stop_at_newline=not spoken,
            )
    ids = traced.ids[0]
    text = decoded(tokenizer, ids) if ids else ""
    if not text.strip():
        raise InputInvalid("the model answers nothing", mend="give --answer")
    # No gold is known here, and without it the published rule is the blind one.
    rule = blind if probe.extraction == "published" else extractor_of(probe.extraction)
    found = rule(Question(question, (question,)), text)
    span = token_window(tokenizer, ids, found) if found else None
    (at,) = places([probe.position], len(ids), span)
    if at is None:
        raise InputInvalid(
            f"the answer {text.strip()!r} has no {probe.position} token, which the probe reads",
            mend="give an answer that says something, or fit a probe at --position minus_1",
        )
    states = traced.states[0, : len(ids) + 1, 0].float().cpu()
    each = probe.score(states)
    exact = "" if span is None else decoded(tokenizer, ids[span[0] : span[1] + 1]).strip()
    return Scored(
        question,
        text.strip(),
        exact,
        float(each[at]),
        tuple(decoded(tokenizer, [token]) for token in ids),
        tuple(torch.as_tensor(each[1:]).tolist()),
    )
