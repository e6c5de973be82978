"""A model is written as a stream: in any order, from any thread, to the same bytes."""

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from zeitgeist.checkpoints import CheckpointWriter, TensorSpec, open_checkpoint, plan_shards
from zeitgeist.errors import CheckpointInvalid, InputInvalid, OutputExists

Tensors = Mapping[str, torch.Tensor]


def some_tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        "bytes": torch.randint(0, 255, (5,), generator=generator, dtype=torch.uint8),
        "a.weight": torch.randn(7, 9, generator=generator).bfloat16(),
        "scale": torch.tensor(2.5),
        "empty": torch.empty(3, 0),
        "mask": torch.randn(11, generator=generator) > 0,
        "b.weight": torch.randn(13, 5, generator=generator, dtype=torch.float64),
        "c.weight": torch.randn(4, 4, 4, generator=generator).half(),
        "d.weight": torch.randn(6, 6, generator=generator).to(torch.float8_e4m3fn),
        "ids": torch.arange(9),
    }


def specs_of(tensors: Tensors) -> list[TensorSpec]:
    return [TensorSpec(name, t.dtype, tuple(t.shape)) for name, t in tensors.items()]


def fill(writer: CheckpointWriter, tensors: Tensors, names: Sequence[str] = ()) -> None:
    for name in names or tensors:
        writer.write(name, 0, tensors[name].reshape(-1))
        writer.done(name)


def contents(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def assert_stored(out: Path, tensors: Tensors) -> None:
    stored = {k: v for file in out.glob("*.safetensors") for k, v in load_file(file).items()}
    assert stored.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (stored[name].dtype, stored[name].shape) == (tensor.dtype, tensor.shape)
        raw = [t.reshape(-1).view(torch.uint8) for t in (stored[name], tensor)]
        assert torch.equal(*raw)


@pytest.fixture
def clean(tmp_path: Path) -> Path:
    """What an uninterrupted writer of `some_tensors` makes, in several shards."""
    out = tmp_path / "clean"
    with CheckpointWriter(out, specs_of(some_tensors()), shard_bytes=200) as writer:
        writer.text("config.json", "{}")
        fill(writer, some_tensors())
    return out


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=25
)
@given(
    shard_bytes=st.sampled_from([1, 100, 200, 10**9]), chunk=st.integers(1, 40), seed=st.integers()
)
def test_the_bytes_do_not_depend_on_order_pieces_or_threads(
    tmp_path: Path, shard_bytes: int, chunk: int, seed: int
) -> None:
    tensors = some_tensors()
    out = [tmp_path / "plain", tmp_path / "pieces"]
    with CheckpointWriter(
        out[0], specs_of(tensors), shard_bytes=shard_bytes, overwrite=True
    ) as writer:
        fill(writer, tensors)
    pieces = [
        (name, start)
        for name, tensor in tensors.items()
        for start in range(0, tensor.numel(), chunk)
    ]
    random.Random(seed).shuffle(pieces)
    with CheckpointWriter(
        out[1], specs_of(tensors), shard_bytes=shard_bytes, overwrite=True
    ) as writer:

        def put(piece: tuple[str, int]) -> None:
            name, start = piece
            writer.write(name, start, tensors[name].reshape(-1)[start : start + chunk])

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(put, pieces))
            list(threads.map(writer.done, tensors))
    assert contents(out[0]) == contents(out[1])
    assert_stored(out[0], tensors)


