"""The fast path against its specification, `merge_tensors`, and against itself."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeitgeist.merging.methods import MERGEKIT, METHODS, make_options
from zeitgeist.merging.rounding import round_once
from zeitgeist.merging.streaming import statistics
from zeitgeist.merging.streaming.chunks import Chunks
from zeitgeist.merging.streaming.merger import Merger, first_rule
from zeitgeist.merging.streaming.sources import Gathered, LowRank, Stored
from zeitgeist.merging.streaming.steps import Step, Tensors
from zeitgeist.merging.tensors import merge_tensors

BLOCK = 4096
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def family(shape, n, dtype, seed=0):
    """A base and n fine-tunes with small updates, as trained weights have them."""
    generator = torch.Generator().manual_seed(seed)
    base = 0.02 * torch.randn(shape, generator=generator, dtype=torch.float64)
    tuned = [
        (base + 2e-3 * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)
        for _ in range(n)
    ]
    return base.to(dtype), tuned


def experts_of(method):
    return 1 if METHODS[method].max_experts == 1 else (2 if METHODS[method].max_experts == 2 else 3)


def step_for(method, base, tuned, *, weights=None, compat=None, name="w", **options):
    told = METHODS[method]
    experts = [Stored(x.flatten()) for x in tuned]
    start = None if told.needs_base == "no" else Stored(base.flatten())
    if method == "slerp":
        experts, start = ([start] if start else []) + experts, None
    return Step(
        name=name,
        shape=tuple(base.shape),
        dtype=base.dtype,
        method=method,
        experts=tuple(experts),
        positions=tuple(range(len(experts))),
        base=start,
        options=make_options(method, options, compat=compat),
        weights=tuple(weights or (1.0,) * len(experts)),
        weights_given=weights is not None,
        compat=compat,
    )


def run(steps, *, threads=1, size=2 * BLOCK, seed=0):
    out = {step.name: torch.empty(step.shape, dtype=step.dtype) for step in steps}
    with Chunks(seed=seed, threads=threads, progress=False, size=size) as chunks:
        Merger(steps, chunks).run(Tensors(out))
    return out


def expected(method, base, tuned, **options):
    told = METHODS[method]
    start = None if told.needs_base == "no" else base
    if method == "slerp":
        tuned = tuned[:1]
    return merge_tensors(method, tuned, base=start, name="w", **options)


CASES = [(m, None) for m in METHODS] + [(m, "mergekit") for m in MERGEKIT]


@pytest.mark.parametrize(("method", "compat"), CASES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (1,), (7,), (63, 131), (5, 4097), (3, 5, 41)])
def test_streaming_equals_the_reference(method, compat, dtype, shape):
    base, tuned = family(shape, experts_of(method), dtype)
    trims = compat and hasattr(make_options(method, compat=compat), "density")
    options = {"density": 0.6} if trims else {}
    if method == "slerp":
        tuned = tuned[:1]
    got = run([step_for(method, base, tuned, compat=compat, **options)])["w"]
    want = expected(method, base, tuned, compat=compat, **options)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    # Sums are added in another order: a value on a rounding boundary may fall either way.
    if dtype != torch.float64:
        assert (got.view(-1) != want.view(-1)).double().mean().item() <= 1e-3
    tight = 1e-13 if dtype == torch.float64 else torch.finfo(dtype).eps
    torch.testing.assert_close(got.double(), want.double(), rtol=tight, atol=1e-16)


@pytest.mark.parametrize("method", list(METHODS))
def test_chunks_and_threads_do_not_change_a_bit(method):
    base, tuned = family((97, 301), experts_of(method), torch.bfloat16)
    if method == "slerp":
        tuned = tuned[:1]
    step = step_for(method, base, tuned)
    results = [
        run([step], threads=threads, size=size)["w"]
        for threads, size in ((1, BLOCK), (2, BLOCK), (2, 3 * BLOCK), (1, 1 << 20))
    ]
    for other in results[1:]:
        assert torch.equal(results[0], other)


def test_global_trim_is_brute_force_over_the_whole_model():
    shapes = [(40, 131), (17,), (300, 77), (1, 5)]
    pairs = [family(shape, 3, torch.float32, seed=i) for i, shape in enumerate(shapes)]
    # One tensor with much larger updates: there per-tensor and global trimming part ways.
    pairs[2] = (pairs[2][0], [x + 10 * (x - pairs[2][0]) for x in pairs[2][1]])
    steps = [
        step_for("ties", base, tuned, name=str(i), density=0.3)
        for i, (base, tuned) in enumerate(pairs)
    ]
    got = run(steps)
    flat_base = torch.cat([base.flatten() for base, _ in pairs])
    flat = [torch.cat([tuned[i].flatten() for _, tuned in pairs]) for i in range(3)]
    want = merge_tensors("ties", flat, base=flat_base, density=0.3)
    assert torch.equal(torch.cat([got[str(i)].flatten() for i in range(len(pairs))]), want)


@given(
    counts=st.lists(st.integers(1, 9000), min_size=1, max_size=4),
    density=st.floats(0.001, 1.0),
    coarse=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_order_statistics_are_those_of_a_sort(counts, density, coarse, seed):
    generator = np.random.default_rng(seed)
    steps, values = [], []
    for i, count in enumerate(counts):
        x = generator.standard_normal(count).astype(np.float32)
        x = np.round(x, 1) if coarse else x  # many equal magnitudes, zeros among them
        values.append(np.abs(x))
        zero = torch.zeros(count)
        steps.append(step_for("ties", zero, [torch.from_numpy(x)], name=str(i)))
    everything = np.sort(np.concatenate(values))[::-1]
    rank = max(1, int(density * len(everything)))
    with Chunks(progress=False) as chunks:
        (found,) = statistics.order_statistics(chunks, steps, first_rule(steps[0]), [rank])
    assert found == everything[rank - 1]


def test_a_wrong_prediction_of_the_threshold_costs_a_pass_and_nothing_else(monkeypatch):
    monkeypatch.setattr(statistics, "_SAMPLE", 1 << 12)
    generator = torch.Generator().manual_seed(0)
    # The sample takes the first block of every few: make it unlike the rest.
    x = torch.rand(1 << 17, generator=generator)
    x.view(-1, BLOCK)[::2] *= 1e-4
    zero = torch.zeros_like(x)
    step = step_for("ties", zero, [x])
    with Chunks(progress=False) as chunks:
        for rank in (1, 1000, 70_000, 1 << 17):
            (found,) = statistics.order_statistics(chunks, [step], first_rule(step), [rank])
            assert found == x.sort(descending=True).values[rank - 1]


def test_majority_sign_decides_exactly_zero_sums():
    base = torch.zeros(5)
    one = torch.tensor([1.0, -1.0, -1.0, -1.0, 1.0])
    other = torch.tensor([-1.0, -1.0, -1.0, -1.0, -1.0])
    step = step_for("ties", base, [one, other], density=1.0)
    assert run([step])["w"].tolist() == [-1.0] * 5
    flipped = step_for("ties", base, [-one, -other], density=1.0)
    assert run([flipped])["w"].tolist() == [1.0] * 5


def test_depth_scale_multiplies_the_update():
    base, tuned = family((11, 13), 3, torch.float64)
    step = step_for("ties", base, tuned, density=0.5)
    whole = run([step])["w"]
    from dataclasses import replace

    half = run([replace(step, scale=0.5)])["w"]
    torch.testing.assert_close(half - base, (whole - base) / 2, rtol=1e-12, atol=1e-17)
    assert torch.equal(run([replace(step, scale=0.0)])["w"], base)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_one_whole_expert_is_copied_to_the_bit(dtype):
    base, (tuned,) = family((33, 70), 1, dtype)
    assert torch.equal(run([step_for("lines", base, [tuned])])["w"], tuned)
    assert torch.equal(run([step_for("task_arithmetic", base, [tuned], lambda_=1.0)])["w"], tuned)
    assert torch.equal(run([step_for("task_arithmetic", base, [tuned], lambda_=0.0)])["w"], base)


def test_low_rank_source_is_the_dense_product_for_any_run():
    generator = torch.Generator().manual_seed(3)
    a = torch.randn(4, 19, generator=generator)
    b = torch.randn(23, 4, generator=generator)
    source = LowRank(a, b, 0.5)
    dense = (0.5 * b.double() @ a.double()).flatten()
    for start, stop in ((0, 437), (5, 6), (18, 20), (100, 303), (436, 437)):
        out = torch.empty(stop - start, dtype=torch.float64)
        source.read(start, stop, out)
        torch.testing.assert_close(out, dense[start:stop], rtol=1e-14, atol=1e-15)


def test_gathered_rows_follow_the_map_and_fill_the_rest():
    matrix = torch.arange(12.0).view(4, 3)
    source = Gathered(matrix, np.array([3, -1, 0, 0]), {1: torch.tensor([7.0, 8.0, 9.0])})
    want = torch.tensor([9.0, 10, 11, 7, 8, 9, 0, 1, 2, 0, 1, 2])
    for start, stop in ((0, 12), (1, 5), (4, 4), (5, 11)):
        out = torch.empty(stop - start)
        source.read(start, stop, out)
        assert torch.equal(out, want[start:stop])


def test_random_masks_belong_to_seed_expert_and_name():
    base, tuned = family((50, 60), 2, torch.float32)
    step = step_for("dare_ties", base, tuned, density=0.5)
    again = run([step], seed=1)["w"]
    assert torch.equal(run([step], seed=1)["w"], again)
    assert not torch.equal(run([step], seed=2)["w"], again)
    renamed = step_for("dare_ties", base, tuned, density=0.5, name="v")
    assert not torch.equal(run([renamed], seed=1)["v"], again)


@pytest.mark.parametrize("n", [2, 3, 5, 6, 7])
def test_an_average_is_the_exact_mean_rounded_once(n):
    _, tuned = family((64, 257), n, torch.bfloat16)
    # A sum of a few bfloat16 numbers of like size is exact in float64: one division, one rounding.
    exact = sum(x.double() for x in tuned) / n
    step = step_for("linear", tuned[0], tuned)
    assert torch.equal(run([step])["w"], round_once(exact, torch.bfloat16))
    assert torch.equal(merge_tensors("linear", tuned), round_once(exact, torch.bfloat16))
