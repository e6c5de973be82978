"""A model on disk, opened without reading it.

Opening costs the headers only. A tensor asked for is a view of the file: the system reads its
pages when they are touched and may drop them again, so a model larger than the memory is no
problem. Everything that is wrong with the files is found on opening, before any work, and named.
"""

import mmap
import os
import re
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, BinaryIO

import torch
import xxhash
from jaxtyping import Shaped
from torch import Tensor
from tqdm import tqdm

from zeitgeist.checkpoints.header import UNSOUND, Header, TensorSpec, read_header
from zeitgeist.checkpoints.layout import (
    MISSING_CONFIG,
    config_parts,
    inside,
    json_object,
    refuse_packed,
    refuse_quantised,
    sidecars,
    weight_map,
)
from zeitgeist.errors import CheckpointInvalid

CHUNK = 1 << 20  # elements or bytes looked at together

# What a model may call the matrix that a tied output head shares.
HEADS = ("lm_head.weight", "embed_out.weight", "output_projection.weight", "proj_out.weight")
EMBEDDINGS = re.compile(
    r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared|embeddings)\.weight$"
)


class Checkpoint:
    """A transformers model directory, opened lazily by `open_checkpoint`.

    Attributes
    ----------
    path
        The directory.
    config
        Its ``config.json``.
    specs
        Every stored tensor, in file order. A tied head is no tensor of its own.
    tied
        Names that mean another tensor: alias to stored name.
    shards
        The safetensors files.
    sidecars
        The files that must travel with the weights: configuration, tokenizer, chat template,
        licence. Not the model card, which describes these weights and no others.
    notes
        Peculiarities a person should hear of, one sentence each.
    """

    def __init__(
        self,
        path: Path,
        config: dict[str, Any],
        headers: Mapping[str, Header],
        sidecars: tuple[Path, ...],
    ) -> None:
        self.path = path
        self.config = config
        self.sidecars = sidecars
        self.shards = tuple(header.path for header in headers.values())
        self.notes: tuple[str, ...] = ()
        self._maps: dict[Path, mmap.mmap] = {}
        self._files: dict[Path, BinaryIO] = {}
        self._scratch = threading.local()
        self._spans = {
            name: (header.path, *span)
            for header in headers.values()
            for name, span in header.spans.items()
        }
        stored = {name: spec for header in headers.values() for name, spec in header.specs.items()}
        self.tied: Mapping[str, str] = MappingProxyType(self._find_tied(stored))
        self.specs: Mapping[str, TensorSpec] = MappingProxyType(
            {name: spec for name, spec in stored.items() if name not in self.tied}
        )

    def __enter__(self) -> "Checkpoint":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the files. Tensors already handed out stay valid and keep theirs open."""
        self._maps.clear()
        for file in self._files.values():
            file.close()
        self._files.clear()

    def spec(self, name: str) -> TensorSpec:
        """Dtype and shape of a tensor, by its own name or by an alias."""
        return self.specs[self._stored(name)]

    def tensor(self, name: str) -> Shaped[Tensor, "..."]:
        """A tensor as a view of the file, in its stored dtype and shape.

        Parameters
        ----------
        name
            Its name or an alias of it.

        Returns
        -------
        Tensor
            No copy: pages are read when touched. Writing to it changes memory, never the file.

        Raises
        ------
        CheckpointInvalid
            There is no such tensor.
        """
        return self.flat(name).view(self.spec(name).shape)

    def flat(self, name: str) -> Shaped[Tensor, " numel"]:
        """The elements of a tensor in row-major order, as a view of the file; see `tensor`."""
        spec = self.spec(name)
        path, start, _ = self._spans[spec.name]
        if spec.numel == 0:
            return torch.empty(0, dtype=spec.dtype)
        data = self._map(path)
        if start % spec.dtype.itemsize == 0:
            return torch.frombuffer(data, dtype=spec.dtype, count=spec.numel, offset=start)
        # The format allows odd positions, the processor may not: the only case of a copy.
        raw = torch.frombuffer(data, dtype=torch.uint8, count=spec.nbytes, offset=start)
        return raw.clone().view(spec.dtype)

    def read(self, name: str, start: int, out: Shaped[Tensor, " n"]) -> None:
        """Copy elements from ``start`` on into ``out``, converted to its dtype.

        Where a tensor is gone through once, this is faster than `flat`: the file is read in
        large pieces instead of page by page as each is touched. Threads may read at once.

        Parameters
        ----------
        name
            The tensor or an alias of it.
        start
            Position of the first element in row-major order.
        out
            A contiguous tensor to fill.

        Raises
        ------
        CheckpointInvalid
            There is no such tensor, or its file has become shorter.
        """
        spec = self.spec(name)
        path, offset, _ = self._spans[spec.name]
        held = out
        if out.dtype != spec.dtype:
            held = self._buffer(out.numel() * spec.dtype.itemsize).view(spec.dtype)
        bytes_out = (
            held.detach().view(torch.uint8).numpy().data if held.numel() else memoryview(b"")
        )
        position, filled = offset + start * spec.dtype.itemsize, 0
        while filled < len(bytes_out):
            got = os.preadv(self._descriptor(path), [bytes_out[filled:]], position + filled)
            if got == 0:
                raise CheckpointInvalid(
                    f"the file ends within the tensor '{name}'",
                    origin=path,
                    mend="it was shortened while it was being read: restore it and start again",
                )
            filled += got
        if held is not out:
            out.copy_(held)

    def _buffer(self, size: int) -> Shaped[Tensor, " bytes"]:
        """Scratch memory of the calling thread."""
        held: Tensor | None = getattr(self._scratch, "bytes", None)
        if held is None or held.numel() < size:
            held = self._scratch.bytes = torch.empty(size, dtype=torch.uint8)
        return held[:size]

    def _descriptor(self, path: Path) -> int:
        if path not in self._files:
            opened = path.open("rb", buffering=0)
            # Threads may come here together; the one that loses must not close the winner's file,
            # whose number is in use and would be given to the next file that anybody opens.
            if self._files.setdefault(path, opened) is not opened:
                opened.close()
        return self._files[path].fileno()

    def location(self, name: str) -> tuple[Path, int, int]:
        """The file of a tensor and the byte positions in it where the tensor starts and stops."""
        return self._spans[self._stored(name)]

    def check_values(self, *, progress: bool = False) -> None:
        """Read every value and refuse a checkpoint that holds NaN or infinity.

        Parameters
        ----------
        progress
            Show a progress bar on stderr where that is a terminal.

        Raises
        ------
        CheckpointInvalid
            Naming the file, the tensor and how many values are bad.
        """
        total = sum(spec.nbytes for spec in self.specs.values())
        with _bar("checking values", total, progress) as bar:
            for spec in self.specs.values():
                if spec.dtype.is_floating_point or spec.dtype.is_complex:
                    self._check_values_of(spec)
                bar.update(spec.nbytes)

    def fingerprint(self, *, progress: bool = False) -> dict[str, str]:
        """The xxh3-128 hash of each shard's bytes, by file name, in hexadecimal.

        Parameters
        ----------
        progress
            Show a progress bar on stderr where that is a terminal.
        """
        total = sum(path.stat().st_size for path in self.shards)
        hashes = {}
        with _bar("hashing", total, progress) as bar:
            for path in self.shards:
                digest = xxhash.xxh3_128()
                with path.open("rb", buffering=0) as file:
                    while chunk := file.read(CHUNK):
                        digest.update(chunk)
                        bar.update(len(chunk))
                hashes[path.relative_to(self.path).as_posix()] = digest.hexdigest()
        return hashes

    def _stored(self, name: str) -> str:
        stored = self.tied.get(name, name)
        if stored not in self.specs:
            raise CheckpointInvalid(f"there is no tensor '{name}'", origin=self.path)
        return stored

    def _map(self, path: Path) -> mmap.mmap:
        """A private, writable mapping: torch warns of a read-only one, and rightly so."""
        if path not in self._maps:
            # Without reserving: else the system refuses a file larger than memory and swap.
            flags = mmap.MAP_PRIVATE | (0x4000 if sys.platform == "linux" else 0)
            with path.open("rb") as file:
                self._maps[path] = mmap.mmap(
                    file.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE
                )
        return self._maps[path]

    def _check_values_of(self, spec: TensorSpec) -> None:
        nan = infinite = 0
        for chunk in self.flat(spec.name).split(CHUNK):
            values = chunk if chunk.dtype.itemsize > 1 else chunk.float()
            if not torch.isfinite(values).all():
                nan += int(torch.isnan(values).sum())
                infinite += int(torch.isinf(values).sum())
        if nan or infinite:
            raise CheckpointInvalid(
                f"the tensor '{spec.name}' holds {nan} NaN and {infinite} infinite values "
                f"of {spec.numel}",
                origin=self._spans[spec.name][0],
                mend="the training that made it diverged, or the file is damaged; use another one",
            )

    def _find_tied(self, stored: Mapping[str, TensorSpec]) -> dict[str, str]:
        """Aliases, from the configuration and from what is in the files.

        A head that the configuration ties but that is stored nevertheless is an alias if it equals
        the embedding byte for byte. If it does not, it is a tensor of its own: the configuration
        is wrong about it, and transformers loads such a model untied as well.
        """
        embedding = _input_embedding(stored, self.config)
        if embedding is None:
            return {}
        heads = [
            name
            for name, spec in stored.items()
            if name.endswith(HEADS) and spec.shape == embedding.shape
        ]
        if not _is_tied(self.config, head_stored=bool(heads)):
            return {}
        tied = {}
        for head in heads or [HEADS[0]]:
            if head in stored and not self._same_bytes(stored[head], embedding):
                self.notes += (
                    f"the configuration ties '{head}' to '{embedding.name}' but the files hold "
                    "different values for them: they are treated as two tensors",
                )
            else:
                tied[head] = embedding.name
        return tied

    def _same_bytes(self, one: TensorSpec, other: TensorSpec) -> bool:
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        (path, start, stop), (other_path, other_start, _) = (
            self._spans[one.name],
            self._spans[other.name],
        )
        data, other_data = self._map(path), self._map(other_path)
        return all(
            data[i : min(i + CHUNK, stop)]
            == other_data[i - start + other_start : min(i + CHUNK, stop) - start + other_start]
            for i in range(start, stop, CHUNK)
        )


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a model directory lazily, having checked that its files are safe and fit together.

    Parameters
    ----------
    path
        A local directory in the layout of transformers: ``config.json`` and either
        ``model.safetensors`` or shards with ``model.safetensors.index.json``. Where both are
        there the single file counts, as it does for transformers.

    Returns
    -------
    Checkpoint
        Usable as a context manager. Peak memory: the headers.

    Raises
    ------
    CheckpointInvalid
        The directory holds no model, or one that is unsafe, damaged or packed. The message names
        the file, the tensor, and what to do.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> folder = Path(tempfile.mkdtemp())
    >>> _ = (folder / "config.json").write_text('{"model_type": "llama"}')
    >>> save_file({"model.norm.weight": torch.arange(3.0)}, folder / "model.safetensors")
    >>> with open_checkpoint(folder) as model:
    ...     model.tensor("model.norm.weight")
    tensor([0., 1., 2.])
    """
    given, path = path, Path(path).resolve()
    if not path.is_dir():
        raise CheckpointInvalid(
            f"'{given}' is {'a file' if path.exists() else 'not there'}", mend=MISSING_CONFIG
        )
    names = weight_map(path)
    if not (path / "config.json").exists():
        raise CheckpointInvalid("there is no config.json", origin=path, mend=MISSING_CONFIG)
    config = json_object(inside(path, "config.json", path))
    refuse_quantised(config, path)
    headers: dict[str, Header] = {}
    for name in names:
        headers[name] = read_header(inside(path, name, path))
    _match(names, headers)
    for header in headers.values():
        refuse_packed(header)
    return Checkpoint(path, config, headers, sidecars(path))


