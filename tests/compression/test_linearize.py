"""Maps beside an untouched base: written, opened, adapted, exported, and refused when wrong."""

import json
import math
import shutil
import subprocess
import sys
from os import environ
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

import zeitgeist.compression.linearize as doors
from zeitgeist.checkpoints import open_checkpoint
from zeitgeist.compression.hybrid_models import linearize_model, state_bytes
from zeitgeist.compression.linearize import (
    LolcatsOptions,
    export,
    finetune,
    linearize,
    load,
)
from zeitgeist.compression.linearize_costs import break_even, evaluate, token_seconds
from zeitgeist.compression.measures import token_nll
from zeitgeist.errors import InputInvalid, OutputExists
from zeitgeist.training import LoraSettings, load_model

TEXT = "the cat sat on a mat and the dog ran to it in a big red van " * 12
SMALL = LolcatsOptions(
    window=4, length=16, windows=4, validation=2, steps=6, batch_size=2, learning_rate=0.05
)
LORA = LoraSettings(steps=3, batch_size=2, learning_rate=1e-2, rank=2)
IDS = torch.arange(4, 44).view(2, 20)


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch):
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None, raising=False)


@pytest.fixture(scope="module")
def taught(tiny_llama, tmp_path_factory):
    out = tmp_path_factory.mktemp("taught") / "linear"
    return linearize(tiny_llama, TEXT, out, options=SMALL, progress=False)


@pytest.fixture(scope="module")
def adapted(taught, tmp_path_factory):
    out = tmp_path_factory.mktemp("adapted") / "linear"
    return finetune(taught.out, TEXT, out, settings=LORA, length=16, windows=4, progress=False)


def logits(model):
    with torch.no_grad():
        return model(IDS, use_cache=False).logits