@pytest.mark.parametrize("shard_bytes", [10**9, 20_000])
def test_what_is_written_opens_in_transformers(
    tiny_llama: Path, tmp_path: Path, shard_bytes: int
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    out = tmp_path / "out"
    with open_checkpoint(tiny_llama) as model:
        with CheckpointWriter(
            out, list(model.specs.values()), shard_bytes=shard_bytes, inputs=[tiny_llama]
        ) as writer:
            for file in model.sidecars:
                writer.copy(file)
            for name in model.specs:
                writer.write(name, 0, model.flat(name))
                writer.done(name)
        with open_checkpoint(out) as written:
            assert all(torch.equal(written.tensor(n), model.tensor(n)) for n in model.specs)
            assert len(written.shards) == (1 if shard_bytes > 20_000 else 4)
    ids = torch.arange(10)[None]
    logits = [AutoModelForCausalLM.from_pretrained(path)(ids).logits for path in (tiny_llama, out)]
    assert torch.equal(*logits)
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_a_tied_model_stays_tied(tiny_llama_tied: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    with (
        open_checkpoint(tiny_llama_tied) as model,
        CheckpointWriter(tmp_path / "out", list(model.specs.values())) as writer,
    ):
        writer.copy(tiny_llama_tied / "config.json")
        fill(writer, {name: model.tensor(name) for name in model.specs})
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


def test_shards_obey_the_limit_and_keep_the_order() -> None:
    specs = specs_of(some_tensors())
    for limit in (1, 50, 200, 1000):
        shards = plan_shards(specs, limit)
        assert sorted(s.name for held in shards.values() for s in held) == sorted(
            s.name for s in specs
        )
        for held in shards.values():
            assert len(held) == 1 or sum(spec.nbytes for spec in held) <= limit
        firsts = [min(specs.index(spec) for spec in held) for held in shards.values()]
        assert firsts == sorted(firsts)


def test_every_tensor_starts_at_a_multiple_of_its_element_size(clean: Path) -> None:
    with open_checkpoint(clean) as model:
        for spec in model.specs.values():
            assert model.location(spec.name)[1] % spec.dtype.itemsize == 0


def test_a_file_beside_the_weights_may_lie_deeper(tmp_path: Path) -> None:
    (tmp_path / "x.jinja").write_text("template")
    with CheckpointWriter(tmp_path / "out", [TensorSpec("a", torch.int8, ())]) as writer:
        writer.copy(tmp_path / "x.jinja", "additional_chat_templates/y.jinja")
        writer.text("README.md", "Grüße")
        for bad in ("../x", "/x", "model.safetensors"):
            with pytest.raises(InputInvalid, match="no name for a file"):
                writer.text(bad, "")
        fill(writer, {"a": torch.tensor(1, dtype=torch.int8)})
    assert (tmp_path / "out/additional_chat_templates/y.jinja").read_text() == "template"
    assert (tmp_path / "out/README.md").read_bytes() == "Grüße".encode()


# What is refused


@pytest.mark.parametrize(
    ("start", "values"),
    [
        (0, torch.zeros(5)),
        (1, torch.zeros(4)),
        (-1, torch.zeros(1)),
        (0, torch.zeros(4, dtype=torch.float64)),
    ],
)
def test_a_piece_that_does_not_fit_is_refused(
    tmp_path: Path, start: int, values: torch.Tensor
) -> None:
    with (
        pytest.raises(InputInvalid, match=r"do not fit into 'a', 4 elements of torch.float32"),
        CheckpointWriter(tmp_path / "out", [TensorSpec("a", torch.float32, (2, 2))]) as writer,
    ):
        writer.write("a", start, values)
    assert not list(tmp_path.iterdir())


def test_an_unfinished_tensor_is_no_output(tmp_path: Path) -> None:
    specs = [TensorSpec(name, torch.float32, (4,)) for name in "ab"]
    with (
        pytest.raises(CheckpointInvalid, match=r"1 of 2 tensors were never finished.*'b'"),
        CheckpointWriter(tmp_path / "out", specs) as writer,
    ):
        fill(writer, {"a": torch.zeros(4)})
        writer.write("b", 0, torch.zeros(4))
    with (
        pytest.raises(CheckpointInvalid, match="3 elements of 'a' were written, not 4"),
        CheckpointWriter(tmp_path / "out", specs) as writer,
    ):
        writer.write("a", 0, torch.zeros(3))
        writer.done("a")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("specs", "message"),
    [
        ([], "no tensors"),
        ([TensorSpec("a", torch.int8, ())] * 2, "'a' is taken"),
        ([TensorSpec("__metadata__", torch.int8, ())], "'__metadata__' is taken"),
        ([TensorSpec("a", torch.complex128, ())], "'a' is of torch.complex128"),
    ],
)
def test_specs_that_no_file_can_hold_are_refused(
    tmp_path: Path, specs: list[TensorSpec], message: str
) -> None:
    with pytest.raises(InputInvalid, match=message):
        CheckpointWriter(tmp_path / "out", specs)


def test_the_refusals_of_a_new_directory_hold(tmp_path: Path, tiny_llama: Path) -> None:
    specs = [TensorSpec("a", torch.int8, ())]
    with (
        pytest.raises(InputInvalid),
        CheckpointWriter(tiny_llama / "x", specs, inputs=[tiny_llama]),
    ):
        pass
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputExists), CheckpointWriter(tmp_path / "out", specs):
        pass


