"""What is kept of a model's answers: options, a row per answer, features at a few tokens.

    question_last                       the last token of the prompt
    answer_first, answer_second         of the answer
    before_exact, exact_first, exact_last, after_exact
                                        around the exact answer; before it may be question_last,
                                        after it may be exact_last, where the answer ends with it
    minus_8, ..., minus_1               from the end; what ended the answer is not in it

Sizes: n answers, L layers, P positions, d width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean

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
