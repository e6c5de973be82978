"""``zeitgeist selfgen``: every verb, for people and for programs, and bad input."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from zeitgeist.cli import selfgen

ROWS = [
    {"prompt": "the cat", "completion": " sat on the mat"},
    {"prompt": "a dog ran", "completion": " to it"},
    {"prompt": "he was", "completion": " big and red"},
]
SHORT = ["--steps", "1", "--batch-size", "2", "--rank", "2"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None)
    (tmp_path / "d.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (tmp_path / "bad.jsonl").write_text("nonsense\n")
    for name in ("empty.jsonl", "f"):
        (tmp_path / name).write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("")


def run(capsys, *words):
    selfgen.app([str(word) for word in words], exit_on_error=False, result_action="return_value")
    return capsys.readouterr().out


def test_from_demonstrations_to_corrected_answers(capsys, tiny_llama, tmp_path):
    words = [
        "train",
        tiny_llama,
        "d.jsonl",
        *SHORT,
        "--rounds",
        1,
        "--method",
        "both",
        "-o",
        "tuned",
    ]
    out = run(capsys, *words, "--held-out", "d.jsonl", "--picture", "gap.png")
    assert "round  gold share" in out and "before: token accuracy" in out
    assert (tmp_path / "gap.png").read_bytes().startswith(b"\x89PNG")
    out = run(capsys, "gap", "tuned", "d.jsonl", "--against", tiny_llama, "--correct")
    assert out.startswith(f"{tiny_llama}: ") and "second answers" in out and "copied" in out
    told = json.loads(run(capsys, "gap", "tuned", "d.jsonl", "--json", "--picture", "g.svg"))
    assert told["tuned"]["demonstrations"] == 3
    assert (tmp_path / "g.svg").read_text().startswith("<svg")
    out = run(capsys, "answer", "tuned", "d.jsonl", "--max-new-tokens", "4")
    lines = [json.loads(line) for line in out.splitlines()]
    assert [line["prompt"] for line in lines] == [row["prompt"] for row in ROWS]
    assert all(isinstance(line["corrected"], str) for line in lines)


def test_contexts_are_written_and_counted(capsys, tiny_llama, tmp_path):
    words = ["mix", tiny_llama, "d.jsonl", "--gold-share", "0.5", "--clean-share", "0"]
    out = run(capsys, *words, "-o", "c.jsonl")
    assert "3 contexts" in out and "replaced" in out
    told = json.loads(run(capsys, *words, "--mode", "parallel", "-o", "c.parquet", "--json"))
    assert told["contexts"] == 3 and told["replaced"] >= told["differing"]
    rows = [json.loads(line) for line in (tmp_path / "c.jsonl").read_text().splitlines()]
    assert all(row.keys() == {"input_ids", "labels"} for row in rows)


@pytest.mark.parametrize("shares", ["0.9,0.8", "exponential", "0.7"])
def test_gold_shares_are_names_or_numbers(capsys, tiny_llama, shares):
    words = ["train", tiny_llama, "d.jsonl", *SHORT, "--rounds", "2", "--warm-start", "0"]
    told = json.loads(run(capsys, *words, "--gold-share", shares, "-o", "out", "--json"))
    found = [stage["gold_share"] for stage in told["stages"]]
    assert found == {"0.9,0.8": [0.9, 0.8], "exponential": [0.9, 0.81], "0.7": [0.7, 0.7]}[shares]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["train", "MODEL", "no.jsonl", "-o", "out"], "no file 'no.jsonl'"),
        (["train", "MODEL", "d.jsonl", "-o", "out", "--gold-share", "x1"], "--gold-share 'x1'"),
        (["train", "MODEL", "d.jsonl", "-o", "out", "--gold-share", "up"], "no schedule 'up'"),
        (["train", "MODEL", "d.jsonl", "-o", "out", "--gold-share", "1.5"], "share is 1.5"),
        (["train", "MODEL", "d.jsonl", "-o", "out", "--picture", "a.png"], "give both"),
        (["train", "MODEL", "d.jsonl", "-o", "out", "--picture", "a.gif"], "a.gif"),
        (["train", "missing", "d.jsonl", "-o", "out"], "'missing'"),
        (["train", "MODEL", "d.jsonl", "-o", "d.jsonl"], "is the input"),
        (["train", "MODEL", "d.jsonl", "-o", "d.jsonl/x"], "lies in"),
        (["train", "MODEL", "d.jsonl", "-o", "f/x"], "lies in a file"),
        (["train", "MODEL", "d.jsonl", "-o", "f"], "is a file"),
        (["train", "MODEL", "d.jsonl", "-o", "full"], "already there"),
        (["train", "MODEL", "d.jsonl", "-o", "full", "--overwrite"], "no earlier output"),
        (["train", "MODEL", "d.jsonl", "-o", "out", "--temperature", "nan"], "temperature is nan"),
        (["train", "MODEL", "d.jsonl", "-o", "out", "--correction", "a\udcff"], "half a character"),
        (
            ["mix", "MODEL", "d.jsonl", "-o", "c.jsonl", "--temperature", "inf"],
            "temperature is inf",
        ),
        (
            ["mix", "MODEL", "d.jsonl", "-o", "c.jsonl", "--method", "rac", "--gold-share", "nan"],
            "share is nan",
        ),
        (["mix", "MODEL", "d.jsonl", "-o", "d.jsonl", "--overwrite"], "is an input"),
        (["mix", "no-model", "bad.jsonl", "-o", "c.jsonl"], "bad.jsonl:1: this is no JSON"),
        (["gap", "no-model", "d.jsonl", "--batch-size", "0"], "batch_size is 0"),
        (["gap", "no-model", "d.jsonl", "--correction", "a\udcff"], "half a character"),
        (["gap", "no-model", "empty.jsonl"], "empty.jsonl: there are no demonstrations"),
        (["answer", "no-model", "d.jsonl", "--temperature", "nan"], "temperature is nan"),
        (["answer", "no-model", "d.jsonl", "--correction", "a\udcff"], "half a character"),
        (["answer", "no-model", "empty.jsonl"], "empty.jsonl: there are no prompts"),
        (["mix", "MODEL", "d.jsonl", "-o", "c.txt"], "no .jsonl or .parquet"),
        (["mix", "MODEL", "d.jsonl", "-o", "d.jsonl"], "already there"),
        (["mix", "MODEL", "d.jsonl", "-o", "c.jsonl", "--gold-share", "2"], "gold share is 2"),
        (["gap", "MODEL", "no.jsonl"], "no file"),
        (["gap", "MODEL", "d.jsonl", "--picture", "a.gif"], "a.gif"),
        (["answer", "MODEL", "d.jsonl", "--passes", "3"], "passes is 3"),
        (["answer", "MODEL", "no.jsonl"], "no file"),
    ],
)
def test_bad_input_is_told(words, told, tiny_llama):
    from zeitgeist.errors import ZeitgeistError

    given = [str(tiny_llama) if word == "MODEL" else word for word in words]
    before = sorted(Path().rglob("*"))
    with pytest.raises(ZeitgeistError, match=told):
        selfgen.app(given, exit_on_error=False, result_action="return_value")
    assert sorted(Path().rglob("*")) == before


def test_help_imports_no_torch():
    code = "import sys, zeitgeist.cli.selfgen; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
