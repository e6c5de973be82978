"""Fused kernels of the task-vector family over one chunk of a tensor.

``zeitgeist.merging.task_vectors`` is the specification: plain functions over whole tensors. Here
the same steps run once over the data, tile by tile in first-level cache, in float64, and the
result is rounded once to the output dtype. Every step is a simple loop over a tile so that LLVM
vectorises it; none needs more than a tile of scratch memory.

Steps on a tile, for experts i and entries j (x inputs, b base, w weights):

1.  d_ij = x_ij - b_j, or x_ij where an expert is given as a delta
2.  d_ij = 0 unless lo_i <= |d_ij| <= hi_i, compared as float32
3.  d_ij = d_ij / p_ij where u_ij / 2^32 < p_ij, else 0      (DARE, DELLA)
4.  d_.j = 0 unless var_i(d_ij) >= floor                     (SCE)
5.  d_ij = f_i d_ij, a factor of the whole tensor
6.  m_j  = sum over agreeing i of w_i d_ij / sum of agreeing w_i, or sum_i w_i d_ij [/ sum_i w_i]
7.  m_j  = 0 unless at least k experts claim entry j    (TALL masks)
8.  out_j = b_j + scale * m_j

Arguments: ``stack`` (n + 1, C) holds the experts' entries of a chunk and in its last row the
base's, as float32, as float64, or as the bits of bfloat16 in uint16; ``draws`` (n, C) and
``probabilities`` (n, C) are random words and DELLA's keep probabilities, or (n, 0) where unused.
Letters: n experts, C entries of a chunk, T of a tile.

Loops run over slices that start at 0: an index with an offset could be negative for all the
compiler knows, and numba's test for that keeps the loop from being vectorised (3.4 against 1.6 ns
per entry of task arithmetic with three experts).
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt32

from zeitgeist.merging.streaming.compiled import compiled

TILE = 1024
LANES = 64  # sums that run side by side, so that adding can be vectorised
BLOCK = 4096  # sums are formed per block of this many entries, so that they do not depend on chunks
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


class Tile(NamedTuple):
    """Scratch memory of one call: T entries of everything.

    ``bits`` are the bits of ``single``.
    """

    deltas: Float64[np.ndarray, "n T"]
    base: Float64[np.ndarray, " T"]
    mix: Float64[np.ndarray, " T"]
    sign: Float64[np.ndarray, " T"]
    row: Float64[np.ndarray, " T"]
    nothing: Float64[np.ndarray, " T"]
    single: Float32[np.ndarray, " T"]
    bits: UInt32[np.ndarray, " T"]


@compiled
def _scratch(n):  # type: ignore[no-untyped-def]
    single = np.empty(TILE, np.float32)
    return Tile(
        np.empty((n, TILE)),
        np.empty(TILE),
        np.empty(TILE),
        np.empty(TILE),
        np.empty(TILE),
        np.zeros(TILE),
        single,
        single.view(np.uint32),
    )


@compiled
def _less(row, minus, tile, out):  # type: ignore[no-untyped-def]
    """Entries of a stack as float64, less what is below them."""
    single, bits = tile.single, tile.bits
    if row.itemsize == 2:
        for j in range(row.size):
            bits[j] = np.uint32(row[j]) << np.uint32(16)
        for j in range(row.size):
            out[j] = np.float64(single[j]) - minus[j]
    else:
        for j in range(row.size):
            out[j] = np.float64(row[j]) - minus[j]


@compiled
def _deltas(stack, rule, start, size, tile):  # type: ignore[no-untyped-def]
    n, nothing = stack.shape[0] - 1, tile.nothing
    _less(stack[n, start : start + size], nothing, tile, tile.base)
    for i in range(n):
        below = nothing if rule.is_delta[i] else tile.base
        _less(stack[i, start : start + size], below, tile, tile.deltas[i])


@compiled
def _sparsify(rule, draws, probabilities, start, size, tile):  # type: ignore[no-untyped-def]
    n, row = tile.deltas.shape[0], tile.row
    for i in range(n):
        d, lo, hi = tile.deltas[i], rule.lo[i], rule.hi[i]
        if lo > 0 or hi < np.inf:
            for j in range(size):
                magnitude = np.float32(abs(d[j]))
                d[j] = d[j] if (magnitude >= lo) & (magnitude <= hi) else 0.0
        if rule.random:
            drawn = draws[i, start : start + size]
            if probabilities.shape[1]:
                chance = probabilities[i, start : start + size]
                for j in range(size):
                    divisor = chance[j] if rule.rescale else 1.0
                    d[j] = d[j] / divisor if drawn[j] * _UNIT < chance[j] else 0.0
            else:
                divisor = rule.keep[i] if rule.rescale else 1.0
                # u / 2^32 < p with whole numbers: both sides times 2^32 are exact.
                limit = np.uint64(np.ceil(rule.keep[i] / _UNIT))
                for j in range(size):
                    d[j] = d[j] / divisor if np.uint64(drawn[j]) < limit else 0.0
    if rule.variance_floor >= 0:
        _variances(tile, size)
        floor = np.float32(rule.variance_floor)
        for i in range(n):
            d = tile.deltas[i]
            for j in range(size):
                d[j] = d[j] if np.float32(row[j]) >= floor else 0.0
    for i in range(n):
        if rule.factor[i] != 1.0:
            d, factor = tile.deltas[i], rule.factor[i]
            for j in range(size):
                d[j] *= factor


@compiled
def _variances(tile, size):  # type: ignore[no-untyped-def]
    """Variances across experts, into ``tile.row``."""
    n, mean, out = tile.deltas.shape[0], tile.mix, tile.row
    mean[:size] = 0.0
    for i in range(n):
        d = tile.deltas[i]
        for j in range(size):
            mean[j] += d[j]
    for j in range(size):
        mean[j] /= n
    out[:size] = 0.0
    for i in range(n):
        d = tile.deltas[i]
        for j in range(size):
            centred = d[j] - mean[j]
            out[j] += centred * centred
    for j in range(size):
        out[j] /= n


@compiled
def _elect(rule, size, tile):  # type: ignore[no-untyped-def]
    """Signed sums over experts; the sign is taken where it is used."""
    sign = tile.sign
    sign[:size] = 0.0
    for i in range(tile.deltas.shape[0]):
        d, w = tile.deltas[i], rule.weights[i] if rule.weighted_election else 1.0
        for j in range(size):
            sign[j] += w * d[j]


@compiled
def _mix(rule, size, tile):  # type: ignore[no-untyped-def]
    n, mix, sign, divisor = tile.deltas.shape[0], tile.mix, tile.sign, tile.row
    if rule.consensus:
        _elect(rule, size, tile)
        mix[:size] = 0.0
        divisor[:size] = 0.0
        zero_sum = rule.zero_sum
        for j in range(size):
            sign[j] = 1.0 if sign[j] > 0 else (-1.0 if sign[j] < 0 else zero_sum)
        for i in range(n):
            d, w = tile.deltas[i], rule.weights[i]
            vote = w if rule.weighted_election else 1.0
            for j in range(size):
                agrees = vote * d[j] * sign[j] > 0
                mix[j] += w * d[j] if agrees else 0.0
                divisor[j] += w if agrees else 0.0
        if rule.normalize:
            least = rule.smallest_divisor
            for j in range(size):
                share = max(divisor[j], least) if least > 0 else divisor[j]
                mix[j] /= share if share != 0 else 1.0
    else:
        mix[:size] = 0.0
        total = 0.0
        for i in range(n):
            d, w = tile.deltas[i], rule.weights[i]
            total += w
            for j in range(size):
                mix[j] += w * d[j]
        if rule.normalize:
            for j in range(size):
                mix[j] /= total
    if rule.tall_k > 0:
        claims = tile.row
        claims[:size] = 0.0
        for i in range(n):
            d = tile.deltas[i]
            for j in range(size):
                claims[j] += 1.0 if abs(d[j]) >= abs(mix[j] - d[j]) * rule.tall_lambda else 0.0
        for j in range(size):
            mix[j] = mix[j] if claims[j] >= rule.tall_k else 0.0


@compiled
def _store(tile, out):  # type: ignore[no-untyped-def]
    """Round the mix once: to bfloat16 bits where ``out`` is uint16, else to ``out``'s dtype."""
    values, single, bits = tile.mix, tile.single, tile.bits
    if out.itemsize == 2:
        for j in range(out.size):
            single[j] = np.float32(values[j])
        for j in range(out.size):
            # Round to odd on the way through float32, so that the second rounding sees the truth.
            back = np.float64(single[j])
            odd = bits[j] - np.uint32(1 if abs(back) > abs(values[j]) else 0)
            odd |= np.uint32(1 if back != values[j] else 0)
            out[j] = np.uint16((odd + np.uint32(0x7FFF) + ((odd >> 16) & 1)) >> 16)
    else:
        for j in range(out.size):
            out[j] = values[j]


