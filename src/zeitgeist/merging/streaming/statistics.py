"""Numbers of a whole tensor, or of a whole model, that a merge must know before it writes.

* Order statistics (what trimming needs) come from counting the float32 bit patterns of |d|: no
  sort, no flattened copy. A sample predicts a window of patterns around each; one pass counts
  what lies in the windows and above them, and if a window holds its rank the value is exact. If
  not, a pass counts all patterns by their upper 16 bits and another those of the right bin.
* Sums are taken per block of 4096 entries and added exactly (`math.fsum`), so that they do not
  depend on chunks or threads.
"""

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32, Float64, Int64, Integer

from zeitgeist.merging.streaming import kernels
from zeitgeist.merging.streaming.chunks import Chunks, Run
from zeitgeist.merging.streaming.histogram import (
    COARSE_BINS,
    COARSE_BITS,
    count_coarse,
    count_window,
    descend,
)
from zeitgeist.merging.streaming.kernels import Rule
from zeitgeist.merging.streaming.steps import Step

_SAMPLE = 1 << 15  # entries that are always looked at; of larger tensors one in 32, up to
_LARGEST_SAMPLE = 1 << 18
_RUNS = (16, 256)  # of a sample: a larger tensor differs more from place to place
_WIDEST = 1 << 21  # bit patterns of a window: a quarter of an octave
_INFINITY = 0x7F800000


@dataclass(frozen=True)
class _Window:
    """Bit patterns of one row that are counted one by one."""

    row: int
    lowest: int
    width: int


def order_statistics(
    chunks: Chunks, steps: Sequence[Step], rule: Rule, *ranks: Sequence[int]
) -> Float32[np.ndarray, "ranks rows"]:
    """The ``ranks[k][i]``-th largest magnitude of expert i's delta over all ``steps``.

    Where the rule asks for variances there is one row: the variances across experts.
    """
    rows, wanted = len(ranks[0]), [(i, rank) for each in ranks for i, rank in enumerate(each)]
    total = sum(step.entries for step in steps)
    sample = _sampled(chunks, steps, rule, rows, total)
    if sum(part.shape[1] for part in sample) == total:
        everything = np.sort(np.concatenate(sample, axis=1), axis=1)
        return np.array([[row[-rank] for row, rank in zip(everything, each, strict=True)]
                         for each in ranks])  # fmt: skip
    windows = [_predicted(i, [part[i] for part in sample], rank / total) for i, rank in wanted]
    found = _within(chunks, steps, rule, rows, windows, [rank for _, rank in wanted])
    if missed := [place for place, value in enumerate(found) if value < 0]:
        coarse = _coarse(chunks, steps, rule, rows)
        bins = [descend(coarse[wanted[place][0]], wanted[place][1])[0] for place in missed]
        exact = [
            _Window(wanted[place][0], coarse_bin << COARSE_BITS, 1 << COARSE_BITS)
            for place, coarse_bin in zip(missed, bins, strict=True)
        ]
        again = _within(chunks, steps, rule, rows, exact, [wanted[place][1] for place in missed])
        for place, value in zip(missed, again, strict=True):
            found[place] = value
    return np.array(found, np.uint32).view(np.float32).reshape(len(ranks), rows)


