"""From a recipe and opened models to steps: which tensors come out, and from what.

Everything is decided from headers. Tensor names are matched by what is in the files, not by a
table of architectures; layers are found by `zeitgeist.merging.blocks.detect_blocks`.
"""

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from zeitgeist.errors import CheckpointInvalid, InputInvalid, RecipeInvalid
from zeitgeist.merging.blocks import BlockStack, detect_blocks
from zeitgeist.merging.configuration import (
    differing_settings,
    layer_settings,
    output_config,
    text_part,
    vocabulary_height,
)
from zeitgeist.merging.inputs import Model, foreign_bases
from zeitgeist.merging.lines import is_behind
from zeitgeist.merging.methods import METHODS, check_weights, make_options
from zeitgeist.merging.plan import Plan
from zeitgeist.merging.recipes.method_parameters import experts_of
from zeitgeist.merging.recipes.recipe import Recipe, Slice
from zeitgeist.merging.rounding import ROUNDABLE
from zeitgeist.merging.sparsify import check_window
from zeitgeist.merging.streaming.sources import Gathered, Source
from zeitgeist.merging.streaming.steps import Step
from zeitgeist.merging.vocabulary import Alignment, fill_rows, vocabulary_axis


def make_plan(
    recipe: Recipe,
    models: Mapping[str, Model],
    alignment: Alignment | None = None,
    vocabulary_changes: Mapping[str, Any] | None = None,
) -> Plan:
    """Decide every output tensor.

    Parameters
    ----------
    recipe
        A checked recipe.
    models
        The opened model of every reference in it.
    alignment, vocabulary_changes
        Where the rows of the new vocabulary come from, and what it changes in ``config.json``,
        when the recipe sets a tokenizer.

    Raises
    ------
    CheckpointInvalid
        Models that do not fit together; the message names tensor and model.
    RecipeInvalid
        Layers or modules that the models do not have.
    """
    return _Planner(recipe, models, alignment, vocabulary_changes or {}).plan()


