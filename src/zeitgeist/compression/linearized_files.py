"""A linearized model on disk, beside the base that it leaves as it is.

    lolcats.json        which base (reference and hashes), the recipe, what teaching found
    maps.safetensors    feature maps and gates, float32, by their names in the model
    adapter/            LoRA as peft writes it, once there is one

That is some thousandths of the base's bytes. `save_pretrained` writes the whole model instead.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

from zeitgeist.checkpoints import (
    Checkpoint,
    is_adapter,
    model_card,
    open_checkpoint,
    resolve,
    versions,
)
from zeitgeist.compression.healing import quiet
from zeitgeist.compression.hybrid_models import PREFIX, LinearizedAttention, linearize_model
from zeitgeist.compression.linearize_options import PAPER, LinearizedReport
from zeitgeist.errors import ExtraMissing, InputInvalid, ReferenceUnresolved
from zeitgeist.training import best_device, best_dtype

RECORD, MAPS, ADAPTER = "lolcats.json", "maps.safetensors", "adapter"
SENTENCE = (
    "Nothing shrinks but the cost of a token: all weights of the base stay and maps are added. "
    "The 0.04 B of the paper's table are training tokens, not parameters."
)
_RECIPE = (
    "window",
    "kind",
    "blocks",
    "sinks",
    "feature_map",
    "feature_dim",
    "layers",
)


_SAID_ELSEWHERE = (
    "_name_or_path",
    "architectures",
    "dtype",
    "torch_dtype",
    "transformers_version",
    "use_cache",
)
"""Of a configuration: what does not change what the model computes from its weights."""


@dataclass(frozen=True)
class Base:
    """A softmax model to linearize: how it was named, where it is, what its files hash to."""

    reference: str
    place: Path
    checkpoint: Checkpoint

    @cached_property
    def hashes(self) -> dict[str, str]:
        """xxh3-128 of each shard, and of what the configuration says about computing."""
        config = {k: v for k, v in self.checkpoint.config.items() if k not in _SAID_ELSEWHERE}
        text = json.dumps(config, sort_keys=True)
        return {**self.checkpoint.fingerprint(), "config": xxhash.xxh3_128_hexdigest(text.encode())}


def open_base(reference: str | Path) -> Base:
    """A model that can be linearized, from its configuration alone.

    Raises
    ------
    InputInvalid
        It is an adapter, or linearized already.
    """
    place = resolve(reference)
    if is_small(place) or _is_whole(place):
        raise InputInvalid(
            f"{str(reference)!r} is linearized already", mend="start from its base, or finetune it"
        )
    if is_adapter(place):
        raise InputInvalid(
            f"{str(reference)!r} is an adapter",
            mend="merge it into its base first, then linearize the whole",
        )
    return Base(str(reference), place, open_checkpoint(place))


def is_small(place: Path) -> bool:
    """Whether a directory holds maps that go with a base."""
    return (place / RECORD).is_file()


def _is_whole(place: Path) -> bool:
    config = place / "config.json"
    if not config.is_file():
        return False
    try:
        kind = json.loads(config.read_text(encoding="utf-8")).get("model_type")
    except (ValueError, AttributeError):
        return False  # whoever opens it says what is wrong with it
    return str(kind).startswith(PREFIX)


def learned(model: Any) -> dict[str, Tensor]:
    """The weights that only a linearized model has, by name."""
    return {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if "feature_map" in name or name.endswith("self_attn.gate")
    }


def write_small(place: Path, base: Base, model: Any, facts: Mapping[str, Any]) -> None:
    """Maps, gates and the record."""
    save_file(learned(model), place / MAPS, metadata={"format": "pt"})
    record = {
        "format": 1,
        "base": {"reference": _lasting(base), "hashes": base.hashes},
        "recipe": model.config.lolcats,
        **facts,
    }
    (place / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def _lasting(base: Base) -> str:
    """How to find the base from any working directory."""
    named = base.reference.partition(":")[0] in ("hub", "pypi")
    return base.reference if named else str(base.place.resolve())


def read_record(place: Path) -> dict[str, Any]:
    """What `write_small` noted.

    Raises
    ------
    InputInvalid
        It is none that this version reads.
    """
    try:
        record: dict[str, Any] = json.loads((place / RECORD).read_text(encoding="utf-8"))
        known = record["format"] == 1 and {"reference", "hashes"} <= record["base"].keys()
        if known and (missing := set(_RECIPE) - record["recipe"].keys()):
            raise KeyError(f"the recipe lacks {min(missing)}")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputInvalid(f"{RECORD} cannot be read: {error}", origin=place) from error
    if not known:
        raise InputInvalid(
            f"{RECORD} is of format {record['format']!r}", origin=place, mend="update zeitgeist"
        )
    return record


def base_of(place: Path, base: str = "") -> Base:
    """The base that maps were taught on.

    Parameters
    ----------
    place
        Directory of `write_small`.
    base
        Where the base is now; empty: where it was.

    Raises
    ------
    InputInvalid
        The weights there are others than those the maps were taught on.
    """
    record = read_record(place)
    try:
        found = open_base(base or record["base"]["reference"])
    except ReferenceUnresolved as error:
        raise InputInvalid(
            f"the base of these maps is not to be found: {error}",
            origin=place,
            mend="say where it is with --base",
        ) from error
    if found.hashes != record["base"]["hashes"]:
        raise InputInvalid(
            f"the weights of {found.reference!r} are not those that these maps were taught on",
            origin=place,
            mend="name the right base with --base",
        )
    return found


def open_linearized(
    reference: str | Path, *, base: str = "", adapted: bool = True, dtype: torch.dtype | None = None
) -> Any:
    """A linearized model, whole or as maps beside a base, in evaluation mode.

    Parameters
    ----------
    reference
        Directory that `zeitgeist.compression.linearize` or ``save_pretrained`` wrote, or
        ``hub:org/name``.
    base
        Where the base is, if it was moved.
    adapted
        Fold LoRA into the weights, where there is one.
    dtype
        Of the weights; maps and states stay in float32. None: float32 on a processor, else what
        the device is fastest in.

    Raises
    ------
    InputInvalid
        Not linearized, or the base or the maps are not what they should be.
    """
    place = resolve(reference)
    chosen = dtype or computing_dtype()
    if not is_small(place):
        if not _is_whole(place):
            raise InputInvalid(
                f"{str(reference)!r} is no linearized model",
                mend="make one: zeitgeist linearize transfer",
            )
        return opened(place, chosen)
    record, source = read_record(place), base_of(place, base)
    model = linearize_model(
        opened(source.place, chosen), **{name: record["recipe"][name] for name in _RECIPE}
    )
    model.config.lolcats.update(record["recipe"])
    try:
        maps = load_file(place / MAPS)
    except (OSError, SafetensorError) as error:
        raise InputInvalid(f"{MAPS} cannot be read: {error}", origin=place) from error
    missing = learned(model).keys() ^ maps.keys()
    if missing:
        raise InputInvalid(
            f"{MAPS} and the recipe disagree about {min(missing)!r}",
            origin=place,
            mend="the directory is incomplete: linearize again",
        )
    try:
        model.load_state_dict(maps, strict=False)
    except RuntimeError as error:
        told = str(error).splitlines()[-1].strip()
        raise InputInvalid(f"{MAPS} does not fit the base: {told}", origin=place) from error
    if adapted and (place / ADAPTER).is_dir():
        model = _folded(model, place / ADAPTER)
    return model.eval()


def computing_dtype() -> torch.dtype:
    """float32 on a processor, where a token's time is the state's; else the device's fastest."""
    device = best_device()
    return torch.float32 if device.type == "cpu" else best_dtype(device)


