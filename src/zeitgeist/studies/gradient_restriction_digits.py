"""Small networks on streams of digits, all values of a knob trained side by side.

A network with two hidden layers of 100 learns task after task with plain SGD, batches of ten, and a
memory of the last samples of every past task. Networks that differ only in a number (strength,
weight, lambda) are rows of one batch: the same initial weights and the same batches, so that rows
are paired.

    none        z = g
    replay      z = g + w r              r: mean gradient of a batch drawn from all memories
    replay_all  z = g + w sum_s m_s      m_s: mean gradient of the memories of task s
    agem        z = g, or its projection on r's half-space
    mega1/2     g and r mixed by their losses
    ewc         a quadratic penalty lambda/2 sum_t F_t (theta - theta_t)^2, F_t the diagonal of the
                Fisher information on the memories of task t; taken as a proximal step, which is
                stable at every lambda
    gem         GEM's projection, in blocks (grain), with groups of memories (J) and strength

L networks, T tasks, k slices of memory, m samples of each
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby, pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional

from zeitgeist.continual.closed_forms import mega_one, mega_two
from zeitgeist.continual.grains import Partition, partition
from zeitgeist.continual.metrics import (
    average_accuracy,
    backward_transfer,
    forgetting,
    forward_transfer,
    hypervolume,
    learning_accuracy,
    learning_curve_area,
)
from zeitgeist.continual.restriction import restrict_pieces
from zeitgeist.evidence import Group, Measured
from zeitgeist.studies.digits_streams import Part, Stream, stream

INNER = (100, 100, 10)
"""Widths behind the pixels."""
REFERENCE = (0.5, -0.5)
"""Learning accuracy and backward transfer below which a point of a front counts nothing."""
BETA = 10
"""Mini-batches of LCA."""

Tensors = list[Tensor]


@dataclass(frozen=True)
class Knob:
    """One way to learn the stream; ``value`` is the strength, the weight or lambda."""

    name: str
    method: str = "gem"
    value: float = 0.0
    grain: str = "model"
    groups: int = 1

    @property
    def together(self) -> tuple[str, str, int]:
        """Knobs that agree here are trained side by side."""
        return self.method, self.grain, self.groups


def _swept(method: str, values: Sequence[float]) -> tuple[Knob, ...]:
    return tuple(Knob(f"{value:g}", method, value) for value in values)


KNOBS: Mapping[str, tuple[Knob, ...]] = {
    "none": (Knob("none", "none"),),
    "agem": (Knob("agem", "agem"),),
    "mega1": (Knob("mega1", "mega1"),),
    "mega2": (Knob("mega2", "mega2"),),
    "ewc": _swept("ewc", (1.0, 10.0, 30.0, 100.0, 300.0, 1000.0)),
    "replay": _swept("replay", (0.25, 0.5, 1.0, 2.0, 4.0, 8.0)),
    "replay_all": _swept("replay_all", (0.05, 0.1, 0.25, 0.5, 1.0, 2.0)),
    "strength": _swept("gem", (0.0, 0.1, 0.25, 0.5, 1.0, 2.0)),
    "fine": (
        Knob("layer", grain="layer"),
        Knob("tensor", grain="tensor"),
        Knob("neuron", grain="neuron"),
        Knob("J=2", groups=2),
        Knob("J=4", groups=4),
        Knob("J=8", groups=8),
    ),
    "both": (
        Knob("neuron, 0.25", value=0.25, grain="neuron"),
        Knob("neuron, 1", value=1.0, grain="neuron"),
        Knob("neuron, J=4", grain="neuron", groups=4),
    ),
}
"""The points of every arm's front."""


@dataclass
class Trace:
    """What one network did: accuracies after every task, and what restricting cost."""

    test: Float[np.ndarray, "T T"]
    validation: Float[np.ndarray, "T T"]
    untrained: Float[np.ndarray, " T"]
    curves: Float[np.ndarray, "T batches"]
    evaluations: float = 0.0
    active: list[float] = field(default_factory=list)
    cosine: list[float] = field(default_factory=list)
    residual: float = 0.0


@dataclass(frozen=True)
class Prepared:
    """A stream, and the numbers of the group."""

    data: Stream
    numbers: Mapping[str, Any]
    seed: int
    passes: int