@compiled
def finite(bits, exponent):  # type: ignore[no-untyped-def]
    """Whether no number among these bits is NaN or infinite: has all bits of its exponent set."""
    good = True
    for i in range(bits.shape[0]):
        row = bits[i]
        for j in range(row.size):
            good &= (row[j] & exponent) != exponent
    return good


@compiled
def merge(stack, rule, draws, probabilities, out):  # type: ignore[no-untyped-def]
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile = _scratch(n)
    base, mix = tile.base, tile.mix
    for start in range(0, entries, TILE):
        size = min(TILE, entries - start)
        _deltas(stack, rule, start, size, tile)
        _sparsify(rule, draws, probabilities, start, size, tile)
        _mix(rule, size, tile)
        for j in range(size):
            mix[j] = base[j] + rule.scale * mix[j]
        _store(tile, out[start : start + size])


@compiled
def combine(stack, coefficients, divisor, out):  # type: ignore[no-untyped-def]
    """Sum of the rows by their coefficients, divided once: a mean is rounded as a mean."""
    n, entries = stack.shape
    tile = _scratch(0)
    mix, row = tile.mix, tile.row
    for start in range(0, entries, TILE):
        size = min(TILE, entries - start)
        mix[:size] = 0.0
        for i in range(n):
            c = coefficients[i]
            if c != 0.0:
                _less(stack[i, start : start + size], tile.nothing, tile, row)
                for j in range(size):
                    mix[j] += c * row[j]
        if divisor != 1.0:
            for j in range(size):
                mix[j] /= divisor
        _store(tile, out[start : start + size])


