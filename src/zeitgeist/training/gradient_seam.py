"""The seam between backward and step: read and change gradients in any loop, or in the Trainer.

Clipping, accumulation, logging and the optimiser stay where they are. In transformers' Trainer the
order is: backward of every accumulated batch, clipping, *the seam*, step. So what the seam sees is
the accumulated and clipped gradient, and a seam that never lengthens it keeps the clip.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm
from transformers import PrinterCallback, TrainerCallback

from zeitgeist.errors import InputInvalid
from zeitgeist.training.answers import Example, answer_logits, collate
from zeitgeist.training.precision import best_device, best_dtype
from zeitgeist.training.trainer import Schedule, _AnswerTrainer, _arguments, _Bar, seeded


class GradientSeam(TrainerCallback):
    """Calls a function before every step of the optimiser, as a callback of any Trainer.

    Parameters
    ----------
    edit
        Called with nothing; changes ``.grad`` of parameters it knows.

    Examples
    --------
    >>> seam = GradientSeam(lambda: print("between backward and step"))
    >>> seam.on_pre_optimizer_step()
    between backward and step
    """

    def __init__(self, edit: Callable[[], object]) -> None:
        self.edit = edit

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """As the Trainer calls it."""
        self.edit()


@contextmanager
def undisturbed(model: torch.nn.Module) -> Iterator[None]:
    """Put back every buffer and the random state after passes that training should not notice.

    Batch norm keeps its running statistics and dropout draws as if nothing had happened.

    Examples
    --------
    >>> norm = torch.nn.BatchNorm1d(2)
    >>> with undisturbed(norm):
    ...     _ = norm(torch.ones(3, 2))
    >>> norm.running_mean.tolist()
    [0.0, 0.0]
    """
    buffers = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    used = {p.device.index for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(used)):
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


def gradients(loss: Tensor, parameters: Sequence[Tensor]) -> list[Tensor]:
    """The gradient of a loss, without touching ``.grad``; zeros where it does not reach.

    Examples
    --------
    >>> x, y = torch.ones(2, requires_grad=True), torch.ones(1, requires_grad=True)
    >>> [g.tolist() for g in gradients((3 * x).sum(), [x, y])]
    [[3.0, 3.0], [0.0]]
    """
    found = torch.autograd.grad(loss, list(parameters), allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def answer_loss(model: Any, examples: Sequence[Example], *, pad: int = 0) -> Tensor:
    """Mean cross-entropy of the answers of some examples: what `train_between` minimises.

    Parameters
    ----------
    model
        A causal transformers model, or a peft model around one.
    examples
        One batch.
    pad
        Token id to fill with; padding is found by length and never learned.
    """
    batch = collate(examples, pad=pad)
    device = next(model.parameters()).device
    with torch.autocast(device.type, torch.bfloat16, enabled=_autocast(model)):
        logits, targets = answer_logits(
            model, batch["input_ids"].to(device), batch["predicts"].to(device)
        )
        return torch.nn.functional.cross_entropy(logits, targets)


def _autocast(model: Any) -> bool:
    """Whether `train_answers` trains a model under autocast: weights in float32, fast bfloat16."""
    whole = {p.dtype for p in model.parameters()} == {torch.float32}
    return whole and best_dtype(best_device()) == torch.bfloat16


def train_between(
    model: Any,
    examples: Sequence[Example],
    schedule: Schedule,
    edit: Callable[[float], object],
    *,
    pad: int = 0,
    title: str = "fine-tune",
    progress: bool | None = None,
) -> tuple[float, ...]:
    """`zeitgeist.training.trainer.train_answers` with a seam between backward and step.

    Parameters
    ----------
    model, examples, schedule, pad, title, progress
        As there; random state is put back after.
    edit
        Called before every step with the mean loss of what was accumulated for it; changes
        ``.grad``.

    Returns
    -------
    tuple of float
        The loss of every step.

    Raises
    ------
    InputInvalid
        There is nothing to learn from, or the loss is no number.
    """
    if not examples:
        raise InputInvalid("there are no examples to learn from", mend="give at least one")
    heard: list[float] = []

    class Heard(_AnswerTrainer):
        def compute_loss(self, *given: Any, **named: Any) -> Any:
            loss = super().compute_loss(*given, **named)
            heard.append(float(loss.detach()))
            return loss

    def between() -> None:
        edit(float(np.mean(heard)))
        heard.clear()

    hidden = None if progress is None else not progress
    with (
        seeded(schedule.seed),
        TemporaryDirectory() as work,
        tqdm(total=schedule.steps, desc=title, unit="step", disable=hidden) as bar,
    ):
        trainer = Heard(
            model,
            _arguments(schedule, work, best_device(), autocast=_autocast(model)),
            train_dataset=list(examples),
            data_collator=partial(collate, pad=pad),
            callbacks=[_Bar(bar), GradientSeam(between)],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    losses = tuple(log["loss"] for log in trainer.state.log_history if "loss" in log)
    if not np.isfinite(losses).all():
        raise InputInvalid(
            f"the loss became {losses[-1]} within {len(losses)} steps",
            mend=f"lower the learning rate (now {schedule.learning_rate})",
        )
    return losses
