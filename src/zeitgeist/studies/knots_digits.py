"""KnOTS on the digits family, and on random adapters that nothing was trained for.

Stoica et al., arXiv 2410.19735. A base pretrained briefly (so that task arithmetic keeps well under
all of its experts' accuracy), eight LoRA experts on all matrices of its blocks, and their merges
with and without the shared basis. One cell is one seed, width and rank.

Tuning budget: every arm is tried 32 times on validation pictures. Arms that keep or drop entries:
4 shares times 8 lambdas; task arithmetic, which has no share: 32 lambdas.

The random setting asks without training what the rotation does to signs. Adapters have B with
orthonormal columns, either in subspaces that are orthogonal to each other or not, and A random,
with singular values that all differ. With orthogonal subspaces no row of the shared basis belongs
to two adapters, so that nothing conflicts there and KnOTS-TIES without a trim is the plain sum.

n experts, P_a adapted parameters, O outputs, I inputs, r rank
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import nan
from operator import add
from typing import Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from zeitgeist.evidence import Group, Measured
from zeitgeist.evidence.study import Setting
from zeitgeist.merging.knots import KnotsOptions, merge_layers
from zeitgeist.merging.low_rank import Alignment
from zeitgeist.studies.digits_family import Base, Net, finetune_lora, pretrain, score
from zeitgeist.studies.digits_tasks import Digits, split_digits
from zeitgeist.studies.tuned_merges import Grid, Judged, merged_update, tune

ARMS = (
    "task_arithmetic",
    "ties",
    "dare_ties",
    "knots_task_arithmetic",
    "knots_ties",
    "knots_dare_ties",
)
RANDOM_ARMS = ("task_arithmetic", "ties", "knots_task_arithmetic", "knots_ties")
LAMBDAS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.5, 2.0, 3.0)
KEPT = (0.1, 0.2, 0.5, 1.0)  # densities of TIES
LEFT = (0.1, 0.2, 0.5, 0.9)  # what DARE leaves: 1 - p
SUMS = tuple(0.05 * i for i in range(1, 33))  # lambdas of task arithmetic, which sums
Spaces = Literal["orthogonal", "generic"]

Layers = Mapping[str, Sequence[tuple[Tensor, Tensor]]]


def grid(arm: str) -> Grid:
    """What is tried for an arm.

    Examples
    --------
    >>> {grid(arm).size for arm in ARMS}
    {32}
    """
    if arm.endswith("task_arithmetic"):
        return Grid(SUMS)
    return Grid(LAMBDAS, LEFT if arm.endswith("dare_ties") else KEPT)


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a setting.

    Examples
    --------
    >>> applies("dare_ties", {"family": "digits"}), applies("dare_ties", {"family": "random"})
    (True, False)
    """
    return arm in (RANDOM_ARMS if setting["family"] == "random" else ARMS)


@dataclass(frozen=True)
class Prepared:
    """A base, its adapters by layer, and what every expert scores on its own task."""

    base: Base
    digits: Digits
    layers: Layers
    validation: Float[Tensor, " n"]
    test: Float[Tensor, " n"]
    seed: int


@dataclass(frozen=True)
class Random:
    """Random adapters of one layer, by how their column spaces lie."""

    layers: Mapping[Spaces, Layers]
    seed: int


def prepare(group: Group) -> Prepared | Random:
    """Train base and adapters of a cell, or draw random ones."""
    seed, numbers = group.seed, group.parameters
    width, rank = int(group.setting["width"]), int(group.setting["rank"])
    experts = numbers["experts"]
    if group.setting["family"] == "random":
        kinds: tuple[Spaces, ...] = ("orthogonal", "generic")
        drawn = {kind: random_adapters(seed, experts, width, rank, kind) for kind in kinds}
        return Random({kind: {"layer": updates} for kind, updates in drawn.items()}, seed)
    digits = split_digits(seed, experts + numbers["others"])
    base = pretrain(Net(width, numbers["blocks"]), digits, steps=numbers["pretraining"], seed=seed)
    tasks = [(task,) for task in range(experts)]
    factors = finetune_lora(base, digits, tasks, rank=rank, steps=numbers["steps"], seed=seed)
    layers = {
        name: [(a[i].double(), b[i].double()) for i in range(experts)]
        for name, (a, b) in factors.items()
    }
    trunks = base.trunk.double() + on_trunk(base.net, flat_updates(layers))
    own = [
        score(base, trunks, part).accuracy.diagonal() for part in (digits.validation, digits.test)
    ]
    return Prepared(base, digits, layers, own[0], own[1], seed)


