"""Texts from files that people write, each fault told with its line."""

import json
from pathlib import Path

from zeitgeist.errors import InputInvalid


def lines_of(path: Path) -> list[str]:
    """Lines of a UTF-8 file; what follows the last line end is dropped if it is empty.

    Only line feeds end a line: JSON and prose may hold other separators inside.

    Raises
    ------
    InputInvalid
        The file cannot be read.
    """
    try:
        content = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        raise InputInvalid(
            f"cannot be read: {error}", origin=path, mend="name a file that can be read"
        ) from error
    except UnicodeDecodeError as error:
        raise InputInvalid(f"cannot be read: {error}", origin=path, mend="give UTF-8") from error
    lines = [line.removesuffix("\r") for line in content.split("\n")]
    return lines[:-1] if not lines[-1] else lines


def json_texts(path: Path) -> list[str]:
    """The "text" of every line of JSON; blank lines are skipped.

    Raises
    ------
    InputInvalid
        The file cannot be read, or a line has no "text" of whole characters.
    """
    found = []
    for number, line in enumerate(lines_of(path), 1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError, RecursionError):
            text = None
        if not isinstance(text, str):
            raise InputInvalid(f'line {number} has no "text"', origin=path, mend="give one")
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputInvalid(
                f"line {number} has half a character, {error.object[error.start]!r}",
                origin=path,
                mend="give both surrogates or none",
            ) from error
        found.append(text)
    return found
