"""The header of a safetensors file, read without trust.

A safetensors file is ``N`` (unsigned 64-bit, little endian), ``N`` bytes of JSON, then the data.
The JSON maps each tensor's name to ``{"dtype", "shape", "data_offsets": [begin, end]}``, offsets
counted from the end of the header, and may carry a map of strings under ``__metadata__``. The
format (https://huggingface.co/docs/safetensors) demands that the tensors fill the data exactly:
no overlap, no hole, nothing beyond. Each violation is its own error, naming file and tensor.
"""

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zeitgeist.errors import CheckpointInvalid

LONGEST_HEADER = 100_000_000  # bytes; the limit of the reference implementation

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
    "C64": torch.complex64,
}
CODES: Mapping[torch.dtype, str] = {dtype: code for code, dtype in DTYPES.items()}

DAMAGED = "the file is damaged; obtain it again"
UNSOUND = "obtain the file again from a source you trust, or save it again with safetensors"


@dataclass(frozen=True)
class TensorSpec:
    """What is known of a tensor without reading it.

    Parameters
    ----------
    name
        Its name in the file, e.g. ``model.layers.0.mlp.up_proj.weight``.
    dtype
        Its element type on disk.
    shape
        Its sizes; ``()`` for a scalar.

    Examples
    --------
    >>> TensorSpec("norm.weight", torch.bfloat16, (3, 5)).nbytes
    30
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def numel(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return self.numel * self.dtype.itemsize


@dataclass(frozen=True)
class Header:
    """A checked safetensors header.

    Parameters
    ----------
    path
        The file.
    specs
        Its tensors in the order of their bytes.
    spans
        For each tensor, the absolute byte positions in the file where it starts and stops.
    metadata
        The map of strings under ``__metadata__``.
    """

    path: Path
    specs: Mapping[str, TensorSpec]
    spans: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]


def read_header(path: Path) -> Header:
    """Read and check the header of a safetensors file.

    Parameters
    ----------
    path
        A ``.safetensors`` file.

    Returns
    -------
    Header
        Names, shapes, dtypes and byte positions; no tensor is read.

    Raises
    ------
    CheckpointInvalid
        The file is no sound safetensors file; the message names the file and the tensor.

    Examples
    --------
    >>> import tempfile
    >>> from safetensors.torch import save_file
    >>> path = Path(tempfile.mkdtemp()) / "model.safetensors"
    >>> save_file({"scale": torch.ones(3)}, path)
    >>> read_header(path).specs["scale"]
    TensorSpec(name='scale', dtype=torch.float32, shape=(3,))
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise CheckpointInvalid(
                f"the file has {size} bytes, too few for a safetensors header",
                origin=path,
                mend=DAMAGED,
            )
        if prefix == b"version ":
            raise CheckpointInvalid(
                "this is a Git LFS pointer, not the file itself",
                origin=path,
                mend="fetch the weights with: git lfs pull",
            )
        (length,) = struct.unpack("<Q", prefix)
        if length > LONGEST_HEADER:
            raise CheckpointInvalid(
                f"the header claims {length} bytes, more than the {LONGEST_HEADER} the format "
                "allows",
                origin=path,
                mend=DAMAGED + ", if it is a safetensors file at all",
            )
        if 8 + length > size:
            raise CheckpointInvalid(
                f"the header claims {length} bytes but the file ends after {size}",
                origin=path,
                mend=DAMAGED,
            )
        text = file.read(length)
    return parse_header(text, data_bytes=size - 8 - length, path=path)


