"""Fused kernels of the task-vector family over one chunk of a tensor.

``zeitgeist.merging.task_vectors`` is the specification: plain functions over whole tensors. Here
the same steps run once over the data, tile by tile in first-level cache, in float64, and the
result is rounded once to the output dtype. Every step is a simple loop over a tile so that LLVM
vectorises it; none releases more than a tile of scratch memory.

Steps on a tile, for experts i and entries j (x inputs, b base, w weights):

1.  d_ij = x_ij - b_j, or x_ij where an expert is given as a delta
2.  d_ij = 0 unless lo_i <= |d_ij| <= hi_i, compared as float32
3.  d_ij = d_ij / p_ij where u_ij / 2^32 < p_ij, else 0      (DARE, DELLA)
4.  d_.j = 0 unless var_i(d_ij) >= floor                     (SCE)
5.  d_ij = f_i d_ij, a factor of the whole tensor
6.  m_j  = sum over agreeing i of w_i d_ij / sum of agreeing w_i, or sum_i w_i d_ij [/ sum_i w_i]
7.  m_j  = 0 unless at least k experts claim entry j    (TALL masks)
8.  out_j = b_j + scale * m_j

Arguments: ``stack`` (n + 1, C), float32 or float64, holds the experts' entries of a chunk and in
its last row the base's; ``draws`` (n, C) and ``probabilities`` (n, C) are random words and DELLA's
keep probabilities, or (n, 0) where unused. Letters: n experts, C entries of a chunk, T of a tile.
"""

import inspect
from typing import Any, NamedTuple

import numba
import numpy as np
from jaxtyping import Bool, Float32, Float64

TILE = 512
BLOCK = 4096  # sums are formed per block of this many entries, so that they do not depend on chunks
COARSE_BINS = 1 << 16  # the upper 16 of the 31 magnitude bits of a float32
FINE_BITS = 15
FINE_BINS = 1 << FINE_BITS
_UNIT = 2.0**-32


class Rule(NamedTuple):
    """What to do with the deltas of one tensor; see the numbered steps of the module.

    Arrays have one entry per expert. ``random`` and ``normalize`` switch step 3 and the division
    of step 6 on; ``variance_floor < 0`` and ``tall_k == 0`` switch steps 4 and 7 off;
    ``smallest_divisor`` bounds the divisor of an agreeing mean from below where it is positive.
    """

    weights: Float64[np.ndarray, " n"]
    lo: Float32[np.ndarray, " n"]
    hi: Float32[np.ndarray, " n"]
    keep: Float64[np.ndarray, " n"]
    factor: Float64[np.ndarray, " n"]
    is_delta: Bool[np.ndarray, " n"]
    random: bool
    rescale: bool
    variance_floor: float
    consensus: bool
    weighted_election: bool
    zero_sum: float
    normalize: bool
    smallest_divisor: float
    tall_k: int
    tall_lambda: float
    scale: float


def _jit(function: Any) -> Any:
    # The tests wrap every function to check its types at run time; numba wants the bare one.
    bare = inspect.unwrap(function)
    return numba.njit(nogil=True, cache=True, error_model="numpy")(bare)


@_jit
def _deltas(stack, rule, start, size, tile):  # type: ignore[no-untyped-def]
    n = stack.shape[0] - 1
    for i in range(n):
        if rule.is_delta[i]:
            for j in range(size):
                tile[i, j] = stack[i, start + j]
        else:
            for j in range(size):
                tile[i, j] = np.float64(stack[i, start + j]) - np.float64(stack[n, start + j])


@_jit
def _sparsify(rule, draws, probabilities, start, size, tile, row):  # type: ignore[no-untyped-def]
    n = tile.shape[0]
    for i in range(n):
        lo, hi = rule.lo[i], rule.hi[i]
        if lo > 0 or hi < np.inf:
            for j in range(size):
                magnitude = np.float32(abs(tile[i, j]))
                tile[i, j] = tile[i, j] if lo <= magnitude <= hi else 0.0
        if rule.random:
            if probabilities.shape[1]:
                for j in range(size):
                    row[j] = probabilities[i, start + j]
            else:
                row[:size] = rule.keep[i]
            for j in range(size):
                kept = draws[i, start + j] * _UNIT < row[j]
                divisor = row[j] if rule.rescale else 1.0
                tile[i, j] = tile[i, j] / divisor if kept else 0.0
    if rule.variance_floor >= 0:
        _variances(tile, size, row)
        for i in range(n):
            for j in range(size):
                tile[i, j] = (
                    tile[i, j] if np.float32(row[j]) >= np.float32(rule.variance_floor) else 0.0
                )
    for i in range(n):
        if rule.factor[i] != 1.0:
            for j in range(size):
                tile[i, j] *= rule.factor[i]


