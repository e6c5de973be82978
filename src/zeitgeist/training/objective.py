"""transformers' Trainer with a loss of one's own, that goes on where it was stopped.

`zeitgeist.training.trainer` learns answers. Here the caller says what a batch is and what is
minimised; order, optimiser, schedule, checkpoints and several processes stay the Trainer's.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PrinterCallback, Trainer
from transformers.trainer_utils import get_last_checkpoint

from zeitgeist.errors import InputInvalid
from zeitgeist.training.precision import best_device
from zeitgeist.training.trainer import Schedule, _arguments, _Bar, seeded

Loss = Callable[[Any, Mapping[str, Tensor]], Tensor]
CHECKPOINTS = 4
"""Of a training that has a place to keep them."""


def train_objective(
    model: Any,
    items: Sequence[Any],
    schedule: Schedule,
    *,
    collate: Callable[[Sequence[Any]], dict[str, Tensor]],
    loss: Loss,
    place: Path | None = None,
    autocast: bool = True,
    title: str = "train",
    progress: bool | None = None,
) -> tuple[float, ...]:
    """Minimise a loss over what is trainable of a model, in place.

    Parameters
    ----------
    model
        A causal transformers model, or a peft model around one.
    items
        What to learn from. Shuffled by the seed; repeated when the steps outlast them.
    schedule
        How long and how fast.
    collate
        Items to a batch of tensors.
    loss
        ``(model, batch) -> scalar``.
    place
        Directory for checkpoints: called again with it, a stopped training goes on. None: none.
    autocast
        Let weights that learn in float32 be multiplied in bfloat16 where the hardware is faster in
        it. That is timed, so that two runs of one seed may differ in it.
    title
        Of the progress bar.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    tuple of float
        The loss of every step.

    Raises
    ------
    InputInvalid
        There is nothing to learn from, or the loss is no number.

    Examples
    --------
    >>> model = torch.nn.Linear(1, 1)
    >>> losses = train_objective(
    ...     model, [1.0, 2.0], Schedule(steps=2, batch_size=1),
    ...     collate=lambda items: {"x": torch.tensor(items)[:, None]},
    ...     loss=lambda model, batch: model(batch["x"]).square().mean(), progress=False)
    >>> len(losses)
    2
    """
    if not items:
        raise InputInvalid("there is nothing to learn from", mend="give at least one example")
    whole = autocast and {p.dtype for p in model.parameters()} == {torch.float32}
    hidden = None if progress is None else not progress
    bar = tqdm(total=schedule.steps, desc=title, unit="step", disable=hidden)
    with seeded(schedule.seed), TemporaryDirectory() as work, bar:
        arguments = _arguments(schedule, str(place or work), best_device(), autocast=whole)
        begun = None
        if place is not None:
            arguments = replace(
                arguments,
                save_strategy="steps",
                save_steps=max(1, schedule.steps // CHECKPOINTS),
                save_total_limit=1,
            )
            begun = get_last_checkpoint(str(place)) if place.is_dir() else None
        trainer = _Trainer(
            model,
            arguments,
            train_dataset=list(items),
            data_collator=collate,
            callbacks=[_Progress(bar)],
        )
        trainer.objective = loss
        # Without its own bar the Trainer prints every log line on stdout.
        trainer.remove_callback(PrinterCallback)
        trainer.train(resume_from_checkpoint=begun)
    losses = tuple(log["loss"] for log in trainer.state.log_history if "loss" in log)
    if not np.isfinite(losses).all():
        raise InputInvalid(
            f"the loss became {losses[-1]} within {len(losses)} steps",
            mend=f"lower the learning rate (now {schedule.learning_rate})",
        )
    model.eval()
    return losses


class _Trainer(Trainer):
    """The Trainer, minimising what it is given."""

    objective: Loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        return self.objective(model, inputs)


class _Progress(_Bar):
    """Counts from where a stopped training goes on."""

    def on_step_end(self, *given: Any, **_: Any) -> None:
        self.bar.update(given[1].global_step - self.bar.n)
