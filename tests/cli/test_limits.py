"""``zeitgeist limits``: every verb, for people and for programs, on real files, and bad input."""

import json
import subprocess
import sys

import numpy as np
import pytest
from scipy import sparse

from zeitgeist.cli import limits


@pytest.fixture(autouse=True)
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    x = np.random.default_rng(0).integers(0, 2, size=(40, 12))
    x[:, 0] = 1
    x[7] = x[3]
    np.save("x.npy", x)
    sparse.save_npz("x.npz", sparse.csr_matrix(x))
    (tmp_path / "texts.txt").write_text("the cat sat\na dog ran\nthe cat sat down\n")
    (tmp_path / "words.md").write_text("the cat")
    (tmp_path / "broken.npy").write_bytes(b"no array")
    (tmp_path / "there.png").write_bytes(b"mine")
    (tmp_path / "empty.npy").write_bytes(b"")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:50])


def run(capsys, *words):
    limits.app([str(word) for word in words], exit_on_error=False, result_action="return_value")
    return capsys.readouterr().out


def test_solve_says_the_pair_and_why(capsys):
    out = run(capsys, "solve", "x.npy", "--threshold", "0.9")
    assert "msd: 3 and 7, cosine 1" in out and "compared 780 pairs" in out
    assert "there is such a pair: yes" in out and "as a fraction 1 (squared)" in out
    told = [json.loads(run(capsys, "solve", name, "--json")) for name in ("x.npy", "x.npz")]
    assert told[0] == told[1] and told[0]["certificate"]["fraction"] == "1"
    out = run(capsys, "solve", "texts.txt")
    assert "0: the cat sat\n2: the cat sat down\n" in out
    out = run(capsys, "solve", "texts.txt", "--other", "texts.txt", "--problem", "lsd")
    assert "0: the cat sat\n1: a dog ran\n" in out


def test_check_prints_every_construction_and_precision(capsys):
    out = run(capsys, "check", "--vectors", 64, "--length", 16)
    assert out.count("100.0%") >= 6 and "float16" in out
    rows = json.loads(run(capsys, "check", "--vectors", 64, "--length", 16, "--json"))
    assert len(rows) == 12


def test_curve_prints_a_row_per_mixer_and_draws(capsys, tmp_path):
    words = ["curve", "--sizes", "64,128", "--mixers", "exact,window", "--repeats", 1]
    out = run(capsys, *words, "-o", "curve.png")
    assert "exact" in out and "2/2" in out
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert len(json.loads(run(capsys, *words, "--json"))) == 4


def test_probe_prints_who_finds_the_nearest(capsys):
    out = run(capsys, "probe", "x.npy", "--window", 8)
    assert "standard deviations" in out and "linear" in out
    assert json.loads(run(capsys, "probe", "x.npz", "--window", 8, "--json"))["items"] == 40


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["solve", "missing.npy"], "cannot be read"),
        (["solve", "broken.npy"], "cannot be read"),
        (["solve", "words.md"], "'.md' is no kind of file"),
        (["solve", "x.npy", "--block", "0"], "block is 0"),
        (["solve", "x.npy", "--other", "texts.txt"], "length 12|no vectors"),
        (["check", "--vectors", "2"], "2 vectors"),
        (["curve", "--sizes", "64;128"], "--sizes '64;128'"),
        (["curve", "--sizes", "64", "--mixers", "magic"], "no mixer 'magic'"),
        (["curve", "-o", "curve.gif"], "curve.gif"),
        (["curve", "-o", "there.png"], "already there"),
        (["curve", "-o", "x.npy/curve.png"], "lies in a file"),
        (["curve", "--repeats", "0"], "--repeats is 0"),
        (["solve", "cut.npz"], "cannot be read"),
        (["solve", "empty.npy"], "cannot be read"),
        (["probe", "x.npy", "--window", "0"], "window is 0"),
        (["probe", "texts.txt"], "no vectors"),
    ],
)
def test_bad_input_is_told(words, told):
    from zeitgeist.errors import ZeitgeistError

    with pytest.raises(ZeitgeistError, match=told):
        limits.app(words, exit_on_error=False, result_action="return_value")


def test_help_imports_no_torch():
    code = "import sys, zeitgeist.cli.limits; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
