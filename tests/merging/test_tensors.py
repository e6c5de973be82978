"""The door on tensors: every method by name, its laws, its refusals, and peers' bugs."""

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.methods import MERGEKIT, METHODS, make_options, task_vector_rule
from zeitgeist.merging.rounding import round_once
from zeitgeist.merging.task_vectors import global_thresholds, sign_balance
from zeitgeist.merging.tensors import merge_tensors, merged_update, sparsified

BASED = [name for name, method in METHODS.items() if method.needs_base == "yes"]
RANDOM = ["dare_linear", "dare_ties", "della_linear", "della"]
shapes = st.lists(st.integers(1, 5), min_size=0, max_size=3).map(tuple)


def family(
    *shape: int, n: int = 3, size: float = 1e-2, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[Tensor, list[Tensor]]:
    """A base and n fine-tunes of it."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(shape, generator=generator, dtype=torch.float64) * 0.05
    noise = torch.randn((n, *shape), generator=generator, dtype=torch.float64)
    return base.to(dtype), [(base + size * d).to(dtype) for d in noise]


def merge(name: str, base: Tensor, experts: list[Tensor], **options: object) -> Tensor:
    """Any method, with as many inputs as it takes."""
    method = METHODS[name]
    inputs = experts[: 1 if name == "slerp" else method.max_experts]
    given_ = None if method.needs_base == "no" else base
    return merge_tensors(name, inputs, base=given_, **options)  # type: ignore[arg-type]


def close(one: Tensor, two: Tensor, tolerance: float = 1e-14) -> None:
    torch.testing.assert_close(one, two, rtol=tolerance, atol=tolerance)


# --- every method -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "compat"), [(n, None) for n in METHODS] + [(n, "mergekit") for n in MERGEKIT]
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_method_merges_every_dtype_and_shape(
    name: str, compat: str | None, dtype: torch.dtype
) -> None:
    for shape in [(), (1,), (7,), (1, 1), (5, 1), (1, 5), (3, 4), (2, 3, 4), (0,), (3, 0)]:
        base, experts = family(*shape, dtype=dtype)
        options = {"density": 0.5} if name.startswith("della") and compat else {}
        merged = merge(name, base, experts, compat=compat, **options)
        assert merged.shape == shape
        assert merged.dtype == dtype
        assert merged.isfinite().all()


@pytest.mark.parametrize("name", METHODS)
def test_inputs_are_not_written_to(name: str) -> None:
    base, experts = family(4, 5)
    before = [t.clone() for t in (base, *experts)]
    merge(name, base, experts).zero_()
    assert all(torch.equal(a, b) for a, b in zip(before, (base, *experts), strict=True))


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_result_is_the_float64_result_rounded_once(name: str, dtype: torch.dtype) -> None:
    base, experts = family(13, 11, dtype=dtype)
    exact = merge(name, base.double(), [x.double() for x in experts])
    assert torch.equal(merge(name, base, experts), round_once(exact, dtype))


@pytest.mark.parametrize("name", [n for n in METHODS if n != "passthrough"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_infinity_are_refused(name: str, bad: float) -> None:
    base, experts = family(4)
    experts[0][2] = bad
    with pytest.raises(InputInvalid, match="tensor 0 holds NaN or infinity"):
        merge(name, base, experts)


def test_passthrough_copies_what_it_is_given() -> None:
    tensor = torch.tensor([float("nan"), 1.0, -0.0])
    copied = merge_tensors("passthrough", [tensor])
    assert torch.equal(copied.view(torch.int32), tensor.view(torch.int32))
    assert merge_tensors("passthrough", [torch.ones(2)], scale=0.5).tolist() == [0.5, 0.5]


def test_mixed_dtypes_are_promoted() -> None:
    half, single = torch.ones(2, dtype=torch.bfloat16), torch.ones(2)
    assert merge_tensors("linear", [half, single]).dtype == torch.float32
    assert merge_tensors("linear", [half, half.half()]).dtype == torch.float32


@pytest.mark.parametrize("name", BASED)
def test_a_base_that_is_missing_is_asked_for(name: str) -> None:
    with pytest.raises(InputInvalid, match=f"{name} needs a base"):
        merge_tensors(name, [torch.ones(2)] * (METHODS[name].max_experts or 2))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda t: merge_tensors("linear", []), "no tensors"),
        (lambda t: merge_tensors("linear", [t], base=t), "takes no base"),
        (lambda t: merge_tensors("slerp", [t]), "1 tensors.*give 2"),
        (lambda t: merge_tensors("slerp", [t, t], base=t), "2 tensors.*give 1"),
        (lambda t: merge_tensors("nuslerp", [t, t, t]), "3 tensors.*give 2"),
        (lambda t: merge_tensors("model_stock", [t], base=t), "give at least 2"),
        (lambda t: merge_tensors("consensus", [t], base=t), "give at least 2"),
        (lambda t: merge_tensors("lines", [t, t], base=t), "give 1"),
        (lambda t: merge_tensors("sce", [t], base=t, weights=[1.0]), "takes no weights"),
        (lambda t: merge_tensors("linear", [t, t], weights=[1.0]), "1 weights for 2 tensors"),
        (lambda t: merge_tensors("linear", [t, t[:1]]), r"tensor 1 has shape \(1,\)"),
        (lambda t: merge_tensors("ties", [t], base=t[:1]), r"the base has shape \(1,\)"),
        (lambda t: merge_tensors("ties", [t], base=t, density=[0.1, 0.2]), "for 1 experts"),
        (lambda t: merge_tensors("linear", [t, t], weights=[1.0, -1.0]), "sum to 0"),
        (lambda t: merge_tensors("dare_tie", [t], base=t), "did you mean 'dare_ties'"),
    ],
)
def test_what_does_not_fit_is_refused(call: object, words: str) -> None:
    with pytest.raises(InputInvalid, match=words):
        call(torch.ones(2))  # type: ignore[operator]


# --- task arithmetic and averages ---------------------------------------------------------------


@given(shapes, st.integers(1, 5))
@settings(deadline=None, max_examples=40)
def test_averaging_is_task_arithmetic_with_lambda_one_over_n(
    shape: tuple[int, ...], n: int
) -> None:
    base, experts = family(*shape, n=n)
    mean = merge_tensors("linear", experts)
    close(merge_tensors("task_arithmetic", experts, base=base, lambda_=1 / n), mean, 1e-15)
    close(merge_tensors("task_arithmetic", experts, base=base, normalize=True), mean, 1e-15)


@pytest.mark.parametrize("name", ["task_arithmetic", "lines"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_one_expert_at_full_strength_is_that_expert_bit_for_bit(
    name: str, dtype: torch.dtype
) -> None:
    base, (expert,) = family(50, n=1, size=3.0, dtype=dtype)
    expert[0], base[0] = 1e-30, 1.0  # b + (x - b) would be 0
    assert torch.equal(merge_tensors(name, [expert], base=base, lambda_=1.0), expert)


@pytest.mark.parametrize("name", [n for n in BASED if n not in ("model_stock", "nearswap")])
def test_experts_equal_to_the_base_leave_the_base(name: str) -> None:
    base, _ = family(6, 6, dtype=torch.bfloat16)
    assert torch.equal(merge(name, base, [base.clone() for _ in range(3)]), base)


@pytest.mark.parametrize(
    "name", ["task_arithmetic", "ties", "dare_linear", "dare_ties", "breadcrumbs", "consensus"]
)
def test_lambda_zero_is_the_base(name: str) -> None:
    base, experts = family(4, 4, dtype=torch.bfloat16)
    assert torch.equal(merge(name, base, experts, lambda_=0.0), base)


def test_a_negative_weight_subtracts_a_task_vector() -> None:
    base, experts = family(9, n=2)
    merged = merge_tensors("task_arithmetic", experts, base=base, weights=[1.0, -0.5])
    close(merged, base + (experts[0] - base) - 0.5 * (experts[1] - base))


def test_bfloat16_results_are_correctly_rounded_in_rational_arithmetic() -> None:
    # mergekit's task arithmetic of eight bfloat16 experts rounds 7.8 % of the outputs wrong
    base, experts = family(400, n=8, dtype=torch.bfloat16)
    merged = merge_tensors("task_arithmetic", experts, base=base, lambda_=0.5)
    for b, xs, m in zip(base, zip(*experts, strict=True), merged, strict=True):
        b_, (m_,) = Fraction(b.item()), (Fraction(m.item()),)
        exact = b_ + sum((Fraction(x.item()) - b_) for x in xs) / 2
        down, up = (
            Fraction(v.item())
            for v in (
                torch.nextafter(m, torch.tensor(-9.0, dtype=torch.bfloat16)),
                torch.nextafter(m, torch.tensor(9.0, dtype=torch.bfloat16)),
            )
        )
        assert (down + m_) / 2 <= exact <= (m_ + up) / 2


# --- TIES ---------------------------------------------------------------------------------------


def test_ties_of_one_untrimmed_expert_is_that_expert() -> None:
    base, experts = family(5, 7, n=1)
    close(merge_tensors("ties", experts, base=base, density=1.0), experts[0], 1e-15)


@pytest.mark.parametrize(
    "name", ["ties", "breadcrumbs_ties", "task_arithmetic", "sce", "consensus"]
)
def test_the_order_of_experts_does_not_matter(name: str) -> None:
    base, experts = family(8, 9, n=4)
    close(merge(name, base, experts[::-1]), merge(name, base, experts))


@pytest.mark.parametrize("name", ["ties", "breadcrumbs_ties", "sce"])
def test_experts_that_come_twice_change_nothing(name: str) -> None:
    base, experts = family(8, 9)
    close(merge(name, base, experts + experts), merge(name, base, experts))


@pytest.mark.parametrize("name", [*RANDOM, "ties", "breadcrumbs", "breadcrumbs_ties", "sce"])
@pytest.mark.parametrize("factor", [4.0, -1.0])
def test_the_update_scales_with_the_task_vectors(name: str, factor: float) -> None:
    base, experts = family(8, 9)
    zero = torch.zeros_like(base)
    deltas = [x - base for x in experts]
    scaled = merge(name, zero, [factor * d for d in deltas], seed=3)
    assert torch.equal(scaled, factor * merge(name, zero, deltas, seed=3))


def test_a_global_trim_is_a_trim_of_the_flattened_model() -> None:
    shapes_and_sizes = [((3, 5), 1e-2), ((17,), 1e-3), ((), 1e-2), ((4, 2, 3), 3e-2)]
    stacks = []
    for i, (shape, size) in enumerate(shapes_and_sizes):
        base, experts = family(*shape, size=size, seed=i)
        stacks.append(torch.stack([x - base for x in experts]))
    options = make_options("ties", {"density": 0.3})
    rule = task_vector_rule("ties", options, weights_given=False)
    ones, limits = torch.ones(3, dtype=torch.float64), global_thresholds(stacks, [0.3] * 3)
    trimmed = [sparsified(stack, rule, options, thresholds=limits) for stack in stacks]
    majority = sum(sign_balance(stack, ones) for stack in trimmed)
    updates = [
        merged_update(s, ones, rule, options, thresholds=limits, majority=majority) for s in stacks
    ]
    flat = torch.cat([stack.reshape(3, -1) for stack in stacks], dim=1)
    together = merged_update(flat, ones, rule, options)
    assert torch.equal(torch.cat([update.reshape(-1) for update in updates]), together)
    assert not torch.equal(updates[1], merged_update(stacks[1], ones, rule, options))


def test_mixed_sign_weights_never_blow_an_update_up() -> None:
    # weights 1, -.95, .5 gave a step of 25 times the largest delta in mergekit
    base, experts = family(1000, n=3)
    with pytest.raises(InputInvalid, match="give weights >= 0"):
        merge_tensors("ties", experts, base=base, weights=[1.0, -0.95, 0.5], density=1.0)
    step = merge_tensors(
        "ties", experts, base=base, weights=[1.0, -0.95, 0.5], density=1.0, normalize=False
    )
    largest = torch.stack([x - base for x in experts]).abs().amax(0)
    assert ((step - base).abs() <= 2.45 * largest + 1e-12).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rescaling_does_not_overflow_or_coarsen_in_half_precision(dtype: torch.dtype) -> None:
    # an L1 norm of 2e5 overflowed float16 in mergekit (87 % NaN); bfloat16 rounded 3.333 to 3.312
    base = torch.zeros(512, 512, dtype=dtype)
    _, experts = family(512, 512, n=1, size=1.0, dtype=dtype)
    merged = merge_tensors("ties", experts, base=base, density=0.3, rescale=True)
    exact = merge_tensors(
        "ties", [experts[0].double()], base=base.double(), density=0.3, rescale=True
    )
    assert merged.isfinite().all()
    assert torch.equal(merged, round_once(exact, dtype))
    assert exact.abs().sum() == pytest.approx(experts[0].double().abs().sum().item())


# --- random masks -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RANDOM)
def test_masks_depend_on_seed_and_name_and_on_no_global_state(name: str) -> None:
    base, experts = family(20, 20)

    def run(seed: int, tensor: str) -> Tensor:
        return merge_tensors(name, experts, base=base, seed=seed, name=tensor)

    torch.manual_seed(0)
    first = run(1, "a")
    torch.manual_seed(1)
    torch.rand(5)
    assert torch.equal(run(1, "a"), first)
    assert not torch.equal(run(2, "a"), first)
    assert not torch.equal(run(1, "b"), first)


def test_experts_have_masks_of_their_own() -> None:
    zero, one = torch.zeros(64), torch.ones(64)
    merged = merge_tensors("dare_linear", [one, one], base=zero, lambda_=1.0)
    assert set(merged.tolist()) == {0.0, 2.0, 4.0}


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_dropping_nothing_is_task_arithmetic(name: str) -> None:
    base, experts = family(6, 7)
    merged = merge_tensors(name, experts, base=base, density=1.0)
    assert torch.equal(merged, merge_tensors("task_arithmetic", experts, base=base))


def test_dare_ties_that_drops_nothing_is_untrimmed_ties() -> None:
    base, experts = family(6, 7)
    merged = merge_tensors("dare_ties", experts, base=base, density=1.0)
    assert torch.equal(merged, merge_tensors("ties", experts, base=base, density=1.0))


def test_della_with_a_flat_window_is_dare() -> None:
    base, experts = family(6, 7)
    flat = merge_tensors("della_linear", experts, base=base, density=0.5, epsilon=0.0, name="w")
    assert torch.equal(
        flat, merge_tensors("dare_linear", experts, base=base, density=0.5, name="w")
    )


@pytest.mark.parametrize("name", ["dare_linear", "della_linear"])
def test_the_mean_over_seeds_is_task_arithmetic(name: str) -> None:
    base, experts = family(6, n=2, size=1.0)
    seeds, density = 1000, 0.5
    whole = merge_tensors("task_arithmetic", experts, base=base)
    runs = torch.stack(
        [merge_tensors(name, experts, base=base, density=density, seed=s) for s in range(seeds)]
    )
    sigma = runs.std(0) / seeds**0.5
    assert ((runs.mean(0) - whole).abs() < 4 * sigma).all()


# --- the rest -----------------------------------------------------------------------------------


def test_sce_follows_the_energy_of_small_updates() -> None:
    # a delta of standard deviation 3e-4 made mergekit weigh 1/3, 1/3, 1/3 instead of .10, .90, .00
    base = torch.zeros(1000, dtype=torch.float64)
    size = torch.tensor([1.0, 3.0, 0.01], dtype=torch.float64) * 1e-4
    experts = [base + s for s in size]
    merged = merge_tensors("sce", experts, base=base, select_topk=1.0)
    close(merged, torch.full_like(base, float((size**3).sum() / (size**2).sum())), 1e-15)
    equal = merge_tensors("sce", experts, base=base, select_topk=1.0, compat="mergekit")
    close(equal, torch.full_like(base, float(size.mean())), 1e-15)


def test_sce_of_one_expert_is_that_expert() -> None:
    base, experts = family(9, n=1)
    close(merge_tensors("sce", experts, base=base), experts[0], 1e-15)


def test_consensus_of_experts_that_agree_is_task_arithmetic() -> None:
    base, experts = family(30, n=1)
    same = experts * 3
    close(
        merge_tensors("consensus", same, base=base),
        merge_tensors("task_arithmetic", same, base=base),
    )


def test_consensus_keeps_or_drops_entries_of_the_sum() -> None:
    base, experts = family(200, n=4)
    zero = torch.zeros_like(base)
    deltas = [x - base for x in experts]
    kept = merge_tensors("consensus", deltas, base=zero, lambda_=1.0)
    whole = torch.stack(deltas).sum(0)
    assert 0 < kept.count_nonzero() < 200
    close(kept, torch.where(kept == 0, 0.0, whole))


def test_slerp_starts_from_the_base() -> None:
    base, (expert,) = family(9, n=1, size=1.0)
    assert torch.equal(merge_tensors("slerp", [expert], base=base, t=0.0), base)
    close(merge_tensors("slerp", [expert], base=base, t=1.0), expert)
    one = merge_tensors("slerp", [base, expert], t=0.3)
    assert torch.equal(merge_tensors("slerp", [expert], base=base, t=0.3), one)


def test_nuslerp_rows_and_columns_are_vectors_of_their_own() -> None:
    _, experts = family(4, 6, n=2, size=1.0)
    rows = merge_tensors("nuslerp", experts, nuslerp_flatten=False)
    columns = merge_tensors("nuslerp", experts, nuslerp_flatten=False, nuslerp_row_wise=True)
    for i in range(4):
        close(rows[i], merge_tensors("nuslerp", [x[i] for x in experts]))
    for j in range(6):
        close(columns[:, j], merge_tensors("nuslerp", [x[:, j] for x in experts]))


def test_model_stock_may_work_row_by_row() -> None:
    base, experts = family(4, 6, n=3)
    rows = merge_tensors("model_stock", experts, base=base, filter_wise=True)
    for i in range(4):
        close(rows[i], merge_tensors("model_stock", [x[i] for x in experts], base=base[i]))


def test_spherical_means_of_task_vectors_hang_off_the_base() -> None:
    base, experts = family(12, n=2, size=1.0)
    zero = torch.zeros_like(base)
    deltas = [x - base for x in experts]
    for name in ("nuslerp", "multislerp"):
        close(
            merge_tensors(name, experts, base=base),
            base + merge_tensors(name, deltas, base=zero),
        )
