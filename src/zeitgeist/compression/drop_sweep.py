"""How far can layer dropping go on a model? Quality, speed and memory for every kind and count.

He, Sun, Shen, Li: "What matters in transformers? Not all attention is needed", arXiv 2406.15786.
Layers are ranked on one part of a text and everything is measured on the rest, so that a row says
what a reader of other text would find. Times are this machine's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxtyping import Int64
from torch import Tensor
from tqdm import tqdm

from zeitgeist.compression.drop import kv_bytes_per_token, open_model
from zeitgeist.compression.drop_ranking import DropOptions, calibration, protected, rank
from zeitgeist.compression.dropped import drop_layers
from zeitgeist.compression.healing import heal as heal_model
from zeitgeist.compression.measures import (
    decode_seconds,
    perplexity,
    prefill_seconds,
    top1_agreement,
)
from zeitgeist.compression.selection import Selection, Wishes, choose
from zeitgeist.errors import InputInvalid
from zeitgeist.training import LoraSettings

__all__ = ["SweepRow", "sweep"]

WAYS = ("attention", "mlp", "blocks", "joint")


@dataclass(frozen=True)
class SweepRow:
    """One model of a sweep; ``way`` is ``"whole"`` for the one it started from.

    ``count`` as asked for: sub-layers, or blocks. ``top1`` is the share of positions at which the
    most likely next token is the whole model's; ``kv_bytes`` is per token; speeds are tokens per
    second at ``context`` tokens; ``healed`` is the perplexity after LoRA, None without.
    """

    way: str
    count: int
    attention: tuple[int, ...]
    mlp: tuple[int, ...]
    parameters: int
    kv_bytes: int
    perplexity: float
    top1: float
    prefill: float
    decode: float
    healed: float | None = None


def measure_row(
    model: Any,
    whole: Any,
    windows: Int64[Tensor, "n t"],
    *,
    context: int,
    way: str = "whole",
    count: int = 0,
    selection: Selection | None = None,
    healed: float | None = None,
) -> SweepRow:
    """Everything about one model.

    Parameters
    ----------
    model, whole
        The one to measure, and the one it was made from.
    windows
        Text to score, which nothing was chosen by.
    context
        Tokens of prefill, and before decoding.
    way, count, selection, healed
        For the row.
    """
    gone = selection or Selection()
    return SweepRow(
        way,
        count,
        gone.attention,
        gone.mlp,
        sum(p.numel() for p in model.parameters()),
        kv_bytes_per_token(model),
        float(perplexity(model, windows)),
        float(top1_agreement(model, whole, windows)),
        context / float(prefill_seconds(model, context)),
        1.0 / float(decode_seconds(model, context)),
        healed,
    )


def sweep(
    reference: str | Path,
    text: str | Path,
    *,
    ways: Sequence[str] = WAYS,
    counts: Sequence[int] = (1, 2, 4, 8),
    options: DropOptions | None = None,
    evaluation: str | Path | None = None,
    context: int = 512,
    heal: LoraSettings | None = None,
    progress: bool | None = None,
) -> list[SweepRow]:
    """Measure a model without so many attention layers, MLPs, blocks, or of both kinds.

    Parameters
    ----------
    reference
        A model: a directory, ``hub:org/name``, ``pypi:package``.
    text
        Calibration text, a file or the text itself.
    ways
        What goes: ``"attention"``, ``"mlp"``, ``"blocks"``, ``"joint"``.
    counts
        How many. Those that a model has not got are left out.
    options
        As for `zeitgeist.compression.drop.drop`.
    evaluation
        Text to score; None: the second half of the calibration windows, the first half ranking.
    context
        Tokens of prefill, and before decoding.
    heal
        Train each model by LoRA on the calibration text; None: do not.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    list of SweepRow
        The whole model first.

    Raises
    ------
    InputInvalid
        A way nobody knows, a count below 1, an adapter, or a text that is too short.
    """
    chosen = options or DropOptions()
    for way in ways:
        if way not in WAYS:
            raise InputInvalid(f"nothing is called {way!r}", mend=f"give {', '.join(WAYS)}")
    if not ways or not counts or min(counts) < 1:
        raise InputInvalid(
            f"the sweep is over ways {list(ways)} and counts {list(counts)}",
            mend="give at least one way and one count of at least 1",
        )
    if context < 1:
        raise InputInvalid(f"the context is {context} tokens", mend="give at least 1")
    _, whole, tokenizer = open_model(reference)
    ranked_on = calibration(tokenizer, text, chosen)
    if evaluation is None:
        if len(ranked_on) < 2:
            raise InputInvalid(
                f"the text has {len(ranked_on)} window of {chosen.length} tokens, and one half "
                "ranks while the other is scored",
                mend="give a longer text, shorter windows, or a text for evaluation",
            )
        half = len(ranked_on) // 2
        ranked_on, scored_on = ranked_on[:half], ranked_on[half:]
    else:
        scored_on = calibration(tokenizer, evaluation, chosen)
    depth = int(whole.config.num_hidden_layers)
    kept = protected(chosen, depth)
    room = depth - len(kept)
    plan = [
        (way, count)
        for way in ways
        for count in counts
        if count <= (2 * room if way == "joint" else room)
    ]
    rows = [measure_row(whole, whole, scored_on, context=context)]
    rankings: dict[Any, Any] = {}
    bar = tqdm(plan, desc="sweep", disable=None if progress is None else not progress)
    for way, count in bar:
        asked = {name: count if name == way else 0 for name in WAYS}
        wishes = Wishes(asked["attention"], asked["mlp"], asked["blocks"], asked["joint"])
        one_shot = "" if chosen.metric != "perplexity" else way
        key = (way, count) if chosen.iterative else one_shot
        if key not in rankings:
            rankings[key] = rank(whole, ranked_on, chosen, wishes, progress=False)
        selection = choose(wishes, depth, rankings[key], kept)
        less = drop_layers(whole, attention=selection.attention, mlp=selection.mlp)
        healed = None
        if heal is not None:
            mended = heal_model(less, ranked_on, heal, progress=False)
            healed = float(perplexity(mended, scored_on))
        rows.append(
            measure_row(
                less,
                whole,
                scored_on,
                context=context,
                way=way,
                count=count,
                selection=selection,
                healed=healed,
            )
        )
    return rows


def pareto(rows: Sequence[SweepRow]) -> list[SweepRow]:
    """The rows that no other beats in both perplexity and decoding speed, the slowest first.

    Examples
    --------
    >>> def row(ppl, speed): return SweepRow("a", 1, (), (), 0, 0, ppl, 1.0, 1.0, speed)
    >>> [r.perplexity for r in pareto([row(10.0, 1.0), row(12.0, 3.0), row(13.0, 2.0)])]
    [10.0, 12.0]
    """
    found: list[SweepRow] = []
    for row in sorted(rows, key=lambda r: (-r.decode, r.perplexity)):
        if not found or row.perplexity < found[-1].perplexity:
            found.append(row)
    return found[::-1]