def random_adapters(
    seed: int, experts: int, width: int, rank: int, spaces: Spaces
) -> list[tuple[Float64[Tensor, "r I"], Float64[Tensor, "O r"]]]:
    """Adapters (A, B) with orthonormal columns in B; A sets singular values, all different.

    Parameters
    ----------
    seed, experts, width, rank
        How many of which shape; width x width.
    spaces
        ``"orthogonal"``: columns of different experts are orthogonal, which needs
        ``experts * rank <= width``; ``"generic"``: they are drawn independently.

    Examples
    --------
    >>> (_, one), (_, other) = random_adapters(0, 2, 8, 3, "orthogonal")
    >>> bool((one.T @ other).abs().max() < 1e-12)
    True
    """
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    together = torch.linalg.qr(normal(width, experts * rank)).Q if spaces == "orthogonal" else None
    made = []
    for i in range(experts):
        alone = torch.linalg.qr(normal(width, rank)).Q
        b = alone if together is None else together[:, i * rank : (i + 1) * rank]
        scale = 1 + torch.rand(rank, generator=random, dtype=torch.float64)
        made.append((scale[:, None] * torch.linalg.qr(normal(width, rank)).Q.T, b.contiguous()))
    return made


def flat_updates(layers: Layers) -> Float64[Tensor, "n P_a"]:
    """B A of every expert, all layers in one vector.

    Examples
    --------
    >>> one = (torch.ones(1, 2, dtype=torch.float64), torch.ones(3, 1, dtype=torch.float64))
    >>> flat_updates({"q": [one, one], "k": [one, one]}).shape
    torch.Size([2, 12])
    """
    parts = [torch.stack([(b @ a).flatten() for a, b in pairs]) for pairs in layers.values()]
    return torch.cat(parts, dim=1)


def on_trunk(net: Net, flat: Float64[Tensor, "*C P_a"]) -> Float64[Tensor, "*C P"]:
    """Updates of adapted matrices as updates of the whole trunk: 0 everywhere else."""
    sizes = [net.width**2] * len(net.adapted)
    whole = net.split(flat.new_zeros(*flat.shape[:-1], net.size))
    parts = dict(zip(net.adapted, flat.split(sizes, dim=-1), strict=True))
    return net.join({k: parts[k].view_as(v) if k in parts else v for k, v in whole.items()})


def merged(
    arm: str, layers: Layers, density: float | None = None, *, seed: int = 0
) -> Float64[Tensor, " P_a"]:
    """The merged update of an arm at lambda 1.

    Parameters
    ----------
    arm
        One of `ARMS`; those with ``knots_`` merge in the basis that the experts share.
    layers
        Factors (A, B) of every expert per layer.
    density
        Share of entries that TIES keeps, or that DARE leaves.
    seed
        Of DARE's masks.

    Examples
    --------
    >>> layers = {"layer": random_adapters(0, 3, 12, 2, "generic")}
    >>> plain, rotated = (merged(f"{way}task_arithmetic", layers) for way in ("", "knots_"))
    >>> bool((plain - rotated).norm() < 1e-10 * plain.norm())
    True
    """
    if not arm.startswith("knots_"):
        updates = flat_updates(layers)
        return merged_update(arm, torch.zeros_like(updates[0]), updates, density, seed=seed)
    options = _options(arm.removeprefix("knots_"), density, seed)
    found = merge_layers(layers, options, progress=False)
    return torch.cat([(b @ a).flatten() for a, b in found.factors.values()])


def _options(combine: str, density: float | None, seed: int) -> KnotsOptions:
    if combine == "task_arithmetic":
        return KnotsOptions("task_arithmetic", lambda_=1.0)
    if density is None:
        raise ValueError(f"{combine} needs a density")
    if combine == "ties":
        return KnotsOptions("ties", density=density, lambda_=1.0)
    return KnotsOptions("dare_ties", drop=1 - density, lambda_=1.0, seed=seed)


