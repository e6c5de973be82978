"""Questions with gold answers: read from JSONL, CSV or a DataFrame, and checked row by row.

A row has a ``question`` and ``aliases``, the spellings under which its answer counts as right. It
may have ``wrong`` (the other option of a two-choice question), ``entity`` (what it is about: rows
of one entity are never split between train and test), ``answer`` (an answer of the model, which is
then read instead of generated) and ``exact`` (the piece of that answer which decides).
"""

import csv
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from zeitgeist.errors import InputInvalid, did_you_mean

__all__ = ["Question", "read_questions"]

FIELDS = ("question", "aliases", "wrong", "entity", "answer", "exact")
SEPARATOR = "|"


@dataclass(frozen=True)
class Question:
    """One question.

    Parameters
    ----------
    question
        As the model is asked.
    aliases
        Right answers, at least one.
    wrong
        The other option of a two-choice question, or empty.
    entity
        What it is about; empty: the question itself.
    answer, exact
        The model's answer and the piece of it that decides, where they are known already.
    """

    question: str
    aliases: tuple[str, ...]
    wrong: str = ""
    entity: str = ""
    answer: str = ""
    exact: str = ""

    @property
    def group(self) -> str:
        """Rows of one group are never split between train and test."""
        return self.entity or self.question


def read_questions(source: str | Path | Any) -> tuple[Question, ...]:
    """Questions of a file, a DataFrame or a list of records.

    Parameters
    ----------
    source
        A ``.jsonl`` or ``.csv`` file, anything with ``to_dict("records")`` such as a pandas
        DataFrame, or a sequence of mappings. In CSV, aliases are separated by ``|``.

    Returns
    -------
    tuple of Question
        In order.

    Raises
    ------
    InputInvalid
        The file cannot be read, holds no rows, or a row is wrong: which line, and how.

    Examples
    --------
    >>> read_questions([{"question": "Capital of France?", "aliases": ["Paris"]}])[0].group
    'Capital of France?'
    """
    if isinstance(source, str | Path):
        path = Path(source)
        rows, origin = _rows_of_file(path), str(path)
    else:
        rows, origin = _rows_of_object(source), "questions"
    found = tuple(_question(row, f"{origin}:{line}") for line, row in rows)
    if not found:
        raise InputInvalid("there are no questions", origin=origin, mend="give at least one row")
    return found


def _rows_of_file(path: Path) -> list[tuple[int, Any]]:
    if path.suffix not in (".jsonl", ".csv"):
        raise InputInvalid(
            f"the questions '{path}' are no .jsonl or .csv", mend="name them so, or convert them"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputInvalid(
            f"cannot be read ({error})", origin=path, mend="give a file in UTF-8"
        ) from error
    return _rows_of_csv(text, path) if path.suffix == ".csv" else _rows_of_jsonl(text, path)


def _rows_of_jsonl(text: str, path: Path) -> list[tuple[int, Any]]:
    rows = []
    # Not splitlines: JSON may hold other characters that Python takes for ends of lines.
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                rows.append((number, json.loads(line)))
            except ValueError as error:
                raise InputInvalid(
                    f"is no JSON ({error})",
                    origin=f"{path}:{number}",
                    mend="write one object a line",
                ) from error
    return rows


def _rows_of_csv(text: str, path: Path) -> list[tuple[int, Any]]:
    reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
    rows = []
    try:
        for row in reader:
            if None in row:
                raise InputInvalid(
                    "has more cells than the header has names",
                    origin=f"{path}:{reader.line_num}",
                    mend="quote cells that contain a comma",
                )
            known: dict[str, Any] = {name: cell for name, cell in row.items() if cell}
            if "aliases" in known:
                known["aliases"] = [one.strip() for one in known["aliases"].split(SEPARATOR)]
            rows.append((reader.line_num, known))
    except csv.Error as error:
        raise InputInvalid(
            f"is no CSV ({error})", origin=f"{path}:{reader.line_num}", mend="check its quotes"
        ) from error
    return rows


def _rows_of_object(source: Any) -> list[tuple[int, Any]]:
    if hasattr(source, "to_dict"):
        names = [str(name) for name in source.columns]
        records: Iterable[Any] = source.to_dict("records")
        # Empty cells of a DataFrame are NaN, the only value that is not itself.
        records = [
            {
                name: list(cell) if name == "aliases" and _listed(cell) else cell
                for name, cell in zip(names, row.values(), strict=True)
                if cell is not None and not (isinstance(cell, float) and cell != cell)
            }
            for row in records
        ]
        return list(enumerate(records, 1))
    if isinstance(source, Mapping) or not isinstance(source, Sequence):
        raise InputInvalid(
            f"the questions are a {type(source).__name__}",
            mend="give a .jsonl or .csv file, a DataFrame or a list of records",
        )
    return list(enumerate(source, 1))


def _listed(cell: Any) -> bool:
    return isinstance(cell, Iterable) and not isinstance(cell, str | Mapping)


def _question(row: Any, origin: str) -> Question:
    if isinstance(row, Question):
        row = {name: getattr(row, name) for name in FIELDS}
    if not isinstance(row, Mapping):
        raise InputInvalid(
            f"is a {type(row).__name__}, not a record",
            origin=origin,
            mend='write {"question": ..., "aliases": [...]}',
        )
    for name in row:
        if name not in FIELDS:
            raise InputInvalid(
                f"{name!r} is no field of a question",
                origin=origin,
                mend=did_you_mean(name, FIELDS),
            )
    for name in ("question", "aliases"):
        if name not in row:
            raise InputInvalid(f"there is no {name!r}", origin=origin, mend="every row needs one")
    for name in FIELDS:
        if name != "aliases" and not isinstance(row.get(name, ""), str):
            raise InputInvalid(
                f"{name!r} is {row[name]!r}", origin=origin, mend="give a piece of text"
            )
    if not row["question"].strip():
        raise InputInvalid("the question is empty", origin=origin, mend="ask something")
    found = Question(
        row["question"],
        _aliases(row["aliases"], origin),
        *(row.get(name, "") for name in FIELDS[2:]),
    )
    if found.exact and found.exact.lower() not in found.answer.lower():
        raise InputInvalid(
            f"the exact answer {found.exact!r} is not in the answer {found.answer!r}",
            origin=origin,
            mend="copy it from the answer",
        )
    return found


def _aliases(given: Any, origin: str) -> tuple[str, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InputInvalid(
            f"the aliases are {given!r}, not a list", origin=origin, mend='write ["Paris"]'
        )
    if not given:
        raise InputInvalid(
            "there are no aliases", origin=origin, mend="give at least one right answer"
        )
    for alias in given:
        if not isinstance(alias, str):
            raise InputInvalid(
                f"the alias {alias!r} is no text", origin=origin, mend=f'write "{alias}"'
            )
        if not alias.strip():
            raise InputInvalid(
                "an alias is empty, and would be found in every answer",
                origin=origin,
                mend="leave it out",
            )
    return tuple(given)
