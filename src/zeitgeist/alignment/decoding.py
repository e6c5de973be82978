"""Tokens one after another for many prompts at once, with whoever chooses them outside.

One loop serves mixed contexts, drafts and answers. Prompts are filled on the left, positions count
from the first real token, keys and values are cached. What is drawn depends on the seed and on the
number of the example, never on which others are in its batch: each position has a uniform number of
its own, and the token is where the cumulative distribution passes it.

b: sequences, v: vocabulary, t: positions.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor
from tqdm import tqdm

from zeitgeist.errors import InputInvalid
from zeitgeist.training.positions import longest_input

Choice = Callable[[int, Float[Tensor, "b v"]], Int64[Tensor, " b"]]
"""``(step, logits) -> tokens``: what stands next in every sequence."""


@contextmanager
def evaluating(model: Any) -> Iterator[Any]:
    """The model without dropout; afterwards every module is in the mode it was found in.

    Examples
    --------
    >>> model = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Dropout().eval())
    >>> with evaluating(model):
    ...     any(module.training for module in model.modules())
    False
    >>> [module.training for module in model.modules()]
    [True, True, False]
    """
    found = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield model
    finally:
        for module, training in found:
            module.training = training


@torch.no_grad()
def rollout(
    model: Any,
    prompts: Sequence[Sequence[int]],
    steps: int,
    choose: Choice,
    *,
    pad: int,
    finished: Callable[[], bool] | None = None,
) -> Int64[Tensor, "b t"]:
    """Continue prompts by at most so many tokens.

    Parameters
    ----------
    model
        A causal transformers model in evaluation mode.
    prompts
        Token ids, at least one each.
    steps
        At most.
    choose
        Says what comes next.
    pad
        Token id to fill with; the model does not see it.
    finished
        Asked after every step; None: never.

    Returns
    -------
    Tensor
        What was chosen, on the processor.
    """
    device = model.device
    width = max(map(len, prompts))
    ids = torch.full((len(prompts), width), pad, device=device)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(prompt, device=device)
        mask[row, width - len(prompt) :] = 1
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    cache = None
    chosen: list[Tensor] = []
    for step in range(steps):
        out = model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
        cache = out.past_key_values
        tokens = choose(step, out.logits[:, -1].float())
        chosen.append(tokens.cpu())
        if finished is not None and finished():
            break
        ids = tokens[:, None]
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        positions = positions[:, -1:] + 1
    return torch.stack(chosen, dim=1) if chosen else torch.zeros((len(prompts), 0)).long()


def draw_tokens(
    logits: Float[Tensor, "b v"],
    uniform: Float[Tensor, " b"],
    *,
    temperature: float,
    forbidden: Bool[Tensor, " v"] | None = None,
) -> Int64[Tensor, " b"]:
    """A token of softmax(logits / temperature) per row, where its distribution passes ``uniform``.

    Parameters
    ----------
    logits
        Of the next token.
    uniform
        Numbers in [0, 1).
    temperature
        0: the likeliest.
    forbidden
        Tokens that have no chance.

    Examples
    --------
    >>> even = torch.zeros(3, 4)
    >>> draw_tokens(even, torch.tensor([0.0, 0.3, 0.99]), temperature=1.0).tolist()
    [0, 1, 3]
    >>> first = torch.tensor([True, False, False, False])
    >>> draw_tokens(even, torch.tensor([0.0, 0.3, 0.99]), temperature=1.0, forbidden=first).tolist()
    [1, 1, 3]
    """
    if forbidden is not None:
        logits = logits.masked_fill(forbidden.to(logits.device), -torch.inf)
    if temperature == 0:
        return logits.argmax(dim=-1)
    # In float64: over 50,000 tokens a sum in float32 would lose the unlikely ones.
    # The likeliest is at 0, so that no temperature, however small, makes infinities.
    centred = logits.double() - logits.amax(dim=-1, keepdim=True)
    reached = torch.softmax(centred / temperature, dim=-1).cumsum(dim=-1)
    total = reached[:, -1]
    # Rounding may bring the product up to the total, which nothing lies beyond.
    wanted = torch.minimum(
        uniform.to(total) * total, torch.nextafter(total, torch.zeros_like(total))
    )
    return torch.searchsorted(reached, wanted[:, None], right=True).squeeze(1)


def drafts(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    limit: int,
    ending: int,
    forbidden: Bool[Tensor, " v"] | None,
    temperature: float,
    pad: int,
    seeds: Sequence[Sequence[int]],
    batch_size: int = 32,
    progress: bool | None = False,
) -> Iterator[tuple[int, tuple[int, ...]]]:
    """A model's own answers, without the token that ends them, as they become ready.

    Parameters
    ----------
    model, prompts, pad
        See `rollout`.
    limit
        Tokens of an answer, at most.
    ending
        Token id that ends an answer.
    forbidden
        See `draw_tokens`; the ending is allowed whatever it says.
    temperature
        See `draw_tokens`.
    seeds
        Of every prompt's numbers.
    batch_size
        Prompts at a time; those of like length go together.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Yields
    ------
    tuple
        The number of a prompt, and its answer.
    """
    # The last token of an answer is drawn and never read.
    check_context(model, (len(prompt) + limit - 1 for prompt in prompts))
    if forbidden is not None:
        forbidden = forbidden.clone()
        forbidden[ending] = False
    for rows in watched([len(prompt) for prompt in prompts], batch_size, "answer", progress):
        uniform = torch.from_numpy(np.stack([numbers(seeds[row], limit) for row in rows]))
        done = torch.zeros(len(rows), dtype=torch.bool)

        def choose(
            step: int, logits: Tensor, uniform: Tensor = uniform, done: Tensor = done
        ) -> Any:
            tokens = draw_tokens(
                logits, uniform[:, step], temperature=temperature, forbidden=forbidden
            )
            done |= (tokens == ending).cpu()
            return tokens

        found = rollout(
            model,
            [prompts[row] for row in rows],
            limit,
            choose,
            pad=pad,
            finished=partial(_all, done),
        )
        for row, tokens in zip(rows, found.tolist(), strict=True):
            yield row, tuple(tokens[: tokens.index(ending)] if ending in tokens else tokens)


def check_context(model: Any, lengths: Iterable[int]) -> None:
    """Refuse sequences that are longer than what a model reads.

    Raises
    ------
    InputInvalid
        One is.
    """
    longest, limit = max(lengths), longest_input(model)
    if longest > limit:
        raise InputInvalid(
            f"a prompt and its answer take {longest} tokens and the model reads {limit}",
            mend="leave it out, or ask for fewer tokens",
        )


def check_known(model: Any, sequences: Iterable[Sequence[int]]) -> None:
    """Refuse token ids that a model has no row for.

    Raises
    ------
    InputInvalid
        The tokenizer is another model's, or was enlarged without the model.
    """
    rows = int(model.get_input_embeddings().weight.shape[0])
    highest = max(map(max, sequences))
    if highest >= rows:
        raise InputInvalid(
            f"the tokenizer writes token {highest} and the model knows {rows}",
            mend="use the model's own tokenizer, or resize the model's embeddings",
        )


def check_temperature(temperature: float) -> None:
    """Refuse what no softmax is taken at.

    Raises
    ------
    InputInvalid
        It is negative, infinite or no number.
    """
    if not 0 <= temperature < math.inf:
        raise InputInvalid(f"the temperature is {temperature}", mend="give 0 or more")


def _all(done: Bool[Tensor, " b"]) -> bool:
    return bool(done.all())


def numbers(seed: Sequence[int], count: int) -> Float[np.ndarray, " count"]:
    """Uniform numbers of one example, of its own generator.

    Examples
    --------
    >>> bool((numbers([0, 1], 4)[:2] == numbers([0, 1], 2)).all())
    True
    """
    return np.random.default_rng(list(seed)).random(count)


def batches(lengths: Sequence[int], size: int) -> Iterator[list[int]]:
    """Numbers of examples, those of like length together.

    Examples
    --------
    >>> list(batches([5, 1, 3], 2))
    [[1, 2], [0]]
    """
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    for start in range(0, len(order), size):
        yield order[start : start + size]


def watched(
    lengths: Sequence[int], size: int, title: str, progress: bool | None
) -> Iterator[list[int]]:
    """The same, with a bar that counts examples."""
    hidden = None if progress is None else not progress
    with tqdm(total=len(lengths), desc=title, unit="example", disable=hidden) as bar:
        for rows in batches(lengths, size):
            yield rows
            bar.update(len(rows))


def control_tokens(model: Any, tokenizer: Any) -> Bool[Tensor, " v"]:
    """Tokens that no text is made of: special ones, those that end or fill, rows without a token.

    Parameters
    ----------
    model
        Its configuration and generation settings are asked what ends an answer.
    tokenizer
        Of transformers.
    """
    size = int(model.get_output_embeddings().weight.shape[0])
    special = {*tokenizer.all_special_ids, *range(len(tokenizer), size)}
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for settings in (model.config, getattr(model, "generation_config", None)):
        for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
            found = getattr(settings, name, None)
            special |= {*found} if isinstance(found, (list, tuple)) else {found}
    mask = torch.zeros(size, dtype=torch.bool)
    mask[[i for i in special if i is not None and 0 <= i < size]] = True
    return mask
