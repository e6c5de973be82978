"""Attention weights, shown and changed: plain attention under a name of its own.

Fused attention never makes its weights. While somebody asks for them the model runs the plain form,

    softmax(q k^T scale, soft-capped, masked) v

through transformers' registry of attention functions, and each attention module that wants to be
seen has a hook between softmax and values. Nothing of the model is replaced.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask

NAME = "zeitgeist_patterns"
HOOKS = "_zeitgeist_patterns"


def attention(
    module: Any,
    query: Float[Tensor, "b h n d"],
    key: Float[Tensor, "b r m d"],
    value: Float[Tensor, "b r m e"],
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Float[Tensor, "b n h e"], Float[Tensor, "b h n m"]]:
    """Plain attention, its weights passed through the hooks of the module."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    logits = query @ key.transpose(-1, -2) * scale
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    if attention_mask is not None:
        logits = logits + attention_mask[..., : key.shape[-2]]
    wide = torch.promote_types(logits.dtype, torch.float32)
    weights = logits.softmax(-1, dtype=wide).to(query.dtype)
    for hook in getattr(module, HOOKS, ()):
        weights = hook(weights)
    dropped = torch.nn.functional.dropout(weights, dropout, module.training)
    return (dropped @ value).transpose(1, 2).contiguous(), weights


AttentionInterface.register(NAME, attention)
AttentionMaskInterface.register(NAME, eager_mask)


@contextmanager
def shown(model: Any) -> Iterator[None]:
    """Run plain attention inside the block, and what it was before again after."""
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    before = [(config, config._attn_implementation) for config in configs.values()]
    try:
        for config, _ in before:
            config._attn_implementation = NAME
        yield
    finally:
        for config, name in before:
            config._attn_implementation = name
