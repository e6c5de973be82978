"""Dropping is what zeroing output projections computes, on every family, with or without cache."""

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from zeitgeist.compression.dropped import (
    LAYOUTS,
    Skips,
    drop_layers,
    parameters_removed,
    skips_of,
)
from zeitgeist.compression.layer_scores import (
    KINDS,
    score_by_perplexity,
    score_iteratively,
    score_layers,
)
from zeitgeist.compression.measures import cache_bytes, perplexity
from zeitgeist.errors import InputInvalid

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "vocab_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 4,
    "pad_token_id": 0,
}


def made(family="llama", seed=0):
    layout = LAYOUTS[family]
    config = getattr(transformers, layout.config)(**SHAPE)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return getattr(transformers, layout.causal)(config).eval()


def ids(length=9, batch=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(1, 32, (batch, length), generator=generator)


every_family = pytest.mark.parametrize("family", list(LAYOUTS))


@every_family
@pytest.mark.parametrize(
    ("attention", "mlp"), [((0,), ()), ((), (1,)), ((0, 2), (2, 3)), ((3,), ())]
)
def test_dropped_is_what_zeroed_projections_compute(family, attention, mlp):
    model = made(family)
    less = drop_layers(model, attention=attention, mlp=mlp)
    zeroed = made(family)
    with torch.no_grad():
        for layer in attention:
            zeroed.model.layers[layer].self_attn.o_proj.weight.zero_()
        for layer in mlp:
            zeroed.model.layers[layer].mlp.down_proj.weight.zero_()
    tokens = ids()
    with torch.no_grad():
        expected = zeroed(tokens).logits
        assert (less(tokens).logits - expected).abs().max() < 1e-6
        start = less(tokens[:, :4], use_cache=True)
        parts, cache = [start.logits], start.past_key_values
        for at in range(4, tokens.shape[1]):
            step = less(tokens[:, at : at + 1], past_key_values=cache, use_cache=True)
            parts.append(step.logits)
        assert (torch.cat(parts, 1) - expected).abs().max() < 1e-5
        padded = torch.nn.functional.pad(tokens, (3, 0))
        mask = (padded != 0).long()
        places = (mask.cumsum(1) - 1).clamp(min=0)
        shifted = less(padded, attention_mask=mask, position_ids=places).logits[:, 3:]
        assert (shifted - expected).abs().max() < 1e-5


@every_family
def test_generation_with_cache_is_that_without_when_the_first_attention_is_gone(family):
    less = drop_layers(made(family), attention=(0, 1))
    how = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    tokens = ids(batch=1)
    assert torch.equal(less.generate(tokens, **how), less.generate(tokens, use_cache=False, **how))
    assert less.generate(tokens, num_beams=2, **how).shape == (1, 15)


@every_family
def test_saved_and_opened_again_it_computes_the_same_and_holds_less(family, tmp_path):
    model = made(family)
    less = drop_layers(model, attention=(1,), mlp=(2,))
    less.save_pretrained(tmp_path / "less")
    model.save_pretrained(tmp_path / "model")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "less")
    assert type(again) is type(less)
    assert skips_of(again.config) == Skips((1,), (2,))
    with torch.no_grad():
        assert torch.equal(again(ids()).logits, less(ids()).logits)
    sizes = [(tmp_path / n / "model.safetensors").stat().st_size for n in ("less", "model")]
    assert sizes[0] < sizes[1]
    removed = parameters_removed(model, Skips((1,), (2,)))
    counts = [sum(p.numel() for p in m.parameters()) for m in (model, less)]
    assert counts[0] - counts[1] == removed > 0


def test_dropping_twice_is_dropping_once():
    model = made()
    twice = drop_layers(drop_layers(model, attention=(1,)), attention=(3,), mlp=(1,))
    once = drop_layers(model, attention=(3, 1), mlp=(1,))
    assert twice.config.dropped_layers == once.config.dropped_layers
    with torch.no_grad():
        assert torch.equal(twice(ids()).logits, once(ids()).logits)


def test_dropping_nothing_changes_nothing_and_the_model_given_stays_whole():
    model = made()
    with torch.no_grad():
        before = model(ids()).logits
        assert torch.equal(drop_layers(model)(ids()).logits, before)
        drop_layers(model, attention=(0, 1, 2, 3))
        assert torch.equal(model(ids()).logits, before)


def test_without_any_attention_a_token_sees_itself_alone():
    less = drop_layers(made(), attention=(0, 1, 2, 3))
    tokens = ids()
    mixed = torch.cat([tokens[:, :-1].flip(1), tokens[:, -1:]], 1)
    with torch.no_grad():
        assert torch.equal(less(tokens).logits[:, -1], less(mixed).logits[:, -1])


def test_the_cache_of_dropped_layers_holds_a_byte_a_token_at_most():
    model = made()
    with torch.no_grad():
        kept = [
            cache_bytes(each(ids(), use_cache=True).past_key_values)
            for each in (model, drop_layers(model, attention=(0, 2)))
        ]
    assert kept[0] == 4 * 2 * 2 * 9 * 2 * 4 * 4
    assert kept[1] == kept[0] // 2 + 2 * 9  # layer 0 counts tokens


@pytest.mark.parametrize(
    ("layers", "told"),
    [((4,), "layer 4 is out of range.*0 to 3"), ((-1,), "layer -1"), ((1, 1), "dropped already")],
)
def test_layers_that_are_not_there_are_refused(layers, told):
    with pytest.raises(InputInvalid, match=told):
        drop_layers(made(), attention=layers)
    with pytest.raises(InputInvalid, match="mlp of layer 2 is dropped already"):
        drop_layers(drop_layers(made(), mlp=(2,)), mlp=(2,))


