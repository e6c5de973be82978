"""Texts of several domains as windows of one length: heads that are compared must see as much.

A short text makes every sink look large, since early queries have little else to attend to, and a
left-padded one has a padding token at its start. So nothing is padded, and a text without one whole
window is refused.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from zeitgeist.errors import InputInvalid


@dataclass(frozen=True)
class Windows:
    """Token windows of one domain, and which text each is from."""

    ids: Int[Tensor, "b n"]
    texts: tuple[int, ...]


def check_context(model: Any, length: int) -> None:
    """Refuse windows that are longer than a table of learned positions.

    Raises
    ------
    InputInvalid
        They are.
    """
    limit = getattr(model.config, "n_positions", None)
    if limit is not None and length > limit:
        raise InputInvalid(
            f"a window has {length} tokens and the model reads {limit}",
            mend=f"give a length of {limit} or less",
        )


def domain_windows(
    tokenizer: Any,
    domains: Mapping[str, Sequence[str] | str],
    *,
    length: int,
    count: int,
    bos: bool = False,
) -> dict[str, Windows]:
    """Windows of every domain, none overlapping.

    Parameters
    ----------
    tokenizer
        Of the model: a callable that gives ``input_ids``.
    domains
        Name to texts, or to one text.
    length
        Tokens of every window.
    count
        Windows of each domain, spread evenly over its texts; fewer where it has fewer.
    bos
        Begin every window with the tokenizer's BOS; else it begins as the text goes on.

    Raises
    ------
    InputInvalid
        No domain, no text, a text that is too short, or no BOS where one is wanted.

    Examples
    --------
    >>> def letters(text, add_special_tokens): return {"input_ids": list(map(ord, text))}
    >>> found = domain_windows(letters, {"a": ["abcdefg", "hij"], "b": "klm"}, length=3, count=9)
    >>> found["a"].texts, found["b"].ids.tolist()
    ((0, 0, 1), [[107, 108, 109]])
    """
    if not domains:
        raise InputInvalid("there are no domains", mend="give texts of at least one")
    first = []
    if bos:
        if getattr(tokenizer, "bos_token_id", None) is None:
            raise InputInvalid("the tokenizer has no BOS token", mend="leave it out")
        first = [int(tokenizer.bos_token_id)]
    room = length - len(first)
    if room < 2 or count < 1:
        raise InputInvalid(
            f"{count} windows of {length} tokens were asked for",
            mend="give at least one window of at least 3 tokens",
        )
    # Whole books are cut up here: that they are longer than the model's context means nothing.
    quiet = {"verbose": False} if hasattr(tokenizer, "model_max_length") else {}
    found = {}
    for name, given in domains.items():
        rows: list[list[int]] = []
        origins: list[int] = []
        for index, text in enumerate([given] if isinstance(given, str) else given):
            ids = tokenizer(text, add_special_tokens=False, **quiet)["input_ids"]
            if len(ids) < room:
                raise InputInvalid(
                    f"text {index} has {len(ids)} tokens and a window has {room}",
                    origin=f"domain {name!r}",
                    mend="leave it out, or ask for shorter windows: all have one length",
                )
            for start in range(0, len(ids) - room + 1, room):
                rows.append(first + ids[start : start + room])
                origins.append(index)
        if not rows:
            raise InputInvalid("there are no texts", origin=f"domain {name!r}", mend="give some")
        some = [i * len(rows) // min(count, len(rows)) for i in range(min(count, len(rows)))]
        found[name] = Windows(
            torch.tensor([rows[i] for i in some], dtype=torch.int64),
            tuple(origins[i] for i in some),
        )
    return found
