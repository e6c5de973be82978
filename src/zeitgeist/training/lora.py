"""Fine-tune a LoRA adapter on prompts with answers.

A frozen weight W (out x in) gets an update of low rank,

    W' = W + (alpha / r) B A,    A: r x in, B: out x r, B = 0 at the start,

and only A and B learn. Hu, Shen, Wallis, Allen-Zhu, Li, Wang, Wang, Chen: "LoRA: Low-Rank
Adaptation of Large Language Models", arXiv 2106.09685. On every linear layer of the blocks, as in
Dettmers, Pagnoni, Holtzman, Zettlemoyer: "QLoRA", arXiv 2305.14314.

peft holds the adapter, transformers' Trainer the loop, so that `accelerate launch` works.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from zeitgeist.errors import ExtraMissing, InputInvalid, OutputExists
from zeitgeist.training.answers import Example
from zeitgeist.training.models import peft_warnings
from zeitgeist.training.precision import best_device, best_dtype
from zeitgeist.training.trainer import Schedule, seeded, train_answers


@dataclass(frozen=True)
class LoraSettings(Schedule):
    """How an adapter is trained: how long and how fast (`Schedule`), and what it is.

    Parameters
    ----------
    rank
        r. 8 (LoRA paper, section 7.2: small ranks suffice).
    alpha
        The update is scaled by alpha / r. 16.
    target_modules
        Which layers, as peft takes it. ``"all-linear"``: all of the blocks (QLoRA).
    learning_rate
        See `Schedule`.
    """

    rank: int = 8
    alpha: int = 16
    target_modules: str = "all-linear"
    learning_rate: float = 1e-3

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("rank", "alpha"):
            if getattr(self, name) < 1:
                raise InputInvalid(f"{name} is {getattr(self, name)}", mend="give at least 1")


@dataclass(frozen=True)
class Finetuned:
    """A finished adapter: where it is, the loss of every step, how long it took and on what."""

    out: Path
    losses: tuple[float, ...]
    seconds: float
    device: str
    dtype: str


def finetune_lora(
    model_dir: Path,
    examples: Sequence[Example],
    out: Path,
    *,
    settings: LoraSettings | None = None,
    base_reference: str = "",
    pad: int = 0,
    title: str = "fine-tune",
    progress: bool | None = None,
) -> Finetuned:
    """Train a LoRA adapter and save it as a peft directory.

    Parameters
    ----------
    model_dir
        The base: a transformers directory.
    examples
        What to learn. Shuffled by the seed; repeated when the steps outlast them.
    out
        Directory to make, or an empty one. It is filled in one step, at the end.
    settings
        None: the defaults of `LoraSettings`.
    base_reference
        How the adapter's configuration names its base; empty: ``model_dir``.
    pad
        Token id to fill batches with. Any will do: padding is never learned.
    title
        Of the progress bar.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    Finetuned
        With the loss of every step (nats per answer token).

    Raises
    ------
    ExtraMissing
        peft or accelerate is not installed.
    InputInvalid
        There is nothing to learn from.
    OutputExists
        ``out`` holds something.

    Examples
    --------
    >>> import tempfile
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> home = Path(tempfile.mkdtemp())
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> LlamaForCausalLM(LlamaConfig(**shape)).save_pretrained(home / "base")
    >>> done = finetune_lora(
    ...     home / "base", [Example((1, 2), (3,))], home / "expert",
    ...     settings=LoraSettings(rank=2, steps=2, batch_size=1), progress=False,
    ... )
    >>> len(done.losses), (done.out / "adapter_config.json").is_file()
    (2, True)
    """
    chosen = settings or LoraSettings()
    if not all(map(find_spec, ("peft", "accelerate"))):
        raise ExtraMissing.named("training", "fine-tuning")
    if not examples:
        raise InputInvalid("there are no examples to learn from", mend="give at least one")
    if out.exists() and any(out.iterdir()):
        raise OutputExists(f"{str(out)!r} holds something already", mend="choose another name")
    started = time.monotonic()
    device = best_device()
    dtype = best_dtype(device)
    with seeded(chosen.seed), TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as work:
        model = _with_adapter(model_dir, chosen, dtype, base_reference or str(model_dir))
        losses = train_answers(model, examples, chosen, pad=pad, title=title, progress=progress)
        adapter = Path(work) / "adapter"
        # "auto" would ask the hub whether the base's vocabulary has changed.
        model.save_pretrained(adapter, save_embedding_layers=False)
        adapter.rename(out)
    kind = str(dtype).removeprefix("torch.")
    return Finetuned(out, losses, time.monotonic() - started, device.type, kind)


def _with_adapter(model_dir: Path, settings: LoraSettings, dtype: torch.dtype, base: str) -> Any:
    from peft import LoraConfig, get_peft_model

    model = AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype, local_files_only=True)
    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=settings.target_modules,
    )
    # The factors stay in float32 whatever the base is in: steps of AdamW would be lost in bfloat16.
    with peft_warnings():
        adapted = get_peft_model(model, config)
    adapted.peft_config["default"].base_model_name_or_path = base
    return adapted
