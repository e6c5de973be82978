"""``zeitgeist inspect``: for people and for programs, and bad input."""

import json
import subprocess
import sys

import pytest

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


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sites", "missing"], "'missing'"),
        (["sites", "MODEL", "--tokens", "0"], "1 x 0 tokens"),
        (["sites", "EMPTY"], "give a causal transformers model"),
    ],
)
def test_bad_input_is_told(words, told, tiny_llama, tmp_path):
    from zeitgeist.errors import ZeitgeistError

    places = {"MODEL": str(tiny_llama), "EMPTY": str(tmp_path)}
    with pytest.raises(ZeitgeistError, match=told):
        given = [places.get(word, word) for word in words]
        inspect.app(given, exit_on_error=False, result_action="return_value")


def test_help_imports_no_torch():
    code = "import sys, zeitgeist.cli.inspect; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
