"""What a model keeps between tokens, at contexts that nobody wants to read in.

A cache either grows by the same bytes for every token or, past its windows, not at all. So two
lengths beyond every window give all others.
"""

from typing import Any

import torch

from zeitgeist.compression.measures import cache_bytes

LENGTHS = (256, 384)
"""Read in; windows must be shorter."""


@torch.no_grad()
def kept_bytes(model: Any, context: int) -> int:
    """Bytes of the cache after ``context`` tokens of one sequence.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> kept_bytes(LlamaForCausalLM(LlamaConfig(**shape)), 1000)  # two of 4 numbers of 4 bytes
    32000
    """
    sizes = []
    for length in LENGTHS:
        ids = torch.zeros(1, length, dtype=torch.long, device=model.device)
        sizes.append(cache_bytes(model(ids, use_cache=True, logits_to_keep=1).past_key_values))
    growth = (sizes[1] - sizes[0]) / (LENGTHS[1] - LENGTHS[0])
    return round(sizes[1] + growth * (context - LENGTHS[1]))
