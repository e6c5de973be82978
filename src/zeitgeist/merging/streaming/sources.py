"""Where the entries of one input tensor come from, a run of the flattened tensor at a time.

A source never holds more than its own small factors in memory: a stored tensor is read piece by
piece, a LoRA update is multiplied out for the rows asked for, a vocabulary in another order is
gathered row by row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from zeitgeist.errors import CheckpointInvalid


@runtime_checkable
class Source(Protocol):
    """One input of one output tensor.

    ``is_delta`` says that the entries are already a difference from the base. ``exact`` is the
    narrowest of bfloat16, float32 and float64 that holds every entry unrounded.
    """

    @property
    def is_delta(self) -> bool: ...
    @property
    def exact(self) -> torch.dtype: ...
    def read(self, start: int, stop: int, out: Tensor) -> None:
        """Write entries ``start`` to ``stop`` of the flattened tensor into ``out``."""


@runtime_checkable
class Readable(Protocol):
    """Something that tensors can be read from by name, piece by piece: a `Checkpoint`."""

    def read(self, name: str, start: int, out: Tensor) -> None:
        """Fill ``out`` with the entries from ``start`` on."""

    def location(self, name: str) -> tuple[Path, int, int]:
        """The file of a tensor, and where in it the tensor starts and stops."""


@dataclass(frozen=True)
class OnDisk:
    """A tensor in a file."""

    checkpoint: Readable
    name: str
    dtype: torch.dtype
    is_delta: bool = False

    @property
    def exact(self) -> torch.dtype:
        return _holding(self.dtype)

    def read(self, start: int, stop: int, out: Tensor) -> None:
        self.checkpoint.read(self.name, start, out)


@dataclass(frozen=True)
class Stored:
    """A tensor in memory, flattened."""

    flat: Shaped[Tensor, " entries"]
    is_delta: bool = False

    @property
    def exact(self) -> torch.dtype:
        return _holding(self.flat.dtype)

    def read(self, start: int, stop: int, out: Tensor) -> None:
        out.copy_(self.flat[start:stop])


@dataclass(frozen=True)
class Gathered:
    """The rows of a stored matrix in another order: row r is ``rows[r]`` of the matrix.

    A row of -1 has no origin here and is read from ``fill``: row r there. ``file`` is where the
    matrix lies, for errors.
    """

    matrix: Shaped[Tensor, "old columns"]
    rows: Int64[np.ndarray, " new"]
    fill: dict[int, Tensor] = field(default_factory=dict)
    file: str = ""
    is_delta: bool = False

    @property
    def exact(self) -> torch.dtype:
        return torch.float64 if self.matrix.dtype == torch.float64 else torch.float32

    def read(self, start: int, stop: int, out: Tensor) -> None:
        columns = self.matrix.shape[1]
        first, last = start // columns, math.ceil(stop / columns)
        rows = torch.from_numpy(self.rows[first:last])
        block = self.matrix[rows.clamp(min=0)].to(out.dtype)
        for row in torch.nonzero(rows < 0).flatten().tolist():
            block[row] = self.fill[first + row].to(out.dtype)
        out.copy_(block.flatten()[start - first * columns : stop - first * columns])


@dataclass(frozen=True)
class LowRank:
    """The update scale * B A of a LoRA adapter, multiplied out row by row."""

    a: Shaped[Tensor, "rank columns"]
    b: Shaped[Tensor, "rows rank"]
    scale: float
    is_delta: bool = True
    exact: torch.dtype = torch.float64

    def read(self, start: int, stop: int, out: Tensor) -> None:
        columns = self.a.shape[1]
        first, last = start // columns, math.ceil(stop / columns)
        block = (self.scale * self.b[first:last].double()) @ self.a.double()
        out.copy_(block.flatten()[start - first * columns : stop - first * columns])


@dataclass(frozen=True)
class Unchanged:
    """The update of a tensor that an adapter does not touch."""

    is_delta: bool = True
    exact: torch.dtype = torch.bfloat16

    def read(self, start: int, stop: int, out: Tensor) -> None:
        out.zero_()


@dataclass(frozen=True)
class Applied:
    """A base tensor with an update added, for methods that work on whole tensors."""

    base: Source
    update: Source
    is_delta: bool = False
    exact: torch.dtype = torch.float64

    def read(self, start: int, stop: int, out: Tensor) -> None:
        self.base.read(start, stop, out)
        update = torch.empty_like(out)
        self.update.read(start, stop, update)
        out += update


def origin_of(source: Source) -> str:
    """The file that a source is read from, as far as it is one."""
    if isinstance(source, Applied):
        return origin_of(source.base)
    if isinstance(source, OnDisk):
        return str(source.checkpoint.location(source.name)[0])
    return source.file if isinstance(source, Gathered) else ""


def check_finite(source: Source, values: Shaped[np.ndarray, " entries"], name: str) -> None:
    """Refuse NaN and infinity: a trim would drop them in silence, a norm would spread them.

    Raises
    ------
    CheckpointInvalid
        Names the tensor and its file.
    """
    if not np.isfinite(values).all():
        what = source.name if isinstance(source, OnDisk) else name
        raise CheckpointInvalid(
            f"the tensor {what!r} holds NaN or infinity",
            origin=origin_of(source),
            mend="the training that made it diverged, or the file is damaged; use another one",
        )


def _holding(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.bfloat16, torch.float64) else torch.float32


def working_dtype(sources: Sequence[Source]) -> torch.dtype:
    """The narrowest of bfloat16, float32 and float64 that holds every entry unrounded."""
    return max((source.exact for source in sources), key=lambda dtype: dtype.itemsize)
