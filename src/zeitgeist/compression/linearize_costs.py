"""What a linearized model keeps of its base, and what a token costs it.

A linearized layer keeps a state of fixed size where softmax keeps keys and values of every token,
so that memory and time per token stop growing; below `break_even` tokens softmax keeps less.
Zhang et al.: "LoLCATs", arXiv 2410.10254. Times are this machine's.
"""

import time
import warnings
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from zeitgeist.checkpoints import resolve
from zeitgeist.compression.drop_ranking import file_or_text
from zeitgeist.compression.hybrid_models import state_bytes
from zeitgeist.compression.linearized_files import (
    RECORD,
    base_of,
    is_small,
    open_base,
    open_linearized,
    opened,
)
from zeitgeist.compression.measures import (
    decode_seconds,
    filled_cache,
    perplexity,
    top1_agreement,
)
from zeitgeist.compression.texts import read_windows
from zeitgeist.errors import InputInvalid

__all__ = ["ContextCost", "Evaluation", "break_even", "evaluate"]


@dataclass(frozen=True)
class ContextCost:
    """A decoded token after ``context`` tokens: seconds and bytes kept, linearized and softmax."""

    context: int
    seconds: float
    seconds_softmax: float
    bytes: int
    bytes_softmax: int


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found: perplexities, agreement of the likeliest token, costs by context."""

    perplexity_softmax: float
    perplexity: float
    top1: float
    length: int
    taught_length: int
    break_even: int | None
    costs: tuple[ContextCost, ...]


def evaluate(
    reference: str | Path,
    text: str | Path,
    *,
    length: int = 1024,
    windows: int = 8,
    contexts: Sequence[int] = (1024, 4096, 16384),
    base: str = "",
) -> Evaluation:
    """What a linearized model keeps of its base, and what a token costs at several contexts.

    Parameters
    ----------
    reference
        What `linearize`, `finetune` or `export` wrote; the last with ``base``.
    text
        To score, which nothing was taught on: a file, or the text itself.
    length, windows
        Tokens of a window, and how many at most. Longer windows than it was taught on draw a
        warning: the sum over old keys grows and the window's weight does not.
    contexts
        Tokens before the one that is timed, which need not be read.
    base
        Where the base is, if it was moved.

    Raises
    ------
    InputInvalid
        ``reference`` is not what `linearize` wrote, the text is too short, or a context is not
        positive.
    """
    if not contexts or min(contexts) < 1:
        raise InputInvalid(f"the contexts are {list(contexts)}", mend="give numbers of tokens")
    if length < 2 or windows < 1:
        raise InputInvalid(
            f"{windows} windows of {length} tokens",
            mend="give at least one window of at least 2 tokens",
        )
    place = resolve(reference)
    if not is_small(place) and not base:
        raise InputInvalid(
            f"{str(reference)!r} holds no {RECORD}, which names the base to compare with",
            mend="name the base with --base",
        )
    source = base_of(place, base) if is_small(place) else open_base(base)
    scored = read_text(source.place, text, length)
    scored = scored[:windows]
    model = open_linearized(place, base=base)
    taught = int(model.config.lolcats.get("taught_length", length))
    if length > taught:
        warnings.warn(
            f"the model was taught on windows of {taught} tokens and is scored on {length}",
            stacklevel=2,
        )
    softmax = opened(source.place, model.dtype)
    costs = tuple(
        ContextCost(
            context,
            token_seconds(model, context),
            decode_seconds(softmax, context),
            *state_bytes(model.config, tokens=context),
        )
        for context in contexts
    )
    return Evaluation(
        perplexity(softmax, scored),
        perplexity(model, scored),
        top1_agreement(model, softmax, scored),
        length,
        taught,
        break_even(model.config),
        costs,
    )


@torch.no_grad()
def token_seconds(model: Any, context: int, *, steps: int = 8) -> float:
    """Median seconds for one token after ``context`` tokens, in layers that stay softmax as well.

    `zeitgeist.compression.measures.filled_cache` reads a short prompt where a layer has a state;
    ordinary layers beside it are filled up to the context with what their keys and values are.
    """
    cache = filled_cache(model, context)
    for layer in cache.layers:
        if not getattr(layer, "recurrent_states", None):
            times = -(-context // layer.keys.shape[2])
            layer.keys, layer.values = (
                x.repeat(1, 1, times, 1)[:, :, :context] for x in (layer.keys, layer.values)
            )
    ids, spent = torch.zeros(1, 1, dtype=torch.long, device=model.device), []
    for place in range(context, context + steps + 1):
        at = torch.tensor([[place]], device=model.device)
        started = time.perf_counter()
        model(ids, past_key_values=cache, use_cache=True, position_ids=at)
        if model.device.type == "cuda":
            torch.cuda.synchronize()
        spent.append(time.perf_counter() - started)
    return median(spent[1:])


def break_even(config: Any) -> int | None:
    """Tokens from which on a linearized model keeps fewer bytes than softmax; None: never.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from zeitgeist.compression.hybrid_models import linearize_model
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> made = linearize_model(LlamaForCausalLM(LlamaConfig(**shape)), window=4)
    >>> break_even(made.config), state_bytes(made.config, tokens=9)
    (10, (288, 288))
    """

    def smaller(tokens: int) -> bool:
        linear, softmax = state_bytes(config, tokens=tokens)
        return linear < softmax

    longest = 1 << 40
    found = bisect_left(range(longest), True, key=smaller)
    return found if found < longest else None


def sizes(config: Any) -> dict[str, Any]:
    """Bytes per sequence once the window has filled, bytes per token of softmax, break-even."""
    return {
        "state_bytes": state_bytes(config, tokens=config.sliding_window)[0],
        "kv_bytes": state_bytes(config, tokens=1)[1],
        "break_even": break_even(config),
    }


def read_text(place: Path, text: str | Path, length: int) -> Int64[Tensor, "n length"]:
    """Windows of a text by the tokenizer of a model."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(place, local_files_only=True)
    except (OSError, ValueError) as error:
        raise InputInvalid(
            "there is no tokenizer that can be opened", origin=place, mend="put it beside the model"
        ) from error
    # It is cut into windows, so that its length is no reason to warn.
    tokenizer.deprecation_warnings["sequence-length-is-longer-than-the-specified-maximum"] = True
    return read_windows(tokenizer, file_or_text(text), length=length)
