"""A GGUF file of a known model, made here."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache, empty and private to one test."""
    path = tmp_path / "cache"
    monkeypatch.setenv("ZEITGEIST_CACHE", str(path))
    return path


@pytest.fixture(scope="session")
def tiny_gguf(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tiny_llama` as llama.cpp would write it, unpacked floats."""
    gguf = pytest.importorskip("gguf", reason="makes the file (extra: gguf)")
    config = json.loads((tiny_llama / "config.json").read_text())
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])

    tokenizer = json.loads((tiny_llama / "tokenizer.json").read_text())["model"]
    tokens = sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__)
    special = {"<unk>", "<s>", "</s>", "<pad>"}
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types(
        [gguf.TokenType.CONTROL if t in special else gguf.TokenType.NORMAL for t in tokens]
    )
    writer.add_token_merges([" ".join(merge) for merge in tokenizer["merges"]])
    for role in ("bos", "eos", "pad"):
        getattr(writer, f"add_{role}_token_id")(config[f"{role}_token_id"])
    writer.add_chat_template((tiny_llama / "chat_template.jinja").read_text())

    for name, tensor in load_file(tiny_llama / "model.safetensors").items():
        values = tensor.float().numpy()
        for projection, count in (("q_proj", heads), ("k_proj", kv_heads)):
            if projection in name:  # llama.cpp interleaves the two halves of every rotary head
                halves = values.reshape(count, 2, -1, values.shape[1])
                values = halves.swapaxes(1, 2).reshape(values.shape)
        short = name.removesuffix(".weight").replace("model.layers.", "blk.")
        for ours, theirs in NAMES.items():
            short = short.replace(ours, theirs)
        writer.add_tensor(f"{short}.weight", np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
