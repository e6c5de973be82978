"""The header of a safetensors file, read without trust.

A safetensors file is ``N`` (unsigned 64-bit, little endian), ``N`` bytes of JSON, then the data.
The JSON maps each tensor's name to ``{"dtype", "shape", "data_offsets": [begin, end]}``, offsets
counted from the end of the header, and may carry a map of strings under ``__metadata__``. The
format (https://huggingface.co/docs/safetensors) demands that the tensors fill the data exactly:
no overlap, no hole, nothing beyond. Each violation is its own error, naming file and tensor.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

LONGEST_HEADER = 100_000_000  # bytes; the limit of the reference implementation

DTYPES: Mapping[str, torch.dtype] = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
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
