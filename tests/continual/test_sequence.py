"""Tasks from files, and a tiny model that learns them in turn; stopped and taken up again."""

import json

import numpy as np
import pytest
from transformers import AutoTokenizer

from zeitgeist.continual import sequence
from zeitgeist.continual.charts import matrix_chart, pareto_chart
from zeitgeist.continual.gradient_restriction import RestrictionOptions
from zeitgeist.continual.sequence import read_report, run_sequence
from zeitgeist.continual.task_files import read_task, read_tasks
from zeitgeist.errors import EvidenceInvalid, InputInvalid, OutputExists
from zeitgeist.training import LoraSettings
from zeitgeist.training.models import peft_warnings

LORA = LoraSettings(steps=3, batch_size=2, rank=2, learning_rate=1e-2, warmup_steps=0, seed=1)
OPTIONS = RestrictionOptions(memory=4, per_step=2, sampler="reservoir", seed=1)


def written(path, word, count=8):
    lines = [{"prompt": f"the {word} {i}", "completion": f"{word} sat"} for i in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def tasks(tmp_path, monkeypatch):
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None)
    return [written(tmp_path / f"{word}.jsonl", word) for word in ("cat", "dog", "mat")]


def learned(tiny_llama, tasks, out, **changed):
    known = {"options": OPTIONS, "lora": LORA, "test": 2, "progress": False, **changed}
    return run_sequence(tiny_llama, tasks, out, **known)


def test_a_sequence_leaves_an_adapter_and_its_matrix(tiny_llama, tasks, tmp_path):
    from peft import AutoPeftModelForCausalLM

    report = learned(tiny_llama, tasks, tmp_path / "out")
    assert report.tasks == ("cat", "dog", "mat")
    assert report.matrix().shape == report.matrix("nll").shape == (3, 3)
    assert set(report.metrics()) == {"ACC", "LA", "BWT", "FWT", "forgetting"}
    assert report.rows[0].evaluations == 0 < report.rows[1].evaluations < report.rows[2].evaluations
    assert all(len(row.losses) == 3 for row in report.rows)
    assert read_report(tmp_path / "out") == report
    with peft_warnings():
        AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "out"), local_files_only=True)
    assert "arXiv 2410.00868" in (tmp_path / "out" / "README.md").read_text()
    left = sorted(p.name for p in (tmp_path / "out").iterdir())
    assert left == [
        "README.md",
        "accuracy.json",
        "adapter_config.json",
        "adapter_model.safetensors",
        "tasks",
    ]
    assert matrix_chart(report).png().startswith(b"\x89PNG")
    assert matrix_chart(report, "nll").svg().startswith("<svg")
    assert pareto_chart([report, report]).png().startswith(b"\x89PNG")


@pytest.mark.parametrize("stop", [1, 2])
def test_a_stopped_run_ends_with_identical_rows(tiny_llama, tasks, tmp_path, monkeypatch, stop):
    whole = learned(tiny_llama, tasks, tmp_path / "whole")
    calls = []

    def stopping(*given, **named):
        calls.append(1)
        if len(calls) > stop:
            raise KeyboardInterrupt
        return train(*given, **named)

    train = sequence.train_between
    monkeypatch.setattr(sequence, "train_between", stopping)
    with pytest.raises(KeyboardInterrupt):
        learned(tiny_llama, tasks, tmp_path / "part")
    assert not (tmp_path / "part").exists()
    monkeypatch.setattr(sequence, "train_between", train)
    with pytest.raises(InputInvalid, match="other settings"):
        learned(tiny_llama, tasks, tmp_path / "part", options=RestrictionOptions())
    taken = learned(tiny_llama, tasks, tmp_path / "part")
    assert taken.rows == whole.rows and taken.untrained == whole.untrained
    one, other = (
        (tmp_path / name / "adapter_model.safetensors").read_bytes() for name in ("whole", "part")
    )
    assert one == other


def test_a_finished_run_is_not_replaced_unasked(tiny_llama, tasks, tmp_path):
    learned(tiny_llama, tasks[:1], tmp_path / "out")
    with pytest.raises(OutputExists):
        learned(tiny_llama, tasks[:1], tmp_path / "out")
    report = learned(tiny_llama, tasks[1:2], tmp_path / "out", overwrite=True)
    assert report.tasks == ("dog",) and set(report.metrics()) == {"ACC", "LA"}


