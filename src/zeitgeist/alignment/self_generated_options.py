"""What training on self-generated tokens is told, and what it tells.

Cen, Liu, Zeng, Chaudhari, Rangwala, Karypis, Fakoor: "Bridging the Training-Inference Gap in LLMs
by Leveraging Self-Generated Tokens", arXiv 2410.14655. The idea, the inputs and the two methods are
from its abstract; its body was not at hand, and what is marked (spec) is this library's reading of
it. No number of the paper is quoted.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zeitgeist.alignment.corrections import INSTRUCTION
from zeitgeist.alignment.decoding import check_temperature
from zeitgeist.alignment.demonstrations import check_whole
from zeitgeist.alignment.mixing import MODES, Replaced
from zeitgeist.alignment.prefix_gap import GapReport
from zeitgeist.alignment.schedules import gold_shares
from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.training import Schedule

METHODS = ("bash", "rac", "both")
ADAPTATIONS = ("lora", "full")
RATES = {"lora": 2e-4, "full": 1e-5}
_SPEC = "ours (spec: the paper's body was not at hand)"


def _told(meaning: str, source: str = _SPEC) -> Mapping[str, str]:
    return {"meaning": meaning, "source": source}


@dataclass(frozen=True)
class SelfGeneratedOptions:
    """How contexts are made in each round, and how a model learns from them.

    Parameters
    ----------
    method
        ``bash``: mixed contexts; ``rac``: corrections of drafts beside the demonstrations;
        ``both``: corrections beside mixed contexts.
    rounds
        How often contexts are made anew with the model as it is.
    gold_share, floor
        See `zeitgeist.alignment.schedules`.
    mode, temperature, clean_share
        See `zeitgeist.alignment.mixing`; drafts are drawn at this temperature as well.
    correction
        Asks for a corrected answer.
    splice
        Share of drafts that begin as gold does, up to a place that is drawn.
    warm_start
        Epochs on plain demonstrations before the first round.
    epochs, steps
        Of every round; steps, where given, count instead.
    max_length
        Tokens of a context; drafts lose their beginning to fit.
    adapt, rank, alpha, learning_rate
        ``lora`` on all linear layers, or ``full``. Rate None: 2e-4 and 1e-5.
    batch_size, generation_batch
        Contexts of an optimiser step; examples that are decoded at a time.
    seed
        Of draws, of the order of contexts, and of LoRA's start.
    """

    method: str = field(
        default="bash", metadata=_told("bash, rac or both", "arXiv 2410.14655, Algorithms 1 and 2")
    )
    rounds: int = field(default=3, metadata=_told("times that contexts are made anew"))
    gold_share: Any = field(
        default="linear", metadata=_told("how likely the gold token stays, per round")
    )
    floor: float = field(default=0.8, metadata=_told("of a named schedule"))
    mode: str = field(
        default="sequential", metadata=_told("sequential, parallel, or uniform as a control")
    )
    temperature: float = field(default=1.0, metadata=_told("of replacements and drafts"))
    clean_share: float = field(default=0.2, metadata=_told("share of contexts that stay gold"))
    correction: str = field(default=INSTRUCTION, metadata=_told("asks for a corrected answer"))
    splice: float = field(default=0.0, metadata=_told("share of drafts that begin as gold"))
    warm_start: float = field(default=1.0, metadata=_told("epochs on demonstrations before"))
    epochs: float = field(default=1.0, metadata=_told("epochs of every round"))
    steps: int | None = field(default=None, metadata=_told("steps of every round, instead"))
    max_length: int = field(default=1024, metadata=_told("tokens of a context"))
    adapt: str = field(default="lora", metadata=_told("lora or full"))
    rank: int = field(default=8, metadata=_told("of LoRA", "arXiv 2106.09685, section 7.2"))
    alpha: int = field(default=16, metadata=_told("LoRA's scale times rank", "ours"))
    learning_rate: float | None = field(
        default=None, metadata=_told("of AdamW; none: 2e-4 for LoRA, 1e-5 for all weights")
    )
    batch_size: int = field(default=32, metadata=_told("contexts of a step"))
    generation_batch: int = field(default=32, metadata=_told("examples decoded at a time", "ours"))
    seed: int = field(default=0, metadata=_told("of everything that is drawn", "ours"))

    def __post_init__(self) -> None:
        for name, known in (("method", METHODS), ("mode", MODES), ("adapt", ADAPTATIONS)):
            value = getattr(self, name)
            if value not in known:
                raise InputInvalid(f"there is no {name} {value!r}", mend=did_you_mean(value, known))
        self.shares()
        for name in ("clean_share", "splice"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give 0 to 1")
        for name in ("rank", "alpha", "batch_size", "generation_batch", "max_length"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")
        check_temperature(self.temperature)
        check_whole(self.correction, "the correction")
        if not self.warm_start >= 0:
            raise InputInvalid(f"warm_start is {self.warm_start}", mend="give 0 or more")
        if not 0 <= self.seed < 2**32:
            raise InputInvalid(f"seed is {self.seed}", mend="give at least 0 and less than 2**32")
        if self.warm_start == math.inf:
            raise InputInvalid(f"warm_start is {self.warm_start}", mend="give a number that ends")
        if not 0 < self.epochs < math.inf or (self.steps is not None and self.steps < 1):
            raise InputInvalid(
                f"a round has {self.epochs} epochs or {self.steps} steps", mend="give more than 0"
            )
        if not 0 < self.rate < math.inf:
            raise InputInvalid(
                f"the learning rate is {self.learning_rate}", mend="give a positive one"
            )

    def shares(self) -> tuple[float, ...]:
        """The gold share of every round."""
        return gold_shares(self.gold_share, self.rounds, floor=self.floor)

    @property
    def rate(self) -> float:
        """The learning rate."""
        return RATES[self.adapt] if self.learning_rate is None else self.learning_rate

    def schedule(self, contexts: int, *, warm_start: bool = False) -> Schedule:
        """How long a round over so many contexts is, and how fast it learns."""
        epochs = self.warm_start if warm_start else self.epochs
        steps = max(1, round(epochs * contexts / self.batch_size))
        if self.steps is not None and not warm_start:
            steps = self.steps
        return Schedule(
            steps=steps,
            batch_size=self.batch_size,
            learning_rate=self.rate,
            warmup_steps=min(5, steps // 10),
            seed=self.seed,
        )


@dataclass(frozen=True)
class Stage:
    """A warm start (round 0) or a round: what it learned from and how it went.

    ``agreement`` is how often the model's own token, after a mixed prefix, was gold: how well it
    holds up on its own prefixes while it trains, at no cost.
    """

    round: int
    gold_share: float
    replaced: Replaced
    agreement: float
    contexts: int
    losses: tuple[float, ...]
    seconds: float


@dataclass(frozen=True)
class SelfGeneratedReport:
    """What `train` wrote; the gap before and after where there were held-out demonstrations."""

    out: str
    stages: tuple[Stage, ...]
    before: GapReport | None
    after: GapReport | None
    seconds: float
