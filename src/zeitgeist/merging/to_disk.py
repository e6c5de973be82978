"""The door: a recipe in, a model directory (or an adapter) out."""

import json
import os
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import yaml

from zeitgeist.checkpoints import CheckpointWriter, check_output, model_card, resolve, versions
from zeitgeist.errors import InputInvalid, RecipeInvalid
from zeitgeist.merging.adapters import AdapterMergeReport, merge_adapters
from zeitgeist.merging.configuration import vocabulary_height
from zeitgeist.merging.inputs import Model, close_models, open_models
from zeitgeist.merging.lines import block_scales
from zeitgeist.merging.plan import Plan
from zeitgeist.merging.planner import make_plan
from zeitgeist.merging.recipes.method_parameters import ADAPTER_METHODS
from zeitgeist.merging.recipes.model_names import split_adapter
from zeitgeist.merging.recipes.recipe import Recipe, load_recipes, parse_recipe
from zeitgeist.merging.stages import intermediate, with_places
from zeitgeist.merging.streaming.chunks import Chunks
from zeitgeist.merging.streaming.merger import Merger
from zeitgeist.merging.tokenizers import (
    TOKENIZER_FILES,
    build_tokenizer,
    config_changes,
    has_tokenizer,
    read_vocabularies,
)
from zeitgeist.merging.vocabulary import align, new_vocabulary

SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class MergeReport:
    """What a merge did.

    ``alpha`` and ``beta`` are the strengths of LiNeS where it was asked for; ``notes`` are
    sentences a person should read; ``adapter`` is the report of a merge of adapters.
    """

    out: Path
    method: str
    tensors: int
    bytes_written: int
    seconds: float
    alpha: float | None = None
    beta: float | None = None
    notes: tuple[str, ...] = ()
    adapter: AdapterMergeReport | None = field(default=None, repr=False)


def merge(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    out: str | Path,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    resume: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: bool | None = None,
) -> MergeReport:
    """Merge the models a recipe names and write the result.

    Nothing is held in memory but a few chunks per thread: models larger than the memory are
    merged. The output is a transformers directory; for the methods of adapters (``knots_ties``,
    ``knots_dare_ties``, ``knots_task_arithmetic``) it is a PEFT adapter.

    Parameters
    ----------
    recipe
        A YAML file (mergekit's format is read as it is), the same as a mapping, or a `Recipe`.
        Of a file with several documents the last is the output; the others are made on the way.
    out
        Directory to make.
    threads
        Worker threads; default: the processors this process may use.
    overwrite
        Replace an existing ``out``.
    resume
        Go on where an interrupted merge with ``resume`` stopped.
    shard_bytes
        Largest size of a weight file.
    progress
        Progress bars on stderr; None: only on a terminal.

    Returns
    -------
    MergeReport
        What was written, with notes worth reading.

    Raises
    ------
    RecipeInvalid
        The recipe; the message has its line.
    ReferenceUnresolved
        A model that is nowhere to be found.
    CheckpointInvalid
        Models that are damaged or do not fit together.
    OutputExists
        ``out`` exists.

    References
    ----------
    Each method names the paper of its defaults: `zeitgeist merge methods`. What to expect of them:
    Yadav et al., "What Matters for Model Merging at Scale?", arXiv 2410.03617. LiNeS: Wang et al.,
    arXiv 2410.17146.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
    >>> folder = Path(tempfile.mkdtemp())
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> for name in ("base", "a", "b"):
    ...     LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(folder / name)
    >>> report = merge(
    ...     {
    ...         "merge_method": "ties",
    ...         "base_model": str(folder / "base"),
    ...         "models": [{"model": str(folder / "a")}, {"model": str(folder / "b")}],
    ...         "parameters": {"density": 0.5},
    ...     },
    ...     folder / "merged",
    ...     progress=False,
    ... )
    >>> report.tensors
    12
    >>> AutoModelForCausalLM.from_pretrained(report.out).config.vocab_size
    16
    """
    out = Path(out)
    if shard_bytes < 1:
        raise InputInvalid(f"shard_bytes is {shard_bytes}", mend="give at least 1")
    recipes = read_recipes(recipe)
    references = _references(recipes)
    check_output(out, overwrite=overwrite, inputs=local_paths(references))
    if len(recipes) > 1:  # a name that only a later recipe mentions is found now, not after hours
        for reference in references:
            resolve(reference, progress=progress is not False)
    with intermediate(recipes, out) as places:
        options = _Options(
            threads=worker_threads(threads),
            overwrite=overwrite,
            resume=resume,
            shard_bytes=shard_bytes,
            progress=progress,
            places=places,
        )
        for earlier in recipes[:-1]:
            # Its place is new in every run: there is nothing to resume.
            _merge_one(earlier, places[earlier.name or ""], replace(options, resume=False))
        last = replace(recipes[-1], text="---\n".join(one.text for one in recipes))
        return _merge_one(last, out, options)


@dataclass(frozen=True)
class _Options:
    threads: int
    overwrite: bool
    resume: bool
    shard_bytes: int
    progress: bool | None
    places: Mapping[str, Path]


