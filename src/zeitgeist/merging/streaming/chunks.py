"""Runs of entries on a few threads: cutting, loading, random draws, progress."""

import math
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import Float, Float64, Shaped, UInt32
from numpy.typing import DTypeLike
from tqdm import tqdm

from zeitgeist.merging.sparsify import check_window
from zeitgeist.merging.streaming.draws import draws, words_shape
from zeitgeist.merging.streaming.kernels import BLOCK, Rule, finite, magnitudes
from zeitgeist.merging.streaming.ranks import spread_by_rank
from zeitgeist.merging.streaming.sources import Source, check_finite, working_dtype
from zeitgeist.merging.streaming.steps import Step

CHUNK = 1 << 18  # entries; half as many cost 8 % more in calls, twice as many leave the caches

# How numpy holds the entries of a stack, and the bits of their exponents by their size
_NUMPY = {torch.bfloat16: np.uint16, torch.float32: np.float32, torch.float64: np.float64}
_EXPONENT: dict[int, np.unsignedinteger[Any]] = {
    2: np.uint16(0x7F80),
    4: np.uint32(0x7F800000),
    8: np.uint64(0x7FF0000000000000),
}

Job = TypeVar("Job")
R = TypeVar("R")


class Run(NamedTuple):
    """Entries ``start`` to ``stop`` of the flattened tensor of a step."""

    step: Step
    start: int
    stop: int

    @property
    def blocks(self) -> int:
        """Blocks of 4096 entries that the run touches."""
        return -(-(self.stop - self.start) // BLOCK)


class Chunks:
    """Cuts tensors into runs and works on several at a time, inside a ``with`` block.

    Parameters
    ----------
    seed
        Seed of DARE's and DELLA's masks.
    threads
        Worker threads; the kernels release the interpreter lock.
    progress
        Whether to draw progress bars on stderr; None: only on a terminal.
    size
        Entries of a run, a multiple of 4096.
    """

    def __init__(
        self, *, seed: int = 0, threads: int = 1, progress: bool | None = None, size: int = CHUNK
    ) -> None:
        self.seed = seed
        self.size = size
        self.threads = threads
        self._hidden = None if progress is None else not progress
        self._local = threading.local()
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> "Chunks":
        # A run is too short for torch's own threads, which would spin beside ours.
        self._torch_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        if self.threads > 1:
            self._pool = ThreadPoolExecutor(self.threads)
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None
        torch.set_num_threads(self._torch_threads)

    def bar(self, total: int, label: str, unit: str) -> Any:
        """A progress bar with rate and time left."""
        return tqdm(total=total, desc=label, unit=unit, unit_scale=True, disable=self._hidden)

    def runs(self, step: Step) -> list[Run]:
        """A tensor cut into whole blocks, or into whole rows where the method looks along rows."""
        size = self.size
        if across(step):
            size = step.entries
        elif is_row_local(step):
            size = max(1, size // max(step.columns, 1)) * step.columns
        return [Run(step, i, min(i + size, step.entries)) for i in range(0, step.entries, size)]

    def map(self, work: Callable[[Job], R], jobs: Iterable[Job]) -> Iterator[R]:
        """``work`` on every job, on the worker threads, results in the order of the jobs."""
        return map(work, jobs) if self._pool is None else self._bounded(work, jobs)

    def _bounded(self, work: Callable[[Job], R], jobs: Iterable[Job]) -> Iterator[R]:
        # An error or Ctrl-C must not leave workers writing behind the caller's back.
        assert self._pool is not None
        futures = [self._pool.submit(work, job) for job in jobs]
        try:
            for future in futures:
                yield future.result()
        finally:
            for future in futures:
                future.cancel()
            for future in futures:
                if not future.cancelled():
                    future.exception()

    def map_runs(self, work: Callable[[Run], R], steps: Sequence[Step], label: str) -> list[R]:
        """``work`` on every run of every step; with a progress bar when there are several steps."""
        runs = [run for step in steps for run in self.runs(step)]
        if len(steps) < 2:
            return list(self.map(work, runs))
        results = []
        with self.bar(sum(step.entries for step in steps), label, " weights") as bar:
            for run, result in zip(runs, self.map(work, runs), strict=True):
                results.append(result)
                bar.update(run.stop - run.start)
        return results

    def scratch(self, use: str, shape: tuple[int, ...], dtype: DTypeLike) -> np.ndarray:
        """Memory of this thread, not cleared; the next call for the same use hands it out again.

        Fresh memory for every run would be given back to the system and be faulted in anew page by
        page: more than the arithmetic costs.
        """
        held: dict[str, np.ndarray] = self._local.__dict__.setdefault("scratch", {})
        nbytes = math.prod(shape) * np.dtype(dtype).itemsize
        if use not in held or held[use].nbytes < nbytes:
            held[use] = np.empty(nbytes, np.uint8)
        return held[use][:nbytes].view(dtype).reshape(shape)

    def load(self, run: Run) -> Float[np.ndarray, "rows entries"]:
        """The experts' entries and behind them the base's (zeros without one), in one buffer.

        The buffer belongs to the thread and is filled again by its next load.

        Raises
        ------
        CheckpointInvalid
            An input holds NaN or infinity.
        """
        dtype = working_dtype(_sources(run.step))
        return self._filled(run, np.float64 if dtype == torch.float64 else np.float32)

    def pack(self, run: Run) -> Shaped[np.ndarray, "rows entries"]:
        """The same as the kernels take it: bfloat16 stays as its bits, in uint16."""
        dtype = working_dtype(_sources(run.step))
        return self._filled(run, _NUMPY[dtype])

    def _filled(self, run: Run, dtype: DTypeLike) -> Shaped[np.ndarray, "rows entries"]:
        step, sources = run.step, _sources(run.step)
        stack = self.scratch("stack", (len(step.experts) + 1, run.stop - run.start), dtype)
        rows = torch.from_numpy(stack)
        if stack.dtype == np.uint16:
            rows = rows.view(torch.bfloat16)
        for row, source in zip(rows, sources, strict=False):
            source.read(run.start, run.stop, row)
        if step.base is None:
            stack[-1] = 0
        exponent = _EXPONENT[stack.itemsize]
        if not finite(stack.view(exponent.dtype), exponent):
            for row, source in zip(rows, sources, strict=False):
                check_finite(source, row.double().numpy(), step.name)
        return stack

    def chance(
        self, run: Run, rule: Rule, stack: Shaped[np.ndarray, "rows entries"]
    ) -> tuple[UInt32[np.ndarray, "experts _"], Float64[np.ndarray, "experts _"]]:
        """Random draws of a run and, for DELLA, the chance of each entry to be kept."""
        step, n = run.step, len(run.step.experts)
        if not rule.random:
            return np.empty((n, 0), np.uint32), np.empty((n, 0))
        words = self.scratch("draws", words_shape(n, run.start, run.stop), np.uint64)
        drawn = draws(self.seed, step.positions, step.name, run.start, run.stop, words)
        if step.rule is None or step.rule.sparsify != "ranked":
            return drawn, np.empty((n, 0))
        return drawn, self._ranked(step, rule, stack)

    def _ranked(
        self, step: Step, rule: Rule, stack: Shaped[np.ndarray, "rows entries"]
    ) -> Float64[np.ndarray, "experts entries"]:
        """DELLA's keep probabilities; `keep_probabilities` says what they are."""
        columns, shape = step.columns, (len(step.experts), stack.shape[1])
        widths = np.array(step.per_expert("epsilon")) * (2 if step.compat else 1)
        sizes = self.scratch("sizes", shape, np.float32)
        chances = self.scratch("chances", shape, np.float64)
        magnitudes(stack, rule, sizes)
        for row, chance, density, width in zip(sizes, chances, rule.keep, widths, strict=True):
            if density >= 1 or density <= 0 or columns < 2:
                chance[:] = min(max(density, 0.0), 1.0)
                continue
            check_window(float(density), float(width))
            ramp = (density - width / 2) + width * (np.arange(columns) / (columns - 1))
            bits = row.view(np.uint32).reshape(-1, columns)
            spread_by_rank(bits, ramp, chance, self.scratch("ranks", bits.shape, np.uint64))
        return chances


def is_row_local(step: Step) -> bool:
    """Whether a method looks at whole rows, so that a run may not cut one."""
    ranked = step.rule is not None and step.rule.sparsify == "ranked"
    return ranked or getattr(step.options, "filter_wise", False) or by_rows(step)


def across(step: Step) -> bool:
    """Whether a method's rows run across the tensor, so that it must be seen whole.

    nuslerp's along the first dimension, and mergekit's DELLA, which ranks along the second.
    """
    if by_rows(step):
        return bool(step.options.nuslerp_row_wise)
    ranked = step.rule is not None and step.rule.sparsify == "ranked"
    return ranked and step.compat is not None and len(step.shape) > 2


def by_rows(step: Step) -> bool:
    """Whether nuslerp turns every row by itself."""
    return not getattr(step.options, "nuslerp_flatten", True)


def _sources(step: Step) -> list[Source]:
    return [*step.experts, *([step.base] if step.base else [])]