def _match(names: Mapping[str, frozenset[str] | None], headers: Mapping[str, Header]) -> None:
    """Refuse shards that hold something else than the index says."""
    owner: dict[str, Path] = {}
    for header in headers.values():
        for name in header.specs:
            if name in owner:
                raise CheckpointInvalid(
                    f"the tensor '{name}' is also in '{owner[name].name}'",
                    origin=header.path,
                    mend=UNSOUND,
                )
            owner[name] = header.path
    for file, promised in names.items():
        if promised is None:
            continue
        header = headers[file]
        if absent := promised - header.specs.keys():
            raise CheckpointInvalid(
                f"the tensor '{min(absent)}' is not in this shard, where the index puts it",
                origin=header.path,
                mend=UNSOUND,
            )
        if extra := header.specs.keys() - promised:
            raise CheckpointInvalid(
                f"the tensor '{min(extra)}' is in this shard, but the index does not say so",
                origin=header.path,
                mend=UNSOUND,
            )


def _is_tied(config: Mapping[str, Any], *, head_stored: bool) -> bool:
    """Whether the output head shares the embedding, as far as the configuration tells.

    It tells nothing where the model's class ties by default (Gemma). Then a model with a head of
    which none is stored can only be tied.
    """
    architectures = str(config.get("architectures") or "LM")
    if not head_stored and not re.search("LM|Generation", architectures):
        return False
    for part in config_parts(config):
        if "tie_word_embeddings" in part:
            return part["tie_word_embeddings"] is True
    return not head_stored


def _input_embedding(
    stored: Mapping[str, TensorSpec], config: Mapping[str, Any]
) -> TensorSpec | None:
    """The matrix of word embeddings, by its name and, if several fit, by the vocabulary's size."""
    found = [s for s in stored.values() if EMBEDDINGS.search(s.name) and len(s.shape) == 2]
    sizes = [part["vocab_size"] for part in config_parts(config) if "vocab_size" in part]
    return next((spec for spec in found if spec.shape[0] in sizes), found[0] if found else None)


def _bar(what: str, total: int, progress: bool) -> "tqdm[Any]":
    """A bar in bytes per second; shown on a terminal only."""
    return tqdm(
        desc=what,
        total=total,
        unit="B",
        unit_scale=True,
        disable=None if progress else True,
        file=sys.stderr,
    )
