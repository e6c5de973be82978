"""LoRA adapters against PEFT itself, and every adapter that is more than LoRA refused by name."""

import json
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from zeitgeist.checkpoints.adapter import Adapter, open_adapter, write_adapter
from zeitgeist.errors import CheckpointInvalid, InputInvalid, OutputExists

peft = pytest.importorskip("peft", reason="PEFT is the oracle of these tests (extra: training)")

QV = ["q_proj", "v_proj"]


@pytest.fixture(autouse=True)
def _pefts_own_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        for message in (
            "`is_gradient_checkpointing` is deprecated",  # PEFT 0.21 on transformers 5.23
            "fan_in_fan_out is set",
            "The following (rank|alpha)_pattern keys",
            "Setting `save_embedding_layers`",
            "Adapter 'default': 2 LoRA tensor",  # what lora_bias=True makes PEFT say of its own
        ):
            warnings.filterwarnings("ignore", message=message)
        yield


def llama() -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=37,
        hidden_size=12,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=False,
    )
    return seeded(lambda: LlamaForCausalLM(config))


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=41, n_positions=16, n_embd=12, n_layer=2, n_head=3)
    return seeded(lambda: GPT2LMHeadModel(config))


class Pixels(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, kernel_size=3)
        self.mix = nn.Conv2d(6, 5, kernel_size=1)
        self.line = nn.Conv1d(5, 4, kernel_size=2)


class Towers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        for tower in ("a", "b"):
            layer = nn.ModuleDict({"q": nn.Linear(5, 3), "k": nn.Linear(5, 2)})
            self.add_module(tower, nn.ModuleDict({"layer": layer}))


PATTERNS = st.sampled_from(["q", "k", "layer.q", "^a.layer.k", "b.*", "^q", r"a\.layer\.[qk]"])


def pixels() -> nn.Module:
    return seeded(Pixels)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


