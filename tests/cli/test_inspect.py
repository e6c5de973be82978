"""``zeitgeist inspect``: for people and for programs, and bad input."""

import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from zeitgeist.activations import capture as activations
from zeitgeist.cli import inspect


def run(capsys, *words):
    inspect.app([str(word) for word in words], exit_on_error=False, result_action="return_value")
    return capsys.readouterr().out


def test_sites_lists_shapes_and_bytes_without_weights(capsys, tiny_llama, tmp_path):
    (tmp_path / "config.json").write_bytes((tiny_llama / "config.json").read_bytes())
    out = run(capsys, "sites", tmp_path, "--tokens", 16)
    assert "resid_post" in out and "model.layers.0.self_attn.o_proj in" in out
    rows = json.loads(run(capsys, "sites", tmp_path, "--tokens", 16, "--batch", 3, "--json"))
    sizes = {row["site"]: row for row in rows}
    assert sizes["resid_pre"]["shape"][:2] == [3, 16]
    assert sizes["pattern"]["shape"][2:] == [16, 16]


def test_a_model_alone_gives_one_page(capsys, tiny_llama, tmp_path):
    (tmp_path / "texts.txt").write_text("the cat sat on the big red mat\n" * 9)
    words = [tiny_llama, "--sentence", "the cat", "--texts", tmp_path / "texts.txt"]
    words += ["--windows", 2, "--length", 24]
    out = run(capsys, *words, "--picture", tmp_path / "lens.svg")
    assert "LlamaForCausalLM (llama)" in out and "next token of 'the cat'" in out
    assert (tmp_path / "lens.svg").read_text().startswith("<svg")
    told = json.loads(run(capsys, *words, "--json"))
    assert [row["layer"] for row in told["layers"]] == list(range(told["model"]["layers"]))
    assert told["layers"][-1]["kl"] == 0


def test_capture_writes_a_row_per_text(capsys, tiny_llama, tmp_path):
    texts = ["the cat sat", "a", "the dog ran and ran to the mat"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    lines = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (tmp_path / "texts.jsonl").write_text(lines)
    words = ["--sites", "resid_post,z", "--layers", "1", "--batch-size", 2]
    stored = []
    for name in ("texts.txt", "texts.jsonl"):
        place = tmp_path / f"{name}.safetensors"
        out = run(capsys, "capture", tiny_llama, tmp_path / name, *words, "-o", place)
        assert "resid_post.1" in out
        stored.append(load_file(place))
    assert stored[0]["resid_post.1"].shape[:2] == (3, 1)
    assert torch.equal(stored[0]["z.1"], stored[1]["z.1"])
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(tiny_llama)
    for row, text in enumerate(texts):
        with activations(model, "resid_post", layers=[1], positions="last") as acts:
            model(**tokenizer(text, return_tensors="pt", return_token_type_ids=False))
        own = acts["resid_post", 1][0]
        assert (stored[0]["resid_post.1"][row] - own).abs().max() < 0.02 * own.abs().max()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["MODEL", "--picture", "lens.gif"], r"no \.png or \.svg"),
        (["MODEL", "--picture", "TEXTS.svg"], "already there"),
        (["MODEL", "--texts", "EMPTY/x.txt"], "cannot be read"),
        (["MODEL", "--texts", "TEXTS"], "a window has 128"),
        (["MODEL", "--texts", "TEXTS", "--sentence", ""], "has no tokens"),
        (["capture", "MODEL", "TEXTS", "-o", "acts.pt"], "no .safetensors"),
        (["capture", "MODEL", "EMPTY/x.txt", "-o", "a.safetensors"], "cannot be read"),
        (["capture", "MODEL", "MODEL", "-o", "a.safetensors"], r"no \.txt or \.jsonl"),
        (["capture", "MODEL", "TEXTS", "-o", "TEXTS.safetensors"], "already there.*--overwrite"),
        (["capture", "MODEL", "TEXTS", "-o", "TEXTS/a.safetensors"], "can be no file"),
        (["capture", "MODEL", "TEXTS", "-o", "DIR.safetensors", "--overwrite"], "can be no file"),
        (["capture", "MODEL", "TEXTS", "-o", "a.safetensors", "--batch-size", "0"], "size is 0"),
        (["capture", "MODEL", "TEXTS", "-o", "a.safetensors", "--batch-size", "-1"], "size is -1"),
        (["capture", "MODEL", "TEXTS", "-o", "a.safetensors", "--sites", " ,"], "names none"),
        (["capture", "MODEL", "DEEP", "-o", "a.safetensors"], 'line 1 has no "text"'),
        (["capture", "MODEL", "HALF", "-o", "a.safetensors"], "jsonl: line 3 has half a char"),
        (["MODEL", "--picture", "DIR.svg"], "is a directory"),
        (["EMPTY"], "no causal language model"),
        (["ADAPTER"], "is an adapter"),
        (["capture", "MODEL", "TEXTS", "-o", "a.safetensors", "--layers", "2-1"], "'2-1'"),
        (["capture", "MODEL", "TEXTS", "-o", "a.safetensors", "--layers", "9"], "layer 9"),
        (["capture", "MODEL", "TEXTS", "-o", "a.safetensors", "--sites", "zz"], "no site 'zz'"),
        (["capture", "MODEL", "TEXTS", "-o", "a.safetensors", "--sites", "pattern"], "as wide"),
        (["capture", "MODEL", "TEXTS", "-o", "a.safetensors", "--positions", "50"], "51 are"),
        (["sites", "missing"], "'missing'"),
        (["sites", "MODEL", "--tokens", "0"], "1 x 0 tokens"),
        (["sites", "EMPTY"], "give a causal transformers model"),
    ],
)
def test_bad_input_is_told(words, told, tiny_llama, tmp_path, monkeypatch):
    from zeitgeist.errors import ZeitgeistError

    monkeypatch.chdir(tmp_path)
    texts = tmp_path / "texts.txt"
    texts.write_text("the cat sat")
    (tmp_path / "texts.txt.safetensors").touch()
    (tmp_path / "texts.txt.svg").touch()
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    (tmp_path / "half.jsonl").write_text('{"text": "a"}\n\n{"text": "\\ud800"}\n')
    for name in ("dir.safetensors", "dir.svg", "adapter"):
        (tmp_path / name).mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    places = {"DEEP": "deep.jsonl", "HALF": "half.jsonl", "DIR": "dir", "ADAPTER": "./adapter"}
    places |= {"MODEL": tiny_llama, "EMPTY": tmp_path, "TEXTS": texts}
    given = []
    for word in words:
        for name, place in places.items():
            word = word.replace(name, str(place))
        given.append(word)
    with pytest.raises(ZeitgeistError, match=told):
        inspect.app(given, exit_on_error=False, result_action="return_value")


