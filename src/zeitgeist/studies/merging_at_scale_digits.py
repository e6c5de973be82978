"""Merging at scale on the digits family: widths for sizes, short and long pretraining for bases.

One seed, width and base: eight experts (full fine-tunes, one per held-in task), one multitask
model, and every merge of some sampled sets of K experts by every method. Four more tasks are held
out: their heads are pretrained with the others, and nothing is fine-tuned on them.

Tuning budget. Task arithmetic is tried at 24 lambdas, TIES and DARE-TIES at 4 densities times 6
lambdas, all on the validation pictures of the held-in tasks that are being merged; held-out tasks
choose nothing. Averaging has nothing to tune: it is task arithmetic at lambda = 1/K, which is one
of task arithmetic's 24.

The multitask model takes as many steps as an expert, each on all eight tasks of a batch: it sees as
many labels as all experts together.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.evidence import Group, Measured
from zeitgeist.studies.digits_family import Base, Net, finetune, pretrain, score
from zeitgeist.studies.digits_tasks import Digits, split_digits
from zeitgeist.studies.tuned_merges import Grid, Judged, Tuned, tune_method

METHODS = ("average", "task_arithmetic", "ties", "dare_ties")
LAMBDAS = (0.3, 0.6, 1.0, 1.5, 2.0, 3.0)
KEPT = (0.1, 0.2, 0.5, 1.0)  # densities of TIES
LEFT = (0.1, 0.3, 0.5, 0.9)  # what DARE leaves: 1 - p
MULTIPLES = tuple(0.25 * i for i in range(1, 25))  # of 1/K, for task arithmetic
ROOM = 0.05  # where experts are not this far above the base, a share of the way says nothing


def grid(method: str, experts: int) -> Grid:
    """What is tried for a method that merges this many experts.

    Examples
    --------
    >>> {method: grid(method, 8).size for method in METHODS}
    {'average': 1, 'task_arithmetic': 24, 'ties': 24, 'dare_ties': 24}
    """
    grids = {
        "average": Grid((1.0,)),
        "task_arithmetic": Grid(tuple(multiple / experts for multiple in MULTIPLES)),
        "ties": Grid(LAMBDAS, KEPT),
        "dare_ties": Grid(LAMBDAS, LEFT),
    }
    return grids[method]


def expert_sets(seed: int, experts: int, size: int, count: int) -> list[tuple[int, ...]]:
    """Sets of ``size`` experts out of all, at most ``count``, without repetition.

    Examples
    --------
    >>> expert_sets(0, 8, 8, 3)
    [(0, 1, 2, 3, 4, 5, 6, 7)]
    >>> [len(one) for one in expert_sets(0, 8, 2, 3)]
    [2, 2, 2]
    """
    every = list(combinations(range(experts), size))
    random = np.random.default_rng([seed, size, 4])
    chosen = random.permutation(len(every))[:count]
    return sorted(every[i] for i in chosen)


@dataclass(frozen=True)
class Merge:
    """One method's merge of one set of experts: what was chosen, and test accuracy per task."""

    tasks: tuple[int, ...]
    tuned: Tuned
    accuracy: Float[Tensor, " T"]


@dataclass(frozen=True)
class Prepared:
    """Test accuracies per task of everything that one seed, width and base gave.

    ``merges`` is by method, number of experts and number of the set.
    """

    held_in: int
    base: Float[Tensor, " T"]
    experts: Float[Tensor, "E T"]
    multitask: Float[Tensor, " T"]
    merges: Mapping[tuple[str, int, int], Merge]


def prepare(group: Group) -> Prepared:
    """Train base, experts and multitask model of a cell; tune and score all merges."""
    seed, numbers = group.seed, group.parameters
    held_in, tasks = numbers["held_in"], numbers["held_in"] + numbers["held_out"]
    digits = split_digits(seed, tasks)
    base = pretrain(
        Net(int(group.setting["width"]), numbers["blocks"]),
        digits,
        steps=numbers["pretraining"][group.setting["base"]],
        seed=seed,
    )
    groups = [*((task,) for task in range(held_in)), tuple(range(held_in))]
    *experts, multitask = finetune(base, digits, groups, steps=numbers["steps"], seed=seed)
    tuned = torch.stack(experts)
    tested = score(base, torch.stack([base.trunk, multitask, *experts]), digits.test).accuracy
    return Prepared(
        held_in,
        tested[0],
        tested[2:],
        tested[1],
        dict(_merges(base, tuned, digits, seed, numbers)),
    )


