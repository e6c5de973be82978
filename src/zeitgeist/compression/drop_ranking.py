"""How sub-layers are ranked for attention drop: the options, and what comes of them.

He, Sun, Shen, Li: "What matters in transformers? Not all attention is needed", arXiv 2406.15786.
The scores themselves are in `zeitgeist.compression.layer_scores`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64
from torch import Tensor

from zeitgeist.compression.layer_scores import (
    LayerScores,
    score_by_perplexity,
    score_iteratively,
    score_layers,
)
from zeitgeist.compression.selection import Kind, Rankings, SubLayer, Wish, Wishes
from zeitgeist.compression.texts import read_windows
from zeitgeist.errors import InputInvalid

_PAPER = "arXiv 2406.15786"
METRICS = ("cosine", "angular", "perplexity")


def _told(meaning: str, source: str) -> Mapping[str, str]:
    return {"meaning": meaning, "source": source}


@dataclass(frozen=True)
class DropOptions:
    """How sub-layers are scored, and which may not go.

    Parameters
    ----------
    samples
        Windows of the calibration text, evenly spaced over it; fewer where it has fewer.
    length
        Tokens of each.
    metric
        ``"cosine"``; ``"angular"`` ranks alike but spreads what is nearly 1; ``"perplexity"``
        takes each sub-layer out in turn and looks at the text: many times as slow.
    iterative
        Score again after each one that goes. Attention or MLP alone.
    protect_first, protect_last
        So many layers at either end stay whole.
    """

    samples: int = field(default=256, metadata=_told("windows of the calibration text", _PAPER))
    length: int = field(default=2048, metadata=_told("tokens of each window", _PAPER))
    metric: str = field(default="cosine", metadata=_told("what ranks sub-layers", _PAPER))
    iterative: bool = field(
        default=False, metadata=_told("score again after each one that goes", _PAPER)
    )
    protect_first: int = field(
        default=0, metadata=_told("layers at the beginning that stay whole", "ours")
    )
    protect_last: int = field(
        default=0, metadata=_told("layers at the end that stay whole", "ours")
    )

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("length", 2), ("protect_first", 0),
                            ("protect_last", 0)):  # fmt: skip
            if getattr(self, name) < least:
                raise InputInvalid(
                    f"{name} of attention drop is {getattr(self, name)}",
                    mend=f"give at least {least}",
                )
        if self.metric not in METRICS:
            raise InputInvalid(f"the metric is {self.metric!r}", mend=f"give {', '.join(METRICS)}")


def file_or_text(text: str | Path) -> str | Path:
    """The file that a string names, where there is one; one word alone is meant as a name.

    Raises
    ------
    InputInvalid
        There is no such file.

    Examples
    --------
    >>> file_or_text("Some text to score.")
    'Some text to score.'
    """
    if isinstance(text, Path):
        return text
    if len(text) < 256 and Path(text).is_file():
        return Path(text)
    if len(text.split()) == 1:
        raise InputInvalid(
            f"there is no text file {text[:80]!r}", mend="give a file, or the text itself"
        )
    return text


def calibration(tokenizer: Any, text: str | Path, options: DropOptions) -> Int64[Tensor, "n t"]:
    """Windows of a text, evenly spaced over it.

    Parameters
    ----------
    tokenizer
        Of the model.
    text
        A file, or the text itself.
    options
        ``samples`` and ``length``.

    Raises
    ------
    InputInvalid
        The text is shorter than one window.
    """
    windows = read_windows(tokenizer, file_or_text(text), length=options.length)
    count = min(options.samples, len(windows))
    chosen: Tensor = windows[torch.arange(count) * len(windows) // count]
    return chosen


def rank(
    model: Any,
    windows: Int64[Tensor, "n t"],
    options: DropOptions,
    wishes: Wishes,
    *,
    progress: bool | None = None,
) -> Rankings:
    """Every ranking that the wishes need, by the metric of the options.

    Parameters
    ----------
    model
        A loaded causal model.
    windows
        Calibration text.
    options
        Metric, and whether to score again after each one that goes.
    wishes
        What is going to be dropped.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Raises
    ------
    InputInvalid
        A joint or a second list is asked for together with ``iterative``.
    """
    if options.iterative:
        counts: dict[Kind, Wish] = {
            "attention": wishes.attention,
            "mlp": wishes.mlp,
            "block": wishes.blocks,
        }
        asked = [kind for kind, count in counts.items() if _counts(count)]
        if wishes.joint or len(asked) != 1 or options.metric != "cosine":
            raise InputInvalid(
                "scoring again after each drop is for one kind of sub-layer and for cosines",
                mend="drop attention, MLPs or blocks alone, or leave out --iterative",
            )
        count = counts[asked[0]]
        assert isinstance(count, int)
        layers = int(model.config.num_hidden_layers)
        most = min(layers, count + options.protect_first + options.protect_last)
        return Rankings({asked[0]: _iterated(model, windows, asked[0], most)}, ())
    if options.metric == "perplexity":
        return _by_perplexity(model, windows, wishes)
    found = score_layers(model, windows, progress=progress)
    return rankings_of(found, options)


def _iterated(model: Any, windows: Int64[Tensor, "n t"], kind: Kind, count: int) -> list[int]:
    return [int(layer) for layer in score_iteratively(model, windows, kind, count)]


def _by_perplexity(model: Any, windows: Int64[Tensor, "n t"], wishes: Wishes) -> Rankings:
    """Only what is wished for: every layer of a kind is a pass over the text."""
    wanted: list[Kind] = ["block"] if _counts(wishes.blocks) else []
    wanted += ["attention"] if _counts(wishes.attention) or wishes.joint else []
    wanted += ["mlp"] if _counts(wishes.mlp) or wishes.joint else []
    costs: dict[SubLayer, float] = {}
    for kind in wanted:
        for layer, cost in enumerate(score_by_perplexity(model, windows, kind)):
            costs[kind, layer] = float(cost)
    order = sorted(costs, key=costs.__getitem__)
    return Rankings(
        {kind: [layer for own, layer in order if own == kind] for kind in wanted},
        [sub_layer for sub_layer in order if sub_layer[0] != "block"],
    )


def _counts(wish: Wish) -> bool:
    return isinstance(wish, int) and wish > 0


def rankings_of(scores: LayerScores, options: DropOptions) -> Rankings:
    """The rankings of one-shot scores."""
    return Rankings(
        {
            "attention": scores.ranking("attention", options.metric),
            "mlp": scores.ranking("mlp", options.metric),
            "block": scores.ranking("block", options.metric),
        },
        [("mlp" if kind == "mlp" else "attention", i) for kind, i in scores.joint_ranking()],
    )


def protected(options: DropOptions, n_layers: int) -> frozenset[int]:
    """The layers that stay whole.

    Examples
    --------
    >>> sorted(protected(DropOptions(protect_first=1, protect_last=2), 6))
    [0, 4, 5]
    """
    last = n_layers - options.protect_last
    return frozenset(i for i in range(n_layers) if i < options.protect_first or i >= last)
