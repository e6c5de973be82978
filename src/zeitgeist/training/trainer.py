"""The training loop: transformers' Trainer on prompts with answers.

What is adapted, and where it is saved, is decided by `zeitgeist.training.lora` and
`zeitgeist.training.full`; the loop is the same, so that `accelerate launch` works for both.
"""

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from zeitgeist.errors import InputInvalid
from zeitgeist.training.answers import Example, answer_logits, collate
from zeitgeist.training.precision import best_device, best_dtype


@dataclass(frozen=True)
class Schedule:
    """How long and how fast.

    Parameters
    ----------
    steps
        Optimiser steps.
    batch_size
        Sequences per step.
    learning_rate
        Peak of AdamW; linear warm-up, then linear to 0.
    warmup_steps
        Of them.
    seed
        Of the order of examples.
    """

    steps: int = 40
    batch_size: int = 8
    learning_rate: float = 1e-4
    warmup_steps: int = 5
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")


def train_answers(
    model: Any,
    examples: Sequence[Example],
    schedule: Schedule,
    *,
    pad: int = 0,
    title: str = "fine-tune",
    progress: bool | None = None,
) -> tuple[float, ...]:
    """Train what is trainable of a model on answers, in place.

    Weights that learn in float32 while the hardware multiplies in bfloat16 do so under autocast;
    weights of another dtype are left alone.

    Parameters
    ----------
    model
        A causal transformers model, or a peft model around one.
    examples
        What to learn. Shuffled by the seed; repeated when the steps outlast them.
    schedule
        How long and how fast.
    pad
        Token id to fill batches with. Any will do: padding is never learned.
    title
        Of the progress bar.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    tuple of float
        The loss of every step (nats per answer token).

    Raises
    ------
    InputInvalid
        There is nothing to learn from, or the loss is no number.
    """
    if not examples:
        raise InputInvalid("there are no examples to learn from", mend="give at least one")
    device = best_device()
    whole = {p.dtype for p in model.parameters()} == {torch.float32}
    bar = tqdm(
        total=schedule.steps,
        desc=title,
        unit="step",
        disable=None if progress is None else not progress,
    )
    with TemporaryDirectory() as work, bar:
        trainer = _AnswerTrainer(
            model,
            _arguments(schedule, work, device, autocast=whole),
            train_dataset=list(examples),
            data_collator=partial(collate, pad=pad),
            callbacks=[_Bar(bar)],
        )
        # Without its own bar the Trainer prints every log line on stdout.
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = tuple(log["loss"] for log in trainer.state.log_history if "loss" in log)
    if not np.isfinite(losses).all():
        raise InputInvalid(
            f"the loss became {losses[-1]} within {len(losses)} steps",
            mend=f"lower the learning rate (now {schedule.learning_rate})",
        )
    return losses


class _AnswerTrainer(Trainer):
    """The Trainer, learning answers only."""

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        logits, targets = answer_logits(model, inputs["input_ids"], inputs["predicts"])
        return torch.nn.functional.cross_entropy(logits, targets)


class _Bar(TrainerCallback):
    def __init__(self, bar: "tqdm[Any]") -> None:
        self.bar = bar

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.bar.update()

    def on_log(self, *_: Any, logs: dict[str, Any] | None = None, **__: Any) -> None:
        if logs and "loss" in logs:
            self.bar.set_postfix(loss=f"{float(logs['loss']):.3f}")


def _arguments(
    settings: Schedule, work: str, device: torch.device, *, autocast: bool
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=work,
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=settings.warmup_steps,
        weight_decay=0.0,
        seed=settings.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",
        report_to=[],
        use_cpu=device.type == "cpu",
        bf16=autocast and best_dtype(device) == torch.bfloat16,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the global generators that peft and the Trainer draw from, and put them back after."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - Trainer uses it
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002
