"""The compiled pieces of the fast path against plain numpy."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeitgeist.merging.methods import make_options
from zeitgeist.merging.randomness import uniforms
from zeitgeist.merging.streaming import statistics
from zeitgeist.merging.streaming.chunks import Chunks, Run
from zeitgeist.merging.streaming.draws import draws, words_shape
from zeitgeist.merging.streaming.histogram import descend
from zeitgeist.merging.streaming.merger import first_rule
from zeitgeist.merging.streaming.ranks import spread_by_rank
from zeitgeist.merging.streaming.sources import Stored
from zeitgeist.merging.streaming.steps import Step


def step_of(x, name="w"):
    """Trimming of one tensor against a base of zeros."""
    return Step(
        name=name,
        shape=tuple(x.shape),
        dtype=x.dtype,
        method="ties",
        experts=(Stored(x.flatten()),),
        base=Stored(torch.zeros_like(x).flatten()),
        options=make_options("ties", {}),
        weights=(1.0,),
    )


@given(
    seed=st.integers(-(2**70), 2**70),
    experts=st.lists(st.integers(0, 9), min_size=1, max_size=3),
    start=st.integers(0, 2**40),
    length=st.integers(0, 50),
)
@settings(max_examples=50, deadline=None)
def test_compiled_draws_are_the_specified_ones(seed, experts, start, length):
    words = np.empty(words_shape(len(experts), start, start + length), np.uint64)
    rows = draws(seed, experts, "a.weight", start, start + length, words)
    assert rows.shape == (len(experts), length)
    for row, expert in zip(rows, experts, strict=True):
        assert (row == uniforms(seed, expert, "a.weight", start, start + length)).all()


@pytest.mark.parametrize("uneven", [False, True], ids=["alike", "uneven"])
def test_several_ranks_come_from_one_pass_when_the_sample_is_right(monkeypatch, uneven):
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(n, generator=generator) for n in (200_000, 9, 130_001)]
    if uneven:
        parts[2] *= 1e-3
    values = torch.cat(parts).abs().sort(descending=True).values.numpy()
    passes = []
    with Chunks(progress=False, threads=2) as chunks:
        count = chunks.map_runs
        monkeypatch.setattr(chunks, "map_runs", lambda *a: passes.append(a[2]) or count(*a))
        steps = [step_of(part, str(i)) for i, part in enumerate(parts)]
        ranks = [5000], [90_000], [250_000], [1], [len(values)]
        found = statistics.order_statistics(chunks, steps, first_rule(steps[0]), *ranks[:2])
        assert passes == ["trim"] or uneven
        everything = statistics.order_statistics(chunks, steps, first_rule(steps[0]), *ranks)
    assert (everything[:2] == found).all()
    assert everything[:, 0].tolist() == [values[rank - 1] for (rank,) in ranks]


@given(counts=st.lists(st.integers(0, 5), min_size=1, max_size=5000), data=st.data())
@settings(max_examples=50, deadline=None)
def test_descending_finds_the_bin_of_a_rank(counts, data):
    counts = np.array([*counts, 1], np.uint32)
    rank = data.draw(st.integers(1, int(counts.sum())))
    place, left = descend(counts, rank)
    above = int(counts[place + 1 :].sum())
    assert above < rank <= above + counts[place]
    assert left == rank - above
    assert descend(counts, int(counts.sum()) + 1)[0] == -1


def test_equal_magnitudes_rank_by_their_place():
    generator = np.random.default_rng(0)
    sizes = generator.integers(0, 4, (7, 301)).astype(np.float32)
    ramp, out = generator.random(301), np.empty(7 * 301)
    spread_by_rank(sizes.view(np.uint32), ramp, out, np.empty(sizes.shape, np.uint64))
    order = np.argsort(sizes, axis=1, kind="stable")
    want = np.empty_like(out).reshape(7, 301)
    np.put_along_axis(want, order, ramp[None, :], axis=1)
    assert (out.reshape(7, 301) == want).all()


def test_bfloat16_reaches_the_kernels_as_its_bits():
    x = torch.randn(5000, generator=torch.Generator().manual_seed(0)).bfloat16()
    with Chunks(progress=False) as chunks:
        run = Run(step_of(x), 100, 4300)
        packed = chunks.pack(run).copy()
        assert packed.dtype == np.uint16
        bits = (packed.astype(np.uint32) << np.uint32(16)).view(np.float32)
        assert (bits == chunks.load(run)).all()
        assert chunks.pack(Run(step_of(x.float()), 0, 9)).dtype == np.float32