def prepare(group: Group) -> Prepared:
    """Draw the stream of a cell.

    Parameters
    ----------
    group
        ``setting["stream"]``; ``parameters``: ``data`` (of `stream`), ``tasks``, ``memory``
        (samples per task), ``batch``, ``learning_rate``, ``passes`` by stream.
    """
    name, numbers = str(group.setting["stream"]), group.parameters
    drawn = stream(name, group.seed, numbers["tasks"], numbers["data"])
    return Prepared(drawn, numbers, group.seed, numbers["passes"][name])


def measure(arm: str, prepared: Prepared) -> Iterator[Measured]:
    """Metrics of every knob of an arm, and of its front.

    Per ``knob``: ``acc``, ``bwt``, ``la``, ``fwt``, ``forgetting``, ``lca``, ``evaluations``
    (memory samples that went backward, per step), ``active``, ``degrees`` and ``residual``. Of the
    arm: ``tuned_acc``, ``tuned_bwt`` and ``tuned_la`` of the knob with the best validation ACC, and
    ``hypervolume`` of its points (LA, BWT) over `REFERENCE`.
    """
    traces: dict[str, Trace] = {}
    for _, some in groupby(KNOBS[arm], key=lambda knob: knob.together):
        knobs = list(some)
        traces |= zip((knob.name for knob in knobs), learn(knobs, prepared), strict=True)
    points = []
    for name, trace in traces.items():
        la, bwt = learning_accuracy(trace.test), backward_transfer(trace.test)
        points.append((la, bwt))
        label = {"knob": name}
        yield Measured("acc", average_accuracy(trace.test), label)
        yield Measured("bwt", bwt, label)
        yield Measured("la", la, label)
        yield Measured("fwt", forward_transfer(trace.test, trace.untrained), label)
        yield Measured("forgetting", forgetting(trace.test), label)
        yield Measured("lca", learning_curve_area(trace.curves, BETA), label)
        yield Measured("evaluations", trace.evaluations, label)
        if trace.active:
            yield Measured("active", float(np.mean(trace.active)), label)
            angles = np.degrees(np.arccos(np.clip(trace.cosine, -1, 1)))
            yield Measured("degrees", float(angles.mean()), label)
            yield Measured("residual", trace.residual, label)
    best = max(traces.values(), key=lambda trace: average_accuracy(trace.validation))
    yield Measured("tuned_acc", average_accuracy(best.test))
    yield Measured("tuned_bwt", backward_transfer(best.test))
    yield Measured("tuned_la", learning_accuracy(best.test))
    yield Measured("hypervolume", hypervolume(points, REFERENCE))


def initial(seed: int, lanes: int, pixels: int) -> Tensors:
    """Weights and biases as `torch.nn.Linear` draws them, the same in every lane."""
    random = torch.Generator().manual_seed(seed)
    made = []
    for wide, out in pairwise((pixels, *INNER)):
        bound = wide**-0.5
        for shape in ((out, wide), (out,)):
            draw = (2 * torch.rand(shape, generator=random) - 1) * bound
            made.append(draw.expand(lanes, *shape).clone())
    return made


def blocks(grain: str, pixels: int) -> Partition:
    """The partition of the network's parameters, without lanes."""
    shapes = {
        f"{i}.{kind}": torch.empty(shape)
        for i, (wide, out) in enumerate(pairwise((pixels, *INNER)))
        for kind, shape in (("weight", (out, wide)), ("bias", (out,)))
    }
    return partition(shapes, grain)


def logits(parameters: Tensors, pictures: Float[Tensor, "*P N pixels"]) -> Float[Tensor, "*L N 10"]:
    """Of every network; pictures may be shared."""
    h = pictures
    for i in range(0, len(parameters), 2):
        h = h @ parameters[i].mT + parameters[i + 1].unsqueeze(-2)
        h = h.relu() if i + 2 < len(parameters) else h
    return h


