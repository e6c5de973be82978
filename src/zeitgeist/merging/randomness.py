"""Random numbers that belong to a weight, not to a moment.

DARE and DELLA drop entries of a task vector at random. Drawn from a stream, the mask depends on how
the tensor was cut into chunks, on the order of the shards and on the number of threads. Drawn from
a counter, it does not: the draw of an entry is a function of (seed, expert, tensor name, index).

Generator: Philox 4x64-10 (Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2,
3", SC 2011), as numpy implements it. One counter value gives four 64-bit words, that is eight
32-bit draws, the low half of each word first. Entry e of the flattened tensor owns draw e, so it
sits in block e // 8. (numpy steps the counter before it makes a block: block 0 is counter 1.)

    key       = BLAKE2b-128 of "seed NUL expert NUL tensor", as two little-endian 64-bit words
    kept iff  draw * 2^-32 < probability
"""

import hashlib

import numpy as np
from jaxtyping import Bool, Float, UInt32

DRAWS_PER_BLOCK = 8


def philox_key(seed: int, expert: int, tensor: str) -> tuple[int, int]:
    """The 128-bit key of one tensor of one expert.

    Parameters
    ----------
    seed
        The seed of the merge; any integer.
    expert
        Position of the expert among the experts of the merge, from 0.
    tensor
        Name of the tensor in the output.

    Returns
    -------
    tuple[int, int]
        The low and the high 64-bit word of the key.

    Examples
    --------
    >>> philox_key(0, 0, "norm.weight") == philox_key(0, 1, "norm.weight")
    False
    """
    digest = hashlib.blake2b(f"{seed}\0{expert}\0{tensor}".encode(), digest_size=16).digest()
    return int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")


def uniforms(
    seed: int, expert: int, tensor: str, start: int, stop: int
) -> UInt32[np.ndarray, " draws"]:
    """Uniform 32-bit integers of the entries ``start`` to ``stop`` of a flattened tensor.

    Parameters
    ----------
    seed, expert, tensor
        See `philox_key`.
    start, stop
        First entry and the one after the last.

    Returns
    -------
    numpy.ndarray
        ``stop - start`` draws, dtype uint32.

    Examples
    --------
    >>> whole = uniforms(7, 0, "norm.weight", 0, 100)
    >>> bool((uniforms(7, 0, "norm.weight", 13, 20) == whole[13:20]).all())
    True
    """
    first, last = start // DRAWS_PER_BLOCK, -(-stop // DRAWS_PER_BLOCK)
    if stop <= start:
        return np.empty(0, dtype=np.uint32)
    low, high = philox_key(seed, expert, tensor)
    generator = np.random.Philox(
        key=np.array([low, high], dtype=np.uint64),
        counter=np.array([first, 0, 0, 0], dtype=np.uint64),
    )
    words = generator.random_raw((last - first) * DRAWS_PER_BLOCK // 2)
    draws = words.astype("<u8", copy=False).view("<u4").astype(np.uint32, copy=False)
    skip = start - first * DRAWS_PER_BLOCK
    return draws[skip : skip + stop - start]


def kept(
    draws: UInt32[np.ndarray, "*shape"], probability: float | Float[np.ndarray, "*#shape"]
) -> Bool[np.ndarray, "*shape"]:
    """Which entries a Bernoulli(``probability``) mask keeps.

    Parameters
    ----------
    draws
        From `uniforms`.
    probability
        Chance of being kept, one number or one per entry. 1 keeps everything, 0 nothing.

    Returns
    -------
    numpy.ndarray
        True where kept. ``draw * 2^-32`` is exact in float64, so nothing is lost to rounding.

    Examples
    --------
    >>> kept(np.array([0, 2**31, 2**32 - 1], dtype=np.uint32), 0.5)
    array([ True, False, False])
    """
    keep: Bool[np.ndarray, "*shape"] = draws * np.float64(2.0**-32) < probability
    return keep
