"""Five tests of a circuit, and one of our own, on scores of masked runs.

Ideal (the null says that the circuit is ideal; it passes unless that is rejected):

    equivalence     it beats the model on about half of the examples: |P(Delta > 0) - 1/2| < eps
    independence    what is left without it says nothing of how the model does
    minimality      every edge matters more than q* of edges added at random

Flexible (the null says that it is nothing special; it passes where that is rejected):

    sufficiency     it is closer to the model than q* of random circuits
    necessity       the model without it is further away than without q* of random circuits

Ours, in the other direction of equivalence (it passes where difference is rejected):

    within          the median difference to the model lies within a margin

Shi, Beltran-Velez, Nazaret, Zheng, Garriga-Alonso, Jesson, Makar, Blei: arXiv 2410.13032.
"""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Bool, Float

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_bench import Bench
from zeitgeist.inspection.circuit_graph import PathSampler
from zeitgeist.inspection.circuit_report import TestRecord
from zeitgeist.inspection.circuit_statistics import (
    at_least,
    beaten,
    differences,
    equivalence_p,
    gaussian_kernel,
    independence_p,
    least_p,
    median_interval,
    minimality_p,
    share_above,
    within_p,
)

TRIES = 20_000
"""Paths that are drawn before a circuit counts as too dense to be inflated."""


def equivalence(bench: Bench) -> TestRecord:
    """Whether the circuit and the model do better on about as many examples each."""
    known, n = bench.settings, len(bench.delta)
    share = share_above(bench.delta, half=known.ties == "half")
    p = equivalence_p(share, n, known.eps)
    warnings = []
    if least_p(n, known.eps) >= known.alpha:
        warnings.append(f"{n} examples can never reject: uninformative")
    if not bench.delta.any():
        warnings.append("all scores are the model's own: identical")
    middle, low, high = median_interval(bench.delta, bench.rng(0))
    rejected = p < known.alpha
    return TestRecord(
        "equivalence",
        f"the circuit is worse on a share of examples within {known.eps:g} of a half",
        n,
        share,
        p,
        rejected,
        "fails" if rejected else "passes",
        {
            "median difference": middle,
            "low": low,
            "high": high,
            "mean difference": float(bench.delta.mean()),
            "faithfulness": bench.faithfulness(bench.own),
        },
        tuple(warnings),
    )


def within(bench: Bench) -> TestRecord:
    """Whether the median difference is shown to be small against that of cutting everything."""
    known, n = bench.settings, len(bench.delta)
    far = float(np.median(np.abs(differences(bench.cut, bench.whole, known.tolerance))))
    margin = known.margin * far
    p = within_p(bench.delta, margin)
    warnings = []
    if margin == 0.0:
        warnings.append("cutting everything changes nothing, so no margin follows: uninformative")
    if 0.5**n >= known.alpha:
        warnings.append(f"{n} examples can never reject: uninformative")
    middle, low, high = median_interval(bench.delta, bench.rng(0))
    rejected = p < known.alpha
    return TestRecord(
        "within",
        f"the median difference to the model is at least {margin:.4g} "
        f"({known.margin:.0%} of what cutting everything does)",
        n,
        middle,
        p,
        rejected,
        "passes" if rejected else "fails",
        {"margin": margin, "low": low, "high": high},
        tuple(warnings),
    )


def independence(bench: Bench) -> TestRecord:
    """Whether how the complement does on an example goes with how the model does on it."""
    known = bench.settings
    sides = {"the model": bench.whole, "the complement": bench.without}
    warnings = [
        f"{name} scores every example alike: uninformative"
        for name, scores in sides.items()
        if not differences(scores, scores[:1], known.tolerance).any()
    ]
    kernels = [gaussian_kernel(scores, known.bandwidth) for scores in sides.values()]
    if warnings:
        statistic, p = 0.0, 1.0
    else:
        statistic, p = independence_p(kernels[0], kernels[1], known.permutations, bench.rng(1))
    if 1 / (1 + known.permutations) >= known.alpha:
        warnings.append(f"{known.permutations} permutations can never reject: uninformative")
    rejected = p < known.alpha
    return TestRecord(
        "independence",
        "the complement's scores are independent of the model's",
        len(bench.whole),
        statistic,
        p,
        rejected,
        "fails" if rejected else "passes",
        {
            "complement's mean score": float(bench.without.mean()),
            "complement's faithfulness": bench.faithfulness(bench.without),
        },
        tuple(warnings),
    )


