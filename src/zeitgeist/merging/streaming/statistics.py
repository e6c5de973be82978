"""Numbers of a whole tensor, or of a whole model, that a merge must know before it writes.

* Order statistics (what trimming needs) come from a histogram of the float32 bit patterns of |d|:
  non-negative floats are ordered like their bits. The upper 16 bits give the bin of the k-th
  largest, a second histogram over the lower 15 bits of that bin gives the value, exactly: no
  sort, no flattened copy. A sample predicts the bin, so that one pass usually fills both.
* Sums are taken per block of 4096 entries and added exactly (`math.fsum`), so that they do not
  depend on chunks or threads.
"""

import math
import threading
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32, Float64, Int64

from zeitgeist.merging.streaming import kernels
from zeitgeist.merging.streaming.chunks import Chunks, Run
from zeitgeist.merging.streaming.kernels import BLOCK, COARSE_BINS, FINE_BINS, FINE_BITS, Rule
from zeitgeist.merging.streaming.steps import Step

_SAMPLE = 1 << 18  # entries from which the bin of a threshold is predicted
_WIDEST = 32  # predicted coarse bins, at most


def order_statistics(
    chunks: Chunks, steps: Sequence[Step], rule: Rule, ranks: Sequence[int]
) -> Float32[np.ndarray, " rows"]:
    """The ``ranks[i]``-th largest magnitude of expert i's delta over all ``steps``.

    Where the rule asks for variances there is one row: the variances across experts.
    """
    rows = len(ranks)
    first, last = _predicted(chunks, steps, rule, ranks)
    coarse, fine = _histograms(chunks, steps, rule, first, last)
    bins, left = np.empty(rows, np.int64), np.empty(rows, np.int64)
    for i, rank in enumerate(ranks):
        bins[i], left[i] = _descend(coarse[i], rank)
    if not ((first <= bins) & (bins < last)).all():
        first, last = bins, bins + 1
        _, fine = _histograms(chunks, steps, rule, first, last)
    bits = np.empty(rows, np.uint32)
    for i in range(rows):
        offset = int(bins[i] - first[i]) << FINE_BITS
        lower, _ = _descend(fine[i, offset : offset + FINE_BINS], int(left[i]))
        bits[i] = (int(bins[i]) << FINE_BITS) + lower
    return bits.view(np.float32)


def _descend(counts: Int64[np.ndarray, " bins"], rank: int) -> tuple[int, int]:
    """The bin of the ``rank``-th largest, and its rank within that bin."""
    above = np.cumsum(counts[::-1])
    place = int(np.searchsorted(above, rank))
    return len(counts) - 1 - place, rank - int(above[place - 1] if place else 0)


def _predicted(
    chunks: Chunks, steps: Sequence[Step], rule: Rule, ranks: Sequence[int]
) -> tuple[Int64[np.ndarray, " rows"], Int64[np.ndarray, " rows"]]:
    """A range of coarse bins per row in which the wanted rank probably lies."""
    first, last = np.zeros(len(ranks), np.int64), np.zeros(len(ranks), np.int64)
    total = sum(step.entries for step in steps)
    if total < 4 * _SAMPLE:
        return first, last
    stride = BLOCK * (total // _SAMPLE)
    runs = [
        Run(step, start, min(start + BLOCK, step.entries))
        for step in steps
        for start in range(0, step.entries, stride)
    ]
    coarse, _ = _histograms(chunks, steps, rule, first, last, runs)
    sampled = sum(run.stop - run.start for run in runs)
    for i, rank in enumerate(ranks):
        share = rank / total
        slack = 0.01 + 4 * math.sqrt(share * (1 - share) / sampled)
        low, _ = _descend(coarse[i], math.ceil(min(share + slack, 1.0) * sampled))
        high, _ = _descend(coarse[i], max(1, math.floor((share - slack) * sampled)))
        first[i], last[i] = low, min(high + 1, low + _WIDEST)
    return first, last


def _histograms(
    chunks: Chunks,
    steps: Sequence[Step],
    rule: Rule,
    first: Int64[np.ndarray, " rows"],
    last: Int64[np.ndarray, " rows"],
    runs: Sequence[Run] | None = None,
) -> tuple[Int64[np.ndarray, "rows bins"], Int64[np.ndarray, "rows fine"]]:
    rows, width = len(first), int((last - first).max()) * FINE_BINS
    local, held = threading.local(), []

    def count(run: Run) -> None:
        if not hasattr(local, "bins"):
            local.bins = (
                np.zeros((rows, COARSE_BINS), np.int64),
                np.zeros((rows, width), np.int64),
            )
            held.append(local.bins)
        stack = chunks.load(run)
        kernels.histogram(stack, rule, first, last, *local.bins)

    if runs is None:
        chunks.map_runs(count, steps, "trim")
    else:
        list(chunks.map(count, runs))
    coarse = np.sum([bins for bins, _ in held], axis=0)
    fine = np.sum([bins for _, bins in held], axis=0)
    return coarse, fine


def varying(chunks: Chunks, steps: Sequence[Step], rule: Rule) -> int:
    """Entries whose variance across experts is not zero."""
    lowest = np.zeros(1, np.int64)
    coarse, fine = _histograms(chunks, steps, rule, lowest, lowest + 1)
    return int(coarse.sum() - fine[0, 0])  # the very first fine bin holds +0 alone


def votes(chunks: Chunks, steps: Sequence[Step], rule: Rule) -> int:
    """Entries that elect + less entries that elect -, over all ``steps``."""

    def part(run: Run) -> int:
        stack = chunks.load(run)
        return int(kernels.votes(stack, rule, *chunks.chance(run, rule, stack)))

    return sum(chunks.map_runs(part, steps, "elect"))


def moments(chunks: Chunks, step: Step, rule: Rule) -> Float64[np.ndarray, "rows 3"]:
    """Sums over a tensor.

    Row i < n: L1 norm of d_i before any step, after them, and its sum of squares after them. Row
    n: L1 norm of sum_i d_i, L1 norm of the mix, 0.
    """

    def part(run: Run) -> Float64[np.ndarray, "blocks rows 3"]:
        stack = chunks.load(run)
        sums = np.empty((run.blocks, len(stack), 3))
        kernels.moments(stack, rule, *chunks.chance(run, rule, stack), sums)
        return sums

    return _exact_sum(chunks.map_runs(part, [step], "norms"))


def gram(chunks: Chunks, step: Step, rule: Rule) -> Float64[np.ndarray, "experts experts"]:
    """Inner products of the deltas: of the tensors themselves where there is no base."""

    def part(run: Run) -> Float64[np.ndarray, "blocks experts experts"]:
        stack = chunks.load(run)
        n = len(stack) - 1
        sums = np.empty((run.blocks, n, n))
        kernels.gram(stack, rule, sums)
        return sums

    return _exact_sum(chunks.map_runs(part, [step], "angles"))


def _exact_sum(parts: Sequence[Float64[np.ndarray, "_ *rest"]]) -> Float64[np.ndarray, "*rest"]:
    blocks = np.concatenate(parts)
    flat = blocks.reshape(len(blocks), -1)
    return np.array([math.fsum(column) for column in flat.T]).reshape(blocks.shape[1:])
