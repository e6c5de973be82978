"""The models a merge reads: a checkpoint, or an adapter laid over one."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor
from xxhash import xxh3_128

from zeitgeist.checkpoints import (
    Adapter,
    Checkpoint,
    TensorSpec,
    is_adapter,
    open_adapter,
    open_checkpoint,
    resolve,
)
from zeitgeist.checkpoints.remote import RemoteCheckpoint, is_remote_adapter, open_headers
from zeitgeist.errors import CheckpointInvalid, InputInvalid
from zeitgeist.merging.recipes.model_names import model_name, split_adapter
from zeitgeist.merging.streaming.sources import Applied, LowRank, OnDisk, Source, Stored, Unchanged


@dataclass(frozen=True)
class Model:
    """One opened input: ``checkpoint``, with ``adapter`` on top where there is one."""

    reference: str
    checkpoint: Checkpoint
    adapter: Adapter | None = None

    @cached_property
    def specs(self) -> Mapping[str, TensorSpec]:
        """Every tensor by name; a tied head counts under both of its names."""
        own = self.checkpoint.specs
        named = {**own, **{alias: own[name] for alias, name in self.checkpoint.tied.items()}}
        for name in self.adapter.extra if self.adapter is not None else ():
            values = self.stored(name)
            dtype = named[name].dtype if name in named else values.dtype
            named[name] = TensorSpec(name, dtype, tuple(values.shape))
        return named

    @cached_property
    def apart(self) -> frozenset[str]:
        """The tied names that are tensors of their own here, because the adapter changes them."""
        adapter = self.adapter
        if adapter is None:
            return frozenset()
        return frozenset(
            alias
            for alias, name in self.checkpoint.tied.items()
            if alias.removesuffix(".weight") in adapter.modules
            # PEFT may save an unchanged head along
            or (alias in adapter.extra and not torch.equal(self.stored(alias), self.stored(name)))
        )

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that are stored once each, in the order of the file."""
        tied = self.checkpoint.tied
        return tuple(name for name in self.specs if name not in tied or name in self.apart)

    @property
    def has_values(self) -> bool:
        """Whether the weights are here, and not just their headers."""
        return not isinstance(self.checkpoint, RemoteCheckpoint)

    @property
    def config(self) -> dict[str, Any]:
        """The model's ``config.json``."""
        return self.checkpoint.config

    def stored(self, name: str) -> Shaped[Tensor, "..."]:
        """The tensor as it lies on disk, before any low-rank update."""
        if self.adapter is not None and self._called(name) in self.adapter.extra:
            return self.adapter.replacement(self._called(name))
        return self.checkpoint.tensor(name)

    def source(self, name: str) -> Source:
        """The whole tensor, with the adapter's update added."""
        held: Source = OnDisk(self.checkpoint, name, self.specs[name].dtype)
        if self.adapter is not None and self._called(name) in self.adapter.extra:
            held = Stored(self.stored(name).flatten())
        update = self._update(name)
        return held if update is None else Applied(held, update)

    def expert(self, name: str, base: "Model | None") -> Source:
        """The tensor, or just its update where the adapter sits on that very base."""
        if self.adapter is None or base is None or base.adapter is not None:
            return self.source(name)
        replaced = self._called(name) in self.adapter.extra
        if base.checkpoint.path != self.checkpoint.path or replaced:
            return self.source(name)
        return self._update(name) or Unchanged()

    def changes(self, name: str) -> bool:
        """Whether the adapter touches this tensor."""
        if self.adapter is None:
            return False
        return self._called(name) in self.adapter.extra or self._update(name) is not None

    def _called(self, name: str) -> str:
        """What the adapter calls a tensor: a tied head may have a name of its own there."""
        adapter = self.adapter
        if adapter is None or name in adapter.extra:
            return name
        own = name.removesuffix(".weight") in adapter.modules
        return name if own else self.checkpoint.tied.get(name, name)

    def _update(self, name: str) -> LowRank | None:
        module = self._called(name).removesuffix(".weight")
        if self.adapter is None or module not in self.adapter.modules:
            return None
        factors = self.adapter.factors(module)
        a, b = (factors.b.T, factors.a.T) if factors.transposed else (factors.a, factors.b)
        return LowRank(a, b, factors.scale)

    def fingerprint(self, *, progress: bool = False) -> dict[str, str]:
        """xxh3-128 of the files that hold what this model adds: its shards, or the adapter."""
        if self.adapter is None:
            return self.checkpoint.fingerprint(progress=progress)
        weights = sorted(self.adapter.path.glob("*.safetensors"))
        return {path.name: xxh3_128(path.read_bytes()).hexdigest() for path in weights}

    @property
    def path(self) -> Path:
        """Where the weights named by the reference lie."""
        return self.adapter.path if self.adapter else self.checkpoint.path


