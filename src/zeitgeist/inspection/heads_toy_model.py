"""A transformer of one to three layers and one head, in which sinks can be watched as they form.

Guo, Pai, Bai, Jiao, Jordan, Mei, arXiv 2410.13835. Pre-norm, learned positions, no biases, one head
per layer:

    x = x + W_O attention(norm(x));   x = x + MLP(norm(x));   logits = W norm(x)

Attention weights are softmax(q k / sqrt d), or relu(q k / sqrt d) / (t + 1) at the query t. An
attention layer may be left out, and the MLPs may be linear or left out.

Letters: b sequences, n tokens, d width, v characters.
"""

import math
from dataclasses import dataclass, field
from typing import Literal, get_args

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from zeitgeist.errors import InputInvalid

Attention = Literal["softmax", "relu"]
Optimiser = Literal["adam", "sgd"]
Mlp = Literal["relu", "linear", "none"]
RATES = {"adam": 3e-4, "sgd": 0.03}
"""Published learning rates."""
_PAPER = "arXiv 2410.13835"


def _told(meaning: str, source: str = _PAPER) -> dict[str, str]:
    return {"meaning": meaning, "source": source}


@dataclass(frozen=True)
class ToyOptions:
    """The toy model, its task and its training; the defaults are the paper's.

    Parameters
    ----------
    layers, width, attention, mlp, without_attention
        Of the model; ``without_attention`` names layers that have none.
    triggers, random_triggers, bos, length
        Of the task: how many triggers, whether any characters rather than the commonest, whether
        sequences begin with a BOS, tokens of each.
    optimiser, learning_rate, weight_decay, batch_size, steps, seed
        Of training. ``learning_rate`` 0: 3e-4 for Adam, 0.03 for SGD.
    record_every
        Steps between records of the dynamics, and between checkpoints.
    """

    layers: int = field(default=3, metadata=_told("blocks"))
    width: int = field(default=256, metadata=_told("of the residual stream"))
    attention: Attention = field(default="softmax", metadata=_told("softmax, or relu / (t + 1)"))
    mlp: Mlp = field(default="relu", metadata=_told("relu, linear or none"))
    without_attention: tuple[int, ...] = field(
        default=(), metadata=_told("layers that have no attention")
    )
    triggers: int = field(default=3, metadata=_told("characters that ask for a copy"))
    random_triggers: bool = field(
        default=False, metadata=_told("any characters, drawn by the seed; else the commonest")
    )
    bos: bool = field(default=True, metadata=_told("sequences begin with a BOS"))
    length: int = field(default=256, metadata=_told("tokens that are read"))
    optimiser: Optimiser = field(default="adam", metadata=_told("AdamW, or SGD with momentum"))
    learning_rate: float = field(default=0.0, metadata=_told("0: 3e-4 for adam, 0.03 for sgd"))
    weight_decay: float = field(default=1e-4, metadata=_told("of all weights"))
    batch_size: int = field(default=512, metadata=_told("fresh sequences of each step"))
    steps: int = field(default=10_000, metadata=_told("of training"))
    seed: int = field(default=42, metadata=_told("of weights and data"))
    record_every: int = field(default=250, metadata=_told("steps between records", "ours"))

    def __post_init__(self) -> None:
        for name, least in (
            ("layers", 1),
            ("width", 2),
            ("length", 4),
            ("batch_size", 1),
            ("steps", 0),
            ("record_every", 1),
        ):
            if getattr(self, name) < least:
                raise InputInvalid(
                    f"{name} is {getattr(self, name)}", mend=f"give at least {least}"
                )
        if not 0 <= self.seed < 2**31:
            raise InputInvalid(f"seed is {self.seed}", mend="give 0 to 2147483647")
        for name in ("learning_rate", "weight_decay"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputInvalid(
                    f"{name} is {getattr(self, name)}", mend="give a finite number, at least 0"
                )
        for name, known in (("attention", Attention), ("optimiser", Optimiser), ("mlp", Mlp)):
            if getattr(self, name) not in get_args(known):
                raise InputInvalid(
                    f"{name} is {getattr(self, name)!r}",
                    mend=f"give {' or '.join(get_args(known))}",
                )
        if any(not 0 <= layer < self.layers for layer in self.without_attention):
            raise InputInvalid(
                f"layers {list(self.without_attention)} are to be without attention",
                mend=f"give 0 to {self.layers - 1}",
            )

    @property
    def rate(self) -> float:
        """The learning rate that is used."""
        return self.learning_rate or RATES[self.optimiser]


@dataclass(frozen=True)
class Trace:
    """One layer of a run: logits and weights of attention (None: it has none), values after the
    output projection, and the residual stream behind the layer."""

    logits: Float[Tensor, "b n n"] | None
    weights: Float[Tensor, "b n n"] | None
    values: Float[Tensor, "b n d"] | None
    stream: Float[Tensor, "b n d"]


def causal_weights(
    logits: Float[Tensor, "... n n"], attention: Attention
) -> Float[Tensor, "... n n"]:
    """From logits to attention weights: softmax over what came before, or ReLU over their number.

    Examples
    --------
    >>> causal_weights(torch.ones(3, 3), "relu")[2]
    tensor([0.3333, 0.3333, 0.3333])
    """
    n = logits.shape[-1]
    before = torch.ones(n, n, dtype=torch.bool, device=logits.device).tril()
    if attention == "softmax":
        return logits.masked_fill(~before, -torch.inf).softmax(-1)
    places = torch.arange(1, n + 1, device=logits.device, dtype=logits.dtype)
    made: Tensor = logits.relu() * before / places[:, None]
    return made


class Block(nn.Module):
    """Attention, where there is some, and MLP, each behind a norm."""

    def __init__(self, options: ToyOptions, layer: int) -> None:
        super().__init__()
        d, self.attention = options.width, options.attention
        self.attends = layer not in options.without_attention
        if self.attends:
            self.norm = nn.LayerNorm(d)
            self.qkv = nn.Linear(d, 3 * d, bias=False)
            self.out = nn.Linear(d, d, bias=False)
        self.mlp: nn.Module | None = None
        if options.mlp != "none":
            middle = nn.ReLU() if options.mlp == "relu" else nn.Identity()
            self.mlp = nn.Sequential(
                nn.LayerNorm(d),
                nn.Linear(d, 4 * d, bias=False),
                middle,
                nn.Linear(4 * d, d, bias=False),
            )

    def forward(
        self, x: Float[Tensor, "b n d"], traces: list[Trace] | None = None
    ) -> Float[Tensor, "b n d"]:
        """The stream behind the block."""
        logits = weights = values = None
        if self.attends:
            q, k, v = self.qkv(self.norm(x)).chunk(3, -1)
            logits = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
            weights = causal_weights(logits, self.attention)
            x = x + self.out(weights @ v)
            values = v if traces is None else self.out(v)
        if self.mlp is not None:
            x = x + self.mlp(x)
        if traces is not None:
            traces.append(Trace(logits, weights, values, x))
        return x


class ToyTransformer(nn.Module):
    """The whole model; the same seed makes the same weights.

    Examples
    --------
    >>> model = ToyTransformer(ToyOptions(layers=1, width=8, length=5), 10)
    >>> model(torch.zeros(2, 5, dtype=torch.long)).shape
    torch.Size([2, 5, 10])
    """

    def __init__(self, options: ToyOptions, vocabulary: int) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(options.seed)
            self.embed = nn.Embedding(vocabulary, options.width)
            self.places = nn.Embedding(options.length, options.width)
            self.blocks = nn.ModuleList(Block(options, i) for i in range(options.layers))
            self.norm = nn.LayerNorm(options.width)
            self.head = nn.Linear(options.width, vocabulary, bias=False)

    def forward(
        self, ids: Int[Tensor, "b n"], traces: list[Trace] | None = None
    ) -> Float[Tensor, "b n v"]:
        """Logits; what every layer did is added to ``traces``."""
        x = self.embed(ids) + self.places.weight[: ids.shape[1]]
        for block in self.blocks:
            x = block(x, traces)
        made: Tensor = self.head(self.norm(x))
        return made
