"""Where a table of learned positions ends, as GPT-2 and OPT have one."""

import sys
from typing import Any

from torch import nn

TABLES = ("wpe", "embed_positions", "position_embeddings")
"""What transformers calls tables of learned positions."""


def longest_input(model: Any) -> int:
    """Tokens that a model with learned positions reads at most; ``sys.maxsize`` for others.

    Parameters
    ----------
    model
        A transformers model; its weights may be on ``meta``.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> longest_input(GPT2LMHeadModel(GPT2Config(n_positions=8, n_embd=4, n_head=2, n_layer=1)))
    8
    """
    config = model.config
    if found := getattr(config, "n_positions", None):
        return int(found)
    learned = any(
        name.rsplit(".", 1)[-1] in TABLES and isinstance(module, nn.Embedding)
        for name, module in model.named_modules()
    )
    # Of rotary positions this is what training saw, and nothing ends there.
    return int(config.max_position_embeddings) if learned else sys.maxsize
