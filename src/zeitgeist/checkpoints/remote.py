"""A model on the hub, known from its headers alone.

The hub serves the first bytes of a file, and a safetensors file begins with its header: names,
shapes and dtypes of a model of any size cost a few requests. What can be wrong with a merge is
mostly found there, before gigabytes are downloaded.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import huggingface_hub
from huggingface_hub.utils._safetensors import SafetensorsFileMetadata
from jaxtyping import Shaped
from torch import Tensor

from zeitgeist.checkpoints.header import DTYPES, Header, TensorSpec
from zeitgeist.checkpoints.layout import refuse_quantised
from zeitgeist.checkpoints.reader import Checkpoint, open_checkpoint
from zeitgeist.checkpoints.reference import resolve, unreachable
from zeitgeist.errors import CheckpointInvalid, ReferenceUnresolved


class RemoteCheckpoint(Checkpoint):
    """A model whose values are not here: everything a header says is known, nothing else."""

    def read(self, name: str, start: int, out: Shaped[Tensor, " n"]) -> None:
        """Refused: there are no values."""
        raise self._absent(name)

    def flat(self, name: str) -> Shaped[Tensor, " numel"]:
        """Refused: there are no values."""
        raise self._absent(name)

    def _absent(self, name: str) -> CheckpointInvalid:
        return CheckpointInvalid(
            f"the values of '{name}' have not been downloaded",
            origin=self.path,
            mend=f"zeitgeist models pull {self.path}",
        )

    def _same_bytes(self, one: TensorSpec, other: TensorSpec) -> bool:
        # Unread; the configuration says that they are tied.
        return (one.dtype, one.shape) == (other.dtype, other.shape)


def open_headers(reference: str) -> Checkpoint:
    """Open a model without downloading its weights: from disk if it is there, else from the hub.

    Parameters
    ----------
    reference
        As for `resolve`. Adapters are small: they are no matter for this function.

    Raises
    ------
    ReferenceUnresolved
        Nothing of that name, or the hub cannot be reached.
    CheckpointInvalid
        A dtype that is not known here, or a quantised model.
    """
    scheme, _, name = reference.partition(":")
    if scheme != "hub" or is_cached(name):
        return open_checkpoint(resolve(reference))
    repository, _, revision = name.partition("@")
    try:
        config = json.loads(
            Path(
                huggingface_hub.hf_hub_download(
                    repository, "config.json", revision=revision or None
                )
            ).read_text(encoding="utf-8")
        )
        found = huggingface_hub.get_safetensors_metadata(repository, revision=revision or None)
    except Exception as error:
        # The hub's errors have no common root, and those of its network library none at all.
        raise unreachable(reference, repository, revision, error) from error
    place = Path(reference)
    refuse_quantised(config, place)
    headers = {
        file: _header(place / file, told) for file, told in sorted(found.files_metadata.items())
    }
    return RemoteCheckpoint(place, config, headers, ())


def is_cached(name: str) -> bool:
    """Whether a model of the hub lies in the local cache, whole."""
    repository, _, revision = name.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            repository, revision=revision or None, local_files_only=True
        )
    except Exception:  # the ways of not being there have no common root
        return False
    return any(Path(found).glob("*.safetensors"))


def is_remote_adapter(reference: str) -> bool:
    """Whether a repository on the hub holds an adapter."""
    scheme, _, name = reference.partition(":")
    if scheme != "hub" or is_cached(name):
        return False
    repository, _, revision = name.partition("@")
    try:
        return huggingface_hub.file_exists(
            repository, "adapter_config.json", revision=revision or None
        )
    except Exception as error:
        raise unreachable(reference, repository, revision, error) from error


def _header(path: Path, told: SafetensorsFileMetadata) -> Header:
    specs, spans = {}, {}
    unknown: Mapping[str, str] = {
        name: info.dtype for name, info in told.tensors.items() if info.dtype not in DTYPES
    }
    if unknown:
        name, code = next(iter(unknown.items()))
        raise CheckpointInvalid(
            f"tensor '{name}' has dtype {code!r}, which is not known here",
            origin=path,
            mend="dequantise the model first",
        )
    for name, info in told.tensors.items():
        specs[name] = TensorSpec(name, DTYPES[info.dtype], tuple(info.shape))
        spans[name] = (info.data_offsets[0], info.data_offsets[1])
    if not specs:
        raise ReferenceUnresolved(f"{str(path)!r} holds no tensor", mend="name another revision")
    return Header(path, specs, spans, dict(told.metadata))
