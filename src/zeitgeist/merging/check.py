"""Will this merge work? Answered from headers and a small sample, before gigabytes are read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zeitgeist.errors import RecipeInvalid
from zeitgeist.merging.inputs import Model, close_models
from zeitgeist.merging.plan import Plan
from zeitgeist.merging.recipes.method_parameters import ADAPTER_METHODS
from zeitgeist.merging.recipes.recipe import Recipe
from zeitgeist.merging.to_disk import plan_recipe, read_recipes, worker_threads

_SAMPLED_TENSORS = 24
_SAMPLED_ENTRIES = 1 << 15
_FAR = 0.5  # an update half as large as the weights is no fine-tune
_UNLIKE = 0.8


@dataclass(frozen=True)
class Kinship:
    """How close an expert is to the base, on a sample: ||x - b|| / ||b|| and cos(x, b)."""

    model: str
    distance: float
    cosine: float

    @property
    def related(self) -> bool:
        """Whether it looks like a fine-tune of that base."""
        return self.distance < _FAR and self.cosine > _UNLIKE


@dataclass(frozen=True)
class CheckReport:
    """What a recipe will do.

    ``peak_bytes`` is memory for chunks, independent of the size of the models.
    """

    method: str
    tensors: int
    parameters: int
    bytes_read: int
    bytes_written: int
    peak_bytes: int
    kinship: tuple[Kinship, ...]
    notes: tuple[str, ...]


def check(
    recipe: Recipe | Mapping[str, Any] | str | Path, *, threads: int = 2
) -> tuple[CheckReport, Plan]:
    """Validate a recipe against its models and say what running it would cost.

    Method and keys are checked on reading the recipe; shapes, vocabularies, layers and dtypes from
    headers; whether the experts are fine-tunes of the base from a sample of the values.

    Parameters
    ----------
    recipe
        As for `zeitgeist.merging.merge`; of several documents the report is on the first, and the
        others are checked as far as they need no earlier result.
    threads
        For the estimate of memory.

    Raises
    ------
    RecipeInvalid, CheckpointInvalid, ReferenceUnresolved
        What is wrong, with where and what to do.
    """
    recipes = read_recipes(recipe)
    first = recipes[0]
    if first.method in ADAPTER_METHODS:
        raise RecipeInvalid(
            f"{first.method} is checked by running it: it reads adapters only",
            origin=first.origin,
            mend="run zeitgeist merge; it checks shapes and bases before it writes",
        )
    worker_threads(threads)
    plan = plan_recipe(first, headers_only=True)
    try:
        report = _report(plan, threads, tuple(_of_the_others(recipes[1:])))
    finally:
        close_models(plan.models)
    return report, plan


def _of_the_others(recipes: Sequence[Recipe]) -> Iterator[str]:
    """Plan the recipes that can be planned now; say which cannot."""
    for recipe in recipes:
        if recipe.needs:
            names = ", ".join(map(repr, recipe.needs))
            yield f"the recipe that uses {names} was read, and is checked in full when that is made"
        elif recipe.method not in ADAPTER_METHODS:
            close_models(plan_recipe(recipe, headers_only=True).models)


def _report(plan: Plan, threads: int, more: tuple[str, ...]) -> CheckReport:
    base = plan.recipe.base_model
    unread = [r for r, model in plan.models.items() if not model.has_values]
    kinship = tuple(
        _kinship(plan.models[base], model)
        for reference, model in plan.models.items()
        if base is not None and reference != base and not {reference, base} & set(unread)
    )
    strangers = [
        f"{k.model!r} does not look like a fine-tune of {base!r}: its distance is "
        f"{k.distance:.2f} of the base's norm (cosine {k.cosine:.2f}); merging will probably "
        "return garbage"
        for k in kinship
        if not k.related
    ]
    away = [f"only the headers of {r!r} were read: it is not on this machine" for r in unread]
    return CheckReport(
        plan.recipe.method,
        len(plan.steps),
        sum(step.entries for step in plan.steps),
        plan.bytes_read,
        plan.bytes_written,
        plan.peak_bytes(threads),
        kinship,
        (*strangers, *away, *plan.notes, *more),
    )


def _kinship(base: Model, model: Model) -> Kinship:
    """Distance and cosine on a few blocks of entries from a few large tensors."""
    shared = [
        name
        for name, spec in base.checkpoint.specs.items()
        if spec.dtype.is_floating_point
        and name in model.specs
        and model.specs[name].shape == spec.shape
    ]
    # Vectors are mostly norms near 1, as large in strangers: matrices tell.
    shared = [name for name in shared if len(base.specs[name].shape) > 1] or shared
    away = own = theirs = inner = 0.0
    for name in _spread(sorted(shared, key=lambda n: -base.specs[n].numel)[: 4 * _SAMPLED_TENSORS]):
        entries = base.specs[name].numel
        start = max(0, (entries - _SAMPLED_ENTRIES) // 2)
        stop = min(entries, start + _SAMPLED_ENTRIES)
        b, x = (torch.empty(stop - start, dtype=torch.float64) for _ in range(2))
        base.source(name).read(start, stop, b)
        model.source(name).read(start, stop, x)
        away += float((x - b).square().sum())
        own += float(b.square().sum())
        theirs += float(x.square().sum())
        inner += float(x @ b)
    if own == 0 or theirs == 0:
        return Kinship(model.reference, math.inf, 0.0)
    return Kinship(model.reference, math.sqrt(away / own), inner / math.sqrt(own * theirs))


def _spread(names: Sequence[str]) -> Sequence[str]:
    return names[:: max(1, len(names) // _SAMPLED_TENSORS)]