def test_teaching_lowers_errors_and_writes_maps_only(taught, tiny_llama, tmp_path_factory):
    assert all(b < a for a, b in zip(taught.before, taught.after, strict=True))
    names = sorted(path.name for path in (tmp_path_factory.getbasetemp()).glob("taught0/linear/*"))
    assert names == ["README.md", "lolcats.json", "maps.safetensors"]
    config = open_checkpoint(tiny_llama).config
    heads, d = config["num_attention_heads"], config["hidden_size"] // config["num_attention_heads"]
    one = heads * (2 * d * (d // 2) + 1)
    assert taught.trained == config["num_hidden_layers"] * one
    stored = load_file(f"{taught.out}/maps.safetensors")
    assert sum(value.numel() for value in stored.values()) == taught.trained
    record = json.loads(Path(taught.out, "lolcats.json").read_text())
    hashes = open_checkpoint(tiny_llama).fingerprint()
    assert hashes.items() <= record["base"]["hashes"].items()
    assert not list(tmp_path_factory.getbasetemp().glob("taught0/.linear*"))


def test_what_is_opened_is_what_was_taught(taught, tiny_llama):
    model = load(taught.out)
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    _, validation = doors._windows(tiny_llama, TEXT, 16, SMALL)
    assert float(token_nll(model, validation).double().mean().exp()) == pytest.approx(
        taught.perplexity
    )
    assert model.config.lolcats["taught_length"] == 16
    prompt = tokenizer("the cat sat", return_tensors="pt")["input_ids"]
    told = model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    again = model.generate(
        prompt, max_new_tokens=8, do_sample=False, pad_token_id=0, use_cache=False
    )
    assert torch.equal(told, again)


def test_a_stopped_run_goes_on_after_the_last_layer(tiny_llama, tmp_path, monkeypatch, taught):
    import zeitgeist.compression.transfer as transfer

    teach, calls = transfer.teach_layer, []

    def stop_at_second(attention, *rest):
        calls.append(attention.layer_idx)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return teach(attention, *rest)

    monkeypatch.setattr(transfer, "teach_layer", stop_at_second)
    with pytest.raises(KeyboardInterrupt):
        linearize(tiny_llama, TEXT, tmp_path / "out", options=SMALL, progress=False)
    assert not (tmp_path / "out").exists()
    report = linearize(tiny_llama, TEXT, tmp_path / "out", options=SMALL, progress=False)
    assert calls == [0, 1, 1]
    assert report.after == taught.after and report.gamma == taught.gamma
    assert torch.equal(logits(load(report.out)), logits(load(taught.out)))
    assert not (tmp_path / ".out.layers").exists()


def test_layers_that_were_taught_otherwise_are_taught_again(tiny_llama, tmp_path, monkeypatch):
    import zeitgeist.compression.transfer as transfer

    teach, calls = transfer.teach_layer, []

    def counted(attention, *rest):
        calls.append(attention.layer_idx)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return teach(attention, *rest)

    monkeypatch.setattr(transfer, "teach_layer", counted)
    with pytest.raises(KeyboardInterrupt):
        linearize(tiny_llama, TEXT, tmp_path / "out", options=SMALL, progress=False)
    linearize(tiny_llama, TEXT + "it was", tmp_path / "out", options=SMALL, progress=False)
    other = LolcatsOptions(**{**SMALL.__dict__, "steps": 2})
    with pytest.raises(OutputExists):
        linearize(tiny_llama, TEXT, tmp_path / "out", options=other, progress=False)
    assert calls == [0, 1, 0, 1] or calls == [0, 1, 1]  # the words behind may not fill a window


def test_lora_without_steps_of_its_own_changes_nothing_and_trained_it_lowers_the_loss(
    taught, adapted
):
    assert adapted.perplexity < taught.perplexity
    assert len(adapted.losses) == 3 and adapted.after == taught.after
    maps = [load_file(f"{report.out}/maps.safetensors") for report in (taught, adapted)]
    assert all(torch.equal(maps[0][name], maps[1][name]) for name in maps[0])
    config = load(taught.out).config
    d = config.hidden_size
    kv = config.num_key_value_heads * (d // config.num_attention_heads)
    assert adapted.trained == config.num_hidden_layers * 2 * (2 * (d + d) + 2 * (d + kv))
    with torch.no_grad():
        assert not torch.equal(logits(load(adapted.out)), logits(load(taught.out)))


def test_lora_is_trained_again_from_the_base(adapted, taught, tmp_path):
    again = finetune(
        adapted.out, TEXT, tmp_path / "again", settings=LORA, length=16, windows=4, progress=False
    )
    assert again.losses == adapted.losses
    assert torch.equal(logits(load(again.out)), logits(load(adapted.out)))


def test_a_stopped_training_goes_on_from_its_last_checkpoint(
    adapted, taught, tmp_path, monkeypatch
):
    from transformers import Trainer

    step, calls = Trainer.training_step, []

    def stop_at_third(self, *arguments):
        calls.append(self.state.global_step)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return step(self, *arguments)

    monkeypatch.setattr(Trainer, "training_step", stop_at_third)
    words = {"settings": LORA, "length": 16, "windows": 4, "progress": False}
    with pytest.raises(KeyboardInterrupt):
        finetune(taught.out, TEXT, tmp_path / "out", **words)
    assert not (tmp_path / "out").exists()
    again = finetune(taught.out, TEXT, tmp_path / "out", **words)
    assert calls == [0, 1, 2, 2] and again.losses == adapted.losses
    assert torch.equal(logits(load(again.out)), logits(load(adapted.out)))
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("which", ["taught", "adapted"])
def test_exported_whole_it_is_an_ordinary_directory(which, request, tmp_path):
    report = request.getfixturevalue(which)
    whole = export(report.out, tmp_path / "whole")
    opened = AutoModelForCausalLM.from_pretrained(whole, dtype=torch.float32)
    assert opened.config.model_type == "zeitgeist_lolcats_llama"
    apart = (logits(opened) - logits(load(report.out, dtype=torch.float32))).abs().max()
    assert apart == 0 if which == "taught" else apart < 0.01  # LoRA is rounded into bfloat16
    assert torch.equal(logits(load(whole)), logits(opened))
    assert AutoTokenizer.from_pretrained(whole)("the cat")["input_ids"]
    assert not list(whole.glob("*.py"))


def test_an_export_keeps_the_dtype_of_the_base_and_its_maps(tiny_llama, tmp_path):
    model = load_model(tiny_llama, dtype=torch.bfloat16)
    model.save_pretrained(tmp_path / "half")
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(tmp_path / "half")
    report = linearize(tmp_path / "half", TEXT, tmp_path / "linear", options=SMALL, progress=False)
    whole = load_file(export(report.out, tmp_path / "whole") / "model.safetensors")
    maps = load_file(tmp_path / "linear" / "maps.safetensors")
    assert all(torch.equal(whole[name], value) for name, value in maps.items())
    assert whole["model.layers.0.self_attn.q_proj.weight"].dtype == torch.bfloat16


def test_some_layers_stay_softmax(tiny_llama, tmp_path):
    options = LolcatsOptions(**{**SMALL.__dict__, "layers": (1,), "sinks": 1, "kind": "terraced"})
    report = linearize(tiny_llama, TEXT, tmp_path / "some", options=options, progress=False)
    assert report.before[0] is None and report.before[1] > report.after[1]
    assert json.loads((tmp_path / "some" / "lolcats.json").read_text())["recipe"]["layers"] == [1]
    model = load(report.out)
    assert model.config.layer_types == ["full_attention", "hybrid_sliding"]
    assert model.config.lolcats["sinks"] == 1


def test_costs_are_compared_and_a_longer_text_is_warned_of(taught, tiny_llama, tmp_path):
    found = evaluate(taught.out, TEXT, length=16, windows=2, contexts=[8, 64])
    assert found.perplexity > 1 and 0 <= found.top1 <= 1
    assert [cost.context for cost in found.costs] == [8, 64]
    assert found.costs[1].bytes_softmax == 8 * found.costs[0].bytes_softmax
    assert found.costs[0].bytes == found.costs[1].bytes
    with pytest.warns(UserWarning, match="taught on windows of 16 tokens and is scored on 24"):
        evaluate(taught.out, TEXT, length=24, windows=1, contexts=[8])
    whole = export(taught.out, tmp_path / "whole")
    again = evaluate(whole, TEXT, length=16, windows=2, contexts=[8], base=str(tiny_llama))
    assert again.perplexity == pytest.approx(found.perplexity)


def test_the_break_even_is_the_least_length_that_keeps_less(tiny_llama):
    model = load_model(tiny_llama)
    for layers in (None, [0]):
        config = linearize_model(model, window=4, layers=layers).config
        least = break_even(config)
        for tokens, smaller in ((least - 1, False), (least, True), (10 * least, True)):
            linear, softmax = state_bytes(config, tokens=tokens)
            assert (linear < softmax) == smaller


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"layers": (2,)}, "layers to convert are"),
        ({"window": -1}, "window is -1"),
        ({"window": 0, "feature_dim": 0}, "feature_dim is 0"),
        ({"feature_map": "exp"}, "'exp'"),
        ({"length": 4096}, "the text has"),
        ({"length": 200}, "one window of 200 tokens"),
        ({"learning_rate": -1.0}, "learning rate is -1"),
        ({"xent_weight": -1.0}, "the weights"),
    ],
)
def test_what_cannot_be_taught_is_told(options, told, tiny_llama, tmp_path):
    with pytest.raises(InputInvalid, match=told):
        chosen = LolcatsOptions(**{**SMALL.__dict__, **options})
        linearize(tiny_llama, TEXT, tmp_path / "out", options=chosen, progress=False)
    assert not list(tmp_path.iterdir())


