"""Counting the bit patterns of float32 magnitudes: how an order statistic is found without a sort.

Non-negative floats are ordered like their bits. Counters of a window of bit patterns, and one
counter for all above it, give the k-th largest exactly if it lies in the window.
"""

import numpy as np

from zeitgeist.merging.streaming.compiled import compiled

COARSE_BITS = 15  # a coarse bin holds the patterns that share the upper 16 of 31 bits
COARSE_BINS = 1 << 16
_STRIDE = 4096


@compiled
def descend(counts, rank):  # type: ignore[no-untyped-def]
    """The bin of the ``rank``-th largest and its rank within that bin; (-1, _) if there is none.

    Examples
    --------
    >>> descend(np.array([5, 2, 3]), 4)
    (1, 1)
    """
    left, stop = np.int64(rank), counts.size
    while stop > 0:
        # Whole strides first: adding is vectorised, looking for the place is not.
        part, inside = counts[max(0, stop - _STRIDE) : stop], np.int64(0)
        for j in range(part.size):
            inside += np.int64(part[j])
        if left <= inside:
            break
        left -= inside
        stop -= part.size
    place = stop - 1
    while place >= 0 and left > counts[place]:
        left -= np.int64(counts[place])
        place -= 1
    return place, left


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
