"""Counting the bit patterns of float32 magnitudes: how an order statistic is found without a sort.

Non-negative floats are ordered like their bits. Counters of a window of bit patterns, and one
counter for all above it, give the k-th largest exactly if it lies in the window.
"""

import numpy as np
from jaxtyping import Integer

from zeitgeist.merging.streaming.compiled import compiled

COARSE_BITS = 15  # a coarse bin holds the patterns that share the upper 16 of 31 bits
COARSE_BINS = 1 << 16
_STRIDE = 1024


def descend(counts: Integer[np.ndarray, " bins"], rank: int) -> tuple[int, int]:
    """The bin of the ``rank``-th largest, and its rank within that bin.

    Examples
    --------
    >>> descend(np.array([5, 2, 3]), 4)
    (1, 1)
    """
    # A sum per stride first: a cumulative sum over a million bins costs more than a small tensor.
    sums = np.add.reduceat(counts, np.arange(0, len(counts), _STRIDE), dtype=np.int64)
    stride, rank = _descend(sums, rank)
    start = stride * _STRIDE
    place, rank = _descend(counts[start : start + _STRIDE], rank)
    return start + place, rank


def _descend(counts: Integer[np.ndarray, " bins"], rank: int) -> tuple[int, int]:
    above = np.cumsum(counts[::-1], dtype=np.int64)
    place = int(np.searchsorted(above, rank))
    return len(counts) - 1 - place, rank - int(above[place - 1] if place else 0)


@compiled
def count_window(bits, start, counts):  # type: ignore[no-untyped-def]
    """Count the patterns from ``start`` on, as many as there are counters; return those above."""
    lowest, width = np.uint32(start), np.uint32(counts.size)
    beyond, above = np.uint32(lowest + width), np.int64(0)
    for j in range(bits.size):
        above += np.int64(bits[j] >= beyond)
    for j in range(bits.size):
        # Unsigned, so that one comparison tells what lies in the window.
        place = np.uint32(bits[j] - lowest)
        if place < width:
            counts[place] += 1
    return above


@compiled
def count_coarse(bits, counts):  # type: ignore[no-untyped-def]
    """Count patterns by their upper 16 bits."""
    for j in range(bits.size):
        counts[bits[j] >> COARSE_BITS] += 1
