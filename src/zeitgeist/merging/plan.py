"""What a merge comes to: every output tensor with its inputs, and what making them costs."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from zeitgeist.checkpoints import TensorSpec
from zeitgeist.merging.inputs import Model
from zeitgeist.merging.recipes.recipe import Recipe
from zeitgeist.merging.streaming.chunks import CHUNK
from zeitgeist.merging.streaming.merger import taken_as_is
from zeitgeist.merging.streaming.sources import OnDisk
from zeitgeist.merging.streaming.steps import Step
from zeitgeist.merging.vocabulary import Alignment


@dataclass(frozen=True)
class Plan:
    """What a recipe comes to for the models it names.

    ``config`` is the output's ``config.json``; ``origin`` the model whose other files travel with
    it. ``notes`` are sentences a person should read. ``table`` has a row per tensor and
    parameter.
    """

    recipe: Recipe
    models: Mapping[str, Model]
    steps: tuple[Step, ...]
    config: dict[str, Any]
    origin: Model
    notes: tuple[str, ...]
    alignment: Alignment | None = None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The tensors of the output."""
        return tuple(TensorSpec(step.name, step.dtype, step.shape) for step in self.steps)

    @property
    def bytes_written(self) -> int:
        """Size of the output's weights."""
        return sum(spec.nbytes for spec in self.specs)

    @property
    def bytes_read(self) -> int:
        """Bytes of inputs touched, every pass counted."""
        return sum(_passes(step) * _input_bytes(step) for step in self.steps)

    def peak_bytes(self, threads: int) -> int:
        """Anonymous memory for chunks and histograms; does not grow with the model."""
        widest = max((len(step.experts) + 2 for step in self.steps), default=0)
        longest = max((step.columns for step in self.steps), default=0)
        chunk = max(CHUNK, longest) * widest * (4 + 8)
        histograms = widest * (1 << 19) * 3
        return threads * (chunk + histograms)

    def table(self) -> list[dict[str, Any]]:
        """Method, weights, options and depth scale of every tensor, as resolved."""
        return [
            {
                "tensor": step.name,
                "method": step.method if step.options is not None else "copy",
                "weights": list(step.weights),
                **({} if step.options is None else dataclasses.asdict(step.options)),
                "scale": step.scale,
            }
            for step in self.steps
        ]

    def scaled(self, scales: Mapping[str, float]) -> "Plan":
        """The same plan with every update multiplied by its scale.

        What the base does not have is no update and stays at full strength.
        """
        return replace(
            self,
            steps=tuple(
                replace(s, scale=scales.get(s.name, s.scale)) if s.base is not None else s
                for s in self.steps
            ),
        )


def _input_bytes(step: Step) -> int:
    sources = [*step.experts, *([step.base] if step.base else [])]
    return sum(
        step.entries * source.dtype.itemsize if isinstance(source, OnDisk) else step.entries * 4
        for source in sources
    )


def _passes(step: Step) -> int:
    told = step.rule
    if taken_as_is(step) is not None:
        return 1
    if told is None:
        return 1 if step.method in ("linear", "passthrough", "nearswap") else 2
    trims = {"magnitude": 1, "band": 3, "variance": 3}.get(told.sparsify, 0)
    votes = told.elect != "none" and told.zero_sum == "majority" and len(step.experts) > 1
    return 1 + trims + int(votes) + int(told.rescale == "l1")
