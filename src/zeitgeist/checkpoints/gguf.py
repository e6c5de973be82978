"""A GGUF file as an ordinary checkpoint, dequantised once.

GGUF (llama.cpp's format) packs weights in blocks of four to eight bits. Everything here works on
plain tensors, so a file is unpacked once with transformers and kept as safetensors in bfloat16, the
format such models are published in and half the size of float32. What that rounds off is far below
what the packing did: for SmolLM2-135M at Q4_1 it moved the loss on a page of text from 4.5854 to
4.5856 nats a token. Unpacking is the one step here that holds a whole model in memory (transformers
does; SmolLM2-135M peaks at 1.0 GB, Gemma 3 270M at 3.0 GB); everything after it streams.
"""

import io
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import xxhash
from tqdm import tqdm

from zeitgeist.checkpoints.cache import cache_directory, made_once
from zeitgeist.errors import CheckpointInvalid, ExtraMissing

MAGIC = b"GGUF"
DTYPE = torch.bfloat16
NOT_THE_ORIGINAL = (
    "It was packed to few bits and unpacked again, so its numbers are not those of the published "
    "checkpoint."
)


def check_readable() -> None:
    """Say what is missing to read GGUF files at all, before anything is downloaded or read.

    Raises
    ------
    ExtraMissing
        The packages that read GGUF are not installed.
    """
    if find_spec("gguf") is None or find_spec("accelerate") is None:
        raise ExtraMissing.named("gguf", "reading a GGUF file")


def _check_magic(file: Path) -> None:
    with file.open("rb") as stream:
        start = stream.read(len(MAGIC))
    if start != MAGIC:
        raise CheckpointInvalid(
            f"the file begins with {start!r} where GGUF begins with {MAGIC!r}",
            origin=file,
            mend="the download may be damaged or a Git LFS pointer",
        )


def dequantise(file: Path, out: Path, *, progress: bool = True) -> None:
    """Write a GGUF file's model and tokenizer into a directory that transformers opens.

    Parameters
    ----------
    file
        The GGUF file.
    out
        An existing directory to fill: safetensors in bfloat16, configuration, and the tokenizer
        with its chat template, padding on the left as batched generation needs.
    progress
        Show progress on a terminal's stderr.

    Raises
    ------
    CheckpointInvalid
        Not a GGUF file, damaged, or of an architecture that transformers cannot unpack.
    ExtraMissing
        The packages that read GGUF are not installed.
    """
    check_readable()
    _check_magic(file)
    # Heavy, and only needed here.
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    place: dict[str, Any] = {"gguf_file": file.name, "local_files_only": True}
    disable = None if progress else True
    with (
        _bars(progress),
        tqdm(total=3, desc=f"{file.name}: tokenizer", unit="step", disable=disable) as bar,
        _unreadable(file),
    ):
        tokenizer = AutoTokenizer.from_pretrained(file.parent, padding_side="left", **place)
        bar.update()
        bar.set_description(f"{file.name}: weights")
        # Without dequantize=True transformers 5 keeps a quantiser attached and refuses to save.
        model = AutoModelForCausalLM.from_pretrained(
            file.parent, dtype=DTYPE, quantization_config=GgufConfig(dequantize=True), **place
        )
        bar.update()
        bar.set_description(f"{file.name}: writing")
        model.config._name_or_path = ""
        # GGUF does not say it and transformers puts 1e30, which no caller can truncate to.
        tokenizer.model_max_length = model.config.get_text_config().max_position_embeddings
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
        bar.update()
    _forget(out / "tokenizer_config.json", "is_local", "local_files_only", "name_or_path")
    _forget(out / "config.json", "_model_name_or_path", "_name_or_path")
    for written in out.glob("*.safetensors"):
        written.chmod(0o644)  # safetensors makes them private, the rest of the directory is not


def converted(file: Path, *, progress: bool = True) -> Path:
    """The cached, dequantised checkpoint of a GGUF file.

    Parameters
    ----------
    file
        The GGUF file. Its content, not its name, decides whether the cache has it.
    progress
        Show progress on a terminal's stderr.

    Returns
    -------
    Path
        Directory in the cache; see :func:`dequantise`.
    """
    check_readable()
    _check_magic(file)
    digest = _digest(file, progress)

    def make(new: Path) -> None:
        dequantise(file, new, progress=progress)
        (new / "README.md").write_text(
            "---\nlibrary_name: transformers\n---\n\n"
            f"# {file.stem}\n\nUnpacked from `{file.name}` (xxh3-128 `{digest}`) to "
            f"{str(DTYPE).removeprefix('torch.')}. {NOT_THE_ORIGINAL} Its licence is that of the "
            "file it came from.\n",
            encoding="utf-8",
        )

    return made_once(cache_directory() / "gguf" / f"{file.stem}-{digest}", make, progress=progress)


def _digest(file: Path, progress: bool) -> str:
    state = xxhash.xxh3_128()
    with (
        file.open("rb") as stream,
        tqdm(
            total=file.stat().st_size,
            desc=f"hashing {file.name}",
            unit="B",
            unit_scale=True,
            leave=False,
            delay=1.0,
            disable=None if progress else True,
        ) as bar,
    ):
        while block := stream.read(1 << 22):
            state.update(block)
            bar.update(len(block))
    return state.hexdigest()


def _forget(file: Path, *keys: str) -> None:
    """Drop what transformers notes about this machine's paths from a JSON file."""
    kept = {k: v for k, v in json.loads(file.read_text("utf-8")).items() if k not in keys}
    file.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


@contextmanager
def _unreadable(file: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, LookupError, RuntimeError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()
        raise CheckpointInvalid(
            f"transformers cannot unpack this file ({reason[0] if reason else repr(error)})",
            origin=file,
            mend="it may be damaged or of an unsupported architecture; a file split in parts must "
            "be joined with llama.cpp's gguf-split --merge",
        ) from error


@contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """Let transformers draw its bars only where ours are drawn; not all of them can be asked."""
    if progress and sys.stderr.isatty():
        yield
    else:
        with redirect_stderr(io.StringIO()):
            yield