def test_models_that_are_none_to_linearize_are_told(taught, adapted, tiny_llama, tmp_path):
    whole = export(taught.out, tmp_path / "whole")
    for place in (taught.out, adapted.out, whole):
        with pytest.raises(InputInvalid, match="linearized already"):
            linearize(place, TEXT, tmp_path / "out", options=SMALL)
    with pytest.raises(InputInvalid, match="is an adapter"):
        linearize(f"{adapted.out}/adapter", TEXT, tmp_path / "out", options=SMALL)
    other = tmp_path / "gpt"
    other.mkdir()
    save_file({"wte.weight": torch.zeros(2, 2)}, other / "model.safetensors")
    (other / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(InputInvalid, match="type 'gpt2' cannot be linearized"):
        linearize(other, TEXT, tmp_path / "out", options=SMALL)
    for door in (finetune, lambda *words: export(words[0], words[2])):
        with pytest.raises(InputInvalid, match=r"holds no lolcats\.json"):
            door(tiny_llama, TEXT, tmp_path / "out")
    with pytest.raises(InputInvalid, match=r"holds no lolcats\.json"):
        evaluate(whole, TEXT)
    with pytest.raises(InputInvalid, match="no linearized model"):
        load(tiny_llama)


def test_maps_open_only_beside_the_weights_they_were_taught_on(taught, tiny_llama, tmp_path):
    model = load_model(tiny_llama)
    with torch.no_grad():
        model.model.norm.weight.add_(1)
    model.save_pretrained(tmp_path / "other")
    with pytest.raises(InputInvalid, match="are not those that these maps were taught on"):
        load(taught.out, base=str(tmp_path / "other"))


def test_a_configuration_that_changed_is_noticed(taught, tiny_llama, tmp_path):
    shutil.copytree(tiny_llama, tmp_path / "base")
    config = json.loads((tmp_path / "base" / "config.json").read_text())
    for name, same in (("transformers_version", True), ("rms_norm_eps", False)):
        changed = json.dumps({**config, name: "0.1" if same else 0.1})
        (tmp_path / "base" / "config.json").write_text(changed)
        if same:
            load(taught.out, base=str(tmp_path / "base"))
            continue
        with pytest.raises(InputInvalid, match="are not those"):
            load(taught.out, base=str(tmp_path / "base"))


def test_a_base_that_moved_is_asked_for(tiny_llama, tmp_path, monkeypatch):
    shutil.copytree(tiny_llama, tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    report = linearize("base", TEXT, tmp_path / "out", options=SMALL, progress=False)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    load(report.out)  # a relative name is kept as where it was
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(InputInvalid, match=r"base of these maps is not to be found.*--base"):
        load(report.out)
    load(report.out, base=str(tmp_path / "moved"))


def test_tokens_are_timed_behind_as_long_a_cache_in_layers_that_stay(tiny_llama, monkeypatch):
    seen = []
    model = linearize_model(load_model(tiny_llama), window=4, layers=[1])

    def look(_, arguments, named):
        cache = named["past_key_values"]
        seen.append([cache.layers[0].get_seq_length(), cache.layers[1].get_seq_length()])

    with torch.no_grad():
        handle = model.model.layers[1].self_attn.register_forward_pre_hook(look, with_kwargs=True)
        token_seconds(model, 700, steps=2)
        handle.remove()
    assert seen[-1] == [703, 702]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("lolcats.json", b"{", "cannot be read"),
        ("lolcats.json", b'{"format": 2, "base": {"reference": "", "hashes": {}}}', "of format 2"),
        (
            "lolcats.json",
            b'{"format": 1, "base": {"reference": "", "hashes": {}}, "recipe": {}}',
            "the recipe lacks",
        ),
        ("maps.safetensors", b"", "cannot be read"),
    ],
)
def test_broken_files_are_told(name, content, told, taught, tmp_path):
    shutil.copytree(taught.out, tmp_path / "copy")
    (tmp_path / "copy" / name).write_bytes(content)
    with pytest.raises(InputInvalid, match=told):
        load(tmp_path / "copy")


