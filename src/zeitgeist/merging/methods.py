"""The merge methods by name: what each takes, its defaults, and the rules it follows.

Two sets of numbers. By default each method is what its paper says. With ``compat="mergekit"`` it
is what mergekit 0.1.5 computes: `MERGEKIT` holds the defaults that change, `task_vector_rule` the
rules that change (trim per tensor, signs elected by the weighted sum, zero sums elect +, masked
task vectors rescaled to their L1 norm instead of by 1/p).
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.merging import options as opt
from zeitgeist.merging.options import in_range

Compat = Literal["mergekit"] | None
Family = Literal["combination", "task_vectors", "nearswap", "copy"]
NeedsBase = Literal["yes", "no", "optional"]
Rescale = Literal["none", "probability", "l1"]
Sparsify = Literal["none", "magnitude", "band", "random", "ranked", "variance", "tall"]


@dataclass(frozen=True)
class Method:
    """What a method takes.

    ``needs_base``: whether a base is required, refused or may be given. ``min_experts`` and
    ``max_experts`` count the inputs that are not the base. ``per_model`` names the parameters that
    may differ from model to model. ``lambda_unweighted`` is lambda when neither it nor a weight is
    given.
    """

    name: str
    options: type
    family: Family
    source: str
    needs_base: NeedsBase = "yes"
    min_experts: int = 1
    max_experts: int | None = None
    per_model: frozenset[str] = frozenset()
    lambda_unweighted: float = 1.0

    @property
    def summary(self) -> str:
        """One line of what the method computes."""
        return (self.options.__doc__ or "").strip().partition("\n")[0]


_WEIGHT = frozenset({"weight"})
_DENSITY = _WEIGHT | {"density"}
_EPSILON = _DENSITY | {"epsilon"}
_GAMMA = _DENSITY | {"gamma"}

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("linear", opt.Linear, "combination", opt.SOUPS, "no", per_model=_WEIGHT),
        Method("slerp", opt.Slerp, "combination", opt.SLERP, "optional", 1, 2),
        Method("nuslerp", opt.Nuslerp, "combination", opt.MERGEKIT, "optional", 2, 2, _WEIGHT),
        Method(
            "multislerp", opt.Multislerp, "combination", opt.MERGEKIT, "optional", per_model=_WEIGHT
        ),
        Method("karcher", opt.Karcher, "combination", opt.KARCHER, "no"),
        Method("model_stock", opt.ModelStock, "combination", opt.MODEL_STOCK, min_experts=2),
        Method("nearswap", opt.Nearswap, "nearswap", opt.NEARSWAP, max_experts=1),
        Method(
            "passthrough", opt.Passthrough, "copy", opt.MERGEKIT, "no", 1, 1, frozenset({"scale"})
        ),
        Method(
            "task_arithmetic",
            opt.TaskArithmetic,
            "task_vectors",
            opt.TASK_ARITHMETIC,
            per_model=_WEIGHT,
            lambda_unweighted=0.4,
        ),
        Method("ties", opt.Ties, "task_vectors", opt.TIES, per_model=_DENSITY),
        Method(
            "dare_linear",
            opt.DareLinear,
            "task_vectors",
            opt.DARE,
            per_model=_DENSITY,
            lambda_unweighted=0.4,
        ),
        Method("dare_ties", opt.DareTies, "task_vectors", opt.DARE, per_model=_DENSITY),
        Method(
            "della_linear",
            opt.DellaLinear,
            "task_vectors",
            opt.DELLA,
            per_model=_EPSILON,
            lambda_unweighted=0.4,
        ),
        Method("della", opt.Della, "task_vectors", opt.DELLA, per_model=_EPSILON),
        Method(
            "breadcrumbs",
            opt.Breadcrumbs,
            "task_vectors",
            opt.BREADCRUMBS,
            per_model=_GAMMA,
            lambda_unweighted=0.2,
        ),
        Method(
            "breadcrumbs_ties",
            opt.BreadcrumbsTies,
            "task_vectors",
            opt.BREADCRUMBS,
            per_model=_GAMMA,
        ),
        Method("sce", opt.Sce, "task_vectors", opt.SCE),
        Method(
            "consensus",
            opt.Consensus,
            "task_vectors",
            opt.TALL,
            min_experts=2,
            per_model=_WEIGHT,
            lambda_unweighted=0.4,
        ),
        Method("lines", opt.Lines, "task_vectors", opt.LINES, max_experts=1, per_model=_WEIGHT),
    )
}

_PLAIN_SUM = {"lambda_": 1.0, "normalize": False}
_CONSENSUS_SUM = {"lambda_": 1.0, "normalize": False, "election": "weighted"}
MERGEKIT: Mapping[str, Mapping[str, Any]] = {
    "linear": {},
    "slerp": {},
    "nuslerp": {},
    "multislerp": {},
    "karcher": {},
    "model_stock": {},
    "nearswap": {},
    "passthrough": {},
    "task_arithmetic": _PLAIN_SUM,
    "ties": {
        "density": 1.0,
        "lambda_": 1.0,
        "trim_scope": "tensor",
        "election": "weighted",
        "zero_sum": "positive",
    },
    "dare_linear": _PLAIN_SUM | {"density": 1.0},
    "dare_ties": _CONSENSUS_SUM | {"density": 1.0},
    "della_linear": _PLAIN_SUM | {"density": 1.0, "epsilon": 0.15},
    "della": {"density": 1.0, "epsilon": 0.15, "lambda_": 1.0, "election": "weighted"},
    "breadcrumbs": _PLAIN_SUM | {"density": 1.0, "gamma": 0.01},
    "breadcrumbs_ties": _CONSENSUS_SUM | {"density": 1.0, "gamma": 0.01},
    "sce": {"select_topk": 1.0},
}
"""The defaults of mergekit 0.1.5 that differ from ours, for every method that it has."""


@dataclass(frozen=True)
class TaskVectorRule:
    """Everything a task-vector method does to one tensor, apart from the per-model numbers.

    sparsify: none; magnitude (keep the largest); band (drop the largest and the smallest); random
    (DARE); ranked (DELLA); variance (SCE); tall (consensus). rescale of what was kept: none;
    probability (divide by the keep probability); l1 (to the L1 norm before). elect: none; plain;
    weighted. zero_sum: the sign of an exactly zero sum.
    """

    sparsify: Sparsify
    scope: Literal["global", "tensor"]
    rescale: Rescale
    elect: Literal["none", "plain", "weighted"]
    zero_sum: Literal["majority", "positive"]
    normalize: bool
    lambda_: float
    compat: Compat = None


_SPARSIFY: Mapping[str, Sparsify] = {
    "ties": "magnitude",
    "dare_linear": "random",
    "dare_ties": "random",
    "della_linear": "ranked",
    "della": "ranked",
    "breadcrumbs": "band",
    "breadcrumbs_ties": "band",
    "sce": "variance",
    "consensus": "tall",
}


def find_method(name: str) -> Method:
    """The record of a method.

    Raises
    ------
    InputInvalid
        No such method; the message names the nearest one.

    Examples
    --------
    >>> find_method("ties").needs_base
    'yes'
    """
    if name in METHODS:
        return METHODS[name]
    raise InputInvalid(f"there is no merge method {name!r}", mend=did_you_mean(name, METHODS))


def field_name(key: str) -> str:
    """The option a recipe key stands for: ``lambda`` is a Python keyword, so ``lambda_``."""
    return "lambda_" if key == "lambda" else key


def make_options(
    name: str, given: Mapping[str, Any] | None = None, *, compat: Compat = None
) -> Any:
    """The options of a method: the published defaults (or mergekit's), then what was given.

    Parameters
    ----------
    name
        A key of `METHODS`.
    given
        Options by name; ``lambda`` may be written for ``lambda_``. A per-model option may be a
        sequence, one value per expert.
    compat
        ``"mergekit"`` takes the defaults of mergekit 0.1.5.

    Returns
    -------
    object
        An instance of ``METHODS[name].options``.

    Raises
    ------
    InputInvalid
        Unknown method or option, a value out of range, or a method that mergekit does not have.

    Examples
    --------
    >>> make_options("ties").density, make_options("ties", compat="mergekit").density
    (0.2, 1.0)
    """
    method = find_method(name)
    if compat and name not in MERGEKIT:
        raise InputInvalid(f"mergekit has no method {name!r}", mend="leave out compat: mergekit")
    fields = {field.name: field for field in dataclasses.fields(method.options)}
    values = dict(MERGEKIT[name]) if compat else {}
    for key, value in (given or {}).items():
        field = field_name(key)
        if field not in fields:
            raise InputInvalid(f"{name} has no option {key!r}", mend=did_you_mean(field, fields))
        values[field] = _checked(name, fields[field], value, method, compat)
    return method.options(**values)


def _checked(
    name: str, field: dataclasses.Field[Any], value: Any, method: Method, compat: Compat
) -> Any:
    what = f"{name}: {field.name} is {value!r}"
    several = isinstance(value, (list, tuple))
    if several and field.name not in method.per_model:
        raise InputInvalid(what, mend="give one value for all models")
    within = "" if compat and field.name in _ANY_IN_MERGEKIT else field.metadata["within"]
    for one in value if several else (value,):
        number = isinstance(one, (int, float)) and not isinstance(one, bool)
        inside = number and in_range(float(one), within)
        if field.type is bool:
            fits, mend = isinstance(one, bool), "give true or false"
        elif field.type is int:
            fits, mend = inside and isinstance(one, int), f"give a whole number in {within}"
        elif choices := get_args(field.type) if get_origin(field.type) is Literal else ():
            fits, mend = one in choices, f"give one of {', '.join(choices)}"
        else:
            fits = inside or (one is None and field.default is None)
            mend = f"give a number in {within}" if within else "give a number"
        if not fits:
            raise InputInvalid(what, mend=mend)
    if several:
        return tuple(float(one) for one in value)
    # a recipe may well say `lambda: 1`
    return float(value) if type(value) is int and field.type is not int else value


# mergekit takes any density (0 drops all, 1 keeps all) and checks epsilon against density itself
_ANY_IN_MERGEKIT = frozenset({"density", "gamma", "epsilon", "select_topk"})


def task_vector_rule(
    name: str, options: Any, *, weights_given: bool, compat: Compat = None
) -> TaskVectorRule:
    """What a task-vector method does, with every default resolved.

    Parameters
    ----------
    name
        A method of the family ``task_vectors``.
    options
        From `make_options`, with the same ``compat``.
    weights_given
        Whether any weight was given; decides an unset lambda.
    compat
        ``"mergekit"`` for the rules of mergekit 0.1.5.

    Returns
    -------
    TaskVectorRule
        The rule that the kernels follow.

    Examples
    --------
    >>> for compat in (None, "mergekit"):
    ...     options = make_options("dare_linear", compat=compat)
    ...     rule = task_vector_rule("dare_linear", options, weights_given=False, compat=compat)
    ...     print(rule.rescale, rule.lambda_)
    probability 0.4
    l1 1.0
    """
    method = find_method(name)
    sparsify = _SPARSIFY.get(name, "none")
    normalize: bool = getattr(options, "normalize", name == "sce")
    lambda_: float | None = getattr(options, "lambda_", 1.0)
    if lambda_ is None:
        lambda_ = 1.0 if weights_given or normalize else method.lambda_unweighted
    by_probability = sparsify in ("random", "ranked") and not compat
    rescale: Rescale = "none"
    if getattr(options, "rescale", False):
        rescale = "probability" if by_probability else "l1"
    return TaskVectorRule(
        sparsify=sparsify,
        scope=getattr(options, "trim_scope", "tensor"),
        rescale=rescale,
        elect="plain" if name == "sce" else getattr(options, "election", "none"),
        zero_sum=getattr(options, "zero_sum", "positive"),
        normalize=normalize,
        lambda_=float(lambda_),
        compat=compat,
    )


def check_weights(name: str, options: Any, weights: Sequence[float], *, compat: Compat) -> None:
    """Refuse weights that a method cannot mean anything with, before any work is done.

    Raises
    ------
    InputInvalid
        Not finite; summing to 0 where they are normalized; or negative where each entry is
        averaged over the experts that agree with its sign: dividing by a sum of weights of both
        signs takes the sign back out and blows entries up. (mergekit allows both.)

    Examples
    --------
    >>> check_weights("linear", make_options("linear"), [1.0, -1.0], compat=None)
    Traceback (most recent call last):
    ...
    zeitgeist.errors.InputInvalid: linear: weights [1.0, -1.0] sum to 0; ...
    """
    values = list(weights)
    if not all(math.isfinite(weight) for weight in values):
        raise InputInvalid(f"{name}: weights are {values}", mend="give finite numbers")
    rule = None
    if find_method(name).family == "task_vectors":
        rule = task_vector_rule(name, options, weights_given=True, compat=compat)
    normalized = getattr(options, "normalize", getattr(options, "normalize_weights", False))
    if rule and rule.elect != "none":
        if normalized and not compat and any(weight < 0 for weight in values):
            raise InputInvalid(
                f"{name}: weights are {values}",
                mend="give weights >= 0, or normalize: false; task_arithmetic subtracts with a "
                "negative weight",
            )
        return
    if compat and rule:  # a sum of 0 divides by 1 there
        return
    normalized = normalized or (name == "nuslerp" and not compat)
    if normalized and abs(math.fsum(values)) <= 1e-12 * math.fsum(map(abs, values)):
        raise InputInvalid(
            f"{name}: weights {values} sum to 0",
            mend="they cannot be normalized: change them, or give normalize: false",
        )


def describe(name: str) -> list[tuple[str, Any, str, str]]:
    """The options of a method as (name, default, meaning, source of the default).

    Examples
    --------
    >>> describe("nearswap")
    [('t', 0.0001, 'distance below which an entry is taken over', 'alchemonaut, ...')]
    """
    return [
        (field.name, field.default, field.metadata["meaning"], field.metadata["source"])
        for field in dataclasses.fields(find_method(name).options)
    ]