@compiled
def magnitudes(stack, rule, out):  # type: ignore[no-untyped-def]
    """Sizes of the deltas as float32; one row of variances where the rule asks for those."""
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile = _scratch(n)
    for start in range(0, entries, TILE):
        size = min(TILE, entries - start)
        _deltas(stack, rule, start, size, tile)
        if rule.variance_floor >= 0:
            _variances(tile, size)
            to = out[0, start : start + size]
            for j in range(size):
                to[j] = np.float32(tile.row[j])
            continue
        for i in range(n):
            d, to = tile.deltas[i], out[i, start : start + size]
            for j in range(size):
                to[j] = np.float32(abs(d[j]))


@compiled
def votes(stack, rule, draws, probabilities):  # type: ignore[no-untyped-def]
    """Entries that elect + less those that elect -."""
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile = _scratch(n)
    total = np.int64(0)
    for start in range(0, entries, TILE):
        size = min(TILE, entries - start)
        _deltas(stack, rule, start, size, tile)
        _sparsify(rule, draws, probabilities, start, size, tile)
        _elect(rule, size, tile)
        for j in range(size):
            total += np.int64(tile.sign[j] > 0) - np.int64(tile.sign[j] < 0)
    return total


@compiled
def _add_sizes(values, lanes):  # type: ignore[no-untyped-def]
    whole = values.size // LANES * LANES
    for start in range(0, whole, LANES):
        part = values[start : start + LANES]
        for j in range(LANES):
            lanes[j] += abs(part[j])
    rest = values[whole:]
    for j in range(rest.size):
        lanes[j] += abs(rest[j])