def opened(place: Path, dtype: torch.dtype | None = None) -> Any:
    """A transformers directory on the device; what its class keeps in float32 stays in it."""
    with quiet():
        model: Any = AutoModelForCausalLM.from_pretrained(
            place, dtype=dtype or computing_dtype(), local_files_only=True
        )
    return model.eval().to(best_device())


def _folded(model: Any, adapter: Path) -> Any:
    if not find_spec("peft"):
        raise ExtraMissing.named("training", "opening an adapter")
    from peft import PeftModel

    from zeitgeist.training.models import peft_warnings

    with peft_warnings():
        return PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()


def card(name: str, base: Base, recipe: Mapping[str, Any], told: Sequence[str]) -> str:
    """The model card of a linearized model.

    Parameters
    ----------
    name, base
        What it is called, and what it was made from.
    recipe
        Every option of every step.
    told
        Sentences of its own; one about what shrinks follows.
    """
    return model_card(
        title=name,
        method=f"LoLCATs ({PAPER})",
        inputs=[{"reference": base.reference, "role": "base", "hashes": base.hashes}],
        recipe=json.dumps(recipe, indent=2),
        versions=versions(),
        notes=[*told, SENTENCE],
    )


def notes(report: LinearizedReport) -> list[str]:
    """What the card of a small directory says of its report."""
    return [
        f"Holds {MAPS}, which goes with the base: open it with zeitgeist.compression.linearize.load"
        ", or write it whole with export.",
        f"Perplexity of validation windows: {report.perplexity_softmax:.4g} softmax, "
        f"{report.perplexity:.4g} linearized.",
        f"{report.state_bytes:,} bytes are kept per sequence past the window, "
        f"{report.kv_bytes:,} per token by softmax.",
    ]


class LayerFiles:
    """A `zeitgeist.compression.transfer.Ledger` of one file per taught layer.

    Parameters
    ----------
    place
        Directory, made when the first layer is kept.
    key
        Of everything that decides what is learned; files of another key are not used.
    """

    def __init__(self, place: Path, key: str) -> None:
        self.place, self.key = place, key

    def _file(self, index: int) -> Path:
        return self.place / f"layer-{index:04d}.safetensors"

    def recall(self, index: int, attention: LinearizedAttention) -> dict[str, Any] | None:
        """Put back what a layer learned; its facts, or None."""
        try:
            with safe_open(self._file(index), framework="pt") as file:
                noted = file.metadata() or {}
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
        if noted.get("key") != self.key:
            return None
        attention.load_state_dict(state, strict=False)
        facts: dict[str, Any] = json.loads(noted["facts"])
        return {**facts, "gamma": tuple(facts["gamma"])}

    def note(self, index: int, attention: LinearizedAttention, facts: dict[str, Any]) -> None:
        """Keep what a layer learned."""
        self.place.mkdir(parents=True, exist_ok=True)
        state = {
            name: value.detach().cpu().contiguous()
            for name, value in attention.state_dict().items()
            if "feature_map" in name or name == "gate"
        }
        partial = self._file(index).with_suffix(".partial")
        save_file(state, partial, metadata={"key": self.key, "facts": json.dumps(facts)})
        partial.rename(self._file(index))