def test_a_page_the_disk_lost_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = Event()

    def full(descriptor: int) -> None:
        tried.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("zeitgeist.checkpoints.writer._flush", full)
    specs = specs_of({"a": torch.zeros(4)})
    with (
        pytest.raises(InputInvalid, match="the disk is full"),
        CheckpointWriter(tmp_path / "out", specs) as writer,
    ):
        fill(writer, {"a": torch.zeros(4)})
        assert tried.wait(10)
    assert not list(tmp_path.iterdir())


def test_a_disk_too_small_is_noticed_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    specs = [TensorSpec("a", torch.float32, (1000,))]
    with (
        pytest.raises(InputInvalid, match=r"needs 4,\d+ bytes and the disk has 1,000 left"),
        CheckpointWriter(tmp_path / "out", specs),
    ):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_fills_up_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(*_: object) -> int:
        raise OSError(number, os.strerror(number))

    with (
        pytest.raises(InputInvalid, match=r"disk is full.*out'.*make room"),
        CheckpointWriter(tmp_path / "out", [TensorSpec("a", torch.int8, (3,))]) as writer,
    ):
        monkeypatch.setattr(os, "pwrite", full)
        writer.write("a", 0, torch.zeros(3, dtype=torch.int8))
    assert not list(tmp_path.iterdir())


def test_a_system_that_writes_less_than_asked_is_asked_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:3], at))
    with CheckpointWriter(tmp_path / "out", specs_of(some_tensors())) as writer:
        fill(writer, some_tensors())
    assert_stored(tmp_path / "out", some_tensors())


# Interruption


def interrupted(out: Path, finished: Sequence[str], *, fingerprint: str = "f") -> None:
    """A run that finishes some tensors, begins another and fails."""
    tensors = some_tensors()
    with (
        pytest.raises(RuntimeError),
        CheckpointWriter(
            out, specs_of(tensors), shard_bytes=200, resume=True, fingerprint=fingerprint
        ) as writer,
    ):
        writer.text("from-the-first-run.txt", "x")
        fill(writer, tensors, finished)
        writer.write("ids", 0, torch.full((4,), -1))
        raise RuntimeError


@pytest.mark.parametrize("finished", [["a.weight"], ["b.weight", "bytes", "empty"]])
def test_a_resumed_run_gives_the_bytes_of_a_clean_one(
    tmp_path: Path, clean: Path, finished: list[str]
) -> None:
    out, tensors = tmp_path / "out", some_tensors()
    interrupted(out, finished)
    assert not out.exists()
    with CheckpointWriter(
        out, specs_of(tensors), shard_bytes=200, resume=True, fingerprint="f"
    ) as writer:
        assert writer.pending == tensors.keys() - set(finished)
        writer.text("config.json", "{}")
        fill(writer, tensors, sorted(writer.pending))
        assert not writer.pending
    assert contents(out) == contents(clean)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["clean", "out"]


def test_a_run_may_be_resumed_twice(tmp_path: Path, clean: Path) -> None:
    out, tensors = tmp_path / "out", some_tensors()
    interrupted(out, ["a.weight"])
    interrupted(out, ["b.weight"])
    with CheckpointWriter(
        out, specs_of(tensors), shard_bytes=200, resume=True, fingerprint="f"
    ) as writer:
        writer.text("config.json", "{}")
        assert {"a.weight", "b.weight"}.isdisjoint(writer.pending)
        fill(writer, tensors, sorted(writer.pending))
    assert contents(out) == contents(clean)


