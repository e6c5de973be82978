"""What a merge keeps and what it loses, on a real language model.

One base, four LoRA experts, one per task (`zeitgeist.studies.merging_tasks`), and every merge
method of the page beside the base and the experts: exact answers on the tasks the experts learned
(held in), perplexity on text that nobody learned (held out).

The methods run at their published defaults, which were tuned on other models; none is tuned here,
so that none is favoured. Sources: Yadav et al. arXiv 2410.03617 (averaging, task arithmetic, TIES,
DARE-TIES), Stoica et al. arXiv 2410.19735 (KnOTS), Wang et al. arXiv 2410.17146 (LiNeS).

What this cannot show: one base of 135 M parameters, unpacked from 4 bits; four tasks of one rule
each; one seed unless you run more. It shows how the methods behave here, not which is better.
"""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm import tqdm
from transformers.utils import logging as transformers_logging

from zeitgeist.checkpoints import is_adapter, new_directory, resolve, versions
from zeitgeist.errors import InputInvalid
from zeitgeist.merging import compare as compare_experts
from zeitgeist.merging import merge
from zeitgeist.studies.merging_arms import (
    ARMS,
    TEXTS,
    Arm,
    MergingResults,
    ScoredModel,
    StudySettings,
)
from zeitgeist.studies.merging_experts import (
    Base,
    Expert,
    cached_scores,
    open_base,
    train_expert,
)
from zeitgeist.studies.merging_scores import Scores, compare, score
from zeitgeist.studies.merging_tasks import TASKS, Task, encode, held_out, split
from zeitgeist.training import Example, best_device, best_dtype, load_model


def run(
    out: Path,
    *,
    settings: StudySettings | None = None,
    overwrite: bool = False,
    fresh: bool = False,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda _: None,
    illustrate: Callable[[MergingResults, Path], None] = lambda *_: None,
) -> MergingResults:
    """Train or fetch the experts, merge them in every way, score everything.

    Parameters
    ----------
    out
        Directory to make: ``results.json`` and every merged model under ``models``.
    settings
        None: the demo's.
    overwrite
        Replace an earlier ``out``. Experts in the cache are kept either way.
    fresh
        Train and score the experts again.
    progress
        Show bars on stderr; None: when it is a terminal.
    say
        Told in a sentence what happens next.
    illustrate
        Given the results and the unfinished directory, to add pictures and pages.

    Raises
    ------
    OutputExists
        ``out`` is there and ``overwrite`` is false.
    InputInvalid
        No room on the disk, or settings that do not exist.
    """
    chosen = settings or StudySettings()
    tasks, arms = _chosen(chosen)
    clock = _Clock()
    with (
        new_directory(out, overwrite=overwrite, replaces=("results.json",)) as made,
        _own_bars_only(),
    ):
        with clock("base"):
            say(f"base: {chosen.base}")
            base = open_base(chosen.base, resolve(chosen.base, progress=progress is not False))
        _check_room(made, base, arms)
        with clock("experts"):
            experts = []
            for number, task in enumerate(tasks, 1):
                say(f"expert {number} of {len(tasks)}: {task.title}")
                expert = _expert(base, task, chosen, fresh, progress)
                say("  from the cache" if expert.cached else f"  took {expert.seconds:.0f} s")
                experts.append(expert)
        with clock("merging"):
            say(f"merging in {len(arms)} ways")
            merged = _merge_all(made, base, experts, arms, chosen, progress)
        with clock("comparing experts"):
            sign_conflicts = _conflicts(base, experts)
        with clock("scoring"):
            say("scoring on held-in tasks and held-out text")
            sets = _sets(base, tasks, chosen)
            models = (*_originals(base, tasks, experts), *merged)
            scores = _score_all(made, base, models, experts, sets, fresh, progress)
        rows = compare(
            scores,
            base="base",
            experts={task.slug: f"expert-{task.slug}" for task in tasks},
            seed=chosen.seed,
        )
        results = MergingResults(
            settings=chosen,
            models=models,
            tasks={task.slug: task.title for task in tasks},
            texts=TEXTS,
            rows=tuple(rows),
            conflicts=tuple(sign_conflicts),
            experts=tuple(asdict(expert) for expert in experts),
            seconds=clock.seconds,
            versions=versions(),
            precision=str(best_dtype(best_device())).removeprefix("torch."),
        )
        say("drawing")
        (made / "results.json").write_text(results.to_json(), encoding="utf-8")
        illustrate(results, made)
    return results


def _chosen(settings: StudySettings) -> tuple[list[Task], list[Arm]]:
    for slug, known in (
        *((task, TASKS) for task in settings.tasks),
        *((arm, ARMS) for arm in settings.arms),
    ):
        if slug not in known:
            raise InputInvalid(f"there is no {slug!r}", mend=f"choose from {', '.join(known)}")
    if len(settings.tasks) < 2:
        raise InputInvalid(
            f"the tasks are {settings.tasks}", mend="give at least two: one expert is no merge"
        )
    return [TASKS[slug] for slug in settings.tasks], [ARMS[slug] for slug in settings.arms]


