"""A model's answers to questions, with what probes and scores need to tell right from wrong ones.

Orgad, Toker, Gekhman, Reichart, Szpektor, Kotek, Belinkov: "LLMs Know More Than They Show",
arXiv 2410.02707. Every answer is labelled, its exact answer is located, and hidden states are
kept at a few tokens only: memory is O(batch x tokens x L x d) while it runs and O(n L P d) after.

    question_last                       the last token of the prompt
    answer_first, answer_second         of the answer
    before_exact, exact_first, exact_last, after_exact
                                        around the exact answer; before it may be question_last,
                                        after it may be exact_last, where the answer ends with it
    minus_8, ..., minus_1               from the end; what ended the answer is not in it

Sizes: n answers, L layers, P positions, d width.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from tqdm import tqdm

from zeitgeist.activations.layouts import layout_of
from zeitgeist.activations.sites import depth_of
from zeitgeist.errors import InputInvalid, did_you_mean
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

_PAPER = "arXiv 2410.02707"
LAST_TOKENS = 8
POSITIONS = (
    "question_last",
    "answer_first",
    "answer_second",
    "before_exact",
    "exact_first",
    "exact_last",
    "after_exact",
    *(f"minus_{back}" for back in range(LAST_TOKENS, 0, -1)),
)
SITES = ("resid_post", "mlp_out", "attn_out")
Status = Literal["ok", "empty", "no exact answer", "not in the answer"]


def _told(meaning: str, source: str = "ours") -> dict[str, str]:
    return {"meaning": meaning, "source": source}


@dataclass(frozen=True)
class AnswerOptions:
    """How a model is asked, and what is kept of its answers.

    Parameters
    ----------
    site, layers, positions
        Where hidden states are taken; ``layers`` None: all.
    max_new_tokens
        After which an answer is cut off. Published: 100; answers to short questions end long
        before, and a batch takes as long as its longest.
    batch_size
        Questions at a time.
    chat
        Whether to ask in the chat template; None: where there is one.
    p_true
        Also ask the model whether each answer is true.
    stored
        Type in which features are held. No float16: a residual stream may overflow it.
    """

    site: str = field(
        default="resid_post",
        metadata=_told(f"where in a block: {', '.join(SITES)}; published: mlp_out"),
    )
    layers: tuple[int, ...] | None = field(default=None, metadata=_told("all", _PAPER))
    positions: tuple[str, ...] = field(
        default=POSITIONS, metadata=_told("tokens whose states are kept", _PAPER)
    )
    max_new_tokens: int = field(
        default=64, metadata=_told("tokens after which an answer is cut off; published: 100")
    )
    batch_size: int = field(default=16, metadata=_told("questions at a time"))
    chat: bool | None = field(
        default=None, metadata=_told("ask in the chat template; None: where there is one", _PAPER)
    )
    p_true: bool = field(
        default=True, metadata=_told("also ask whether each answer is true", _PAPER)
    )
    stored: Literal["float32", "bfloat16"] = field(
        default="float32", metadata=_told("type in which features are held")
    )

    def __post_init__(self) -> None:
        if self.site not in SITES:
            raise InputInvalid(f"the site is {self.site!r}", mend=did_you_mean(self.site, SITES))
        for name in self.positions:
            if name not in POSITIONS:
                raise InputInvalid(
                    f"there is no position {name!r}", mend=did_you_mean(name, POSITIONS)
                )
        for name, given in (("positions", self.positions), ("layers", self.layers)):
            if given is not None and len(set(given)) < max(1, len(given)):
                raise InputInvalid(f"the {name} are {given}", mend="give some, each once")
        for name in ("max_new_tokens", "batch_size"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")


@dataclass(frozen=True)
class SamplingOptions:
    """How several answers to one question are drawn.

    Parameters
    ----------
    count
        Answers per question.
    temperature, top_p, top_k
        Of the draw; ``top_k`` 0: all tokens. The published code says temperature 1 and leaves
        its library's ``top_k=50`` in force.
    seed
        Of every draw, together with the numbers of the question and the sample.
    """

    count: int = field(default=30, metadata=_told("answers per question", _PAPER))
    temperature: float = field(default=1.0, metadata=_told("logits are divided by it", _PAPER))
    top_p: float = field(default=1.0, metadata=_told("likeliest tokens up to this", _PAPER))
    top_k: int = field(
        default=0, metadata=_told("likeliest tokens; 0: all; in the published code silently 50")
    )
    seed: int = field(default=0, metadata=_told("of the draws"))

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputInvalid(f"count is {self.count}", mend="give at least 1")
        if not 0 < self.temperature < float("inf"):
            raise InputInvalid(
                f"temperature is {self.temperature}", mend="give more than 0; greedy is the default"
            )
        if not 0 < self.top_p <= 1:
            raise InputInvalid(f"top_p is {self.top_p}", mend="give more than 0, at most 1")
        if self.top_k < 0 or self.seed < 0:
            raise InputInvalid(
                f"top_k is {self.top_k} and seed is {self.seed}", mend="give no negative numbers"
            )


@dataclass(frozen=True)
class AnswerRow:
    """One answer.

    ``correct`` is the loose label and ``strict`` the strict one (`exact_answer.find_alias`).
    ``span`` is the first and the last token of the exact answer, both inside, and ``exact`` its
    text; None and empty unless the status is ``"ok"``.
    """

    question: str
    aliases: tuple[str, ...]
    entity: str
    text: str
    token_ids: tuple[int, ...]
    correct: bool
    strict: bool
    exact: str
    span: tuple[int, int] | None
    status: Status


@dataclass(frozen=True)
class Answers:
    """Answers with features and scores.

    Parameters
    ----------
    rows
        In the order of the questions; samples of one question follow each other.
    positions, layers, site
        What the axes of ``features`` are.
    features
        Zero where a position is not ``present``.
    present
        Which positions an answer has.
    scores
        Training-free scores and controls, by name; NaN where an answer has no such tokens.
    fingerprint
        Of the model.
    """

    rows: tuple[AnswerRow, ...]
    positions: tuple[str, ...]
    layers: tuple[int, ...]
    site: str
    features: Float[Tensor, "n L P d"]
    present: Bool[Tensor, "n P"]
    scores: Mapping[str, Float[Tensor, " n"]]
    fingerprint: str

    @property
    def correct(self) -> Bool[Tensor, " n"]:
        """The loose labels."""
        return torch.tensor([row.correct for row in self.rows], dtype=torch.bool)

    @property
    def usable(self) -> Bool[Tensor, " n"]:
        """Answers whose exact answer was found: those for probing."""
        return torch.tensor([row.status == "ok" for row in self.rows], dtype=torch.bool)

    @property
    def groups(self) -> tuple[str, ...]:
        """Entity of every row, or its question: what must not be split."""
        return tuple(row.entity or row.question for row in self.rows)

    def at(self, position: str) -> Float[Tensor, "n L d"]:
        """Features of one position.

        Raises
        ------
        InputInvalid
            It was not kept.
        """
        if position not in self.positions:
            raise InputInvalid(
                f"position {position!r} was not kept", mend=did_you_mean(position, self.positions)
            )
        return self.features[:, :, self.positions.index(position)]


def places(positions: Sequence[str], length: int, span: tuple[int, int] | None) -> list[int | None]:
    """Where positions are: 0 the prompt's last token, k + 1 answer token k, None where missing.

    Parameters
    ----------
    positions
        Of `POSITIONS`.
    length
        Tokens of the answer.
    span
        First and last token of the exact answer, both inside.

    Examples
    --------
    >>> places(["question_last", "exact_last", "after_exact", "minus_1", "minus_8"], 5, (2, 3))
    [0, 4, 5, 5, None]
    """
    known = {"question_last": 0, "answer_first": 1, "answer_second": 2}
    known |= {f"minus_{back}": length + 1 - back for back in range(1, LAST_TOKENS + 1)}
    known = {name: at for name, at in known.items() if name == "question_last" or 1 <= at <= length}
    if span is not None:
        first, last = span
        known |= {
            "before_exact": first,
            "exact_first": first + 1,
            "exact_last": last + 1,
            "after_exact": min(last + 2, length),
        }
    return [known.get(name) for name in positions]


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
