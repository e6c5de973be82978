"""Before merging: how large the experts' updates are, and where they pull apart.

For each block of layers: the norm of every task vector, relative to the base; the cosine of every
pair; and the share of entries, among those both keep after trimming, on which a pair disagrees in
sign. Large updates, cosines near 0 and many conflicts in the same blocks are where merging loses.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64, Int64

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.blocks import detect_blocks
from zeitgeist.merging.inputs import close_models
from zeitgeist.merging.methods import make_options
from zeitgeist.merging.plan import Plan
from zeitgeist.merging.recipes.recipe import Recipe
from zeitgeist.merging.streaming import kernels, statistics
from zeitgeist.merging.streaming.chunks import Chunks, Run
from zeitgeist.merging.streaming.merger import Merger
from zeitgeist.merging.streaming.steps import Step
from zeitgeist.merging.to_disk import plan_recipe, read_recipes, worker_threads


@dataclass(frozen=True)
class BlockConflicts:
    """One block of layers (or what lies outside the blocks).

    ``norms``: L2 norm of each expert's task vector; ``base_norm`` of the base. ``cosine`` and
    ``conflict``: (n, n); conflict is the share of entries kept by both that differ in sign.
    ``kept``: share of entries that each expert keeps.
    """

    block: str
    entries: int
    base_norm: float
    norms: tuple[float, ...]
    cosine: tuple[tuple[float, ...], ...]
    conflict: tuple[tuple[float, ...], ...]
    kept: tuple[float, ...]

    def summary(self) -> tuple[float, float, float]:
        """Mean relative norm, and mean cosine and sign conflict over the pairs (NaN without)."""
        n = len(self.norms)
        pairs = [(i, k) for i in range(n) for k in range(i)]
        relative = sum(self.norms) / n / self.base_norm if self.base_norm else math.nan
        if not pairs:
            return relative, math.nan, math.nan
        cosine = sum(self.cosine[i][k] for i, k in pairs) / len(pairs)
        return relative, cosine, sum(self.conflict[i][k] for i, k in pairs) / len(pairs)


@dataclass(frozen=True)
class ConflictReport:
    """Every block and the whole model, which comes last."""

    experts: tuple[str, ...]
    density: float
    blocks: tuple[BlockConflicts, ...]

    @property
    def whole(self) -> BlockConflicts:
        """The model as one block."""
        return self.blocks[-1]

    def rows(self) -> list[dict[str, Any]]:
        """One tidy row per block, pair and quantity."""
        return list(self._rows())

    def _rows(self) -> Iterator[dict[str, Any]]:
        for part in self.blocks:
            for i, one in enumerate(self.experts):
                relative = part.norms[i] / part.base_norm if part.base_norm else math.nan
                yield {"block": part.block, "expert": one, "quantity": "relative norm",
                       "value": relative}  # fmt: skip
                for k, other in enumerate(self.experts[:i]):
                    pair = {"block": part.block, "expert": one, "other": other}
                    yield {**pair, "quantity": "cosine", "value": part.cosine[i][k]}
                    yield {**pair, "quantity": "sign conflict", "value": part.conflict[i][k]}


@dataclass
class _Sums:
    entries: int
    base: float
    gram: Float64[np.ndarray, "n n"]
    both: Int64[np.ndarray, "n n"]
    opposed: Int64[np.ndarray, "n n"]

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.entries + other.entries,
            self.base + other.base,
            self.gram + other.gram,
            self.both + other.both,
            self.opposed + other.opposed,
        )


def compare(
    recipe: Recipe | Mapping[str, Any] | str | Path,
    *,
    density: float = 0.2,
    threads: int | None = None,
    progress: bool | None = None,
) -> ConflictReport:
    """Norms, cosines and sign conflicts of the experts' task vectors, per block.

    Parameters
    ----------
    recipe
        As for `zeitgeist.merging.merge`; its method does not matter, but it must have a base.
    density
        Share of each task vector, over the whole model, that counts for the sign conflicts: the
        trim of TIES (arXiv 2306.01708: 0.2).
    threads, progress
        As for `merge`.

    Raises
    ------
    InputInvalid
        There is no base, or the experts do not share their tensors.
    """
    read = read_recipes(recipe)[0]
    # Whatever the method, what is compared is the experts' differences from the base.
    plain = replace(read, method="task_arithmetic", compat=None, lines=None)
    plan = plan_recipe(plain, progress=progress)
    try:
        with Chunks(threads=worker_threads(threads), progress=progress) as chunks:
            return _compare(plan, chunks, density)
    finally:
        close_models(plan.models)


def _compare(plan: Plan, chunks: Chunks, density: float) -> ConflictReport:
    # Signs of zero sums do not matter here; looking for their majority would cost a pass.
    options = make_options("ties", {"density": density, "zero_sum": "positive"})
    steps = [
        replace(step, method="ties", options=options, scale=1.0, compat=None)
        for step in plan.steps
        if step.options is not None and step.base is not None
    ]
    counts = {step.positions for step in steps}
    if not steps or len(counts) != 1:
        raise InputInvalid(
            "task vectors need a base that all experts share",
            origin=plan.recipe.origin,
            mend="give base_model (--base) and experts with the same tensors",
        )
    part = next(plan.recipe.slices())
    experts = tuple(source.model for source in plan.recipe.experts(part))
    merger = Merger(steps, chunks)
    sums: dict[str, _Sums] = {}
    place = _blocks([step.name for step in steps])
    with chunks.bar(sum(step.entries for step in steps), "compare", " weights") as bar:
        for step in steps:
            found = _of_one(merger, step, chunks)
            block = place[step.name]
            sums[block] = sums[block] + found if block in sums else found
            bar.update(step.entries)
    first, *rest = sums.values()
    whole = sum(rest, start=first)
    # In the order of the model: files list block 10 before block 2.
    ordered = {block: sums[block] for block in dict.fromkeys(place.values())}
    parts = [_summary(block, found) for block, found in {**ordered, "all": whole}.items()]
    return ConflictReport(experts, density, tuple(parts))


def _blocks(names: Sequence[str]) -> dict[str, str]:
    """The block of every tensor, ``prefix.number``; what lies outside is ``other``."""
    place: dict[str, str] = {}
    for stack in detect_blocks(names):
        for index, members in zip(stack.indices, stack.names, strict=True):
            number = ".".join(map(str, index)) if isinstance(index, tuple) else str(index)
            place.update(dict.fromkeys(members, f"{stack.prefix}.{number}"))
    outside = {name: "other" for name in names if name not in place}
    return outside | place


def _of_one(merger: Merger, step: Step, chunks: Chunks) -> _Sums:
    rule, n = merger.rule(step), len(step.experts)

    def part(run: Run) -> tuple[Int64[np.ndarray, "2 n n"], float]:
        stack, counts = chunks.load(run), np.zeros((2, n, n), np.int64)
        kernels.clashes(stack, rule, counts[0], counts[1])
        return counts, float(np.square(stack[-1].astype(np.float64)).sum())

    counted = list(chunks.map(part, chunks.runs(step)))
    both, opposed = np.sum([counts for counts, _ in counted], axis=0)
    gram = statistics.gram(chunks, step, rule)
    base = math.fsum(square for _, square in counted)
    return _Sums(step.entries, base, gram, both, opposed)


def _summary(block: str, sums: _Sums) -> BlockConflicts:
    norms = np.sqrt(np.diag(sums.gram))
    scale = np.where(norms > 0, norms, 1.0)
    cosine = sums.gram / np.outer(scale, scale)
    both = sums.both + np.tril(sums.both, -1).T
    opposed = sums.opposed + np.tril(sums.opposed, -1).T
    conflict = np.divide(opposed, both, out=np.zeros(both.shape), where=both > 0)
    return BlockConflicts(
        block,
        sums.entries,
        math.sqrt(sums.base),
        tuple(norms.tolist()),
        tuple(map(tuple, cosine.tolist())),
        tuple(map(tuple, conflict.tolist())),
        tuple((np.diag(both) / sums.entries).tolist()),
    )
