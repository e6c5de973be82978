"""LiNeS on full fine-tunes of a real language model, against uniform and reversed scaling.

A fine-tune on one narrow task moves every weight; what it costs is seen on text that nobody
learned. The update is then scaled over depth in three ways, each with the same strengths alpha:

    lines      alpha in the first block, 1 in the last         (the paper; alpha outside the blocks)
    uniform    alpha everywhere                                 (the line to the base, as WiSE-FT)
    reversed   1 in the first block, alpha in the last          (1 outside the blocks)

Scored are the target (NLL of the task's answers) and control (NLL of English and Python). A
curve is judged by the share of the forgetting that it undoes while the target's loss gives up at
most 5 % of what the fine-tune gained; alphas between those that were tried are interpolated.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zeitgeist.checkpoints import resolve
from zeitgeist.evidence import Group, Measured
from zeitgeist.merging.lines import scale_layers
from zeitgeist.studies.language import POOL
from zeitgeist.studies.language_experts import open_base
from zeitgeist.studies.language_scores import Scores, score
from zeitgeist.studies.language_tasks import TASKS, encode, held_out, split
from zeitgeist.studies.lines_digits import single_options
from zeitgeist.studies.trade_off import control_at_target
from zeitgeist.training import Example, Schedule, finetune_full, load_model

TOLERANCE = 0.05
"""Share of the fine-tune's gain on the target that may be given up."""


@dataclass(frozen=True)
class Tuned:
    """One fine-tune: the loaded model, its weights before and after, and what it is scored on."""

    model: Any
    pad: int
    before: Mapping[str, Tensor]
    after: Mapping[str, Tensor]
    sets: Mapping[str, list[Example]]
    alphas: tuple[float, ...]
    base: tuple[float, float]
    full: tuple[float, float]


def prepare(group: Group) -> Tuned:
    """Fine-tune the whole model on one task.

    Parameters
    ----------
    group
        ``setting["task"]``; ``parameters``: ``model``, ``alphas``, ``target_items``, ``windows``,
        ``context_tokens``, ``window_tokens`` and ``full`` (changes to `Schedule`).
    """
    known, task = group.parameters, TASKS[str(group.setting["task"])]
    base = open_base(known["model"], resolve(known["model"], progress=False))
    settings = Schedule(**{**known["full"], "seed": group.seed})
    drawn = split(task, train=settings.steps * settings.batch_size, test=POOL, seed=group.seed)
    target = [encode(base.tokenizer, task, item) for item in drawn.test[: known["target_items"]]]
    texts = held_out(
        base.tokenizer,
        windows=known["windows"],
        context=known["context_tokens"],
        length=known["window_tokens"],
    )
    sets = {"target": target, **texts}
    model = load_model(base.path, dtype=torch.float32)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    start = _losses(score(model, sets, pad=base.pad))
    examples = [encode(base.tokenizer, task, item) for item in drawn.train]
    finetune_full(model, examples, settings=settings, pad=base.pad, progress=False)
    model = model.cpu()
    after = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    end = _losses(score(model, sets, pad=base.pad))
    return Tuned(model, base.pad, before, after, sets, tuple(known["alphas"]), start, end)


def _losses(scores: Scores) -> tuple[float, float]:
    """NLL of the target, and of control: the mean of its texts."""
    texts = [float(np.mean(v)) for name, v in scores.nll.items() if name != "target"]
    return float(np.mean(scores.nll["target"])), float(np.mean(texts))


def measure(arm: str, tuned: Tuned) -> Iterator[Measured]:
    """Target and control of one family at every strength, and what its curve reaches."""
    if arm in ("base", "none"):
        losses = tuned.base if arm == "base" else tuned.full
        yield from _point(*losses, 0.0 if arm == "base" else 1.0)
        if arm == "none":
            yield Measured("undone", 0.0)
        return
    curve = [(1.0, *tuned.full)]
    for alpha in tuned.alphas:
        scaled = scale_layers(tuned.before, tuned.after, single_options(arm, alpha))
        tuned.model.load_state_dict(scaled.tensors)
        losses = _losses(score(tuned.model, tuned.sets, pad=tuned.pad))
        curve.append((alpha, *losses))
        yield from _point(*losses, alpha)
    yield from _point(*tuned.full, 1.0)
    curve.sort()
    gain = tuned.base[0] - tuned.full[0]
    control = control_at_target(
        [target for _, target, _ in curve],
        [control for _, _, control in curve],
        tuned.full[0] + TOLERANCE * gain,
        better="lower",
    )
    yield Measured("control_at_target", control)
    if (forgotten := tuned.full[1] - tuned.base[1]) > 0:
        yield Measured("undone", (tuned.full[1] - control) / forgotten)


def _point(target: float, control: float, alpha: float) -> Iterator[Measured]:
    yield Measured("target_loss", target, {"alpha": alpha})
    yield Measured("control_loss", control, {"alpha": alpha})
