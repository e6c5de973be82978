"""Learn the next task with gradients that memories of the old ones restrict.

Liu, Ye, Stone, Liu: "Fine-Grained Gradient Restriction: A Simple Approach for Mitigating
Catastrophic Forgetting", arXiv 2410.00868, and its ancestors: GEM (1706.08840), A-GEM (1812.00420),
MEGA (1909.11763). A few samples of every past task are kept. Before each step the gradient g is
replaced by the nearest direction z that, to first order, raises no remembered loss: z.m >= 0 for
the gradient m of every group of memories, in every block of parameters.

    gem      a constraint per past task and group (``data_groups``), in blocks (``grain``)
    agem     one constraint, from a batch of memories of all past tasks, in blocks too
    mega1/2  g and the memories' gradient mixed by their losses
    replay   g plus the memories' gradient
    none     g

The guarantee is about z: plain SGD steps along it, AdamW along a preconditioned and averaged
version of it, for which the guarantee does not hold though it usually helps.
"""

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from zeitgeist.continual.closed_forms import mega_one, mega_two
from zeitgeist.continual.duals import Solver
from zeitgeist.continual.grains import Grain, Partition, partition
from zeitgeist.continual.memory import Memory
from zeitgeist.continual.restriction import multipliers
from zeitgeist.errors import InputInvalid
from zeitgeist.training.gradient_seam import gradients, undisturbed

__all__ = ["GradientRestriction", "RestrictionOptions", "Step"]

_PAPER, _GEM = "arXiv 2410.00868", "arXiv 1706.08840"
Method = Literal["gem", "agem", "mega1", "mega2", "replay", "none"]


def _told(meaning: str, source: str) -> dict[str, str]:
    return {"meaning": meaning, "source": source}


@dataclass(frozen=True)
class RestrictionOptions:
    """What restricts, how finely, how strongly, and what is remembered."""

    method: str = field(
        default="gem", metadata=_told("gem, agem, mega1, mega2, replay or none", _PAPER)
    )
    grain: Grain = field(
        default="neuron",
        metadata=_told(
            "blocks restricted each on its own: model (GEM), layer, tensor, neuron, head, function",
            f"{_PAPER}, parameter-wise constraints; which of them: ours",
        ),
    )
    data_groups: int = field(
        default=1,
        metadata=_told("groups of memories per past task, a constraint each", f"{_GEM}: 1"),
    )
    strength: float = field(
        default=0.0,
        metadata=_told(
            "memory strength: least multiplier of a constraint",
            f"{_GEM}: 0 is the problem as stated",
        ),
    )
    memory: int = field(
        default=256, metadata=_told("samples kept of every task", f"{_GEM}, its script")
    )
    sampler: str = field(
        default="ring", metadata=_told("which are kept: ring, reservoir or balanced", _GEM)
    )
    per_step: int = field(
        default=0,
        metadata=_told(
            "memories drawn for a step, per group (agem, mega, replay: in all); 0: all", _GEM
        ),
    )
    solver: str = field(
        default="exact",
        metadata=_told("exact (active set) or sweeps (coordinate descent)", "ours"),
    )
    sweeps: int = field(default=30, metadata=_told("how many, of the solver sweeps", "ours"))
    at_once: int = field(
        default=0,
        metadata=_told(
            "entries of memory gradients held at once, with more passes instead; 0: all", "ours"
        ),
    )
    seed: int = field(default=0, metadata=_told("of what is remembered and drawn", "ours"))

    def __post_init__(self) -> None:
        for name, known in (("method", Method), ("solver", Solver)):
            if getattr(self, name) not in get_args(known):
                raise InputInvalid(
                    f"there is no {name} {getattr(self, name)!r}",
                    mend=f"give one of {', '.join(get_args(known))}",
                )
        for name, least in (("data_groups", 1), ("sweeps", 1), ("per_step", 0), ("at_once", 0)):
            if getattr(self, name) < least:
                raise InputInvalid(
                    f"{name} is {getattr(self, name)}", mend=f"give at least {least}"
                )
        if not 0 <= self.strength < math.inf:
            raise InputInvalid(f"strength is {self.strength}", mend="give at least 0")


@dataclass(frozen=True)
class Step:
    """What restricting did to one gradient.

    ``active``: share of constraints that bind; ``degrees``: angle between g and z; ``residual``:
    the worst violation left, -z.m / (|z| |m|); ``exact``: whether the solver was done;
    ``evaluations``: memory samples that went backward; ``binding``: per parameter, the share of its
    constraints that bind; ``violated``: the share that g itself violates, <g, m> < 0.
    """

    active: float = 0.0
    degrees: float = 0.0
    residual: float = 0.0
    exact: bool = True
    evaluations: int = 0
    binding: Mapping[str, float] = field(default_factory=dict)
    violated: Mapping[str, float] = field(default_factory=dict)


