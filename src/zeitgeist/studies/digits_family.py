"""A family of small networks with a base and its fine-tunes, trained in seconds on a processor.

The tasks are those of `zeitgeist.studies.digits_tasks`: pictures of digits, four labels, and as
many tasks on the same pictures as wanted. The network is a residual MLP,

    h_0 = W x,   h_l = h_{l-1} + D_l gelu(U_l norm(h_{l-1}) + b_l),   logits_t = H_t norm(h_L) + c_t

Pretraining trains the trunk and the heads H_t, c_t of all tasks, for few steps (a weak base) or
many (a strong one). From then on heads are frozen, and an expert is the trunk fine-tuned on one
task, wholly or by LoRA: what is merged are trunks. This is the setting of zero-shot classifiers,
in which the published merges of CLIP and of language models are made.

Networks of one shape are trained and scored together: their parameters are the rows of one matrix,
and every operation is batched over them. Adam acts entry by entry and each network draws its own
batches, so training together gives what training one by one gives.

E networks, P parameters of a trunk, W width, N pictures, T tasks, r rank
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod, sqrt
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import gelu, rms_norm

from zeitgeist.studies.digits_tasks import LABELS, PIXELS, Digits, Part

_SCORED = 1 << 21  # entries of hidden states that exist at once while scoring

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Net:
    """The shape of a trunk, and the way between one flat vector and named tensors."""

    width: int
    blocks: int = 6

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Names as a model of the hub would have them, in the order of the flat vector."""
        w = self.width
        inside = {"norm.weight": (w,), "up.weight": (w, w), "up.bias": (w,), "down.weight": (w, w)}
        return {
            "embed.weight": (w, PIXELS),
            **{f"blocks.{i}.{k}": v for i in range(self.blocks) for k, v in inside.items()},
            "norm.weight": (w,),
        }

    @property
    def size(self) -> int:
        """Number of parameters of a trunk."""
        return sum(map(prod, self.shapes.values()))

    @property
    def adapted(self) -> tuple[str, ...]:
        """The matrices that LoRA changes: both of every block."""
        return tuple(name for name in self.shapes if name.endswith(("up.weight", "down.weight")))

    def split(self, flat: Float[Tensor, "*E P"]) -> dict[str, Float[Tensor, "..."]]:
        """Named views of flat parameters.

        Examples
        --------
        >>> net = Net(width=4, blocks=2)
        >>> net.split(torch.zeros(3, net.size))["blocks.1.up.bias"].shape
        torch.Size([3, 4])
        """
        parts = flat.split([prod(shape) for shape in self.shapes.values()], dim=-1)
        return {
            name: part.unflatten(-1, shape)
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True)
        }

    def join(self, tensors: Tensors) -> Float[Tensor, "*E P"]:
        """The inverse of `split`.

        Examples
        --------
        >>> net = Net(width=4, blocks=1)
        >>> flat = torch.arange(float(net.size))
        >>> bool((net.join(net.split(flat)) == flat).all())
        True
        """
        return torch.cat(
            [tensors[name].flatten(-len(shape)) for name, shape in self.shapes.items()], dim=-1
        )


@dataclass(frozen=True)
class Base:
    """A pretrained trunk (flat) and the frozen heads of all tasks."""

    net: Net
    trunk: Float[Tensor, " P"]
    heads: Float[Tensor, "T 4 W"]
    offsets: Float[Tensor, "T 4"]


def features(
    net: Net, parameters: Tensors, pictures: Float[Tensor, "*E N 64"]
) -> Float[Tensor, "E N W"]:
    """The last hidden states of every network: of shared pictures, or of each one's own."""
    p = {k: tensor.mT if tensor.ndim > 2 else tensor[:, None] for k, tensor in parameters.items()}
    h: Tensor = pictures @ p["embed.weight"]
    for i in range(net.blocks):
        at = f"blocks.{i}."
        inner = _norm(h) * p[at + "norm.weight"]
        inner = torch.baddbmm(p[at + "up.bias"], inner, p[at + "up.weight"])
        h = torch.baddbmm(h, gelu(inner, approximate="tanh"), p[at + "down.weight"])
    return _norm(h) * p["norm.weight"]


def _norm(h: Float[Tensor, "E N W"]) -> Float[Tensor, "E N W"]:
    normed: Tensor = rms_norm(h, h.shape[-1:])
    return normed