def _check_room(place: Path, base: Base, arms: Sequence[Arm]) -> None:
    size = sum(path.stat().st_size for path in base.path.glob("*.safetensors"))
    needed = size * sum(not arm.method.startswith("knots") for arm in arms)
    free = shutil.disk_usage(place).free
    if free < needed:
        raise InputInvalid(
            f"the merged models need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free",
            origin=place.parent,
            mend="choose an output on another disk",
        )


def _expert(
    base: Base, task: Task, settings: StudySettings, fresh: bool, progress: bool | None
) -> Expert:
    return train_expert(
        base,
        task,
        lora=replace(settings.lora, seed=settings.seed),
        test_items=settings.test_items,
        fresh=fresh,
        progress=progress,
    )


def _recipe(base: Base, experts: Sequence[Expert], arm: Arm, seed: int) -> dict[str, Any]:
    return {
        "merge_method": arm.method,
        "base_model": base.reference,
        "models": [{"model": str(expert.path)} for expert in experts],
        "seed": seed,
        **({"lines": {}} if arm.lines else {}),
    }


def _merge_all(
    made: Path,
    base: Base,
    experts: Sequence[Expert],
    arms: Sequence[Arm],
    settings: StudySettings,
    progress: bool | None,
) -> list[ScoredModel]:
    merged = []
    with _bar(len(arms), "merge", "model", progress) as bar:
        for arm in arms:
            bar.set_postfix_str(arm.slug)
            recipe = _recipe(base, experts, arm, settings.seed)
            report = merge(recipe, made / "models" / arm.slug, progress=False)
            merged.append(
                ScoredModel(
                    arm.slug,
                    arm.title,
                    "lines" if arm.lines else "merge",
                    arm.explanation,
                    f"models/{arm.slug}",
                    report.seconds,
                    recipe,
                    (report.adapter or report).alpha,
                    (report.adapter or report).beta,
                    report.notes,
                )
            )
            bar.update()
    return merged


def _originals(
    base: Base, tasks: Sequence[Task], experts: Sequence[Expert]
) -> Iterator[ScoredModel]:
    yield ScoredModel("base", "Base", "base", "before any fine-tuning", str(base.path), 0.0)
    for task, expert in zip(tasks, experts, strict=True):
        yield ScoredModel(
            f"expert-{task.slug}",
            f"Expert: {task.title}",
            "expert",
            f"LoRA on {task.title}, {task.steps} steps",
            str(expert.path),
            expert.seconds,
        )


def _conflicts(base: Base, experts: Sequence[Expert]) -> list[dict[str, Any]]:
    names = {str(expert.path): expert.task for expert in experts}
    rows = compare_experts(_recipe(base, experts, ARMS["ties"], 0), progress=False).rows()
    return [{key: names.get(str(value), value) for key, value in row.items()} for row in rows]


def _sets(base: Base, tasks: Sequence[Task], settings: StudySettings) -> dict[str, list[Example]]:
    sets = {
        task.slug: [
            encode(base.tokenizer, task, item)
            for item in split(task, train=0, test=settings.test_items, seed=0).test
        ]
        for task in tasks
    }
    texts = held_out(
        base.tokenizer,
        windows=settings.windows,
        context=settings.context_tokens,
        length=settings.window_tokens,
    )
    return sets | texts


def _score_all(
    made: Path,
    base: Base,
    models: Sequence[ScoredModel],
    experts: Sequence[Expert],
    sets: Mapping[str, Sequence[Example]],
    fresh: bool,
    progress: bool | None,
) -> dict[str, Scores]:
    """Every model is opened from disk as a person would open it."""
    items = sum(map(len, sets.values()))
    device = best_device()
    adapters = {f"expert-{expert.task}": expert.path for expert in experts}

    def scored(model: ScoredModel) -> Scores:
        place = made / model.path  # an absolute path stays what it is
        whole, adapter = (base.path, place) if is_adapter(place) else (place, None)
        loaded = load_model(whole, adapter, dtype=best_dtype(device), device=device)
        return score(loaded, sets, pad=base.pad, progress=bar)

    found = {}
    with _bar(items * len(models), "score", "item", progress) as bar:
        for number, model in enumerate(models, 1):
            bar.set_postfix_str(model.slug)
            if model.kind in ("base", "expert"):
                adapter = adapters.get(model.slug)
                found[model.slug] = cached_scores(
                    base, adapter, sets, partial(scored, model), fresh=fresh
                )
            else:
                found[model.slug] = scored(model)
            bar.update(number * items - bar.n)
    return found


def _bar(total: int, label: str, unit: str, progress: bool | None) -> "tqdm[Any]":
    hidden = None if progress is None else not progress
    return tqdm(total=total, desc=label, unit=unit, disable=hidden)


class _Clock:
    """Wall seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        self.seconds[stage] = round(time.monotonic() - started, 2)


@contextmanager
def _own_bars_only() -> Iterator[None]:
    """One bar per stage: loading a model takes less time than reading that it is loaded."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()
