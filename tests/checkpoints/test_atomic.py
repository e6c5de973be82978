"""A directory appears complete or not at all."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from zeitgeist.checkpoints import atomic, check_output, new_directory
from zeitgeist.errors import InputInvalid, OutputExists


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def earlier(out: Path, content: str = "old") -> Path:
    out.mkdir(parents=True)
    (out / "config.json").write_text(content)
    return out


def test_the_directory_appears_at_the_end_and_nothing_else_remains(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "er" / "out"
    with new_directory(out) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "file").write_text("x")
        assert not out.exists()
        assert partial.parent == out.parent
    assert (out / "sub" / "file").read_text() == "x"
    assert names(out.parent) == ["out"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    with pytest.raises(error), new_directory(tmp_path / "out") as partial:
        (partial / "file").write_text("x")
        raise error
    assert names(tmp_path) == []


def test_an_error_keeps_the_partial_work_if_asked(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), new_directory(tmp_path / "out", keep_partial=True) as one:
        (one / "file").write_text("x")
        raise RuntimeError
    assert not (tmp_path / "out").exists()
    with new_directory(tmp_path / "out", keep_partial=True) as two:
        assert names(two) == ["file"]
    assert names(tmp_path) == ["out"]


def test_stale_partial_work_is_discarded_unless_asked_for(tmp_path: Path) -> None:
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "stale").write_text("x")
    (tmp_path / ".out.lock").write_text("")
    with new_directory(tmp_path / "out") as partial:
        assert names(partial) == []
    assert names(tmp_path) == ["out"]


def test_an_existing_output_is_refused(tmp_path: Path) -> None:
    out = earlier(tmp_path / "out")
    with pytest.raises(OutputExists, match=r"already there.*--overwrite"), new_directory(out):
        pytest.fail("the refusal comes before the work")
    assert (out / "config.json").read_text() == "old"


@pytest.mark.parametrize("exchange", [True, False])
def test_overwriting_replaces_the_whole_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exchange: bool
) -> None:
    if not exchange:
        monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    out = earlier(tmp_path / "out")
    with new_directory(out, overwrite=True) as partial:
        (partial / "new").write_text("new")
        assert (out / "config.json").read_text() == "old"
    assert names(out) == ["new"]
    assert names(tmp_path) == ["out"]


def test_a_failed_overwrite_keeps_the_old_output(tmp_path: Path) -> None:
    out = earlier(tmp_path / "out")
    with pytest.raises(RuntimeError), new_directory(out, overwrite=True):
        raise RuntimeError
    assert (out / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


def test_a_failed_second_rename_puts_the_old_output_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = earlier(tmp_path / "out")
    monkeypatch.setattr(atomic, "_exchange", lambda one, other: False)
    rename = Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self.name == ".out.partial":
            raise OSError("no")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"), new_directory(out, overwrite=True):
        pass
    assert (out / "config.json").read_text() == "old"


@pytest.mark.skipif(sys.platform != "linux", reason="exchanging two names needs renameat2")
def test_there_is_no_moment_without_an_output(tmp_path: Path) -> None:
    out = earlier(tmp_path / "out", "0")
    stop, missing = threading.Event(), []

    def watch() -> None:
        while not stop.is_set():
            if not out.exists():
                missing.append(1)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        for i in range(20):
            with new_directory(out, overwrite=True) as partial:
                (partial / "config.json").write_text(str(i))
    finally:
        stop.set()
        watcher.join()
    assert not missing


def test_an_output_that_another_tool_made_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with pytest.raises(OutputExists), new_directory(out):
        earlier(out)
    assert (out / "config.json").read_text() == "old"
    assert names(tmp_path) == ["out"]


@pytest.mark.parametrize(
    ("out", "relation"),
    [
        ("models/base", "is the input"),
        ("models/base/merged", "lies in the input"),
        ("models", "contains the input"),
        ("models/x/../base", "is the input"),
        ("link", "is the input"),
        ("blobs", "contains the input"),
    ],
)
def test_an_output_that_overlaps_an_input_is_refused(
    tmp_path: Path, out: str, relation: str
) -> None:
    base = earlier(tmp_path / "models" / "base")
    (tmp_path / "link").symlink_to(base)
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "0af3").write_text("weights")
    (base / "model.safetensors").symlink_to(tmp_path / "blobs" / "0af3")
    with pytest.raises(InputInvalid, match=relation):
        check_output(tmp_path / out, overwrite=True, inputs=[base])
    assert (base / "config.json").exists()


def test_the_hidden_working_directory_is_no_input_either(tmp_path: Path) -> None:
    work = earlier(tmp_path / ".out.partial")
    with pytest.raises(InputInvalid), new_directory(tmp_path / "out", inputs=[work]):
        pass
    assert (work / "config.json").exists()


def test_only_what_looks_like_an_earlier_output_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = tmp_path / "documents"
    documents.mkdir()
    check_output(documents, overwrite=True)
    (documents / "thesis.txt").write_text("years of work")
    with pytest.raises(InputInvalid, match="no earlier output"):
        check_output(documents, overwrite=True)
    check_output(documents, overwrite=True, replaces=["*.txt"])
    (documents / "config.json").write_text("{}")
    check_output(documents, overwrite=True)
    monkeypatch.chdir(documents)
    with pytest.raises(InputInvalid, match="working directory"):
        check_output(Path(), overwrite=True)
    with pytest.raises(InputInvalid, match="is a file"):
        check_output(documents / "thesis.txt", overwrite=True)


def test_a_link_to_a_directory_is_followed(tmp_path: Path) -> None:
    earlier(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with new_directory(tmp_path / "link", overwrite=True) as partial:
        (partial / "new").write_text("")
    assert names(tmp_path / "real") == ["new"]
    assert (tmp_path / "link").is_symlink()


def test_two_writers_of_one_output_exclude_each_other(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with new_directory(out) as partial:
        (partial / "file").write_text("first")
        with pytest.raises(OutputExists, match="another process"), new_directory(out):
            pytest.fail("the second writer must not start")
        with new_directory(tmp_path / "elsewhere"):
            pass
    assert (out / "file").read_text() == "first"
    assert names(tmp_path) == ["elsewhere", "out"]


SLEEPER = """
import sys, time
from pathlib import Path
from zeitgeist.checkpoints.atomic import new_directory
with new_directory(Path(sys.argv[1])) as partial:
    (partial / "file").write_text("x")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_killed_writer_leaves_no_output_and_no_lock(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", SLEEPER, str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, number)
    assert not out.exists()
    if number == signal.SIGINT:
        assert names(tmp_path) == []
    with new_directory(out) as partial:
        assert names(partial) == []
    assert names(tmp_path) == ["out"]
