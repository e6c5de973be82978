"""A language model learns tasks one after another by LoRA, with and without restriction.

The tasks are those of `zeitgeist.studies.language_tasks`; the optimiser is AdamW inside
transformers' Trainer, as `zeitgeist continual run` uses it. Accuracy is the share of answer tokens
that are the model's first choice, and NLL is in nats per answer token; with N[i, j] the NLL on task
j after task i,

    nll = mean_j N[T, j]        nll_forgotten = mean_{j<T} (N[T, j] - N[j, j])
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from zeitgeist.checkpoints import resolve
from zeitgeist.continual.gradient_restriction import RestrictionOptions
from zeitgeist.continual.metrics import (
    average_accuracy,
    backward_transfer,
    learning_accuracy,
)
from zeitgeist.continual.sequence import guard_of, learn_tasks, with_lora
from zeitgeist.continual.task_files import Task
from zeitgeist.evidence import Group, Measured
from zeitgeist.studies.language_tasks import TASKS, encode, split
from zeitgeist.training import LoraSettings, best_device, best_dtype, load_model

OPTIONS: Mapping[str, Mapping[str, Any]] = {
    "none": {"method": "none"},
    "replay": {"method": "replay"},
    "strength": {"grain": "model", "strength": 0.5},
    "fine": {"grain": "neuron"},
}
"""How every arm restricts."""
KNOB: Mapping[str, str] = {"none": "none", "replay": "1", "strength": "0.5", "fine": "neuron"}


@dataclass(frozen=True)
class Sequence:
    """The tasks of a cell, drawn by its seed."""

    group: Group
    tasks: tuple[Task, ...]
    pad: int


def prepare(group: Group) -> Sequence:
    """Draw and encode the tasks.

    Parameters
    ----------
    group
        ``parameters``: ``model``, ``order`` (of tasks), ``train`` and ``test`` items, ``memory``,
        ``per_step`` and ``lora`` (changes to `LoraSettings`).
    """
    from transformers import AutoTokenizer

    known = group.parameters
    tokenizer = AutoTokenizer.from_pretrained(resolve(known["model"]), local_files_only=True)
    made = []
    for name in known["order"]:
        task = TASKS[name]
        drawn = split(task, train=known["train"], test=known["test"], seed=group.seed)
        train, test = (
            tuple(encode(tokenizer, task, item) for item in items)
            for items in (drawn.train, drawn.test)
        )
        made.append(Task(name, train, test))
    return Sequence(group, tuple(made), int(tokenizer.pad_token_id or 0))


def measure(arm: str, prepared: Sequence) -> Iterator[Measured]:
    """The numbers of one arm.

    Parameters
    ----------
    arm
        A key of `OPTIONS`.
    prepared
        As `prepare` gives it.
    """
    known, seed = prepared.group.parameters, prepared.group.seed
    lora = LoraSettings(**known["lora"], seed=seed)
    options = RestrictionOptions(
        **OPTIONS[arm],
        memory=known["memory"],
        per_step=known["per_step"],
        sampler="reservoir",
        seed=seed,
    )
    device = best_device()
    base = load_model(resolve(known["model"]), dtype=best_dtype(device), device=device)
    model = with_lora(base, lora)
    tasks, pad = list(prepared.tasks), prepared.pad
    guard = guard_of(model, tasks, options, pad=pad)
    rows = list(learn_tasks(model, tasks, guard, lora, pad=pad, progress=False))
    label = {"knob": KNOB[arm]}
    matrix, nll = (
        torch.tensor([row.scores[name] for row in rows], dtype=torch.float64).numpy()
        for name in ("tokens", "nll")
    )
    yield Measured("acc", average_accuracy(matrix), label)
    yield Measured("bwt", backward_transfer(matrix), label)
    yield Measured("la", learning_accuracy(matrix), label)
    yield Measured("nll", average_accuracy(nll), label)
    yield Measured("nll_forgotten", backward_transfer(nll), label)
    yield Measured("nll_learned", learning_accuracy(nll), label)
    steps = len(tasks) * lora.steps
    yield Measured("evaluations", sum(row.evaluations for row in rows) / steps, label)
    if arm in ("strength", "fine"):
        later = rows[1:]
        yield Measured("active", sum(row.active for row in later) / len(later), label)
        yield Measured("degrees", sum(row.degrees for row in later) / len(later), label)