def _sampled(
    chunks: Chunks, steps: Sequence[Step], rule: Rule, rows: int, total: int
) -> list[Float32[np.ndarray, "rows _"]]:
    """Magnitudes of runs that lie evenly over all entries; of a small tensor all magnitudes."""
    if total <= _SAMPLE:
        runs = [run for step in steps for run in chunks.runs(step)]
    else:
        entries = min(max(total // 32, _SAMPLE), _LARGEST_SAMPLE)
        many = min(max(total >> 20, _RUNS[0]), _RUNS[1])
        length = entries // many
        starts = iter([(2 * i + 1) * total // (2 * many) for i in range(many)])
        runs, start, before = [], next(starts, None), 0
        for step in steps:
            while start is not None and start < before + step.entries:
                own = start - before
                runs.append(Run(step, own, min(own + length, step.entries)))
                start = next(starts, None)
            before += step.entries
    return list(chunks.map(lambda run: _magnitudes(chunks, run, rule, rows).copy(), runs))


def _predicted(row: int, parts: Sequence[Float32[np.ndarray, " _"]], share: float) -> _Window:
    """Where the magnitude probably lies that a share of all entries reaches or exceeds.

    Entries of a run are alike, so that the error comes from the spread between runs.
    """
    everything = np.sort(np.concatenate(parts))
    size = len(everything)
    middle = everything[max(0, size - max(1, round(share * size)))]
    shares = [np.count_nonzero(part >= middle) / len(part) for part in parts]
    spread = max(float(np.std(shares)), math.sqrt(share * (1 - share) * len(parts) / size))
    slack = 5 * spread / math.sqrt(len(parts)) + 2 / size
    low, high = math.ceil((share + slack) * size), math.floor((share - slack) * size)
    first = int(everything[size - low].view(np.uint32)) if low <= size else 0
    last = int(everything[size - high].view(np.uint32)) + 1 if high >= 1 else _INFINITY
    return _Window(row, first, last - first)


def _within(
    chunks: Chunks,
    steps: Sequence[Step],
    rule: Rule,
    rows: int,
    windows: Sequence[_Window],
    ranks: Sequence[int],
) -> list[int]:
    """The bits of each rank's magnitude; -1 where it lies outside its window."""
    if any(window.width > _WIDEST for window in windows):
        narrow = [window for window in windows if window.width <= _WIDEST]
        kept = [rank for rank, w in zip(ranks, windows, strict=True) if w.width <= _WIDEST]
        found = iter(_within(chunks, steps, rule, rows, narrow, kept) if narrow else [])
        return [next(found) if window.width <= _WIDEST else -1 for window in windows]
    above, counts = _counted(chunks, steps, rule, rows, windows)
    bits = []
    for window, rank, higher, own in zip(windows, ranks, above, counts, strict=True):
        place = descend(own, rank - higher)[0] if rank > higher else -1
        bits.append(window.lowest + place if place >= 0 else -1)
    return bits


def _counted(
    chunks: Chunks, steps: Sequence[Step], rule: Rule, rows: int, windows: Sequence[_Window]
) -> tuple[Int64[np.ndarray, " windows"], list[Integer[np.ndarray, " _"]]]:
    """Entries above each window, and in it by bit pattern."""
    fits = sum(step.entries for step in steps) < 1 << 32
    local, held = threading.local(), []

    def count(run: Run) -> None:
        if not hasattr(local, "counts"):
            local.counts = [np.zeros(w.width, np.uint32 if fits else np.int64) for w in windows]
            local.above = np.zeros(len(windows), np.int64)
            held.append((local.above, local.counts))
        bits = _magnitudes(chunks, run, rule, rows).view(np.uint32)
        for k, window in enumerate(windows):
            local.above[k] += count_window(bits[window.row], window.lowest, local.counts[k])

    chunks.map_runs(count, steps, "trim")
    above = np.sum([above for above, _ in held], axis=0)
    everyone = zip(*(counts for _, counts in held), strict=True)
    return above, [sum(rest, start=first) for first, *rest in everyone]


def _coarse(
    chunks: Chunks, steps: Sequence[Step], rule: Rule, rows: int
) -> Int64[np.ndarray, "rows bins"]:
    local, held = threading.local(), []

    def count(run: Run) -> None:
        if not hasattr(local, "bins"):
            local.bins = np.zeros((rows, COARSE_BINS), np.int64)
            held.append(local.bins)
        bits = _magnitudes(chunks, run, rule, rows).view(np.uint32)
        for row, bins in zip(bits, local.bins, strict=True):
            count_coarse(row, bins)

    chunks.map_runs(count, steps, "trim")
    return np.asarray(np.sum(held, axis=0))


def _magnitudes(
    chunks: Chunks, run: Run, rule: Rule, rows: int
) -> Float32[np.ndarray, "rows entries"]:
    """Magnitudes of a run, in scratch memory of the thread."""
    out = chunks.scratch("sizes", (rows, run.stop - run.start), np.float32)
    kernels.magnitudes(chunks.pack(run), rule, out)
    return out


def varying(chunks: Chunks, steps: Sequence[Step], rule: Rule) -> int:
    """Entries whose variance across experts is not zero."""
    _, (zeros,) = _counted(chunks, steps, rule, 1, [_Window(0, 0, 1)])
    return sum(step.entries for step in steps) - int(zeros[0])


def votes(chunks: Chunks, steps: Sequence[Step], rule: Rule) -> int:
    """Entries that elect + less entries that elect -, over all ``steps``."""

    def part(run: Run) -> int:
        stack = chunks.pack(run)
        return int(kernels.votes(stack, rule, *chunks.chance(run, rule, stack)))

    return sum(chunks.map_runs(part, steps, "elect"))


def moments(
    chunks: Chunks, step: Step, rule: Rule, *, mixed: bool = False
) -> Float64[np.ndarray, "rows 3"]:
    """Sums over a tensor.

    Row i < n: L1 norm of d_i before any step, after them, and its sum of squares after them. Row
    n, if ``mixed``: L1 norm of sum_i d_i, L1 norm of the mix, 0.
    """

    def part(run: Run) -> Float64[np.ndarray, "blocks rows 3"]:
        stack = chunks.pack(run)
        sums = np.empty((run.blocks, len(stack), 3))
        kernels.moments(stack, rule, *chunks.chance(run, rule, stack), mixed, sums)
        return sums

    return _exact_sum(chunks.map_runs(part, [step], "norms"))


def gram(chunks: Chunks, step: Step, rule: Rule) -> Float64[np.ndarray, "experts experts"]:
    """Inner products of the deltas: of the tensors themselves where there is no base."""

    def part(run: Run) -> Float64[np.ndarray, "blocks experts experts"]:
        stack = chunks.pack(run)
        n = len(stack) - 1
        sums = np.empty((run.blocks, n, n))
        kernels.gram(stack, rule, sums)
        return sums

    return _exact_sum(chunks.map_runs(part, [step], "angles"))


def _exact_sum(parts: Sequence[Float64[np.ndarray, "_ *rest"]]) -> Float64[np.ndarray, "*rest"]:
    blocks = np.concatenate(parts)
    flat = blocks.reshape(len(blocks), -1)
    return np.array([math.fsum(column) for column in flat.T]).reshape(blocks.shape[1:])
