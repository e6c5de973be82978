"""What `zeitgeist.compression.linearize` is told, and what it tells.

Zhang, Arora, Chalamala, Wu, Spector, Singhal, Ramesh, Re: "LoLCATs: On Low-Rank Linearizing of
Large Language Models", arXiv 2410.10254.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from zeitgeist.compression.feature_maps import FeatureMap
from zeitgeist.compression.hybrid_attention import check_window
from zeitgeist.compression.transfer import TransferOptions
from zeitgeist.errors import InputInvalid

PAPER = "arXiv 2410.10254"
_CODE = "the authors' configurations"


def _told(meaning: str, source: str) -> Mapping[str, str]:
    return {"meaning": meaning, "source": source}


@dataclass(frozen=True)
class LolcatsOptions:
    """What replaces softmax attention, and how it is taught.

    Parameters
    ----------
    window, kind, blocks, sinks
        Which keys softmax still sees; see `zeitgeist.compression.hybrid_attention`. Sliding and
        terraced windows score alike in the paper (70.3 and 70.7); sinks are not the paper's.
    feature_map, feature_dim
        See `zeitgeist.compression.feature_maps`.
    layers
        Which to convert; None: all. The others keep softmax and their growing cache.
    length, windows, validation
        Windows of so many tokens to learn from, and how many more to score on. They are held in
        memory for one layer at a time and gone over again until the steps are done. Without
        enough text fewer are taken, at least one of each.
    steps, batch_size
        Per layer: 200 steps of 8 windows of 1,024 tokens are 1.6 million tokens, after which the
        paper's perplexity hardly moves; its own runs took 20 million.
    learning_rate, mse_weight, xent_weight, seed
        See `zeitgeist.compression.transfer.TransferOptions`.
    """

    window: int = field(default=64, metadata=_told("tokens that softmax still sees", PAPER))
    kind: str = field(default="sliding", metadata=_told("window: sliding or terraced", PAPER))
    blocks: int = field(default=2, metadata=_told("blocks of a terraced window", PAPER))
    sinks: int = field(
        default=0, metadata=_told("first tokens that always stay near", "ours, an extension")
    )
    feature_map: str = field(default="hedgehog", metadata=_told("hedgehog or t2r", PAPER))
    feature_dim: int | None = field(
        default=None, metadata=_told("columns of a map; none: half the head dimension", PAPER)
    )
    layers: tuple[int, ...] | None = field(
        default=None, metadata=_told("which to convert; none: all", PAPER)
    )
    length: int = field(default=1024, metadata=_told("tokens of a window of text", PAPER))
    windows: int = field(default=64, metadata=_told("windows to learn from", "ours"))
    validation: int = field(default=8, metadata=_told("windows to score on", "ours"))
    steps: int = field(default=200, metadata=_told("optimiser steps per layer", PAPER))
    batch_size: int = field(default=8, metadata=_told("windows per step", _CODE))
    learning_rate: float = field(default=1e-2, metadata=_told("of AdamW", PAPER))
    mse_weight: float = field(default=1000.0, metadata=_told("of the squared error", _CODE))
    xent_weight: float = field(
        default=0.0, metadata=_told("of cross-entropy between weights; 1 for 405B", PAPER)
    )
    seed: int = field(default=0, metadata=_told("of the order of windows", "ours"))

    def __post_init__(self) -> None:
        for name, least in (("length", 2), ("windows", 1), ("validation", 1)):
            if getattr(self, name) < least:
                raise InputInvalid(
                    f"{name} is {getattr(self, name)}", mend=f"give at least {least}"
                )
        check_window(self.window, self.kind, self.blocks, self.sinks)
        FeatureMap(self.feature_map, 1, 1, 1 if self.feature_dim is None else self.feature_dim)
        if not self.learning_rate > 0 or self.mse_weight < 0 or self.xent_weight < 0:
            raise InputInvalid(
                f"the learning rate is {self.learning_rate}, the weights {self.mse_weight} and "
                f"{self.xent_weight}",
                mend="give a positive rate and weights of 0 or more",
            )
        self.teaching()

    def teaching(self) -> TransferOptions:
        """The part that is about learning."""
        named = ("steps", "batch_size", "learning_rate", "mse_weight", "xent_weight", "seed")
        return TransferOptions(**{name: getattr(self, name) for name in named})

    def recipe(self) -> dict[str, Any]:
        """The part that is about attention."""
        named = ("window", "kind", "blocks", "sinks", "feature_map", "feature_dim", "layers")
        return {name: getattr(self, name) for name in named}


@dataclass(frozen=True)
class LinearizedReport:
    """What `linearize` or `finetune` wrote.

    Per layer (None where it stayed softmax): ``before`` and ``after``, squared error over variance;
    ``entropy`` of softmax's weights in nats; ``gamma``, the window's weight per head. Perplexities
    are on the validation windows: softmax's, and the linearized model's as written. ``trained``
    parameters were learned in this step, of ``parameters`` in the model; ``tokens`` were read for
    it. ``losses`` are those of LoRA. ``state_bytes`` are kept per sequence when the window has
    filled, ``kv_bytes`` per token by softmax; from ``break_even`` tokens on the state is smaller
    (None: never).
    """

    out: str
    before: tuple[float | None, ...]
    after: tuple[float | None, ...]
    entropy: tuple[float | None, ...]
    gamma: tuple[tuple[float, ...], ...]
    perplexity_softmax: float
    perplexity: float
    trained: int
    parameters: int
    tokens: int
    seconds: float
    state_bytes: int
    kv_bytes: int
    break_even: int | None
    losses: tuple[float, ...] = ()
