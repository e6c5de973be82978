"""Which files make a model directory, and which are refused.

Pickles are refused because opening one can run code; names in an index, and links, that lead out
of the directory because an archive can hold any; packed weights because adding two of them is
meaningless.
"""

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from zeitgeist.checkpoints.header import DAMAGED, UNSOUND, Header
from zeitgeist.errors import CheckpointInvalid

SIDECAR_SUFFIXES = frozenset({".json", ".jinja", ".model", ".py", ".tiktoken", ".txt"})
SIDECAR_LARGEST = 200_000_000  # bytes; the largest tokenizers take some tens of millions
NOT_SIDECARS = re.compile(
    r".*\.index\.json|(trainer_state|adapter_config|(all|eval|train|predict|test)_results)\.json"
)
NOTICES = re.compile(r"(LICEN[SC]E|NOTICE|USE_POLICY|COPYING)", re.IGNORECASE)

# Codes, scales and tables of bitsandbytes, GPTQ, AWQ, compressed-tensors, MXFP4 and FP8 blocks.
PACKED = re.compile(
    r"\.(qweight|qzeros|weight_packed|weight_scale(_inv)?|absmax|quant_map|nested_quant_map"
    r"|quant_state\..*|SCB|.*_proj_blocks)$"
)
DEQUANTISE = (
    "use the unquantised model, or load it with transformers, call .dequantize() and save it"
)
MISSING_CONFIG = "give the directory that save_pretrained wrote, with its config.json"


def weight_map(path: Path) -> dict[str, frozenset[str] | None]:
    """The weight files of a directory, each with the tensors the index promises in it."""
    if (path / "model.safetensors").is_symlink() or (path / "model.safetensors").exists():
        return {"model.safetensors": None}
    index = path / "model.safetensors.index.json"
    if not index.exists():
        raise _no_weights(path)
    entries = json_object(inside(path, index.name, path)).get("weight_map")
    if not isinstance(entries, dict) or not entries:
        raise CheckpointInvalid("there is no weight_map", origin=index, mend=UNSOUND)
    tensors: dict[str, set[str]] = {}
    for tensor, file in entries.items():
        if not isinstance(file, str) or not file:
            raise CheckpointInvalid(
                f"the tensor '{tensor}' is in the file {file!r}, which is no file name",
                origin=index,
                mend=UNSOUND,
            )
        tensors.setdefault(file, set()).add(tensor)
    for file, promised in tensors.items():
        if not inside(path, file, index, tensor=min(promised)).is_file():
            raise CheckpointInvalid(
                f"the shard '{file}' with the tensor '{min(promised)}' is not there",
                origin=index,
                mend="obtain the missing file",
            )
    return {file: frozenset(tensors[file]) for file in sorted(tensors)}


def sidecars(path: Path) -> tuple[Path, ...]:
    """The small files that must travel with the weights: configuration, tokenizer, licence…"""
    entries = [*path.iterdir(), *path.glob("additional_chat_templates/*.jinja")]
    kept = [
        entry
        for entry in sorted(entries)
        if (entry.suffix in SIDECAR_SUFFIXES or NOTICES.match(entry.name))
        and not NOT_SIDECARS.fullmatch(entry.name)
        and entry.is_file()
        and entry.stat().st_size <= SIDECAR_LARGEST
    ]
    return tuple(inside(path, entry.relative_to(path).as_posix(), path) for entry in kept)


def refuse_quantised(config: Mapping[str, Any], path: Path) -> None:
    """Refuse a model whose configuration says that its weights are quantised."""
    for part in config_parts(config):
        for key in ("quantization_config", "compression_config"):
            if part.get(key):
                described = part[key] if isinstance(part[key], dict) else {}
                method = described.get("quant_method", "unknown")
                raise CheckpointInvalid(
                    f"the weights are quantised ('{key}' with quant_method '{method}')",
                    origin=path / "config.json",
                    mend=DEQUANTISE,
                )


