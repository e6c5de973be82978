"""One sequence of tasks learned in several ways, and scaled back afterwards in several ways.

SmolLM2 learns the tasks of `zeitgeist.studies.language_tasks` one after another, by LoRA and AdamW.
With N[i, j] the loss on task j after task i (nats per answer token), T tasks, and G the loss on
English and Python that nobody learned,

    nll            mean_j N[T, j]                        forgotten   mean_{j<T} (N[T, j] - N[j, j])
    last           N[T, T]                               text_forgotten   G at the end - G at first

A scaling multiplies the update that the whole sequence made, all of it or block by block. N[T, .]
and G are then those of the scaled model, N[j, j] stays what it was in training. Its strength alpha
is chosen on validation items, which are in no memory and in no test, in two ways:

    best      the lowest mean loss over all tasks
    gentle    the least alpha that gives up at most 5 % of what training gained on them

Strength 0 of uniform scaling is the base, strength 1 of all is the model as trained.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from zeitgeist.checkpoints import resolve
from zeitgeist.continual.gradient_restriction import RestrictionOptions
from zeitgeist.continual.metrics import average_accuracy, backward_transfer, learning_accuracy
from zeitgeist.continual.sequence import guard_of, learn_tasks, score_tasks, with_lora
from zeitgeist.continual.task_files import Task
from zeitgeist.evidence import Group, Measured
from zeitgeist.merging.lines import scale_adapter
from zeitgeist.studies.language_tasks import TASKS, encode, held_out, split
from zeitgeist.studies.lines_digits import single_options
from zeitgeist.training import LoraSettings, best_device, best_dtype, load_model

Losses = Mapping[str, Sequence[float]]
"""Scores by name, a number per task."""
METHODS: Mapping[str, Mapping[str, Any]] = {
    "none": {"method": "none"},
    "replay": {"method": "replay"},
    "gem": {"grain": "model"},
    "strength": {"grain": "model", "strength": 0.5},
    "fine": {"grain": "neuron"},
}
"""The arms that differ in training, and how each restricts."""
SCALED: Mapping[str, tuple[str, str]] = {
    "uniform": ("none", "uniform"),
    "lines": ("none", "lines"),
    "reversed": ("none", "reversed"),
    "replay_uniform": ("replay", "uniform"),
}
"""The arms that scale after training: what was trained, and how its update is scaled."""
TOLERANCE = 0.05
"""Share of the gain on validation items that a gentle strength may give up."""
TRAINED = "1"
"""The knob of a model as it was trained: the strength of no scaling."""


@dataclass(frozen=True)
class Learned:
    """What training made: N[i, j] of loss and hits, memory gradients, adapter, loss on text."""

    nll: np.ndarray
    tokens: np.ndarray
    evaluations: int
    adapter: Mapping[str, Tensor]
    text: float


@dataclass(frozen=True)
class Bench:
    """The base under a fresh adapter, what is learned and scored, and what was learned so far.

    ``validation``: as the tasks, but other items; ``texts``: English and Python as tasks that are
    only scored; ``fresh``: the adapter before training; ``base``: validation and text loss then.
    """

    group: Group
    model: Any
    pad: int
    tasks: tuple[Task, ...]
    validation: tuple[Task, ...]
    texts: tuple[Task, ...]
    fresh: Mapping[str, Tensor]
    base: tuple[float, float]
    learned: dict[str, Learned] = field(default_factory=dict)


def prepare(group: Group) -> Bench:
    """Open the model, draw its tasks and score it before it learns.

    Parameters
    ----------
    group
        ``parameters``: ``model``, ``order`` (of tasks), ``train``, ``validation`` and ``test``
        items of each, ``memory``, ``per_step``, ``lora`` (changes to `LoraSettings`), ``alphas``
        (strengths below 1), ``windows``, ``context_tokens`` and ``window_tokens``.
    """
    from transformers import AutoTokenizer

    known, place = group.parameters, resolve(group.parameters["model"], progress=False)
    tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    pad = int(tokenizer.pad_token_id or 0)
    tasks, validation = [], []
    for name in known["order"]:
        drawn = split(
            TASKS[name],
            train=known["train"] + known["validation"],
            test=known["test"],
            seed=group.seed,
        )
        learn, test = (
            tuple(encode(tokenizer, TASKS[name], item) for item in items)
            for items in (drawn.train, drawn.test)
        )
        tasks.append(Task(name, learn[: known["train"]], test))
        validation.append(Task(name, (), learn[known["train"] :]))
    texts = held_out(
        tokenizer,
        windows=known["windows"],
        context=known["context_tokens"],
        length=known["window_tokens"],
    )
    read = tuple(Task(name, (), tuple(windows)) for name, windows in texts.items())
    device = best_device()
    model = load_model(place, dtype=best_dtype(device), device=device)
    model = with_lora(model, LoraSettings(**known["lora"], seed=group.seed))
    base = mean_loss(model, validation, pad), mean_loss(model, read, pad)
    return Bench(group, model, pad, tuple(tasks), tuple(validation), read, _adapter(model), base)


def measure(arm: str, bench: Bench) -> Iterator[Measured]:
    """The numbers of one arm: as trained, or at every strength and at those that are chosen.

    Parameters
    ----------
    arm
        A key of `METHODS` or of `SCALED`.
    bench
        As `prepare` gives it.
    """
    known = bench.group.parameters
    method, scaling = SCALED.get(arm, (arm, ""))
    learned = learn(method, bench)
    earlier = len(bench.tasks) - 1
    kept = 0 if method == "none" else earlier * min(known["memory"], known["train"])
    as_trained = {
        "nll": learned.nll[-1].tolist(),
        "tokens": learned.tokens[-1].tolist(),
    }
    if not scaling:
        yield from _point(TRAINED, bench, learned, as_trained, learned.text)
        yield Measured("learned", learning_accuracy(learned.nll), {"knob": TRAINED})
        yield from _cost(TRAINED, learned, bench, kept, 0)
        return
    found = {TRAINED: (1.0, as_trained, learned.text)}
    put(bench.model, learned.adapter)
    checked = {TRAINED: mean_loss(bench.model, bench.validation, bench.pad)}
    for alpha in known["alphas"]:
        put(bench.model, scaled(learned.adapter, scaling, alpha))
        scores = score_tasks(bench.model, bench.tasks, pad=bench.pad)
        text = mean_loss(bench.model, bench.texts, bench.pad)
        found[f"{alpha:g}"] = alpha, scores, text
        checked[f"{alpha:g}"] = mean_loss(bench.model, bench.validation, bench.pad)
    for knob, (_, scores, text) in found.items():
        yield from _point(knob, bench, learned, scores, text)
    passes = (len(found) + 1) * len(bench.tasks) * known["validation"]
    for rule, knob in choose(checked, bench.base[0]).items():
        alpha, scores, text = found[knob]
        yield from _point(rule, bench, learned, scores, text)
        yield Measured("alpha", alpha, {"knob": rule})
        yield from _cost(rule, learned, bench, kept + earlier * known["validation"], passes)


def learn(method: str, bench: Bench) -> Learned:
    """Train by one method from the same fresh adapter; once, however many arms ask for it.

    Parameters
    ----------
    method
        A key of `METHODS`.
    bench
        Keeps what was learned.
    """
    if method not in bench.learned:
        known, seed = bench.group.parameters, bench.group.seed
        options = RestrictionOptions(
            **METHODS[method],
            memory=known["memory"],
            per_step=known["per_step"],
            sampler="reservoir",
            seed=seed,
        )
        lora = LoraSettings(**known["lora"], seed=seed)
        put(bench.model, bench.fresh)
        guard = guard_of(bench.model, bench.tasks, options, pad=bench.pad)
        rows = list(
            learn_tasks(bench.model, bench.tasks, guard, lora, pad=bench.pad, progress=False)
        )
        nll, tokens = (np.array([row.scores[name] for row in rows]) for name in ("nll", "tokens"))
        bench.learned[method] = Learned(
            nll,
            tokens,
            sum(row.evaluations for row in rows),
            _adapter(bench.model),
            mean_loss(bench.model, bench.texts, bench.pad),
        )
    return bench.learned[method]


def mean_loss(model: Any, tasks: Sequence[Task], pad: int) -> float:
    """NLL in nats per answer token, its mean over tasks."""
    return float(np.mean(score_tasks(model, tasks, pad=pad)["nll"]))


def _adapter(model: Any) -> dict[str, Tensor]:
    """A copy of what is trained."""
    return {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def put(model: Any, adapter: Mapping[str, Tensor]) -> None:
    """Give what is trained of a model these values."""
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            parameter.copy_(adapter[name])


def scaled(adapter: Mapping[str, Tensor], scaling: str, alpha: float) -> dict[str, Tensor]:
    """The factors of an adapter whose update is scaled.

    Parameters
    ----------
    adapter
        Factors ``...lora_A...`` and ``...lora_B...`` by name of the parameter.
    scaling
        ``uniform``, ``lines`` or ``reversed``; see `single_options`.
    alpha
        Strength.
    """
    pairs = {a: a.replace("lora_A", "lora_B") for a in adapter if "lora_A" in a}
    low, more = single_options(scaling, alpha).strengths(1)
    made = scale_adapter({a: (adapter[a], adapter[b]) for a, b in pairs.items()}, low, more)
    return {
        name: tensor for a, b in pairs.items() for name, tensor in zip((a, b), made[a], strict=True)
    }


def choose(checked: Mapping[str, float], base: float) -> dict[str, str]:
    """The strengths that validation chooses, by rule.

    Parameters
    ----------
    checked
        Validation loss by strength; `TRAINED` among them.
    base
        Validation loss before training.

    Examples
    --------
    >>> choose({"1": 1.0, "0.5": 1.04, "0.8": 0.9, "0": 3.0}, base=2.0)
    {'best': '0.8', 'gentle': '0.5'}
    """
    limit = checked[TRAINED] + TOLERANCE * max(0.0, base - checked[TRAINED])
    allowed = [knob for knob, loss in checked.items() if loss <= limit]
    return {
        "best": min(checked, key=lambda knob: checked[knob]),
        "gentle": min(allowed, key=float),
    }


def _point(
    knob: str, bench: Bench, learned: Learned, scores: Losses, text: float
) -> Iterator[Measured]:
    """What is known at the end, and what of it was forgotten."""
    label = {"knob": knob}
    matrix = learned.nll.copy()
    matrix[-1] = scores["nll"]
    yield Measured("nll", average_accuracy(matrix), label)
    yield Measured("last", float(matrix[-1, -1]), label)
    yield Measured("acc", float(np.mean(scores["tokens"])), label)
    yield Measured("forgotten", backward_transfer(matrix), label)
    yield Measured("text_forgotten", text - bench.base[1], label)


def _cost(knob: str, learned: Learned, bench: Bench, kept: int, passes: int) -> Iterator[Measured]:
    """What remembering took: gradients, stored samples, and forward passes afterwards."""
    label = {"knob": knob}
    steps = len(bench.tasks) * LoraSettings(**bench.group.parameters["lora"]).steps
    yield Measured("evaluations", learned.evaluations / steps, label)
    yield Measured("kept", kept, label)
    yield Measured("passes", passes, label)
