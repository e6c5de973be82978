"""``zeitgeist drop``: every verb, for people and for programs, and bad input."""

import json
import subprocess
import sys

import pytest

from zeitgeist.cli import drop

TEXT = "the cat sat on a mat and the dog ran to it in a big red van " * 12
SHORT = ["--samples", "4", "--length", "16"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None, raising=False)


def run(capsys, *words):
    drop.app([str(word) for word in words], exit_on_error=False, result_action="return_value")
    return capsys.readouterr().out


def test_score_prints_a_row_per_layer_and_draws(capsys, tiny_llama, tmp_path):
    out = run(capsys, "score", tiny_llama, "--text", TEXT, *SHORT, "-o", tmp_path / "s.png")
    assert "first to go, attention:" in out
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")
    told = json.loads(run(capsys, "score", tiny_llama, "--text", TEXT, *SHORT, "--json"))
    assert {len(values) for values in told["similarity"].values()} == {2}
    assert len(told["joint"]) == 4
    assert told["similarity"] != told["similarity_without_first"]
    for kind, intervals in told["rank_interval"].items():
        assert all(low <= high for low, high in intervals), kind


def test_apply_writes_a_model(capsys, tiny_llama, tmp_path):
    out = run(capsys, "apply", tiny_llama, "--layers", "1,mlp:0", "-o", tmp_path / "less")
    assert "without attention: 1; without MLP: 0" in out
    assert (tmp_path / "less" / "config.json").is_file()
    words = ["apply", tiny_llama, "--attention", 1, "--text", TEXT, *SHORT, "--json"]
    told = json.loads(run(capsys, *words, "-o", tmp_path / "other"))
    assert len(told["attention"]) == 1 and told["perplexity_after"] > 1


def test_sweep_prints_a_table_and_draws(capsys, tiny_llama, tmp_path):
    words = ["sweep", tiny_llama, "--text", TEXT, *SHORT, "--ways", "attention", "--counts", "1"]
    out = run(capsys, *words, "--context", 8, "-o", tmp_path / "p.svg")
    assert "1 attention" in out and "whole" in out
    assert (tmp_path / "p.svg").read_text().startswith("<svg")
    told = json.loads(run(capsys, *words, "--context", 8, "--json"))
    assert [row["way"] for row in told] == ["whole", "attention"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["apply", "MODEL", "-o", "less"], "nothing is to be dropped"),
        (["apply", "MODEL", "-o", "less", "--layers", "x"], "--layers 'x'"),
        (["apply", "MODEL", "-o", "less", "--layers", "9"], "no attention 9"),
        (["apply", "MODEL", "-o", "less", "--attention", "1"], "no calibration text"),
        (["sweep", "MODEL", "--text", TEXT, "--counts", "1;2"], "--counts '1;2'"),
        (["sweep", "MODEL", "--text", TEXT, "-o", "picture.gif"], "picture.gif"),
        (["score", "missing", "--text", TEXT], "'missing'"),
    ],
)
def test_bad_input_is_told(words, told, tiny_llama):
    from zeitgeist.errors import ZeitgeistError

    given = [str(tiny_llama) if word == "MODEL" else word for word in words]
    with pytest.raises(ZeitgeistError, match=told):
        drop.app(given, exit_on_error=False, result_action="return_value")


def test_help_imports_no_torch():
    code = "import sys, zeitgeist.cli.drop; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