def minimality(bench: Bench) -> TestRecord:
    """Whether every edge matters more than edges of random paths that are added."""
    known, circuit = bench.settings, bench.circuit
    edges = np.argwhere(circuit)
    if known.minimality_edges is not None and known.minimality_edges < len(edges):
        edges = bench.rng(5).permutation(edges)[: known.minimality_edges]
    count = len(edges)
    name, null = "minimality", f"every edge matters more than {known.q_star:g} of random ones"
    try:
        added = _inflated(bench)
    except InputInvalid as error:
        return _not_testable(name, null, str(error))

    def without(edge: Sequence[int], of: Bool[np.ndarray, "s r"]) -> Bool[np.ndarray, "s r"]:
        less = of.copy()
        less[tuple(edge)] = False
        return less

    cut = bench.scores((without(edge, circuit) for edge in edges.tolist()), count)
    effects = bench.squared(cut, bench.own)
    grown = bench.scores(
        (each for more, edge in added for each in (more, without(edge, more))), 2 * len(added)
    )
    reference = bench.squared(grown[0::2], grown[1::2])
    counts, p, gone = minimality_p(effects, reference, known.q_star, known.alpha, ties=bench.half)
    order = np.argsort(-effects, kind="stable")
    table = tuple(
        {
            "edge": bench.graph.name(*map(int, edges[i])),
            "effect": float(effects[i]),
            "count": float(counts[i]),
            "p": float(p[i]),
            "rejected": bool(gone[i]),
        }
        for i in order
    )
    warnings = []
    if count < (total := int(circuit.sum())):
        warnings.append(f"{count} of {total} edges were tried")
    if count * (1 - known.q_star) ** known.draws >= known.alpha:
        warnings.append(
            f"{known.draws} random edges can never reject any of {count} edges: uninformative"
        )
    return TestRecord(
        name,
        null,
        count,
        float(counts.min()),
        min(1.0, float(p.min()) * count),
        bool(gone.any()),
        "fails" if gone.any() else "passes",
        {
            "edges that could go": float(gone.sum()),
            "share": float(gone.mean()),
            "median effect": float(np.median(effects)),
            "median of random": float(np.median(reference)),
        },
        tuple(warnings),
        table,
        tuple(float(x) for x in reference),
    )


def _inflated(bench: Bench) -> list[tuple[Bool[np.ndarray, "s r"], tuple[int, int]]]:
    """The circuit with a random path added, and a random one of the edges that this added."""
    rng, circuit, found = bench.rng(2), bench.circuit, []
    if not bench.complement.any():
        raise InputInvalid(
            "the circuit is the whole model: no edge can be added", mend="test a smaller one"
        )
    sampler = PathSampler(bench.graph)
    for _ in range(0, TRIES, 100):
        rows, columns = sampler.paths(100, rng)
        for each in range(rows.shape[1]):
            steps = rows[:, each] >= 0
            path = list(zip(rows[steps, each].tolist(), columns[steps, each].tolist(), strict=True))
            new = [edge for edge in path if not circuit[edge]]
            if new:
                more = circuit.copy()
                more[tuple(np.array(path).T)] = True
                found.append((more, new[rng.integers(len(new))]))
            if len(found) == bench.settings.draws:
                return found
    raise InputInvalid(
        f"of {TRIES:,} random paths {len(found)} added an edge", mend="test a smaller circuit"
    )


