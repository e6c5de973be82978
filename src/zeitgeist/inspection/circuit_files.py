"""Pairs of inputs from files that people write."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean
from zeitgeist.inspection.circuit_tasks import NONE, Pairs

KEYS = ("clean", "corrupted", "answers", "wrong", "positions")
LARGEST = 2**31
"""No vocabulary has as many tokens."""


def read_pairs(
    path: Path,
    tokenizer: Any,
    *,
    vocabulary: int | None = None,
    outputs: int | None = None,
    context: int | None = None,
) -> Pairs:
    """Pairs from a file: a line of JSON each, with texts or with tokens.

    ``{"clean": "...", "corrupted": "...", "answers": [" Mary"], "wrong": [" John"]}``; texts become
    tokens without special ones. Lists of numbers are taken as tokens. ``positions`` names the
    scored ones (default: the last). Shorter examples are padded behind their end.

    Parameters
    ----------
    path
        The file.
    tokenizer
        Of the model; None where the file holds tokens.
    vocabulary
        How many tokens the model reads.
    outputs
        How many it can answer; default: as many.
    context
        The longest input it reads.

    Raises
    ------
    InputInvalid
        The file cannot be read, a line is built otherwise, a replacement has another number of
        tokens than its input, an answer is not a single token, or the model knows no such token or
        reads no input as long.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split(
            "\n"
        )  # as JSON has other line ends inside
    except OSError as error:
        raise InputInvalid(
            f"cannot be read: {error}", origin=path, mend="name a file that can be read"
        ) from error
    except UnicodeDecodeError as error:
        raise InputInvalid(f"cannot be read: {error}", origin=path, mend="give UTF-8") from error
    numbers = [i for i, line in enumerate(lines, 1) if line.strip()]
    rows = [_row(lines[i - 1], f"{path}:{i}", tokenizer) for i in numbers]
    for number, row in zip(numbers, rows, strict=True):
        _check_row(row, f"{path}:{number}", vocabulary, outputs or vocabulary, context)
    if not rows:
        raise InputInvalid("there is no pair", origin=path, mend="give one per line")
    has = {key: [bool(row[key]) for row in rows] for key in ("corrupted", "answers", "wrong")}
    for key, told in has.items():
        if any(told) and not all(told):
            raise InputInvalid(
                f"line {numbers[told.index(False)]} has no {key!r} and others have",
                origin=path,
                mend="give it in every line or in none",
            )
    longest = max(len(row["clean"]) for row in rows)
    scored = torch.zeros((len(rows), longest), dtype=torch.bool)
    for i, row in enumerate(rows):
        scored[i, row["positions"]] = True

    def stacked(key: str, fill: int, width: int) -> Tensor | None:
        if not rows[0][key]:
            return None
        return torch.tensor([[*row[key], *[fill] * (width - len(row[key]))] for row in rows])

    clean = stacked("clean", 0, longest)
    assert clean is not None
    widths = {key: max(len(row[key]) for row in rows) for key in ("answers", "wrong")}
    return Pairs(
        clean,
        stacked("corrupted", 0, longest),
        scored,
        stacked("answers", NONE, widths["answers"]),
        stacked("wrong", NONE, widths["wrong"]),
    )


def _check_row(
    row: dict[str, list[int]],
    origin: str,
    vocabulary: int | None,
    outputs: int | None,
    context: int | None,
) -> None:
    """Refuse what the model cannot read or answer."""
    if context is not None and len(row["clean"]) > context:
        raise InputInvalid(
            f'"clean" has {len(row["clean"])} tokens and the model reads {context}',
            origin=origin,
            mend=f"give at most {context}",
        )
    for key in ("clean", "corrupted", "answers", "wrong"):
        limit = vocabulary if key in ("clean", "corrupted") else outputs
        if limit is not None and row[key] and max(row[key]) >= limit:
            raise InputInvalid(
                f"{key!r} has the token {max(row[key])} and the model knows {limit}",
                origin=origin,
                mend=f"give tokens from 0 to {limit - 1}",
            )


def _row(line: str, origin: str, tokenizer: Any) -> dict[str, list[int]]:
    try:
        told = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InputInvalid(f"no JSON: {error}", origin=origin, mend="one object a line") from error
    if not isinstance(told, dict) or "clean" not in told:
        raise InputInvalid('there is no "clean"', origin=origin, mend="give text or tokens")
    if unknown := told.keys() - set(KEYS):
        raise InputInvalid(
            f"{min(unknown)!r} is not known here",
            origin=origin,
            mend=did_you_mean(min(unknown), KEYS),
        )
    row = {
        key: _tokens(told.get(key, []), key, origin, tokenizer) for key in ("clean", "corrupted")
    }
    if not row["clean"]:
        raise InputInvalid('"clean" is empty', origin=origin, mend="give text or tokens")
    if row["corrupted"] and len(row["corrupted"]) != len(row["clean"]):
        raise InputInvalid(
            f'"corrupted" has {len(row["corrupted"])} tokens and "clean" {len(row["clean"])}',
            origin=origin,
            mend="replace words by words of as many tokens",
        )
    for key in ("answers", "wrong"):
        words = told.get(key, [])
        if not isinstance(words, list):
            raise InputInvalid(f"{key!r} is no list", origin=origin, mend='such as [" Mary"]')
        row[key] = []
        for word in words:
            found = _tokens(word, key, origin, tokenizer)
            if len(found) != 1:
                raise InputInvalid(
                    f"{word!r} in {key!r} is {len(found)} tokens",
                    origin=origin,
                    mend="give single tokens; most words begin with a space",
                )
            row[key] += found
    length = len(row["clean"])
    places = told.get("positions", [length - 1])
    if (
        not isinstance(places, list)
        or not places
        or not all(type(p) is int and -length <= p < length for p in places)
    ):
        raise InputInvalid(
            f"positions {places!r} are not all in {length} tokens", origin=origin, mend="from 0"
        )
    row["positions"] = [p % length for p in places]
    return row


def _tokens(told: object, key: str, origin: str, tokenizer: Any) -> list[int]:
    if isinstance(told, str):
        if tokenizer is None:
            raise InputInvalid(
                f"{key!r} is text, and this model has no tokenizer",
                origin=origin,
                mend="give tokens",
            )
        try:
            told.encode()
        except UnicodeEncodeError as error:
            raise InputInvalid(
                f"{key!r} has half a character, {told[error.start]!r}",
                origin=origin,
                mend="give both surrogates or none",
            ) from error
        return list(tokenizer(told, add_special_tokens=False)["input_ids"])
    if type(told) is int:
        told = [told]
    if isinstance(told, Sequence) and all(type(x) is int and 0 <= x < LARGEST for x in told):
        return [int(x) for x in told]
    raise InputInvalid(f"{key!r} is {told!r}", origin=origin, mend="give text or tokens")
