"""KnOTS against its identities, its dense definition, and TIES as peft and mergekit compute it."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.knots import (
    KnotsOptions,
    magnitude_thresholds,
    merge_layers,
    merge_stack,
    parity_options,
    published_options,
    represent,
)
from zeitgeist.merging.low_rank import alignment, alignment_of_entries, concatenate, truncate
from zeitgeist.merging.shared_basis import SharedBasis, align, align_dense
from zeitgeist.merging.task_vectors import trim_by_magnitude

WHOLE = KnotsOptions(density=1.0, lambda_=1.0)
SUM = KnotsOptions("task_arithmetic", lambda_=1.0)


def rng(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def adapters(seed: int, outputs: int, inputs: int, ranks, dtype=torch.float64):
    """Updates of one layer, one per rank; rank None is an expert without this layer."""
    g = rng(seed)
    return [
        None
        if r is None
        else (
            torch.randn(r, inputs, generator=g, dtype=torch.float64).to(dtype),
            torch.randn(outputs, r, generator=g, dtype=torch.float64).to(dtype),
        )
        for r in ranks
    ]


def dense(update) -> torch.Tensor:
    a, b = update
    return b.double() @ a.double()


def product(merge, name="q") -> torch.Tensor:
    return dense(merge.factors[name])


def close(got, expected, tolerance=1e-12):
    scale = float(expected.abs().max()) or 1.0
    assert float((got - expected).abs().max()) <= tolerance * scale


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9))
ranks = st.lists(st.one_of(st.none(), st.integers(1, 5)), min_size=1, max_size=4).filter(
    lambda found: any(r is not None for r in found)
)


# The basis ---------------------------------------------------------------------------------------


@given(st.integers(0, 99), shapes, ranks)
@settings(max_examples=60, deadline=None)
def test_every_update_is_u_times_its_share(seed, shape, found):
    updates = adapters(seed, *shape, found)
    for basis in (align(updates), align_dense(updates)):
        close(basis.u.T @ basis.u, torch.eye(len(basis.s), dtype=torch.float64), 1e-12)
        for update, p in zip(updates, basis.p, strict=True):
            expected = torch.zeros(shape, dtype=torch.float64) if update is None else dense(update)
            assert float((basis.u @ p - expected).abs().max()) < 1e-6


@given(st.integers(0, 99), shapes, ranks)
@settings(max_examples=60, deadline=None)
def test_factored_and_dense_have_the_same_spectrum(seed, shape, found):
    updates = adapters(seed, *shape, found)
    spectra = [align(updates).s, align_dense(updates).s]
    assert len(spectra[0]) == len(spectra[1])
    close(*spectra, 1e-11)


def test_half_precision_factors_are_merged_in_double():
    updates = adapters(0, 8, 6, [2, 3], torch.bfloat16)
    assert align(updates).p.dtype == torch.float64
    close(product(merge_layers({"q": updates}, SUM)), dense(updates[0]) + dense(updates[1]))


def test_singular_values_below_the_tolerance_are_dropped():
    a, b = adapters(0, 8, 6, [2])[0]
    tiny = (a[1:] * 1e-6, b[:, 1:])
    assert len(align([(a[:1], b[:, :1]), tiny]).s) == 2
    assert len(align([(a[:1], b[:, :1]), tiny], tolerance=1e-4).s) == 1
    assert len(align([(a[:1], b[:, :1]), tiny], tolerance=0.0, floor=1e-3).s) == 1


# Identities --------------------------------------------------------------------------------------


@given(st.integers(0, 99), shapes, ranks, st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None)
def test_task_arithmetic_in_the_basis_is_task_arithmetic(seed, shape, found, random):
    updates = adapters(seed, *shape, found)
    weights = [random.uniform(-2, 2) for _ in updates]
    merged = merge_layers({"q": updates}, replace(SUM, tolerance=1e-14), weights=weights)
    expected = sum(
        (w * dense(u) for w, u in zip(weights, updates, strict=True) if u is not None),
        start=torch.zeros(shape, dtype=torch.float64),
    )
    size = max(float(dense(u).abs().max()) for u in updates if u is not None)
    assert float((product(merged) - expected).abs().max()) <= 1e-12 * max(1.0, size)


def test_one_adapter_comes_back_as_it_is():
    updates = adapters(1, 12, 7, [3])
    close(product(merge_layers({"q": updates}, WHOLE)), dense(updates[0]))


def test_identical_adapters_merge_to_themselves():
    (update,) = adapters(2, 12, 7, [3])
    close(product(merge_layers({"q": [update] * 4}, WHOLE)), dense(update), 1e-8)


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_the_order_of_adapters_does_not_matter(density):
    updates = adapters(3, 12, 40, [3, 2, 4])
    options = replace(WHOLE, density=density)
    there = product(merge_layers({"q": updates}, options))
    close(product(merge_layers({"q": updates[::-1]}, options)), there, 1e-10)


@pytest.mark.parametrize("density", [1.0, 0.3])
@pytest.mark.parametrize(
    "shape, found", [((20, 40), [3, 2, 4]), ((6, 9), [3, 8]), ((9, 6), [4, 4])]
)
def test_factored_merge_is_the_dense_merge(density, shape, found):
    updates = adapters(4, *shape, found)
    options = replace(WHOLE, density=density)
    factored = merge_layers({"q": updates}, options)
    full = merge_layers({"q": [dense(update) for update in updates]}, options)
    assert factored.layers["q"].kept == pytest.approx(full.layers["q"].kept, abs=1e-9)
    close(product(factored), product(full), 1e-9)


def orthogonal_columns(seed: int, outputs: int, inputs: int, n: int, r: int):
    """Adapters whose B_i are mutually orthogonal: B_i^T B_j = 0."""
    g = rng(seed)
    q = torch.linalg.qr(torch.randn(outputs, n * r, generator=g, dtype=torch.float64)).Q
    return [
        (torch.randn(r, inputs, generator=g, dtype=torch.float64), q[:, i * r : (i + 1) * r])
        for i in range(n)
    ]


def test_orthogonal_adapters_are_added_with_the_guard_and_not_without():
    updates = orthogonal_columns(5, 48, 30, 4, 3)
    total = sum(dense(update) for update in updates)
    guarded = merge_layers({"q": updates}, WHOLE)
    close(product(guarded), total, 1e-11)
    assert float(guarded.layers["q"].after.conflict.max()) == 0.0
    naive = product(merge_layers({"q": updates}, replace(WHOLE, guard=0.0)))
    assert float((naive - total).norm() / total.norm()) > 0.2


def test_signs_of_the_singular_vectors_cannot_be_seen_and_rotations_can():
    basis = align(adapters(6, 12, 40, [3, 2, 4]))
    stack, one = basis.p, torch.ones(3, dtype=torch.float64)
    options = replace(WHOLE, density=0.3)

    def merged(stack):
        limits = magnitude_thresholds(lambda: [stack], lambda entries: entries // 3)
        return merge_stack(trim_by_magnitude(stack, [0.3] * 3, thresholds=limits), options, one)

    flips = torch.tensor([1.0, -1.0] * 5)[: len(basis.s), None].double()
    assert torch.equal(merged(stack * flips), merged(stack) * flips)
    turn = torch.linalg.qr(torch.randn(9, 9, generator=rng(0), dtype=torch.float64)).Q
    assert not torch.allclose(turn.T @ merged(turn @ stack), merged(stack), atol=1e-3)


def test_merging_a_and_b_apart_is_not_what_happens():
    one, two = adapters(7, 10, 8, [2, 2])
    wrong = (one[1] + two[1]) @ (one[0] + two[0])
    right = product(merge_layers({"q": [one, two]}, SUM))
    assert float((wrong - right).norm() / right.norm()) > 0.5


# TIES in the basis -------------------------------------------------------------------------------


def ties_by_hand(vectors: torch.Tensor, count: int) -> torch.Tensor:
    """TIES on flattened task vectors, one entry at a time: the definition."""
    kept = torch.zeros_like(vectors)
    for i, vector in enumerate(vectors):
        threshold = vector.abs().float().sort(descending=True).values[count - 1]
        kept[i] = torch.where(vector.abs().float() >= threshold, vector, 0.0)
    majority = kept.sum(0).sign().sum().sign() or 1.0
    out = torch.zeros(vectors.shape[1], dtype=vectors.dtype)
    for j in range(vectors.shape[1]):
        sign = kept[:, j].sum().sign() or majority
        agreeing = [v for v in kept[:, j] if v.sign() == sign]
        out[j] = sum(agreeing) / len(agreeing) if agreeing else 0.0
    return out


def in_basis(layers, options) -> tuple[torch.Tensor, list[torch.Tensor]]:
    bases = [
        align(updates, tolerance=options.tolerance, floor=options.floor)
        for updates in layers.values()
    ]
    stacks = [represent(basis.p, options, name) for name, basis in zip(layers, bases, strict=True)]
    return torch.cat([stack.flatten(1) for stack in stacks], dim=1), [b.u for b in bases]


@pytest.mark.parametrize("options", [KnotsOptions(lambda_=0.7), parity_options()])
def test_global_trim_is_ties_on_all_layers_flattened_together(options):
    layers = {
        "small": adapters(8, 9, 8, [2, 3, 2]),
        "large": [(a * 3.0, b) for a, b in adapters(9, 6, 10, [2, 2, 2])],
    }
    vectors, bases = in_basis(layers, options)
    count = int(options.density * vectors.shape[1]) + options.beyond
    by_hand = options.lambda_ * ties_by_hand(vectors, count)
    merged = merge_layers(layers, options)
    start = 0
    for (name, updates), u in zip(layers.items(), bases, strict=True):
        size = u.shape[1] * updates[0][0].shape[1]
        expected = u @ by_hand[start : start + size].view(u.shape[1], -1)
        close(product(merged, name), expected, 1e-10)
        start += size
    assert merged.layers["large"].kept[0] > merged.layers["small"].kept[0]


def test_trim_per_layer_is_each_layer_merged_alone():
    layers = {"one": adapters(8, 9, 8, [2, 3]), "two": adapters(9, 6, 10, [2, 2])}
    options = KnotsOptions(trim_scope="layer")
    together = merge_layers(layers, options)
    for name, updates in layers.items():
        alone = merge_layers({name: updates}, KnotsOptions())
        close(product(together, name), product(alone, name), 1e-12)
    assert together.layers["one"].kept[0] == pytest.approx(0.2, abs=0.03)


@given(st.integers(0, 99), st.integers(1, 40), st.sampled_from([0.01, 0.2, 0.5, 0.99]))
@settings(max_examples=40, deadline=None)
def test_thresholds_are_exact_order_statistics(seed, size, density):
    g = rng(seed)
    chunks = [torch.randn(3, size, generator=g), torch.randn(3, 2, 7, generator=g) * 1e-30]
    chunks[0][0] = chunks[0][0].round()  # ties and zeros
    whole = torch.cat([chunk.flatten(1) for chunk in chunks], dim=1).abs()
    k = max(1, int(density * whole.shape[1]))
    expected = whole.sort(dim=1, descending=True).values[:, k - 1]
    assert magnitude_thresholds(lambda: chunks, lambda entries: k) == tuple(expected.tolist())


def test_sums_that_cancel_take_the_majority_of_all_layers(monkeypatch):
    one = torch.ones(1, dtype=torch.float64)
    bases = {
        1: SharedBasis(one[:, None], one, torch.tensor([[[3.0]], [[-3.0]]]).double()),
        2: SharedBasis(one[:, None], one, torch.tensor([[[-1.0, -2.0]], [[-1.0, 0.5]]]).double()),
    }
    monkeypatch.setattr(
        "zeitgeist.merging.knots.align", lambda updates, **_: bases[updates[0][0].shape[1]]
    )
    layers = {"cancels": adapters(0, 1, 1, [1, 1]), "decides": adapters(0, 1, 2, [1, 1])}
    assert float(product(merge_layers(layers, WHOLE), "cancels")) == pytest.approx(-3.0)
    alone = merge_layers(layers, replace(WHOLE, trim_scope="layer"))
    assert float(product(alone, "cancels")) == pytest.approx(3.0)


def test_weights_count_in_the_mean_and_not_in_the_election():
    stack = torch.tensor([[[2.0]], [[1.0]], [[-1.5]]], dtype=torch.float64)
    weights = torch.tensor([1.0, 3.0, 100.0], dtype=torch.float64)
    assert float(merge_stack(stack, WHOLE, weights)) == pytest.approx((2.0 + 3.0) / 4.0)


@pytest.mark.filterwarnings("ignore")  # peft's and mergekit's own
@pytest.mark.parametrize("density", [0.3, 1.0])
def test_the_core_is_ties_of_peft_and_mergekit(density):
    peft = pytest.importorskip("peft.utils.merge_utils", reason="peft is the peer of this test")
    stack = align(adapters(10, 20, 30, [3, 4, 2])).p.float()
    limits = magnitude_thresholds(lambda: [stack], lambda entries: int(density * entries))
    trimmed = trim_by_magnitude(stack, [density] * 3, thresholds=limits)
    ours = merge_stack(trimmed, WHOLE, torch.ones(3, dtype=torch.float64)).float()
    theirs = peft.ties(list(stack), torch.ones(3), density)
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)
    api = pytest.importorskip("mergekit.merge_methods.api", reason="mergekit is a peer too")
    theirs = api.merge_tensors(
        [torch.zeros_like(stack[0]), *stack],
        "ties",
        parameters={"density": density, "weight": 1.0},
        base_index=0,
    )
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-7)


# DARE --------------------------------------------------------------------------------------------


def test_dare_of_nothing_dropped_is_ties_of_everything_kept():
    layers = {"q": adapters(11, 9, 20, [2, 3])}
    dare = KnotsOptions("dare_ties", drop=0.0, lambda_=1.0)
    assert torch.equal(product(merge_layers(layers, dare)), product(merge_layers(layers, WHOLE)))


def test_dare_masks_belong_to_seed_expert_and_layer():
    p = align(adapters(12, 30, 50, [8, 8])).p
    options = published_options("dare_ties")
    one = represent(p, options, "q")
    assert torch.equal(one, represent(p, options, "q"))
    for other in (represent(p, options, "k"), represent(p, replace(options, seed=1), "q")):
        assert not torch.equal(one == 0, other == 0)
    assert not torch.equal(one[0] == 0, one[1] == 0)
    survivors = one != 0
    torch.testing.assert_close(one[survivors], p[survivors] / 0.9)
    assert abs(float(survivors.double().mean()) - 0.9) < 4 * (0.09 / p.numel()) ** 0.5


def test_dare_is_unbiased_over_seeds():
    p = align(adapters(13, 4, 5, [2])).p
    options = KnotsOptions("dare_ties", drop=0.6)
    seeds = 2000
    mean = sum(represent(p, replace(options, seed=s), "q") for s in range(seeds)) / seeds
    deviation = p.abs() * (0.6 / 0.4 / seeds) ** 0.5
    assert bool(((mean - p).abs() < 4.5 * deviation).all())


# What adapters can look like ---------------------------------------------------------------------


def test_an_adapter_of_zeros_changes_nothing_and_divides_by_nothing():
    (update,) = adapters(14, 9, 8, [2])
    zero = (update[0], torch.zeros_like(update[1]))
    close(product(merge_layers({"q": [update, zero]}, WHOLE)), dense(update), 1e-8)
    nothing = merge_layers({"q": [zero, zero]}, KnotsOptions())
    assert nothing.layers["q"].rank == 0
    assert product(nothing).shape == (9, 8)
    assert float(product(nothing).abs().sum()) == 0.0


def test_a_layer_that_some_adapters_leave_alone_is_not_diluted():
    (update,) = adapters(15, 9, 8, [2])
    close(product(merge_layers({"q": [None, update, None]}, WHOLE)), dense(update), 1e-8)


def test_the_result_has_no_rank_it_does_not_need():
    updates = adapters(16, 20, 30, [2, 3])
    merged = merge_layers({"q": updates}, SUM)
    a, b = merged.factors["q"]
    assert a.shape == (5, 30)
    torch.testing.assert_close(a.norm(dim=1), b.norm(dim=0))


def test_truncation_is_the_best_of_its_rank_and_says_what_it_loses():
    updates = adapters(17, 20, 30, [2, 3])
    total = dense(updates[0]) + dense(updates[1])
    merged = merge_layers({"q": updates}, SUM, out_rank=3)
    u, s, vt = torch.linalg.svd(total)
    close(product(merged), u[:, :3] @ torch.diag(s[:3]) @ vt[:3], 1e-10)
    assert merged.layers["q"].rank == 3
    lost = float(s[3:].square().sum() / s.square().sum())
    assert merged.layers["q"].energy_lost == pytest.approx(lost)


def test_concatenation_is_exact_and_zero_can_be_truncated():
    updates = adapters(18, 5, 6, [2, 3])
    a, b = concatenate(updates, [0.5, -2.0])
    close(b @ a, 0.5 * dense(updates[0]) - 2.0 * dense(updates[1]))
    a, b, lost = truncate(torch.zeros(3, 6), torch.zeros(5, 3), 1)
    assert (float((b @ a).abs().sum()), lost) == (0.0, 0.0)


def test_cosines_come_from_factors_and_survive_the_rotation():
    updates = [*adapters(19, 20, 30, [2, 3]), None]
    before = alignment(updates)
    flat = torch.stack([dense(updates[0]), dense(updates[1]), torch.zeros(20, 30)]).flatten(1)
    cosine = torch.nn.functional.cosine_similarity(flat[0], flat[1], dim=0)
    assert float(before.cosine[0, 1]) == pytest.approx(float(cosine), abs=1e-12)
    assert before.cosine.diagonal().tolist() == pytest.approx([1.0, 1.0, 0.0])
    after = alignment_of_entries(align(updates).p)
    torch.testing.assert_close(after.cosine, before.cosine)
    opposed = float(((flat[0] * flat[1]) < 0).double().mean())
    assert float(before.conflict[0, 1]) == pytest.approx(opposed)
    summed = before + before
    torch.testing.assert_close(summed.cosine, before.cosine)


def test_layers_may_be_loaded_when_they_are_asked_for():
    updates = {name: adapters(i, 6, 5, [2, 2]) for i, name in enumerate("abc")}

    asked: list[str] = []

    class Lazy(dict):
        def __getitem__(self, name):
            asked.append(name)
            return super().__getitem__(name)

    layers = Lazy(updates)
    merged = merge_layers(layers)
    assert set(asked) == {"a", "b", "c"}
    for name in "abc":
        close(product(merged, name), product(merge_layers(updates), name))


@pytest.mark.parametrize(
    "layers, options, words",
    [
        ({}, {}, "no layers"),
        ({"q": [None, None]}, {}, "q: no expert changes this layer"),
        ({"q": [*adapters(0, 4, 5, [1]), *adapters(0, 4, 6, [1])]}, {}, "q: .*different shapes"),
        ({"q": [(torch.ones(2, 5), torch.ones(4, 3))]}, {}, "q: .*ranks 2 and 3"),
        ({"q": [(torch.ones(5), torch.ones(4, 1))]}, {}, "q: expert 0 has shapes"),
        ({"q": [torch.full((2, 2), torch.nan)]}, {}, "q: expert 0 holds NaN"),
        ({"q": adapters(0, 4, 5, [1]), "k": adapters(0, 4, 5, [1, 1])}, {}, "k: 2 updates"),
        ({"q": adapters(0, 4, 5, [1])}, {"weights": [1.0, 2.0]}, "2 weights for 1 experts"),
    ],
)
def test_updates_that_do_not_fit_are_refused_by_name(layers, options, words):
    with pytest.raises(InputInvalid, match=words):
        merge_layers(layers, **options)


@pytest.mark.parametrize("bad", [{"density": 0.0}, {"density": 1.5}, {"drop": 1.0}, {"drop": -0.1}])
def test_options_out_of_range_are_refused(bad):
    with pytest.raises(InputInvalid):
        KnotsOptions(**bad)