def refuse_packed(header: Header) -> None:
    """Refuse quantised weights whose configuration does not say that they are."""
    for spec in header.specs.values():
        number = spec.dtype.is_floating_point or spec.dtype.is_complex
        if PACKED.search(spec.name) or (spec.name.endswith(".weight") and not number):
            raise CheckpointInvalid(
                f"the tensor '{spec.name}' ({spec.dtype}) is a packed or quantised weight",
                origin=header.path,
                mend=DEQUANTISE,
            )


def config_parts(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """A configuration and those nested in it (a model with a vision tower has several)."""
    yield config
    for key, value in config.items():
        if isinstance(value, dict) and key.endswith("_config"):
            yield value


def inside(directory: Path, name: str, origin: Path, *, tensor: str = "") -> Path:
    """The path of a named file, refused if the name or a link leads out of the directory.

    The hub cache is the one layout whose links lead out by design: ``snapshots/REVISION/FILE``
    points into the ``blobs`` beside ``snapshots``.
    """
    what = f"the file name '{name}'" + (f" of the tensor '{tensor}'" if tensor else "")
    path = directory / name
    if "\\" in name or "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
        raise CheckpointInvalid(f"{what} leaves the directory", origin=origin, mend=UNSOUND)
    try:
        real = path.resolve()
    except (OSError, RuntimeError):  # RuntimeError is how Python 3.11 reports a loop of links
        raise CheckpointInvalid(f"{what} is a loop of links", origin=origin, mend=UNSOUND) from None
    homes = [directory]
    if directory.parent.name == "snapshots":
        homes.append(directory.parent.parent / "blobs")
    if not any(real.is_relative_to(home) for home in homes):
        raise CheckpointInvalid(
            f"{what} is a link that leaves the directory, to '{real}'",
            origin=origin,
            mend="put the file itself there",
        )
    return path


def json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise CheckpointInvalid(f"no JSON ({error})", origin=path, mend=DAMAGED) from None
    if not isinstance(value, dict):
        raise CheckpointInvalid("no JSON object", origin=path, mend=DAMAGED)
    return value


def _no_weights(path: Path) -> CheckpointInvalid:
    """The error for a directory without safetensors: what it holds instead, and the mend."""
    if (path / "adapter_config.json").exists():
        return CheckpointInvalid(
            "this is an adapter, not a model",
            origin=path,
            mend="give it where an adapter is expected, or the model it was trained on here",
        )
    if pickles := _pickles(path):
        return CheckpointInvalid(
            f"the weights '{pickles[0].name}' are a pickle, which can run code when it is opened",
            origin=path,
            mend=f"convert them once with: {_conversion(path, pickles)}",
        )
    if others := sorted(path.glob("*.safetensors")):
        return CheckpointInvalid(
            f"there is neither model.safetensors nor an index, but '{others[0].name}'",
            origin=path,
            mend="name a single file model.safetensors; shards need model.safetensors.index.json",
        )
    found = sorted(entry.name for entry in path.iterdir())
    return CheckpointInvalid(
        f"there are no weights, only {', '.join(found[:8]) or 'an empty directory'}",
        origin=path,
        mend="give a directory with model.safetensors",
    )


def _pickles(path: Path) -> list[Path]:
    """Pickled weights: shards of the usual name, else whatever is no state of a trainer."""
    if usual := sorted(path.glob("pytorch_model*.bin")):
        return usual
    trainer = ("optimizer", "scheduler", "rng_state", "training_args", "scaler")
    return sorted(
        entry
        for entry in path.iterdir()
        if entry.suffix in {".bin", ".pt", ".pth", ".ckpt"} and not entry.name.startswith(trainer)
    )


def _conversion(path: Path, pickles: list[Path]) -> str:
    """A shell line that turns pickles into safetensors without running what is in them."""
    files = json.dumps([str(file) for file in pickles], ensure_ascii=False)
    out = json.dumps(str(path / "model.safetensors"), ensure_ascii=False)
    code = (
        "import torch; from safetensors.torch import save_file; save_file("
        f"{{k: v.contiguous().clone() for f in {files} for k, v in "
        'torch.load(f, map_location="cpu", weights_only=True).items()}, '
        f'{out}, {{"format": "pt"}})'
    )
    return f"python -c {shlex.quote(code)}"
