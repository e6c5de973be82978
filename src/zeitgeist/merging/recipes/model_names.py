"""How a recipe names a model: ``path@revision+adapter``.

The grammar is mergekit's: a path or a hub name, ``@`` and a revision, ``+`` and an adapter that
is laid over it, which may carry a revision too. A bare ``org/name`` that is no directory here
means the hub. What exists on disk as written is never taken apart, so a directory may carry ``@``
or ``+`` in its name.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zeitgeist.errors import InputInvalid

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*")
_FORMS = "write path, path@revision or path+adapter"


def model_name(value: object) -> str:
    """One spelling for each model, from any form mergekit reads.

    Parameters
    ----------
    value
        A string, or a mapping ``{model: {path, revision}, lora: {path, revision}}`` in which each
        part may be a string instead.

    Returns
    -------
    str
        ``reference`` or ``reference+adapter``, where a name on the hub carries ``hub:``.

    Raises
    ------
    InputInvalid
        Not a name, or a revision asked of a local directory, which has none.

    Examples
    --------
    >>> model_name("org/model@main+org/adapter")
    'hub:org/model@main+hub:org/adapter'
    >>> model_name({"model": {"path": "org/model", "revision": "main"}, "lora": None})
    'hub:org/model@main'
    >>> model_name("./models/base")
    './models/base'
    """
    if isinstance(value, Mapping):
        return _from_mapping(value)
    if not isinstance(value, str) or not value.strip():
        raise InputInvalid(f"{value!r} is not the name of a model", mend=_FORMS + ", in quotes")
    value = value.strip()
    if _is_local(value):
        return value
    parts = value.split("+")
    if len(parts) > 2:
        raise InputInvalid(f"{value!r} names more than one adapter", mend=_FORMS)
    return "+".join(_reference(part, value) for part in parts)


def split_adapter(name: str) -> tuple[str, str | None]:
    """The reference of the model and, if there is one, of the adapter laid over it.

    Examples
    --------
    >>> split_adapter("hub:org/model@main+./my-adapter")
    ('hub:org/model@main', './my-adapter')
    >>> split_adapter("./models/base")
    ('./models/base', None)
    """
    if _is_local(name):
        return name, None
    reference, _, adapter = name.partition("+")
    return reference, adapter or None


def _is_local(text: str) -> bool:
    # An overlong name or the home of an unknown user is an error, not an absence; no file either.
    try:
        return Path(text).expanduser().exists()
    except (OSError, RuntimeError):
        return False


def _reference(text: str, whole: str) -> str:
    if _is_local(text):
        return text
    path, mark, revision = text.partition("@")
    if not path or (mark and not revision) or "@" in revision:
        raise InputInvalid(f"{whole!r} is not the name of a model", mend=_FORMS)
    if mark and not path.startswith("hub:") and (_is_local(path) or path[0] in "./~"):
        raise InputInvalid(
            f"{whole!r} asks for the revision {revision!r} of a local directory",
            mend="name the directory that holds that revision",
        )
    return f"hub:{text}" if _HUB_NAME.fullmatch(path) else text


def _from_mapping(value: Mapping[str, Any]) -> str:
    known = {"model", "lora", "path", "revision", "override_architecture"}
    if unknown := [key for key in value if key not in known]:
        raise InputInvalid(f"unknown key {unknown[0]!r} in the name of a model", mend=_FORMS)
    if "path" in value:
        path, revision = value["path"], value.get("revision")
        if not isinstance(path, str) or not isinstance(revision, str | None):
            raise InputInvalid(f"{dict(value)!r} is not the name of a model", mend=_FORMS)
        return model_name(f"{path}@{revision}" if revision else path)
    if "model" not in value:
        raise InputInvalid(f"{dict(value)!r} is not the name of a model", mend=_FORMS)
    model, lora = model_name(value["model"]), value.get("lora")
    return f"{model}+{model_name(lora)}" if lora else model