def _logits(
    h: Float[Tensor, "E N W"], heads: Float[Tensor, "T 4 W"], offsets: Float[Tensor, "T 4"]
) -> Float[Tensor, "E N T 4"]:
    logits: Tensor = h @ heads.flatten(0, 1).T + offsets.flatten()
    return logits.view(*h.shape[:-1], *offsets.shape)


def _nll(logits: Float[Tensor, "E N T 4"], labels: Int[Tensor, "E N T"]) -> Float[Tensor, "E N T"]:
    return -logits.log_softmax(dim=-1).gather(-1, labels.unsqueeze(-1)).squeeze(-1)


def pretrain(
    net: Net,
    digits: Digits,
    *,
    steps: int,
    seed: int,
    learning_rate: float = 3e-4,
    batch: int = 64,
) -> Base:
    """Train a trunk and the heads of all tasks from scratch.

    Parameters
    ----------
    net, digits
        What to train, and on what.
    steps
        Of Adam, each on all tasks of one batch: few make a weak base, many a strong one.
    seed
        Of the initial weights and of the batches.
    learning_rate, batch
        Constant rate, and pictures per step.
    """
    tasks = digits.train[1].shape[1]
    random = torch.Generator().manual_seed(seed)
    start = {
        name: _initial(name, shape, net, random).unsqueeze(0) for name, shape in net.shapes.items()
    }
    heads = torch.randn(tasks * LABELS * net.width, generator=random) / sqrt(net.width)
    size, last = net.size, tasks * LABELS

    def read(flat: Tensor) -> tuple[Tensors, Tensor, Tensor]:
        trunk, heads, offsets = flat[0].split([size, last * net.width, last])
        shaped = heads.view(tasks, LABELS, net.width), offsets.view(tasks, LABELS)
        return net.split(trunk[None]), *shaped

    flat = torch.cat([net.join(start)[0], heads, torch.zeros(last)])[None]
    masks = torch.ones(1, tasks, dtype=torch.bool)
    flat = _fit(net, read, flat, masks, digits, steps, seed, learning_rate, batch)
    trained, weights, offsets = read(flat)
    return Base(net, net.join(trained)[0].clone(), weights.clone(), offsets.clone())


def _initial(name: str, shape: tuple[int, ...], net: Net, random: torch.Generator) -> Tensor:
    if name.endswith("norm.weight"):
        return torch.ones(shape)
    if name.endswith("bias"):
        return torch.zeros(shape)
    depth = (2 * net.blocks) ** -0.5 if "down" in name else 1.0
    return depth * torch.randn(shape, generator=random) / sqrt(shape[-1])


def finetune(
    base: Base,
    digits: Digits,
    experts: Sequence[Sequence[int]],
    *,
    steps: int,
    seed: int,
    learning_rate: float = 1e-3,
    batch: int = 64,
) -> Float[Tensor, "E P"]:
    """Fine-tune a copy of the trunk for each set of tasks, all parameters, heads frozen.

    Parameters
    ----------
    base, digits
        Where to start, and what to train on.
    experts
        The tasks of each: one task for an expert, several for a multitask model, whose every step
        is on all of them.
    steps, seed, learning_rate, batch
        Of Adam. The batches of an expert follow from the seed and its tasks alone.
    """
    heads = base.heads, base.offsets

    def read(flat: Tensor) -> tuple[Tensors, Tensor, Tensor]:
        return base.net.split(flat), *heads

    start = base.trunk.expand(len(experts), -1).clone()
    masks = _masks(experts, len(base.heads))
    return _fit(base.net, read, start, masks, digits, steps, seed, learning_rate, batch)


