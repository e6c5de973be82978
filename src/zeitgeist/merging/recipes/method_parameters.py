"""The parameters each merge method understands, as a recipe may write them.

Read off the options of :data:`zeitgeist.merging.methods.METHODS`, so that a method's words,
defaults and ranges are said in one place.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from functools import cache

from zeitgeist.merging.methods import METHODS, Compat, NeedsBase
from zeitgeist.merging.recipes.settings import Parameter

ADAPTER_METHODS = ("knots_ties", "knots_dare_ties", "knots_task_arithmetic")
"""Methods for LoRA adapters alone: in, factors; out, an adapter."""

_ADAPTER_PARAMETERS = {
    "weight": Parameter("weight"),
    "density": Parameter("density", low=0.0, high=1.0, above=True),
    "lambda": Parameter("lambda"),
    "trim_scope": Parameter("trim_scope", str, choices=("global", "layer")),
    "drop": Parameter("drop", low=0.0, high=1.0, below=True),
    "out_rank": Parameter("out_rank", int, low=1.0),
}

NOT_HERE = ("arcee_fusion", "ram", "ramplus_tl")
"""Methods of mergekit 0.1.5 that have no counterpart here."""

UNBOUNDED_IN_MERGEKIT = frozenset({"density", "gamma", "epsilon", "select_topk"})
"""mergekit takes any density: 0 and below drops all, 1 and above keeps all."""

# mergekit keeps masks in 8 bits if asked to; the result is the same to the last bit.
INT8_MASK = Parameter("int8_mask", bool)


def parameters_of(method: str, compat: Compat = None) -> Mapping[str, Parameter]:
    """Every parameter of ``method``, by the word a recipe uses.

    Examples
    --------
    >>> sorted(parameters_of("breadcrumbs"))
    ['density', 'gamma', 'lambda', 'normalize', 'rescale', 'weight']
    """
    if method in ADAPTER_METHODS:
        names = {"weight", "lambda", "out_rank"}
        names |= {
            "knots_ties": {"density", "trim_scope"},
            "knots_dare_ties": {"drop"},
        }.get(method, set())
        return {name: _ADAPTER_PARAMETERS[name] for name in sorted(names)}
    return _from_options(method, compat)


def needs_base(method: str) -> NeedsBase:
    """Whether ``method`` takes task vectors from a base."""
    return "optional" if method in ADAPTER_METHODS else METHODS[method].needs_base


def experts_of(method: str, *, based: bool) -> tuple[int, int | None]:
    """The fewest and the most models ``method`` merges, the base not counted.

    Examples
    --------
    >>> experts_of("ties", based=True), experts_of("slerp", based=False)
    ((1, None), (2, 2))
    """
    if method == "slerp":  # two ends, of which the base may be one
        return (1, 1) if based else (2, 2)
    if method in ADAPTER_METHODS:
        return 1, None
    return METHODS[method].min_experts, METHODS[method].max_experts


def per_model(method: str) -> frozenset[str]:
    """The parameters that each input may have a value of its own for."""
    if method in ADAPTER_METHODS:
        return frozenset({"weight"})
    return METHODS[method].per_model


@cache
def all_parameters() -> frozenset[str]:
    """Every word that is a parameter of some method."""
    words = {name for method in METHODS for name in parameters_of(method)}
    return frozenset(words | set(_ADAPTER_PARAMETERS) | {INT8_MASK.name})


@cache
def _from_options(method: str, compat: Compat) -> Mapping[str, Parameter]:
    options = METHODS[method].options
    hints = typing.get_type_hints(options)
    found = {name: Parameter(name) for name in METHODS[method].per_model}
    for field in dataclasses.fields(options):
        word = field.name.rstrip("_")
        within = "" if compat and word in UNBOUNDED_IN_MERGEKIT else field.metadata["within"]
        found[word] = parameter_of(word, hints[field.name], within)
    return found


def parameter_of(word: str, hint: object, within: str = "") -> Parameter:
    """A parameter from its type and an interval such as ``(0, 1]``.

    Examples
    --------
    >>> parameter_of("density", float, "(0, 1]").range()
    'a number with 0 < density <= 1'
    """
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return Parameter(word, str, choices=typing.get_args(hint))
    low, high = -math.inf, math.inf
    if within:
        low, high = (float(bound) for bound in within[1:-1].split(","))
    kind = hint if hint in (bool, int, str) else float
    return Parameter(
        word, typing.cast(type, kind), low, high, above=within[:1] == "(", below=within[-1:] == ")"
    )
