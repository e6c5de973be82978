"""Thin seams over transformers' Trainer and peft: batches, losses, adapters."""

from zeitgeist.training.answers import Example, answer_logits, collate
from zeitgeist.training.full import FullSettings, finetune_full
from zeitgeist.training.lora import Finetuned, LoraSettings, finetune_lora
from zeitgeist.training.models import load_model
from zeitgeist.training.precision import best_device, best_dtype

__all__ = [
    "Example",
    "Finetuned",
    "FullSettings",
    "LoraSettings",
    "answer_logits",
    "best_device",
    "best_dtype",
    "collate",
    "finetune_full",
    "finetune_lora",
    "load_model",
]
