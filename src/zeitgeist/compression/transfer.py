"""Attention transfer: teach feature maps what softmax attention answers, one layer at a time.

Zhang, Arora, Chalamala, Wu, Spector, Singhal, Ramesh, Re: "LoLCATs: On Low-Rank Linearizing of
Large Language Models", arXiv 2410.10254. With q, k, v of layer l as the softmax model has them,

    loss = weight * mean_l MSE( hybrid(q, k, v), softmax(q, k, v) )       per head, before o_proj

and nothing learns but the maps and gates. Every layer is fed with what softmax answered before it,
so the sum falls apart into one loss per layer: training each alone from its own q, k and v is
training all at once, and only one layer's are held beside the hidden states.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss, scaled_dot_product_attention
from tqdm import tqdm

from zeitgeist.compression.hybrid_models import LinearizedAttention
from zeitgeist.errors import InputInvalid

EVALUATIONS = 10
"""Times that a layer is scored on validation windows while it learns."""


@dataclass(frozen=True)
class TransferOptions:
    """How maps are taught.

    Parameters
    ----------
    steps
        Optimiser steps per layer; 0 only measures.
    batch_size
        Windows per step.
    learning_rate
        Of AdamW without weight decay, 1e-2 (the authors' configuration).
    mse_weight
        Of the loss, 1000 (theirs): it does not move AdamW but for its epsilon.
    patience, factor, least
        The rate is multiplied by .1 after 10 evaluations without progress, down to 1e-5 (theirs).
    seed
        Of the order of windows.
    """

    steps: int = 100
    batch_size: int = 1
    learning_rate: float = 1e-2
    mse_weight: float = 1000.0
    patience: int = 10
    factor: float = 0.1
    least: float = 1e-5
    seed: int = 0

    def __post_init__(self) -> None:
        for name, lowest in (("steps", 0), ("batch_size", 1)):
            if getattr(self, name) < lowest:
                raise InputInvalid(
                    f"{name} is {getattr(self, name)}", mend=f"give at least {lowest}"
                )


@dataclass(frozen=True)
class TransferReport:
    """Per layer, in order: squared error over variance on validation windows, and the gates.

    A layer that was not converted has NaN.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    gamma: tuple[tuple[float, ...], ...]


class Lesson(NamedTuple):
    """What a layer learns from: b windows of n tokens, keys repeated to the query heads."""

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b h n d"]
    v: Float[Tensor, "b h n d"]
    y: Float[Tensor, "b h n d"]


@torch.no_grad()
def lessons(model: Any, windows: Int[Tensor, "b n"]) -> Iterator[tuple[int, Lesson]]:
    """Layer by layer, queries, keys, values and softmax outputs of the model before conversion.

    Parameters
    ----------
    model
        A linearized model; its projections are those of the softmax model.
    windows
        Token ids, no padding.

    Yields
    ------
    tuple
        The layer and what it learns from; the next layer is computed when it is asked for.
    """
    inner = model.model
    hidden = inner.embed_tokens(windows.to(model.device))
    places = torch.arange(windows.shape[1], device=model.device)[None]
    embeddings = inner.rotary_emb(hidden, position_ids=places)
    for index, layer in enumerate(inner.layers):
        normed, attention = layer.input_layernorm(hidden), layer.self_attn
        if isinstance(attention, LinearizedAttention):
            q, k, v = attention.projected(normed, embeddings)
            k, v = (x.repeat_interleave(attention.groups, 1) for x in (k, v))
            behind = places.T - places
            reach = model.config.lolcats["base_windows"][index] or windows.shape[1]
            seen = (behind >= 0) & (behind < reach)
            y = scaled_dot_product_attention(q, k, v, seen, scale=attention.scaling)
            yield index, Lesson(q, k, v, y)
            mixed = attention.o_proj(y.transpose(1, 2).flatten(2))
        else:
            mixed, _ = attention(
                normed, position_embeddings=embeddings, attention_mask=None, position_ids=places
            )
        hidden = hidden + mixed
        hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))


