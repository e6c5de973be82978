"""Running a merge: for each tensor what must be known first, then one pass that writes.

Nothing is held but a few chunks per thread, and the result does not depend on the chunk size, the
order of the shards or the number of threads.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import fields
from typing import Any, TypeVar

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.merging import interpolation
from zeitgeist.merging.methods import METHODS
from zeitgeist.merging.rounding import round_once
from zeitgeist.merging.sparsify import band_ranks, selected_count
from zeitgeist.merging.streaming import kernels, statistics
from zeitgeist.merging.streaming.chunks import Chunks, Run, across, by_rows, is_row_local
from zeitgeist.merging.streaming.kernels import Rule
from zeitgeist.merging.streaming.sources import OnDisk, Source, Stored, check_finite
from zeitgeist.merging.streaming.steps import Sink, Step
from zeitgeist.merging.tensors import SCE_TOO_SMALL, merge_tensors

R = TypeVar("R")

_KERNEL_DTYPE = {
    torch.bfloat16: np.uint16,  # its bits
    torch.float16: np.float64,  # numpy rounds float64 to float16 in one step
    torch.float32: np.float32,
    torch.float64: np.float64,
}


class Merger:
    """Makes the tensors that a list of steps describes.

    Parameters
    ----------
    steps
        What to make, in the order of the output.
    chunks
        How to cut and on how many threads.
    """

    def __init__(self, steps: Sequence[Step], chunks: Chunks) -> None:
        self.steps = tuple(steps)
        self.chunks = chunks
        self._of_the_model: dict[object, Any] = {}

    def run(self, sink: Sink) -> None:
        """Make every tensor that the sink still waits for."""
        pending = sink.pending
        todo = [step for step in self.steps if step.name in pending]
        total = sum(step.entries * step.dtype.itemsize for step in todo)
        with self.chunks.bar(total, "merge", "B") as bar:
            for step in todo:
                make = self._maker(step)

                def write(run: Run, make: Callable[[Run], Tensor] = make) -> int:
                    values = make(run)
                    sink.write(run.step.name, run.start, values)
                    return values.numel() * values.element_size()

                for written in self.chunks.map(write, self.chunks.runs(step)):
                    bar.update(written)
                sink.done(step.name)

    def update_norms(self) -> tuple[float, float]:
        """L1 norms over the model: of the plain sum of the updates, and of the merged update.

        What the alpha rule of LiNeS compares.
        """
        steps = [step for step in self.steps if step.rule is not None]
        plain, merged = [], []
        with self.chunks.bar(len(steps), "norms", " tensors") as bar:
            for step in steps:
                assert step.rule is not None
                last = statistics.moments(self.chunks, step, self.rule(step), mixed=True)[-1]
                plain.append(last[0])
                merged.append(abs(step.rule.lambda_) * last[1])
                bar.update()
        return math.fsum(plain), math.fsum(merged)

    def rule(self, step: Step) -> Rule:
        """The kernels' rule for one tensor, with every number that must be known beforehand."""
        told, rule = step.rule, first_rule(step)
        if told is None:
            return rule
        group = self._trimmed_together(step) if told.scope == "global" else (step,)
        if told.sparsify in ("magnitude", "band", "variance"):
            rule = rule._replace(**self._once(group, "limits", lambda: self._limits(group, rule)))
        if told.elect != "none" and told.zero_sum == "majority" and len(step.experts) > 1:
            balance = self._once(group, "votes", lambda: statistics.votes(self.chunks, group, rule))
            rule = rule._replace(zero_sum=-1.0 if balance < 0 else 1.0)
        if told.rescale == "l1":
            before, after = statistics.moments(self.chunks, step, rule)[:-1, :2].T
            safe = (before >= 1e-7) & (after >= 1e-7)
            factor = np.divide(before, after, out=np.ones(len(before)), where=safe)
            rule = rule._replace(factor=factor)
        if told.sparsify == "variance":
            squares = statistics.moments(self.chunks, step, rule)[:-1, 2] / max(1, step.entries)
            total, even = squares.sum(), np.full(len(squares), 1 / len(squares))
            rule = rule._replace(weights=squares / total if total > rule.smallest_divisor else even)
        return rule

    def _trimmed_together(self, step: Step) -> tuple[Step, ...]:
        """The tensors that share thresholds with this one: the same experts and densities."""

        def alike(other: Step) -> tuple[object, ...]:
            return (other.method, other.positions, other.per_expert("density"))

        key = ("group", *alike(step))
        if key not in self._of_the_model:
            self._of_the_model[key] = tuple(s for s in self.steps if alike(s) == alike(step))
        return self._of_the_model[key]  # type: ignore[no-any-return]

    def _once(self, group: tuple[Step, ...], what: str, make: Callable[[], R]) -> R:
        """A number of the whole model is made once; a number of one tensor is not kept."""
        if len(group) == 1:
            return make()
        key = (what, id(group))  # `_trimmed_together` keeps it; its names can be thousands
        if key not in self._of_the_model:
            self._of_the_model[key] = make()
        return self._of_the_model[key]  # type: ignore[no-any-return]

    def _limits(self, group: Sequence[Step], rule: Rule) -> dict[str, Any]:
        """Thresholds of step 2 or 4 of the kernels over a group of tensors."""
        step, total = group[0], sum(s.entries for s in group)

        def largest(*ranks: Sequence[int]) -> Any:
            capped = [[min(rank, total) for rank in each] for each in ranks]
            return statistics.order_statistics(self.chunks, group, rule, *capped)

        if step.rule is not None and step.rule.sparsify == "variance":
            rule = rule._replace(variance_floor=0.0)
            share, told = step.options.select_topk, step.compat is not None
            if share >= 1:
                return {}
            count = statistics.varying(self.chunks, group, rule) if share > 0 else 0
            keep = selected_count(count, share, as_mergekit=told) if share > 0 else 0
            return {"variance_floor": float(largest([keep])[0, 0]) if keep else np.inf}
        told, densities = step.compat is not None, step.per_expert("density")
        ranks = [
            band_ranks(total, density, gamma, as_mergekit=told)
            for density, gamma in zip(densities, step.per_expert("gamma"), strict=True)
        ]
        # mergekit lets a band keep nothing; a trim keeps one entry unless density is 0.
        least = 1 if told and step.rule is not None and step.rule.sparsify == "band" else 0
        dropped = np.array([d <= 0 or int(d * total) < least for d in densities])
        lows, highs = zip(*ranks, strict=True)
        found = largest(lows) if set(highs) == {1} else largest(lows, highs)
        found[0, dropped] = np.inf
        return dict(zip(("lo", "hi"), found, strict=False))

    def _maker(self, step: Step) -> Callable[[Run], Tensor]:
        """A function from a run to its merged entries in the output's dtype."""
        origin = taken_as_is(step)
        if origin is not None:
            return lambda run: _copied(origin, run)
        if _by_reference(step):
            return lambda run: self._reference(run)
        if step.rule is not None:
            rule = self.rule(step)

            def merged(run: Run) -> Tensor:
                stack, out = self.chunks.pack(run), self._blank(run)
                kernels.merge(stack, rule, *self.chunks.chance(run, rule, stack), out)
                return _typed(out, step)

            return merged
        coefficients, divisor = self.coefficients(step)

        def combined(run: Run) -> Tensor:
            out = self._blank(run)
            kernels.combine(self.chunks.pack(run), coefficients, divisor, out)
            return _typed(out, step)

        return combined

    def _blank(self, run: Run) -> np.ndarray:
        dtype = _KERNEL_DTYPE[run.step.dtype]
        return self.chunks.scratch("out", (run.stop - run.start,), dtype)

    def coefficients(self, step: Step) -> tuple[Float64[np.ndarray, " rows"], float]:
        """What each expert and the base are multiplied with, and what their sum is divided by."""
        weights = torch.tensor(step.weights, dtype=torch.float64)
        rule = first_rule(step)
        from_base = step.base is not None and step.method not in ("linear", "slerp", "karcher")
        if not from_base:
            rule = rule._replace(is_delta=np.ones(len(step.experts), bool))
        own, divisor = 1.0 if from_base else 0.0, 1.0
        if step.method == "passthrough":
            c = torch.tensor(step.per_expert("scale"), dtype=torch.float64)
        elif step.method == "linear":
            c = weights
            divisor = interpolation.linear_divisor(weights, normalize=step.options.normalize)
        else:
            gram = torch.from_numpy(statistics.gram(self.chunks, step, rule))
            c = interpolation.coefficients(
                step.method, gram, weights, step.options, as_mergekit=step.compat is not None
            )
        c = c * step.scale
        taken = c[torch.from_numpy(~first_rule(step).is_delta)].sum() if from_base else 0.0
        base = own - taken if from_base else (1.0 - step.scale) * divisor
        return np.append(c.numpy(), float(base)), divisor

    def _reference(self, run: Run) -> Tensor:
        """`merge_tensors` itself on whole rows, for methods that are never hot."""
        step = run.step
        stack = torch.from_numpy(self.chunks.load(run)).double()
        shape = step.shape if across(step) else (-1, step.columns) if is_row_local(step) else (-1,)
        base, experts = stack[-1].view(shape), [row.view(shape) for row in stack[:-1]]
        merged = merge_tensors(
            step.method,
            experts,
            base=base if step.base else None,
            weights=step.weights if step.weights_given else None,
            name=step.name,
            seed=self.chunks.seed,
            compat=step.compat,
            **{field.name: getattr(step.options, field.name) for field in fields(step.options)},
        )
        if step.scale != 1.0:
            merged = base + step.scale * (merged - base)
        return _in_range(step, round_once(merged.flatten(), step.dtype))


