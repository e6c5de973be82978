"""Where a recipe means something else here than to mergekit 0.1.5.

The methods here follow their papers; mergekit's defaults and some of its rules differ. A person
who runs a shared recipe is told so, and ``compat: mergekit`` gives mergekit's numbers instead.
"""

import dataclasses
from collections.abc import Callable

from zeitgeist.merging.methods import MERGEKIT, METHODS

_RANDOM = ("dare_linear", "dare_ties", "della_linear", "della")

_RULES = {
    "trim_scope": "{method} trims over the whole model, as in its paper; mergekit trims each "
    "tensor by itself (trim_scope: tensor)",
    "election": "{method} elects signs without weights, as in its paper; in mergekit weights vote "
    "(election: weighted)",
    "zero_sum": "{method} gives a zero sum the sign of the majority, as in its paper; mergekit "
    "gives it + (zero_sum: positive)",
}


def differences(
    method: str,
    *,
    says: Callable[[str], bool],
    mentions: Callable[[str], bool],
    rescale: bool = True,
    dtype: str | None = None,
    out_dtype: str | None = None,
    unlisted_base: str | None = None,
) -> list[str]:
    """What a person used to mergekit should know about a recipe run without ``compat``.

    Parameters
    ----------
    method
        The merge method.
    says
        Whether the recipe gives a parameter for all that is merged.
    mentions
        Whether the recipe gives a parameter anywhere.
    rescale
        Whether what a random mask keeps is scaled up.
    dtype, out_dtype
        As in the recipe.
    unlisted_base
        A base that is not among the models.

    Examples
    --------
    >>> for line in differences("sce", says=lambda _: False, mentions=lambda _: False):
    ...     print(line)
    select_topk is 0.1 where the recipe does not say; mergekit takes 1.0
    sce weighs experts by energy however small; mergekit weighs them equally below 1e-6
    """
    if method not in MERGEKIT:
        return []
    found = []
    defaults = {field.name: field.default for field in dataclasses.fields(METHODS[method].options)}
    for name, theirs in MERGEKIT[method].items():
        word, ours = name.rstrip("_"), defaults[name]
        # Without a default of its own, lambda depends on the weights, which mergekit demands.
        if ours is None or ours == theirs or says(word):
            continue
        if word in _RULES:
            found.append(_RULES[word].format(method=method))
        else:
            found.append(
                f"{word} is {_yaml(ours)} where the recipe does not say; "
                f"mergekit takes {_yaml(theirs)}"
            )
    if method in _RANDOM and rescale:
        found.append(
            f"{method} divides what it keeps by its keep probability, as in its paper; "
            "mergekit rescales each tensor to its L1 norm before dropping"
        )
    if method in ("della", "della_linear"):
        found.append(
            "keep probabilities run from density - epsilon/2 to density + epsilon/2, as "
            "in the paper; in mergekit from density - epsilon to density + epsilon"
        )
    if method == "sce":
        found.append(
            "sce weighs experts by energy however small; mergekit weighs them equally below 1e-6"
        )
    if mentions("int8_mask"):
        found.append("int8_mask has no effect: masks never change the result")
    if METHODS[method].needs_base == "no" and unlisted_base is not None and method != "passthrough":
        found.append(
            f"{method} does not use base_model {unlisted_base!r}; mergekit merges it as "
            "one more input"
        )
    if METHODS[method].family != "copy" and dtype is not None:
        found.append(
            f"dtype {dtype} has no effect beside out_dtype: arithmetic is in float64, rounded "
            "once; mergekit rounds the inputs to dtype first"
            if out_dtype is not None
            else f"dtype {dtype} is that of the result: arithmetic is in float64, rounded once; "
            "mergekit rounds the inputs to dtype first"
        )
    return found


def _yaml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