def open_models(
    references: tuple[str, ...],
    base: str | None,
    *,
    headers_only: bool = False,
    progress: bool = True,
) -> dict[str, Model]:
    """Open every model of a recipe from its headers.

    With ``headers_only`` the weights of models on the hub are not downloaded.

    An adapter is laid over the model it was trained on: the recipe's base if there is one, else
    what the adapter itself names.

    Raises
    ------
    InputInvalid
        The base is itself an adapter, or an adapter names no base.
    CheckpointInvalid
        An adapter changes modules that its base does not have, or with other shapes.
    """
    opened: dict[Path, Checkpoint] = {}

    def checkpoint(reference: str) -> Checkpoint:
        if headers_only and reference.startswith("hub:"):
            found = open_headers(reference)
        else:
            found = open_checkpoint(resolve(reference, progress=progress).resolve())
        return opened.setdefault(found.path, found)

    def alone(name: str) -> bool:
        if headers_only and name.startswith("hub:"):
            return is_remote_adapter(name)
        return is_adapter(resolve(name, progress=progress))

    def model(reference: str) -> Model:
        name, lora = split_adapter(reference)
        if lora is None and alone(name):
            if reference == base:
                raise InputInvalid(
                    f"the base {reference!r} is an adapter",
                    mend="give the model it was trained on as the base",
                )
            adapter = open_adapter(resolve(name, progress=progress))
            below = split_adapter(base)[0] if base is not None else adapter.base
            if below is None:
                raise InputInvalid(
                    f"the adapter {reference!r} does not say which model it belongs to",
                    mend="name that model as base_model (--base)",
                )
            return Model(reference, checkpoint(model_name(below)), adapter)
        if lora is None:
            return Model(reference, checkpoint(name))
        return Model(reference, checkpoint(name), open_adapter(resolve(lora, progress=progress)))

    models = {reference: model(reference) for reference in references}
    for found in models.values():
        if found.adapter is not None:
            _check_fit(found.adapter, found.checkpoint)
    return models


def foreign_bases(models: Iterable[Model]) -> list[str]:
    """Where an adapter says that it belongs to another model than it is laid over.

    Only what can be known: a base that is another directory here, or adapters laid over one model
    that do not name the same.
    """
    notes: list[str] = []
    named: dict[Path, dict[str, str]] = {}
    for model in models:
        if model.adapter is None or model.adapter.base is None:
            continue
        own, place = Path(model.adapter.base), model.checkpoint.path
        if own.is_dir() and own.resolve() != place.resolve():
            notes.append(f"{model.reference!r} was trained on {str(own)!r} and lies over {place}")
        named.setdefault(place, {})[model.adapter.base] = model.reference
    for place, bases in named.items():
        if len(bases) > 1:
            listed = ", ".join(f"{reference!r} on {base!r}" for base, reference in bases.items())
            notes.append(f"the adapters over {place} were trained on different models: {listed}")
    return notes


def close_models(models: Mapping[str, Model]) -> None:
    """Let go of the files; what is read afterwards opens them again."""
    for model in models.values():
        model.checkpoint.close()


def _check_fit(adapter: Adapter, base: Checkpoint) -> None:
    for module in adapter.modules:
        name = base.tied.get(f"{module}.weight", f"{module}.weight")
        if name not in base.specs:
            raise CheckpointInvalid(
                f"the adapter changes {module!r}, which {base.path} does not have",
                origin=adapter.path,
                mend="give the base it was trained on",
            )
        if base.specs[name].shape != adapter.shape(module):
            raise CheckpointInvalid(
                f"the adapter's update of {module!r} is {adapter.shape(module)}, the weight in "
                f"{base.path} is {base.specs[name].shape}",
                origin=adapter.path,
                mend="give the base it was trained on",
            )