def test_families_that_cannot_lose_a_layer_are_refused_by_name():
    config = transformers.GPTNeoXConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, vocab_size=8
    )
    with pytest.raises(InputInvalid, match=r"'gpt_neox'.*same input"):
        drop_layers(transformers.GPTNeoXForCausalLM(config), attention=(0,))
    small = transformers.GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=8)
    with pytest.raises(InputInvalid, match=r"'gpt2'.*no layout"):
        score_layers(transformers.GPT2LMHeadModel(small), ids())


@every_family
def test_scores_are_those_of_a_loop_over_hidden_states(family):
    model = made(family)
    scores = score_layers(model, ids(), batch_size=2, progress=False)
    inputs, outputs = [], []
    hooks = [
        hook
        for layer in model.model.layers
        for hook in (
            layer.register_forward_pre_hook(lambda _m, args: inputs.append(args[0])),
            layer.register_forward_hook(lambda _m, _a, out: outputs.append(out)),
        )
    ]
    with torch.no_grad():
        model(ids())
    for hook in hooks:
        hook.remove()
    for layer, (x, y) in enumerate(zip(inputs, outputs, strict=True)):
        y = y[0] if isinstance(y, tuple) else y
        cosines = torch.nn.functional.cosine_similarity(x, y, dim=-1)
        assert float(scores.similarity("block")[layer]) == pytest.approx(
            float(cosines.mean()), abs=1e-6
        )
        later = scores.similarity("block", without_first=True)[layer]
        assert float(later) == pytest.approx(float(cosines[:, 1:].mean()), abs=1e-6)


def test_a_sub_layer_that_adds_nothing_is_the_first_to_go():
    model = made()
    with torch.no_grad():
        model.model.layers[2].self_attn.o_proj.weight.zero_()
        model.model.layers[1].mlp.down_proj.weight.zero_()
    scores = score_layers(model, ids(), progress=False)
    assert float(scores.similarity("attention")[2]) == pytest.approx(1, abs=1e-6)
    assert scores.ranking("attention")[0] == scores.ranking("attention", "angular")[0] == 2
    assert scores.ranking("mlp")[0] == 1
    assert set(scores.joint_ranking()[:2]) == {("attention", 2), ("mlp", 1)}
    assert score_iteratively(model, ids(), "attention", 2)[0] == 2
    costs = score_by_perplexity(model, ids(), "attention", [0, 2])
    assert costs[2] == pytest.approx(0, abs=1e-4) and costs[0] != costs[2] and costs[1] != costs[1]


def test_padding_and_batches_change_no_score():
    model, tokens = made(), ids()
    plain = score_layers(model, tokens, progress=False)
    padded = torch.nn.functional.pad(tokens, (0, 4))
    mask = torch.nn.functional.pad(torch.ones_like(tokens), (0, 4))
    for batch_size in (1, 2):
        other = score_layers(model, padded, mask, batch_size=batch_size, progress=False)
        for kind in KINDS:
            difference = other.similarity(kind) - plain.similarity(kind)
            assert difference.abs().max() < 1e-6


def test_rows_of_different_length_count_by_their_tokens():
    model, tokens = made(), ids(8)
    mask = torch.ones_like(tokens)
    mask[1, 5:] = 0
    whole = score_layers(model, tokens, mask, batch_size=2, progress=False)
    one = score_layers(model, tokens[:1], progress=False).similarity("mlp")
    two = score_layers(model, tokens[1:, :5], progress=False).similarity("mlp")
    assert (whole.similarity("mlp") - (8 * one + 5 * two) / 13).abs().max() < 1e-6


def test_ranks_of_the_bootstrap_hold_the_rank_found():
    scores = score_layers(made(), ids(batch=6), progress=False)
    order = scores.ranking("attention")
    for layer, (low, high) in enumerate(scores.rank_interval("attention", seed=1)):
        assert 0 <= low <= high <= 3
        assert low <= order.index(layer) <= high
    assert scores.rank_interval("mlp", seed=3) == scores.rank_interval("mlp", seed=3)


def test_what_is_gone_is_not_ranked():
    less = drop_layers(made(), attention=(1,), mlp=(3,))
    scores = score_layers(less, ids(), progress=False)
    assert sorted(scores.ranking("attention")) == [0, 2, 3]
    assert sorted(scores.ranking("mlp")) == [0, 1, 2]
    assert sorted(scores.ranking("block")) == [0, 2]
    assert len(scores.joint_ranking()) == 6
    assert scores.rank_interval("attention")[1] == (-1, -1)


def test_perplexity_is_that_of_the_models_own_loss():
    model, tokens = made(), ids()
    with torch.no_grad():
        loss = model(tokens, labels=tokens).loss
    assert perplexity(model, tokens, batch_size=2) == pytest.approx(float(loss.exp()), rel=1e-5)


@pytest.mark.parametrize(("kind", "metric"), [("head", "cosine"), ("mlp", "taylor")])
def test_unknown_kinds_and_metrics_are_refused(kind, metric):
    scores = score_layers(made(), ids(), progress=False)
    with pytest.raises(InputInvalid, match=r"head|taylor"):
        scores.ranking(kind, metric)
    with pytest.raises(InputInvalid, match="no text"):
        score_layers(made(), ids()[:0])
