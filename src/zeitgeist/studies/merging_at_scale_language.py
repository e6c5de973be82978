"""One language check of merging at scale: SmolLM2, LoRA experts, two and four of them merged.

The four tasks are merged all at once, and the first two of them alone, so that these two stand in a
merge of two experts and in a merge of four. Lambda is chosen on validation items: two merges for
task arithmetic and for TIES; averaging has nothing to tune.
"""

from collections.abc import Iterator, Mapping, Sequence

from zeitgeist.evidence import Measured
from zeitgeist.studies.language import Bench, Merges, measured, tuned

LAMBDAS: Mapping[str, Sequence[float]] = {
    "linear": (),
    "task_arithmetic": (0.4, 0.8),
    "ties": (1.0, 1.6),
}
"""Merge method to what is tried; densities are the published ones."""


def measure(arm: str, bench: Bench) -> Iterator[Measured]:
    """The numbers of one arm.

    Per task, labelled by the number of ``experts``: ``held_in_absolute`` (exact answers),
    ``held_in`` (the same relative to the task's own expert) and ``recovered``; of merges of all
    experts, and of base and experts, ``perplexity_ratio`` per text; ``lambda``, ``evaluations``.
    """
    tasks = [task.slug for task in bench.tasks]
    if arm == "base":
        yield from _of(measured(bench, bench.alone["base"], tasks))
        return
    if arm == "expert":
        for task in tasks:
            yield from _of(measured(bench, bench.alone[task], [task]))
        return
    method = "linear" if arm == "average" else arm
    for members in (tasks[: len(tasks) // 2], tasks):
        known = {"experts": len(members)}
        everything = len(members) == len(tasks)
        with Merges(bench, method, members=members) as merges:
            tried = [{"lambda": value} for value in LAMBDAS[method]]
            values, evaluations = tuned(merges, [tried]) if tried else ({}, 0)
            sets = {task: bench.test[task] for task in members}
            scores = merges.score(values, {**sets, **(bench.texts if everything else {})})
        yield from _of(measured(bench, scores, members), **known)
        yield Measured("evaluations", evaluations, known)
        if values:
            yield Measured("lambda", values["lambda"], known)


_NAMES = {"exact": "held_in_absolute", "kept": "held_in"}


def _of(rows: Iterator[Measured], **labels: int) -> Iterator[Measured]:
    """Under this study's names; windows of texts are left to their perplexity."""
    for row in rows:
        if row.metric != "nll":
            name = _NAMES.get(row.metric, row.metric)
            yield row._replace(metric=name, labels={**row.labels, **labels})
