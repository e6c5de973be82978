"""The arithmetic of tests of circuits: signs, kernels, and counts against random circuits.

    equivalence   p = sum over k with |k/n - 1/2| >= t of C(n, k) (1/2 + eps)^k (1/2 - eps)^(n-k)
    independence  HSIC = tr(K H L H) / (n - 1)^2,  H = I - 11'/n,  Gaussian kernels,
                  p = (1 + b) / (1 + B) with b of B permutations at least as large
    counts        k of B random circuits, against P >= q* ("less") or P <= q* ("greater")

Ties count half wherever two numbers are compared: a circuit that is exact, or one that does nothing
at all, would otherwise be decided by the sign that was chosen for equality.
"""

import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float

from zeitgeist.errors import InputInvalid

_SLACK = 1e-9  # of shares that are equal but for rounding


def binomial(n: int, p: float) -> Float[np.ndarray, " k"]:
    """Chances of 0 to n successes.

    Examples
    --------
    >>> binomial(2, 0.5).round(12).tolist()
    [0.25, 0.5, 0.25]
    """
    if p in (0.0, 1.0):
        certain: Float[np.ndarray, " k"] = np.eye(n + 1)[n if p else 0]
        return certain
    k = np.arange(n + 1)
    logs = np.array([math.lgamma(i + 1) for i in range(n + 1)])
    chances = np.exp(logs[n] - logs - logs[::-1] + k * math.log(p) + (n - k) * math.log1p(-p))
    found: Float[np.ndarray, " k"] = chances / chances.sum()
    return found


def at_least(k: float | int, n: int, p: float) -> float:
    """The chance of k successes or more; a half success counts as none."""
    return min(1.0, float(binomial(n, p)[max(0, math.floor(k + _SLACK)) :].sum()))


def at_most(k: float | int, n: int, p: float) -> float:
    """The chance of k successes or fewer; a half success counts as one."""
    return min(1.0, float(binomial(n, p)[: math.ceil(k - _SLACK) + 1].sum()))


def differences(
    one: Float[np.ndarray, "*_"], other: Float[np.ndarray, "*_"], tolerance: float
) -> Float[np.ndarray, "*_"]:
    """What one score is above the other, 0 where only rounding sets them apart.

    Parameters
    ----------
    one, other
        Scores.
    tolerance
        Relative to the larger of both, and of 1.
    """
    found = one - other
    near = np.abs(found) <= tolerance * np.maximum(1.0, np.maximum(np.abs(one), np.abs(other)))
    made: Float[np.ndarray, "*_"] = np.where(near, 0.0, found)
    return made


def share_above(delta: Float[np.ndarray, " n"], *, half: bool = True) -> float:
    """The share of positive numbers; zeros count half, or not at all.

    Examples
    --------
    >>> share_above(np.array([1.0, -1.0, 0.0, 0.0])), share_above(np.zeros(3), half=False)
    (0.5, 0.0)
    """
    return float((delta > 0).mean() + (0.5 if half else 0.0) * (delta == 0).mean())


def equivalence_p(share: float, n: int, eps: float) -> float:
    """How likely a share is at least as far from a half, at worst, if the truth is within eps.

    Examples
    --------
    >>> [round(equivalence_p(share, 100, 0.1), 4) for share in (0.5, 0.4, 0.24)]
    [1.0, 0.5433, 0.0006]
    """
    k = np.arange(n + 1)
    far = np.abs(k / n - 0.5) >= abs(share - 0.5) - _SLACK
    return min(1.0, float(binomial(n, 0.5 + eps)[far].sum()))


def within_p(delta: Float[np.ndarray, " n"], margin: float) -> float:
    """Two one-sided sign tests: p of the median difference lying outside of +- margin.

    A small p shows that the circuit is as good as the model, which not rejecting equivalence does
    not. Differences on the margin count as outside.

    Examples
    --------
    >>> round(within_p(np.zeros(10), 0.1), 6), round(within_p(np.full(10, 0.2), 0.1), 6)
    (0.000977, 1.0)
    """
    n = len(delta)
    below, above = int((delta < margin).sum()), int((delta > -margin).sum())
    return max(at_least(below, n, 0.5), at_least(above, n, 0.5))


def gaussian_kernel(
    x: Float[np.ndarray, " n"], bandwidth: float | None = None
) -> Float[np.ndarray, "n n"]:
    """exp(-d^2 / 2 b^2); None: b is the median distance between different numbers."""
    apart = np.abs(x[:, None] - x[None, :])
    if bandwidth is None:
        some = apart[np.triu_indices(len(x), 1)]
        some = some[some > 0]
        bandwidth = float(np.median(some)) if len(some) else 1.0
    made: Float[np.ndarray, "n n"] = np.exp(-0.5 * np.square(apart / bandwidth))
    return made


def hsic(k: Float[np.ndarray, "n n"], other: Float[np.ndarray, "n n"]) -> float:
    """The Hilbert-Schmidt independence criterion of two kernel matrices.

    Examples
    --------
    >>> hsic(np.eye(2), np.eye(2)), hsic(np.eye(2), np.ones((2, 2)))
    (1.0, 0.0)
    """
    return float((_centred(k) * other).sum()) / (len(k) - 1) ** 2


