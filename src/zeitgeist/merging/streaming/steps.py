"""The unit of work of a merge: one output tensor, its inputs and its method."""

import math
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from zeitgeist.merging.methods import METHODS, Compat, TaskVectorRule, task_vector_rule
from zeitgeist.merging.streaming.sources import Source


@dataclass(frozen=True)
class Step:
    """One output tensor: where its inputs come from and what is done with them.

    ``positions`` are the experts' places in the recipe: what their random masks are keyed by.
    ``options`` come from `make_options`; an option that may differ from model to model can be a
    tuple. ``weights_given`` decides an unset lambda; ``scale`` multiplies the update (LiNeS).
    ``method`` is a name of `METHODS`; without ``options`` the one expert is taken as it is.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    method: str
    experts: tuple[Source, ...]
    positions: tuple[int, ...] = (0,)
    base: Source | None = None
    options: Any = None
    weights: tuple[float, ...] = ()
    weights_given: bool = False
    scale: float = 1.0
    compat: Compat = None

    @property
    def entries(self) -> int:
        """How many numbers the tensor has."""
        return math.prod(self.shape)

    @property
    def columns(self) -> int:
        """Length of the last dimension: what DELLA ranks within."""
        return self.shape[-1] if self.shape else 1

    @property
    def rule(self) -> TaskVectorRule | None:
        """What a method of the task-vector family does here; None for the other families."""
        if self.options is None or METHODS[self.method].family != "task_vectors":
            return None
        return task_vector_rule(
            self.method, self.options, weights_given=self.weights_given, compat=self.compat
        )

    def per_expert(self, option: str, default: float = 0.0) -> tuple[float, ...]:
        """An option's value for each expert."""
        value = getattr(self.options, option, default)
        return value if isinstance(value, tuple) else (value,) * len(self.experts)


@runtime_checkable
class Sink(Protocol):
    """Where finished entries go: a `CheckpointWriter`, or the tensors of a live model."""

    @property
    def pending(self) -> frozenset[str]:
        """Names of the tensors that are still to be written."""

    def write(self, name: str, start: int, values: Tensor) -> None:
        """Take the entries of a flattened tensor from ``start`` on; they are gone afterwards."""

    def done(self, name: str) -> None:
        """All entries of a tensor have been written."""


@dataclass(frozen=True)
class Tensors:
    """A sink in memory: fills tensors that exist already."""

    tensors: dict[str, Tensor]

    @property
    def pending(self) -> frozenset[str]:
        return frozenset(self.tensors)

    def write(self, name: str, start: int, values: Tensor) -> None:
        flat = self.tensors[name].detach().view(-1)
        flat[start : start + values.numel()] = values

    def done(self, name: str) -> None:
        """Nothing remains to be done."""
