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

NEEDED = ("question", "aliases")
FIELDS = (*NEEDED, "wrong", "entity", "answer", "exact")
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
    kind = path.suffix.lower()
    if kind not in (".jsonl", ".csv"):
        raise InputInvalid(
            f"the questions '{path}' are no .jsonl or .csv", mend="name them so, or convert them"
        )
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputInvalid(
            f"cannot be read ({error})", origin=path, mend="give a file in UTF-8"
        ) from error
    return _rows_of_csv(text, path) if kind == ".csv" else _rows_of_jsonl(text, path)


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
        _check_columns(reader.fieldnames or (), f"{path}:{reader.line_num}")
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
        origin = f"{path}:{reader.line_num}"
        if "field limit" in str(error):
            raise InputInvalid(
                f"a cell is too long, of more than {csv.field_size_limit()} characters",
                origin=origin,
                mend="shorten it, close its quotes if they are open, or write the rows as .jsonl",
            ) from error
        raise InputInvalid(
            f"is no CSV ({error})", origin=origin, mend="check its quotes"
        ) from error
    return rows


def _check_columns(names: Sequence[str], origin: str) -> None:
    """Of two columns of one name, one would be lost. Nameless ones are a spreadsheet's margin."""
    for name in names:
        if name and list(names).count(name) > 1:
            raise InputInvalid(
                f"{list(names).count(name)} columns are named {name!r}",
                origin=origin,
                mend="keep one of them",
            )


def _rows_of_object(source: Any) -> list[tuple[int, Any]]:
    if hasattr(source, "to_dict"):
        names = [str(name) for name in source.columns]
        _check_columns(names, "questions")
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
        told = {name: getattr(row, name) for name in FIELDS}
        row = {name: value for name, value in told.items() if value or name in NEEDED}
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
    for name in NEEDED:
        if name not in row:
            raise InputInvalid(f"there is no {name!r}", origin=origin, mend="every row needs one")
    # What writes tables as JSON writes null for an empty cell.
    row = {name: value for name, value in row.items() if value is not None or name in NEEDED}
    for name, value in row.items():
        if name == "aliases":
            continue
        if not isinstance(value, str):
            raise InputInvalid(f"{name!r} is {value!r}", origin=origin, mend="give a piece of text")
        _check_characters(name, value, origin)
    if not row["question"].strip():
        raise InputInvalid("the question is empty", origin=origin, mend="ask something")
    if "answer" in row and not row["answer"].strip():
        raise InputInvalid(
            "the answer is empty",
            origin=origin,
            mend="leave the field out to let this model answer, or leave the row out",
        )
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


def _check_characters(name: str, text: str, origin: str) -> None:
    """JSON can spell half a character, which no tokenizer and no file takes."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputInvalid(
            f"{name!r} is {text!r}, with a lone surrogate, which is no character",
            origin=origin,
            mend="write the whole character",
        ) from error


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
        _check_characters("aliases", alias, origin)
    return tuple(given)