def _merges(
    base: Base,
    experts: Float[Tensor, "E P"],
    digits: Digits,
    seed: int,
    numbers: Mapping[str, Any],
) -> Iterable[tuple[tuple[str, int, int], Merge]]:
    own = score(base, experts, digits.validation).accuracy.diagonal()
    for size in numbers["experts"]:
        for number, tasks in enumerate(expert_sets(seed, len(experts), size, numbers["sets"])):
            chosen = list(tasks)

            def judge(candidates: Tensor, chosen: list[int] = chosen) -> Judged:
                found = score(base, candidates, digits.validation, chosen)
                return Judged((found.accuracy / own[chosen]).mean(dim=1), found.nll.mean(dim=1))

            for method in METHODS:
                tuned = tune_method(
                    method, base.trunk, experts[chosen], grid(method, size), judge, seed=seed
                )
                tested = score(base, tuned.vector[None], digits.test).accuracy[0]
                yield (method, size, number), Merge(tasks, tuned, tested)


def measure(arm: str, prepared: Prepared) -> Iterable[Measured]:
    """The numbers of one arm: of each merge (labelled by experts and set), and over all merges."""
    every = tuple(range(prepared.held_in))
    baselines = {"base": prepared.base, "multitask": prepared.multitask}
    if arm in baselines:
        return list(_scores(prepared, baselines[arm], every, {}))
    if arm == "expert":
        return list(_of_experts(prepared))
    return list(_of_merges(arm, prepared))


def _scores(
    prepared: Prepared,
    tested: Float[Tensor, " T"],
    tasks: tuple[int, ...],
    labels: Mapping[str, int],
) -> Iterable[Measured]:
    inside, cut = list(tasks), prepared.held_in
    own = prepared.experts.diagonal()[inside]
    before, after = prepared.base[inside].mean().item(), own.mean().item()
    values = {
        "held_in": (tested[inside] / own).mean().item(),
        "held_in_absolute": tested[inside].mean().item(),
        "held_out": (tested[cut:] / prepared.base[cut:]).mean().item(),
        "held_out_absolute": tested[cut:].mean().item(),
        "zero_shot": before,
    }
    if after - before >= ROOM:
        values["recovered"] = (values["held_in_absolute"] - before) / (after - before)
    for metric, value in values.items():
        yield Measured(metric, value, labels)


def _of_experts(prepared: Prepared) -> Iterable[Measured]:
    """Every expert on its own task and on the held-out ones, averaged over experts."""
    found: dict[str, list[float]] = {}
    for task, tested in enumerate(prepared.experts):
        for each in _scores(prepared, tested, (task,), {}):
            found.setdefault(each.metric, []).append(each.value)
    return [Measured(metric, float(np.mean(values))) for metric, values in found.items()]


def _of_merges(arm: str, prepared: Prepared) -> Iterable[Measured]:
    cut = prepared.held_in
    over = {"held_in": _held_in, "held_out": _held_out}
    by_size: dict[tuple[str, int], list[float]] = {}
    for (method, size, number), merge in prepared.merges.items():
        if method != arm:
            continue
        labels = {"experts": size, "set": number}
        yield from _scores(prepared, merge.accuracy, merge.tasks, labels)
        rivals = [_held_in(prepared, prepared.merges[m, size, number]) for m in METHODS]
        yield Measured("apart", abs(_held_in(prepared, merge) - float(np.mean(rivals))), labels)
        multitask = (prepared.multitask / prepared.base)[cut:].mean().item()
        yield Measured("over_base", _held_out(prepared, merge) - 1, labels)
        yield Measured("over_multitask", _held_out(prepared, merge) - multitask, labels)
        yield Measured("lambda", merge.tuned.lambda_, labels)
        if np.isfinite(merge.tuned.density):
            yield Measured("density", merge.tuned.density, labels)
        yield Measured("evaluations", merge.tuned.evaluations, labels)
        for name, of in over.items():
            by_size.setdefault((name, size), []).append(of(prepared, merge))
    sizes = sorted({size for _, size in by_size})
    mean = {key: float(np.mean(values)) for key, values in by_size.items()}
    fewest, most = sizes[0], sizes[-1]
    yield Measured("lost_with_experts", mean["held_in", fewest] - mean["held_in", most])
    yield Measured("held_out_rise", mean["held_out", most] - mean["held_out", fewest])


def _held_in(prepared: Prepared, merge: Merge) -> float:
    inside = list(merge.tasks)
    return float((merge.accuracy[inside] / prepared.experts.diagonal()[inside]).mean())


def _held_out(prepared: Prepared, merge: Merge) -> float:
    cut = prepared.held_in
    return float((merge.accuracy[cut:] / prepared.base[cut:]).mean())