class _Planner:
    def __init__(
        self,
        recipe: Recipe,
        models: Mapping[str, Model],
        alignment: Alignment | None,
        vocabulary_changes: Mapping[str, Any],
    ) -> None:
        self.recipe, self.models, self.alignment = recipe, models, alignment
        self.vocabulary_changes = vocabulary_changes
        self.method = METHODS[recipe.method]
        first = next(recipe.slices()).sources[0].model
        self.origin = models[recipe.base_model or first]
        self.notes = [*recipe.notices()]
        self.missing: dict[str, list[str]] = {}
        self.config_changes: dict[str, Any] = {}
        self.part_changes: dict[str, Any] = {}

    def plan(self) -> Plan:
        parts = [
            (module, list(self._named(module)), slices)
            for module, slices in self.recipe.modules.items()
        ]
        owner: dict[str, str] = {}
        for module, names, _ in parts:
            for name in names:
                if owner.setdefault(name, module) != module:
                    raise RecipeInvalid(
                        f"the modules {owner[name]!r} and {module!r} both have {name!r}",
                        origin=self.recipe.origin,
                        mend="name modules that do not overlap",
                    )
        steps = [step for part in parts for step in self._module(*part)]
        outside = [name for name in self.origin.names if name not in owner]
        if outside:
            self.notes.append(f"{len(outside)} tensors outside the modules are the base's")
        steps += [self._copy(name, self.origin) for name in outside]
        self._report_missing()
        if not steps:
            raise CheckpointInvalid("nothing is left to write", origin=self.recipe.origin)
        self.notes += differing_settings(self.origin, self.models.values())
        self.notes += foreign_bases(self.models.values())
        untied = bool({step.name for step in steps} & set(self.origin.checkpoint.tied))
        if untied:
            self.notes.append("some inputs tie their output head and some do not: it is untied")
        floating = [step.dtype for step in steps if step.dtype.is_floating_point]
        config = output_config(
            {**self.origin.config, **self.part_changes},
            self.config_changes,
            dtype=max(floating, key=floating.count) if floating else None,
            untied=untied,
            vocabulary=self.vocabulary_changes,
        )
        return Plan(
            self.recipe,
            self.models,
            tuple(steps),
            config,
            self.origin,
            tuple(dict.fromkeys(self.notes)),
            self.alignment,
        )

    def _named(self, module: str) -> Iterator[str]:
        """The tensors of a module over all models, in the order of the origin's file."""
        names = dict.fromkeys(
            name for model in [self.origin, *self.models.values()] for name in model.names
        )
        chosen = [name for name in names if not module or f".{name}".find(f".{module}.") >= 0]
        if not chosen:
            roots = sorted({".".join(name.split(".")[:2]) for name in names})
            raise RecipeInvalid(
                f"no tensor belongs to the module {module!r}",
                origin=self.recipe.origin,
                mend=f"the models have {', '.join(roots[:8])}",
            )
        yield from chosen

    def _module(self, module: str, names: Sequence[str], slices: Sequence[Slice]) -> Iterator[Step]:
        stacks = detect_blocks(names)
        if slices[0].sources[0].layer_range is None:
            depth = {
                name: position
                for stack in stacks
                for position, members in zip(stack.depths, stack.names, strict=True)
                for name in members
            }
            for name in names:
                yield from self._tensor(name, module, slices[0], depth.get(name, 0.0), {})
            return
        stack = self._main_stack(stacks)
        inside = {name for members in stack.names for name in members}
        outside = [name for name in names if name not in inside]
        yield from self._outside(outside, module, slices[0], behind=False)
        yield from self._layers(stack, module, slices)
        yield from self._outside(outside, module, slices[-1], behind=True)

    def _outside(
        self, names: Iterable[str], module: str, part: Slice, *, behind: bool
    ) -> Iterator[Step]:
        for name in names:
            if is_behind(name) == behind:
                yield from self._tensor(name, module, part, 0.0, {})

    def _layers(self, stack: BlockStack, module: str, slices: Sequence[Slice]) -> Iterator[Step]:
        kept: list[tuple[Model, int]] = []
        for part in slices:
            ranges = {source.model: source.layer_range for source in part.sources}
            lead = part.sources[0].model
            start, stop = ranges[lead] or (0, 0)
            for model, (low, high) in ((m, r) for m, r in ranges.items() if r is not None):
                found = detect_blocks(self.models[model].specs)
                layers = next((s.indices for s in found if s.prefix == stack.prefix), ())
                if high > len(layers):
                    raise RecipeInvalid(
                        f"layers {low} to {high} of {model!r}, which has {len(layers)}",
                        origin=self.recipe.origin,
                        mend=f"layer_range ends at {len(layers)} at most",
                    )
            for offset in range(stop - start):
                number, length = len(kept), stop - start
                kept.append((self.models[lead], start + offset))
                where = {
                    model: f"{stack.prefix}.{low + offset}."
                    for model, (low, _) in ((m, r) for m, r in ranges.items() if r is not None)
                }
                t = offset / (length - 1) if length > 1 else 1.0  # as mergekit does
                suffixes = dict.fromkeys(
                    name.removeprefix(prefix)
                    for model, prefix in [(lead, where[lead]), *where.items()]
                    for name in self.models[model].specs
                    if name.startswith(prefix)
                )
                for suffix in suffixes:
                    at = {model: prefix + suffix for model, prefix in where.items()}
                    out = f"{stack.prefix}.{number}.{suffix}"
                    yield from self._tensor(out, module, part, t, at)
        self._count_layers(stack, kept)

    def _count_layers(self, stack: BlockStack, kept: Sequence[tuple[Model, int]]) -> None:
        """Write the new number of layers where the configuration has that of this stack."""
        everything = detect_blocks(self.origin.names)
        if not everything or stack.prefix == self._main_stack(everything).prefix:
            self.config_changes |= layer_settings(kept) | {"num_hidden_layers": len(kept)}
            return
        text = text_part(self.origin.config)
        parts = [
            key
            for key, part in self.origin.config.items()
            if isinstance(part, dict)
            and part is not text
            and part.get("num_hidden_layers") == len(stack.indices)
        ]
        if len(parts) == 1:
            part = {**self.origin.config[parts[0]], "num_hidden_layers": len(kept)}
            self.part_changes[parts[0]] = part
        else:
            self.notes.append(
                f"{stack.prefix} has {len(kept)} layers now, and the configuration does not say "
                "where it counts them: change it by hand"
            )

    def _main_stack(self, stacks: Sequence[BlockStack]) -> BlockStack:
        """The language model's layers, among stacks of one module or of all."""
        if not stacks:
            raise RecipeInvalid(
                "layer_range is given, but no stack of layers was found",
                origin=self.recipe.origin,
                mend="use models: instead of slices:",
            )
        count = text_part(self.origin.config).get("num_hidden_layers")
        own = {s.prefix: len(s.indices) for s in detect_blocks(self.origin.names)}
        exact = [stack for stack in stacks if own.get(stack.prefix) == count]
        return (exact or sorted(stacks, key=lambda s: -len(s.indices)))[0]

    def _tensor(
        self, name: str, module: str, part: Slice, t: float, at: Mapping[str, str]
    ) -> Iterator[Step]:
        """The step of one output tensor, or none where it is dropped."""
        recipe = self.recipe
        sources, base_source = recipe.experts(part), recipe.base_source(part)
        base = None if base_source is None else self.models[base_source.model]
        local = [at.get(source.model, name) for source in sources]
        have = [i for i, s in enumerate(sources) if local[i] in self.models[s.model].specs]
        base_name = None if base_source is None else at.get(base_source.model, name)
        based = base is None or base_name in base.specs
        if len(have) < len(sources) or not based:
            lacking = [s.model for i, s in enumerate(sources) if i not in have]
            self.missing[name] = lacking + ([] if based or base is None else [base.reference])
            if recipe.missing != "keep":
                return
            fewest, _ = experts_of(recipe.method, based=base is not None)
            if len(have) < fewest or not based:
                owner = self.models[sources[have[0]].model] if have else base
                assert owner is not None
                yield self._copy(name, owner, local[have[0]] if have else base_name)
                return
        models = [self.models[sources[i].model] for i in have]
        names = [local[i] for i in have]
        if base is not None and base_name is not None:
            start: tuple[Model, str] | None = (base, base_name)
        else:
            start = self._start(part, name, at)
        wanted = [*zip(models, names, strict=True), *([start] if start else [])]
        shape = self._shape(name, wanted)
        lead, lead_name = (base, base_name) if base else (models[0], names[0])
        stored = lead.specs[lead_name].dtype  # type: ignore[index]
        if not stored.is_floating_point or 0 in shape:
            yield self._copy(name, lead, lead_name)
            return
        if self._dtype(stored) not in ROUNDABLE:
            raise CheckpointInvalid(
                f"tensor {name!r} is {str(stored).removeprefix('torch.')}, too coarse for a merge",
                origin=recipe.origin,
                mend="set out_dtype: bfloat16 (--dtype bfloat16)",
            )
        weights, given = [], False
        for i in have:
            weight = recipe.parameter(
                "weight", module=module, slice=part, source=sources[i], tensor=local[i], t=t
            )
            given = given or weight is not None
            weights.append(1.0 if weight is None else float(weight))
        values: dict[str, Any] = {}
        for field in dataclasses.fields(self.method.options):
            word = field.name.rstrip("_")
            asked = [None] if word not in self.method.per_model else [sources[i] for i in have]
            found = [
                recipe.parameter(
                    word,
                    module=module,
                    slice=part,
                    source=source,
                    tensor=name if source is None else at.get(source.model, name),
                    t=t,
                )
                for source in asked
            ]
            if any(value is not None for value in found):
                default = getattr(self._defaults, field.name)
                filled = [default if value is None else value for value in found]
                values[word] = filled[0] if len(set(filled)) == 1 else filled
        options = make_options(recipe.method, values, compat=recipe.compat)
        check_weights(recipe.method, options, weights, compat=recipe.compat)
        experts = [self._source(m, n, base) for m, n in zip(models, names, strict=True)]
        below = None if start is None else self._whole(*start)
        if recipe.method == "slerp" and base is not None and below is not None:
            experts = [below, *experts]
            weights = [1.0] * len(experts)
        if recipe.lines is None and (recipe.method == "slerp" or base is None):
            below = None
        step = Step(
            name=name,
            shape=shape,
            dtype=self._dtype(stored),
            method=recipe.method,
            experts=tuple(experts),
            positions=tuple(have) if recipe.method != "slerp" else tuple(range(len(experts))),
            base=below,
            options=options,
            weights=tuple(weights),
            weights_given=given,
            compat=recipe.compat,
        )
        if step.rule is not None and step.rule.sparsify == "ranked":
            windows = zip(step.per_expert("density"), step.per_expert("epsilon"), strict=True)
            for density, epsilon in windows:
                if 0 < density < 1:
                    check_window(density, epsilon * (2 if recipe.compat else 1))
        yield step

    def _start(self, part: Slice, name: str, at: Mapping[str, str]) -> tuple[Model, str] | None:
        """Where LiNeS scales the update from, for a method that looks at no base itself."""
        reference = self.recipe.base_of(part)
        if self.recipe.lines is None or reference is None:
            return None
        if at and reference not in at:
            raise RecipeInvalid(
                f"LiNeS scales the update from {reference!r}, which is no source of this slice",
                origin=self.recipe.origin,
                mend="leave out lines:, or merge whole models",
            )
        model, stored_as = self.models[reference], at.get(reference, name)
        return (model, stored_as) if stored_as in model.specs else None

    @property
    def _defaults(self) -> Any:
        return make_options(self.recipe.method, compat=self.recipe.compat)

    def _dtype(self, stored: torch.dtype) -> torch.dtype:
        name = self.recipe.out_dtype or self.recipe.dtype
        return getattr(torch, name) if name else stored

    def _copy(self, name: str, owner: Model, stored_as: str | None = None) -> Step:
        held = stored_as or name
        spec = owner.specs[held]
        shape = self._shape(name, [(owner, held)])
        dtype = self._dtype(spec.dtype) if spec.dtype.is_floating_point else spec.dtype
        source = self._whole(owner, held)
        return Step(name, shape, dtype, "passthrough", (source,))

    def _shape(self, name: str, wanted: Sequence[tuple[Model, str | None]]) -> tuple[int, ...]:
        """The tensor's shape in the output, if the models agree on one."""
        shapes = {}
        for model, stored_as in wanted:
            if stored_as is not None:
                shape, axis = model.specs[stored_as].shape, self._axis(model, stored_as)
                if axis is not None and self.alignment is not None:
                    shape = (*shape[:axis], self.alignment.size, *shape[axis + 1 :])
                shapes[model.reference] = shape
        if len(set(shapes.values())) == 1:
            return next(iter(shapes.values()))
        told = ", ".join(f"{list(shape)} in {model!r}" for model, shape in shapes.items())
        rows_differ = len({shape[1:] for shape in shapes.values()}) == 1
        raise CheckpointInvalid(
            f"tensor {name!r} is {told}",
            origin=self.recipe.origin,
            mend=(
                "if the vocabularies differ, set tokenizer: {source: union} or {source: base}"
                if rows_differ
                else "these models do not have the same architecture and cannot be merged"
            ),
        )

    def _axis(self, model: Model, name: str) -> int | None:
        """The axis of a tensor that counts tokens, where the vocabulary is being changed."""
        if self.alignment is None:
            return None
        return vocabulary_axis(name, model.specs[name].shape, vocabulary_height(model))

    def _source(self, model: Model, name: str, base: Model | None) -> Source:
        whole = self.method.family in ("copy", "nearswap")
        whole = whole or self.recipe.method in ("linear", "slerp", "karcher")
        if whole or self._axis(model, name) is not None:
            return self._whole(model, name)
        return model.expert(name, base)

    def _whole(self, model: Model, name: str) -> Source:
        alignment = self.alignment
        if alignment is None or self._axis(model, name) is None:
            return model.source(name)
        if model.adapter is not None and model.changes(name):
            raise InputInvalid(
                f"the adapter {model.reference!r} changes {name!r}, whose rows are re-ordered",
                mend="merge the adapter into its base first, or leave out tokenizer:",
            )
        height = vocabulary_height(model)
        if alignment.unchanged(model.reference, height):
            return model.source(name)
        matrices = {
            other.reference: other.stored(name).reshape(vocabulary_height(other), -1)
            for other in self.models.values()
            if other.reference in alignment.rows and name in other.specs
        }
        fill = fill_rows(alignment, model.reference, matrices)
        file = str(model.checkpoint.location(name)[0])
        return Gathered(matrices[model.reference], alignment.rows[model.reference], fill, file)

    def _report_missing(self) -> None:
        if not self.missing:
            return
        listed = "; ".join(
            f"{name!r} is not in {' or '.join(map(repr, lacking))}"
            for name, lacking in list(self.missing.items())[:4]
        )
        more = f" (and {len(self.missing) - 4} more)" if len(self.missing) > 4 else ""
        if self.recipe.missing == "stop":
            raise CheckpointInvalid(
                f"the models do not have the same tensors: {listed}{more}",
                origin=self.recipe.origin,
                mend="set missing: keep (merge what is there) or missing: drop",
            )
        verb = "merged from the rest" if self.recipe.missing == "keep" else "dropped"
        self.notes.append(f"{listed}{more}: {verb}")
