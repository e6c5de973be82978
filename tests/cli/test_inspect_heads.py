"""``zeitgeist inspect heads``: for people and for programs, pictures, and bad input."""

import json
import subprocess
import sys

import pytest

from zeitgeist.cli import inspect_heads

SMALL = ["--length", "24", "--windows", "2", "--batch-size", "2"]
TOY = ["--layers", 1, "--width", 8, "--length", 12, "--batch-size", 2, "--steps", 3]


def run(capsys, *words):
    inspect_heads.app(
        [str(word) for word in words], exit_on_error=False, result_action="return_value"
    )
    return capsys.readouterr().out


@pytest.fixture
def domains(tmp_path):
    (tmp_path / "prose.txt").write_text("the cat sat on a mat and the dog ran to it " * 8)
    lines = [json.dumps({"text": f"x[{i}] = y({i}); " * 20}) for i in range(3)]
    (tmp_path / "code.jsonl").write_text("\n".join(lines))
    return ["--domain", f"prose={tmp_path / 'prose.txt'}", "--domain",
            f"code={tmp_path / 'code.jsonl'}"]  # fmt: skip


def test_scan_tells_people_and_programs_and_draws(capsys, tiny_llama, domains, tmp_path):
    out = run(capsys, "scan", tiny_llama, *domains, *SMALL, "--rows", 3)
    assert "prose: 8 heads" in out and "prose less code" in out
    words = [*domains, *SMALL, "--json", "-o", tmp_path / "out"]
    told = json.loads(run(capsys, "scan", tiny_llama, *words))
    assert len(told["heads"]) == 16 and {row["domain"] for row in told["heads"]} == {
        "prose",
        "code",
    }
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "heads.json",
        "heads.safetensors",
    ]
    for draw in ("sinks", "stream", "values"):
        picture = tmp_path / f"{draw}.png"
        run(capsys, "scan", tiny_llama, *domains, *SMALL, "--draw", draw, "--picture", picture)
        assert picture.read_bytes().startswith(b"\x89PNG")


def test_scan_of_one_domain_and_some_layers(capsys, tiny_llama, domains):
    out = run(capsys, "scan", tiny_llama, *domains[:2], *SMALL, "--layers", 1)
    assert "prose: 4 heads" in out and "1.3" in out and "0.0 " not in out.split("class")[0]


def test_ablate_tells_people_and_programs(capsys, tiny_llama, domains):
    words = [*domains, *SMALL, "--parts", "0.1,mlp:1"]
    out = run(capsys, "ablate", tiny_llama, *words)
    assert out.count("\n") == 5 and "mlp:1" in out
    rows = json.loads(run(capsys, "ablate", tiny_llama, *words, "--together", "--json"))
    assert [(row["part"], row["domain"]) for row in rows] == [
        ("0.1 mlp:1", "prose"),
        ("0.1 mlp:1", "code"),
    ]


def test_map_draws_a_head_on_each_domain(capsys, tiny_llama, domains, tmp_path):
    out = run(capsys, "map", tiny_llama, "1.2", *domains, "--length", 12, "--hide-first",
              "--picture", tmp_path / "map.svg")  # fmt: skip
    assert "prose: " in out and "code: " in out
    assert (tmp_path / "map.svg").read_text().startswith("<svg")