def mean_gradients(
    parameters: Tensors, pictures: Float[Tensor, "*P N pixels"], labels: Int[Tensor, "*P N"]
) -> tuple[Tensors, Float[Tensor, "*L"]]:
    """Gradient and value of the mean loss of every network on its pictures.

    A network that diverged has no gradient any more: it stays as it is and answers at chance.
    """
    leaves = [p.detach().requires_grad_() for p in parameters]
    shown = logits(leaves, pictures)
    losses = functional.cross_entropy(
        shown.flatten(0, -2), labels.expand(shown.shape[:-1]).flatten(), reduction="none"
    )
    means = losses.view(shown.shape[:-1]).mean(dim=-1)
    found = torch.autograd.grad(means.sum(), leaves)
    return [g.nan_to_num(0.0, 0.0, 0.0) for g in found], means.detach().nan_to_num(0.0, 0.0, 0.0)


def sliced(
    parameters: Tensors, pictures: Float[Tensor, "k m pixels"], labels: Int[Tensor, "k m"]
) -> tuple[Tensors, Float[Tensor, "L k"]]:
    """The mean gradient of every network on every slice of memories: (L, k, *shape)."""
    k = len(pictures)
    copies = [p.unsqueeze(1).expand(len(p), k, *p.shape[1:]) for p in parameters]
    lanes = len(parameters[0])
    return mean_gradients(
        copies, pictures.expand(lanes, *pictures.shape), labels.expand(lanes, *labels.shape)
    )


@torch.no_grad()
def accuracies(parameters: Tensors, parts: Sequence[Part]) -> Float[Tensor, "L T"]:
    """Share of right answers of every network on every part."""
    found = [
        (logits(parameters, part.pictures).argmax(dim=-1) == part.labels).double().mean(dim=-1)
        for part in parts
    ]
    return torch.stack(found, dim=-1)