@_jit
def _variances(tile, size, out):  # type: ignore[no-untyped-def]
    n = tile.shape[0]
    mean = np.zeros(size)
    for i in range(n):
        for j in range(size):
            mean[j] += tile[i, j]
    out[:size] = 0.0
    for i in range(n):
        for j in range(size):
            centred = tile[i, j] - mean[j] / n
            out[j] += centred * centred
    for j in range(size):
        out[j] /= n


@_jit
def _elect(rule, size, tile, sign):  # type: ignore[no-untyped-def]
    """Signed sums over experts; the sign is taken where it is used."""
    sign[:size] = 0.0
    for i in range(tile.shape[0]):
        w = rule.weights[i] if rule.weighted_election else 1.0
        for j in range(size):
            sign[j] += w * tile[i, j]


@_jit
def _mix(rule, size, tile, sign, divisor, mix):  # type: ignore[no-untyped-def]
    n = tile.shape[0]
    mix[:size] = 0.0
    if rule.consensus:
        _elect(rule, size, tile, sign)
        for j in range(size):
            sign[j] = 1.0 if sign[j] > 0 else (-1.0 if sign[j] < 0 else rule.zero_sum)
            divisor[j] = 0.0
        for i in range(n):
            w = rule.weights[i]
            vote = w if rule.weighted_election else 1.0
            for j in range(size):
                agrees = vote * tile[i, j] * sign[j] > 0
                mix[j] += w * tile[i, j] if agrees else 0.0
                divisor[j] += w if agrees else 0.0
        if rule.normalize:
            for j in range(size):
                share = divisor[j]
                if rule.smallest_divisor > 0:
                    share = max(share, rule.smallest_divisor)
                mix[j] /= share if share != 0 else 1.0
    else:
        total = 0.0
        for i in range(n):
            w = rule.weights[i]
            total += w
            for j in range(size):
                mix[j] += w * tile[i, j]
        if rule.normalize:
            for j in range(size):
                mix[j] /= total
    if rule.tall_k > 0:
        divisor[:size] = 0.0
        for i in range(n):
            for j in range(size):
                claims = abs(tile[i, j]) >= abs(mix[j] - tile[i, j]) * rule.tall_lambda
                divisor[j] += 1.0 if claims else 0.0
        for j in range(size):
            mix[j] = mix[j] if divisor[j] >= rule.tall_k else 0.0


@_jit
def _store(values, size, start, single, bits, out):  # type: ignore[no-untyped-def]
    """Round float64 once: to bfloat16 bits where ``out`` is uint16, else to ``out``'s dtype."""
    if out.itemsize == 2:
        for j in range(size):
            single[j] = np.float32(values[j])
        for j in range(size):
            # Round to odd on the way through float32, so that the second rounding sees the truth.
            back = np.float64(single[j])
            odd = bits[j] - np.uint32(1 if abs(back) > abs(values[j]) else 0)
            odd |= np.uint32(1 if back != values[j] else 0)
            out[start + j] = np.uint16((odd + np.uint32(0x7FFF) + ((odd >> 16) & 1)) >> 16)
    else:
        for j in range(size):
            out[start + j] = values[j]


@_jit
def merge(stack, rule, draws, probabilities, out):  # type: ignore[no-untyped-def]
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile = np.empty((n, TILE))
    sign, divisor, mix = np.empty(TILE), np.empty(TILE), np.empty(TILE)
    single = np.empty(TILE, np.float32)
    bits = single.view(np.uint32)
    for start in range(0, entries, TILE):
        size = min(TILE, entries - start)
        _deltas(stack, rule, start, size, tile)
        _sparsify(rule, draws, probabilities, start, size, tile, mix)
        _mix(rule, size, tile, sign, divisor, mix)
        for j in range(size):
            mix[j] = stack[n, start + j] + rule.scale * mix[j]
        _store(mix, size, start, single, bits, out)


@_jit
def combine(stack, coefficients, out):  # type: ignore[no-untyped-def]
    n, entries = stack.shape
    mix = np.empty(TILE)
    single = np.empty(TILE, np.float32)
    bits = single.view(np.uint32)
    for start in range(0, entries, TILE):
        size = min(TILE, entries - start)
        mix[:size] = 0.0
        for i in range(n):
            c = coefficients[i]
            if c != 0.0:
                for j in range(size):
                    mix[j] += c * stack[i, start + j]
        _store(mix, size, start, single, bits, out)