def first_rule(step: Step) -> Rule:
    """The kernels' rule as far as the step alone determines it."""
    n, told = len(step.experts), step.rule
    rule = Rule(
        weights=np.array(step.weights or (1.0,) * n, np.float64),
        lo=np.zeros(n, np.float32),
        hi=np.full(n, np.inf, np.float32),
        keep=np.array(step.per_expert("density", 1.0), np.float64),
        factor=np.ones(n),
        is_delta=np.array([source.is_delta for source in step.experts]),
        random=False,
        rescale=False,
        variance_floor=-1.0,
        consensus=False,
        weighted_election=False,
        zero_sum=1.0,
        normalize=False,
        smallest_divisor=0.0,
        tall_k=0,
        tall_lambda=0.0,
        scale=step.scale,
    )
    if told is None:
        return rule
    rule = rule._replace(
        random=told.sparsify in ("random", "ranked"),
        rescale=told.rescale == "probability",
        consensus=told.elect != "none",
        weighted_election=told.elect == "weighted",
        # mergekit divides by 1 where the weights sum to almost nothing
        normalize=told.normalize
        and not (told.compat and told.elect == "none" and abs(sum(step.weights)) < 1e-8),
        smallest_divisor=SCE_TOO_SMALL if told.compat and told.sparsify == "variance" else 0.0,
        scale=told.lambda_ * step.scale,
    )
    if told.sparsify == "tall":
        rule = rule._replace(tall_k=step.options.k, tall_lambda=step.options.tall_lambda)
    return rule


