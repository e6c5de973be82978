"""Heal a model after layers were taken out: LoRA on plain text, folded into the weights.

Every window of text is one example that learns all of its tokens but the first. The adapter is
trained by `zeitgeist.training.finetune_lora` and added to the weights, so that what comes back has
the shape and the speed of what was given.

Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: "LoRA: Low-Rank Adaptation of Large Language
Models", arXiv 2106.09685; after layer dropping as in He, Sun, Shen, Li, arXiv 2406.15786, who
train on instructions instead.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from jaxtyping import Int64
from torch import Tensor
from transformers.utils import logging as transformers_logging

from zeitgeist.compression import dropped  # noqa: F401 - opens models with layers taken out
from zeitgeist.training import Example, LoraSettings, finetune_lora, load_model


@contextmanager
def quiet() -> Iterator[None]:
    """Reading and writing a model takes less time than the bars of transformers about it."""
    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


def as_examples(windows: Int64[Tensor, "n t"]) -> list[Example]:
    """Windows of text as examples whose answer is all but the first token.

    Examples
    --------
    >>> import torch
    >>> as_examples(torch.tensor([[5, 6, 7]]))
    [Example(prompt=(5,), answer=(6, 7))]
    """
    return [Example((row[0],), tuple(row[1:])) for row in windows.tolist()]


def heal(
    model: Any,
    windows: Int64[Tensor, "n t"],
    settings: LoraSettings | None = None,
    *,
    progress: bool | None = None,
) -> Any:
    """The model after LoRA training on text, with the adapter folded into its weights.

    Parameters
    ----------
    model
        As `zeitgeist.compression.dropped.drop_layers` returns it; it stays as it is.
    windows
        Token ids to learn from. What is scored later must not be among them.
    settings
        None: the defaults of `LoraSettings`.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    PreTrainedModel
        Another model of the same class and dtype, in evaluation mode.

    Raises
    ------
    ExtraMissing
        peft or accelerate is not installed.
    InputInvalid
        There is nothing to learn from, or the loss is no number.

    Examples
    --------
    >>> import torch
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = dropped.drop_layers(LlamaForCausalLM(LlamaConfig(**shape)).eval(), attention=(1,))
    >>> healed = heal(model, torch.arange(16).view(2, 8),
    ...               LoraSettings(rank=2, steps=1, batch_size=1), progress=False)
    >>> type(healed) is type(model)
    True
    """
    with TemporaryDirectory() as work, quiet():
        home = Path(work)
        model.save_pretrained(home / "model")
        finetune_lora(
            home / "model",
            as_examples(windows),
            home / "adapter",
            settings=settings,
            title="heal",
            progress=progress,
        )
        return load_model(home / "model", home / "adapter", dtype=model.dtype, device=model.device)