def test_maps_that_are_not_all_there_are_told(taught, tmp_path):
    shutil.copytree(taught.out, tmp_path / "copy")
    maps = load_file(tmp_path / "copy" / "maps.safetensors")
    maps.pop("model.layers.0.self_attn.gate")
    save_file(maps, tmp_path / "copy" / "maps.safetensors")
    with pytest.raises(InputInvalid, match=r"layers\.0\.self_attn\.gate"):
        load(tmp_path / "copy")


def test_several_processes_learn_and_one_writes(taught, tmp_path):
    words = [
        "linearize",
        "finetune",
        taught.out,
        "--text",
        TEXT,
        "--length",
        "16",
        "--windows",
        "4",
    ]
    short = ["--steps", "2", "--batch-size", "1", "-o", str(tmp_path / "out")]
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, "-m", "zeitgeist", *words, *short],
        capture_output=True,
        text=True,
        env={**environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("perplexity") == 1
    assert load(tmp_path / "out").config.lolcats["window"] == 4


def test_an_output_is_replaced_only_when_asked(taught, tiny_llama, tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists):
        linearize(tiny_llama, TEXT, tmp_path / "out", options=SMALL)
    report = linearize(
        tiny_llama, TEXT, tmp_path / "out", options=SMALL, overwrite=True, progress=False
    )
    again = finetune(
        taught.out, TEXT, report.out, settings=LORA, length=16, overwrite=True, progress=False
    )
    assert math.isfinite(again.perplexity)
    with pytest.raises(InputInvalid, match="is the input"):
        finetune(taught.out, TEXT, taught.out, overwrite=True)
