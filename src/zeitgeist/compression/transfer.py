"""Attention transfer: teach feature maps what softmax attention answers, one layer at a time.

Zhang, Arora, Chalamala, Wu, Spector, Singhal, Ramesh, Re: "LoLCATs: On Low-Rank Linearizing of
Large Language Models", arXiv 2410.10254. With q, k, v of layer l as the softmax model has them,

    loss = weight * mean_l MSE( hybrid(q, k, v), softmax(q, k, v) )       per head, before o_proj

and nothing learns but the maps and gates; the cross-entropy between the rows of both attentions can
be added (the authors' 405B). Every layer is fed with what softmax answered before it,
so the sum falls apart into one loss per layer: training each alone from its own q, k and v is
training all at once, and only one layer's are held beside the hidden states.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import mse_loss, scaled_dot_product_attention
from tqdm import tqdm

from zeitgeist.compression.hybrid_attention import hybrid_quadratic
from zeitgeist.compression.hybrid_models import LinearizedAttention
from zeitgeist.errors import InputInvalid

NAN = float("nan")
ROWS = 4
"""Windows that go through a layer at once."""
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
    xent_weight
        Of the cross-entropy between attention weights, 0; 1 for their 405B. It takes n x n memory.
    patience, factor, least
        The rate is multiplied by .1 after 10 evaluations without progress, down to 1e-5 (theirs).
        A layer is scored `EVALUATIONS` times, so that this takes a smaller patience than theirs.
    seed
        Of the order of windows.
    """

    steps: int = 100
    batch_size: int = 1
    learning_rate: float = 1e-2
    mse_weight: float = 1000.0
    xent_weight: float = 0.0
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
    """Per layer, in order, on validation windows; NaN for a layer that was not converted.

    ``before`` and ``after`` are squared error over variance, ``gamma`` the window's weight per
    head, ``entropy`` that of softmax's weights in nats, mean over heads and tokens.
    """

    before: tuple[float, ...]
    after: tuple[float, ...]
    gamma: tuple[tuple[float, ...], ...]
    entropy: tuple[float, ...]


class Lesson(NamedTuple):
    """What a layer learns from: b windows of n tokens, and which keys each query may see."""

    q: Float[Tensor, "b h n d"]
    k: Float[Tensor, "b r n d"]
    v: Float[Tensor, "b r n d"]
    y: Float[Tensor, "b h n d"]
    seen: Bool[Tensor, "n n"]

    def rows(self, at: slice | list[int]) -> "Lesson":
        """Some of the windows."""
        return Lesson(self.q[at], self.k[at], self.v[at], self.y[at], self.seen)