def alignments(layers: Layers) -> tuple[Alignment, Alignment]:
    """How the experts lie to each other, all layers together: as they come, and rotated.

    Nothing is trimmed, so that only the basis differs.
    """
    whole = merge_layers(layers, KnotsOptions(density=1.0), progress=False).layers.values()
    return reduce(add, (x.before for x in whole)), reduce(add, (x.after for x in whole))


def measure(arm: str, prepared: Prepared | Random) -> Iterable[Measured]:
    """The numbers of one arm.

    On digits: ``kept`` (test accuracy relative to each task's own expert, mean over tasks),
    ``accuracy``, ``lambda``, ``density`` and ``evaluations`` of the chosen candidate. The arm
    ``knots_task_arithmetic`` adds ``weight_difference``, its relative Frobenius distance from task
    arithmetic. The arm ``knots_ties`` adds means over pairs of experts, labelled by ``basis``
    (``own``: as they come, ``shared``: rotated, nothing trimmed): ``cosine``, ``sign_conflict``
    (share of the entries that both change), ``shared_entries`` (share of an expert's entries that
    the other changes too).

    On random adapters, labelled by ``spaces``: the same but for what needs a network, and
    ``distance_from_sum`` of the untrimmed merge at lambda 1, relative to the norm of the sum.
    """
    if isinstance(prepared, Random):
        return list(_random(arm, prepared))
    return list(_digits(arm, prepared))


def _digits(arm: str, prepared: Prepared) -> Iterator[Measured]:
    base, tasks = prepared.base, list(range(len(prepared.test)))
    validation, own = prepared.digits.validation, prepared.validation

    def judge(candidates: Float64[Tensor, "C P_a"]) -> Judged:
        found = score(base, base.trunk.double() + on_trunk(base.net, candidates), validation, tasks)
        return Judged((found.accuracy / own).mean(dim=1), found.nll.mean(dim=1))

    tried = grid(arm)
    updates: Iterator[tuple[float, Tensor]] = (
        (nan if density is None else density, _merged(arm, prepared, density))
        for density in tried.densities or (None,)
    )
    nothing = torch.zeros(len(base.net.adapted) * base.net.width**2, dtype=torch.float64)
    tuned = tune(nothing, updates, tried.lambdas, judge)
    trunk = base.trunk.double() + on_trunk(base.net, tuned.vector)
    accuracy = score(base, trunk[None], prepared.digits.test, tasks).accuracy[0]
    yield Measured("kept", (accuracy / prepared.test).mean().item())
    yield Measured("accuracy", accuracy.mean().item())
    yield Measured("lambda", tuned.lambda_)
    if tried.densities:
        yield Measured("density", tuned.density)
    yield Measured("evaluations", tuned.evaluations)
    yield from _geometry(arm, prepared.layers, {})


def _merged(arm: str, prepared: Prepared, density: float | None) -> Tensor:
    return merged(arm, prepared.layers, density, seed=prepared.seed)


def _random(arm: str, prepared: Random) -> Iterator[Measured]:
    for spaces, layers in prepared.layers.items():
        labels = {"spaces": spaces}
        total = merged("task_arithmetic", layers)
        whole = merged(arm, layers, None if arm.endswith("task_arithmetic") else 1.0)
        distance = (whole - total).norm() / total.norm()
        yield Measured("distance_from_sum", distance.item(), labels)
        yield from _geometry(arm, layers, labels)


def _geometry(arm: str, layers: Layers, labels: Mapping[str, str]) -> Iterator[Measured]:
    if arm == "knots_task_arithmetic":
        plain, rotated = merged("task_arithmetic", layers), merged(arm, layers)
        difference = (rotated - plain).norm() / plain.norm()
        yield Measured("weight_difference", difference.item(), labels)
    if arm == "knots_ties":
        for basis, found in zip(("own", "shared"), alignments(layers), strict=True):
            named = {**labels, "basis": basis}
            yield Measured("cosine", between_pairs(found.cosine), named)
            yield Measured("sign_conflict", between_pairs(found.conflict), named)
            own = found.shared.diagonal()[:, None]
            yield Measured("shared_entries", between_pairs(found.shared / own), named)


def between_pairs(pairs: Float[Tensor, "n n"]) -> float:
    """Mean over pairs of different experts.

    Examples
    --------
    >>> between_pairs(torch.tensor([[9.0, 1.0], [1.0, 9.0]]))
    1.0
    """
    n = len(pairs)
    return float((pairs.sum() - pairs.diagonal().sum()) / (n * (n - 1)))