def parse_header(text: bytes, *, data_bytes: int, path: Path) -> Header:
    """Check the JSON of a header against the size of the data that follows it.

    Parameters
    ----------
    text
        The JSON, as stored.
    data_bytes
        Size of what follows the header, in bytes.
    path
        Where the header was read, for the messages.

    Returns
    -------
    Header
        As from `read_header`.

    Raises
    ------
    CheckpointInvalid
        As from `read_header`.
    """
    try:
        fields = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except _Repeated as error:
        raise CheckpointInvalid(
            f"the header names '{error}' twice", origin=path, mend=UNSOUND
        ) from None
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointInvalid(
            f"the header is no JSON ({error})", origin=path, mend=DAMAGED
        ) from None
    if not isinstance(fields, dict):
        raise CheckpointInvalid("the header is no JSON object", origin=path, mend=DAMAGED)
    metadata = fields.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointInvalid(
            "the header's '__metadata__' is no map of strings", origin=path, mend=UNSOUND
        )
    tensors = [_tensor(name, field, path) for name, field in fields.items()]
    # Tensors without elements share their position with a neighbour: the end breaks the tie.
    tensors.sort(key=lambda tensor: tensor[1:])
    end, before = 0, ""
    for spec, start, stop in tensors:
        if stop > data_bytes:
            raise CheckpointInvalid(
                f"the tensor '{spec.name}' ends at byte {stop} of the data, of which there are "
                f"only {data_bytes}: the file is truncated",
                origin=path,
                mend=DAMAGED,
            )
        if start < end:
            raise CheckpointInvalid(
                f"the tensor '{spec.name}' overlaps the tensor '{before}'",
                origin=path,
                mend=UNSOUND,
            )
        if start > end:
            raise CheckpointInvalid(
                f"{start - end} bytes before the tensor '{spec.name}' belong to no tensor",
                origin=path,
                mend=UNSOUND,
            )
        end, before = stop, spec.name
    if end != data_bytes:
        raise CheckpointInvalid(
            f"{data_bytes - end} bytes after the last tensor '{before}' belong to no tensor",
            origin=path,
            mend=UNSOUND,
        )
    first = 8 + len(text)
    return Header(
        path=path,
        specs={spec.name: spec for spec, _, _ in tensors},
        spans={spec.name: (first + start, first + stop) for spec, start, stop in tensors},
        metadata=metadata,
    )


def build_header(specs: Sequence[TensorSpec], metadata: Mapping[str, str]) -> bytes:
    """The leading bytes of a file that stores ``specs`` one after the other.

    Parameters
    ----------
    specs
        The tensors in the order of their bytes.
    metadata
        The map of strings for ``__metadata__``; transformers wants ``{"format": "pt"}``.

    Returns
    -------
    bytes
        Length and JSON, padded with spaces so that the data starts at a multiple of 8.

    Examples
    --------
    >>> head = build_header([TensorSpec("scale", torch.float32, (3,))], {})
    >>> parse_header(head[8:], data_bytes=12, path=Path("x")).spans["scale"]
    (72, 84)
    """
    fields: dict[str, Any] = {"__metadata__": dict(metadata)} if metadata else {}
    end = 0
    for spec in specs:
        fields[spec.name] = {
            "dtype": CODES[spec.dtype],
            "shape": list(spec.shape),
            "data_offsets": [end, end + spec.nbytes],
        }
        end += spec.nbytes
    text = json.dumps(fields, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


class _Repeated(Exception):
    """A key that a JSON object holds twice."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    for key, value in pairs:
        if key in seen:
            raise _Repeated(key)
        seen[key] = value
    return seen


def _tensor(name: str, field: object, path: Path) -> tuple[TensorSpec, int, int]:
    """One entry of the header, with the positions of its bytes in the data."""
    where = f"the tensor '{name}'"
    if not isinstance(field, dict) or not {"dtype", "shape", "data_offsets"} <= field.keys():
        raise CheckpointInvalid(
            f"{where} has no dtype, shape and data_offsets", origin=path, mend=UNSOUND
        )
    code, shape, offsets = field["dtype"], field["shape"], field["data_offsets"]
    if not isinstance(code, str) or code not in DTYPES:
        raise CheckpointInvalid(
            f"{where} has the dtype {code!r}, which is none of {', '.join(DTYPES)}",
            origin=path,
            mend="use the model in a plain format: packed formats must be dequantised first",
        )
    if not _is_sizes(shape):
        raise CheckpointInvalid(
            f"{where} has the shape {shape!r}, which is no list of sizes",
            origin=path,
            mend=UNSOUND,
        )
    if not _is_sizes(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise CheckpointInvalid(
            f"{where} has the data_offsets {offsets!r}, which are no [begin, end]",
            origin=path,
            mend=UNSOUND,
        )
    spec = TensorSpec(name, DTYPES[code], tuple(shape))
    if offsets[1] - offsets[0] != spec.nbytes:
        raise CheckpointInvalid(
            f"{where} takes {offsets[1] - offsets[0]} bytes, but {code} of shape "
            f"{tuple(shape)} needs {spec.nbytes}",
            origin=path,
            mend=UNSOUND,
        )
    return spec, offsets[0], offsets[1]


def _is_sizes(value: object) -> bool:
    return isinstance(value, list) and all(
        isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in value
    )