@runtime_checkable
class Ledger(Protocol):
    """Where layers that were taught are kept, so that a stopped run goes on after them."""

    def recall(self, index: int, attention: LinearizedAttention) -> dict[str, Any] | None:
        """Put back what a layer learned; what was noted beside it, or None: nothing is known."""
        ...

    def note(self, index: int, attention: LinearizedAttention, facts: dict[str, Any]) -> None:
        """Keep what a layer learned."""
        ...


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
        The layer and what it learns from; the next layer is computed when it is asked for, some
        windows at a time, so that no more is held than hidden states and one layer's lesson.
    """
    inner, length = model.model, windows.shape[1]
    pieces = [inner.embed_tokens(row.to(model.device)) for row in windows.split(ROWS)]
    places = torch.arange(length, device=model.device)[None]
    embeddings = inner.rotary_emb(pieces[0], position_ids=places)
    behind = places.T - places
    for index, layer in enumerate(inner.layers):
        attention, taken = layer.self_attn, []
        reach = model.config.lolcats["base_windows"][index] or length
        seen = (behind >= 0) & (behind < reach)
        for at, hidden in enumerate(pieces):
            normed = layer.input_layernorm(hidden)
            if isinstance(attention, LinearizedAttention):
                q, k, v = attention.projected(normed, embeddings)
                y = _softmax(attention, q, k, v, seen)
                taken.append((q, k, v, y))
                mixed = attention.o_proj(y.transpose(1, 2).flatten(2))
            else:
                least = torch.finfo(hidden.dtype).min
                later = torch.zeros_like(behind, dtype=hidden.dtype).masked_fill(behind < 0, least)
                mixed, _ = attention(
                    normed,
                    position_embeddings=embeddings,
                    attention_mask=later[None, None],
                    position_ids=places,
                )
            hidden = hidden + mixed
            pieces[at] = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        if taken:
            q, k, v, y = (torch.cat(x) for x in zip(*taken, strict=True))
            yield index, Lesson(q, k, v, y, seen)


def _softmax(
    attention: LinearizedAttention,
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b r n d"],
    v: Float[Tensor, "b r n d"],
    seen: Bool[Tensor, "n n"],
) -> Float[Tensor, "b h n d"]:
    keys, values = attention.repeated(k), attention.repeated(v)
    return scaled_dot_product_attention(q, keys, values, seen, scale=attention.scaling)


def transfer_attention(
    model: Any,
    windows: Int[Tensor, "b n"],
    validation: Int[Tensor, "v n"],
    *,
    options: TransferOptions | None = None,
    ledger: Ledger | None = None,
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
    ledger
        Where taught layers are kept as they come; None: nowhere.
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
    nothing = {"before": NAN, "after": NAN, "gamma": (), "entropy": NAN}
    facts: list[dict[str, Any]] = [nothing] * len(layers)
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
        known = ledger.recall(index, attention) if ledger else None
        if known is None:
            taught, scored = (
                lesson.rows(slice(len(windows))),
                lesson.rows(slice(len(windows), None)),
            )
            before, after = teach_layer(attention, taught, scored, chosen)
            if math.isnan(before):
                raise InputInvalid(
                    f"attention of layer {index} is no number on this text",
                    mend="check the model's weights",
                )
            known = {
                "before": before,
                "after": after,
                "gamma": tuple(attention.gate.detach().sigmoid().tolist()),
                "entropy": softmax_entropy(attention, scored),
            }
            if ledger:
                ledger.note(index, attention, known)
        facts[index] = known
        bar.set_postfix(error=f"{known['before']:.3f}>{known['after']:.3f}")
    return TransferReport(**{name: tuple(fact[name] for fact in facts) for name in nothing})


@torch.no_grad()
def softmax_entropy(attention: LinearizedAttention, lesson: Lesson) -> float:
    """Entropy of softmax's weights in nats, mean over windows, heads and tokens."""
    found = [
        -(weights * weights.clamp(min=1e-30).log()).sum(-1).mean()
        for row in range(len(lesson.q))
        for weights in [_weights(attention, lesson.rows([row]))]
    ]
    return float(torch.stack(found).mean())


def _weights(attention: LinearizedAttention, lesson: Lesson) -> Float[Tensor, "b h n n"]:
    logits = lesson.q @ attention.repeated(lesson.k).transpose(-1, -2) * attention.scaling
    weights: Tensor = logits.masked_fill(~lesson.seen, -torch.inf).float().softmax(-1)
    return weights


def cross_entropy(attention: LinearizedAttention, lesson: Lesson) -> Float[Tensor, ""]:
    """Between softmax's weights and those of the hybrid, mean over windows, heads and tokens."""
    q, k = lesson.q, attention.repeated(lesson.k)
    phi = attention.feature_map_q(q), attention.feature_map_k(k)
    one = torch.eye(q.shape[2], dtype=q.dtype, device=q.device).expand(*q.shape[:3], -1)
    ours = hybrid_quadratic(q, k, one, *phi, attention.gate.sigmoid(), **attention.how())
    theirs = _weights(attention, lesson)
    apart: Tensor = -(theirs * ours.float().clamp(min=1e-12).log()).sum(-1).mean()
    return apart


@torch.no_grad()
def relative_error(attention: LinearizedAttention, lesson: Lesson) -> float:
    """Mean squared error of a layer's outputs over the variance of softmax's."""
    errors = [
        mse_loss(answer(attention, one).float(), one.y.float())
        for row in range(len(lesson.q))
        for one in [lesson.rows([row])]
    ]
    error, variance = torch.stack(errors).mean(), lesson.y.float().var(correction=0)
    return 0.0 if error == 0 else float(error / variance)


def answer(attention: LinearizedAttention, lesson: Lesson) -> Float[Tensor, "b h n d"]:
    """What the hybrid makes of a lesson."""
    keys, values = attention.repeated(lesson.k), attention.repeated(lesson.v)
    return attention.attend(lesson.q, keys, values)


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
        some = taught.rows(picked)
        wide = torch.promote_types(some.y.dtype, torch.float32)
        loss = options.mse_weight * mse_loss(answer(attention, some).to(wide), some.y.to(wide))
        if options.xent_weight:
            loss = loss + options.xent_weight * cross_entropy(attention, some)
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
