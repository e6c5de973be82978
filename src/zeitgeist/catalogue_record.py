"""What the catalogue says of a system: where it lives, its options, its study, its limits.

Doors, options and studies are import paths that are followed only when somebody asks.
"""

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib import import_module
from typing import Any, NamedTuple


class Option(NamedTuple):
    """One option of a system: name, published default, meaning, and where that default is from."""

    name: str
    default: object
    meaning: str
    source: str


@dataclass(frozen=True)
class System:
    """Something a paper or a release proposed, and where it lives in this package.

    ``door``, ``study`` and the values of ``configs`` are import paths ``module:attribute``.
    ``example`` is a line of shell and ``python`` the same through the door; ``limits`` says what
    a person should know before relying on it. ``published`` holds the defaults the paper states,
    per configuration, so that a test can hold the code to them.
    """

    slug: str
    title: str
    authors: str
    arxiv: str
    sections: tuple[str, ...]
    area: str
    purpose: str
    door: str
    command: str
    example: str
    configs: Mapping[str, str]
    page: str
    study: str
    python: str = ""
    limits: tuple[str, ...] = ()
    published: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def load_door(self) -> Any:
        """Import and return the public function or class this system is used through."""
        return load(self.door)

    def load_study(self) -> Any:
        """Import and return the study that tests this system's claims."""
        return load(self.study)

    def options(self) -> dict[str, list[Option]]:
        """Every option with its default, meaning and source, per configuration."""
        return {name: _options(load(path)) for name, path in self.configs.items()}


@dataclass(frozen=True)
class Area:
    """A room of the house; ``study`` compares all methods in it, or is empty."""

    slug: str
    title: str
    purpose: str
    study: str = ""


def load(path: str) -> Any:
    """What an import path ``module:attribute`` names.

    Examples
    --------
    >>> load("zeitgeist.catalogue:find").__name__
    'find'
    """
    module, _, attribute = path.partition(":")
    return getattr(import_module(module), attribute)


def _options(config: type) -> list[Option]:
    return [
        Option(
            f.name.rstrip("_"),
            f.default if f.default is not MISSING else "required",
            f.metadata.get("meaning", ""),
            f.metadata.get("source", ""),
        )
        for f in fields(config)
    ]