@_jit
def histogram(stack, rule, first, last, coarse, fine):  # type: ignore[no-untyped-def]
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile = np.empty((n, TILE))
    single = np.empty(TILE, np.float32)
    bits = single.view(np.uint32)
    variance = rule.variance_floor >= 0
    rows = 1 if variance else n
    spread = np.empty(TILE)
    widths = (last - first) << FINE_BITS
    for start in range(0, entries, TILE):
        size = min(TILE, entries - start)
        _deltas(stack, rule, start, size, tile)
        if variance:
            _variances(tile, size, spread)
        for i in range(rows):
            for j in range(size):
                single[j] = np.float32(spread[j] if variance else abs(tile[i, j]))
            # Unsigned, so that one comparison tells what lies in the window.
            lowest, width = np.uint32(first[i] << FINE_BITS), np.uint32(widths[i])
            for j in range(size):
                coarse[i, bits[j] >> FINE_BITS] += 1
            for j in range(size):
                inside = np.uint32(bits[j] - lowest)
                if inside < width:
                    fine[i, inside] += 1


@_jit
def votes(stack, rule, draws, probabilities):  # type: ignore[no-untyped-def]
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile = np.empty((n, TILE))
    sign, row = np.empty(TILE), np.empty(TILE)
    total = 0
    for start in range(0, entries, TILE):
        size = min(TILE, entries - start)
        _deltas(stack, rule, start, size, tile)
        _sparsify(rule, draws, probabilities, start, size, tile, row)
        _elect(rule, size, tile, sign)
        for j in range(size):
            total += 1 if sign[j] > 0 else (-1 if sign[j] < 0 else 0)
    return total


@_jit
def moments(stack, rule, draws, probabilities, sums):  # type: ignore[no-untyped-def]
    """Per block and expert: L1 before, L1 after, squares after; and of the plain sum and the mix.

    ``sums``: (blocks, n + 1, 3). Row n holds L1 of sum_i d_i before any step, L1 of the mix, 0.
    """
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile = np.empty((n, TILE))
    lanes = np.empty((n + 1, 3, TILE))
    sign, divisor, mix, plain = np.empty(TILE), np.empty(TILE), np.empty(TILE), np.empty(TILE)
    for block in range(sums.shape[0]):
        lanes[:] = 0.0
        for start in range(block * BLOCK, min((block + 1) * BLOCK, entries), TILE):
            size = min(TILE, entries - start)
            _deltas(stack, rule, start, size, tile)
            plain[:size] = 0.0
            for i in range(n):
                for j in range(size):
                    plain[j] += tile[i, j]
                    lanes[i, 0, j] += abs(tile[i, j])
            _sparsify(rule, draws, probabilities, start, size, tile, mix)
            for i in range(n):
                for j in range(size):
                    lanes[i, 1, j] += abs(tile[i, j])
                    lanes[i, 2, j] += tile[i, j] * tile[i, j]
            _mix(rule, size, tile, sign, divisor, mix)
            for j in range(size):
                lanes[n, 0, j] += abs(plain[j])
                lanes[n, 1, j] += abs(mix[j])
        for i in range(n + 1):
            for k in range(3):
                sums[block, i, k] = lanes[i, k].sum()


@_jit
def gram(stack, rule, sums):  # type: ignore[no-untyped-def]
    """Inner products of the deltas, per block: ``sums`` is (blocks, n, n)."""
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile = np.empty((n, TILE))
    lanes = np.empty((n, n, TILE))
    for block in range(sums.shape[0]):
        lanes[:] = 0.0
        for start in range(block * BLOCK, min((block + 1) * BLOCK, entries), TILE):
            size = min(TILE, entries - start)
            _deltas(stack, rule, start, size, tile)
            for i in range(n):
                for k in range(i + 1):
                    for j in range(size):
                        lanes[i, k, j] += tile[i, j] * tile[k, j]
        for i in range(n):
            for k in range(i + 1):
                sums[block, i, k] = sums[block, k, i] = lanes[i, k].sum()


@_jit
def clashes(stack, rule, both, opposed):  # type: ignore[no-untyped-def]
    """Count, per pair of experts, entries that both keep and entries kept with opposite signs.

    ``both`` and ``opposed``: (n, n) counters that are added to; the diagonal of ``both`` counts
    what one expert keeps.
    """
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile = np.empty((n, TILE))
    nothing, chance, row = np.empty((n, 0), np.uint32), np.empty((n, 0)), np.empty(TILE)
    for start in range(0, entries, TILE):
        size = min(TILE, entries - start)
        _deltas(stack, rule, start, size, tile)
        _sparsify(rule, nothing, chance, start, size, tile, row)
        for i in range(n):
            for k in range(i + 1):
                shared, against = 0, 0
                for j in range(size):
                    product = np.sign(tile[i, j]) * np.sign(tile[k, j])
                    shared += 1 if product != 0 else 0
                    against += 1 if product < 0 else 0
                both[i, k] += shared
                opposed[i, k] += against
