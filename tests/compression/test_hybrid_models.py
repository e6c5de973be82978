"""Linearized models of every family: limits, decoding, padding, documents, files, refusals."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from zeitgeist.compression.hybrid_models import (
    FAMILIES,
    linearize_model,
    state_bytes,
)
from zeitgeist.compression.measures import cache_bytes
from zeitgeist.compression.transfer import (
    TransferOptions,
    answer,
    cross_entropy,
    lessons,
    relative_error,
    softmax_entropy,
    transfer_attention,
)
from zeitgeist.errors import InputInvalid

WINDOWS = [
    (0, "sliding", 2, 0),
    (1, "sliding", 2, 0),
    (4, "sliding", 2, 0),
    (4, "terraced", 2, 0),
    (3, "terraced", 1, 0),
    (0, "sliding", 2, 2),
    (4, "sliding", 2, 1),
    (2, "sliding", 2, 6),
    (4, "terraced", 2, 3),
]
SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "vocab_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
}
every_family = pytest.mark.parametrize("family", list(FAMILIES))
every_window = pytest.mark.parametrize(("window", "kind", "blocks", "sinks"), WINDOWS)


def base(family="llama", **changes):
    config, _, causal = FAMILIES[family]
    known = {"sliding_window": None} if family == "mistral" else {}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return causal(config(**{**SHAPE, **known, **changes})).double().eval()


def ids(length=23, batch=2):
    return torch.randint(1, 32, (batch, length), generator=torch.Generator().manual_seed(1))


@every_family
def test_a_window_over_everything_is_the_base(family):
    model = base(family)
    with torch.no_grad():
        difference = linearize_model(model, window=64)(ids()).logits - model(ids()).logits
    assert difference.abs().max() < 1e-10


@every_family
@every_window
def test_token_by_token_and_piece_by_piece_are_the_prompt_at_once(
    family, window, kind, blocks, sinks
):
    model = linearize_model(base(family), window=window, kind=kind, blocks=blocks, sinks=sinks)
    tokens = ids()
    with torch.no_grad():
        whole = model(tokens, use_cache=False).logits
        for first in (1, 5, 8):
            for sizes in ([1] * (23 - first), [23 - first], [7, 23 - first - 7]):
                out = model(tokens[:, :first], use_cache=True)
                parts, at = [out.logits], first
                for size in sizes:
                    piece = tokens[:, at : at + size]
                    parts.append(model(piece, past_key_values=out.past_key_values).logits)
                    at += size
                assert (torch.cat(parts, 1) - whole).abs().max() < 1e-10


@every_window
def test_padding_on_either_side_changes_nothing(window, kind, blocks, sinks):
    model = linearize_model(base(), window=window, kind=kind, blocks=blocks, sinks=sinks)
    with torch.no_grad():
        whole = model(ids()).logits
        for sides, part in (((3, 0), slice(3, None)), ((0, 3), slice(0, 23))):
            padded = torch.nn.functional.pad(ids(), sides)
            out = model(padded, attention_mask=(padded != 0).long()).logits[:, part]
            assert (out - whole).abs().max() < 1e-10


@every_window
def test_left_padded_rows_decode_as_they_would_alone(window, kind, blocks, sinks):
    model = linearize_model(base(), window=window, kind=kind, blocks=blocks, sinks=sinks)
    tokens, mask = ids(), torch.ones(2, 23, dtype=torch.long)
    mask[0, :6] = 0
    with torch.no_grad():
        alone = model(tokens[:1, 6:]).logits
        out = model(tokens[:, :12], attention_mask=mask[:, :12], use_cache=True)
        parts = [out.logits[:1, 6:]]
        for at in range(12, 23):
            step = model(
                tokens[:, at : at + 1],
                attention_mask=mask[:, : at + 1],
                past_key_values=out.past_key_values,
            )
            parts.append(step.logits[:1])
    assert (torch.cat(parts, 1) - alone).abs().max() < 1e-10


@every_window
@pytest.mark.parametrize("size", [1, 3, 5, 10])
def test_left_padded_pieces_are_the_prompt_at_once(window, kind, blocks, sinks, size):
    model = linearize_model(base(), window=window, kind=kind, blocks=blocks, sinks=sinks)
    tokens, mask = ids(), torch.ones(2, 23, dtype=torch.long)
    mask[0, :7] = 0
    with torch.no_grad():
        alone = model(tokens[:1, 7:], use_cache=False).logits
        other = model(tokens[1:], use_cache=False).logits
        parts, cache = [], None
        for at in range(0, 23, size):
            seen = mask[:, : at + size]
            out = model(
                tokens[:, at : at + size],
                attention_mask=seen,
                past_key_values=cache,
                use_cache=True,
            )
            cache = out.past_key_values
            parts.append(out.logits)
    whole = torch.cat(parts, 1)
    assert (whole[:1, 7:] - alone).abs().max() < 1e-10
    assert (whole[1:] - other).abs().max() < 1e-10


def test_tokens_that_are_hidden_afterwards_are_refused():
    model = linearize_model(base(), window=4)
    mask = torch.ones(2, 23, dtype=torch.long)
    mask[0, 18:] = 0
    with torch.no_grad():
        out = model(ids(), attention_mask=mask, use_cache=True)
        longer = torch.cat([mask, torch.ones(2, 1, dtype=torch.long)], 1)
        with pytest.raises(InputInvalid, match="pad on the left"):
            model(ids()[:, :1], attention_mask=longer, past_key_values=out.past_key_values)


@every_window
def test_generation_with_a_cache_is_generation_without(window, kind, blocks, sinks):
    model = linearize_model(base(), window=window, kind=kind, blocks=blocks, sinks=sinks)
    how = {"max_new_tokens": 9, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    assert torch.equal(model.generate(ids(), **how), model.generate(ids(), use_cache=False, **how))
    beams = {**how, "num_beams": 3}
    assert torch.equal(
        model.generate(ids(), **beams), model.generate(ids(), use_cache=False, **beams)
    )


@every_window
def test_packed_documents_do_not_see_each_other(window, kind, blocks, sinks):
    model = linearize_model(base(), window=window, kind=kind, blocks=blocks, sinks=sinks)
    places = torch.cat([torch.arange(10), torch.arange(13)])[None].repeat(2, 1)
    places[1] = torch.arange(23)
    with torch.no_grad():
        packed = model(ids(), position_ids=places, use_cache=False).logits
        apart = torch.cat([model(ids()[:1, :10]).logits, model(ids()[:1, 10:]).logits], 1)
        assert (packed[:1] - apart).abs().max() < 1e-10
        assert (packed[1:] - model(ids()[1:]).logits).abs().max() < 1e-10


@every_family
def test_saved_and_opened_by_its_registered_class(family, tmp_path):
    model = linearize_model(base(family), window=4, layers=[1])
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float64)
    assert type(again) is type(model)
    assert not list(tmp_path.glob("*.py"))
    with torch.no_grad():
        # Maps are kept in float32.
        assert (again(ids()).logits - model(ids()).logits).abs().max() < 1e-5


def test_layers_that_stay_softmax_agree_with_the_cache_too():
    model = linearize_model(base(), window=4, layers=[1])
    with torch.no_grad():
        whole = model(ids(), use_cache=False).logits
        out = model(ids()[:, :9], use_cache=True)
        later = model(ids()[:, 9:], past_key_values=out.past_key_values).logits
    assert (torch.cat([out.logits, later], 1) - whole).abs().max() < 1e-10


def test_what_is_kept_is_what_is_said():
    model = linearize_model(base().float(), window=4)
    with torch.no_grad():
        for length in (12, 40):
            kept = cache_bytes(model(ids(length, 1), use_cache=True).past_key_values)
            assert kept == state_bytes(model.config, tokens=length)[0]


def test_the_maps_are_as_many_as_the_closed_form():
    model = linearize_model(base(), window=4)
    own = sum(p.numel() for n, p in model.named_parameters() if "feature_map" in n)
    assert own == 2 * 4 * 2 * 8 * 4  # layers, heads, maps, d, d / 2


def test_teaching_a_layer_alone_has_the_gradient_of_teaching_all():
    model = linearize_model(base(), window=4, init="kaiming")
    losses, alone = [], []
    for index, lesson in lessons(model, ids()):
        attention = model.model.layers[index].self_attn
        with torch.enable_grad():
            loss = torch.nn.functional.mse_loss(answer(attention, lesson), lesson.y)
            alone += torch.autograd.grad(loss, list(attention.feature_map_q.parameters()))
            losses.append(torch.nn.functional.mse_loss(answer(attention, lesson), lesson.y))
    every = [p for layer in model.model.layers for p in layer.self_attn.feature_map_q.parameters()]
    for one, all_ in zip(alone, torch.autograd.grad(sum(losses), every), strict=True):
        assert torch.equal(one, all_)


def test_teaching_lowers_the_error_moves_nothing_else_and_repeats():
    reports = []
    for _ in range(2):
        model = linearize_model(base().float(), window=4)
        before = {n: p.clone() for n, p in model.named_parameters()}
        text = ids(24, 6)
        options = TransferOptions(steps=30)
        report = transfer_attention(model, text[:4], text[4:], options=options, progress=False)
        reports.append(report)
        assert all(a < b for a, b in zip(report.after, report.before, strict=True))
        moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
        assert moved and all("feature_map" in n or n.endswith("gate") for n in moved)
    assert reports[0] == reports[1]


@every_family
@pytest.mark.parametrize("reach", [None, 7])
def test_lessons_are_what_the_base_itself_attends(family, reach):
    slides = {"sliding_window": reach} if family == "mistral" else {}
    model, seen = base(family, **slides), []
    hooks = [
        layer.self_attn.o_proj.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(ids(), use_cache=False)
    for hook in hooks:
        hook.remove()
    found = [lesson.y for _, lesson in lessons(linearize_model(model, window=4), ids())]
    if reach is None:  # through a layer that stays softmax, in plain attention
        model.set_attn_implementation("eager")
        some = linearize_model(model, window=4, layers=[1])
        # plain attention takes its softmax in float32
        assert (next(lessons(some, ids()))[1].y - found[1]).abs().max() < 1e-6
    for mine, theirs in zip(found, seen, strict=True):
        assert (mine.transpose(1, 2).flatten(2) - theirs).abs().max() < 1e-10


def test_nothing_is_missed_where_the_window_sees_everything():
    model = linearize_model(base(), window=64)
    for index, lesson in lessons(model, ids()):
        attention = model.model.layers[index].self_attn
        assert relative_error(attention, lesson) < 1e-12
        apart = float(cross_entropy(attention, lesson).detach())
        assert apart == pytest.approx(softmax_entropy(attention, lesson), abs=1e-5)


def test_cross_entropy_between_weights_can_be_taught_as_well():
    before, after = [], []
    for found, steps in ((before, 0), (after, 30)):
        model = linearize_model(base().float(), window=4)
        options = TransferOptions(steps=steps, mse_weight=0.0, xent_weight=1.0)
        transfer_attention(model, ids(24, 6)[:4], ids(24, 6)[4:], options=options, progress=False)
        for index, lesson in lessons(model, ids(24, 6)[4:]):
            found.append(float(cross_entropy(model.model.layers[index].self_attn, lesson).detach()))
    assert all(a < b for a, b in zip(after, before, strict=True))


def test_the_entropy_of_attention_to_one_key_is_none_and_to_all_alike_is_the_mean_logarithm():
    model = linearize_model(base(), window=4)
    _, lesson = next(iter(lessons(model, ids())))
    attention = model.model.layers[0].self_attn
    assert softmax_entropy(attention, lesson._replace(seen=torch.eye(23).bool())) == 0
    flat = lesson._replace(q=torch.zeros_like(lesson.q))
    expected = torch.arange(1, 24).double().log().mean()
    assert softmax_entropy(attention, flat) == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize(
    ("how", "told"),
    [
        ({"window": -1}, "window is -1"),
        ({"window": 0, "kind": "terraced"}, "terraced window"),
        ({"layers": [2]}, "0 to 1"),
        ({"layers": []}, "0 to 1"),
        ({"feature_map": "exp"}, "'exp'"),
    ],
)
def test_what_means_nothing_is_refused(how, told):
    with pytest.raises(InputInvalid, match=told):
        linearize_model(base(), **how)


def test_models_that_cannot_be_converted_are_refused_by_name():
    config = transformers.Gemma2Config(**SHAPE)
    with pytest.raises(InputInvalid, match="'gemma2'"):
        linearize_model(transformers.Gemma2ForCausalLM(config))
    with pytest.raises(InputInvalid, match="already"):
        linearize_model(linearize_model(base()))
    with pytest.raises(InputInvalid, match="sliding window of 8"):
        linearize_model(base("mistral", sliding_window=8), layers=[0])
    with pytest.raises(InputInvalid, match="no linearized layer"):
        transfer_attention(base(), ids(), ids())
    with pytest.raises(InputInvalid, match="0 windows"):
        transfer_attention(linearize_model(base()), ids()[:0], ids())
    with pytest.raises(InputInvalid, match="steps is -1"):
        TransferOptions(steps=-1)