def test_toy_trains_writes_and_draws(capsys, tmp_path):
    (tmp_path / "text.txt").write_text("the cat sat on the mat and he ran at that hat")
    words = [*TOY, "--text", tmp_path / "text.txt", "-o", tmp_path / "toy"]
    out = run(capsys, "toy", *words, "--picture", tmp_path / "toy.png")
    assert "triggers:" in out and "residual norms" in out
    assert (tmp_path / "toy" / "model.safetensors").exists()
    assert (tmp_path / "toy.png").read_bytes().startswith(b"\x89PNG")
    rows = json.loads(run(capsys, "toy", *TOY, "--attention", "relu", "--json"))
    assert [row["step"] for row in rows] == [0, 3]
    out = run(capsys, "toy", *TOY[2:], "--layers", 2, "--without-attention", 0, "--triggers", 0)
    assert "triggers: none" in out and "0.0000" not in out and " - " in out
    assert run(capsys, "toy", *TOY, "--no-bos").count("\n") > 3


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["scan", "MODEL", "--domain", "prose"], "--domain 'prose' is no domain"),
        (["scan", "MODEL", "--domain", "a=TEXT", "--domain", "a=TEXT"], "'a' is there twice"),
        (["scan", "MODEL", "--domain", "a=none.txt"], "cannot be read"),
        (["scan", "MODEL", "--domain", "a=BAD"], 'line 2 has no "text"'),
        (["scan", "MODEL", "--domain", "a=TEXT", "--length", "900"], "a window has 900"),
        (["scan", "MODEL", "--domain", "a=TEXT", "--layers", "9", *SMALL], "layer 9"),
        (["scan", "MODEL", "--domain", "a=TEXT", "--layers", "x"], "--layers 'x'"),
        (["scan", "MODEL", "--domain", "a=TEXT", "--active", "0.8"], "active is 0.8"),
        (["scan", "MODEL", "--domain", "a=TEXT", "-o", "TEXT"], "is a file"),
        (["scan", "MODEL", "--domain", "a=TEXT", "--picture", "x.gif"], "no .png or .svg"),
        (["scan", "MODEL", "--domain", "a=TEXT", "-o", "TEXT/x"], "lies in a file"),
        (["toy", "-o", "TEXT/x"], "lies in a file"),
        (["scan", "EMPTY", "--domain", "a=TEXT"], "no causal language model"),
        (["scan", "ADAPTER", "--domain", "a=TEXT"], "is an adapter"),
        (["scan", "MODEL", "--domain", "a=DEEP"], 'line 1 has no "text"'),
        (["scan", "MODEL", "--domain", "a=HALF"], "line 3 has half a character"),
        (["ablate", "missing", "--domain", "a=TEXT", "--parts", "0.1", "--seed", "-1"], "d is -1"),
        (["ablate", "missing", "--domain", "a=TEXT", "--parts", "0.1, 0.1"], "0.1 twice"),
        (["scan", "missing", "--domain", "a=TEXT"], "'missing'"),
        (["ablate", "MODEL", "--domain", "a=TEXT", "--parts", "head"], "'head' is no part"),
        (["ablate", "MODEL", "--domain", "a=TEXT", "--parts", "9.0", *SMALL], "has no 9.0"),
        (["map", "MODEL", "mlp:1", "--domain", "a=TEXT", "--picture", "x.png"], "is no head"),
        (["map", "MODEL", "0.9", "--domain", "a=TEXT", "--picture", "x.png"], "no head 9"),
        (["map", "MODEL", "9.0", "--domain", "a=TEXT", "--picture", "x.png"], "layer 9"),
        (["toy", "--text", "none.txt"], "cannot be read.*name a file that can be read"),
        (["toy", "--layers", "0"], "layers is 0"),
        (["toy", "--triggers", "50"], "50 of 64 characters"),
        (["toy", "--without-attention", "7"], r"layers \[7\]"),
    ],
)
def test_bad_input_is_told(words, told, tiny_llama, tmp_path, monkeypatch):
    from zeitgeist.errors import ZeitgeistError

    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text("the cat sat on a mat and the dog ran to it " * 8)
    (tmp_path / "bad.jsonl").write_text('{"text": "a"}\n{"words": "b"}\n')
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n\n{"text": "\\ud800"}\n')
    for name in ("empty", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    places = {"DEEP": "deep.jsonl", "HALF": "half.jsonl"}
    places |= {"EMPTY": "./empty", "ADAPTER": "./adapter"}
    places |= {"MODEL": tiny_llama, "TEXT": "text.txt", "BAD": "bad.jsonl"}
    given = []
    for word in words:
        for name, place in places.items():
            word = word.replace(name, str(place))
        given.append(word)
    with pytest.raises(ZeitgeistError, match=told):
        inspect_heads.app(given, exit_on_error=False, result_action="return_value")


def test_an_existing_output_stays(tiny_llama, tmp_path, capsys, domains):
    from zeitgeist.errors import OutputExists

    words = ["scan", tiny_llama, *domains, *SMALL, "-o", tmp_path / "out"]
    run(capsys, *words)
    with pytest.raises(OutputExists):
        run(capsys, *words)
    run(capsys, *words, "--overwrite")


def test_help_imports_no_torch():
    code = "import sys, zeitgeist.cli.inspect_heads; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
def tiny_gpt2(tmp_path, tiny_tokenizer):
    import shutil

    from transformers import GPT2Config, GPT2LMHeadModel

    config = GPT2Config(vocab_size=288, n_positions=16, n_embd=8, n_layer=1, n_head=2)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "gpt2")
    shutil.copytree(tiny_tokenizer, tmp_path / "gpt2", dirs_exist_ok=True)
    return tmp_path / "gpt2"


def test_windows_longer_than_learned_positions_are_refused(capsys, tiny_gpt2, domains, tmp_path):
    from zeitgeist.errors import ZeitgeistError

    for words in (
        ["scan", tiny_gpt2, "--windows", 2],
        ["ablate", tiny_gpt2, "--parts", "0.1"],
        ["map", tiny_gpt2, "0.1", "--picture", tmp_path / "x.png"],
    ):
        with pytest.raises(ZeitgeistError, match=r"has 17 tokens .* reads 16; give a length of 16"):
            run(capsys, *words, *domains, "--length", 17)
