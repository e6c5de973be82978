"""``zeitgeist continual``: on real files, for people and for programs, and bad input."""

import json
import shutil
import subprocess
import sys

import pytest

from zeitgeist.cli import continual
from zeitgeist.errors import ZeitgeistError

SHORT = ["--steps", "2", "--batch-size", "2", "--rank", "2", "--memory", "4", "--per-step", "2",
         "--test", "2", "--warmup-steps", "0"]  # fmt: skip


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None)
    for word in ("cat", "dog"):
        lines = [json.dumps({"prompt": f"the {word} {i}", "completion": "sat"}) for i in range(6)]
        (tmp_path / f"{word}.jsonl").write_text("\n".join(lines), encoding="utf-8")


def run(capsys, *words):
    continual.app([str(w) for w in words], exit_on_error=False, result_action="return_value")
    return capsys.readouterr().out


def test_run_prints_draws_and_compares(capsys, tiny_llama, tmp_path):
    words = ["run", tiny_llama, "cat.jsonl", "dog.jsonl", *SHORT]
    out = run(capsys, *words, "-o", "one", "--picture", "one.png", "--violations", "v.svg")
    assert "BWT" in out and "dog:" in out and out.rstrip().endswith("one")
    assert (tmp_path / "one.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "v.svg").read_text().startswith("<svg")
    told = json.loads(run(capsys, *words, "-o", "two", "--method", "replay", "--json"))
    assert told["tasks"] == ["cat", "dog"] and len(told["rows"]) == 2
    assert "ACC" in run(capsys, "compare", "one", "two", "-o", "pareto.svg")
    assert (tmp_path / "pareto.svg").read_text().startswith("<svg")
    run(capsys, "compare", "one", "two", "--violations", "both.png")
    assert (tmp_path / "both.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ZeitgeistError, match="none of the runs has kept violations"):
        run(capsys, "compare", "two", "--violations", "none.png")
    with pytest.raises(ZeitgeistError, match="two pictures"):
        run(capsys, "compare", "one", "-o", "same.png", "--violations", "same.png")
    assert set(json.loads(run(capsys, "compare", "one", "two", "--json"))) == {"one", "two"}


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["run", "MODEL", "-o", "out"], "no tasks"),
        (["run", "MODEL", "missing.jsonl", "-o", "out"], "cannot be read"),
        (["run", "MODEL", "cat.jsonl", "-o", "out", "--strength", "-1"], r"strength is -1\.0"),
        (["run", "MODEL", "cat.jsonl", "-o", "out", "--steps", "0"], "steps is 0"),
        (["run", "MODEL", "cat.jsonl", "-o", "out", "--test", "6"], "6 are for the test"),
        (["run", "MODEL", "cat.jsonl", "-o", "out", "--picture", "x.gif"], "x.gif"),
        (["run", "MODEL", "cat.jsonl", "-o", "out", "--violations", "x.png"], "on 1 tasks"),
        (
            [
                "run",
                "MODEL",
                "cat.jsonl",
                "dog.jsonl",
                "-o",
                "out",
                "--method",
                "replay",
                "--violations",
                "x.png",
            ],
            "replay on 2 tasks",
        ),
        (
            [
                "run",
                "MODEL",
                "cat.jsonl",
                "dog.jsonl",
                "-o",
                "out",
                "--picture",
                "x.png",
                "--violations",
                "x.png",
            ],
            "two pictures",
        ),
        (["run", "missing", "cat.jsonl", "-o", "out"], "'missing'"),
        (["compare"], "no runs"),
        (["compare", "nothing"], "no finished sequence"),
    ],
)
def test_bad_input_is_told_and_leaves_nothing(words, told, tiny_llama, tmp_path):
    given = [str(tiny_llama) if word == "MODEL" else word for word in words]
    with pytest.raises(ZeitgeistError, match=told):
        continual.app(given, exit_on_error=False, result_action="return_value")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["cat.jsonl", "dog.jsonl"]


def test_help_imports_no_torch():
    code = "import sys, zeitgeist.cli.continual; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--seed", "-1"], "the seed is -1"),
        (["--seed", str(2**32 - 1)], "the seed is"),
        (["--learning-rate", "nan"], "learning rate is nan"),
        (["--learning-rate", "-1"], "learning rate is -1"),
        (["-o", "dog.jsonl/out"], "lies in a file"),
    ],
)
def test_what_would_fail_later_is_told_first(capsys, tiny_llama, words, told):
    words = [*words, *([] if "-o" in words else ["-o", "out"])]
    with pytest.raises(ZeitgeistError, match=told):
        run(capsys, "run", tiny_llama, "cat.jsonl", "dog.jsonl", *SHORT, *words)


def test_negative_warmup_is_refused(capsys, tiny_llama):
    words = [*SHORT[:-1], "-1", "-o", "out"]
    with pytest.raises(ZeitgeistError, match="warmup_steps is -1"):
        run(capsys, "run", tiny_llama, "cat.jsonl", *words)


def test_directories_that_are_no_models_are_told(capsys, tiny_llama, tiny_tokenizer, tmp_path):
    (tmp_path / "empty").mkdir()
    odd = shutil.copytree(tiny_llama, tmp_path / "odd")
    (odd / "config.json").write_text('{"model_type": "zork"}')
    for place in ("empty", "odd"):
        with pytest.raises(ZeitgeistError, match="no causal language model"):
            run(capsys, "run", place, "cat.jsonl", *SHORT, "-o", "out")


def test_examples_beyond_the_models_positions_are_told(capsys, tiny_tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2LMHeadModel, OPTConfig, OPTForCausalLM

    gpt2 = GPT2Config(vocab_size=288, n_positions=4, n_embd=8, n_layer=1, n_head=2)
    opt = OPTConfig(vocab_size=288, hidden_size=8, ffn_dim=8, num_hidden_layers=1,
                    num_attention_heads=2, max_position_embeddings=4,
                    word_embed_proj_dim=8)  # fmt: skip
    for name, model in (("gpt2", GPT2LMHeadModel(gpt2)), ("opt", OPTForCausalLM(opt))):
        model.save_pretrained(tmp_path / name)
        shutil.copytree(tiny_tokenizer, tmp_path / name, dirs_exist_ok=True)
        with pytest.raises(ZeitgeistError, match="the model reads 4"):
            run(capsys, "run", name, "cat.jsonl", *SHORT, "-o", "out")


@pytest.mark.parametrize("scores", [{}, 3, {"tokens": ["a"]}, {"tokens": [0.5, 0.5]}])
def test_damaged_scores_are_no_run(capsys, tmp_path, scores):
    good = {"scores": {name: [0.5] for name in ("tokens", "exact", "nll")}, "losses": []}
    told = {"tasks": ["cat"], "untrained": good, "rows": [{**good, "scores": scores}]}
    (tmp_path / "accuracy.json").write_text(json.dumps(told))
    with pytest.raises(ZeitgeistError, match="no finished sequence"):
        run(capsys, "compare", tmp_path)
    (tmp_path / "accuracy.json").write_text("[" * 100_000)
    with pytest.raises(ZeitgeistError, match="no finished sequence"):
        run(capsys, "compare", tmp_path)
