"""Plain English that every Python ships with, cut into windows for training and for scoring.

The language reference in `pydoc_data.topics`: technical prose that a small model predicts neither
perfectly nor badly. Whole topics go to one of three parts, drawn by the seed, so that nothing a
model was trained or calibrated on is scored. A paragraph that stands under two topics counts once.

With w_p the share of part p and n_p the letters it has, each topic, in an order drawn by the seed,
goes to the part with the least n_p / w_p.
"""

from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from torch import Tensor

from zeitgeist.errors import InputInvalid, did_you_mean

SHARES: Mapping[str, float] = {"train": 0.5, "calibration": 0.2, "evaluation": 0.3}
"""Of the letters of all topics, about."""

LEAST = 80
"""Letters of a paragraph; shorter ones are headings and items of lists."""


def windows(
    tokenizer: Any, *, part: str, seed: int, length: int, count: int
) -> Int64[Tensor, "count length"]:
    """Token windows of one part of the prose.

    Parameters
    ----------
    tokenizer
        Of the model: a callable that gives ``input_ids``.
    part
        ``"train"``, ``"calibration"`` or ``"evaluation"``; no topic is in two of one seed.
    seed
        Decides which topics are in which part, and their order.
    length
        Tokens of each window.
    count
        How many windows, evenly spaced over the part; none overlap.

    Returns
    -------
    Tensor
        Token ids.

    Raises
    ------
    InputInvalid
        No such part, or it has fewer windows of that length.

    Examples
    --------
    >>> def letters(text, add_special_tokens): return {"input_ids": list(map(ord, text))}
    >>> windows(letters, part="evaluation", seed=0, length=16, count=3).shape
    torch.Size([3, 16])
    """
    if length < 1 or count < 1:
        raise InputInvalid(
            f"{count} windows of {length} tokens were asked for", mend="give at least 1 of each"
        )
    found: list[int] = []
    for text in documents(seed)[_known(part)]:
        found += tokenizer(text + "\n\n", add_special_tokens=False)["input_ids"]
    ids = torch.tensor(found, dtype=torch.int64)
    room = len(ids) // length
    if room < count:
        raise InputInvalid(
            f"the {part} part of the prose has {room} windows of {length} tokens, not {count}",
            mend="ask for fewer or shorter windows",
        )
    chosen = torch.arange(count) * room // count
    return ids[: room * length].view(room, length)[chosen]


def documents(seed: int) -> dict[str, list[str]]:
    """The topics of every part, as running text.

    Parameters
    ----------
    seed
        Of the order of topics, in which they are dealt out.

    Examples
    --------
    >>> parts = documents(0)
    >>> sorted(parts), set(parts["train"]) & set(parts["evaluation"])
    (['calibration', 'evaluation', 'train'], set())
    """
    topics = _topics()
    parts: dict[str, list[str]] = {part: [] for part in SHARES}
    sizes = dict.fromkeys(SHARES, 0)
    for i in np.random.default_rng(seed).permutation(len(topics)):
        part = min(SHARES, key=lambda name: sizes[name] / SHARES[name])
        parts[part].append(topics[i])
        sizes[part] += len(topics[i])
    return parts


def _known(part: str) -> str:
    if part not in SHARES:
        raise InputInvalid(f"the prose has no part {part!r}", mend=did_you_mean(part, SHARES))
    return part


@cache
def _topics() -> tuple[str, ...]:
    from pydoc_data.topics import topics

    seen: set[str] = set()
    found = []
    for name in sorted(topics):
        prose = []
        for paragraph in topics[name].split("\n\n"):
            text = " ".join(paragraph.split())
            sentence = text[:1].isupper() and text[-1:] in ".:" and "::=" not in text
            if sentence and len(text) >= LEAST and text not in seen:
                seen.add(text)
                prose.append(text)
        if prose:
            found.append("\n\n".join(prose))
    return tuple(found)