def read_recipes(recipe: Recipe | Mapping[str, Any] | str | Path) -> list[Recipe]:
    """Every recipe of a file, a mapping or a recipe already read."""
    if isinstance(recipe, Recipe):
        return [recipe]
    if isinstance(recipe, Mapping):
        return [parse_recipe(recipe)]
    return load_recipes(recipe)


def worker_threads(asked: int | None) -> int:
    """The number asked for, or the processors this process may use."""
    if asked is not None and asked < 1:
        raise InputInvalid(f"threads is {asked}", mend="give at least 1")
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return asked or usable or 1


def _references(recipes: Sequence[Recipe]) -> list[str]:
    """Every model and adapter that is not the result of an earlier recipe."""
    named = {recipe.name for recipe in recipes}
    composed = {r for recipe in recipes for r in recipe.references()}
    return sorted({part for r in composed for part in split_adapter(r) if part} - named)


def local_paths(references: Iterable[str | Path]) -> list[Path]:
    """Those of the references that are files or directories here."""
    paths = [Path(reference).expanduser() for reference in references]
    return [path for path in paths if path.exists()]


def _merge_one(recipe: Recipe, out: Path, options: _Options) -> MergeReport:
    started = time.monotonic()
    placed = with_places(recipe, options.places)
    if recipe.method in ADAPTER_METHODS:
        return _merge_adapters(placed, out, options, started)
    plan = plan_recipe(placed, progress=options.progress)
    try:
        plan, strengths = _write(recipe, plan, out, options)
    finally:
        close_models(plan.models)
    return MergeReport(
        out,
        recipe.method,
        len(plan.steps),
        plan.bytes_written,
        time.monotonic() - started,
        *strengths,
        notes=plan.notes,
    )


def _write(
    recipe: Recipe, plan: Plan, out: Path, options: _Options
) -> tuple[Plan, tuple[float | None, float | None]]:
    named = {str(path): name for name, path in options.places.items()}
    with Chunks(seed=recipe.seed, threads=options.threads, progress=options.progress) as chunks:
        plan, strengths = with_lines(plan, chunks)
        inputs = _inputs(plan, named, progress=options.progress is not False)
        writer = CheckpointWriter(
            out,
            plan.specs,
            shard_bytes=options.shard_bytes,
            overwrite=options.overwrite,
            resume=options.resume,
            inputs=[path for m in plan.models.values() for path in (m.path, m.checkpoint.path)],
            fingerprint=f"{inputs} {recipe}",
        )
        with writer:
            _write_sidecars(writer, plan, inputs)
            Merger(plan.steps, chunks).run(writer)
    return plan, strengths


def _inputs(plan: Plan, named: Mapping[str, str], *, progress: bool) -> list[dict[str, Any]]:
    """Every input for the model card, with hashes of all weights that went into the result.

    ``named`` has the names of earlier results by the place where they lie.
    """
    models = plan.models.items()
    listed = {model.checkpoint.path for _, model in models if model.adapter is None}
    inputs = []
    for reference, model in models:
        below, adapter = split_adapter(reference)
        below = named.get(below, below)
        role = "base" if reference == plan.recipe.base_model else "expert"
        hashes = model.fingerprint(progress=progress)
        entry = {"reference": adapter or below, "role": role, "hashes": hashes}
        inputs.append(entry | ({"role": f"{role}, on {below}"} if adapter else {}))
        if model.checkpoint.path not in listed:
            listed.add(model.checkpoint.path)
            place = below if adapter else str(model.checkpoint.path)
            hashes = model.checkpoint.fingerprint(progress=progress)
            inputs.append({"reference": place, "role": "below an adapter", "hashes": hashes})
    return inputs


def plan_recipe(
    recipe: Recipe, *, headers_only: bool = False, progress: bool | None = None
) -> Plan:
    """Open the models of a recipe and decide every output tensor, from headers alone.

    With ``headers_only`` models on the hub are not even downloaded.
    """
    if recipe.method == "lines" and recipe.lines is None:
        raise RecipeInvalid(
            "the method lines has no strengths",
            origin=recipe.origin,
            mend="add lines: {alpha: 0.1} (--lines-alpha 0.1)",
        )
    if recipe.lines is not None and recipe.base_model is None:
        raise RecipeInvalid(
            "LiNeS scales the difference from a base, and the recipe names none",
            origin=recipe.origin,
            mend="add base_model",
        )
    models = open_models(
        recipe.references(),
        recipe.base_model,
        headers_only=headers_only,
        progress=progress is not False,
    )
    return plan_models(recipe, models)


def plan_models(recipe: Recipe, models: Mapping[str, Model]) -> Plan:
    """Decide every output tensor of models that are open already."""
    if recipe.tokenizer is None:
        return make_plan(recipe, models)
    rule, base, paths = recipe.tokenizer, _vocabulary_base(recipe), _tokenizer_paths(recipe, models)
    vocabularies = read_vocabularies(paths, base=base)
    alignment = align(
        new_vocabulary(vocabularies, rule, base=base),
        {reference: vocabularies[reference] for reference in models},
        rule,
        base=base,
        heights={reference: vocabulary_height(model) for reference, model in models.items()},
    )
    changes = config_changes(rule, paths, base=base, size=alignment.size)
    return make_plan(recipe, models, alignment, changes["config.json"])