def taken_as_is(step: Step) -> Source | None:
    """The one input that the output equals bit for bit, if there is one."""
    if step.options is None:
        return step.experts[0]
    whole = [source for source in step.experts if not source.is_delta]
    told = step.rule
    if told is not None and step.scale * told.lambda_ == 0:
        return step.base
    if len(step.experts) != 1 or not whole:
        return None
    if step.method == "passthrough":
        return whole[0] if step.per_expert("scale") == (1.0,) and step.scale == 1 else None
    if told is not None and told.sparsify == "none":
        weight = 1.0 if told.normalize else step.weights[0]
        return whole[0] if told.lambda_ * weight * step.scale == 1 else None
    return None


def _by_reference(step: Step) -> bool:
    rows = getattr(step.options, "filter_wise", False) or by_rows(step)
    return step.method == "nearswap" or rows or across(step)


def _copied(origin: Source, run: Run) -> Tensor:
    """A run of one input; checked where it is the result of a merge and not a plain copy."""
    step, dtype = run.step, run.step.dtype
    merged = step.options is not None and METHODS[step.method].family != "copy"
    held = origin.dtype if isinstance(origin, OnDisk) else None
    if isinstance(origin, Stored):
        held = origin.flat.dtype
    if held == dtype:
        same = torch.empty(run.stop - run.start, dtype=dtype)
        origin.read(run.start, run.stop, same)
        if merged and not bool(torch.isfinite(same).all()):
            check_finite(origin, same.double().numpy(), step.name)
        return same
    values = torch.empty(run.stop - run.start, dtype=torch.float64)
    origin.read(run.start, run.stop, values)
    if merged:
        check_finite(origin, values.numpy(), step.name)
    return _in_range(step, round_once(values, dtype))


def _typed(out: np.ndarray, step: Step) -> Tensor:
    if step.dtype == torch.float16:
        with np.errstate(over="ignore"):  # looked at right below
            out = out.astype(np.float16)
    values = torch.from_numpy(out)
    return values.view(step.dtype) if step.dtype == torch.bfloat16 else _in_range(step, values)


def _in_range(step: Step, values: Tensor) -> Tensor:
    """The values, if they are finite: float16 ends at 65504, which weights can reach."""
    if values.dtype == torch.float16 and not bool(torch.isfinite(values).all()):
        raise InputInvalid(
            f"merged, {step.name!r} has values beyond 65504, the largest of float16",
            mend="set out_dtype: bfloat16 (--dtype bfloat16)",
        )
    return values
