"""Text as windows of tokens, for calibration and for scoring."""

from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor

from zeitgeist.errors import InputInvalid


def read_windows(
    tokenizer: Any, text: str | Path, *, length: int, count: int | None = None
) -> Int[Tensor, "n length"]:
    """Consecutive windows of a text, none overlapping.

    Parameters
    ----------
    tokenizer
        Of the model: a callable that gives ``input_ids``.
    text
        A UTF-8 file, or the text itself.
    length
        Tokens of each window, at least 2.
    count
        How many, from the start; None: all that the text has.

    Returns
    -------
    Tensor
        Token ids.

    Raises
    ------
    InputInvalid
        The file cannot be read as text, or is too short; the message says how many tokens it has.

    Examples
    --------
    >>> def letters(text, add_special_tokens): return {"input_ids": list(map(ord, text))}
    >>> read_windows(letters, "abcdefg", length=3).shape
    torch.Size([2, 3])
    """
    if length < 2 or (count is not None and count < 1):
        raise InputInvalid(
            f"{count} windows of {length} tokens were asked for",
            mend="give at least one window of at least 2 tokens",
        )
    origin = str(text) if isinstance(text, Path) else ""
    if isinstance(text, Path):
        try:
            text = text.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise InputInvalid(
                f"the text cannot be read: {error}", origin=origin, mend="give a UTF-8 text file"
            ) from error
    ids = torch.tensor(tokenizer(text, add_special_tokens=False)["input_ids"], dtype=torch.int64)
    room = len(ids) // length
    if room < (count or 1):
        raise InputInvalid(
            f"the text has {len(ids)} tokens and {(count or 1) * length} are needed "
            f"({count or 1} windows of {length})",
            origin=origin,
            mend="give a longer text, or fewer or shorter windows",
        )
    return ids[: (count or room) * length].view(-1, length)
