"""The command line as a whole: quick to answer, one sentence for every failure."""

import json
import subprocess
import sys

import pytest

import zeitgeist
from zeitgeist.cli import main

HEAVY = ("torch", "numpy", "numba", "transformers", "safetensors", "pydantic", "yaml", "peft")

IMPORTS = """
import json, sys
from zeitgeist.cli import main
try:
    main(sys.argv[1:])
except SystemExit as leaving:
    assert not leaving.code
print("MODULES", json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["list"], ["list", "--json"], ["--version"], ["merge", "--help"],
     ["merge", "sweep", "--help"], ["models", "--help"], ["reproduce", "--help"],
     ["report", "--help"]],
    ids=" ".join,
)  # fmt: skip
def test_what_must_be_quick_imports_nothing_heavy(arguments):
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, *arguments], capture_output=True, text=True, check=True
    )
    said, _, modules = done.stdout.rpartition("MODULES")
    assert said.strip() and done.stderr == ""
    assert not set(HEAVY) & set(json.loads(modules))


def test_it_is_a_command_and_a_module():
    import shutil
    from pathlib import Path

    command = shutil.which("zeitgeist", path=str(Path(sys.executable).parent))
    assert command is not None
    for start in ([command], [sys.executable, "-m", "zeitgeist"]):
        done = subprocess.run([*start, "show", "nothing"], capture_output=True, text=True)
        assert done.returncode == 2 and done.stdout == ""
        assert done.stderr.startswith("zeitgeist: no system is called 'nothing'")
        assert done.stderr.count("\n") == 1


def test_a_reader_who_leaves_is_no_error():
    command = f"{sys.executable} -m zeitgeist list | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # it may have been quicker than the reader


def test_a_merge_prints_its_report_and_nothing_else(tiny_family, tmp_path):
    base, expert = tiny_family.base, tiny_family.experts[0]
    words = ["--method", "ties", "--base", base, "--expert", expert, "-o", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-m", "zeitgeist", "merge", *words, "--json"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(done.stdout)["out"] == str(tmp_path / "out")
    assert done.stderr == ""  # progress is for terminals
    assert (tmp_path / "out" / "model.safetensors").is_file()


def leaving(*arguments):
    with pytest.raises(SystemExit) as left:
        main(arguments)
    return left.value.code


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["frobnicate"], "Unknown command"),
        (["list", "--arae", "x"], "Unknown option"),
        (["show"], "requires an argument"),
        (["merge", "--threads", "many", "x.yaml"], "many"),
    ],
)
def test_a_mistyped_command_is_one_line_and_exit_code_2(arguments, said, capsys):
    assert leaving(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("zeitgeist: ") and err.count("\n") == 1
    assert said in err


def fail_with(monkeypatch, error):
    from zeitgeist import catalogue

    def failing(slug):
        raise error

    monkeypatch.setattr(catalogue, "find", failing)


def test_what_nobody_foresaw_is_one_line_too(monkeypatch, capsys):
    fail_with(monkeypatch, PermissionError(13, "Permission denied", "/root\n/x"))
    assert leaving("show", "knots") == 2
    out, err = capsys.readouterr()
    assert out == "" and err.count("\n") == 1 and "--debug" in err
    assert err.startswith("zeitgeist: PermissionError: [Errno 13] Permission denied")


def test_ctrl_c_is_no_traceback(monkeypatch, capsys):
    fail_with(monkeypatch, KeyboardInterrupt())
    assert leaving("show", "knots") == 130
    assert capsys.readouterr().err == "zeitgeist: interrupted\n"


@pytest.mark.parametrize("error", [RuntimeError("why"), KeyboardInterrupt()])
def test_debug_shows_the_traceback(error, monkeypatch):
    fail_with(monkeypatch, error)
    with pytest.raises(type(error)):
        main(["show", "knots", "--debug"])


def test_debug_shows_the_traceback_of_a_mistake():
    done = subprocess.run(
        [sys.executable, "-m", "zeitgeist", "merge", "no.yaml", "--debug"],
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "Traceback" in done.stderr and "there is no recipe 'no.yaml'" in done.stderr


def test_the_version_is_the_package_s(capsys):
    with pytest.raises(SystemExit) as left:
        main(["--version"])
    assert not left.value.code
    assert capsys.readouterr().out.strip() == zeitgeist.__version__