def test_help_imports_no_torch():
    code = "import sys, zeitgeist.cli.inspect; print('torch' in sys.modules)"
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


def test_texts_longer_than_learned_positions_are_refused(capsys, tiny_gpt2, tmp_path):
    from zeitgeist.errors import ZeitgeistError

    texts = tmp_path / "texts.txt"
    texts.write_text("a\n" + "the cat sat on a mat " * 40)
    with pytest.raises(
        ZeitgeistError, match=r"window has 17 tokens .* reads 16; give a length of 16"
    ):
        run(capsys, tiny_gpt2, "--texts", texts, "--length", 17, "--sentence", "cat")
    with pytest.raises(ZeitgeistError, match=r"--sentence: text 1 has .* reads 16"):
        run(capsys, tiny_gpt2, "--texts", texts, "--length", 16, "--sentence", "cat " * 40)
    with pytest.raises(ZeitgeistError, match=r"texts.txt: text 2 has .* reads 16"):
        run(capsys, "capture", tiny_gpt2, texts, "-o", tmp_path / "a.safetensors")


def test_every_line_but_an_empty_last_one_is_a_row(capsys, tiny_llama, tmp_path):
    (tmp_path / "t.txt").write_bytes("\ufeffa\u2028b\r\nc\x85d\n".encode())
    place = tmp_path / "new" / "directory" / "a.safetensors"
    run(capsys, "capture", tiny_llama, tmp_path / "t.txt", "--sites", "z,", "-o", place)
    assert load_file(place)["z.0"].shape[0] == 2
    (tmp_path / "t.jsonl").write_bytes('\ufeff{"text": "a"}\r\n\r\n{"text": "b"}\r\n'.encode())
    words = ["--sites", "z", "--overwrite", "-o", place]
    run(capsys, "capture", tiny_llama, tmp_path / "t.jsonl", *words)
    assert load_file(place)["z.0"].shape[0] == 2


def test_control_characters_are_drawn_quoted():
    from zeitgeist.inspection.lens_charts import _shown

    assert [_shown(word) for word in (" a ", " ", "\x00", "a\x1b", "\ud800")] == [
        "a",
        "' '",
        r"'\x00'",
        r"'a\x1b'",
        r"'\ud800'",
    ]
