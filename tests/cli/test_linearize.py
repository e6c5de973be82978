"""``zeitgeist linearize``: every verb, for people and for programs, and bad input."""

import json
import subprocess
import sys

import pytest

from zeitgeist.cli import linearize

TEXT = "the cat sat on a mat and the dog ran to it in a big red van " * 12
SHORT = ["--length", "16", "--windows", "4", "--validation", "2", "--steps", "2"]
TEACH = [*SHORT, "--batch-size", "2", "--window", "4"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None, raising=False)


def run(capsys, *words):
    linearize.app([str(word) for word in words], exit_on_error=False, result_action="return_value")
    return capsys.readouterr().out


def test_from_a_softmax_model_to_a_directory_of_ones_own(capsys, tiny_llama, tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    words = ["transfer", tiny_llama, "--text", "text.txt", *TEACH, "-o", "maps"]
    out = run(capsys, *words, "--picture", "taught.png")
    assert "layer  before  taught" in out and "nothing shrinks but the cost of a token" in out
    assert (tmp_path / "taught.png").read_bytes().startswith(b"\x89PNG")
    lora = ["--batch-size", "2", "--rank", "2"]
    told = run(capsys, "finetune", "maps", "--text", TEXT, *SHORT, *lora, "-o", "lora", "--json")
    assert len(json.loads(told)["losses"]) == 2
    scored = ["evaluate", "lora", "--text", TEXT, "--length", 16, "--contexts", "8,64"]
    out = run(capsys, *scored, "--picture", "costs.svg")
    assert "same likeliest next token" in out and "keeps less than softmax from" in out
    assert (tmp_path / "costs.svg").read_text().startswith("<svg")
    assert len(json.loads(run(capsys, *scored, "--json"))["costs"]) == 2
    assert run(capsys, "export", "lora", "-o", "whole").strip() == "whole"
    assert (tmp_path / "whole" / "config.json").is_file()


def test_layers_are_named_by_numbers_and_ranges(capsys, tiny_llama):
    words = ["transfer", tiny_llama, "--text", TEXT, *TEACH, "-o", "maps"]
    told = json.loads(run(capsys, *words, "--layers", "1", "--json"))
    assert told["before"][0] is None and told["before"][1] > 0
    out = run(capsys, *words, "--layers", "0-1", "--overwrite")
    assert "softmax\n" not in out


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["transfer", "MODEL", "--text", TEXT, "-o", "out", "--layers", "x"], "--layers 'x'"),
        (["transfer", "MODEL", "--text", TEXT, "-o", "out", "--layers", "1-0"], "--layers '1-0'"),
        (["transfer", "MODEL", "--text", TEXT, "-o", "out", "--layers", ","], "names none"),
        (["evaluate", "MODEL", "--text", TEXT, "--length", "1"], "8 windows of 1 tokens"),
        (["finetune", "MODEL", "--text", TEXT, "-o", "out", "--learning-rate", "0"], "rate is 0"),
        (["transfer", "MODEL", "--text", TEXT, "-o", "out", "--layers", "9"], "are \\[9\\]"),
        (["transfer", "MODEL", "--text", TEXT, "-o", "out"], "the text has"),
        (["transfer", "MODEL", "--text", "no.txt", "-o", "out"], "no text file 'no.txt'"),
        (["transfer", "missing", "--text", TEXT, "-o", "out"], "'missing'"),
        (["transfer", "MODEL", "--text", TEXT, "-o", "out", "--picture", "a.gif"], "a.gif"),
        (["finetune", "MODEL", "--text", TEXT, "-o", "out"], "lolcats.json"),
        (["evaluate", "MODEL", "--text", TEXT], "lolcats.json"),
        (["evaluate", "MODEL", "--text", TEXT, "--contexts", "1;2"], "--contexts '1;2'"),
        (["export", "MODEL", "-o", "out"], "lolcats.json"),
    ],
)
def test_bad_input_is_told(words, told, tiny_llama):
    from zeitgeist.errors import ZeitgeistError

    given = [str(tiny_llama) if word == "MODEL" else word for word in words]
    if "--layers" in words:
        given += SHORT
    with pytest.raises(ZeitgeistError, match=told):
        linearize.app(given, exit_on_error=False, result_action="return_value")


def test_help_imports_no_torch():
    code = "import sys, zeitgeist.cli.linearize; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
