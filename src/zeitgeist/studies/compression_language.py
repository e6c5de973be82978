"""One model made cheaper in several ways, each followed by the same steps of LoRA.

What is dropped is decided by similarity on calibration windows; the linearized model is taught on
training windows first. Times are medians of one process; each arm's stand beside softmax's.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from zeitgeist.checkpoints import resolve
from zeitgeist.compression.dropped import drop_layers
from zeitgeist.compression.layer_scores import LayerScores, score_layers
from zeitgeist.compression.measures import decode_seconds
from zeitgeist.evidence import Group, Measured
from zeitgeist.studies.decoding import kept_bytes
from zeitgeist.studies.language_experts import open_base
from zeitgeist.studies.lolcats_language import adapted_losses, taught
from zeitgeist.studies.prose import windows
from zeitgeist.training import load_model


@dataclass(frozen=True)
class Bench:
    """The model, its redundancy, texts, and what softmax costs at every context."""

    model: Any
    scores: LayerScores
    text: dict[str, Tensor]
    seed: int
    pad: int
    transfer_steps: int
    lora_steps: int
    seconds: dict[int, float]
    bytes: dict[int, int]


def prepare(group: Group) -> Bench:
    """Open the model, score its layers, and time it.

    Parameters
    ----------
    group
        ``parameters`` as for `zeitgeist.studies.lolcats_language`, with any number of contexts.
    """
    known = group.parameters
    base = open_base(known["model"], resolve(known["model"], progress=False))
    text = {
        part: windows(
            base.tokenizer,
            part=part,
            seed=group.seed,
            length=known["window_tokens"],
            count=known[f"{name}_windows"],
        )
        for part, name in (
            ("train", "train"),
            ("calibration", "validation"),
            ("evaluation", "evaluation"),
        )
    }
    model = load_model(base.path, dtype=torch.float32)
    return Bench(
        model,
        score_layers(model, text["calibration"], progress=False),
        text,
        group.seed,
        base.pad,
        known["transfer_steps"],
        known["lora_steps"],
        {context: decode_seconds(model, context) for context in known["contexts"]},
        {context: kept_bytes(model, context) for context in known["contexts"]},
    )


def measure(arm: str, bench: Bench) -> Iterator[Measured]:
    """Loss, time and bytes of one cheaper model."""
    model = _cheaper(arm, bench)
    losses = adapted_losses(
        model,
        bench.text["train"],
        bench.text["evaluation"],
        bench.lora_steps,
        seed=bench.seed,
        pad=bench.pad,
    )
    yield from losses
    for context, softmax in bench.seconds.items():
        seconds = softmax if arm == "full" else decode_seconds(model, context)
        size = kept_bytes(model, context)
        label = {"context": context}
        yield Measured("seconds_per_token", seconds, label)
        yield Measured("relative_seconds", seconds / softmax, label)
        yield Measured("bytes", size, label)
        yield Measured("relative_bytes", size / bench.bytes[context], label)


def _cheaper(arm: str, bench: Bench) -> Any:
    if arm == "full":
        return bench.model
    if arm == "lolcats":
        made, _ = taught(
            bench.model,
            bench.text["train"],
            bench.text["calibration"],
            window=64,
            steps=bench.transfer_steps,
            seed=bench.seed,
        )
        return made
    kind, _, count = arm.partition("_")
    chosen = tuple(bench.scores.ranking(kind)[: int(count)])
    return drop_layers(bench.model, attention=chosen, mlp=chosen if kind == "block" else ())
