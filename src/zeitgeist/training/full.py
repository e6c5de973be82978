"""Fine-tune every weight of a model on prompts with answers.

The weights stay in float32 and learn under bfloat16 autocast where the hardware has it: steps of
AdamW at these rates would be lost in bfloat16 weights.
"""

from collections.abc import Sequence
from typing import Any

import torch

from zeitgeist.errors import InputInvalid
from zeitgeist.training.answers import Example
from zeitgeist.training.trainer import Schedule, seeded, train_answers


def finetune_full(
    model: Any,
    examples: Sequence[Example],
    *,
    settings: Schedule | None = None,
    pad: int = 0,
    title: str = "fine-tune",
    progress: bool | None = None,
) -> tuple[float, ...]:
    """Train all weights of a loaded model, in place.

    Parameters
    ----------
    model
        A causal transformers model in float32.
    examples
        What to learn.
    settings
        None: the defaults of `Schedule`, whose rate is a tenth of LoRA's, as is usual.
    pad
        Token id to fill batches with.
    title
        Of the progress bar.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    tuple of float
        The loss of every step (nats per answer token).

    Raises
    ------
    InputInvalid
        The weights are not in float32, or there is nothing to learn from.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(**shape))
    >>> settings = Schedule(steps=2, batch_size=1)
    >>> len(finetune_full(model, [Example((1, 2), (3,))], settings=settings, progress=False))
    2
    """
    chosen = settings or Schedule()
    if low := {p.dtype for p in model.parameters()} - {torch.float32}:
        raise InputInvalid(
            f"the weights are in {str(low.pop()).removeprefix('torch.')}",
            mend="load the model with dtype=torch.float32",
        )
    with seeded(chosen.seed):
        losses = train_answers(model, examples, chosen, pad=pad, title=title, progress=progress)
    model.eval()
    return losses