class GradientRestriction:
    """Restrict the gradients of a model by memories of its past tasks (arXiv 2410.00868).

    Between backward and step call `restrict`; after the step `remember` what the batch was; after a
    task `end_task`. In transformers' Trainer, `zeitgeist.training.gradient_seam.GradientSeam` calls
    `restrict`. Under mixed precision unscale gradients before; accumulate before; clip before or
    after. Only parameters whose ``.grad`` is not None are restricted, the others stay as they are.

    Parameters
    ----------
    model
        Any module. What requires gradients now is what is restricted.
    loss
        ``loss(model, samples)`` gives the mean loss of a list of remembered samples, as a tensor.
    options
        None: the defaults.
    heads
        For the grain ``head``, as `zeitgeist.continual.grains.heads_of` gives it.

    Returns
    -------
    GradientRestriction
        With ``memory``, the number of the current ``task`` and ``partition``.

    Raises
    ------
    InputInvalid
        Nothing is trained, parameters are sharded, an option does not fit, or, in `restrict`, a
        gradient is not finite: the step must then be left out, nothing was changed.

    Examples
    --------
    >>> net = torch.nn.Linear(2, 1, bias=False)
    >>> def loss(net, samples):
    ...     x, y = (torch.stack(each) for each in zip(*samples))
    ...     return ((net(x) - y) ** 2).mean()
    >>> guard = GradientRestriction(net, loss, RestrictionOptions(memory=4))
    >>> guard.remember([(torch.tensor([1.0, 0.0]), torch.tensor([1.0]))])
    >>> guard.end_task()
    >>> net.weight.grad = torch.tensor([[1.0, 1.0]])  # raises the first weight's remembered loss?
    >>> with torch.no_grad():
    ...     _ = net.weight.zero_()  # the memory wants it to grow, so a step down is not allowed
    >>> guard.restrict().active, net.weight.grad.tolist()
    (1.0, [[0.0, 1.0]])
    """

    def __init__(
        self,
        model: torch.nn.Module,
        loss: Callable[[Any, list[Any]], Tensor],
        options: RestrictionOptions | None = None,
        *,
        heads: Mapping[str, int] | None = None,
    ) -> None:
        self.model, self.loss = model, loss
        self.options = options or RestrictionOptions()
        self.parameters = {n: p for n, p in model.named_parameters() if p.requires_grad}
        for name, parameter in self.parameters.items():
            if hasattr(parameter, "full_tensor"):  # FSDP's
                raise InputInvalid(
                    f"the parameter {name!r} is sharded over processes",
                    mend="train with data parallelism, or restrict LoRA parameters on one device",
                )
        self.memory = Memory(self.options.memory, self.options.sampler, seed=self.options.seed)
        self.partition: Partition = partition(self.parameters, self.options.grain, heads=heads)
        self.task = 0

    def remember(self, samples: Sequence[Any], classes: Sequence[Hashable] | None = None) -> None:
        """Show samples of the current task to the memory. They restrict only later tasks.

        Parameters
        ----------
        samples
            What ``loss`` takes a list of.
        classes
            Of every sample, for the sampler ``balanced``.
        """
        self.memory.add(self.task, samples, classes)

    def end_task(self) -> None:
        """From now on another task is learned."""
        self.task += 1

    def restrict(self, loss: float | None = None) -> Step:
        """Replace every ``.grad`` by the restricted direction.

        Parameters
        ----------
        loss
            Of the current batch; MEGA weighs by it.
        """
        chosen = self.options
        live = [i for i, p in enumerate(self.parameters.values()) if p.grad is not None]
        self._check(live)
        past = [task for task in self.memory.tasks if task != self.task]
        if chosen.method == "none" or not past or not live:
            return Step()
        if chosen.method == "gem":
            slices = [
                group
                for task in past
                for group in self.memory.groups(task, chosen.data_groups, chosen.per_step or None)
            ]
        else:
            count = chosen.per_step or len(self.memory)
            slices = [self.memory.draw(count, exclude=self.task)]
        if chosen.method in ("gem", "agem"):
            return self._project(slices, live)
        return self._mix(slices[0], live, loss)

    def _check(self, live: Sequence[int]) -> None:
        named = list(self.parameters.items())
        for i in live:
            name, parameter = named[i]
            if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
                raise InputInvalid(
                    f"the gradient of {name!r} holds values that are not numbers",
                    mend="leave this step out; lower the learning rate if it happens often",
                )

    def _memory_gradients(
        self, slices: Sequence[list[Any]], which: Sequence[int]
    ) -> tuple[list[Tensor], list[float]]:
        """A tensor (k, *shape) per parameter of ``which``, and the loss of every slice."""
        parameters = list(self.parameters.values())
        own = [parameters[i] for i in which]
        made = [p.new_empty((len(slices), *p.shape)) for p in own]
        losses = []
        for s, samples in enumerate(slices):
            with undisturbed(self.model), torch.enable_grad():
                loss = self.loss(self.model, samples)
                found = gradients(loss, own)
            losses.append(float(loss.detach()))
            for row, gradient in zip(made, found, strict=True):
                row[s] = gradient
        return made, losses

    def _chunks(self, live: Sequence[int], slices: int) -> list[list[int]]:
        """Parameters whose memory gradients are held together."""
        if not self.options.at_once:
            return [list(live)]
        parameters, room = list(self.parameters.values()), self.options.at_once
        chunks: list[list[int]] = [[]]
        for i in live:
            size = parameters[i].numel() * slices
            if chunks[-1] and size > room:
                chunks.append([])
                room = self.options.at_once
            chunks[-1].append(i)
            room -= size
        return chunks

    def _grads(self, which: Sequence[int]) -> list[Tensor]:
        parameters = list(self.parameters.values())
        return [g for i in which if (g := parameters[i].grad) is not None]

    def _project(self, slices: list[list[Any]], live: Sequence[int]) -> Step:
        chunks = self._chunks(live, len(slices))
        held: list[Tensor] = []
        found = []
        for chunk in chunks:
            held, _ = self._memory_gradients(slices, chunk)
            found.append(self.partition.grams(self._grads(chunk), held, chunk))
        gram, cross, square = (torch.stack(each).sum(0) for each in zip(*found, strict=True))
        solver: Any = self.options.solver
        result = multipliers(
            gram,
            cross,
            square,
            self.options.strength,
            solver=solver,
            sweeps=self.options.sweeps,
            always=False,
        )
        if bool((result.v > 0).any()):
            for chunk in chunks:
                if len(chunks) > 1:  # random state and buffers are as before, so are gradients
                    held, _ = self._memory_gradients(slices, chunk)
                grads = self._grads(chunk)
                for grad, z in zip(
                    grads, self.partition.add(grads, held, result.v, chunk), strict=True
                ):
                    grad.copy_(z)
        passes = 2 if len(chunks) > 1 and bool((result.v > 0).any()) else 1
        known = list(self.parameters)
        named = [known[i] for i in live]
        shares = torch.stack([result.v > 0, cross < 0]).double().mean(dim=-1)
        own = [shares[:, self.partition.pieces[i].ids.flatten()].mean(dim=-1) for i in live]
        both = torch.stack(own, dim=-1).tolist()  # one wait for the device, not one per parameter
        binding, violated = (dict(zip(named, each, strict=True)) for each in both)
        return Step(
            float(result.active),
            math.degrees(math.acos(float(result.cosine))),
            float(result.residual),
            bool(result.converged),
            sum(map(len, slices)) * len(chunks) * passes,
            binding,
            violated,
        )

    def _mix(self, samples: list[Any], live: Sequence[int], loss: float | None) -> Step:
        """g and the gradient r of a batch of memories: MEGA and replay."""
        if self.options.method != "replay" and loss is None:
            raise InputInvalid(
                f"{self.options.method} weighs by losses and the current one is not known",
                mend="call restrict(loss=...)",
            )
        held, (memory_loss,) = self._memory_gradients([samples], live)
        grads = self._grads(live)
        references = [m[0] for m in held]
        gg, rr, gr = (
            torch.tensor(_inner(*two), dtype=torch.float64)
            for two in ((grads, grads), (references, references), (grads, references))
        )
        if self.options.method == "replay":
            a, b = 1.0, 1.0
        else:
            now, then = (torch.tensor(x, dtype=torch.float64) for x in (loss, memory_loss))
            mix = (
                mega_one(now, then)
                if self.options.method == "mega1"
                else mega_two(gg, rr, gr, now, then)
            )
            a, b = float(mix.a), float(mix.b)
        for grad, reference in zip(grads, references, strict=True):
            grad.copy_(a * grad + b * reference)
        squared = float(a * a * gg + 2 * a * b * gr + b * b * rr)
        size = math.sqrt(max(0.0, squared * float(gg)))
        cosine = float(a * gg + b * gr) / size if size > 0 else 1.0
        return Step(
            degrees=math.degrees(math.acos(max(-1.0, min(1.0, cosine)))), evaluations=len(samples)
        )

    def state(self) -> dict[str, Any]:
        """The memory and the number of the task: JSON, where samples are JSON values."""
        return {"task": self.task, "memory": self.memory.state()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` gave."""
        self.task = int(state["task"])
        self.memory.restore(state["memory"])


def _inner(one: Sequence[Tensor], other: Sequence[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(one, other, strict=True))
