"""A small language model linearized step by step, and every shortcut beside it.

Per seed (which decides the text, the order of windows and LoRA's start) and window:

    teacher, teacher_lora     softmax attention, as it comes and with all steps of LoRA
    swap, swap_lora           hybrid attention with maps as they begin; LoRA gets all steps
    transfer, transfer_lora   maps taught for some steps per layer; LoRA gets the others
    kaiming                   taught from random maps
    sink                      taught with the first token always in the window
    window_only               no linear branch: what the window alone misses

One step of teaching is one window through one layer's maps in every layer, one step of LoRA one
window through the model and back, so that equal steps are equal tokens; a step of LoRA costs more.
Relative error is the mean squared error of a layer's attention outputs over their variance, on
validation windows.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zeitgeist.checkpoints import resolve
from zeitgeist.compression.hybrid_models import linearize_model
from zeitgeist.compression.measures import decode_seconds, token_nll
from zeitgeist.compression.transfer import TransferOptions, TransferReport, transfer_attention
from zeitgeist.evidence import Group, Measured
from zeitgeist.studies.decoding import kept_bytes
from zeitgeist.studies.language_experts import open_base
from zeitgeist.studies.prose import windows
from zeitgeist.training import Example, LoraSettings, load_model
from zeitgeist.training.models import peft_warnings
from zeitgeist.training.trainer import seeded, train_answers

WITH_WINDOW = ("teacher", "teacher_lora", "kaiming", "sink", "window_only")
"""Arms that are measured once, with the window."""
LEARNING_RATE = 5e-4
"""Of LoRA: at the published 1e-4 some tens of steps teach nothing to any arm."""


@dataclass(frozen=True)
class Bench:
    """A softmax model, its linearized twin on the same weights, and maps before and after."""

    teacher: Any
    student: Any
    before: dict[str, Tensor]
    after: dict[str, Tensor]
    report: TransferReport
    train: Tensor
    validation: Tensor
    evaluation: Tensor
    window: int
    seed: int
    pad: int
    steps: int
    lora_steps: int
    contexts: tuple[int, int]


def prepare(group: Group) -> Bench:
    """Open the model and teach its linearized twin.

    Parameters
    ----------
    group
        ``setting["window"]``; ``parameters``: ``model``, ``train_windows``,
        ``validation_windows`` and ``evaluation_windows`` of ``window_tokens`` tokens,
        ``transfer_steps`` per layer, ``lora_steps``, ``contexts``.
    """
    known, window = group.parameters, int(group.setting["window"])
    base = open_base(known["model"], resolve(known["model"], progress=False))
    text = {
        part: windows(
            base.tokenizer,
            part=part,
            seed=group.seed,
            length=known["window_tokens"],
            count=known[f"{name}_windows"],
        )
        for part, name in (
            ("train", "train"),
            ("calibration", "validation"),
            ("evaluation", "evaluation"),
        )
    }
    teacher = load_model(base.path, dtype=torch.float32)
    before = _maps(linearize_model(teacher, window=window, seed=group.seed))
    student, report = taught(
        teacher,
        text["train"],
        text["calibration"],
        window=window,
        steps=known["transfer_steps"],
        seed=group.seed,
    )
    return Bench(
        teacher,
        student,
        before,
        _maps(student),
        report,
        text["train"],
        text["calibration"],
        text["evaluation"],
        window,
        group.seed,
        base.pad,
        known["transfer_steps"],
        known["lora_steps"],
        tuple(known["contexts"]),
    )


def taught(
    model: Any, train: Tensor, validation: Tensor, *, window: int, steps: int, seed: int
) -> tuple[Any, TransferReport]:
    """A linearized twin on the same weights, its maps taught, and how well they learned."""
    made = linearize_model(model, window=window, seed=seed)
    report = transfer_attention(
        made,
        train,
        validation,
        options=TransferOptions(steps=steps, seed=seed),
        progress=False,
    )
    return made, report


def measure(arm: str, bench: Bench) -> Iterator[Measured]:
    """The numbers of one arm."""
    if arm in ("kaiming", "sink", "window_only"):
        yield from _missed(_another(arm, bench), arm)
        return
    if arm in ("teacher", "teacher_lora"):
        model = bench.teacher
    else:
        model = bench.student
        maps = bench.before if arm.startswith("swap") else bench.after
        model.load_state_dict(maps, strict=False)
    steps = bench.lora_steps + (0 if arm == "transfer_lora" else bench.steps)
    yield from adapted_losses(
        model,
        bench.train,
        bench.evaluation,
        steps if arm.endswith("_lora") else 0,
        seed=bench.seed,
        pad=bench.pad,
    )
    if arm == "transfer":
        yield from _missed(bench.report, arm)
        yield from _seen(bench.report)
    if arm in ("teacher", "transfer"):
        yield from _cost(model, bench.contexts)


def _maps(model: Any) -> dict[str, Tensor]:
    """Copies of what only the linearized model has."""
    state = model.state_dict()
    return {n: state[n].clone() for n in state if "feature_map" in n or n.endswith(".gate")}


def adapted_losses(
    model: Any, train: Tensor, evaluation: Tensor, steps: int, *, seed: int, pad: int
) -> list[Measured]:
    """Loss per held-out window, after some steps of LoRA that are taken back again."""
    adapted = model
    if steps:
        from peft import LoraConfig, get_peft_model

        examples = [
            Example((int(row[0]),), tuple(int(token) for token in row[1:])) for row in train
        ]
        settings = LoraSettings(steps=steps, batch_size=1, learning_rate=LEARNING_RATE, seed=seed)
        config = LoraConfig(
            task_type="CAUSAL_LM",
            r=settings.rank,
            lora_alpha=settings.alpha,
            target_modules=["q_proj", "k_proj", "v_proj", "o_proj"],
        )
        with seeded(seed), peft_warnings():
            adapted = get_peft_model(model, config)
            train_answers(adapted, examples, settings, pad=pad, progress=False)
    losses = token_nll(adapted.eval(), evaluation).mean(1)
    if steps:
        adapted.unload()
    return [Measured("nll", each, item=f"window:{i}") for i, each in enumerate(losses.tolist())]


def _another(arm: str, bench: Bench) -> TransferReport:
    """Maps from a random start, or with a sink, taught; or a window without its other branch."""
    alone = arm == "window_only"
    model = linearize_model(
        bench.teacher,
        window=bench.window,
        sinks=int(arm == "sink"),
        feature_map="t2r" if alone else "hedgehog",
        init="kaiming" if arm == "kaiming" else "identity",
        seed=bench.seed,
    )
    if alone:  # relu(0 x - 1): the floor, 1e-12
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "feature_map" in name:
                    parameter.fill_(-1.0 if name.endswith("bias") else 0.0)
    steps = 0 if alone else bench.steps
    return transfer_attention(
        model,
        bench.train,
        bench.validation,
        options=TransferOptions(steps=steps, seed=bench.seed),
        progress=False,
    )


def _missed(report: TransferReport, arm: str) -> Iterator[Measured]:
    stages = {"before": report.before, "after": report.after}
    for stage, errors in stages.items():
        for layer, error in enumerate(errors):
            if arm != "window_only" or stage == "after":
                yield Measured("relative_mse", error, {"stage": stage, "layer": layer})


def _seen(report: TransferReport) -> Iterator[Measured]:
    """How widely softmax attends, and how much the taught window weighs."""
    for layer, (entropy, gates) in enumerate(zip(report.entropy, report.gamma, strict=True)):
        yield Measured("entropy", entropy, {"layer": layer})
        for head, gamma in enumerate(gates):
            yield Measured("gamma", gamma, {"layer": layer, "head": head})


def _cost(model: Any, contexts: tuple[int, int]) -> Iterator[Measured]:
    """Time and memory of a token after a short and after a long context."""
    seconds = [decode_seconds(model, context) for context in contexts]
    kept = [kept_bytes(model, context) for context in contexts]
    for context, time, size in zip(contexts, seconds, kept, strict=True):
        yield Measured("seconds_per_token", time, {"context": context})
        yield Measured("bytes", size, {"context": context})
    yield Measured("growth_of_seconds", seconds[1] / seconds[0] - 1)
    yield Measured("growth_of_bytes", kept[1] / kept[0] - 1)