def sufficiency(bench: Bench) -> TestRecord:
    """Whether the circuit is closer to the model than random ones of its size, and of others."""
    known, size = bench.settings, int(bench.circuit.sum())
    own = float(bench.squared(bench.own[None], bench.whole)[0])

    def closer(f: Float[np.ndarray, " b"]) -> float:
        ties = 0.5 if known.ties == "half" else 1.0
        return beaten(-own, -f, ties=ties)

    return _flexible(
        bench,
        "sufficiency",
        f"at most {known.q_star:g} of random circuits are further from the model",
        PathSampler(bench.graph),
        lambda drawn: drawn,
        own,
        closer,
        {"distance of the circuit": own, "faithfulness": bench.faithfulness(bench.own)},
        [size, *_sizes(bench)],
        3,
    )


def necessity(bench: Bench) -> TestRecord:
    """Whether cutting the circuit hurts more than cutting random circuits of its size."""
    known, size = bench.settings, int(bench.circuit.sum())
    own = float(bench.squared(bench.without[None], bench.whole)[0])
    null = f"cutting at most {known.q_star:g} of random circuits hurts less"
    apart = known.reference == "complement"
    try:
        sampler = PathSampler(bench.graph, bench.complement if apart else None)
        if size > int(sampler.available.sum()):
            raise InputInvalid(f"the complement has no paths of {size} edges")
    except InputInvalid as error:
        return _not_testable("necessity", null, str(error))
    sizes = [s for s in _sizes(bench) if s <= int(sampler.available.sum())]
    return _flexible(
        bench,
        "necessity",
        null,
        sampler,
        lambda drawn: bench.graph.allowed & ~drawn,
        own,
        lambda f: beaten(own, f, ties=bench.half),
        {
            "distance of the complement": own,
            "complement's faithfulness": bench.faithfulness(bench.without),
        },
        [size, *sizes],
        4,
    )


def _sizes(bench: Bench) -> list[int]:
    total = bench.graph.edge_count
    return [max(1, round(share * total)) for share in bench.settings.sizes]


def _flexible(
    bench: Bench,
    name: str,
    null: str,
    sampler: PathSampler,
    run: Callable[[Bool[np.ndarray, "s r"]], Bool[np.ndarray, "s r"]],
    own: float,
    count: Callable[[Float[np.ndarray, " b"]], float],
    effects: dict[str, float | None],
    sizes: list[int],
    number: int,
) -> TestRecord:
    """Against random circuits of every size; the first is the one that is tested."""
    known, rows = bench.settings, []
    references = []
    for i, size in enumerate(sizes):
        rng = np.random.default_rng([known.seed, number, i])
        drawn = (run(sampler.circuit(size, rng)) for _ in range(known.draws))
        f = bench.squared(bench.scores(drawn, known.draws), bench.whole)
        k = count(f)
        p = at_least(k, known.draws, known.q_star)
        low, middle, high = np.quantile(f, [0.05, 0.5, 0.95])
        rows.append(
            {
                "size": size,
                "count": k,
                "share": k / known.draws,
                "p": p,
                "rejected": p < known.alpha,
                "low": float(low),
                "median": float(middle),
                "high": float(high),
            }
        )
        references.append(f)
    warnings = []
    if known.q_star**known.draws >= known.alpha:
        warnings.append(f"{known.draws} random circuits can never reject: uninformative")
    if not np.ptp(references[0]) and references[0][0] == own:
        warnings.append("random circuits are all exactly as far away: uninformative")
    first = rows[0]
    middle_of_random = float(np.median(references[0]))
    return TestRecord(
        name,
        null,
        known.draws,
        float(first["count"]),
        float(first["p"]),
        bool(first["rejected"]),
        "passes" if first["rejected"] else "fails",
        {**effects, "median of random": middle_of_random},
        tuple(warnings),
        tuple(rows),
        tuple(float(x) for x in references[0]),
    )


def _not_testable(name: str, null: str, why: str) -> TestRecord:
    return TestRecord(name, null, 0, 0.0, 1.0, False, "not testable", {}, (why,))


TESTS: dict[str, Callable[[Bench], TestRecord]] = {
    "equivalence": equivalence,
    "within": within,
    "independence": independence,
    "minimality": minimality,
    "sufficiency": sufficiency,
    "necessity": necessity,
}