def trained(model: nn.Module, seed: int = 0, **options: Any) -> Any:
    """A PEFT model whose factors are random, as if it had been trained."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(model, peft.LoraConfig(**options))
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                nn.init.normal_(parameter)
    return model


def saved(path: Path, model: nn.Module, seed: int = 0, **options: Any) -> tuple[Path, Any]:
    model = trained(model, seed, **options)
    model.save_pretrained(path)
    return path, model


def layers(model: Any) -> dict[str, Any]:
    """PEFT's adapted modules by their path in the base model."""
    return {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if hasattr(module, "get_delta_weight")
    }


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    "plain": (llama, {"r": 3, "lora_alpha": 7, "target_modules": QV}),
    "rank-stabilised": (
        llama,
        {"r": 4, "lora_alpha": 6, "use_rslora": True, "target_modules": QV},
    ),
    "patterns": (
        llama,
        {
            "r": 2,
            "lora_alpha": 5,
            "target_modules": "all-linear",
            "rank_pattern": {"layers.1.self_attn.q_proj": 4, r".*\.mlp\..*": 3},
            "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 9, "down_proj": 1},
        },
    ),
    "stabilised patterns": (
        llama,
        {
            "r": 2,
            "use_rslora": True,
            "target_modules": QV,
            "rank_pattern": {"v_proj": 5},
            "alpha_pattern": {"q_proj": 3},
        },
    ),
    "embedding": (
        llama,
        {"r": 3, "lora_alpha": 4, "target_modules": ["embed_tokens", "q_proj", "lm_head"]},
    ),
    "transposed": (
        gpt2,
        {"r": 3, "target_modules": ["c_attn", "c_proj", "wte"], "fan_in_fan_out": True},
    ),
    "convolution": (
        pixels,
        {"r": 2, "lora_alpha": 3, "target_modules": ["stem", "mix", "line"]},
    ),
    "one layer of two": (
        llama,
        {"r": 2, "target_modules": QV, "layers_to_transform": [1], "layers_pattern": "layers"},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_delta_is_what_peft_adds_to_the_weight(case: str, tmp_path: Path) -> None:
    make, options = CASES[case]
    path, model = saved(tmp_path / "a", make(), **options)
    adapter = open_adapter(path)
    assert set(adapter.modules) == set(layers(model))
    for name, module in layers(model).items():
        torch.testing.assert_close(adapter.delta(name), module.get_delta_weight("default"))
        assert adapter.shape(name) == tuple(module.get_base_layer().weight.shape)
        assert adapter.rank(name) == module.r["default"]


@pytest.mark.parametrize("case", CASES)
def test_base_plus_delta_is_merge_and_unload(case: str, tmp_path: Path) -> None:
    make, options = CASES[case]
    path, model = saved(tmp_path / "a", make(), **options)
    # Parameters and not the state: GPT-2's tied head is not a weight of its own.
    before, after = dict(make().named_parameters()), model.merge_and_unload().state_dict()
    adapter = open_adapter(path)
    for name, weight in before.items():
        module = name.removesuffix(".weight")
        delta = adapter.delta(module) if module in adapter.modules else 0.0
        torch.testing.assert_close(weight.detach() + delta, after[name])


@pytest.mark.parametrize("case", CASES)
def test_factors_times_scale_are_the_delta_in_the_layout_of_the_module(
    case: str, tmp_path: Path
) -> None:
    make, options = CASES[case]
    adapter = open_adapter(saved(tmp_path / "a", make(), **options)[0])
    for module in adapter.modules:
        factors = adapter.factors(module)
        product = factors.scale * factors.b @ factors.a
        weight = adapter.delta(module).flatten(1)
        torch.testing.assert_close(product, weight.T if factors.transposed else weight)


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_loads_in_peft_with_the_same_delta(case: str, tmp_path: Path) -> None:
    make, options = CASES[case]
    path, model = saved(tmp_path / "a", make(), **options)
    adapter = open_adapter(path)
    out = write_adapter(tmp_path / "out", scaled(adapter), like=adapter)
    again = peft.PeftModel.from_pretrained(make(), out)
    assert set(layers(again)) == set(layers(model))
    for name, module in layers(again).items():
        expected = layers(model)[name].get_delta_weight("default")
        torch.testing.assert_close(module.get_delta_weight("default"), expected)
        torch.testing.assert_close(open_adapter(out).delta(name), expected)


def scaled(adapter: Adapter) -> dict[str, tuple[Tensor, Tensor]]:
    found = {module: adapter.factors(module) for module in adapter.modules}
    return {module: (f.a, f.scale * f.b) for module, f in found.items()}


@settings(max_examples=25, deadline=None)
@given(
    r=st.integers(1, 5),
    alpha=st.floats(0.25, 32.0),
    stabilised=st.booleans(),
    ranks=st.dictionaries(PATTERNS, st.integers(1, 5), max_size=3),
    alphas=st.dictionaries(PATTERNS, st.integers(1, 32), max_size=3),
)
def test_scale_and_delta_are_pefts_for_any_ranks_alphas_and_patterns(
    r: int, alpha: float, stabilised: bool, ranks: dict[str, int], alphas: dict[str, int]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path, model = saved(
            Path(folder) / "a",
            seeded(Towers),
            r=r,
            lora_alpha=alpha,
            use_rslora=stabilised,
            # The first match decides and PEFT sorts the keys when it saves: an order that sorting
            # changes means another model to PEFT itself after a reload.
            rank_pattern=dict(sorted(ranks.items())),
            alpha_pattern=dict(sorted(alphas.items())),
            target_modules=["q", "k"],
        )
        adapter = open_adapter(path)
        for name, module in layers(model).items():
            assert adapter.scale(name) == module.scaling["default"]
            torch.testing.assert_close(adapter.delta(name), module.get_delta_weight("default"))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_factors_keep_the_stored_dtype_and_delta_is_float32(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    model = trained(llama(), r=2, target_modules=QV)
    model.to(dtype).save_pretrained(tmp_path / "a")
    adapter = open_adapter(tmp_path / "a")
    factors = adapter.factors(adapter.modules[0])
    assert factors.a.dtype == factors.b.dtype == dtype
    assert adapter.delta(adapter.modules[0]).dtype == torch.float32
    out = write_adapter(
        tmp_path / "out", {m: adapter_pair(adapter, m) for m in adapter.modules}, like=adapter
    )
    assert {t.dtype for t in load_file(out / "adapter_model.safetensors").values()} == {dtype}


def adapter_pair(adapter: Adapter, module: str) -> tuple[Tensor, Tensor]:
    factors = adapter.factors(module)
    return factors.a, factors.b


def test_ranks_that_differ_are_written_as_patterns_that_hit_one_module_each(
    tmp_path: Path,
) -> None:
    path, _ = saved(tmp_path / "a", llama(), r=2, target_modules=["q_proj", "k_proj"])
    adapter = open_adapter(path)
    generator = torch.Generator().manual_seed(0)
    factors = {}
    for rank, module in enumerate(adapter.modules):
        out, inputs = adapter.shape(module)
        factors[module] = (
            torch.randn(rank, inputs, generator=generator),
            torch.randn(out, rank, generator=generator),
        )
    out = write_adapter(tmp_path / "out", factors, like=adapter)
    model = peft.PeftModel.from_pretrained(llama(), out)
    for module, (a, b) in factors.items():
        layer = layers(model)[module]
        torch.testing.assert_close(layer.get_delta_weight("default"), b @ a)
        assert layer.r["default"] == max(1, a.shape[0])


def test_factors_that_share_storage_or_are_views_can_be_written(tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "a", llama(), r=2, target_modules=["q_proj"])
    adapter = open_adapter(path)
    shared = torch.arange(48, dtype=torch.float32).reshape(12, 4)
    factors = dict.fromkeys(adapter.modules, (shared.T[:2], shared[:, 1:3]))
    again = open_adapter(write_adapter(tmp_path / "out", factors, like=adapter))
    for module, (a, b) in factors.items():
        torch.testing.assert_close(again.delta(module), b @ a)


def test_modules_of_several_adapters_can_be_written_together(tmp_path: Path) -> None:
    one = open_adapter(saved(tmp_path / "1", llama(), r=2, target_modules=["q_proj"])[0])
    two = open_adapter(saved(tmp_path / "2", llama(), r=3, target_modules=["embed_tokens"])[0])
    factors = scaled(one) | scaled(two)
    with pytest.raises(InputInvalid, match="embed_tokens"):
        write_adapter(tmp_path / "out", factors, like=one)
    again = open_adapter(write_adapter(tmp_path / "out", factors, like=[one, two]))
    for adapter in (one, two):
        for module in adapter.modules:
            torch.testing.assert_close(again.delta(module), adapter.delta(module))


def test_the_base_and_task_are_carried_into_what_is_written(tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "a", llama(), r=2, target_modules=QV, task_type="CAUSAL_LM")
    edit(path, base_model_name_or_path="org/base", revision="v1")
    (path / "tokenizer.json").write_text("{}")
    adapter = open_adapter(path)
    assert adapter.base == "org/base"
    out = write_adapter(tmp_path / "out", scaled(adapter), like=adapter, card="# merged\n")
    config = peft.PeftConfig.from_pretrained(str(out))
    assert config.base_model_name_or_path == "org/base"
    assert (config.task_type, config.revision) == ("CAUSAL_LM", "v1")
    assert (out / "README.md").read_text() == "# merged\n"
    assert (out / "tokenizer.json").read_text() == "{}"


def test_an_output_is_not_overwritten_unless_asked_and_never_its_input(tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "a", llama(), r=2, target_modules=QV)
    adapter = open_adapter(path)
    out = write_adapter(tmp_path / "out", scaled(adapter), like=adapter)
    with pytest.raises(OutputExists):
        write_adapter(out, scaled(adapter), like=adapter)
    write_adapter(out, scaled(adapter), like=adapter, overwrite=True)
    with pytest.raises(InputInvalid, match="input"):
        write_adapter(path, scaled(adapter), like=adapter, overwrite=True)


def test_factors_of_the_wrong_shape_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "a", llama(), r=2, target_modules=["q_proj"])
    adapter = open_adapter(path)
    module = adapter.modules[0]
    for factors in (
        {},
        {module: (torch.zeros(2, 11), torch.zeros(12, 2))},
        {module: (torch.zeros(2, 12), torch.zeros(12, 3))},
        {"model.norm": (torch.zeros(2, 12), torch.zeros(12, 2))},
    ):
        with pytest.raises(InputInvalid):
            write_adapter(tmp_path / "out", factors, like=adapter)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a"]


def test_saved_modules_and_embeddings_are_named_as_in_the_base(tmp_path: Path) -> None:
    path, model = saved(
        tmp_path / "a", llama(), r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]
    )
    adapter = open_adapter(path)
    assert adapter.extra == ("lm_head.weight",)
    torch.testing.assert_close(
        adapter.replacement("lm_head.weight"),
        model.base_model.model.lm_head.modules_to_save["default"].weight.detach(),
    )
    with pytest.raises(InputInvalid, match=r"lm_head\.weight"):
        adapter.replacement("model.norm.weight")

    path, _ = saved(tmp_path / "b", llama(), r=2, target_modules=["embed_tokens"])
    adapter = open_adapter(path)
    assert "model.embed_tokens.weight" in adapter.extra
    assert adapter.modules == ("model.embed_tokens",)


def test_a_module_that_is_not_adapted_is_named(tmp_path: Path) -> None:
    adapter = open_adapter(saved(tmp_path / "a", llama(), r=2, target_modules=QV)[0])
    with pytest.raises(InputInvalid, match=r"'model\.norm'"):
        adapter.delta("model.norm")


# Refusals


def edit(path: Path, **changes: Any) -> None:
    file = path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    return saved(tmp_path / "plain", llama(), r=2, target_modules=QV)[0]


def test_dora_is_refused_by_name(tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "a", llama(), r=2, target_modules=QV, use_dora=True)
    with pytest.raises(CheckpointInvalid, match="DoRA"):
        open_adapter(path)
    edit(path, use_dora=False)
    with pytest.raises(CheckpointInvalid, match="lora_magnitude_vector"):
        open_adapter(path)


def test_lora_bias_is_refused_by_name(tmp_path: Path) -> None:
    path, _ = saved(tmp_path / "a", gpt2(), r=2, target_modules=["c_attn"], lora_bias=True)
    with pytest.raises(CheckpointInvalid, match="lora_bias"):
        open_adapter(path)
    edit(path, lora_bias=False)
    with pytest.raises(CheckpointInvalid, match=r"lora_B\.bias"):
        open_adapter(path)


def test_trainable_tokens_are_refused_by_name(tmp_path: Path) -> None:
    path, _ = saved(
        tmp_path / "a",
        llama(),
        r=2,
        target_modules=QV,
        trainable_token_indices={"embed_tokens": [1, 2]},
    )
    with pytest.raises(CheckpointInvalid, match="trainable_token_indices"):
        open_adapter(path)


@pytest.mark.parametrize("kind", ["IA3", "VERA", "ADALORA", "PREFIX_TUNING", None])
def test_adapters_that_are_not_lora_are_refused_by_name(kind: str | None, plain: Path) -> None:
    edit(plain, peft_type=kind)
    with pytest.raises(CheckpointInvalid, match=re.escape(repr(kind))):
        open_adapter(plain)


@pytest.mark.parametrize("start", ["pissa", "pissa_niter_4", "olora", "corda", "loftq", "lora_ga"])
def test_an_initialisation_that_changes_the_base_is_refused_by_name(
    start: str, plain: Path
) -> None:
    edit(plain, init_lora_weights=start)
    with pytest.raises(CheckpointInvalid, match=start):
        open_adapter(plain)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("alora_invocation_tokens", [1, 2]),
        ("layer_replication", [[0, 1], [0, 1]]),
        ("target_parameters", ["experts.gate_up_proj"]),
        ("use_qalora", True),
    ],
)
def test_other_variants_are_refused(option: str, value: Any, plain: Path) -> None:
    edit(plain, **{option: value})
    with pytest.raises(CheckpointInvalid, match="merge_and_unload"):
        open_adapter(plain)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_name_file_and_tensor(value: float, plain: Path) -> None:
    file = plain / "adapter_model.safetensors"
    tensors = load_file(file)
    key = next(key for key in tensors if "layers.1" in key and "q_proj.lora_B" in key)
    tensors[key][1, 1] = value
    save_file(tensors, file)
    adapter = open_adapter(plain)
    adapter.factors("model.layers.0.self_attn.q_proj")
    for read in (
        adapter.check_values,
        lambda: adapter.factors("model.layers.1.self_attn.q_proj"),
    ):
        with pytest.raises(CheckpointInvalid, match=re.escape(f"{file}: tensor {key!r} holds 1 ")):
            read()


