"""A sequence of tasks on disk: learn JSONL files in turn, stop, go on, read back.

What is learned how is `zeitgeist.continual.sequence`. After every task its adapter, its memory and
its row of the accuracy matrix are on disk. A stopped run begins again with the task it was in, and
its rows come out as if it had never stopped.
"""

import json
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from xxhash import xxh3_128

from zeitgeist.checkpoints import (
    check_output,
    is_adapter,
    model_card,
    new_directory,
    open_checkpoint,
    resolve,
    versions,
)
from zeitgeist.continual.gradient_restriction import GradientRestriction, RestrictionOptions
from zeitgeist.continual.sequence import (
    SCORES,
    Row,
    SequenceReport,
    guard_of,
    learn_tasks,
    score_tasks,
    with_lora,
)
from zeitgeist.continual.task_files import Task, read_tasks
from zeitgeist.continual.violations import spans
from zeitgeist.errors import EvidenceInvalid, InputInvalid
from zeitgeist.training import LoraSettings, best_device, best_dtype
from zeitgeist.training.models import peft_warnings
from zeitgeist.training.positions import longest_input

RECORD, ROW, STARTED = "accuracy.json", "row.json", "started.json"


def run_sequence(
    reference: str | Path,
    files: Sequence[str | Path],
    out: str | Path,
    *,
    options: RestrictionOptions | None = None,
    lora: LoraSettings | None = None,
    test: int = 32,
    longest: int = 1024,
    overwrite: bool = False,
    progress: bool | None = None,
) -> SequenceReport:
    """Learn JSONL tasks one after another; goes on where it was stopped.

    Parameters
    ----------
    reference
        A model: a directory, ``hub:org/name``, ``pypi:package``.
    files
        Tasks in the order in which they are learned; see `zeitgeist.continual.task_files`.
    out
        Directory to make: the last adapter (peft), the adapter after every task under ``tasks/``,
        and ``accuracy.json``.
    options
        What restricts; None: the defaults with 8 memories per group and step, from a reservoir.
    lora
        Rank, rate, and the steps of every task; None: the defaults of `LoraSettings`.
    test
        Examples of every file that are scored and never learned.
    longest
        Tokens of the longest example.
    overwrite
        Replace an existing output, and let go of an unfinished run of other settings.
    progress
        Show bars on stderr; None: when it is a terminal.

    Returns
    -------
    SequenceReport
        With the accuracy matrix and its metrics.

    Raises
    ------
    InputInvalid
        A file is no task or longer than the model reads, the reference is an adapter or no causal
        model, the sampler needs classes, a setting is out of range, the output lies in a file, or
        unfinished work is of other settings.
    OutputExists
        ``out`` is there and ``overwrite`` is false.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    target = Path(out)
    chosen = options or RestrictionOptions(per_step=8, sampler="reservoir")
    settings = lora or LoraSettings()
    if chosen.sampler == "balanced":
        raise InputInvalid("answers have no classes to balance", mend="give ring or reservoir")
    _check_settings(settings, len(files))
    if any(parent.is_file() for parent in target.parents):
        raise InputInvalid(f"the output '{target}' lies in a file", mend="choose another name")
    place = resolve(reference)
    if is_adapter(place):
        raise InputInvalid(f"{str(reference)!r} is an adapter", mend="merge it into its base first")
    check_output(target, overwrite=overwrite, inputs=[place], replaces=(RECORD,))
    tokenizer = _opened(AutoTokenizer.from_pretrained, place)
    tasks = read_tasks(
        [Path(file) for file in files], tokenizer, test=test, seed=settings.seed, longest=longest
    )
    config = _opened(AutoConfig.from_pretrained, place)
    with torch.device("meta"):
        outline = _opened(lambda *_, **__: AutoModelForCausalLM.from_config(config), place)
    _check_context(outline, tasks)
    pad = int(tokenizer.pad_token_id or 0)
    with open_checkpoint(place) as source:
        hashes = source.fingerprint(progress=False)
    made_from = {
        "base": hashes,
        "tasks": [
            [t.name, _digest([[(e.prompt, e.answer) for e in s] for s in (t.train, t.test)])]
            for t in tasks
        ],
        "options": {k: str(v) if callable(v) else v for k, v in asdict(chosen).items()},
        "lora": asdict(settings),
        "versions": versions(),
    }
    with (
        new_directory(
            target, overwrite=overwrite, inputs=[place], keep_partial=True, replaces=(RECORD,)
        ) as partial,
        _quiet(),
    ):
        _take_up(partial, made_from, overwrite)
        device = best_device()
        base = _opened(AutoModelForCausalLM.from_pretrained, place, dtype=best_dtype(device))
        model = with_lora(base.to(device), settings, str(reference))
        guard = guard_of(model, tasks, chosen, pad=pad)
        rows = _earlier(partial, model, guard, tasks)
        before = partial / STARTED
        known = json.loads(before.read_text(encoding="utf-8"))
        if "untrained" not in known:
            known["untrained"] = score_tasks(model, tasks, pad=pad)
            _write(before, known)

        def keep(row: Row) -> None:
            done = guard.task - 1
            _keep(partial, done, tasks[done].name, model, row, guard.state())

        rows += learn_tasks(
            model, tasks, guard, settings, pad=pad, finished=keep, progress=progress
        )
        report = SequenceReport(
            str(target), tuple(t.name for t in tasks), Row(known["untrained"]), tuple(rows)
        )
        last = partial / "tasks" / f"{len(tasks) - 1}-{tasks[-1].name}"
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copyfile(last / name, partial / name)
        told = {"metrics": report.metrics(), "made_from": made_from}
        _write(partial / RECORD, {**asdict(report), **told})
        card = _card(str(reference), hashes, report, made_from)
        (partial / "README.md").write_text(card, encoding="utf-8")
        before.unlink()
    return report


def read_report(place: str | Path) -> SequenceReport:
    """What `run_sequence` wrote, read back.

    Parameters
    ----------
    place
        Its output.

    Raises
    ------
    EvidenceInvalid
        There is no such file, or it is damaged.
    """
    path = Path(place) / RECORD
    try:
        known = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(_row(row) for row in known["rows"])
        tasks = tuple(known["tasks"])
        report = SequenceReport(str(place), tasks, _row(known["untrained"]), rows)
        for score in SCORES:
            matrix = np.array([row.scores[score] for row in (report.untrained, *rows)], float)
            if not tasks or matrix.shape != (len(tasks) + 1, len(tasks)):
                raise ValueError(f"{score} of {len(tasks)} tasks are {matrix.shape}")
        for row in rows:
            shares = np.array(list(row.violations.values()), float)
            if shares.size and shares.shape[1:] != (len(spans(len(row.losses))) - 1,):
                raise ValueError(f"violations in {len(row.losses)} steps are {shares.shape}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise EvidenceInvalid(
            f"this is no finished sequence: {type(error).__name__}: {error}",
            origin=path,
            mend="give the output of zeitgeist continual run",
        ) from error
    return report


def _check_settings(settings: LoraSettings, tasks: int) -> None:
    """Refuse what torch or the Trainer would refuse after the work has begun."""
    if not 0 <= settings.seed <= 2**32 - max(1, tasks):
        raise InputInvalid(
            f"the seed is {settings.seed}",
            mend="give at least 0 and stay below 2**32 for every task",
        )
    if not 0 <= settings.learning_rate < math.inf:
        raise InputInvalid(
            f"the learning rate is {settings.learning_rate}", mend="give a positive one"
        )
    if settings.warmup_steps < 0:
        raise InputInvalid(f"warmup_steps is {settings.warmup_steps}", mend="give at least 0")


def _check_context(model: Any, tasks: Sequence[Task]) -> None:
    """Refuse examples beyond the learned positions of a model."""
    reads = longest_input(model)
    longest = {task.name: max(map(len, (*task.train, *task.test))) for task in tasks}
    for name, length in longest.items():
        if length > reads:
            raise InputInvalid(
                f"an example of {name!r} has {length} tokens and the model reads {reads}",
                mend="shorten it",
            )


def _opened(read: Callable[..., Any], place: Path, **known: Any) -> Any:
    """What transformers reads from a directory, or what is wrong with it."""
    try:
        return read(place, local_files_only=True, **known)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise InputInvalid(
            f"this is no causal language model with a tokenizer: "
            f"{' '.join(str(error).split()):.160}",
            origin=place,
            mend="give one",
        ) from error


def _row(known: Mapping[str, Any]) -> Row:
    """A row as JSON holds it."""
    return Row(**{**known, "losses": tuple(known["losses"])})


def _digest(value: object) -> str:
    return xxh3_128(json.dumps(value).encode()).hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        with peft_warnings():
            yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def _take_up(partial: Path, made_from: Mapping[str, Any], overwrite: bool) -> None:
    """Go on with unfinished work of the same making; refuse or empty other work."""
    path, wanted = partial / STARTED, json.loads(json.dumps(made_from))
    if path.is_file():
        if json.loads(path.read_text(encoding="utf-8"))["made_from"] == wanted:
            return
        if not overwrite:
            raise InputInvalid(
                "unfinished work there is of another model, other tasks or other settings",
                origin=partial,
                mend="choose another output, or let it go with --overwrite",
            )
    for entry in partial.iterdir():
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    _write(path, {"made_from": wanted})


def _earlier(
    partial: Path, model: Any, guard: GradientRestriction, tasks: Sequence[Task]
) -> list[Row]:
    """Rows of tasks that an earlier run finished; the model and the memory are put where it was."""
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    rows: list[Row] = []
    for number, task in enumerate(tasks):
        place = partial / "tasks" / f"{number}-{task.name}"
        if not place.is_dir():
            break
        known = json.loads((place / ROW).read_text(encoding="utf-8"))
        rows.append(_row(known["row"]))
        guard.resume(known["state"])
        set_peft_model_state_dict(model, load_file(place / "adapter_model.safetensors"))
    return rows


def _keep(
    partial: Path, number: int, name: str, model: Any, row: Row, state: Mapping[str, Any]
) -> None:
    """A task's adapter, row and memory: a directory that is there whole or not at all."""
    place = partial / "tasks" / f"{number}-{name}"
    fresh = place.with_name(f".{place.name}")
    shutil.rmtree(fresh, ignore_errors=True)
    # "auto" would ask the hub whether the base's vocabulary has changed.
    model.save_pretrained(str(fresh), save_embedding_layers=False)
    (fresh / "README.md").unlink(missing_ok=True)  # peft's, which says nothing
    _write(fresh / ROW, {"row": asdict(row), "state": state})
    fresh.rename(place)


def _write(path: Path, content: Mapping[str, Any]) -> None:
    fresh = path.with_name(f".{path.name}.part")
    fresh.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    fresh.replace(path)


def _card(
    reference: str, hashes: dict[str, str], report: SequenceReport, made_from: Mapping[str, Any]
) -> str:
    found = ", ".join(f"{name} {value:.3f}" for name, value in report.metrics().items())
    return model_card(
        title=Path(report.out).name,
        method="LoRA on a sequence of tasks under restricted gradients (arXiv 2410.00868)",
        inputs=[{"reference": reference, "role": "base", "hashes": hashes}],
        recipe=json.dumps({k: made_from[k] for k in ("options", "lora")}, indent=2),
        versions=versions(),
        notes=[
            f"Tasks in order: {', '.join(report.tasks)}.",
            f"Share of answer tokens predicted first: {found}.",
        ],
    )