def transfer_attention(
    model: Any,
    windows: Int[Tensor, "b n"],
    validation: Int[Tensor, "v n"],
    *,
    options: TransferOptions | None = None,
    progress: bool | None = None,
) -> TransferReport:
    """Teach the maps and gates of a linearized model, in place.

    Parameters
    ----------
    model
        As `zeitgeist.compression.hybrid_models.linearize_model` returns it.
    windows
        Token ids to learn from.
    validation
        Token ids on which a layer is scored; the best maps seen are kept.
    options
        None: the defaults of `TransferOptions`.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Raises
    ------
    InputInvalid
        The model has no linearized layer, or there is no text.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> from zeitgeist.compression.hybrid_models import linearize_model
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = linearize_model(LlamaForCausalLM(LlamaConfig(**shape)), window=2)
    >>> text = torch.arange(32).view(4, 8) % 16
    >>> report = transfer_attention(
    ...     model, text[:2], text[2:], options=TransferOptions(steps=5), progress=False
    ... )
    >>> report.after[0] <= report.before[0]
    True
    """
    chosen = options or TransferOptions()
    layers = model.model.layers
    if not any(isinstance(layer.self_attn, LinearizedAttention) for layer in layers):
        raise InputInvalid("the model has no linearized layer", mend="linearize it first")
    if not (len(windows) and len(validation)):
        raise InputInvalid(
            f"there are {len(windows)} windows to learn from and {len(validation)} to score",
            mend="give at least one of each",
        )
    count = len(layers)
    before, after = [float("nan")] * count, [float("nan")] * count
    gamma: list[tuple[float, ...]] = [()] * count
    # Both in one pass: what is scored is not learned.
    both = torch.cat([windows, validation])
    bar = tqdm(
        lessons(model, both),
        total=len(model.config.lolcats["layers"]),
        desc="transfer",
        unit="layer",
        disable=None if progress is None else not progress,
    )
    for index, lesson in bar:
        attention = layers[index].self_attn
        taught = Lesson(*(x[: len(windows)] for x in lesson))
        scored = Lesson(*(x[len(windows) :] for x in lesson))
        before[index], after[index] = teach_layer(attention, taught, scored, chosen)
        gamma[index] = tuple(attention.gate.detach().sigmoid().tolist())
        bar.set_postfix(error=f"{before[index]:.3f}>{after[index]:.3f}")
    return TransferReport(tuple(before), tuple(after), tuple(gamma))


@torch.no_grad()
def relative_error(attention: LinearizedAttention, lesson: Lesson) -> float:
    """Mean squared error of a layer's outputs over the variance of softmax's."""
    errors = [
        mse_loss(attention.attend(q[None], k[None], v[None]).float(), y[None].float())
        for q, k, v, y in zip(*lesson, strict=True)
    ]
    return float(torch.stack(errors).mean() / lesson.y.float().var(correction=0))


@torch.enable_grad()
def teach_layer(
    attention: LinearizedAttention, taught: Lesson, scored: Lesson, options: TransferOptions
) -> tuple[float, float]:
    """Train one layer's maps and gate; the relative error before and after, on other windows."""
    maps = [*attention.feature_map_q.parameters(), *attention.feature_map_k.parameters()]
    learned = [*maps, attention.gate]
    first = least = relative_error(attention, scored)
    if not options.steps:
        return first, first
    best = [parameter.detach().clone() for parameter in learned]
    required = [parameter.requires_grad for parameter in learned]
    for parameter in learned:
        parameter.requires_grad_()
    optimizer = torch.optim.AdamW(learned, lr=options.learning_rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=options.factor, patience=options.patience, min_lr=options.least
    )
    generator = torch.Generator().manual_seed(options.seed)
    order: list[int] = []
    every = max(1, options.steps // EVALUATIONS)
    for step in range(1, options.steps + 1):
        while len(order) < options.batch_size:
            order += torch.randperm(len(taught.q), generator=generator).tolist()
        picked, order = order[: options.batch_size], order[options.batch_size :]
        q, k, v, y = (x[picked] for x in taught)
        wide = torch.promote_types(y.dtype, torch.float32)
        loss = options.mse_weight * mse_loss(attention.attend(q, k, v).to(wide), y.to(wide))
        optimizer.zero_grad()
        torch.autograd.backward(loss, inputs=learned)
        optimizer.step()
        if step % every == 0 or step == options.steps:
            error = relative_error(attention, scored)
            schedule.step(error)
            if error < least:
                least, best = error, [parameter.detach().clone() for parameter in learned]
    with torch.no_grad():
        for parameter, value, needed in zip(learned, best, required, strict=True):
            parameter.copy_(value)
            parameter.requires_grad_(needed)
    return first, least
