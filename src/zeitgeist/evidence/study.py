"""What a study declares before it is run: arms, metrics, claims and sizes.

A study is one experiment that tests what a paper says. Everything that decides the outcome is
declared here, as data, and written beside the results; the numbers come from one function.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from zeitgeist.errors import InputInvalid

if TYPE_CHECKING:
    from zeitgeist.evidence.figures import Figure
    from zeitgeist.evidence.record import Evidence

Value = str | int | float | bool
Setting = Mapping[str, Value]
SizeName = Literal["quick", "full", "paper"]
Direction = Literal["greater", "less", "equal"]
SIZES: tuple[SizeName, ...] = ("quick", "full", "paper")

RESERVED = frozenset({"study", "arm", "seed", "item", "metric", "value", "seconds", "cell"})
"""Columns of the rows that no setting and no label may be called."""


@dataclass(frozen=True)
class Arm:
    """One condition. ``baseline``: what a sceptic compares with, drawn in every figure."""

    slug: str
    title: str
    explanation: str
    baseline: bool = False


@dataclass(frozen=True)
class Metric:
    """What is measured. ``title`` stands on axes and names the unit; ``format`` is d3's."""

    slug: str
    title: str
    better: Literal["higher", "lower"]
    format: str = ".3f"


@dataclass(frozen=True)
class Claim:
    """A statement about arms that could come out false.

    With d the paired difference of ``metric``, treatment - control,

        greater:  d > margin        less:  d < -margin        equal:  |d| < margin

    Parameters
    ----------
    slug, statement
        Its name, and what must come out, in a sentence.
    paper
        What the paper says, in our words, with its number where it gives one.
    metric
        Slug of a `Metric`.
    treatment, control
        Which rows are compared: columns with the value they must have (``{"arm": "ties"}``,
        ``{"width": 96}``). Rows are paired on all columns that neither names. ``control=None``
        compares the metric itself with 0, for metrics that are differences already.
    direction, margin
        See above; ``margin`` is in the unit of the metric and is never negative.
    where
        Only rows with these values (a tuple: any of them) are looked at.
    """

    slug: str
    statement: str
    paper: str
    metric: str
    treatment: Setting
    control: Setting | None
    direction: Direction
    margin: float = 0.0
    where: Mapping[str, Value | tuple[Value, ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.margin < 0 or (self.direction == "equal" and self.margin == 0):
            raise InputInvalid(
                f"the margin of claim {self.slug!r} is {self.margin}",
                mend="give at least 0, and more than 0 for equality",
            )

    @property
    def hash(self) -> str:
        """Changes with anything that decides the verdict, not with wording.

        Examples
        --------
        >>> claim = Claim("a", "b", "c", "score", {"arm": "x"}, {"arm": "y"}, "greater")
        >>> len(claim.hash)
        12
        """
        content = {k: v for k, v in asdict(self).items() if k not in ("statement", "paper")}
        return sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Size:
    """How large an experiment is.

    Parameters
    ----------
    seeds
        Seeds 0, ..., seeds - 1; every arm sees the same.
    settings
        Every combination that is run; each setting becomes columns of the rows.
    parameters
        What else the study needs to know at this size: steps, items, the ``model``'s reference.
    minutes
        What it takes on two cores.
    accelerator
        Refused without one.
    models
        References that must be on this machine; refused without them.
    also
        Further parts of the experiment, with their own seeds, settings and parameters.
    on_model
        The parts that run on a model of the user's; empty: those whose parameters have a
        ``model``.
    """

    seeds: int
    settings: tuple[Setting, ...] = ({},)
    parameters: Mapping[str, Any] = field(default_factory=dict)
    minutes: int | float = 0
    accelerator: bool = False
    models: tuple[str, ...] = ()
    also: "tuple[Size, ...]" = ()
    on_model: "tuple[Size, ...]" = ()

    def groups(self, seeds: int | None = None, model: str = "") -> Iterator["Group"]:
        """Every seed of every setting of every part.

        Parameters
        ----------
        seeds
            Instead of the parts' own numbers.
        model
            Replaces the ``model`` of those parts that have one; the others are left out.
        """
        parts = self.on_model if model and self.on_model else (self, *self.also)
        for part in parts:
            if not model or "model" in part.parameters:
                given = {**part.parameters, **({"model": model} if model else {})}
                for seed in range(part.seeds if seeds is None else seeds):
                    for setting in part.settings:
                        yield Group(seed, setting, given)


@dataclass(frozen=True)
class Group:
    """One seed in one setting: what all arms share."""

    seed: int
    setting: Setting
    parameters: Mapping[str, Any]


class Measured(NamedTuple):
    """One number. ``labels`` become columns; ``item`` names the test item it belongs to."""

    metric: str
    value: float
    labels: Mapping[str, Value] = {}
    item: str = ""


def _always(_arm: str, _setting: Setting) -> bool:
    return True


def _itself(group: Group) -> Any:
    return group


@dataclass(frozen=True)
class Study:
    """An experiment and what it claims.

    Parameters
    ----------
    slug
        As in the catalogue.
    title, question
        What the page is called, and what the experiment asks, in a sentence.
    cannot_show
        What must not be read into the results, a sentence each.
    arms, metrics, claims
        At least one baseline among the arms.
    sizes
        ``quick``: two cores, under two minutes; ``full``: under thirty; ``paper``: real hardware
        and models of the hub.
    measure
        ``(arm, prepared) -> numbers``: runs one arm of one group.
    prepare
        ``(group) -> prepared``: what all arms of a group share (data, trained experts), made once.
        Default: the group itself.
    applies
        ``(arm, setting) -> bool``: which arms exist in a setting. Default: all.
    figures
        ``(evidence) -> figures`` for the page.
    takes_model
        Whether ``parameters["model"]`` of a part may be a checkpoint of the user's.
    """

    slug: str
    title: str
    question: str
    cannot_show: tuple[str, ...]
    arms: tuple[Arm, ...]
    metrics: tuple[Metric, ...]
    claims: tuple[Claim, ...]
    sizes: Mapping[SizeName, Size]
    measure: Callable[[str, Any], Iterable[Measured]]
    prepare: Callable[[Group], Any] = _itself
    applies: Callable[[str, Setting], bool] = _always
    figures: "Callable[[Evidence], list[Figure]] | None" = None
    takes_model: bool = False

    def __post_init__(self) -> None:
        metrics = {metric.slug for metric in self.metrics}
        for claim in self.claims:
            if claim.metric not in metrics:
                raise InputInvalid(f"claim {claim.slug!r} is about no metric: {claim.metric!r}")
        if not any(arm.baseline for arm in self.arms):
            raise InputInvalid(f"the study {self.slug!r} has no baseline")
        for size in self.sizes.values():
            for group in size.groups(seeds=1):
                if taken := RESERVED & group.setting.keys():
                    raise InputInvalid(f"{self.slug}: a setting is called {sorted(taken)[0]!r}")
