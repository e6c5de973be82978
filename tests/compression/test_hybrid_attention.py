"""Three forms of one attention, its limits and its invariances."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from zeitgeist.compression.feature_maps import FeatureMap, hedgehog
from zeitgeist.compression.hybrid_attention import (
    check_window,
    fold,
    hybrid_chunked,
    hybrid_quadratic,
    hybrid_step,
    window_start,
)
from zeitgeist.errors import InputInvalid

WINDOWS = [("sliding", 2), ("terraced", 2), ("terraced", 1)]


def drawn(batch=2, heads=2, length=13, dim=4, features=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    q, k, v = (normal(batch, heads, length, dim) for _ in range(3))
    weight = normal(heads, dim, features)
    gamma = torch.rand(heads, generator=generator, dtype=torch.float64)
    return q, k, v, hedgehog(q, weight), hedgehog(k, weight), gamma


def by_hand(q, k, v, phi_q, phi_k, gamma, *, scale, window, kind, blocks, sinks):
    """The equation, token by token and key by key."""
    out = torch.zeros_like(q)
    for b, h, n in (
        (b, h, n) for b in range(q.shape[0]) for h in range(q.shape[1]) for n in range(q.shape[2])
    ):
        if kind == "sliding":
            near = [i for i in range(n + 1) if i > n - window or i < sinks]
        else:
            near = [i for i in range(n + 1) if n // window - i // window < blocks or i < sinks]
        far = [i for i in range(n + 1) if i not in near]
        logits = torch.stack([q[b, h, n] @ k[b, h, i] * scale for i in near]) if near else None
        num, den = torch.zeros_like(v[b, h, 0]), torch.zeros((), dtype=q.dtype)
        for place, i in enumerate(near):
            weight = gamma[h] * (logits[place] - logits.max()).exp()
            num, den = num + weight * v[b, h, i], den + weight
        for i in far:
            weight = phi_q[b, h, n] @ phi_k[b, h, i]
            num, den = num + weight * v[b, h, i], den + weight
        out[b, h, n] = num / den
    return out


def recurrent(q, k, v, phi_q, phi_k, gamma, *, scale, window, kind, blocks):
    """One token after the other, holding the window and the state alone."""
    state = torch.zeros(*q.shape[:2], phi_q.shape[-1], v.shape[-1] + 1, dtype=q.dtype)
    out, folded = [], 0
    for n in range(q.shape[2]):
        start = max(0, int(window_start(torch.tensor(n), window, kind, blocks)))
        old = slice(folded, start)
        state, folded = fold(state, phi_k[:, :, old], v[:, :, old]), start
        inside = slice(start, n + 1)
        out.append(
            hybrid_step(
                q[:, :, n : n + 1],
                k[:, :, inside],
                v[:, :, inside],
                phi_q[:, :, n : n + 1],
                gamma,
                state,
                scale=scale,
            )
        )
    return torch.cat(out, 2)


@settings(deadline=None, max_examples=40)
@given(
    length=st.integers(1, 40),
    window=st.integers(0, 12),
    shape=st.sampled_from(WINDOWS),
    sinks=st.integers(0, 3),
    heads=st.integers(1, 3),
    features=st.integers(1, 5),
    seed=st.integers(0, 9),
)
def test_all_forms_agree_over_lengths_windows_heads_and_features(
    length, window, shape, sinks, heads, features, seed
):
    kind, blocks = shape
    window = max(window, 1) if kind == "terraced" else window
    tensors = drawn(2, heads, length, 4, features, seed)
    how = {"scale": 0.5, "window": window, "kind": kind, "blocks": blocks}
    slow = hybrid_quadratic(*tensors, **how, sinks=sinks)
    many = hybrid_chunked(*tensors, **how, sinks=sinks)
    assert (slow - many).abs().max() < 1e-10
    if not sinks:
        assert (slow - recurrent(*tensors, **how)).abs().max() < 1e-10


@pytest.mark.parametrize(("kind", "blocks"), WINDOWS)
@pytest.mark.parametrize("sinks", [0, 2])
def test_the_definition_is_the_papers_equation(kind, blocks, sinks):
    tensors = drawn()
    how = {"scale": 0.5, "window": 3, "kind": kind, "blocks": blocks, "sinks": sinks}
    assert (hybrid_quadratic(*tensors, **how) - by_hand(*tensors, **how)).abs().max() < 1e-12


@pytest.mark.parametrize(("kind", "blocks"), WINDOWS)
@pytest.mark.parametrize("length", [5, 64, 65, 97])
def test_gradients_of_the_chunked_form_are_those_of_the_definition(kind, blocks, length):
    grads = []
    for form in (hybrid_quadratic, hybrid_chunked):
        tensors = [tensor.clone().requires_grad_() for tensor in drawn(1, 2, length)]
        y = form(*tensors, scale=0.5, window=4, kind=kind, blocks=blocks)
        (y * torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view_as(y)).sum().backward()
        grads.append([tensor.grad for tensor in tensors])
    for slow, many in zip(*grads, strict=True):
        assert (slow - many).abs().max() < 1e-10


@pytest.mark.parametrize("form", [hybrid_quadratic, hybrid_chunked])
@pytest.mark.parametrize("window", [13, 40])
def test_a_window_over_everything_is_softmax_attention_for_any_gate_and_map(form, window):
    q, k, v, *rest = drawn()
    y = form(q, k, v, *rest, scale=0.5, window=window)
    peer = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=0.5)
    assert (y - peer).abs().max() < 1e-12


def test_without_a_window_it_is_linear_attention():
    q, k, v, phi_q, phi_k, gamma = drawn()
    weights = (phi_q @ phi_k.transpose(-1, -2)).tril()
    plain = weights @ v / weights.sum(-1, keepdim=True)
    for form in (hybrid_quadratic, hybrid_chunked):
        assert (form(q, k, v, phi_q, phi_k, gamma, scale=0.5, window=0) - plain).abs().max() < 1e-12


@pytest.mark.parametrize(("kind", "blocks"), WINDOWS)
def test_outputs_are_averages_of_values(kind, blocks):
    q, k, v, *rest = drawn()
    y = hybrid_chunked(q, k, v, *rest, scale=0.5, window=3, kind=kind, blocks=blocks)
    low, high = v.cummin(2).values, v.cummax(2).values
    assert (y >= low - 1e-12).all() and (y <= high + 1e-12).all()
    constant = hybrid_chunked(q, k, v * 0 + 7, *rest, scale=0.5, window=3, kind=kind, blocks=blocks)
    assert (constant - 7).abs().max() < 1e-12


def test_the_order_of_old_keys_does_not_matter():
    q, k, v, phi_q, phi_k, gamma = drawn(length=20)
    how = {"scale": 0.5, "window": 4}
    order = torch.cat(
        [torch.randperm(16, generator=torch.Generator().manual_seed(1)), torch.arange(16, 20)]
    )
    one = hybrid_chunked(q, k, v, phi_q, phi_k, gamma, **how)
    other = hybrid_chunked(
        q, k[:, :, order], v[:, :, order], phi_q, phi_k[:, :, order], gamma, **how
    )
    assert (one[:, :, -1] - other[:, :, -1]).abs().max() < 1e-12


@pytest.mark.parametrize(("kind", "blocks"), WINDOWS)
@pytest.mark.parametrize("sinks", [0, 2])
def test_padding_at_the_end_changes_nothing_and_what_sees_nothing_is_zero(kind, blocks, sinks):
    tensors = drawn(length=21)
    how = {"scale": 0.5, "window": 3, "kind": kind, "blocks": blocks, "sinks": sinks}
    short = hybrid_chunked(*(t[:, :, :17] for t in tensors[:5]), tensors[5], **how)
    valid = torch.ones(2, 21, dtype=torch.bool)
    valid[:, 17:] = False
    for form in (hybrid_quadratic, hybrid_chunked):
        assert (form(*tensors, **how, valid=valid)[:, :, :17] - short).abs().max() < 1e-12
        assert (form(*tensors, **how, valid=valid & False) == 0).all()


def test_a_continuation_with_positions_and_state_is_the_whole():
    q, k, v, phi_q, phi_k, gamma = drawn(length=20)
    how = {"scale": 0.5, "window": 4}
    whole = hybrid_quadratic(q, k, v, phi_q, phi_k, gamma, **how)
    state = fold(torch.zeros(2, 2, 6, 5, dtype=q.dtype), phi_k[:, :, :7], v[:, :, :7])
    places = torch.arange(20).expand(2, -1)
    part = hybrid_quadratic(
        q[:, :, 10:],
        k[:, :, 7:],
        v[:, :, 7:],
        phi_q[:, :, 10:],
        phi_k[:, :, 7:],
        gamma,
        **how,
        query_positions=places[:, 10:],
        key_positions=places[:, 7:],
        state=state,
    )
    assert (part - whole[:, :, 10:]).abs().max() < 1e-12


def test_shared_key_heads_of_a_step_are_those_repeated():
    q, k, v, phi_q, _, gamma = drawn(heads=4, length=5)
    state = torch.rand(2, 4, 6, 5, dtype=q.dtype)
    args = (q[:, :, -1:], phi_q[:, :, -1:], gamma, state)
    shared = hybrid_step(args[0], k[:, :2], v[:, :2], *args[1:], scale=0.5)
    twice = (t[:, :2].repeat_interleave(2, 1) for t in (k, v))
    assert (shared - hybrid_step(args[0], *twice, *args[1:], scale=0.5)).abs().max() < 1e-12


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_are_summed_in_float32(dtype):
    tensors = [tensor.to(dtype) for tensor in drawn(length=33)]
    low = hybrid_chunked(*tensors, scale=0.5, window=4)
    high = hybrid_chunked(*(t.float() for t in tensors), scale=0.5, window=4)
    assert low.dtype == dtype
    assert torch.equal(low, high.to(dtype))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ((-1, "sliding", 2, 0), "window is -1"),
        ((4, "sliding", 2, -2), "sinks is -2"),
        ((4, "round", 2, 0), "'round'"),
        ((0, "terraced", 2, 0), "terraced window of 2 blocks of 0"),
        ((4, "terraced", 3, 0), "3 blocks"),
    ],
)
def test_windows_that_mean_nothing_are_refused(given, told):
    with pytest.raises(InputInvalid, match=told):
        check_window(*given)


@pytest.mark.parametrize("kind", ["hedgehog", "t2r"])
def test_a_feature_map_has_the_parameters_of_the_closed_form(kind):
    made = FeatureMap(kind, heads=3, head_dim=8, feature_dim=4)
    extra = 3 if kind == "t2r" else 0
    assert sum(p.numel() for p in made.parameters()) == 3 * 8 * 4 + extra
    assert made(torch.zeros(1, 3, 2, 8)).shape == (1, 3, 2, made.features)


def test_identity_initialisation_reads_the_first_coordinates():
    x = torch.randn(1, 2, 5, 8)
    first = x[..., :4]
    expected = torch.cat([first.softmax(-1), (-first).softmax(-1)], -1)
    assert torch.allclose(FeatureMap("hedgehog", 2, 8, 4)(x), expected)


def test_a_kaiming_start_follows_its_generator():
    one, same, other = (
        FeatureMap("hedgehog", 1, 8, 4, "kaiming", torch.Generator().manual_seed(seed)).weight
        for seed in (0, 0, 1)
    )
    assert torch.equal(one, same) and not torch.equal(one, other)


@pytest.mark.parametrize(
    ("kind", "width", "init", "told"),
    [
        ("relu", 4, "identity", "'relu'"),
        ("t2r", 0, "identity", "feature_dim is 0"),
        ("t2r", 4, "ones", "'ones'"),
    ],
)
def test_maps_that_do_not_exist_are_refused(kind, width, init, told):
    with pytest.raises(InputInvalid, match=told):
        FeatureMap(kind, 1, 8, width, init)
