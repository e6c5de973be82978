"""Thin seams over transformers' Trainer and peft: batches, losses, adapters."""

from zeitgeist.training.answers import Example, answer_logits, collate
from zeitgeist.training.full import finetune_full
from zeitgeist.training.lora import Finetuned, LoraSettings, finetune_lora
from zeitgeist.training.models import load_model
from zeitgeist.training.precision import best_device, best_dtype
from zeitgeist.training.trainer import Schedule

__all__ = [
    "Example",
    "Finetuned",
    "LoraSettings",
    "Schedule",
    "answer_logits",
    "best_device",
    "best_dtype",
    "collate",
    "finetune_full",
    "finetune_lora",
    "load_model",
]
