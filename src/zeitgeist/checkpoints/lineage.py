"""Where a model came from, written into the model card that lies beside its weights."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml


def versions() -> dict[str, str]:
    """The versions of what decides the numbers, by name.

    Examples
    --------
    >>> sorted(versions())
    ['python', 'safetensors', 'torch', 'transformers', 'zeitgeist']
    """
    found = {"python": platform.python_version()}
    for name in ("zeitgeist", "torch", "transformers", "safetensors"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a source tree that was never installed
            found[name] = "unknown"
    return found


def model_card(
    *,
    title: str,
    method: str,
    inputs: Sequence[Mapping[str, Any]],
    recipe: str,
    versions: Mapping[str, str],
    notes: Sequence[str] = (),
) -> str:
    """The text of a ``README.md`` that says how a model was made and from what.

    Parameters
    ----------
    title
        What to call the model.
    method
        The merge method, in a few words.
    inputs
        One mapping per model read: ``reference`` (as the person named it), optionally ``role``
        (``base``, ``expert``), ``weight`` and ``hashes`` (file name to xxh3-128, as
        `Checkpoint.fingerprint` gives them).
    recipe
        The recipe in YAML.
    versions
        Package to version, as from `versions`.
    notes
        What else a reader should know, one sentence each.

    Returns
    -------
    str
        Markdown with the front matter of the hub. Inputs on the hub become its ``base_model``.

    Examples
    --------
    >>> card = model_card(
    ...     title="Mixed", method="linear", recipe="merge_method: linear",
    ...     inputs=[{"reference": "hub:org/one", "hashes": {"model.safetensors": "0af3"}}],
    ...     versions={"zeitgeist": "0.1.0"},
    ... )
    >>> print(card[:card.index("# Mixed")])
    ---
    base_model:
    - org/one
    library_name: transformers
    tags:
    - merge
    - zeitgeist
    ---
    <BLANKLINE>
    """
    front = {
        "base_model": _hub_names(inputs),
        "library_name": "transformers",
        "tags": ["merge", "zeitgeist"],
    }
    if not front["base_model"]:
        del front["base_model"]
    lines = [
        "---",
        yaml.safe_dump(front, sort_keys=True, allow_unicode=True).rstrip(),
        "---",
        "",
        f"# {_one_line(title)}",
        "",
        f"Made with [zeitgeist](https://pypi.org/project/zeitgeist/) by {_one_line(method)}.",
        "",
        "## Inputs",
        "",
        *_table(inputs),
        "",
    ]
    if notes:
        lines += ["## Notes", "", *(f"- {_one_line(note)}" for note in notes), ""]
    fence = _fence(recipe)
    lines += ["## Recipe", "", f"{fence}yaml", recipe.rstrip(), fence, ""]
    lines += ["## Versions", "", ", ".join(f"{k} {v}" for k, v in sorted(versions.items())), ""]
    return "\n".join(lines)


def _hub_names(inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """The inputs that the hub knows: it refuses a card whose base_model is a local path."""
    names = (str(entry.get("reference", "")) for entry in inputs)
    hub = (name.removeprefix("hub:").partition("@")[0] for name in names if name[:4] == "hub:")
    return list(dict.fromkeys(hub))


def _table(inputs: Sequence[Mapping[str, Any]]) -> list[str]:
    """One row per file, so that every hash has its place."""
    rows = ["| role | model | weight | file | xxh3-128 |", "|---|---|---|---|---|"]
    for entry in inputs:
        start = [entry.get("role", ""), f"`{entry.get('reference', '')}`", entry.get("weight", "")]
        for file, digest in (entry.get("hashes") or {"": ""}).items():
            cells = [*start, file, f"`{digest}`" if digest else ""]
            rows.append("| " + " | ".join(_cell(cell) for cell in cells) + " |")
            start = ["", "", ""]
    return rows


def _cell(value: object) -> str:
    return _one_line(str(value)).replace("|", "\\|")


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _fence(text: str) -> str:
    """Backticks enough that nothing in the text can end the block."""
    fence = "```"
    while fence in text:
        fence += "`"
    return fence
