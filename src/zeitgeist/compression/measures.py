"""What a cheaper model costs and keeps: loss, agreement, speed, memory.

Perplexity is exp of the mean negative log-likelihood over all scored tokens; the first token of a
window is context only. Times are medians, on the device that the model is on.
"""

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

_CHUNK = 512
"""Tokens read at a time where a cache cannot be filled directly."""


@torch.no_grad()
def token_nll(
    model: Any, windows: Int[Tensor, "n length"], *, batch_size: int = 1
) -> Float[Tensor, "n scored"]:
    """Negative log-likelihood of every token but the first of each window, in nats.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> token_nll(LlamaForCausalLM(LlamaConfig(**shape)), torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 4])
    """
    model.eval()
    found = []
    for batch in windows.split(batch_size):
        ids = batch.to(model.device)
        logits = model(ids, use_cache=False).logits[:, :-1].float()
        chosen = logits.log_softmax(-1).gather(-1, ids[:, 1:, None]).squeeze(-1)
        found.append(-chosen.cpu())
    return torch.cat(found)


def perplexity(model: Any, windows: Int[Tensor, "n length"], *, batch_size: int = 1) -> float:
    """exp of the mean `token_nll`."""
    return float(token_nll(model, windows, batch_size=batch_size).double().mean().exp())


@torch.no_grad()
def top1_agreement(model: Any, reference: Any, windows: Int[Tensor, "n length"]) -> float:
    """Share of positions where both models think the same next token likeliest."""
    agree = []
    for row in windows.split(1):
        guesses = [
            each(row.to(each.device), use_cache=False).logits.argmax(-1).cpu()
            for each in (model.eval(), reference.eval())
        ]
        agree.append((guesses[0] == guesses[1]).double().mean())
    return float(torch.stack(agree).mean())


@torch.no_grad()
def prefill_seconds(model: Any, length: int, *, repeats: int = 3, seed: int = 0) -> float:
    """Median seconds to read a prompt of random tokens, after one unmeasured run."""
    ids = _random_ids(model, length, seed)

    def read() -> None:
        model(ids, use_cache=True, logits_to_keep=1)

    read()
    return median(_seconds(read, model.device) for _ in range(repeats))


@torch.no_grad()
def decode_seconds(model: Any, context: int, *, steps: int = 8, seed: int = 0) -> float:
    """Median seconds for one token after ``context`` tokens.

    Where every layer of the cache is an ordinary one it is filled with random keys and values:
    what they are does not matter to the clock. A cache with a state is filled by a short forward
    pass and told its length by positions, since its size does not depend on it.
    """
    model.eval()
    cache = filled_cache(model, context, seed=seed)
    ids = _random_ids(model, 1, seed)
    places = iter(range(context, context + steps + 1))

    def write() -> None:
        position = torch.tensor([[next(places)]], device=model.device)
        model(ids, past_key_values=cache, use_cache=True, position_ids=position)

    write()
    return median(_seconds(write, model.device) for _ in range(steps))


@torch.no_grad()
def filled_cache(model: Any, context: int, *, seed: int = 0) -> Any:
    """A cache as it stands after ``context`` tokens of one sequence.

    Parameters
    ----------
    model
        A causal transformers model.
    context
        Tokens.
    seed
        Of the keys and values, or of the tokens that are read.
    """
    config = model.config
    first = _random_ids(model, 2, seed)
    probe = model(first, use_cache=True).past_key_values
    if not any(getattr(layer, "recurrent_states", None) for layer in probe.layers):
        generator = torch.Generator().manual_seed(seed)
        cache = DynamicCache(config=config)
        for index, layer in enumerate(probe.layers):
            if getattr(layer, "keys", None) is None:
                continue  # a layer without attention
            keys, values = (
                torch.randn((*x.shape[:2], context, x.shape[3]), generator=generator).to(x)
                for x in (layer.keys, layer.values)
            )
            cache.update(keys, values, index)
        return cache
    cache = model(_random_ids(model, min(context, _CHUNK), seed), use_cache=True).past_key_values
    for layer in cache.layers:
        if hasattr(layer, "cumulative_length"):
            layer.cumulative_length = context
    return cache


def cache_bytes(cache: Any) -> int:
    """Bytes of everything a cache holds: keys, values, recurrent and convolutional states.

    Examples
    --------
    >>> cache = DynamicCache()
    >>> _ = cache.update(torch.zeros(1, 2, 3, 4), torch.zeros(1, 2, 3, 4), 0)
    >>> cache_bytes(cache)
    192
    """
    tensors: list[Tensor] = []
    for layer in cache.layers:
        tensors += [
            t
            for t in (getattr(layer, "keys", None), getattr(layer, "values", None))
            if t is not None
        ]
        for name in ("recurrent_states", "conv_states"):
            tensors += [t for t in (getattr(layer, name, None) or {}).values() if t is not None]
    return sum(t.numel() * t.element_size() for t in tensors)


def _random_ids(model: Any, length: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(model.config.vocab_size, (1, length), generator=generator)
    return ids.to(model.device)


def _seconds(run: Callable[[], None], device: torch.device) -> float:
    _wait(device)
    started = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - started


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
