"""Merging into a loaded model instead of onto disk, and scoring it: sweeps and greedy soups."""

import itertools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from zeitgeist.checkpoints import check_output
from zeitgeist.errors import CheckpointInvalid, InputInvalid, RecipeInvalid
from zeitgeist.merging.inputs import Model, close_models, open_models
from zeitgeist.merging.recipes.method_parameters import ADAPTER_METHODS, parameters_of
from zeitgeist.merging.recipes.recipe import Recipe, parse_recipe
from zeitgeist.merging.recipes.settings import Scalar
from zeitgeist.merging.soups import GreedySoup, greedy_soup
from zeitgeist.merging.streaming.chunks import Chunks
from zeitgeist.merging.streaming.merger import Merger
from zeitgeist.merging.streaming.steps import Tensors
from zeitgeist.merging.to_disk import (
    MergeReport,
    local_paths,
    merge,
    plan_models,
    read_recipes,
    with_lines,
    worker_threads,
)
from zeitgeist.merging.tokenizers import has_tokenizer, open_tokenizer

Metric = Callable[[Any, Any], float]
"""From a transformers model and its tokenizer to a number; larger is better."""

_WINDOW = 512  # tokens scored at a time
_OVERFLOW = 709.0  # exp of more is no float64


class LiveModel:
    """One loaded model whose weights are replaced by one merge after another.

    Inputs are opened once; a merge writes straight into the parameters. ``dtype`` and ``device``:
    of the loaded model; None: as the base was saved, on the processor.
    """

    def __init__(
        self,
        recipe: Recipe,
        *,
        threads: int,
        progress: bool | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.progress, self.threads = progress, threads
        if recipe.method in ADAPTER_METHODS:
            raise RecipeInvalid(
                f"{recipe.method} makes an adapter, and whole models are scored here",
                origin=recipe.origin,
                mend="merge with zeitgeist merge, once for each value, and score the adapters",
            )
        self.models: Mapping[str, Model] = open_models(
            recipe.references(), recipe.base_model, progress=progress is not False
        )
        plan = plan_models(recipe, self.models)
        path = plan.origin.checkpoint.path
        self.tokenizer = open_tokenizer(path) if has_tokenizer(path) else None
        self.model = _loaded(path, dtype).to(device=device)
        self._state = dict(self.model.state_dict(keep_vars=False))
        for step in plan.steps:
            place = self._state.get(step.name)
            if place is None or place.shape != step.shape:
                raise self._no_place(step.name, path, recipe)
        owner: dict[int, str] = {}
        for step in plan.steps:
            if owner.setdefault(self._state[step.name].data_ptr(), step.name) != step.name:
                raise self._no_place(step.name, path, recipe)  # tied here, not in the merge

    @staticmethod
    def _no_place(name: str, path: Path, recipe: Recipe) -> RecipeInvalid:
        return RecipeInvalid(
            f"the merge makes {name!r}, for which {path} has no place",
            origin=recipe.origin,
            mend="score a merge that changes layers, vocabulary or a tied head from disk",
        )

    def __enter__(self) -> "LiveModel":
        return self

    def __exit__(self, *_: object) -> None:
        close_models(self.models)

    def become(self, recipe: Recipe) -> None:
        """Take the weights that ``recipe`` makes."""
        with Chunks(seed=recipe.seed, threads=self.threads, progress=self.progress) as chunks:
            plan, _ = with_lines(plan_models(recipe, self.models), chunks)
            dtypes = [replace(s, dtype=self._state[s.name].dtype) for s in plan.steps]
            wanted = {step.name: self._state[step.name] for step in dtypes}
            Merger(dtypes, chunks).run(Tensors(wanted))

    def score(self, metric: Metric) -> float:
        """The metric of the weights held now; NaN if that is what it says."""
        with torch.inference_mode():
            return float(metric(self.model, self.tokenizer))


def _loaded(path: Path, dtype: torch.dtype | None) -> Any:
    from transformers import AutoModelForCausalLM  # slow to import

    try:
        model = AutoModelForCausalLM.from_pretrained(
            path, dtype=dtype or "auto", local_files_only=True
        )
    except (OSError, ValueError, KeyError) as error:
        reason = "".join(str(error).strip().splitlines()[:1])
        raise CheckpointInvalid(
            f"transformers cannot load this as a causal language model: {reason}",
            origin=path,
            mend="score a merge of another kind of model from disk",
        ) from error
    return model.eval()


@dataclass(frozen=True)
class Cell:
    """One point of a sweep and its score."""

    values: Mapping[str, float]
    score: float


@dataclass(frozen=True)
class SweepReport:
    """Scores of the base, of each expert alone and of every cell, and the best cell.

    A cell whose score is NaN is never the best.
    """

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
    here = str(Path.cwd())
    sys.path.insert(0, here)  # as python -m does: a console script does not look here
    try:
        found = getattr(import_module(module), name)
        if not callable(found):
            raise TypeError(f"{name} is no function")
    except (ImportError, AttributeError, ValueError, TypeError) as error:
        raise InputInvalid(
            f"the metric {str(text)!r} is neither a text file nor module:function ({error})",
            mend="give a .txt for perplexity, or a function (model, tokenizer) -> float",
        ) from error
    finally:
        sys.path.remove(here)
    return found  # type: ignore[no-any-return]


def _perplexity_of(path: Path) -> Metric:
    text = path.read_text(encoding="utf-8")
    if not text.strip():
        raise InputInvalid("the text is empty", origin=path, mend="give text to score")

    def negated_perplexity(model: Any, tokenizer: Any) -> float:
        if tokenizer is None:
            raise InputInvalid(
                "the models have no tokenizer to read the text with",
                origin=path,
                mend="give a function (model, tokenizer) -> float as metric",
            )
        ids = tokenizer(text, return_tensors="pt").input_ids[0]
        windows = [w for w in ids.split(_WINDOW) if len(w) > 1]
        if not windows:
            raise InputInvalid("the text is a single token", origin=path, mend="give more text")
        total = sum(
            float(model(input_ids=w[None], labels=w[None]).loss) * (len(w) - 1) for w in windows
        )
        mean = total / sum(len(w) - 1 for w in windows)
        return -math.exp(mean) if mean < _OVERFLOW else -math.inf

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
    references = read.references()
    if out is not None:
        check_output(Path(out), overwrite=overwrite, inputs=local_paths(references))
    scored = load_metric(metric)
    recipes = [(values, with_values(read, values)) for values in _cells(grid)]
    singles = [reference for reference in references if reference != read.base_model]
    cells: list[Cell] = []
    alone: dict[str, float] = {}
    hidden = None if progress is None else not progress
    base = None
    with (
        LiveModel(read, threads=worker_threads(threads), progress=False) as live,
        tqdm(total=len(recipes) + len(singles) + 1, desc="sweep", disable=hidden) as bar,
    ):
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
            bar.set_postfix(best=max(cells, key=_rank).score)
            bar.update()
    best = max(cells, key=_rank)
    if math.isnan(best.score):
        raise InputInvalid("the metric is NaN for every value tried", mend="try smaller values")
    written = None
    if out is not None:
        chosen = recipes[cells.index(best)][1]
        written = merge(chosen, out, threads=threads, overwrite=overwrite, progress=progress)
    return SweepReport(tuple(cells), best, base, alone, written)


def _rank(cell: Cell) -> float:
    return -math.inf if math.isnan(cell.score) else cell.score


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
    named = [*experts, *([] if base is None else [base])]
    check_output(Path(out), overwrite=overwrite, inputs=local_paths(named))
    scored = load_metric(metric)

    def average(members: Sequence[int]) -> Recipe:
        document: dict[str, Any] = {
            "merge_method": "linear",
            "models": [{"model": str(experts[i]), "parameters": {"weight": 1.0}} for i in members],
        }
        if base is not None:
            document["base_model"] = str(base)
        return parse_recipe(document)

    everyone = average(range(len(experts)))
    with LiveModel(everyone, threads=worker_threads(threads), progress=False) as live:

        def score(members: tuple[int, ...]) -> float:
            live.become(average(members))
            return live.score(scored)

        chosen = greedy_soup(len(experts), score, strict=strict, progress=progress)
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


def _cells(grid: Mapping[str, Sequence[float]]) -> list[dict[str, float]]:
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
    known = parameters_of(recipe.method, recipe.compat)
    settings: dict[str, Scalar] = {}
    for name, value in others.items():
        if name not in known:
            raise InputInvalid(
                f"{recipe.method} has no parameter {name!r}",
                mend=f"it has {', '.join(sorted(known))}",
            )
        settings[name] = known[name].scalar(value)
        parts = list(recipe.slices())
        narrower = [s.parameters for part in parts for s in part.sources]
        narrower += [*(part.parameters for part in parts), *recipe.module_parameters.values()]
        if any(name in scope for scope in narrower):
            raise InputInvalid(
                f"the recipe sets {name!r} for single models, slices or modules",
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
    return replace(recipe, parameters={**recipe.parameters, **settings}, lines=lines)
