"""KnOTS against TIES on LoRA experts of a real language model, every arm tuned on equal terms.

Setup B of the study: rank 8 against a width of 576, so that experts choose their subspaces freely.
Each arm may score eight merges on validation items: task arithmetic tries eight lambdas; the
others five lambdas at the published density (or drop), then three more densities at the best
lambda, one after the other as the paper tunes.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from operator import add
from pathlib import Path
from tempfile import TemporaryDirectory

from zeitgeist.evidence import Measured
from zeitgeist.merging import merge_adapters
from zeitgeist.studies.knots_digits import between_pairs
from zeitgeist.studies.language import Bench, Merges, measured, tuned

Stages = Sequence[Sequence[Mapping[str, float]]]

_LAMBDAS = (0.4, 0.7, 1.0, 1.5, 2.0)
_DENSITIES: Stages = (
    [{"lambda": value} for value in _LAMBDAS],
    [{"density": value} for value in (0.1, 0.5, 1.0)],
)
STAGES: Mapping[str, Stages] = {
    "task_arithmetic": ([{"lambda": v} for v in (0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.85, 1.0)],),
    "ties": _DENSITIES,
    "knots_ties": _DENSITIES,
}
"""What each arm tries: eight merges."""


def measure(arm: str, bench: Bench) -> Iterator[Measured]:
    """Tune one arm on validation items and score it on test items."""
    tasks = [task.slug for task in bench.tasks]
    with Merges(bench, arm) as merges:
        values, evaluations = tuned(merges, STAGES[arm])
        scores = merges.score(values, {**bench.test, **bench.texts})
    yield from measured(bench, scores, tasks)
    yield Measured("evaluations", evaluations)
    for name, value in values.items():
        yield Measured(name, value)
    if arm == "knots_ties":
        yield from _alignment(bench)


def _alignment(bench: Bench) -> Iterator[Measured]:
    """Pairwise cosine and sign conflict over all layers, mean over pairs, in both bases."""
    with TemporaryDirectory() as work:
        report = merge_adapters(
            [expert.path for expert in bench.experts],
            Path(work) / "merged",
            density=1.0,
            progress=False,
        )
    for stage, basis in (("before", "own"), ("after", "shared")):
        found = reduce(add, (getattr(layer, stage) for layer in report.layers.values()))
        yield Measured("cosine", between_pairs(found.cosine), {"basis": basis})
        yield Measured("sign_conflict", between_pairs(found.conflict), {"basis": basis})
