"""LiNeS against its closed forms, and against the same scales written as a mergekit gradient."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.blocks import detect_blocks
from zeitgeist.merging.lines import (
    LinesOptions,
    alpha_rule,
    block_scales,
    is_behind,
    scale_adapter,
    scale_layers,
    scale_update,
)

LLAMA = ["self_attn.q_proj.weight", "mlp.up_proj.weight", "input_layernorm.weight"]
OUTSIDE = ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"]


def names(prefix: str, blocks, inside=LLAMA, outside=()):
    return [*outside, *(f"{prefix}.{i}.{part}" for i in blocks for part in inside)]


def found(tensors):
    return {stack.prefix: [i for (i,) in stack.indices] for stack in detect_blocks(tensors)}


# Blocks ------------------------------------------------------------------------------------------

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 16,
}
TEXT = SMALL | {"vocab_size": 32}
VISION = SMALL | {"image_size": 32, "patch_size": 16}


def tensor_names(model_class: str, config_class: str, **options) -> list[str]:
    import transformers

    config = getattr(transformers, config_class)(**options)
    with torch.device("meta"):
        return [name for name, _ in getattr(transformers, model_class)(config).named_parameters()]


@pytest.mark.parametrize(
    "model, config, options, stacks",
    [
        ("LlamaForCausalLM", "LlamaConfig", TEXT, {"model.layers": 3}),
        ("Qwen2ForCausalLM", "Qwen2Config", TEXT, {"model.layers": 3}),
        (
            "GPT2LMHeadModel",
            "GPT2Config",
            {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 32}
            | {"bos_token_id": 0, "eos_token_id": 0},
            {"transformer.h": 3},
        ),
        ("BertModel", "BertConfig", TEXT, {"encoder.layer": 3}),
        ("ViTModel", "ViTConfig", VISION, {"layers": 3}),
        (
            "T5ForConditionalGeneration",
            "T5Config",
            {"d_model": 16, "num_layers": 3, "num_decoder_layers": 2, "num_heads": 2, "d_kv": 8}
            | {"d_ff": 16, "vocab_size": 32},
            {"encoder.block": 3, "decoder.block": 2},
        ),
        (
            "CLIPModel",
            "CLIPConfig",
            {
                "text_config": TEXT
                | {"num_hidden_layers": 2, "bos_token_id": 0, "eos_token_id": 1},
                "vision_config": VISION,
            },
            {"text_model.encoder.layers": 2, "vision_model.encoder.layers": 3},
        ),
        ("MixtralForCausalLM", "MixtralConfig", TEXT, {"model.layers": 3}),
    ],
)
def test_blocks_of_real_architectures_are_found(model, config, options, stacks):
    assert {
        prefix: len(indices)
        for prefix, indices in found(tensor_names(model, config, **options)).items()
    } == stacks


@pytest.mark.parametrize(
    "prefix, inside",
    [
        ("model.layers", ["block_sparse_moe.experts.7.w1.weight", "block_sparse_moe.gate.weight"]),
        ("model.layers", ["mlp.experts.0.up_proj.weight", "mlp.experts.1.up_proj.weight"]),
        ("encoder.layer", ["attention.self.query.weight", "output.dense.bias"]),
        ("transformer.resblocks", ["attn.in_proj_weight", "mlp.c_fc.weight", "ln_1.bias"]),
        ("visual.transformer.resblocks", ["attn.in_proj_weight", "mlp.0.weight"]),
        ("encoder.block", ["layer.0.SelfAttention.q.weight", "layer.1.DenseReluDense.wi.weight"]),
    ],
)
def test_numbers_inside_a_block_are_not_its_number(prefix, inside):
    assert found(names(prefix, range(12), inside)) == {prefix: list(range(12))}


def test_lists_that_are_no_blocks_are_left_alone():
    outside = ["classifier.0.weight", "classifier.2.weight", "experts.0.proj.weight"]
    outside += ["experts.1.proj.weight", "mm_projector.0.bias", "head.0.0.weight"]
    assert found(names("model.layers", range(2), outside=outside)) == {"model.layers": [0, 1]}
    assert detect_blocks(outside) == []


def test_two_towers_never_share_a_depth():
    both = names("vision_tower.encoder.layers", range(3)) + names("language_model.layers", range(5))
    scales = block_scales(both, 0.0, 1.0)
    assert scales["vision_tower.encoder.layers.1.mlp.up_proj.weight"] == 0.5
    assert scales["language_model.layers.1.mlp.up_proj.weight"] == 0.25


def test_blocks_grouped_into_stages_are_one_stack():
    swin = [
        f"encoder.layers.{stage}.blocks.{block}.{part}"
        for stage, depth in enumerate([2, 3])
        for block in range(depth)
        for part in ("attention.q.weight", "output.dense.weight")
    ] + ["encoder.layers.0.downsample.reduction.weight"]
    (stack,) = detect_blocks(swin)
    assert stack.indices == ((0, 0), (0, 1), (1, 0), (1, 1), (1, 2))
    assert stack.depths == (0.0, 0.25, 0.5, 0.75, 1.0)
    assert "encoder.layers.0.downsample.reduction.weight" in stack.names[1]


def test_gaps_and_late_starts_are_told_and_do_not_shift_the_others():
    (stack,) = detect_blocks(names("h", [3, 4, 7]))
    assert stack.gaps == (5, 6)
    assert stack.depths == (0.0, 0.25, 1.0)
    assert "starts at 3" in stack.notes[0]
    assert "blocks 5, 6 are missing" in stack.notes[1]
    assert detect_blocks(names("h", range(3)))[0].notes == ()


def test_the_order_of_names_does_not_matter():
    shuffled = sorted(names("h", range(11)), reverse=True)
    assert found(shuffled) == {"h": list(range(11))}


def test_a_pattern_overrides_detection():
    odd = ["net_b1_w", "net_b2_w", "other"]
    (stack,) = detect_blocks(odd, pattern=r"_b(\d+)_")
    assert (stack.prefix, stack.indices) == ("net_b", ((1,), (2,)))
    for pattern, words in [("(", "no regular"), ("b", "no group"), (r"x(\d)", "matches no tensor")]:
        with pytest.raises(InputInvalid, match=words):
            detect_blocks(odd, pattern=pattern)
    with pytest.raises(InputInvalid, match="block numbers only"):
        detect_blocks(odd, pattern=r"_(b)\d")


# Scales ------------------------------------------------------------------------------------------


def test_three_blocks_by_hand():
    scales = block_scales(names("model.layers", range(3), outside=OUTSIDE), 0.2, 0.5)
    assert [scales[f"model.layers.{i}.mlp.up_proj.weight"] for i in range(3)] == pytest.approx(
        [0.2, 0.45, 0.7]
    )
    assert {scales[name] for name in OUTSIDE} == {0.2}


def test_what_is_outside_follows_the_chosen_rule():
    tensors = names("model.layers", range(3), outside=OUTSIDE)
    scales = block_scales(tensors, 0.25, 0.5, after="last")
    assert [scales[name] for name in OUTSIDE] == [0.25, 0.75, 0.75]
    scales = block_scales(tensors, 0.25, 0.5, before="last")
    assert [scales[name] for name in OUTSIDE] == [0.75, 0.25, 0.25]


@pytest.mark.parametrize(
    "name, behind",
    [
        ("transformer.wte.weight", False),
        ("embeddings.LayerNorm.weight", False),
        ("visual.conv1.weight", False),
        ("multi_modal_projector.linear_1.weight", False),
        ("vision_model.pre_layrnorm.weight", False),
        ("vision_model.post_layernorm.weight", True),
        ("transformer.ln_f.bias", True),
        ("embed_out.weight", True),
        ("visual.proj", True),
        ("pooler.dense.weight", True),
    ],
)
def test_outputs_are_told_from_inputs_by_name(name, behind):
    assert is_behind(name) is behind


def test_a_lone_block_gets_alpha_plus_beta():
    assert block_scales(["h.0.mlp.weight"], 0.25, 0.5) == {"h.0.mlp.weight": 0.75}


def test_no_blocks_is_an_error_that_asks_for_the_pattern():
    with pytest.raises(InputInvalid, match="no stack of blocks among 1 tensors"):
        block_scales(["weight"], 1.0, 0.0)


@given(st.floats(0, 1))
def test_alpha_and_its_complement_leave_the_last_block_at_exactly_one(alpha):
    scales = block_scales(names("h", range(4)), *LinesOptions(alpha=alpha).strengths(1))
    assert scales["h.3.mlp.up_proj.weight"] == 1.0
    assert scales["h.0.mlp.up_proj.weight"] == alpha


# Strengths ---------------------------------------------------------------------------------------


def test_the_alpha_rule_on_equal_task_vectors():
    tau = torch.randn(100, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    total = float((4 * tau).abs().sum())
    assert alpha_rule(4, total, float(tau.abs().sum())) == pytest.approx(1.0)  # averaging
    assert alpha_rule(4, total, total) == 0.25  # summing
    assert alpha_rule(4, 0.0, 0.0) == 0.25  # experts that are the base


def test_strengths_follow_the_rule_and_the_defaults():
    assert LinesOptions().strengths(4, 8.0, 8.0) == (0.25, 0.75)
    assert LinesOptions(beta=0.4).strengths(4, 8.0, 8.0) == (0.25, 0.4)
    assert LinesOptions().strengths(2, 6.0, 2.0) == (1.5, 0.0)
    assert LinesOptions(keep_last=True).strengths(2, 6.0, 2.0) == (1.5, -0.5)


@pytest.mark.parametrize(
    "bad, words",
    [
        (lambda: LinesOptions().strengths(1), "single fine-tune got no alpha"),
        (lambda: LinesOptions().strengths(3), "no L1 norms"),
        (lambda: LinesOptions(alpha=float("nan")), "alpha of LiNeS is nan"),
        (lambda: LinesOptions(alpha=0.1, beta=0.2, keep_last=True), "both keep_last and beta"),
        (lambda: LinesOptions(alpha=0.1, pattern="layers"), "no group"),
    ],
)
def test_options_that_say_nothing_are_refused(bad, words):
    with pytest.raises(InputInvalid, match=words):
        bad()


# Tensors -----------------------------------------------------------------------------------------


def model(seed: int, dtype=torch.bfloat16, blocks: int = 4) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(5, 3, generator=generator).to(dtype)
        for name in names("model.layers", range(blocks), outside=OUTSIDE)
    }


def same(one, other, which=lambda name: True):
    return all(torch.equal(one[name], other[name]) for name in one if which(name))


def lines(base, tuned, alpha, beta):
    return scale_layers(base, tuned, LinesOptions(alpha=alpha, beta=beta)).tensors


def test_alpha_one_is_the_fine_tune_and_alpha_zero_the_base_to_the_bit():
    base, tuned = model(0), model(1)
    assert same(lines(base, tuned, 1.0, 0.0), tuned)
    assert same(lines(base, tuned, 0.0, 0.0), base)


@pytest.mark.parametrize("alpha", [0.0, 0.1, 0.3, 0.7])
def test_the_last_block_is_the_fine_tune_to_the_bit_when_alpha_plus_beta_is_one(alpha):
    base, tuned = model(0), model(1)
    for beta in (1.0 - alpha, None):
        scaled = lines(base, tuned, alpha, beta)
        assert same(scaled, tuned, lambda name: ".3." in name)
    if alpha == 0.0:
        assert same(scaled, base, lambda name: ".0." in name or name in OUTSIDE)


def test_beta_zero_is_uniform_scaling():
    base, tuned = model(0, torch.float32), model(1, torch.float32)
    for name, got in lines(base, tuned, 0.3, 0.0).items():
        expected = base[name].double() + 0.3 * (tuned[name].double() - base[name].double())
        assert torch.equal(got, expected.float())


def test_lines_is_linear_in_the_update():
    zero = {name: torch.zeros(5, 3, dtype=torch.float64) for name in model(0)}
    one, two = model(1, torch.float64), model(2, torch.float64)
    mix = {name: 2.0 * one[name] - 3.0 * two[name] for name in one}
    a, b, both = (lines(zero, x, 0.2, 0.5) for x in (one, two, mix))
    for name, got in both.items():
        torch.testing.assert_close(got, 2.0 * a[name] - 3.0 * b[name], rtol=1e-14, atol=1e-14)


def test_a_small_scale_of_a_small_update_survives_low_precision():
    base = torch.full((1000,), 0.02, dtype=torch.bfloat16)
    tuned = base + torch.tensor(2.0**-13, dtype=torch.bfloat16)  # one step of bfloat16 at .02
    half = scale_update(base, tuned, 0.6)
    assert torch.equal(half, tuned)  # the nearest number, not the base


def test_integers_and_booleans_are_copied():
    assert torch.equal(scale_update(torch.tensor([1]), torch.tensor([5]), 0.5), torch.tensor([5]))
    mask = torch.tensor([True])
    assert torch.equal(scale_update(~mask, mask, 0.0), mask)


def test_tensors_of_one_side_only_and_grown_vocabularies_are_told():
    base, tuned = model(0, torch.float32), model(1, torch.float32)
    embedding = "model.embed_tokens.weight"
    tuned[embedding] = torch.cat([tuned[embedding], torch.full((2, 3), 7.0)])
    base["old_head.weight"], tuned["value_head.weight"] = torch.ones(2), torch.ones(3)
    result = scale_layers(base, tuned, LinesOptions(alpha=0.0))
    assert torch.equal(result.tensors[embedding][:5], base[embedding])
    assert torch.equal(result.tensors[embedding][5:], torch.full((2, 3), 7.0))
    assert torch.equal(result.tensors["value_head.weight"], torch.ones(3))
    assert torch.equal(result.tensors["old_head.weight"], torch.ones(2))
    assert len(result.notes) == 3


def test_tied_tensors_are_scaled_once_and_stay_tied():
    base, tuned = model(0, torch.float32), model(1, torch.float32)
    tuned["lm_head.weight"] = tuned["model.embed_tokens.weight"]
    result = scale_layers(base, tuned, LinesOptions(alpha=0.25, after="last"))
    head, embedding = (result.tensors[OUTSIDE[i]] for i in (2, 0))
    assert head.data_ptr() == embedding.data_ptr()
    assert result.scales["lm_head.weight"] == 0.25


def test_nan_and_foreign_shapes_name_the_tensor():
    base, tuned = model(0, torch.float32), model(1, torch.float32)
    tuned["model.norm.weight"] = torch.full((5, 3), torch.nan)
    with pytest.raises(InputInvalid, match=r"model\.norm\.weight of the fine-tune holds NaN"):
        lines(base, tuned, 0.5, None)
    tuned["model.norm.weight"] = torch.ones(5, 4)
    with pytest.raises(InputInvalid, match=r"\[5, 3\] in the base and \[5, 4\] after"):
        lines(base, tuned, 0.5, None)


def test_an_adapter_is_scaled_as_its_update():
    generator = torch.Generator().manual_seed(3)
    modules = [f"model.layers.{i}.self_attn.q_proj" for i in range(4)]
    factors = {
        module: (torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator))
        for module in modules
    }
    scaled = scale_adapter(factors, 0.1, 0.6)
    zero = {f"{module}.weight": torch.zeros(5, 6) for module in modules}
    dense = {f"{module}.weight": b @ a for module, (a, b) in factors.items()}
    expected = lines(zero, dense, 0.1, 0.6)
    for module, (a, b) in scaled.items():
        torch.testing.assert_close(b @ a, expected[f"{module}.weight"])
    late = {module: factors[module] for module in modules[2:]}
    placed = scale_adapter(late, 0.0, 1.0, base_names=[f"{module}.weight" for module in modules])
    torch.testing.assert_close(placed[modules[2]][1], factors[modules[2]][1] * (2 / 3))


@pytest.mark.filterwarnings("ignore")  # what mergekit's own imports and defaults warn about
def test_the_same_scales_as_a_mergekit_gradient_give_the_same_model(tmp_path):
    pytest.importorskip("mergekit", reason="mergekit is the peer of this test")
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions
    from safetensors.torch import load_file
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **TEXT | {"num_hidden_layers": 4}, bos_token_id=1, eos_token_id=2, pad_token_id=0
    )
    paths = {which: tmp_path / which for which in ("base", "tuned")}
    for seed, path in enumerate(paths.values()):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            LlamaForCausalLM(config).save_pretrained(path)
    alpha, beta = 0.2, 0.5
    recipe = {
        "merge_method": "task_arithmetic",
        "base_model": str(paths["base"]),
        "models": [{"model": str(paths["tuned"]), "parameters": {"weight": [alpha, alpha + beta]}}],
        "dtype": "float32",
    }
    run_merge(
        MergeConfiguration.model_validate(recipe),
        str(tmp_path / "out"),
        MergeOptions(quiet=True, copy_tokenizer=False),
    )
    peer = load_file(tmp_path / "out" / "model.safetensors")
    base, tuned = (load_file(path / "model.safetensors") for path in paths.values())
    ours = lines(base, tuned, alpha, beta)
    assert ours.keys() == peer.keys()
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, peer[name], rtol=1e-6, atol=1e-8, msg=name)
