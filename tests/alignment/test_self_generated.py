"""The doors: contexts on disk, training in rounds, going on after a stop, and bad input."""

import json
from dataclasses import replace
from functools import partial

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, DataCollatorForSeq2Seq, Trainer, TrainingArguments

from zeitgeist.alignment import self_generated, self_generated_rounds
from zeitgeist.alignment.context_files import check_file, read_contexts, write_contexts
from zeitgeist.alignment.demonstrations import encode
from zeitgeist.alignment.policies import open_policy
from zeitgeist.alignment.self_generated import SelfGeneratedOptions, build_mixed, train
from zeitgeist.errors import InputInvalid, OutputExists
from zeitgeist.training import LoraSettings, finetune_lora
from zeitgeist.training.contexts import collate_contexts, context_loss, gold_context

TINY = SelfGeneratedOptions(rounds=2, rank=2, batch_size=2, steps=2, learning_rate=1e-2)


@pytest.fixture(scope="module")
def opened(tiny_llama):
    return open_policy(tiny_llama)


@pytest.mark.parametrize("name", ["contexts.jsonl", "contexts.parquet"])
def test_rows_go_into_the_trainer_as_they_are(opened, chats, tmp_path, name):
    from datasets import load_dataset

    model, tokenizer = opened
    options = replace(TINY, method="both")
    mixed = build_mixed(
        model, tokenizer, chats, tmp_path / name, gold_share=0.5, options=options, progress=False
    )
    assert len(mixed.contexts) == 10 and mixed.replaced.replaced > 0
    kind = "json" if name.endswith("l") else "parquet"
    rows = load_dataset(
        kind, data_files=str(tmp_path / name), split="train", cache_dir=str(tmp_path / "cache")
    )
    tokenizer.padding_side = "right"
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True
    )
    collator = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=-100)
    trainer = Trainer(model, arguments, data_collator=collator, train_dataset=rows)
    batch = collator([dict(row) for row in rows])
    wanted = context_loss(model, collate_contexts(mixed.contexts, pad=3)).item()
    assert trainer.compute_loss(model, batch).item() == pytest.approx(wanted, abs=1e-6)


def test_with_a_gold_share_of_one_contexts_are_the_demonstrations(opened, texts, tmp_path):
    model, tokenizer = opened
    mixed = build_mixed(model, tokenizer, texts, gold_share=1.0, options=TINY, progress=False)
    assert mixed.contexts == tuple(gold_context(encode(tokenizer, row)) for row in texts)
    write_contexts(mixed.contexts, tmp_path / "c.jsonl")
    assert read_contexts(tmp_path / "c.jsonl") == mixed.contexts
    with pytest.raises(OutputExists, match="already there"):
        build_mixed(model, tokenizer, texts, tmp_path / "c.jsonl", progress=False)


def test_corrections_stand_beside_demonstrations_and_spliced_drafts_begin_as_gold(opened, chats):
    model, tokenizer = opened
    options = replace(TINY, method="rac", splice=1.0, temperature=0.0)
    mixed = build_mixed(model, tokenizer, chats, gold_share=0.5, options=options, progress=False)
    plain, corrections = mixed.contexts[:5], mixed.contexts[5:]
    examples = [encode(tokenizer, row) for row in chats]
    assert plain == tuple(map(gold_context, examples))
    begun = 0
    for example, context in zip(examples, corrections, strict=True):
        assert context.input_ids[: len(example.prompt)] == example.prompt
        assert context.labels[-len(example.answer) :] == example.answer
        assert context.input_ids[len(example.prompt)] not in (0, 3)
        begun += context.input_ids[len(example.prompt)] == example.answer[0]
    assert begun >= 2


def test_plain_rounds_are_fine_tuning_to_the_bit(tiny_llama, texts, tmp_path, monkeypatch):
    """One round with a gold share of 1, against the loop for answers."""
    monkeypatch.setattr("zeitgeist.alignment.self_generated.best_dtype", lambda _: torch.float32)
    monkeypatch.setattr("zeitgeist.training.lora.best_dtype", lambda _: torch.float32)
    options = replace(TINY, rounds=1, gold_share=1.0, warm_start=0.0, steps=4)
    report = train(tiny_llama, texts, tmp_path / "mine", options=options, progress=False)
    _, tokenizer = open_policy(tiny_llama)
    settings = LoraSettings(
        steps=4, batch_size=2, learning_rate=1e-2, warmup_steps=0, rank=2, alpha=16
    )
    wanted = finetune_lora(
        tiny_llama,
        [encode(tokenizer, row) for row in texts],
        tmp_path / "wanted",
        settings=settings,
        pad=3,
        progress=False,
    )
    assert report.stages[0].losses == wanted.losses
    one, other = (
        load_file(tmp_path / name / "adapter_model.safetensors") for name in ("mine", "wanted")
    )
    assert one.keys() == other.keys()
    assert all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize("method", ["bash", "rac", "both"])
def test_an_adapter_opens_and_is_what_was_measured(tiny_llama, chats, tmp_path, method):
    options = replace(TINY, method=method)
    out = tmp_path / "tuned"
    report = train(tiny_llama, chats, out, options=options, held_out=chats[:2], progress=False)
    assert [(s.round, s.gold_share) for s in report.stages] == [(0, 1.0), (1, 0.9), (2, 0.8)]
    assert [s.contexts for s in report.stages] == [5] + [5 if method == "bash" else 10] * 2
    assert (report.after.corrected is None) == (method == "bash")
    told = json.loads((out / "self_generated.json").read_text())
    assert told["report"]["after"]["gap"] == report.after.gap
    assert "arXiv 2410.14655" in (out / "README.md").read_text()
    model, tokenizer = open_policy(out)
    from zeitgeist.alignment.prefix_gap import gap

    found = gap(model, tokenizer, chats[:2], progress=False)
    assert found.gold_accuracy == pytest.approx(report.after.gold_accuracy, abs=0.2)
    assert not list(tmp_path.glob(".tuned*"))