def independence_p(
    k: Float[np.ndarray, "n n"],
    other: Float[np.ndarray, "n n"],
    permutations: int,
    rng: np.random.Generator,
) -> tuple[float, float]:
    """HSIC, and the share of permutations (with the one that is there) that reach it."""
    centred, n = _centred(k), len(k)
    observed = float((centred * other).sum())
    # Sums over the same numbers in another order differ by rounding.
    bound = observed - 1e-12 * float(np.abs(centred).sum())
    reached = 0
    for _ in range(permutations):
        order = rng.permutation(n)
        reached += float((centred * other[np.ix_(order, order)]).sum()) >= bound
    return observed / (n - 1) ** 2, (1 + reached) / (1 + permutations)


def _centred(k: Float[np.ndarray, "n n"]) -> Float[np.ndarray, "n n"]:
    rows = k - k.mean(axis=0, keepdims=True)
    made: Float[np.ndarray, "n n"] = rows - rows.mean(axis=1, keepdims=True)
    return made


def beaten(value: float, reference: Float[np.ndarray, " b"], *, ties: float = 0.5) -> float:
    """How many of the reference a value is above; equal ones count as ``ties``."""
    return float(np.sum(value > reference) + ties * np.sum(value == reference))


def minimality_p(
    effects: Float[np.ndarray, " e"],
    reference: Float[np.ndarray, " b"],
    q_star: float,
    alpha: float,
    *,
    ties: float = 0.5,
) -> tuple[Float[np.ndarray, " e"], Float[np.ndarray, " e"], Bool[np.ndarray, " e"]]:
    """By edge: how many random edges it matters more than, p of q* of all, and whether it goes.

    Bonferroni over the edges, which holds whatever their dependence through the shared reference.

    Examples
    --------
    >>> counts, p, gone = minimality_p(np.array([2.0, 0.0]), np.linspace(0, 1, 100), 0.9, 0.05)
    >>> counts.tolist(), gone.tolist()
    ([100.0, 0.5], [False, True])
    """
    counts = np.array([beaten(float(each), reference, ties=ties) for each in effects])
    p = np.array([at_most(k, len(reference), q_star) for k in counts])
    return counts, p, p * len(effects) < alpha


def median_interval(
    x: Float[np.ndarray, " n"], rng: np.random.Generator, *, resamples: int = 2000
) -> tuple[float, float, float]:
    """A median and its 95 % percentile bootstrap interval."""
    drawn = np.median(x[rng.integers(0, len(x), (resamples, len(x)))], axis=1)
    low, high = np.quantile(drawn, [0.025, 0.975])
    return float(np.median(x)), float(low), float(high)


def least_p(n: int, eps: float) -> float:
    """The smallest p that the equivalence test can give for n examples."""
    return equivalence_p(1.0, n, eps)


CALIBRATED = ("equivalence", "within", "independence", "minimality", "flexible")


def type_one_error(
    test: str,
    *,
    repeats: int = 1000,
    n: int = 100,
    draws: int = 100,
    edges: int = 20,
    permutations: int = 200,
    eps: float = 0.1,
    q_star: float = 0.9,
    alpha: float = 0.05,
    seed: int = 0,
) -> float:
    """How often a test rejects where its null hypothesis holds, at the edge of it.

    Signs with chance 1/2 + eps (equivalence), a median on the margin (within), independent normal
    numbers (independence), and effects that exceed exactly q* of random ones (the others; for
    minimality all of ``edges`` are such, and rejecting any counts).

    Parameters
    ----------
    test
        One of `CALIBRATED`.
    repeats
        Simulated data sets.
    n, draws, edges, permutations, eps, q_star, alpha
        As in the tests.
    seed
        Of the simulation.

    Returns
    -------
    float
        A share; at most ``alpha`` up to simulation error for a valid test.
    """
    simulations: dict[str, Callable[[np.random.Generator], bool]] = {
        "equivalence": lambda rng: equivalence_p(rng.binomial(n, 0.5 + eps) / n, n, eps) < alpha,
        "within": lambda rng: within_p(rng.normal(1.0, 1.0, n), 1.0) < alpha,
        "independence": lambda rng: (
            independence_p(
                gaussian_kernel(rng.normal(size=n)),
                gaussian_kernel(rng.normal(size=n)),
                permutations,
                rng,
            )[1]
            < alpha
        ),
        "minimality": lambda rng: bool(
            minimality_p(np.full(edges, q_star), rng.random(draws), q_star, alpha)[2].any()
        ),
        "flexible": lambda rng: at_least(beaten(q_star, rng.random(draws)), draws, q_star) < alpha,
    }
    if test not in simulations:
        raise InputInvalid(f"no test is called {test!r}", mend=f"known are {', '.join(CALIBRATED)}")
    rng = np.random.default_rng(seed)
    return sum(simulations[test](rng) for _ in range(repeats)) / repeats
