"""LoRA on the attention projections of a linearized model, by peft and transformers' Trainer.

The second step of LoLCATs (Zhang et al., arXiv 2410.10254): maps and gates are frozen, and the
adapter learns to live with what they miss.
"""

import math
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm import tqdm

from zeitgeist.compression.linearized_files import ADAPTER
from zeitgeist.errors import InputInvalid
from zeitgeist.training import LoraSettings

PROJECTIONS = r".*\.self_attn\.(q|k|v|o)_proj"
"""What LoRA adapts, as peft reads it."""
CHECKPOINTS = 10
"""Of a training, from which a stopped one goes on."""


def adapt(
    model: Any, windows: Tensor, place: Path, settings: LoraSettings, progress: bool | None
) -> tuple[tuple[float, ...], int, bool]:
    """Train LoRA in place, save it to ``place/adapter`` and fold it in.

    A stopped run goes on from the last checkpoint in ``place``. The losses, how much was trained,
    and whether this process is the one that writes.
    """
    from peft import LoraConfig, get_peft_model
    from transformers import (
        PrinterCallback,
        Trainer,
        TrainerCallback,
        TrainingArguments,
        default_data_collator,
    )
    from transformers.trainer_utils import get_last_checkpoint

    from zeitgeist.training.models import peft_warnings
    from zeitgeist.training.trainer import seeded

    config = LoraConfig(
        task_type="CAUSAL_LM",
        r=settings.rank,
        lora_alpha=settings.alpha,
        target_modules=PROJECTIONS,
    )
    hidden = None if progress is None else not progress

    class Bar(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            bar.update(state.global_step - bar.n)

    with (
        seeded(settings.seed),
        peft_warnings(),
        tqdm(total=settings.steps, desc="finetune", unit="step", disable=hidden) as bar,
    ):
        adapted = get_peft_model(model, config)
        trained = sum(p.numel() for p in adapted.parameters() if p.requires_grad)
        arguments = TrainingArguments(
            output_dir=str(place),
            max_steps=settings.steps,
            per_device_train_batch_size=settings.batch_size,
            learning_rate=settings.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=min(settings.warmup_steps, settings.steps - 1),
            weight_decay=0.0,
            seed=settings.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_steps=max(1, settings.steps // CHECKPOINTS),
            save_total_limit=1,
            report_to=[],
            use_cpu=model.device.type == "cpu",
            dataloader_pin_memory=False,
            disable_tqdm=True,
        )
        trainer = Trainer(
            adapted,
            arguments,
            train_dataset=[{"input_ids": row, "labels": row} for row in windows],
            data_collator=default_data_collator,
            callbacks=[Bar()],
        )
        trainer.remove_callback(PrinterCallback)
        begun = get_last_checkpoint(str(place)) if place.is_dir() else None
        trainer.train(resume_from_checkpoint=begun)
        first = trainer.is_world_process_zero()
        if first:
            adapted.save_pretrained(str(place / ADAPTER), save_embedding_layers=False)
        adapted.merge_and_unload()
    losses = tuple(log["loss"] for log in trainer.state.log_history if "loss" in log)
    if not all(map(math.isfinite, losses)):
        raise InputInvalid(
            f"the loss became {losses[-1]} within {len(losses)} steps",
            mend=f"lower the learning rate (now {settings.learning_rate})",
        )
    return losses, trained, first
