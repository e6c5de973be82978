"""Where in a model, and when, a task's gradients would have hurt what is remembered.

A constraint is violated where <g, m> < 0, by the gradient before it is restricted (arXiv
2410.00868). Shares of every parameter and step become shares of every layer and span of steps, at
most `SPANS` per task, so that what is kept does not grow with the training.
"""

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise

import numpy as np

SPANS = 40


def layer_of(name: str) -> str:
    """The numbered layer of a parameter, or its module where there is no number.

    Examples
    --------
    >>> layer_of("base_model.model.model.layers.3.mlp.up_proj.lora_A.default.weight")
    'model.layers.3'
    >>> layer_of("base_model.model.lm_head.lora_B.default.weight"), layer_of("first.bias")
    ('lm_head', 'first')
    """
    module = re.split(r"\.lora_", name.removeprefix("base_model.model."))[0]
    numbered = re.match(r"(?:.*?\.)?\d+(?=\.|$)", module)
    if numbered:
        return numbered[0]
    return module if "lora_" in name else module.rpartition(".")[0] or module


def spans(steps: int) -> list[int]:
    """Where spans begin, and the end: as even as whole steps allow.

    Examples
    --------
    >>> spans(3), len(spans(1000))
    ([0, 1, 2, 3], 41)
    """
    count = min(SPANS, steps)
    return [steps * i // count for i in range(count + 1)] if count else [0]


def by_layer(violated: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    """The share of violated constraints of every layer, a mean per span; its tensors count alike.

    Parameters
    ----------
    violated
        `zeitgeist.continual.gradient_restriction.Step.violated` of every step of a task.

    Examples
    --------
    >>> by_layer([{"layers.0.a.weight": 1.0, "layers.0.b.weight": 0.0, "head.weight": 1.0}])
    {'layers.0': [0.5], 'head': [1.0]}
    """
    layers: dict[str, list[str]] = {}
    for name in dict.fromkeys(name for step in violated for name in step):
        layers.setdefault(layer_of(name), []).append(name)
    edges = spans(len(violated))
    return {
        layer: [
            _mean([step[n] for step in violated[start:end] for n in names if n in step])
            for start, end in pairwise(edges)
        ]
        for layer, names in layers.items()
    }


def _mean(shares: Sequence[float]) -> float:
    """To four digits, which a picture does not show; 0 where nothing restricts."""
    return round(float(np.mean(shares)), 4) if shares else 0.0