def test_all_weights_are_written_in_the_dtype_they_came_in(tiny_llama, texts, tmp_path):
    options = replace(TINY, adapt="full", rounds=1)
    train(tiny_llama, texts, tmp_path / "whole", options=options, progress=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "whole", local_files_only=True)
    assert model.dtype == torch.bfloat16
    base = AutoModelForCausalLM.from_pretrained(tiny_llama, local_files_only=True)
    assert not torch.equal(model.lm_head.weight, base.lm_head.weight)
    assert (tmp_path / "whole" / "tokenizer.json").is_file()


@pytest.mark.parametrize(
    ("adapt", "where"), [("lora", "contexts"), ("lora", "training"), ("full", "training")]
)
def test_a_stopped_training_goes_on_to_the_same_bytes(
    tiny_llama, texts, tmp_path, monkeypatch, adapt, where
):
    options = replace(TINY, adapt=adapt, method="both", steps=4)
    run = partial(train, tiny_llama, texts, options=options, progress=False)
    whole = run(tmp_path / "whole")
    module, name = {
        "contexts": (self_generated, "make_contexts"),
        "training": (self_generated_rounds, "context_loss"),
    }[where]
    kept, calls = getattr(module, name), []

    def stopping(*given, **further):
        calls.append(1)
        if len(calls) == (2 if where == "contexts" else 9):
            raise KeyboardInterrupt
        return kept(*given, **further)

    monkeypatch.setattr(module, name, stopping)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "stopped")
    assert not (tmp_path / "stopped").exists() and list(tmp_path.glob(".stopped.rounds-*"))
    made = []

    def counting(*given, **further):
        made.append(further["round_"])
        return make(*given, **further)

    monkeypatch.setattr(module, name, kept)
    make = self_generated.make_contexts
    monkeypatch.setattr(self_generated, "make_contexts", counting)
    again = run(tmp_path / "stopped")
    assert made == ([2] if where == "contexts" else [])  # theirs were on disk
    assert [s.losses for s in again.stages] == [s.losses for s in whole.stages]
    file = "adapter_model.safetensors" if adapt == "lora" else "model.safetensors"
    one, other = (load_file(tmp_path / each / file) for each in ("whole", "stopped"))
    assert all(torch.equal(one[key], other[key]) for key in one)
    assert not list(tmp_path.glob(".stopped*"))


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"method": "basch"}, "did you mean 'bash'"),
        ({"mode": "paralel"}, "did you mean 'parallel'"),
        ({"adapt": "lorra"}, "did you mean 'lora'"),
        ({"rounds": 0}, "rounds is 0"),
        ({"gold_share": "liner"}, "did you mean 'linear'"),
        ({"clean_share": -0.1}, "clean_share is -0.1"),
        ({"splice": 1.1}, "splice is 1.1"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"warm_start": -1.0}, "warm_start is -1.0"),
        ({"epochs": 0.0}, "0.0 epochs"),
        ({"steps": 0}, "0 steps"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"rank": 0}, "rank is 0"),
        ({"learning_rate": 0.0}, "rate is 0.0"),
    ],
)
def test_options_without_sense_are_told(changes, told):
    with pytest.raises(InputInvalid, match=told):
        SelfGeneratedOptions(**changes)


def test_what_cannot_be_trained_is_told_before_any_work(tiny_llama, texts, chats, tmp_path):
    run = partial(train, tiny_llama, options=TINY, progress=False)
    with pytest.raises(InputInvalid, match="some demonstrations are conversations"):
        run([*texts, *chats], tmp_path / "out", options=replace(TINY, method="rac"))
    with pytest.raises(InputInvalid, match="no place for a draft"):
        run(texts, tmp_path / "out", options=replace(TINY, method="rac", max_length=24))
    with pytest.raises(InputInvalid, match="no 'completion'"):
        run([{"prompt": "x"}], tmp_path / "out")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    with pytest.raises(InputInvalid, match="is an adapter"):
        train(tmp_path / "adapter", texts, tmp_path / "out", progress=False)
    with pytest.raises(InputInvalid, match="does not say what its base is"):
        open_policy(tmp_path / "adapter")
    with pytest.raises(OutputExists, match="already there"):
        run(texts, tmp_path / "adapter")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_a_model_without_a_tokenizer_is_told(tiny_llama, tmp_path):
    import shutil

    shutil.copytree(tiny_llama, tmp_path / "bare", ignore=shutil.ignore_patterns("token*"))
    with pytest.raises(InputInvalid, match="no tokenizer"):
        open_policy(tmp_path / "bare")


@pytest.mark.parametrize(
    ("name", "told"),
    [("c.csv", "no .jsonl or .parquet"), ("d.jsonl", "is a directory"), ("f/c.jsonl", "in a file")],
)
def test_contexts_that_could_not_be_written_are_told(tmp_path, name, told):
    (tmp_path / "d.jsonl").mkdir()
    (tmp_path / "f").write_text("")
    with pytest.raises(InputInvalid, match=told):
        check_file(tmp_path / name, overwrite=True)