@compiled
def _add_products(one, other, lanes):  # type: ignore[no-untyped-def]
    whole = one.size // LANES * LANES
    for start in range(0, whole, LANES):
        part, against = one[start : start + LANES], other[start : start + LANES]
        for j in range(LANES):
            lanes[j] += part[j] * against[j]
    rest, against = one[whole:], other[whole:]
    for j in range(rest.size):
        lanes[j] += rest[j] * against[j]


@compiled
def moments(stack, rule, draws, probabilities, mixed, sums):  # type: ignore[no-untyped-def]
    """Per block and expert: L1 before, L1 after, squares after; if ``mixed``, of the mix as well.

    ``sums``: (blocks, n + 1, 3). Row n holds L1 of sum_i d_i before any step, L1 of the mix, 0.
    """
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile, lanes = _scratch(n), np.empty((n + 1, 3, LANES))
    for block in range(sums.shape[0]):
        lanes[:] = 0.0
        for start in range(block * BLOCK, min((block + 1) * BLOCK, entries), TILE):
            size = min(TILE, entries - start)
            _deltas(stack, rule, start, size, tile)
            for i in range(n):
                _add_sizes(tile.deltas[i, :size], lanes[i, 0])
            if mixed:
                plain = tile.mix[:size]
                plain[:] = 0.0
                for i in range(n):
                    d = tile.deltas[i]
                    for j in range(size):
                        plain[j] += d[j]
                _add_sizes(plain, lanes[n, 0])
            _sparsify(rule, draws, probabilities, start, size, tile)
            for i in range(n):
                d = tile.deltas[i, :size]
                _add_sizes(d, lanes[i, 1])
                _add_products(d, d, lanes[i, 2])
            if mixed:
                _mix(rule, size, tile)
                _add_sizes(tile.mix[:size], lanes[n, 1])
        for i in range(n + 1):
            for k in range(3):
                sums[block, i, k] = lanes[i, k].sum()


@compiled
def gram(stack, rule, sums):  # type: ignore[no-untyped-def]
    """Inner products of the deltas, per block: ``sums`` is (blocks, n, n)."""
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile, lanes = _scratch(n), np.empty((n, n, LANES))
    for block in range(sums.shape[0]):
        lanes[:] = 0.0
        for start in range(block * BLOCK, min((block + 1) * BLOCK, entries), TILE):
            size = min(TILE, entries - start)
            _deltas(stack, rule, start, size, tile)
            for i in range(n):
                for k in range(i + 1):
                    _add_products(tile.deltas[i, :size], tile.deltas[k, :size], lanes[i, k])
        for i in range(n):
            for k in range(i + 1):
                sums[block, i, k] = sums[block, k, i] = lanes[i, k].sum()


@compiled
def clashes(stack, rule, both, opposed):  # type: ignore[no-untyped-def]
    """Count, per pair of experts, entries that both keep and entries kept with opposite signs.

    ``both`` and ``opposed``: (n, n) counters that are added to; the diagonal of ``both`` counts
    what one expert keeps.
    """
    n, entries = stack.shape[0] - 1, stack.shape[1]
    tile, nothing, chance = _scratch(n), np.empty((n, 0), np.uint32), np.empty((n, 0))
    for start in range(0, entries, TILE):
        size = min(TILE, entries - start)
        _deltas(stack, rule, start, size, tile)
        _sparsify(rule, nothing, chance, start, size, tile)
        for i in range(n):
            for k in range(i + 1):
                one, other = tile.deltas[i], tile.deltas[k]
                shared, against = np.int64(0), np.int64(0)
                for j in range(size):
                    product = np.sign(one[j]) * np.sign(other[j])
                    shared += np.int64(product != 0)
                    against += np.int64(product < 0)
                both[i, k] += shared
                opposed[i, k] += against