def finetune_lora(
    base: Base,
    digits: Digits,
    experts: Sequence[Sequence[int]],
    *,
    rank: int,
    steps: int,
    seed: int,
    learning_rate: float = 3e-3,
    batch: int = 64,
) -> dict[str, tuple[Float[Tensor, "E r I"], Float[Tensor, "E O r"]]]:
    """Fine-tune an adapter for each set of tasks on `Net.adapted`; the update is B A.

    Parameters
    ----------
    base, digits, experts, steps, seed, learning_rate, batch
        As for `finetune`.
    rank
        Of B A. A starts at random, differently for every expert, and B at 0; alpha = rank.

    Returns
    -------
    dict
        (A, B) of all experts by the name of the matrix.
    """
    net, w = base.net, base.net.width
    names, each = net.adapted, rank * w
    start = []
    for tasks in experts:
        random = torch.Generator().manual_seed(_stream(seed, tasks, 2))
        first = torch.randn(len(names), each, generator=random) / sqrt(w)
        start.append(torch.cat([first, torch.zeros(len(names), each)], dim=1).flatten())
    before = net.split(base.trunk.expand(len(experts), -1))

    def factors(flat: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        pairs = flat.view(len(experts), len(names), 2, each)
        return {
            name: (pairs[:, i, 0].view(-1, rank, w), pairs[:, i, 1].view(-1, w, rank))
            for i, name in enumerate(names)
        }

    def read(flat: Tensor) -> tuple[Tensors, Tensor, Tensor]:
        changed = {name: before[name] + b @ a for name, (a, b) in factors(flat).items()}
        return {**before, **changed}, base.heads, base.offsets

    masks = _masks(experts, len(base.heads))
    flat = torch.stack(start).to(base.trunk.dtype)
    return factors(_fit(net, read, flat, masks, digits, steps, seed, learning_rate, batch))


def _masks(experts: Sequence[Sequence[int]], tasks: int) -> Bool[Tensor, "E T"]:
    masks = torch.zeros(len(experts), tasks, dtype=torch.bool)
    for row, chosen in zip(masks, experts, strict=True):
        row[list(chosen)] = True
    return masks


def _stream(seed: int, tasks: Sequence[int], use: int) -> int:
    return int(np.random.SeedSequence([seed, use, *tasks]).generate_state(1)[0])


def _fit(
    net: Net,
    read: Callable[[Tensor], tuple[Tensors, Tensor, Tensor]],
    start: Float[Tensor, "E Q"],
    masks: Bool[Tensor, "E T"],
    digits: Digits,
    steps: int,
    seed: int,
    learning_rate: float,
    batch: int,
) -> Float[Tensor, "E Q"]:
    """Adam on the mean cross-entropy of every network's tasks; losses of networks are summed."""
    pictures, labels = digits.train
    pictures = pictures.to(start.dtype)
    streams = [
        np.random.default_rng(_stream(seed, row.nonzero()[:, 0].tolist(), 3)) for row in masks
    ]
    drawn = torch.from_numpy(
        np.stack([stream.integers(len(labels), size=(steps, batch)) for stream in streams])
    )
    share = masks / masks.sum(dim=1, keepdim=True) / batch
    flat = start.clone().requires_grad_()
    optimizer = torch.optim.Adam([flat], lr=learning_rate, fused=True)
    for step in range(steps):
        chosen = drawn[:, step]
        parameters, heads, offsets = read(flat)
        h = features(net, parameters, pictures[chosen])
        nll = _nll(_logits(h, heads, offsets), labels[chosen])
        loss = (nll * share[:, None].to(nll.dtype)).sum()
        (flat.grad,) = torch.autograd.grad(loss, flat)
        optimizer.step()
    return flat.detach()


class Scores(NamedTuple):
    """Share of right answers, and mean negative log-likelihood in nats."""

    accuracy: Float[Tensor, "E tasks"]
    nll: Float[Tensor, "E tasks"]


@torch.no_grad()
def score(
    base: Base,
    trunks: Float[Tensor, "E P"],
    part: Part,
    tasks: Sequence[int] | None = None,
) -> Scores:
    """How well every network answers in every task.

    Parameters
    ----------
    base
        Whose heads answer.
    trunks
        Flat parameters, such as many candidates of a merge.
    part
        Pictures and labels.
    tasks
        Which tasks, in this order; ``None``: all.
    """
    pictures, labels = part
    chosen = list(range(labels.shape[1]) if tasks is None else tasks)
    heads, offsets, labels = base.heads[chosen], base.offsets[chosen], labels[:, chosen]
    at_once = max(1, _SCORED // (len(pictures) * base.net.width))
    right, nll = [], []
    for some in trunks.to(base.trunk.dtype).split(at_once):
        h = features(base.net, base.net.split(some), pictures.to(some.dtype))
        logits = _logits(h, heads, offsets)
        right.append((logits.argmax(dim=-1) == labels).double().mean(dim=1))
        nll.append(_nll(logits, labels.expand(len(some), -1, -1)).double().mean(dim=1))
    return Scores(torch.cat(right), torch.cat(nll))