def test_missing_or_broken_files_are_named(plain: Path) -> None:
    config, weights = plain / "adapter_config.json", plain / "adapter_model.safetensors"
    whole, text = weights.read_bytes(), config.read_text()

    weights.write_bytes(whole[:-5])
    with pytest.raises(CheckpointInvalid, match=re.escape(str(weights))):
        open_adapter(plain)
    weights.unlink()
    with pytest.raises(CheckpointInvalid, match=r"no 'adapter_model\.safetensors'"):
        open_adapter(plain)
    weights.write_bytes(whole)

    for broken, said in (("{", "JSON"), ("[1]", "peft_type"), ("{}", "peft_type")):
        config.write_text(broken)
        with pytest.raises(CheckpointInvalid, match=said):
            open_adapter(plain)
    config.unlink()
    with pytest.raises(CheckpointInvalid, match=r"no 'adapter_config\.json'"):
        open_adapter(plain)
    config.write_text(text)
    open_adapter(plain)


def test_a_pickle_is_refused_with_a_command_that_converts_it(plain: Path) -> None:
    import subprocess
    import sys

    weights = plain / "adapter_model.safetensors"
    expected = open_adapter(plain).delta("model.layers.0.self_attn.q_proj").clone()
    torch.save(load_file(weights), plain / "adapter_model.bin")
    weights.unlink()
    with pytest.raises(CheckpointInvalid, match="pickle") as caught:
        open_adapter(plain)
    code = re.search(r'python -c "(.*)"', caught.value.mend)
    assert code
    subprocess.run([sys.executable, "-c", code[1]], check=True)
    torch.testing.assert_close(
        open_adapter(plain).delta("model.layers.0.self_attn.q_proj"), expected
    )


