"""Models on the hub known from headers: against the same model opened from disk."""

import json
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import RepositoryNotFoundError
from huggingface_hub.utils import SafetensorsFileMetadata, SafetensorsRepoMetadata, TensorInfo

from zeitgeist.checkpoints import open_checkpoint
from zeitgeist.checkpoints.remote import open_headers
from zeitgeist.errors import CheckpointInvalid, ReferenceUnresolved
from zeitgeist.merging import check


def metadata_of(directory: Path, dtype: str | None = None) -> SafetensorsRepoMetadata:
    """What the hub answers for a directory, from the files' own headers."""
    files = {}
    for path in sorted(directory.glob("*.safetensors")):
        raw = path.read_bytes()
        size = int.from_bytes(raw[:8], "little")
        told = json.loads(raw[8 : 8 + size])
        tensors = {
            name: TensorInfo(
                dtype=dtype or info["dtype"],
                shape=info["shape"],
                data_offsets=tuple(info["data_offsets"]),
            )
            for name, info in told.items()
            if name != "__metadata__"
        }
        files[path.name] = SafetensorsFileMetadata(metadata={}, tensors=tensors)
    return SafetensorsRepoMetadata(
        metadata=None, sharded=len(files) > 1, weight_map={}, files_metadata=files
    )


@pytest.fixture
def hub(monkeypatch, tiny_family):
    """A hub that serves headers and configurations, and nothing else."""
    models = {"org/base": tiny_family.base} | {
        f"org/expert{i}": expert for i, expert in enumerate(tiny_family.experts)
    }

    def download(repository, filename, revision=None):
        assert filename == "config.json"
        return str(models[repository] / filename)

    def no_snapshot(*_, local_files_only, **__):
        assert local_files_only
        raise FileNotFoundError

    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    monkeypatch.setattr(huggingface_hub, "file_exists", lambda *_, **__: False)
    monkeypatch.setattr(
        huggingface_hub,
        "get_safetensors_metadata",
        lambda repository, revision=None: metadata_of(models[repository]),
    )
    return models


def test_headers_from_the_hub_say_what_the_files_say(hub):
    for name, path in hub.items():
        remote, local = open_headers(f"hub:{name}"), open_checkpoint(path)
        assert dict(remote.specs) == dict(local.specs)
        assert dict(remote.tied) == dict(local.tied)
        assert remote.config == local.config


def test_values_that_are_not_here_are_refused_with_the_command_that_gets_them(hub):
    remote = open_headers("hub:org/base")
    name = next(iter(remote.specs))
    with pytest.raises(CheckpointInvalid, match=r"zeitgeist models pull hub:org/base"):
        remote.read(name, 0, torch.empty(1))
    with pytest.raises(CheckpointInvalid, match="have not been downloaded"):
        remote.tensor(name)


def test_check_downloads_no_weights(hub):
    recipe = {
        "merge_method": "ties",
        "base_model": "hub:org/base",
        "models": [{"model": "hub:org/expert0"}, {"model": "hub:org/expert1"}],
    }
    report, _ = check(recipe)
    assert report.tensors == len(open_checkpoint(hub["org/base"]).specs)
    assert report.kinship == ()
    assert any("only the headers of 'hub:org/expert0'" in note for note in report.notes)


def test_unknown_dtype_and_missing_repository_are_one_sentence(hub, monkeypatch):
    monkeypatch.setattr(
        huggingface_hub,
        "get_safetensors_metadata",
        lambda repository, revision=None: metadata_of(hub[repository], dtype="F4"),
    )
    with pytest.raises(CheckpointInvalid, match=r"dtype 'F4'"):
        open_headers("hub:org/base")

    def missing(*_, **__):
        raise RepositoryNotFoundError.__new__(RepositoryNotFoundError)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", missing)
    with pytest.raises(ReferenceUnresolved, match="is not on the hub"):
        open_headers("hub:org/nothing")