def learn(knobs: Sequence[Knob], prepared: Prepared) -> list[Trace]:
    """Train one network per knob through the stream.

    Parameters
    ----------
    knobs
        Of one `Knob.together`.
    prepared
        The stream.
    """
    data, numbers = prepared.data, prepared.numbers
    tasks, lanes = len(data.train), len(knobs)
    rate, batch, kept = numbers["learning_rate"], numbers["batch"], numbers["memory"]
    pixels = data.train[0].pictures.shape[1]
    parameters = initial(prepared.seed, lanes, pixels)
    learner = Learner(knobs, kept, pixels)
    before = accuracies(parameters, data.test)
    tested, judged, curves = [], [], []
    for task in range(tasks):
        pictures, labels = data.train[task]
        random = np.random.default_rng([prepared.seed, 12, task])
        order = np.concatenate([random.permutation(len(labels)) for _ in range(prepared.passes)])
        curve = [accuracies(parameters, data.test[task : task + 1])[:, 0]]
        for step in range(len(order) // batch):
            chosen = torch.from_numpy(order[step * batch : (step + 1) * batch])
            gradient, loss = mean_gradients(parameters, pictures[chosen], labels[chosen])
            direction = learner.direction(gradient, loss, parameters, random)
            parameters = [p - rate * z for p, z in zip(parameters, direction, strict=True)]
            parameters = learner.pulled(parameters, rate)
            if step < BETA:
                curve.append(accuracies(parameters, data.test[task : task + 1])[:, 0])
        # A ring: the last samples of the last pass.
        last = torch.from_numpy(order[-min(kept, len(labels)) :])
        learner.remember(pictures[last], labels[last], parameters)
        tested.append(accuracies(parameters, data.test))
        judged.append(accuracies(parameters, data.validation))
        curves.append(torch.stack(curve, dim=-1))
    return [
        Trace(
            torch.stack(tested)[:, lane].numpy(),
            torch.stack(judged)[:, lane].numpy(),
            before[lane].numpy(),
            torch.stack(curves)[:, lane].numpy(),
            learner.evaluated / max(1, learner.steps),
            [float(a[lane]) for a in learner.active],
            [float(c[lane]) for c in learner.cosine],
            max((float(r[lane]) for r in learner.residual), default=0.0),
        )
        for lane in range(lanes)
    ]


class Learner:
    """What turns gradients into directions, with its memories."""

    def __init__(self, knobs: Sequence[Knob], kept: int, pixels: int) -> None:
        ((self.method, grain, self.groups),) = {knob.together for knob in knobs}
        self.values = torch.tensor([knob.value for knob in knobs], dtype=torch.float64)
        self.partition = blocks(grain, pixels)
        self.kept = kept
        self.pictures: list[Tensor] = []
        self.labels: list[Tensor] = []
        self.fisher: Tensors = []
        self.anchor: Tensors = []
        self.steps = self.evaluated = 0
        self.active: list[Tensor] = []
        self.cosine: list[Tensor] = []
        self.residual: list[Tensor] = []

    def remember(
        self, pictures: Float[Tensor, "m pixels"], labels: Int[Tensor, " m"], parameters: Tensors
    ) -> None:
        """Keep memories of the task that ended, and for EWC what its weights were worth."""
        self.pictures.append(pictures)
        self.labels.append(labels)
        if self.method == "ewc":
            each, _ = sliced(parameters, pictures[:, None], labels[:, None])
            worth = [e.square().mean(dim=1) for e in each]
            weighed = [f * p for f, p in zip(worth, parameters, strict=True)]
            old = self.fisher or [torch.zeros_like(f) for f in worth]
            pull = self.anchor or [torch.zeros_like(f) for f in worth]
            self.fisher = [a + b for a, b in zip(old, worth, strict=True)]
            self.anchor = [a + b for a, b in zip(pull, weighed, strict=True)]

    def pulled(self, parameters: Tensors, rate: float) -> Tensors:
        """argmin_x |x - theta|^2 / (2 rate) + lambda/2 sum_t F_t (x - theta_t)^2, EWC's step."""
        if not self.fisher:
            return parameters
        made = []
        for p, fisher, anchor in zip(parameters, self.fisher, self.anchor, strict=True):
            pull = rate * self.values.to(p.dtype).view(-1, *[1] * (p.ndim - 1))
            made.append((p + pull * anchor) / (1 + pull * fisher))
        return made

    def direction(
        self,
        gradient: Tensors,
        loss: Float[Tensor, " L"],
        parameters: Tensors,
        random: np.random.Generator,
    ) -> Tensors:
        """z of every network."""
        self.steps += 1
        if not self.pictures or self.method in ("none", "ewc"):
            return gradient
        if self.method == "gem":
            pictures = torch.stack(self.pictures)
            labels = torch.stack(self.labels)
            k = len(pictures) * self.groups
            held, _ = sliced(
                parameters, pictures.view(k, -1, pictures.shape[-1]), labels.view(k, -1)
            )
            self.evaluated += labels.numel()
            found = restrict_pieces(gradient, held, self.partition, self.values, always=False)
            self.active.append(found.active)
            self.cosine.append(found.cosine)
            self.residual.append(found.residual)
            return found.direction
        if self.method == "replay_all":
            held, _ = sliced(parameters, torch.stack(self.pictures), torch.stack(self.labels))
            self.evaluated += self.kept * len(self.pictures)
            return self._mixed(gradient, [m.sum(dim=1) for m in held], None, self.values)
        pool, named = torch.cat(self.pictures), torch.cat(self.labels)
        drawn = torch.from_numpy(random.choice(len(pool), min(self.kept, len(pool)), replace=False))
        self.evaluated += len(drawn)
        held, old = sliced(parameters, pool[drawn][None], named[drawn][None])
        if self.method == "agem":
            return restrict_pieces(gradient, held, self.partition).direction
        reference = [m[:, 0] for m in held]
        if self.method == "replay":
            return self._mixed(gradient, reference, None, self.values)
        now, then = loss.double(), old[:, 0].double()
        if self.method == "mega1":
            mix = mega_one(now, then)
        else:
            gg, rr, gr = (_inner(*two) for two in ((gradient, gradient), (reference, reference),
                                                   (gradient, reference)))  # fmt: skip
            mix = mega_two(gg, rr, gr, now, then)
        return self._mixed(gradient, reference, mix.a, mix.b)

    def _mixed(
        self,
        gradient: Tensors,
        reference: Tensors,
        a: Float[Tensor, " L"] | None,
        b: Float[Tensor, " L"],
    ) -> Tensors:
        made = []
        for g, r in zip(gradient, reference, strict=True):
            across = (-1, *[1] * (g.ndim - 1))
            first = g if a is None else a.to(g.dtype).view(across) * g
            made.append(first + b.to(g.dtype).view(across) * r)
        return made


def _inner(one: Tensors, other: Tensors) -> Float[Tensor, " L"]:
    pairs = zip(one, other, strict=True)
    return torch.stack([(a.double() * b.double()).flatten(1).sum(dim=1) for a, b in pairs]).sum(0)
