"""Load a causal model, alone or under an adapter."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from zeitgeist.errors import ExtraMissing


def load_model(
    model_dir: Path,
    adapter: Path | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    device: torch.device | None = None,
) -> Any:
    """A transformers model ready to be scored.

    Parameters
    ----------
    model_dir
        A transformers directory.
    adapter
        A peft directory to add to the weights (in float32, rounded once to ``dtype``); None: none.
    dtype
        Of the weights.
    device
        None: the processor.

    Returns
    -------
    PreTrainedModel
        In evaluation mode.

    Raises
    ------
    ExtraMissing
        There is an adapter and peft is not installed.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> home = Path(tempfile.mkdtemp())
    >>> LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(home / "base")
    >>> load_model(home / "base", dtype=torch.bfloat16).dtype
    torch.bfloat16
    """
    # Adding an adapter in bfloat16 would round its product before it is added.
    first = dtype if adapter is None else torch.float32
    model: Any = AutoModelForCausalLM.from_pretrained(model_dir, dtype=first, local_files_only=True)
    if adapter is not None:
        if not find_spec("peft"):
            raise ExtraMissing.named("training", "opening an adapter")
        from peft import PeftModel

        with peft_warnings():
            model = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    return model.to(device=device, dtype=dtype).eval()


@contextmanager
def peft_warnings() -> Iterator[None]:
    """Leave out what a person can do nothing about.

    peft 0.21 asks transformers 5.23 by a name that goes away with version 6.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        yield