def test_a_rank_that_the_configuration_does_not_know_is_refused(plain: Path) -> None:
    edit(plain, r=4)
    with pytest.raises(CheckpointInvalid, match=r"rank 2 .* says 4"):
        open_adapter(plain)


@pytest.mark.parametrize("changes", [{"lora_alpha": None}, {"r": "x"}, {"rank_pattern": {"(": 2}}])
def test_numbers_and_patterns_that_are_none_are_refused(
    changes: dict[str, Any], plain: Path
) -> None:
    edit(plain, **changes)
    with pytest.raises(CheckpointInvalid, match=r"adapter_config\.json"):
        open_adapter(plain)


@pytest.mark.parametrize(
    ("key", "tensor", "said"),
    [
        ("base_model.model.x.lora_A.weight", torch.zeros(2, 3), "no lora_B"),
        ("x.lora_A.weight", torch.zeros(2, 3), "neither"),
        ("base_model.model.x.lora_A.default.weight", torch.zeros(2, 3), "neither"),
    ],
)
def test_tensors_that_are_not_whole_pairs_are_named(
    key: str, tensor: Tensor, said: str, plain: Path
) -> None:
    file = plain / "adapter_model.safetensors"
    save_file(load_file(file) | {key: tensor}, file)
    with pytest.raises(CheckpointInvalid, match=said):
        open_adapter(plain)


@pytest.mark.parametrize(
    ("a", "b", "said"),
    [
        (torch.zeros(2, 3), torch.zeros(4, 3), "do not multiply"),
        (torch.zeros(0, 3), torch.zeros(4, 0), "sharded"),
        (torch.zeros(6), torch.zeros(4, 2), "sharded"),
        (torch.zeros(2, 3, dtype=torch.int8), torch.zeros(4, 2), "I8"),
        (torch.zeros(2, 3, 3, 3), torch.zeros(4, 1, 1, 1), "grouped"),
    ],
)
def test_factors_that_cannot_be_a_pair_are_named(
    a: Tensor, b: Tensor, said: str, plain: Path
) -> None:
    pair = {"base_model.model.x.lora_A.weight": a, "base_model.model.x.lora_B.weight": b}
    save_file(pair, plain / "adapter_model.safetensors")
    with pytest.raises(CheckpointInvalid, match=said):
        open_adapter(plain)
