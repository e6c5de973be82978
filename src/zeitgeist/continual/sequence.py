"""A language model learns tasks one after another, by LoRA, under restricted gradients.

The loop is transformers' Trainer, once per task; `GradientRestriction` works between backward and
step. Liu, Ye, Stone, Liu, arXiv 2410.00868. AdamW is the optimiser, so the guarantee is about the
direction that it is given, not about the step that it makes of it.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from zeitgeist.continual.gradient_restriction import (
    GradientRestriction,
    RestrictionOptions,
    Step,
)
from zeitgeist.continual.grains import heads_of
from zeitgeist.continual.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    learning_accuracy,
)
from zeitgeist.continual.task_files import Task
from zeitgeist.continual.violations import by_layer
from zeitgeist.training import LoraSettings, answer_logits, collate
from zeitgeist.training.gradient_seam import answer_loss, train_between
from zeitgeist.training.models import peft_warnings
from zeitgeist.training.trainer import seeded

SCORES = ("tokens", "exact", "nll")


@dataclass(frozen=True)
class Row:
    """Scores on every task after one was learned, by name of the score, and what restricting did.

    ``tokens``: share of answer tokens that are the model's first choice; ``exact``: share of whole
    answers; ``nll``: nats per answer token. ``violations``: by layer, the share of constraints that
    the task's gradients violated in every span of steps, see `zeitgeist.continual.violations`.
    """

    scores: Mapping[str, Sequence[float]]
    losses: Sequence[float] = ()
    active: float = 0.0
    degrees: float = 0.0
    evaluations: int = 0
    violations: Mapping[str, Sequence[float]] = field(default_factory=dict)


@dataclass(frozen=True)
class SequenceReport:
    """A row per task; ``untrained`` is the row before the first, ``out`` where all of it lies."""

    out: str
    tasks: tuple[str, ...]
    untrained: Row
    rows: tuple[Row, ...]

    def matrix(self, score: str = "tokens") -> Float[np.ndarray, "T T"]:
        """R[i, j]: the score on task j after task i."""
        return np.array([row.scores[score] for row in self.rows])

    def metrics(self, score: str = "tokens") -> dict[str, float]:
        """Those of `zeitgeist.continual.metrics`; what needs two tasks is left out for one."""
        matrix = self.matrix(score)
        found = {"ACC": average_accuracy(matrix), "LA": learning_accuracy(matrix)}
        if len(matrix) > 1:
            found["BWT"] = backward_transfer(matrix)
            found["FWT"] = forward_transfer(matrix, np.array(self.untrained.scores[score]))
            found["forgetting"] = forgetting(matrix)
        return found


@torch.inference_mode()
def score_tasks(
    model: Any, tasks: Sequence[Task], *, pad: int = 0, batch_size: int = 16
) -> dict[str, list[float]]:
    """Scores on the tests of tasks; see `Row`.

    Parameters
    ----------
    model
        A causal model; every module is left in the mode it was in.
    tasks
        Whose ``test`` is scored.
    pad
        Token id to fill with.
    batch_size
        Examples per pass.
    """
    device = next(model.parameters()).device
    found: dict[str, list[float]] = {name: [] for name in SCORES}
    with _evaluating(model):
        for task in tasks:
            right, whole, nll = [], [], []
            for start in range(0, len(task.test), batch_size):
                batch = collate(task.test[start : start + batch_size], pad=pad)
                predicts = batch["predicts"].to(device)
                logits, targets = answer_logits(model, batch["input_ids"].to(device), predicts)
                lengths = predicts.sum(1).tolist()
                hits = logits.argmax(-1) == targets
                losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
                right += [float(each.double().mean()) for each in hits.split(lengths)]
                whole += [float(each.all()) for each in hits.split(lengths)]
                nll += [float(each.double().mean()) for each in losses.split(lengths)]
            for name, values in zip(SCORES, (right, whole, nll), strict=True):
                found[name].append(float(np.mean(values)))
    return found


@contextmanager
def _evaluating(model: Any) -> Iterator[None]:
    """In evaluation mode, and every module back in its own after."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def with_lora(model: Any, lora: LoraSettings, base: str = "") -> Any:
    """A loaded model under a fresh adapter whose factors are in float32.

    Parameters
    ----------
    model
        A causal transformers model.
    lora
        Rank, alpha, which layers, and the seed of the factors.
    base
        How the adapter's configuration names the model.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=lora.target_modules,
    )
    with seeded(lora.seed), peft_warnings():
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted


def guard_of(
    model: Any, tasks: Sequence[Task], options: RestrictionOptions, *, pad: int = 0
) -> GradientRestriction:
    """The restriction of a model whose memories are places ``[task, example]`` in the tasks.

    Parameters
    ----------
    model
        What is trained of it is restricted.
    tasks
        Whose ``train`` is remembered.
    options
        How.
    pad
        Token id to fill with.
    """

    def loss(model: Any, places: list[Any]) -> torch.Tensor:
        return answer_loss(model, [tasks[t].train[i] for t, i in places], pad=pad)

    return GradientRestriction(model, loss, options, heads=heads_of(model.config))


def learn_tasks(
    model: Any,
    tasks: Sequence[Task],
    guard: GradientRestriction,
    schedule: LoraSettings,
    *,
    pad: int = 0,
    finished: Callable[[Row], object] = lambda _: None,
    progress: bool | None = None,
) -> Iterator[Row]:
    """Learn the tasks from the guard's current one on, in place; a row after each.

    Parameters
    ----------
    model
        Loaded, with what is trained requiring gradients.
    tasks
        The whole sequence.
    guard
        As from `guard_of`.
    schedule
        Of every task; the seed of task t is ``seed + t``.
    pad
        Token id to fill with.
    finished
        Called with each row before it is given.
    progress
        Show bars on stderr; None: when it is a terminal.
    """
    while guard.task < len(tasks):
        task = tasks[guard.task]
        steps: list[Step] = []

        def edit(loss: float, into: list[Step] = steps) -> None:
            into.append(guard.restrict(loss))

        losses = train_between(
            model,
            task.train,
            replace(schedule, seed=schedule.seed + guard.task),
            edit,
            pad=pad,
            title=f"{guard.task + 1}/{len(tasks)} {task.name}",
            progress=progress,
        )
        guard.remember([[guard.task, i] for i in range(len(task.train))])
        guard.end_task()
        row = Row(
            score_tasks(model, tasks, pad=pad),
            losses,
            float(np.mean([step.active for step in steps])),
            float(np.mean([step.degrees for step in steps])),
            sum(step.evaluations for step in steps),
            by_layer([step.violated for step in steps]),
        )
        finished(row)
        yield row
