"""A model directory written as a stream.

All shapes are known before the first value is, so the headers are written first and every file
gets its final size; then any thread may put any piece of any tensor in its place. Nothing is held
in memory, no shard is assembled, and the order of the pieces does not change a byte.

Each finished tensor is forced to the disk and then noted in a journal beside the shards, both
behind the back of whoever writes the next one. A writer that is asked to resume goes on after the
last note.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from threading import Lock
from types import TracebackType
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor

from zeitgeist.checkpoints.atomic import new_directory, remove
from zeitgeist.checkpoints.header import CODES, TensorSpec, build_header
from zeitgeist.errors import CheckpointInvalid, InputInvalid

SHARD_BYTES = 5_000_000_000  # as mergekit
METADATA = {"format": "pt"}  # transformers refuses a file without
JOURNAL = ".journal"

_flush = getattr(os, "fdatasync", os.fsync)  # macOS has no fdatasync


class CheckpointWriter:
    """Write a model directory piece by piece, from any number of threads.

    Parameters
    ----------
    out
        Directory to make; it appears when the ``with`` block ends without an error.
    specs
        The tensors to store. Their order is kept within a shard, except that wider elements come
        first, so that every tensor starts at a multiple of its element's size.
    shard_bytes
        Largest size of a shard's data in bytes; a larger tensor gets a shard of its own.
        Default 5e9, as in mergekit.
    overwrite
        Replace an existing ``out``.
    resume
        Go on from what an interrupted writer of the same ``specs`` and ``fingerprint`` left, and
        leave the unfinished work on failure.
    inputs
        What is read meanwhile; ``out`` may not overlap it.
    fingerprint
        What else determines the values (hashes of inputs, the recipe): a different one refuses
        to resume.

    Raises
    ------
    OutputExists, InputInvalid
        On entering: see `zeitgeist.checkpoints.atomic.check_output`; the disk is too small; the
        work to resume belongs to another run.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "model"
    >>> spec = TensorSpec("model.norm.weight", torch.float32, (2, 2))
    >>> with CheckpointWriter(out, [spec]) as writer:
    ...     writer.text("config.json", '{"model_type": "llama"}')
    ...     writer.write(spec.name, 2, torch.tensor([3.0, 4.0]))
    ...     writer.write(spec.name, 0, torch.tensor([1.0, 2.0]))
    ...     writer.done(spec.name)
    >>> from safetensors.torch import load_file
    >>> load_file(out / "model.safetensors")
    {'model.norm.weight': tensor([[1., 2.], [3., 4.]])}
    """

    def __init__(
        self,
        out: Path,
        specs: Sequence[TensorSpec],
        *,
        shard_bytes: int = SHARD_BYTES,
        overwrite: bool = False,
        resume: bool = False,
        inputs: Sequence[Path] = (),
        fingerprint: str = "",
    ) -> None:
        _check_specs(specs, out)
        self.out = out
        self._specs = {spec.name: spec for spec in specs}
        self._shards = plan_shards(specs, shard_bytes)
        self._resume = resume
        self._directory = new_directory(
            out, overwrite=overwrite, inputs=inputs, keep_partial=resume
        )
        self._heads = {name: build_header(shard, METADATA) for name, shard in self._shards.items()}
        self._identity = _digest(fingerprint, self._heads)
        self._starts: dict[str, tuple[str, int]] = {}
        for file, shard in self._shards.items():
            position = len(self._heads[file])
            for spec in shard:
                self._starts[spec.name] = (file, position)
                position += spec.nbytes
        self._pending = dict.fromkeys(self._specs)
        self._written = dict.fromkeys(self._specs, 0)
        self._unsettled: list[str] = []
        self._lost: BaseException | None = None
        self._lock = Lock()

    @property
    def pending(self) -> frozenset[str]:
        """The tensors still to be written: all of them, unless this run resumes another."""
        with self._lock:
            return frozenset(self._pending)

    def __enter__(self) -> "CheckpointWriter":
        self._partial = self._directory.__enter__()
        self._open_files = contextlib.ExitStack()
        self._settler = ThreadPoolExecutor(1, "settle")
        try:
            self._prepare()
        except BaseException as error:
            self.__exit__(type(error), error, error.__traceback__)
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # What is kept to be resumed needs its notes; what is complete is synchronised as a whole.
        complete = kind is None and not self._pending
        self._settler.shutdown(wait=True, cancel_futures=complete or not self._resume)
        self._open_files.close()
        failed = self._lost
        if kind is None and not complete:
            failed = CheckpointInvalid(
                f"{len(self._pending)} of {len(self._specs)} tensors were never finished, "
                f"such as '{next(iter(self._pending))}'",
                origin=self.out,
            )
        if kind is None and failed is not None:
            self._directory.__exit__(type(failed), failed, None)
            raise failed
        if kind is None:
            (self._partial / JOURNAL).unlink()
        self._directory.__exit__(kind, error, trace)

    def write(self, name: str, start: int, values: Shaped[Tensor, " n"]) -> None:
        """Put a piece of a tensor in its place. Threads may do so at the same time.

        Parameters
        ----------
        name
            The tensor.
        start
            Position of the first value among the tensor's elements, in row-major order.
        values
            Consecutive elements in the dtype of the tensor's spec.

        Raises
        ------
        InputInvalid
            The piece does not fit into the tensor, or the disk is full.
        """
        spec = self._specs[name]
        if values.dtype != spec.dtype or start < 0 or start + len(values) > spec.numel:
            raise InputInvalid(
                f"elements {start} to {start + len(values)} of {values.dtype} do not fit into "
                f"'{name}', {spec.numel} elements of {spec.dtype}",
                origin=self.out,
            )
        if len(values):
            file, position = self._starts[name]
            raw = values.detach().cpu().contiguous().view(torch.uint8)
            _write_at(
                self._descriptors[file],
                raw.numpy().data,
                position + start * spec.dtype.itemsize,
                self.out,
            )
        with self._lock:
            self._written[name] += len(values)

    def done(self, name: str) -> None:
        """Say that a tensor is complete. It is noted, soon, once it is on the disk.

        Raises
        ------
        CheckpointInvalid
            Not all of its elements were written, or some were written twice.
        InputInvalid
            The disk is full.
        """
        spec = self._specs[name]
        if self._written[name] != spec.numel:
            raise CheckpointInvalid(
                f"{self._written[name]} elements of '{name}' were written, not {spec.numel}",
                origin=self.out,
            )
        if self._lost is not None:
            raise self._lost
        with self._lock:
            del self._pending[name]
            self._unsettled.append(name)
        self._settler.submit(self._settle)

    def _settle(self) -> None:
        """Force to the disk, then note, whatever has been finished since the last time."""
        with self._lock:
            names, self._unsettled = self._unsettled, []
        try:
            with _naming_full_disk(self.out):
                for file in {self._starts[name][0] for name in names}:
                    _flush(self._descriptors[file])
                self._journal.write("".join(json.dumps(name) + "\n" for name in names))
                self._journal.flush()
        except BaseException as error:  # the system tells of a lost page only once
            self._lost = self._lost or error

    def text(self, relative_name: str, content: str) -> None:
        """Write a text file (UTF-8) beside the weights."""
        with _naming_full_disk(self.out):
            self._place(relative_name).write_text(content, encoding="utf-8")

    def copy(self, path: Path, relative_name: str | None = None) -> None:
        """Copy a file beside the weights, under its own name unless another is given."""
        with _naming_full_disk(self.out):
            shutil.copyfile(path, self._place(relative_name or path.name))

    def _place(self, relative_name: str) -> Path:
        name = PurePosixPath(relative_name)
        if name.is_absolute() or ".." in name.parts or name.suffix == ".safetensors":
            raise InputInvalid(f"'{relative_name}' is no name for a file beside the weights")
        path = self._partial / name
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _prepare(self) -> None:
        """Lay out the files, or find them laid out by the run that is resumed."""
        finished = self._read_journal()
        with _naming_full_disk(self.out):
            if finished is None:
                self._lay_out()
            else:
                self._keep_only_shards()
                for name in finished:
                    del self._pending[name]
            self._descriptors = {name: self._open(name) for name in self._shards}
            self._journal = self._open_files.enter_context(
                (self._partial / JOURNAL).open("a", encoding="utf-8")
            )
            if finished is None:
                self._journal.write(json.dumps(self._identity) + "\n")
                self._journal.flush()
            if len(self._shards) > 1:
                self.text("model.safetensors.index.json", self._index())

    def _lay_out(self) -> None:
        for entry in self._partial.iterdir():
            remove(entry)
        sizes = {
            name: len(self._heads[name]) + sum(spec.nbytes for spec in shard)
            for name, shard in self._shards.items()
        }
        free = shutil.disk_usage(self._partial).free
        if sum(sizes.values()) > free:
            raise InputInvalid(
                f"the output '{self.out}' needs {sum(sizes.values()):,} bytes and the disk has "
                f"{free:,} left",
                mend="make room or choose another disk",
            )
        for name, size in sizes.items():
            with (self._partial / name).open("wb") as file:
                file.write(self._heads[name])
                file.truncate(size)

    def _open(self, name: str) -> int:
        descriptor = os.open(self._partial / name, os.O_WRONLY)
        self._open_files.callback(os.close, descriptor)
        return descriptor

    def _read_journal(self) -> list[str] | None:
        """The tensors that an earlier run finished; None if there is none to resume."""
        path = self._partial / JOURNAL
        if not path.exists():
            return None
        # A line without its end was being written when the run was interrupted.
        lines = [json.loads(line) for line in path.read_text("utf-8").split("\n")[:-1]]
        if not lines:
            return None
        if lines[0] != self._identity:
            raise InputInvalid(
                f"the unfinished output in '{self._partial}' belongs to a run with other inputs or "
                "another recipe",
                mend="repeat that run, or start this one without --resume",
            )
        return lines[1:]

    def _keep_only_shards(self) -> None:
        """Texts are written again by whoever resumes; cut a torn line off the journal."""
        for entry in self._partial.iterdir():
            if entry.name == JOURNAL:
                whole = entry.read_bytes()
                os.truncate(entry, whole.rfind(b"\n") + 1)
            elif entry.name not in self._shards:
                remove(entry)

    def _index(self) -> str:
        files = {spec.name: file for file, shard in self._shards.items() for spec in shard}
        specs = self._specs.values()
        content: dict[str, Any] = {
            "metadata": {
                "total_parameters": sum(spec.numel for spec in specs),
                "total_size": sum(spec.nbytes for spec in specs),
            },
            "weight_map": {name: files[name] for name in sorted(files)},
        }
        return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def plan_shards(
    specs: Sequence[TensorSpec], shard_bytes: int = SHARD_BYTES
) -> dict[str, list[TensorSpec]]:
    """Which file holds which tensors, in the order of their bytes.

    Parameters
    ----------
    specs
        The tensors, in the order wanted.
    shard_bytes
        Largest size of a file's data in bytes; a larger tensor gets a file of its own.

    Returns
    -------
    dict of str to list of TensorSpec
        By file name: ``model.safetensors`` if one file suffices.

    Examples
    --------
    >>> specs = [TensorSpec(name, torch.float32, (10,)) for name in "abc"]
    >>> {file: len(held) for file, held in plan_shards(specs, 80).items()}
    {'model-00001-of-00002.safetensors': 2, 'model-00002-of-00002.safetensors': 1}
    """
    shards: list[list[TensorSpec]] = [[]]
    size = 0
    for spec in specs:
        if shards[-1] and size + spec.nbytes > shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(spec)
        size += spec.nbytes
    ordered = [sorted(shard, key=lambda spec: -spec.dtype.itemsize) for shard in shards]
    if len(ordered) == 1:
        return {"model.safetensors": ordered[0]}
    return {
        f"model-{i:05d}-of-{len(ordered):05d}.safetensors": shard
        for i, shard in enumerate(ordered, start=1)
    }


def _check_specs(specs: Sequence[TensorSpec], out: Path) -> None:
    seen: set[str] = set()
    for spec in specs:
        if spec.name in seen or spec.name == "__metadata__":
            raise InputInvalid(f"the tensor name '{spec.name}' is taken", origin=out)
        if spec.dtype not in CODES:
            raise InputInvalid(
                f"the tensor '{spec.name}' is of {spec.dtype}, which safetensors cannot store",
                origin=out,
            )
        seen.add(spec.name)
    if not specs:
        raise InputInvalid("there are no tensors to write", origin=out)


def _digest(fingerprint: str, heads: dict[str, bytes]) -> str:
    digest = hashlib.sha256(fingerprint.encode())
    for name, head in heads.items():
        digest.update(b"\0" + name.encode() + b"\0" + head)
    return digest.hexdigest()


def _write_at(descriptor: int, data: memoryview, position: int, out: Path) -> None:
    """Write everything: the system may take less than it was given (2 GB at most on Linux)."""
    with _naming_full_disk(out):
        while data:
            count = os.pwrite(descriptor, data, position)
            data, position = data[count:], position + count


@contextlib.contextmanager
def _naming_full_disk(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise InputInvalid(
            f"the disk is full or its quota used up while writing '{out}' ({error.strerror})",
            mend="make room or choose another disk",
        ) from None
