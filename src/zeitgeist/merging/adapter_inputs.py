"""The adapters a merge reads: opened, held against each other, and read one module at a time."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor

from zeitgeist.checkpoints import Adapter, open_adapter
from zeitgeist.errors import InputInvalid
from zeitgeist.merging.low_rank import Update


class AdapterModules(Mapping[str, Sequence[Update]]):
    """The experts' updates by module, read when they are asked for."""

    def __init__(self, adapters: Sequence[Adapter]) -> None:
        self._adapters = adapters
        self._names = tuple(dict.fromkeys(m for adapter in adapters for m in adapter.modules))

    def __getitem__(self, module: str) -> list[tuple[Tensor, Tensor] | None]:
        found: list[tuple[Tensor, Tensor] | None] = []
        for adapter in self._adapters:
            if module not in adapter.modules:
                found.append(None)
                continue
            factors = adapter.factors(module)
            found.append((factors.a, factors.b.double() * factors.scale))
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def open_adapters(
    paths: Sequence[Path], *, saved_modules: Literal["stop", "skip"], any_base: bool
) -> tuple[list[Adapter], list[str]]:
    """Open adapters that are to be merged, and what a person should know about them.

    Parameters
    ----------
    paths
        Adapter directories.
    saved_modules
        ``"stop"`` at, or ``"skip"``, tensors that an adapter replaces as a whole.
    any_base
        Accept adapters whose configurations name different bases.

    Raises
    ------
    InputInvalid
        Different bases, different shapes of one module, or replaced tensors; names the adapter.
    """
    adapters = [open_adapter(path) for path in paths]
    return adapters, _together(adapters, any_base) + _saved(adapters, saved_modules)


def _together(adapters: Sequence[Adapter], any_base: bool) -> list[str]:
    """Refuse adapters of different bases or shapes; note what is odd."""
    first = next((adapter for adapter in adapters if adapter.base), adapters[0])
    for adapter in adapters:
        if adapter.base and adapter.base.rstrip("/") != str(first.base).rstrip("/"):
            if any_base:
                continue
            raise InputInvalid(
                f"the adapter is of {adapter.base!r}, and {str(first.path)!r} is of {first.base!r}",
                origin=adapter.path,
                mend="merge adapters of one base; if these are two names of one, say any_base",
            )
    owners: dict[str, Adapter] = {}
    shared = 0
    for adapter in adapters:
        for module in adapter.modules:
            owner = owners.setdefault(module, adapter)
            shared += owner is not adapter
            if (owner.shape(module), owner.transposed(module)) != (
                adapter.shape(module),
                adapter.transposed(module),
            ):
                raise InputInvalid(
                    f"{module!r} is {list(adapter.shape(module))} here and "
                    f"{list(owner.shape(module))} in {str(owner.path)!r}",
                    origin=adapter.path,
                    mend="merge adapters of one base",
                )
    if len(adapters) > 1 and not shared:
        return ["no module is changed by more than one adapter: nothing was there to merge"]
    return []


def _saved(adapters: Sequence[Adapter], saved_modules: Literal["stop", "skip"]) -> list[str]:
    notes = []
    for adapter in adapters:
        if not adapter.extra:
            continue
        names = ", ".join(adapter.extra[:3]) + (", ..." if len(adapter.extra) > 3 else "")
        if saved_modules == "stop":
            raise InputInvalid(
                f"the adapter replaces {len(adapter.extra)} tensors as a whole ({names})",
                origin=adapter.path,
                mend="they are no low-rank updates: leave them out with saved_modules='skip', or "
                "merge into full models by giving the base",
            )
        notes.append(f"{adapter.path.name}: left out what it replaces as a whole ({names})")
    return notes
