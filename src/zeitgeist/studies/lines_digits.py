"""LiNeS on the digits family: scaling single fine-tunes, and scaling merges, over depth.

Wang et al., arXiv 2410.17146. A network of eight blocks, its pretrained base and eight experts,
each fine-tuned wholly on one task. With lambda_l the scale of the update in block l and alpha in
[0, 1]:

    lines      alpha in the first block and outside the blocks, 1 in the last     (the paper)
    uniform    alpha everywhere                                    (the line to the base, WiSE-FT)
    reversed   1 in the first block and outside the blocks, alpha in the last

``part: digits`` scales every expert alone, at each alpha. Target is its own task, control the mean
of all other tasks. ``part: merge`` merges all experts and scales the merged update; target is the
mean over all their tasks. There every way to scale has one number, tuned on validation pictures
over the same grid (the paper's range, in steps of .05):

    uniform    lambda_l = f
    lines      lambda_l = a + b (l - 1)/(L - 1)      a by the paper's rule, b tuned
    reversed   lambda_l = a + b (L - l)/(L - 1)      the same, exchanged
    unscaled   lambda_l = 1                          nothing to tune

E experts, P parameters, C candidates
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from zeitgeist.evidence import Group, Measured
from zeitgeist.evidence.study import Setting
from zeitgeist.merging import LinesOptions
from zeitgeist.merging.lines import alpha_rule, scale_layers
from zeitgeist.studies.digits_family import Base, Net, finetune, pretrain, score
from zeitgeist.studies.digits_tasks import Digits, split_digits
from zeitgeist.studies.trade_off import area_between, control_at_target
from zeitgeist.studies.tuned_merges import Judged, merged_update

SCALINGS = ("lines", "uniform", "reversed")
SINGLE_ARMS = ("base", "none", *SCALINGS)
MERGES = ("task_arithmetic", "ties")
MERGE_ARMS = ("base", *(f"{merge}_{way}" for merge in MERGES for way in ("unscaled", *SCALINGS)))
ALPHAS = tuple(i / 10 for i in range(11))
FACTORS = {  # also betas
    "task_arithmetic": tuple(0.05 * i for i in range(1, 21)),
    "ties": tuple(0.05 * i for i in range(1, 31)),
}
DENSITY = 0.2  # of TIES, as in the paper's baseline
KEEP = 0.99
"""Share of the fine-tune's own target accuracy that must be kept."""


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a part.

    Examples
    --------
    >>> [applies("lines", {"part": part}) for part in ("digits", "merge")]
    [True, False]
    """
    return arm in (MERGE_ARMS if setting["part"] == "merge" else SINGLE_ARMS)


@dataclass(frozen=True)
class Prepared:
    """A base and its experts. ``accuracy``: of base (row 0) and experts on the test, all tasks."""

    part: Literal["digits", "merge"]
    base: Base
    digits: Digits
    experts: Float[Tensor, "E P"]
    accuracy: Float[Tensor, "rows T"]


def prepare(group: Group) -> Prepared:
    """Train base and experts of a cell.

    Parameters
    ----------
    group
        ``setting``: ``part`` (``digits`` or ``merge``) and ``base``, a key of
        ``parameters["pretraining"]``, which holds steps; ``parameters`` also: ``width``,
        ``blocks``, ``experts``, ``others`` (tasks that are pretrained only) and ``steps``.
    """
    numbers, part = group.parameters, group.setting["part"]
    digits = split_digits(group.seed, numbers["experts"] + numbers["others"])
    base = pretrain(
        Net(numbers["width"], numbers["blocks"]),
        digits,
        steps=numbers["pretraining"][group.setting["base"]],
        seed=group.seed,
    )
    tasks = [(task,) for task in range(numbers["experts"])]
    experts = finetune(base, digits, tasks, steps=numbers["steps"], seed=group.seed)
    tested = score(base, torch.cat([base.trunk[None], experts]), digits.test).accuracy
    return Prepared("merge" if part == "merge" else "digits", base, digits, experts, tested)


def single_options(scaling: str, alpha: float) -> LinesOptions:
    """How a fine-tune is scaled at a strength.

    Examples
    --------
    >>> [single_options(way, 0.25).strengths(1) for way in SCALINGS]
    [(0.25, 0.75), (0.25, 0.0), (1.0, -0.75)]
    """
    if scaling == "reversed":
        return LinesOptions(alpha=1.0, beta=alpha - 1.0)
    return LinesOptions(alpha=alpha, beta=1.0 - alpha if scaling == "lines" else 0.0)


def scaled(
    base: Base,
    tuned: Float[Tensor, " P"],
    options: LinesOptions,
) -> Float[Tensor, " P"]:
    """The flat trunk with its update scaled over depth."""
    net = base.net
    start = net.split(base.trunk.to(tuned.dtype))
    return net.join(scale_layers(start, net.split(tuned), options).tensors)


def merge_candidates(
    base: Base, experts: Float[Tensor, "E P"], merge: str, scaling: str
) -> tuple[Float64[Tensor, "C P"], list[tuple[float, float]]]:
    """Every candidate of an arm of the merge part, and its alpha and beta.

    Parameters
    ----------
    base, experts
        What is merged.
    merge
        ``task_arithmetic`` or ``ties``.
    scaling
        ``unscaled`` or one of `SCALINGS`.
    """
    density = DENSITY if merge == "ties" else None
    update = merged_update(merge, base.trunk, experts, density)
    start = base.trunk.double()
    total = (experts.double() - start).sum(dim=0).abs().sum().item()
    rule = alpha_rule(len(experts), total, update.abs().sum().item())
    strengths = {
        "unscaled": [(1.0, 0.0)],
        "uniform": [(factor, 0.0) for factor in FACTORS[merge]],
        "lines": [(rule, beta) for beta in FACTORS[merge]],
        "reversed": [(rule + beta, -beta) for beta in FACTORS[merge]],
    }[scaling]
    made = [scaled(base, start + update, LinesOptions(alpha=a, beta=b)) for a, b in strengths]
    return torch.stack(made), strengths


def measure(arm: str, prepared: Prepared) -> Iterable[Measured]:
    """The numbers of one arm.

    Single fine-tunes, per task (``item``): ``target_accuracy`` and ``control_accuracy`` labelled by
    ``alpha``; ``control_accuracy_at_target``, the best control where the target keeps 99 % of the
    fine-tune's; ``area_over_uniform``, how much better control is than with uniform scaling on
    average over targets between the base's and the fine-tune's (left out where the fine-tune is no
    better than the base). Over all tasks: ``undone``, the share of the forgetting that is undone at
    that target.

    Merges: ``kept`` (accuracy relative to each task's own expert, mean over merged tasks),
    ``accuracy``, ``held_out_accuracy`` (of the tasks that were pretrained only), and of the chosen
    candidate ``alpha_chosen``, ``beta_chosen`` and ``evaluations``.
    """
    return list((_merge if prepared.part == "merge" else _single)(arm, prepared))


def _single(arm: str, prepared: Prepared) -> Iterator[Measured]:
    curves = _curves(arm, prepared)
    alphas = {"base": (0.0,), "none": (1.0,)}.get(arm, ALPHAS)
    uniform = _curves("uniform", prepared) if arm in ("lines", "reversed") else {}
    undone, forgotten = [], []
    for task, (targets, controls) in curves.items():
        item = f"task {task}"
        for alpha, target, control in zip(alphas, targets, controls, strict=True):
            yield Measured("target_accuracy", target, {"alpha": alpha}, item)
            yield Measured("control_accuracy", control, {"alpha": alpha}, item)
        if arm == "base":
            continue
        before, after = (_target_and_control(prepared.accuracy[row], task) for row in (0, task + 1))
        reached = control_at_target(targets, controls, KEEP * after[0])
        yield Measured("control_accuracy_at_target", reached, {}, item)
        undone.append(reached - after[1])
        forgotten.append(before[1] - after[1])
        if uniform and before[0] < after[0]:
            area = area_between((targets, controls), uniform[task], before[0], after[0])
            yield Measured("area_over_uniform", area, {}, item)
    if forgotten and sum(forgotten) > 0:
        yield Measured("undone", sum(undone) / sum(forgotten))


def _curves(arm: str, prepared: Prepared) -> Mapping[int, tuple[list[float], list[float]]]:
    """Targets and controls of every task's fine-tune at every alpha of the arm."""
    if arm in ("base", "none"):
        rows = {t: prepared.accuracy[0 if arm == "base" else t + 1] for t in _tasks(prepared)}
        both = {task: _target_and_control(row, task) for task, row in rows.items()}
        return {task: ([target], [control]) for task, (target, control) in both.items()}
    found = {}
    for task, tuned in enumerate(prepared.experts):
        options = [single_options(arm, alpha) for alpha in ALPHAS]
        trunks = torch.stack([scaled(prepared.base, tuned, each) for each in options])
        tested = score(prepared.base, trunks, prepared.digits.test).accuracy
        pairs = [_target_and_control(row, task) for row in tested]
        found[task] = [target for target, _ in pairs], [control for _, control in pairs]
    return found


def _tasks(prepared: Prepared) -> list[int]:
    return list(range(len(prepared.experts)))


def _target_and_control(tested: Float[Tensor, " T"], task: int) -> tuple[float, float]:
    others = np.delete(tested.numpy(), task)
    return float(tested[task]), float(others.mean())


def _merge(arm: str, prepared: Prepared) -> Iterator[Measured]:
    base, tasks = prepared.base, _tasks(prepared)
    if arm == "base":
        yield from _kept(prepared.accuracy[0], prepared)
        return
    merge = next(each for each in MERGES if arm.startswith(each))
    candidates, strengths = merge_candidates(
        base, prepared.experts, merge, arm.removeprefix(f"{merge}_")
    )
    validation = prepared.digits.validation
    own = score(base, prepared.experts, validation, tasks).accuracy.diagonal()
    found = score(base, candidates, validation, tasks)
    best = Judged((found.accuracy / own).mean(dim=1), found.nll.mean(dim=1)).best
    yield from _kept(
        score(base, candidates[best][None], prepared.digits.test).accuracy[0], prepared
    )
    yield Measured("alpha_chosen", strengths[best][0])
    yield Measured("beta_chosen", strengths[best][1])
    yield Measured("evaluations", len(candidates))


def _kept(tested: Float[Tensor, " T"], prepared: Prepared) -> Iterator[Measured]:
    merged, experts = len(prepared.experts), prepared.accuracy[1:].diagonal()
    yield Measured("kept", (tested[:merged] / experts).mean().item())
    yield Measured("accuracy", tested[:merged].mean().item())
    if len(tested) > merged:
        yield Measured("held_out_accuracy", tested[merged:].mean().item())