@pytest.mark.parametrize("torn", ['"scale', '"a.wei', ""])
def test_a_torn_last_line_of_the_journal_does_not_count(
    tmp_path: Path, clean: Path, torn: str
) -> None:
    out, tensors = tmp_path / "out", some_tensors()
    interrupted(out, ["b.weight"])
    journal = tmp_path / ".out.partial" / ".journal"
    journal.write_text(journal.read_text() + torn)
    interrupted(out, ["mask"])
    with CheckpointWriter(
        out, specs_of(tensors), shard_bytes=200, resume=True, fingerprint="f"
    ) as writer:
        assert writer.pending == tensors.keys() - {"b.weight", "mask"}
        writer.text("config.json", "{}")
        fill(writer, tensors, sorted(writer.pending))
    assert contents(out) == contents(clean)


def test_the_work_of_another_run_is_not_resumed(tmp_path: Path) -> None:
    out, tensors = tmp_path / "out", some_tensors()
    interrupted(out, ["a.weight"], fingerprint="recipe one")
    for specs, fingerprint in [
        (specs_of(tensors), "recipe two"),
        (specs_of(tensors)[1:], "recipe one"),
    ]:
        with (
            pytest.raises(InputInvalid, match=r"other inputs or another recipe.*without --resume"),
            CheckpointWriter(out, specs, shard_bytes=200, resume=True, fingerprint=fingerprint),
        ):
            pass
    assert (tmp_path / ".out.partial" / ".journal").exists(), "the refusal keeps the work"
    with CheckpointWriter(out, specs_of(tensors)) as writer:
        assert writer.pending == tensors.keys()
        fill(writer, tensors)
    assert_stored(out, tensors)


def test_resuming_nothing_is_a_clean_run(tmp_path: Path, clean: Path) -> None:
    out = tmp_path / "out"
    with CheckpointWriter(out, specs_of(some_tensors()), shard_bytes=200, resume=True) as writer:
        writer.text("config.json", "{}")
        fill(writer, some_tensors())
    assert contents(out) == contents(clean)


KILLED = """
import os, signal, sys, time
from pathlib import Path
import torch
from zeitgeist.checkpoints import CheckpointWriter, TensorSpec
specs = [TensorSpec(name, torch.float32, (1000,)) for name in "abcd"]
with CheckpointWriter(Path(sys.argv[1]), specs, shard_bytes=8000) as writer:
    for i, name in enumerate("abc"):
        writer.write(name, 0, torch.full((500 if name == "c" else 1000,), float(i)))
        if name != "c":
            writer.done(name)
    journal = Path(sys.argv[1]).with_name(".out.partial") / ".journal"
    while journal.read_text().count("\\n") < 3:  # notes follow a moment later
        time.sleep(0.01)
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_run_leaves_no_output_and_can_be_resumed(tmp_path: Path, number: int) -> None:
    out = tmp_path / "out"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(out)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        os.kill(process.pid, number)
    assert not out.exists()
    if number == signal.SIGINT:
        assert not list(tmp_path.iterdir())
    tensors = {name: torch.full((1000,), float(i)) for i, name in enumerate("abcd")}
    with CheckpointWriter(out, specs_of(tensors), shard_bytes=8000, resume=True) as writer:
        assert writer.pending == set("cd" if number == signal.SIGKILL else "abcd")
        fill(writer, tensors, sorted(writer.pending))
    assert_stored(out, tensors)
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_the_index_lists_every_tensor_and_the_size(clean: Path) -> None:
    index = json.loads((clean / "model.safetensors.index.json").read_text())
    tensors = some_tensors()
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"] == {
        "total_parameters": sum(t.numel() for t in tensors.values()),
        "total_size": sum(t.nbytes for t in tensors.values()),
    }
