"""A model is opened from its headers; what is wrong with it is named before any work."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import xxhash
from safetensors.torch import load_file, save_file

from zeitgeist.checkpoints import Checkpoint, open_checkpoint
from zeitgeist.errors import CheckpointInvalid

SaveModel = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> SaveModel:
    """Write a model directory of any tensors and configuration."""

    def save(
        *shards: Mapping[str, torch.Tensor],
        config: Mapping[str, Any] | None = None,
        path: Path = tmp_path / "model",
    ) -> Path:
        path.mkdir(parents=True)
        (path / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
        if len(shards) == 1:
            save_file(dict(shards[0]), path / "model.safetensors")
            return path
        weight_map = {}
        for i, shard in enumerate(shards):
            save_file(dict(shard), path / f"model-{i}.safetensors")
            weight_map |= dict.fromkeys(shard, f"model-{i}.safetensors")
        index = {"metadata": {}, "weight_map": weight_map}
        (path / "model.safetensors.index.json").write_text(json.dumps(index))
        return path

    return save


@pytest.fixture
def copy(tmp_path: Path) -> Callable[[Path], Path]:
    """A copy that a test may damage."""
    return lambda path: Path(shutil.copytree(path, tmp_path / "copy"))


def edit_index(path: Path, change: Callable[[dict[str, str]], Any]) -> None:
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    change(content["weight_map"])
    index.write_text(json.dumps(content))


def assert_holds(model: Checkpoint, tensors: Mapping[str, torch.Tensor]) -> None:
    assert model.specs.keys() == tensors.keys()
    for name, expected in tensors.items():
        found = model.tensor(name)
        assert (found.dtype, found.shape) == (expected.dtype, expected.shape)
        raw = [t.reshape(-1).view(torch.uint8) for t in (found, expected)]
        assert torch.equal(*raw)


def test_a_model_of_transformers_opens_with_its_exact_tensors(tiny_llama: Path) -> None:
    with open_checkpoint(tiny_llama) as model:
        assert_holds(model, load_file(tiny_llama / "model.safetensors"))
        assert model.config["model_type"] == "llama"
        assert model.shards == (tiny_llama / "model.safetensors",)
        assert not model.tied
        assert not model.notes


def test_shards_hold_the_same_as_one_file(tiny_llama: Path, tiny_llama_sharded: Path) -> None:
    with open_checkpoint(tiny_llama) as one, open_checkpoint(str(tiny_llama_sharded)) as many:
        assert len(many.shards) > 3
        assert_holds(many, {name: one.tensor(name) for name in one.specs})


def test_specs_are_in_file_order(tiny_llama_sharded: Path) -> None:
    with open_checkpoint(tiny_llama_sharded) as model:
        places = [model.location(name) for name in model.specs]
        assert places == sorted(places)


def test_a_location_names_the_bytes(tiny_llama_sharded: Path) -> None:
    with open_checkpoint(tiny_llama_sharded) as model:
        for name in model.specs:
            path, start, stop = model.location(name)
            raw = model.flat(name).view(torch.uint8).numpy().tobytes()
            assert path.read_bytes()[start:stop] == raw


def test_a_tensor_is_a_view_of_the_file_that_never_changes_it(save: SaveModel) -> None:
    path = save({"a": torch.arange(6.0).view(2, 3)})
    with open_checkpoint(path) as model:
        tensor = model.tensor("a")
        assert tensor.data_ptr() == model.flat("a").data_ptr()
        before = (path / "model.safetensors").read_bytes()
        tensor.fill_(7)
        assert (path / "model.safetensors").read_bytes() == before
    assert tensor.sum() == 42, "a tensor outlives its checkpoint"


DTYPES = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16),
    *(torch.float8_e4m3fn, torch.float8_e5m2, torch.int64, torch.int32, torch.int16, torch.int8),
    *(torch.uint64, torch.uint32, torch.uint16, torch.uint8, torch.bool),
]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0, 2), (1,), (3, 5)], ids=str)
def test_every_dtype_and_shape_is_read(
    save: SaveModel, dtype: torch.dtype, shape: tuple[int, ...]
) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = torch.randint(0, 2, shape, generator=generator).to(dtype)
    tensors = {"buffer": tensor, "other": torch.ones(3)}
    with open_checkpoint(save(tensors)) as model:
        assert_holds(model, tensors)


def test_a_tensor_at_an_odd_position_is_read(save: SaveModel, tmp_path: Path) -> None:
    path = save({"a": torch.zeros(1)})
    spans = {
        "a": {"dtype": "U8", "shape": [3], "data_offsets": [0, 3]},
        "b": {"dtype": "F32", "shape": [2], "data_offsets": [3, 11]},
    }
    text = json.dumps(spans).encode()
    data = bytes(3) + torch.tensor([1.5, -2.0]).numpy().tobytes()
    (path / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)
    with open_checkpoint(path) as model:
        assert model.tensor("b").tolist() == [1.5, -2.0]


def test_an_unknown_tensor_is_named(tiny_llama: Path) -> None:
    with (
        open_checkpoint(tiny_llama) as model,
        pytest.raises(CheckpointInvalid, match=f"{tiny_llama}: there is no tensor 'x'"),
    ):
        model.tensor("x")


def test_what_travels_with_the_weights(tiny_llama_sharded: Path, copy: Callable[..., Path]) -> None:
    path = copy(tiny_llama_sharded)
    for name in ("README.md", "LICENSE", "training_args.bin", "trainer_state.json", "log.csv"):
        (path / name).write_text("{}")
    (path / "additional_chat_templates").mkdir()
    (path / "additional_chat_templates" / "rag.jinja").write_text("")
    (path / "checkpoint-10").mkdir()
    (path / "checkpoint-10" / "config.json").write_text("{}")
    with open_checkpoint(path) as model:
        assert [file.relative_to(path).as_posix() for file in model.sidecars] == [
            "LICENSE",
            "additional_chat_templates/rag.jinja",
            "chat_template.jinja",
            "config.json",
            "generation_config.json",
            "tokenizer.json",
            "tokenizer_config.json",
        ]


def test_the_fingerprint_is_the_hash_of_each_shard(tiny_llama_sharded: Path) -> None:
    with open_checkpoint(tiny_llama_sharded) as model:
        assert model.fingerprint() == {
            path.name: xxhash.xxh3_128(path.read_bytes()).hexdigest() for path in model.shards
        }


@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64, torch.float8_e5m2]
)
def test_bad_values_are_found_when_asked_for(save: SaveModel, dtype: torch.dtype) -> None:
    bad = torch.zeros(5, 3)
    bad[1, 1] = bad[4, 2] = float("nan")
    bad[0, 0] = float("-inf")
    path = save({"good": torch.ones(3)}, {"bad": bad.to(dtype), "ids": torch.arange(3)})
    with (
        open_checkpoint(path) as model,
        pytest.raises(CheckpointInvalid, match=r"model-1.safetensors: .*'bad' holds 2 NaN and 1"),
    ):
        model.check_values()


def test_good_values_pass(tiny_llama_sharded: Path) -> None:
    with open_checkpoint(tiny_llama_sharded) as model:
        model.check_values(progress=True)


# Tied weights


def test_a_tied_head_is_an_alias(tiny_llama_tied: Path) -> None:
    with open_checkpoint(tiny_llama_tied) as model:
        assert model.tied == {"lm_head.weight": "model.embed_tokens.weight"}
        assert "lm_head.weight" not in model.specs
        assert model.spec("lm_head.weight").name == "model.embed_tokens.weight"
        assert torch.equal(
            model.tensor("lm_head.weight"), model.tensor("model.embed_tokens.weight")
        )


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CAUSAL = {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}


@pytest.mark.parametrize(
    ("config", "embedding", "tied"),
    [
        ({"tie_word_embeddings": True}, EMBED, True),
        ({"tie_word_embeddings": False}, EMBED, False),
        ({}, EMBED, True),  # a default of the class (Gemma): without a head it must be tied
        ({"architectures": ["LlamaModel"]}, "embed_tokens.weight", False),
        ({"text_config": {"model_type": "x", "tie_word_embeddings": True}}, EMBED, True),
        ({"text_config": {"model_type": "x", "tie_word_embeddings": False}}, EMBED, False),
        ({"architectures": ["GPT2LMHeadModel"]}, "transformer.wte.weight", True),
        ({"architectures": ["GPTNeoXForCausalLM"]}, "gpt_neox.embed_in.weight", True),
        ({"architectures": ["T5ForConditionalGeneration"]}, "shared.weight", True),
        ({"tie_word_embeddings": True}, "model.layers.0.mlp.weight", False),
    ],
)
def test_a_head_that_is_not_stored(
    save: SaveModel, config: dict[str, Any], embedding: str, tied: bool
) -> None:
    path = save({embedding: torch.rand(7, 3)}, config=CAUSAL | config)
    with open_checkpoint(path) as model:
        assert model.tied == ({HEAD: embedding} if tied else {})


def test_the_embedding_of_the_words_is_found_among_others(save: SaveModel) -> None:
    tensors = {
        "audio.embed_tokens.weight": torch.zeros(5, 3),
        "text.embed_tokens.weight": torch.zeros(7, 3),
    }
    config = {"text_config": {"model_type": "x", "vocab_size": 7, "tie_word_embeddings": True}}
    with open_checkpoint(save(tensors, config=config)) as model:
        assert model.tied == {HEAD: "text.embed_tokens.weight"}


@pytest.mark.parametrize("shards", [1, 2])
def test_a_tied_head_that_is_stored_all_the_same_counts_once(save: SaveModel, shards: int) -> None:
    words = torch.rand(7, 3)
    tensors = [{EMBED: words, "norm.weight": torch.ones(3)}, {HEAD: words.clone()}]
    stored = tensors if shards == 2 else [tensors[0] | tensors[1]]
    with open_checkpoint(save(*stored, config={"tie_word_embeddings": True})) as model:
        assert model.tied == {HEAD: EMBED}
        assert model.specs.keys() == {EMBED, "norm.weight"}
        assert torch.equal(model.tensor(HEAD), words)
        assert not model.notes


def test_a_head_that_differs_is_a_tensor_of_its_own_as_in_transformers(
    tiny_llama: Path, copy: Callable[..., Path]
) -> None:
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    path = copy(tiny_llama)
    config = json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": True}
    (path / "config.json").write_text(json.dumps(config))
    with open_checkpoint(path) as model:
        assert not model.tied
        assert {EMBED, HEAD} <= model.specs.keys()
        (note,) = model.notes
        assert re.search(f"'{HEAD}' to '{EMBED}'.*two tensors", note)
        level = logging.get_verbosity()
        logging.set_verbosity_error()
        try:
            loaded = AutoModelForCausalLM.from_pretrained(path)
        finally:
            logging.set_verbosity(level)
        assert torch.equal(loaded.lm_head.weight, model.tensor(HEAD))
        assert torch.equal(loaded.model.embed_tokens.weight, model.tensor(EMBED))


def test_a_head_whose_tying_is_not_configured_stays(save: SaveModel) -> None:
    words = torch.rand(7, 3)
    with open_checkpoint(save({EMBED: words, HEAD: words.clone()}, config=CAUSAL)) as model:
        assert not model.tied


# What is refused


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(CheckpointInvalid) as caught:
        open_checkpoint(path)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.mend


@pytest.mark.parametrize(
    "name",
    [
        "../outside.safetensors",
        "sub/../../outside.safetensors",
        "{outside}",
        "..",
        "..\\outside.safetensors",
        "model\0.safetensors",
    ],
)
def test_an_index_that_leaves_the_directory_is_refused(
    tiny_llama_sharded: Path, copy: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    path = copy(tiny_llama_sharded)
    outside = tmp_path / "outside.safetensors"
    save_file({"model.norm.weight": torch.ones(32)}, outside)
    name = name.format(outside=outside)
    edit_index(path, lambda files: files.update({"model.norm.weight": name}))
    refused(path, "index.json", "'model.norm.weight'", "leaves the directory")


def test_a_link_that_leaves_the_directory_is_refused(
    tiny_llama: Path, copy: Callable[..., Path], tmp_path: Path
) -> None:
    path = copy(tiny_llama)
    shutil.move(path / "model.safetensors", tmp_path / "elsewhere")
    (path / "model.safetensors").symlink_to(tmp_path / "elsewhere")
    refused(path, "'model.safetensors'", "leaves the directory", str(tmp_path / "elsewhere"))


def test_a_file_that_travels_along_may_not_lead_out_either(
    tiny_llama: Path, copy: Callable[..., Path], tmp_path: Path
) -> None:
    path = copy(tiny_llama)
    (tmp_path / "secret").write_text("key")
    (path / "notes.txt").symlink_to(tmp_path / "secret")
    refused(path, "'notes.txt'", "leaves the directory")


def test_a_loop_of_links_is_refused(tiny_llama: Path, copy: Callable[..., Path]) -> None:
    path = copy(tiny_llama)
    (path / "model.safetensors").unlink()
    (path / "model.safetensors").symlink_to("model.safetensors")
    refused(path, "'model.safetensors'")


def test_the_links_of_the_hub_cache_are_followed(tiny_llama_sharded: Path, tmp_path: Path) -> None:
    repository = tmp_path / "models--org--tiny"
    snapshot = repository / "snapshots" / "0af3"
    (repository / "blobs").mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for i, file in enumerate(sorted(tiny_llama_sharded.iterdir())):
        shutil.copy(file, repository / "blobs" / str(i))
        (snapshot / file.name).symlink_to(Path("..", "..", "blobs", str(i)))
    (tmp_path / "link").symlink_to(snapshot)
    with open_checkpoint(tmp_path / "link") as model, open_checkpoint(tiny_llama_sharded) as plain:
        assert_holds(model, {name: plain.tensor(name) for name in plain.specs})
        assert model.fingerprint() == plain.fingerprint()
        assert len(model.sidecars) == len(plain.sidecars)


def test_a_missing_shard_is_refused(tiny_llama_sharded: Path, copy: Callable[..., Path]) -> None:
    path = copy(tiny_llama_sharded)
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.unlink()
    refused(path, f"'{shard.name}'", "not there", "the tensor '")


def test_a_truncated_shard_is_refused(tiny_llama_sharded: Path, copy: Callable[..., Path]) -> None:
    path = copy(tiny_llama_sharded)
    shard = sorted(path.glob("*.safetensors"))[1]
    shard.write_bytes(shard.read_bytes()[:-5])
    refused(path, str(shard), "the tensor '", "truncated")


def test_an_index_that_promises_too_much_or_too_little_is_refused(
    tiny_llama_sharded: Path, copy: Callable[..., Path]
) -> None:
    path = copy(tiny_llama_sharded)
    shard = sorted(path.glob("*.safetensors"))[0].name
    edit_index(path, lambda files: files.update({"ghost.weight": shard}))
    refused(path, shard, "'ghost.weight' is not in this shard")
    edit_index(path, lambda files: files.pop("ghost.weight"))
    edit_index(path, lambda files: files.pop("model.norm.weight"))
    refused(path, "'model.norm.weight' is in this shard, but the index does not say so")


def test_a_tensor_in_two_shards_is_refused(save: SaveModel) -> None:
    path = save({"a": torch.ones(1), "b": torch.ones(1)}, {"b": torch.zeros(1)})
    refused(path, "model-1.safetensors", "'b' is also in 'model-0.safetensors'")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "no JSON"),
        ("[]", "no JSON object"),
        ("{}", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"a": 3}}', "'a' is in the file 3"),
        ('{"weight_map": {"a": ""}}', "'a' is in the file ''"),
        ('{"weight_map": {"a": "."}}', "not there"),
    ],
)
def test_a_broken_index_is_refused(save: SaveModel, content: str, part: str) -> None:
    path = save({}, {})
    (path / "model.safetensors.index.json").write_text(content)
    refused(path, str(path / "model.safetensors.index.json"), part)


def test_the_single_file_counts_before_the_index_as_in_transformers(save: SaveModel) -> None:
    path = save({"a": torch.ones(1)}, {"b": torch.ones(1)})
    save_file({"c": torch.ones(1)}, path / "model.safetensors")
    with open_checkpoint(path) as model:
        assert list(model.specs) == ["c"]


def test_a_directory_without_configuration_is_refused(save: SaveModel) -> None:
    path = save({"a": torch.ones(1)})
    (path / "config.json").write_text("{")
    refused(path, str(path / "config.json"), "no JSON")
    (path / "config.json").unlink()
    refused(path, str(path), "no config.json")


def test_what_is_no_directory_is_refused(tiny_llama: Path) -> None:
    refused(tiny_llama / "model.safetensors", "is a file")
    refused(tiny_llama / "nothing", "is not there")


def test_a_directory_without_weights_is_refused(tmp_path: Path) -> None:
    refused(tmp_path, "no weights, only an empty directory")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tf_model.h5").write_text("")
    refused(tmp_path, "no weights, only config.json, tf_model.h5")


def test_weights_of_another_name_are_refused(save: SaveModel) -> None:
    path = save({"a": torch.ones(1)})
    (path / "model.safetensors").rename(path / "consolidated.safetensors")
    refused(path, "'consolidated.safetensors'", "name a single file model.safetensors")


def test_an_adapter_is_refused(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    save_file({"a": torch.ones(1)}, tmp_path / "adapter_model.safetensors")
    refused(tmp_path, "an adapter, not a model")


@pytest.mark.parametrize(
    "config",
    [
        {"quantization_config": {"quant_method": "gptq", "bits": 4}},
        {"compression_config": {"quant_method": "gptq"}},
        {"text_config": {"model_type": "x", "quantization_config": {"quant_method": "gptq"}}},
    ],
)
def test_quantised_weights_are_refused_by_their_configuration(
    save: SaveModel, config: dict[str, Any]
) -> None:
    refused(save({"a": torch.ones(1)}, config=config), "config.json", "'gptq'", "dequantize")


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("model.layers.0.mlp.up_proj.qweight", torch.int32),
        ("model.layers.0.mlp.up_proj.weight_packed", torch.int32),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", torch.float32),
        ("model.layers.0.mlp.up_proj.weight", torch.uint8),
        ("model.layers.0.mlp.up_proj.weight", torch.int8),
        ("model.layers.0.mlp.up_proj.weight.absmax", torch.float32),
        ("model.layers.0.mlp.up_proj.weight.quant_state.bitsandbytes__nf4", torch.uint8),
        ("model.layers.0.mlp.experts.gate_up_proj_blocks", torch.uint8),
    ],
)
def test_packed_weights_are_refused_by_their_names_and_dtypes(
    save: SaveModel, name: str, dtype: torch.dtype
) -> None:
    path = save({name: torch.ones(4, 4, dtype=dtype)})
    refused(path, "model.safetensors", f"'{name}'", "packed", "dequantize")


# Pickles


@pytest.mark.parametrize("shards", [1, 2])
def test_a_pickle_is_refused_with_the_command_that_converts_it(tmp_path: Path, shards: int) -> None:
    path = tmp_path / 'it\'s a "model"'
    path.mkdir()
    (path / "config.json").write_text('{"tie_word_embeddings": true}')
    torch.save({"seed": 1}, path / "training_args.bin")
    words = torch.rand(7, 3)
    tensors = {EMBED: words, HEAD: words, "other": torch.rand(3, 2).T}
    if shards == 1:
        torch.save(tensors, path / "pytorch_model.bin")
    else:
        torch.save({EMBED: words, HEAD: words}, path / "pytorch_model-00001-of-00002.bin")
        torch.save({"other": tensors["other"]}, path / "pytorch_model-00002-of-00002.bin")
    with pytest.raises(CheckpointInvalid, match=r"'pytorch_model.*are a pickle") as caught:
        open_checkpoint(path)
    command = caught.value.mend.removeprefix("convert them once with: ")
    assert command.startswith("python -c ")
    assert "\n" not in command
    subprocess.run(command.replace("python", sys.executable, 1), shell=True, check=True)
    with open_checkpoint(path) as model:
        assert_holds(model, {EMBED: words, "other": tensors["other"].contiguous()})
        assert model.tied == {HEAD: EMBED}


@pytest.mark.parametrize("name", ["model.pt", "consolidated.00.pth", "last.ckpt", "weights.bin"])
def test_a_pickle_of_another_name_is_refused_too(tmp_path: Path, name: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "optimizer.pt").write_bytes(b"")
    (tmp_path / name).write_bytes(b"")
    refused(tmp_path, f"'{name}' are a pickle", "python -c", "weights_only=True")


def test_a_pickle_beside_safetensors_is_never_touched(save: SaveModel) -> None:
    path = save({"a": torch.ones(1)})
    (path / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with open_checkpoint(path) as model:
        assert list(model.specs) == ["a"]
