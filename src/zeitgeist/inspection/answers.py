"""A model's answers to questions, with what probes and scores need to tell right from wrong ones.

Orgad, Toker, Gekhman, Reichart, Szpektor, Kotek, Belinkov: "LLMs Know More Than They Show",
arXiv 2410.02707. Every answer is labelled, its exact answer is located, and hidden states are
kept at a few tokens only: memory is O(batch x tokens x L x d) while it runs and O(n L P d) after.
What is kept is in `zeitgeist.inspection.answer_records`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from zeitgeist.activations.layouts import layout_of
from zeitgeist.activations.sites import depth_of
from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.answer_generation import (
    Choose,
    Traced,
    answer_ids,
    answering,
    check_fits,
    generate,
    greedy,
    is_chat,
    prompt_ids,
    read,
    sampler,
)
from zeitgeist.inspection.answer_records import (
    POSITIONS,
    AnswerOptions,
    AnswerRow,
    Answers,
    SamplingOptions,
    places,
)
from zeitgeist.inspection.answer_scores import check_p_true, p_true, token_scores
from zeitgeist.inspection.exact_answer import Extractor, blind, decoded, is_right, token_window
from zeitgeist.inspection.questions import Question
from zeitgeist.inspection.truth_files import fingerprint

__all__ = [
    "POSITIONS",
    "AnswerOptions",
    "AnswerRow",
    "Answers",
    "SamplingOptions",
    "generate_answers",
    "locate_answers",
    "sample_answers",
]


@dataclass(frozen=True)
class _Task:
    """One answer to be made: of which row, from which prompt."""

    row: int
    prompt: list[int]
    given: list[int]


def locate_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    options: AnswerOptions | None = None,
    *,
    extractors: Mapping[str, Extractor],
    progress: bool | None = None,
) -> dict[str, Answers]:
    """The same answers with their exact answers located by several rules; nothing runs twice.

    Parameters
    ----------
    model, tokenizer, questions, options, progress
        As for `generate_answers`.
    extractors
        By name.
    """
    chosen = options or AnswerOptions()
    asked = list(questions)
    made = _made(model, tokenizer, asked, chosen, extractors, progress=progress)
    if chosen.p_true:
        some = next(iter(made.values()))
        chat = is_chat(tokenizer) if chosen.chat is None else chosen.chat
        extra = p_true(
            model,
            tokenizer,
            [row.question for row in some.rows],
            [row.text for row in some.rows],
            chat=chat,
            batch_size=chosen.batch_size,
        )
        made = {
            name: replace(answers, scores={**answers.scores, **extra})
            for name, answers in made.items()
        }
    return made


def generate_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    options: AnswerOptions | None = None,
    *,
    extractor: Extractor = blind,
    progress: bool | None = None,
) -> Answers:
    """Ask a model, label its answers, and keep what probes need.

    Parameters
    ----------
    model, tokenizer
        A causal transformers model and its tokenizer.
    questions
        Those with an ``answer`` of their own are read instead of asked.
    options
        None: the defaults.
    extractor
        What locates the exact answer.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    Answers
        On the processor, in the order of the questions.

    Raises
    ------
    InputInvalid
        There are no questions, one is longer than the model's context, the model's layout is
        unknown, or a layer does not exist.

    Examples
    --------
    >>> from zeitgeist.inspection.questions import read_questions
    >>> read_questions([{"question": "2 + 3?", "aliases": ["5"], "answer": "It is 5."}])[0].answer
    'It is 5.'
    """
    made = locate_answers(
        model, tokenizer, questions, options, extractors={"": extractor}, progress=progress
    )
    return made[""]


def sample_answers(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    options: AnswerOptions | None = None,
    sampling: SamplingOptions | None = None,
    *,
    extractor: Extractor = blind,
    progress: bool | None = None,
) -> Answers:
    """Several answers to every question, drawn at random.

    Parameters
    ----------
    model, tokenizer, questions, options, extractor, progress
        As for `generate_answers`; own answers and ``p_true`` are left aside.
    sampling
        None: the published, with ``top_k=0``.

    Returns
    -------
    Answers
        ``count`` rows for each question, following each other. What is drawn depends on the seed,
        the question's number and the sample's, not on what else is in a batch.
    """
    chosen, drawing = options or AnswerOptions(), sampling or SamplingOptions()
    asked = [replace(question, answer="", exact="") for question in questions]
    repeated = [question for question in asked for _ in range(drawing.count)]

    def choose(rows: Sequence[int]) -> Choose:
        numbers = np.stack(
            [
                np.random.default_rng([drawing.seed, *divmod(row, drawing.count)]).random(
                    chosen.max_new_tokens
                )
                for row in rows
            ]
        )
        return sampler(
            numbers,
            temperature=drawing.temperature,
            top_p=drawing.top_p,
            top_k=drawing.top_k,
        )

    made = _made(
        model,
        tokenizer,
        repeated,
        replace(chosen, p_true=False),
        {"": extractor},
        choose=choose,
        progress=progress,
    )
    return made[""]


def _made(
    model: Any,
    tokenizer: Any,
    questions: Sequence[Question],
    options: AnswerOptions,
    extractors: Mapping[str, Extractor],
    *,
    choose: Any = None,
    progress: bool | None,
) -> dict[str, Answers]:
    if not questions:
        raise InputInvalid("there are no questions", mend="give at least one")
    chat = is_chat(tokenizer) if options.chat is None else options.chat
    if chat and not is_chat(tokenizer):
        raise InputInvalid("the tokenizer has no chat template", mend="take chat=False")
    depth = depth_of(model, layout_of(model))
    layers = tuple(range(depth)) if options.layers is None else options.layers
    if unknown := [layer for layer in layers if not 0 <= layer < depth]:
        raise InputInvalid(f"there is no layer {unknown[0]}", mend=f"they are 0 to {depth - 1}")
    tasks = _tasks(model, tokenizer, questions, options, chat=chat)
    rows: dict[str, list[Any]] = {name: [None] * len(questions) for name in extractors}
    scores: dict[str, list[Any]] = {name: [None] * len(questions) for name in extractors}
    features: dict[str, Tensor] = {}
    present = {
        name: torch.zeros(len(questions), len(options.positions), dtype=torch.bool)
        for name in extractors
    }
    hidden = None if progress is None else not progress
    with (
        answering(model),
        tqdm(total=len(tasks), desc="answers", unit="answer", disable=hidden) as bar,
    ):
        for batch, traced in _traced(
            model, tokenizer, tasks, options, layers, chat=chat, choose=choose
        ):
            for at, task in enumerate(batch):
                question, ids = questions[task.row], traced.ids[at]
                text = decoded(tokenizer, ids) if ids else ""
                for name, extractor in extractors.items():
                    row = _row(tokenizer, question, ids, text, extractor)
                    rows[name][task.row] = row
                    scores[name][task.row] = token_scores(
                        traced.logits[at], traced.logprobs[at], row.span
                    )
                    where = places(options.positions, len(ids), row.span)
                    kept = [place for place in where if place is not None]
                    there = torch.tensor([place is not None for place in where])
                    found = traced.states[at, kept].transpose(0, 1)  # L x places x d
                    if name not in features:
                        features[name] = torch.zeros(
                            (len(questions), len(layers), len(where), found.shape[-1]),
                            dtype=getattr(torch, options.stored),
                        )
                    features[name][task.row][:, there] = found.to(features[name])
                    present[name][task.row] = there
            bar.update(len(batch))
    mark = fingerprint(model)
    return {
        name: Answers(
            tuple(rows[name]),
            tuple(options.positions),
            layers,
            options.site,
            features[name],
            present[name],
            {key: torch.tensor([each[key] for each in scores[name]]) for key in scores[name][0]},
            mark,
        )
        for name in extractors
    }


def _tasks(
    model: Any, tokenizer: Any, questions: Sequence[Question], options: AnswerOptions, *, chat: bool
) -> list[_Task]:
    """What is to be run; refused here if anything is too long."""
    tasks = [
        _Task(
            row,
            prompt_ids(tokenizer, question.question, chat=chat),
            answer_ids(tokenizer, question.answer, chat=chat) if question.answer else [],
        )
        for row, question in enumerate(questions)
    ]
    room = [len(task.given) or options.max_new_tokens for task in tasks]
    check_fits(model, [task.prompt for task in tasks], room, "its answer")
    if options.p_true:
        texts = [question.question for question in questions]
        check_p_true(model, tokenizer, texts, chat=chat, room=room)
    return tasks


def _traced(
    model: Any,
    tokenizer: Any,
    tasks: Sequence[_Task],
    options: AnswerOptions,
    layers: tuple[int, ...],
    *,
    chat: bool,
    choose: Any,
) -> Iterator[tuple[list[_Task], Traced]]:
    """Batches of prompts of about one length, so that little is padded."""
    for given in (False, True):
        some = [task for task in tasks if bool(task.given) is given]
        some.sort(key=lambda task: len(task.prompt) + len(task.given))
        for at in range(0, len(some), options.batch_size):
            batch = some[at : at + options.batch_size]
            prompts = [task.prompt for task in batch]
            if given:
                answers = [task.given for task in batch]
                yield (
                    batch,
                    read(model, tokenizer, prompts, answers, site=options.site, layers=layers),
                )
            else:
                yield (
                    batch,
                    generate(
                        model,
                        tokenizer,
                        prompts,
                        site=options.site,
                        layers=layers,
                        max_new_tokens=options.max_new_tokens,
                        stop_at_newline=not chat,
                        choose=choose([task.row for task in batch]) if choose else greedy,
                    ),
                )


def _row(
    tokenizer: Any, question: Question, ids: Sequence[int], text: str, extractor: Extractor
) -> AnswerRow:
    span, status, exact = None, "empty", ""
    if text.strip():
        found = question.exact or extractor(question, text)
        status = "no exact answer"
        if found:
            span = token_window(tokenizer, ids, found)
            status = "ok" if span else "not in the answer"
        if span and found:
            exact = found if isinstance(found, str) else text[slice(*found)]
    return AnswerRow(
        question.question,
        question.aliases,
        question.entity,
        text,
        tuple(ids),
        is_right(question, text),
        is_right(question, text, strict=True),
        exact,
        span,
        status,  # type: ignore[arg-type]
    )
