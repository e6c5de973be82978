"""Merging into a loaded model instead of onto disk, and scoring it: sweeps and greedy soups."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from zeitgeist.checkpoints import check_output
from zeitgeist.errors import InputInvalid, RecipeInvalid
from zeitgeist.merging.inputs import Model, open_models
from zeitgeist.merging.recipes.method_parameters import parameters_of
from zeitgeist.merging.recipes.recipe import Recipe, parse_recipe
from zeitgeist.merging.soups import GreedySoup, greedy_soup
from zeitgeist.merging.streaming.chunks import Chunks
from zeitgeist.merging.streaming.merger import Merger
from zeitgeist.merging.streaming.steps import Tensors
from zeitgeist.merging.to_disk import (
    MergeReport,
    merge,
    plan_models,
    read_recipes,
    with_lines,
    worker_threads,
)

Metric = Callable[[Any, Any], float]
"""From a transformers model and its tokenizer to a number; larger is better."""

_WINDOW = 512  # tokens scored at a time


class LiveModel:
    """One loaded model whose weights are replaced by one merge after another.

    Inputs are opened once; a merge writes straight into the parameters.
    """

    def __init__(self, recipe: Recipe, *, threads: int, progress: bool | None = None) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer  # slow to import

        self.progress, self.threads = progress, threads
        shown = progress is not False
        self.models: Mapping[str, Model] = open_models(
            recipe.references(), recipe.base_model, progress=shown
        )
        plan = plan_models(recipe, self.models)
        path = plan.origin.checkpoint.path
        self.tokenizer = AutoTokenizer.from_pretrained(path, local_files_only=True)
        self.model = AutoModelForCausalLM.from_pretrained(
            path, dtype="auto", local_files_only=True
        ).eval()
        self._state = dict(self.model.state_dict(keep_vars=False))
        absent = [step.name for step in plan.steps if step.name not in self._state]
        wrong = [
            step.name
            for step in plan.steps
            if step.name in self._state and self._state[step.name].shape != step.shape
        ]
        if absent or wrong:
            raise RecipeInvalid(
                f"the merge makes {(absent or wrong)[0]!r}, for which {path} has no place",
                origin=recipe.origin,
                mend="score a merge that changes layers or vocabulary from disk",
            )

    def become(self, recipe: Recipe) -> None:
        """Take the weights that ``recipe`` makes."""
        with Chunks(seed=recipe.seed, threads=self.threads, progress=self.progress) as chunks:
            plan, _ = with_lines(plan_models(recipe, self.models), chunks)
            dtypes = [replace(s, dtype=self._state[s.name].dtype) for s in plan.steps]
            wanted = {step.name: self._state[step.name] for step in dtypes}
            Merger(dtypes, chunks).run(Tensors(wanted))

    def score(self, metric: Metric) -> float:
        """The metric of the weights held now."""
        with torch.inference_mode():
            value = float(metric(self.model, self.tokenizer))
        if math.isnan(value):
            raise InputInvalid("the metric returned NaN", mend="a metric is a finite number")
        return value


@dataclass(frozen=True)
class Cell:
    """One point of a sweep and its score."""

    values: Mapping[str, float]
    score: float


@dataclass(frozen=True)
class SweepReport:
    """Scores of the base, of each expert alone and of every cell, and the best cell."""

    cells: tuple[Cell, ...]
    best: Cell
    base: float | None
    experts: Mapping[str, float]
    written: MergeReport | None


def load_metric(text: str | Path | Metric) -> Metric:
    """A metric by name: ``module:function``, or a text file for negated perplexity.

    Raises
    ------
    InputInvalid
        No such function or file.

    Examples
    --------
    >>> load_metric("math:hypot")(3.0, 4.0)
    5.0
    """
    if callable(text):
        return text
    if Path(text).is_file():
        return _perplexity_of(Path(text))
    module, _, name = str(text).partition(":")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputInvalid(
            f"the metric {str(text)!r} is neither a text file nor module:function ({error})",
            mend="give a .txt for perplexity, or a function (model, tokenizer) -> float",
        ) from error
    return found  # type: ignore[no-any-return]


def _perplexity_of(path: Path) -> Metric:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise InputInvalid("the text is empty", origin=path, mend="give text to score")

    def negated_perplexity(model: Any, tokenizer: Any) -> float:
        ids = tokenizer(text, return_tensors="pt").input_ids[0]
        windows = [w for w in ids.split(_WINDOW) if len(w) > 1]
        total = sum(
            float(model(input_ids=w[None], labels=w[None]).loss) * (len(w) - 1) for w in windows
        )
        return -math.exp(total / sum(len(w) - 1 for w in windows))

    return negated_perplexity


def sweep(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    grid: Mapping[str, Sequence[float]],
    metric: str | Path | Metric,
    out: str | Path | None = None,
    *,
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> SweepReport:
    """Score a grid of parameters on a metric of yours and write only the best merge.

    Parameters
    ----------
    recipe
        As for `merge`, one document.
    grid
        Values to try for each parameter: ``{"lambda": [0.5, 1.0], "density": [0.1, 0.2]}``. The
        words are those of a recipe; ``alpha`` and ``beta`` are LiNeS'.
    metric
        ``module:function`` or a callable (model, tokenizer) -> float, larger is better; or a text
        file, scored by negated perplexity.
    out
        Where to write the best merge; None: nowhere.

    Returns
    -------
    SweepReport
        Every score, with those of the base and of each expert alone beside.

    Raises
    ------
    InputInvalid
        A parameter that the method does not have or that the recipe already sets for some
        models; an empty grid; a metric that cannot be loaded.
    """
    (read, *more) = read_recipes(recipe)
    if more:
        raise RecipeInvalid("a sweep takes one recipe", origin=read.origin, mend="split the file")
    if out is not None:
        check_output(Path(out), overwrite=overwrite)
    scored = load_metric(metric)
    recipes = [(values, with_values(read, values)) for values in _cells(read, grid)]
    live = LiveModel(read, threads=worker_threads(threads), progress=False)
    cells, alone = [], {}
    hidden = None if progress is None else not progress
    base = None
    singles = [r for r in read.references() if r != read.base_model]
    with tqdm(total=len(recipes) + len(singles) + 1, desc="sweep", disable=hidden) as bar:
        if read.base_model is not None:
            live.become(_single(read, read.base_model))
            base = live.score(scored)
            bar.update()
        for reference in singles:
            live.become(_single(read, reference))
            alone[reference] = live.score(scored)
            bar.update()
        for values, one in recipes:
            live.become(one)
            cells.append(Cell(values, live.score(scored)))
            bar.set_postfix(best=max(cell.score for cell in cells))
            bar.update()
    best = max(cells, key=lambda cell: cell.score)
    written = None
    if out is not None:
        chosen = next(one for values, one in recipes if values == best.values)
        written = merge(chosen, out, threads=threads, overwrite=overwrite, progress=progress)
    return SweepReport(tuple(cells), best, base, alone, written)


def soup(
    experts: Sequence[str | Path],
    metric: str | Path | Metric,
    out: str | Path,
    *,
    base: str | Path | None = None,
    strict: bool = False,
    threads: int | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
) -> tuple[GreedySoup, MergeReport]:
    """Greedy soup: average those fine-tunes whose addition does not lower a held-out score.

    Parameters
    ----------
    experts
        At least one model or adapter.
    metric
        See `sweep`.
    out
        Where to write the soup.
    base
        What adapters were trained on, where they do not say.
    strict
        Ask every addition to raise the score (the official code) instead of not lowering it (the
        paper's Recipe 1).

    Returns
    -------
    tuple
        Who is in the soup with all scores, and what was written.
    """
    check_output(Path(out), overwrite=overwrite)
    scored = load_metric(metric)

    def average(members: Sequence[int]) -> Recipe:
        document: dict[str, Any] = {
            "merge_method": "linear",
            "models": [{"model": str(experts[i]), "parameters": {"weight": 1.0}} for i in members],
        }
        if base is not None:
            document["base_model"] = str(base)
        return parse_recipe(document)

    live = LiveModel(average(range(len(experts))), threads=worker_threads(threads), progress=False)

    def score(members: tuple[int, ...]) -> float:
        live.become(average(members))
        return live.score(scored)

    chosen = greedy_soup(len(experts), score, strict=strict)
    report = merge(
        average(chosen.members), out, threads=threads, overwrite=overwrite, progress=progress
    )
    return chosen, report


def _single(recipe: Recipe, reference: str) -> Recipe:
    """One input as it is."""
    document: dict[str, Any] = {"merge_method": "linear", "models": [{"model": reference}]}
    if recipe.base_model is not None:
        document["base_model"] = recipe.base_model
    return parse_recipe(document)


def _cells(recipe: Recipe, grid: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
    if not grid or not all(len(values) for values in grid.values()):
        raise InputInvalid(f"the grid is {dict(grid)!r}", mend="give at least one value to try")
    return [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]


def with_values(recipe: Recipe, values: Mapping[str, float]) -> Recipe:
    """The recipe with some parameters set for all of it.

    Raises
    ------
    InputInvalid
        The method has no such parameter, or the recipe sets it in a narrower place.
    """
    strengths = {name: value for name, value in values.items() if name in ("alpha", "beta")}
    others = {name: value for name, value in values.items() if name not in strengths}
    known = parameters_of(recipe.method)
    for name in others:
        if name not in known:
            raise InputInvalid(
                f"{recipe.method} has no parameter {name!r}",
                mend=f"it has {', '.join(sorted(known))}",
            )
        parts = list(recipe.slices())
        narrower = [s.parameters for part in parts for s in part.sources]
        if any(name in scope for scope in [*narrower, *(part.parameters for part in parts)]):
            raise InputInvalid(
                f"the recipe sets {name!r} for single models or slices",
                origin=recipe.origin,
                mend="take it out there to sweep it for all",
            )
    lines = recipe.lines
    if strengths:
        if lines is None:
            raise InputInvalid(
                f"{', '.join(strengths)} belong to LiNeS, which the recipe does not use",
                origin=recipe.origin,
                mend="add lines: {alpha: 0.5}",
            )
        lines = replace(
            lines,
            alpha=strengths.get("alpha", lines.alpha),
            beta=strengths.get("beta", lines.beta),
        )
    return replace(recipe, parameters={**recipe.parameters, **others}, lines=lines)
