"""Tasks from files, and a tiny model that learns them in turn; stopped and taken up again."""

import json
from dataclasses import replace

import numpy as np
import pytest

from zeitgeist.continual import sequence
from zeitgeist.continual.charts import matrix_chart, pareto_chart, violations_chart
from zeitgeist.continual.gradient_restriction import RestrictionOptions
from zeitgeist.continual.sequence_files import read_report, run_sequence
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
    assert set(report.rows[1].violations) == {"model.layers.0", "model.layers.1"}
    assert violations_chart([report, report]).png().startswith(b"\x89PNG")
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


def test_answers_have_no_classes(tiny_llama, tasks, tmp_path):
    with pytest.raises(InputInvalid, match="no classes"):
        learned(tiny_llama, tasks, tmp_path / "o", options=RestrictionOptions(sampler="balanced"))


def test_an_adapter_is_no_base(tiny_llama, tasks, tmp_path):
    learned(tiny_llama, tasks[:1], tmp_path / "one")
    with pytest.raises(InputInvalid, match="is an adapter"):
        learned(tmp_path / "one", tasks[1:], tmp_path / "two")


def test_an_empty_directory_is_no_finished_sequence(tmp_path):
    with pytest.raises(EvidenceInvalid, match="no finished sequence"):
        read_report(tmp_path)


def test_runs_of_before_there_were_violations_are_read(tiny_llama, tasks, tmp_path):
    report = learned(tiny_llama, tasks[:2], tmp_path / "out")
    path = tmp_path / "out" / "accuracy.json"
    known = json.loads(path.read_text())
    for row in (known["untrained"], *known["rows"]):
        del row["violations"]
    path.write_text(json.dumps(known))
    rows = tuple(replace(row, violations={}) for row in report.rows)
    assert read_report(tmp_path / "out") == replace(report, rows=rows)


@pytest.mark.parametrize("violations", [3, [1], {"a": [0.5]}, {"a": ["x"] * 3}, {"a": 0.5}])
def test_damaged_violations_are_told(violations, tmp_path):
    good = {"scores": {name: [0.5] for name in ("tokens", "exact", "nll")}, "losses": [1.0] * 3}
    told = {"tasks": ["cat"], "untrained": good, "rows": [{**good, "violations": violations}]}
    (tmp_path / "accuracy.json").write_text(json.dumps(told))
    with pytest.raises(EvidenceInvalid, match="no finished sequence"):
        read_report(tmp_path)
