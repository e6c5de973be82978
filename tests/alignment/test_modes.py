"""The caller's model is left as it was, and what a model cannot read is told."""

import json

import pytest
import torch
from transformers import AutoTokenizer, OPTConfig, OPTForCausalLM

from zeitgeist.alignment.answering import answer
from zeitgeist.alignment.context_files import write_contexts
from zeitgeist.alignment.decoding import draw_tokens
from zeitgeist.alignment.demonstrations import encode_all, read_demonstrations
from zeitgeist.alignment.policies import open_policy
from zeitgeist.alignment.prefix_gap import gap
from zeitgeist.alignment.self_generated import (
    SelfGeneratedOptions,
    _drop_torn,
    build_mixed,
    train,
)
from zeitgeist.errors import InputInvalid
from zeitgeist.training.contexts import Context
from zeitgeist.training.models import peft_warnings
from zeitgeist.training.positions import longest_input

OPTIONS = SelfGeneratedOptions(method="both", clean_share=0.0)
DOORS = {
    "answer": lambda model, tokenizer, rows: answer(
        model, tokenizer, [row["prompt"] for row in rows], max_new_tokens=2, progress=False
    ),
    "gap": lambda model, tokenizer, rows: gap(
        model, tokenizer, rows, correction="Check it.", progress=False
    ),
    "build_mixed": lambda model, tokenizer, rows: build_mixed(
        model, tokenizer, rows, gold_share=0.5, options=OPTIONS, progress=False
    ),
}


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("fails", [False, True])
def test_every_module_is_in_the_mode_it_was_in(tiny_llama, texts, monkeypatch, door, fails):
    model, tokenizer = open_policy(tiny_llama)
    model.train()
    model.model.layers[0].eval()
    before = [module.training for module in model.modules()]
    seen, forward = [], model.forward

    def watching(*given, **further):
        seen.append(any(module.training for module in model.modules()))
        if fails:
            raise KeyboardInterrupt
        return forward(*given, **further)

    monkeypatch.setattr(model, "forward", watching)
    if fails:
        with pytest.raises(KeyboardInterrupt):
            DOORS[door](model, tokenizer, texts)
    else:
        DOORS[door](model, tokenizer, texts)
    assert seen and not any(seen)
    assert [module.training for module in model.modules()] == before


@pytest.mark.parametrize("door", DOORS)
def test_a_tokenizer_without_an_end_or_beyond_the_model_is_told(tiny_llama, texts, door):
    model, tokenizer = open_policy(tiny_llama)
    tokenizer.add_tokens(["zzz"])
    with pytest.raises(InputInvalid, match="writes token 288 and the model knows 288"):
        DOORS[door](model, tokenizer, [{"prompt": "zzz", "completion": "a"}])
    tokenizer.eos_token = None
    with pytest.raises(InputInvalid, match="no token that ends an answer"):
        DOORS[door](model, tokenizer, texts)


@pytest.mark.parametrize("door", DOORS)
def test_a_tokenizer_without_padding_and_an_empty_answer_work(tiny_llama, texts, door):
    model, tokenizer = open_policy(tiny_llama)
    tokenizer.pad_token = None
    assert DOORS[door](model, tokenizer, [*texts, {"prompt": "the", "completion": ""}])


def test_tables_of_learned_positions_end(tiny_tokenizer, texts):
    config = OPTConfig(vocab_size=288, hidden_size=8, ffn_dim=8, num_hidden_layers=1,
                       num_attention_heads=2, max_position_embeddings=4, word_embed_proj_dim=8,
                       bos_token_id=1, eos_token_id=2, pad_token_id=3)  # fmt: skip
    model = OPTForCausalLM(config)
    assert longest_input(model) == 4
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer, local_files_only=True)
    with pytest.raises(InputInvalid, match="the model reads 4"):
        gap(model, tokenizer, texts, progress=False)


def test_adapters_are_answered_measured_and_mixed_with_and_not_trained(tiny_llama, texts, tmp_path):
    from peft import LoraConfig, PromptTuningConfig, get_peft_model

    model, tokenizer = open_policy(tiny_llama)
    config = LoraConfig(task_type="CAUSAL_LM", r=2, target_modules="all-linear")
    with peft_warnings():
        get_peft_model(model, config).save_pretrained(tmp_path / "lora")
    tokenizer.chat_template = "mine"
    tokenizer.save_pretrained(tmp_path / "lora")
    opened = open_policy(tmp_path / "lora")
    assert opened[1].chat_template == "mine"
    for door in DOORS.values():
        assert door(*opened, texts)
    with pytest.raises(InputInvalid, match="is an adapter"):
        train(tmp_path / "lora", texts, tmp_path / "out", progress=False)
    model, _ = open_policy(tiny_llama)
    config = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with peft_warnings():
        get_peft_model(model, config).save_pretrained(tmp_path / "prompt")
    with pytest.raises(InputInvalid, match="no causal language model"):
        open_policy(tmp_path / "prompt")


def test_no_temperature_makes_infinities():
    logits = torch.tensor([[3.0, 1.0, 2.0]])
    for temperature in (1e-320, 1e-9):
        found = draw_tokens(logits, torch.tensor([0.99]), temperature=temperature)
        assert found.tolist() == [0]


def test_a_mark_at_the_beginning_of_a_file_is_no_json(tmp_path):
    row = {"prompt": "a", "completion": "b"}
    path = tmp_path / "d.jsonl"
    path.write_text(json.dumps(row) + "\r\n", encoding="utf-8-sig")
    assert read_demonstrations(path) == [row]


def test_what_a_row_lacks_is_told_with_file_and_row(tiny_llama, tmp_path):
    _, tokenizer = open_policy(tiny_llama)
    path = tmp_path / "d.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n{"prompt": "a b c", "completion": "b"}\n')
    with pytest.raises(InputInvalid, match=r"d\.jsonl: demonstration 1 has"):
        encode_all(tokenizer, path, max_length=4)
    tokenizer.chat_template = "{{ raise_exception('Roles must alternate') }}"
    chat = [{"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}]
    with pytest.raises(InputInvalid, match=r"row 0: the chat template refuses .*must alternate"):
        encode_all(tokenizer, chat, max_length=64)


def test_stopped_contexts_leave_no_trace(tmp_path, monkeypatch):
    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("pathlib.Path.replace", stopped)
    with pytest.raises(KeyboardInterrupt):
        write_contexts([Context((1, 2), (-100, 2))], tmp_path / "c.jsonl")
    assert not list(tmp_path.iterdir())


def test_checkpoints_whose_writing_was_stopped_are_not_gone_on_from(tmp_path):
    for name, state in (("checkpoint-1", "{}"), ("checkpoint-2", None), ("checkpoint-3", "{")):
        (tmp_path / name).mkdir()
        if state is not None:
            (tmp_path / name / "trainer_state.json").write_text(state)
    _drop_torn(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-1"]