def _vocabulary_base(recipe: Recipe) -> str:
    """The model whose tokens keep their numbers."""
    return recipe.base_model or recipe.references()[0]


def _tokenizer_paths(recipe: Recipe, models: Mapping[str, Model]) -> dict[str, Path]:
    """Where each tokenizer lies: an adapter may bring its own, the rule may name another model."""
    paths = {
        reference: model.path if has_tokenizer(model.path) else model.checkpoint.path
        for reference, model in models.items()
    }
    source = "base" if recipe.tokenizer is None else recipe.tokenizer.source
    if source not in ("union", "base", *paths):
        paths[source] = resolve(source)
    return paths


def with_lines(plan: Plan, chunks: Chunks) -> tuple[Plan, tuple[float | None, float | None]]:
    """The plan with LiNeS' scales, and alpha and beta; unchanged if the recipe has no LiNeS."""
    options = plan.recipe.lines
    if options is None:
        return plan, (None, None)
    experts = max(len(plan.recipe.experts(part)) for part in plan.recipe.slices())
    norms: tuple[float, ...] = ()
    if options.alpha is None and experts > 1:
        if any(step.rule is None for step in plan.steps if step.options is not None):
            raise RecipeInvalid(
                f"the alpha rule of LiNeS is not defined for {plan.recipe.method}",
                origin=plan.recipe.origin,
                mend="give alpha (--lines-alpha)",
            )
        norms = Merger(plan.steps, chunks).update_norms()
    alpha, beta = options.strengths(experts, *norms)
    scales = block_scales(
        [step.name for step in plan.steps],
        alpha,
        beta,
        before=options.before,
        after=options.after,
        pattern=options.pattern,
    )
    return plan.scaled(scales), (alpha, beta)


def _write_sidecars(
    writer: CheckpointWriter, plan: Plan, inputs: Sequence[Mapping[str, Any]]
) -> None:
    recipe, origin = plan.recipe, plan.origin.checkpoint
    renewed = recipe.tokenizer is not None or recipe.chat_template is not None
    for path in origin.sidecars:
        if not (renewed and path.name in TOKENIZER_FILES):
            writer.copy(path, path.relative_to(origin.path).as_posix())
    if renewed:
        _write_tokenizer(writer, plan)
    writer.text("config.json", json.dumps(plan.config, indent=2) + "\n")
    writer.text(
        "README.md",
        model_card(
            title=writer.out.name,
            method=recipe.method,
            inputs=inputs,
            recipe=recipe.text or yaml.safe_dump({"merge_method": recipe.method}),
            versions=versions(),
            notes=plan.notes,
        ),
    )


def _write_tokenizer(writer: CheckpointWriter, plan: Plan) -> None:
    recipe, paths = plan.recipe, _tokenizer_paths(plan.recipe, plan.models)
    base = _vocabulary_base(recipe)
    with tempfile.TemporaryDirectory() as folder:
        build_tokenizer(
            Path(folder), recipe.tokenizer, paths, base=base, chat_template=recipe.chat_template
        )
        for path in sorted(Path(folder).iterdir()):
            writer.copy(path)
    generation = plan.origin.checkpoint.path / "generation_config.json"
    if recipe.tokenizer is not None and plan.alignment is not None and generation.is_file():
        changes = config_changes(recipe.tokenizer, paths, base=base, size=plan.alignment.size)
        told = json.loads(generation.read_text(encoding="utf-8"))
        changed = told | changes["generation_config.json"]
        writer.text("generation_config.json", json.dumps(changed, indent=2) + "\n")


def _merge_adapters(recipe: Recipe, out: Path, options: _Options, started: float) -> MergeReport:
    (part,) = recipe.slices()
    experts = recipe.experts(part)

    def said(name: str, source: Any = None) -> Any:
        return recipe.parameter(name, slice=part, source=source)

    weights = [said("weight", source) for source in experts]
    given = {
        "lambda_" if name == "lambda" else name: said(name)
        for name in ("density", "lambda", "trim_scope", "drop", "out_rank")
        if said(name) is not None
    }
    report = merge_adapters(
        [source.model for source in experts],
        out,
        method=recipe.method,
        weights=None if set(weights) == {None} else [1.0 if w is None else w for w in weights],
        seed=recipe.seed,
        lines=recipe.lines,
        dtype=getattr(torch, recipe.out_dtype or recipe.dtype or "float32"),
        overwrite=options.overwrite,
        progress=options.progress,
        **given,
    )
    written = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    return MergeReport(
        out, recipe.method, 2 * len(report.layers), written, time.monotonic() - started,
        adapter=report, notes=tuple(recipe.notices()),
    )  # fmt: skip