@pytest.mark.parametrize(
    "options",
    [
        {"grain": "head", "data_groups": 2},
        {"method": "agem", "grain": "layer"},
        {"method": "mega2"},
        {"method": "replay"},
        {"method": "none"},
        {"grain": "model", "strength": 0.5, "at_once": 4096},
    ],
)
def test_every_method_runs_on_lora(options, tiny_llama, tasks, tmp_path):
    chosen = RestrictionOptions(memory=4, per_step=2, **options)
    report = learned(tiny_llama, tasks[:2], tmp_path / "out", options=chosen)
    assert np.isfinite(report.matrix("nll")).all()


def test_conversations_and_prompts_are_read(tiny_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    talk = {
        "messages": [
            {"role": "user", "content": "the cat"},
            {"role": "assistant", "content": "sat"},
        ]
    }
    path = tmp_path / "t.jsonl"
    path.write_text("\n".join([json.dumps(talk)] * 3 + [""]), encoding="utf-8")
    task = read_task(path, tokenizer, test=1)
    example = task.train[0]
    assert tokenizer.decode(example.prompt) == "<s>the cat</s>"
    assert tokenizer.decode(example.answer) == "sat</s>"
    assert len(task.train) == 2 and len(task.test) == 1 and task.name == "t"
    plain = read_task(written(tmp_path / "p.jsonl", "dog"), tokenizer, test=3, seed=1)
    assert not set(plain.train) & set(plain.test)
    other = read_task(tmp_path / "p.jsonl", tokenizer, test=3, seed=2)
    assert plain.test != other.test


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", r"t\.jsonl:2: the line is no JSON"),
        ("[1]", r"t\.jsonl:2: the line is '\[1\]', no object"),
        ('{"text": "a"}', r"t\.jsonl:2: the line has \['text'\]"),
        ('{"prompt": "a", "completion": ""}', "completion"),
        ('{"messages": [{"role": "user", "content": "a"}]}', "no conversation"),
        ('{"messages": [{"role": "user"}, {"role": "assistant"}]}', "no conversation"),
        ('{"prompt": "' + "cat " * 99 + '", "completion": "a"}', "tokens, more than 50"),
    ],
)
def test_bad_lines_are_told_with_their_number(line, told, tiny_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    path = tmp_path / "t.jsonl"
    path.write_text('{"prompt": "a", "completion": "b"}\n' + line + "\n", encoding="utf-8")
    with pytest.raises(InputInvalid, match=told):
        read_task(path, tokenizer, test=1, longest=50)


def test_bad_files_are_told(tiny_tokenizer, tmp_path):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer)
    path = written(tmp_path / "t.jsonl", "cat", 2)
    (tmp_path / "sub").mkdir()
    with pytest.raises(InputInvalid, match="2 examples and 2 are for the test"):
        read_task(path, tokenizer, test=2)
    with pytest.raises(InputInvalid, match="cannot be read"):
        read_task(tmp_path / "missing.jsonl", tokenizer, test=1)
    with pytest.raises(InputInvalid, match="no tasks"):
        read_tasks([], tokenizer, test=1)
    with pytest.raises(InputInvalid, match="two tasks are called 't'"):
        read_tasks([path, written(tmp_path / "sub" / "t.jsonl", "dog")], tokenizer, test=1)
    with pytest.raises(EvidenceInvalid, match="no finished sequence"):
        read_report(tmp_path)


def test_answers_have_no_classes(tiny_llama, tasks, tmp_path):
    with pytest.raises(InputInvalid, match="no classes"):
        learned(tiny_llama, tasks, tmp_path / "o", options=RestrictionOptions(sampler="balanced"))


def test_an_adapter_is_no_base(tiny_llama, tasks, tmp_path):
    learned(tiny_llama, tasks[:1], tmp_path / "one")
    with pytest.raises(InputInvalid, match="is an adapter"):
        learned(tmp_path / "one", tasks[1:], tmp_path / "two")
