"""The experts of the merging demo: trained once, kept in the cache, scored once.

What an expert depends on (the base's weights, its examples token by token, the settings) is in the
name of its directory, so that any change makes a new one and no stale expert is ever used.
"""

import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import transformers
from xxhash import xxh3_128

import zeitgeist
from zeitgeist.checkpoints import cache_directory, open_checkpoint
from zeitgeist.checkpoints.cache import made_once
from zeitgeist.studies.language_scores import Scores
from zeitgeist.studies.language_tasks import Task, encode, split
from zeitgeist.training import Example, LoraSettings, best_device, best_dtype, finetune_lora


@dataclass(frozen=True)
class Base:
    """The parent of all experts: how it is named, where it lies, what its weights are."""

    reference: str
    path: Path
    fingerprint: str
    tokenizer: Any

    @property
    def pad(self) -> int:
        """Token id to fill batches with."""
        return int(self.tokenizer.pad_token_id or 0)


@dataclass(frozen=True)
class Expert:
    """One trained adapter. ``seconds`` is what training took when it was made."""

    task: str
    path: Path
    losses: tuple[float, ...]
    seconds: float
    cached: bool


def open_base(reference: str, path: Path) -> Base:
    """Read what identifies a base, and its tokenizer."""
    with open_checkpoint(path) as checkpoint:
        hashes = checkpoint.fingerprint(progress=False)
    tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True)
    return Base(reference, path, _digest(hashes), tokenizer)


def train_expert(
    base: Base,
    task: Task,
    *,
    lora: LoraSettings,
    test_items: int,
    fresh: bool = False,
    progress: bool | None = None,
) -> Expert:
    """The expert of a task, from the cache unless it is not there or ``fresh``.

    Parameters
    ----------
    base
        What to train on.
    task
        What to learn; its ``steps`` replace those of ``lora``.
    lora
        How.
    test_items
        How many items are kept from the expert.
    fresh
        Train again.
    progress
        Show a bar on stderr; None: when it is a terminal.
    """
    settings = replace(lora, steps=task.steps)
    drawn = split(
        task, train=settings.steps * settings.batch_size, test=test_items, seed=settings.seed
    )
    examples = [encode(base.tokenizer, task, item) for item in drawn.train]
    key = {
        "base": base.fingerprint,
        "examples": _digest([(e.prompt, e.answer) for e in examples]),
        "settings": asdict(settings),
        "version": zeitgeist.__version__,
        **_numerics(),
    }
    place = cache_directory() / "experts" / f"{task.slug}-{_digest(key)[:16]}"
    if fresh and place.is_dir():
        shutil.rmtree(place)
    cached = place.is_dir()

    def make(new: Path) -> None:
        done = finetune_lora(
            base.path,
            examples,
            new,
            settings=settings,
            base_reference=base.reference,
            pad=base.pad,
            title=f"fine-tune {task.slug}",
            progress=progress,
        )
        record = {"losses": done.losses, "seconds": done.seconds, "made_from": key}
        (new / "training.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")

    made_once(place, make)
    record = json.loads((place / "training.json").read_text(encoding="utf-8"))
    return Expert(task.slug, place, tuple(record["losses"]), record["seconds"], cached)


def cached_scores(
    base: Base,
    adapter: Path | None,
    sets: Mapping[str, Sequence[Example]],
    compute: Callable[[], Scores],
    *,
    fresh: bool = False,
) -> Scores:
    """Scores of the base or of an expert, from the cache where they are there."""
    items = {name: [(e.prompt, e.answer) for e in each] for name, each in sets.items()}
    weights = "" if adapter is None else _bytes_digest(adapter / "adapter_model.safetensors")
    key = {
        "base": base.fingerprint,
        "adapter": weights,
        "items": _digest(items),
        "version": zeitgeist.__version__,
        **_numerics(),
    }
    place = cache_directory() / "scores" / _digest(key)[:16]
    if fresh and place.is_dir():
        shutil.rmtree(place)

    def make(new: Path) -> None:
        text = json.dumps(asdict(compute()))
        (new / "scores.json").write_text(text + "\n", encoding="utf-8")

    made_once(place, make)
    return Scores(**json.loads((place / "scores.json").read_text(encoding="utf-8")))


def _numerics() -> dict[str, str]:
    """What rounding depends on."""
    device = best_device()
    return {
        "device": device.type,
        "dtype": str(best_dtype(device)),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _digest(value: object) -> str:
    return xxh3_128(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _bytes_digest(path: Path) -> str:
    return xxh3_128(path.read_bytes()).hexdigest()
