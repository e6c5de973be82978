"""How little each sub-layer changes the residual stream.

He, Sun, Shen, Li: "What matters in transformers? Not all attention is needed", arXiv 2406.15786.
For a sub-layer y = x + F(norm(x)), x and y as they are in the residual stream, over all tokens,

    similarity = mean cos(x, y)        importance = 1 - similarity

Blocks are scored from the input of attention to the output of the MLP. Cosines are taken in float32
and only their sums are kept: nothing grows with the text but two numbers per window and sub-layer.
Beside every mean stands the one without position 0, whose large norm hides what happens elsewhere.

    w windows   l layers
"""

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float64, Int
from torch import Tensor
from tqdm import tqdm

from zeitgeist.compression.dropped import drop_layers, layout_of, skips_of
from zeitgeist.compression.measures import token_nll
from zeitgeist.errors import InputInvalid

Kind = Literal["attention", "mlp", "block"]
KINDS: tuple[Kind, ...] = ("attention", "mlp", "block")


@dataclass(frozen=True)
class LayerScores:
    """Sums over the tokens of each window.

    Parameters
    ----------
    cosines, angles
        Of every kind, w x l; angles in units of pi. Two of each: over all tokens, and without
        position 0. NaN for a sub-layer that is not there.
    tokens
        How many were counted per window, in both ways.
    """

    cosines: Mapping[str, tuple[Float64[Tensor, "w l"], Float64[Tensor, "w l"]]]
    angles: Mapping[str, tuple[Float64[Tensor, "w l"], Float64[Tensor, "w l"]]]
    tokens: tuple[Float64[Tensor, " w"], Float64[Tensor, " w"]]

    def similarity(self, kind: str, *, without_first: bool = False) -> Float64[Tensor, " l"]:
        """Mean cosine of every layer over all tokens."""
        which = int(without_first)
        return self.cosines[_known(kind)][which].sum(0) / self.tokens[which].sum()

    def ranking(self, kind: str, metric: str = "cosine") -> list[int]:
        """Layers that have this sub-layer, the most redundant first.

        Parameters
        ----------
        kind
            ``"attention"``, ``"mlp"`` or ``"block"``.
        metric
            ``"cosine"``: highest mean cosine. ``"angular"``: smallest mean angle.
        """
        return _order(self._redundancy(kind, metric).sum(0))

    def joint_ranking(self) -> list[tuple[str, int]]:
        """Attention layers and MLPs in one list, the most redundant first."""
        found = [
            (float(value), kind, layer)
            for kind in ("attention", "mlp")
            for layer, value in enumerate(self.similarity(kind))
            if not math.isnan(value)
        ]
        return [(kind, layer) for _, kind, layer in sorted(found, key=lambda each: -each[0])]

    def rank_interval(
        self, kind: str, *, seed: int = 0, draws: int = 200, level: float = 0.95
    ) -> list[tuple[int, int]]:
        """Between which ranks each layer falls when windows are drawn again.

        Parameters
        ----------
        kind
            See `ranking`.
        seed, draws
            Of the bootstrap.
        level
            Share of draws inside.

        Returns
        -------
        list of (int, int)
            Per layer, from 0 (the most redundant); (-1, -1) where it has no such sub-layer.
        """
        sums = self._redundancy(kind, "cosine")
        generator = torch.Generator().manual_seed(seed)
        chosen = torch.randint(len(sums), (draws, len(sums)), generator=generator)
        ranks = torch.full((draws, sums.shape[1]), -1, dtype=torch.float64)
        for draw, windows in enumerate(chosen):
            weighted = sums[windows].sum(0) / self.tokens[0][windows].sum()
            order = _order(weighted)
            ranks[draw, order] = torch.arange(len(order), dtype=torch.float64)
        tail = (1 - level) / 2
        ends = torch.quantile(
            ranks,
            torch.tensor([tail, 1 - tail], dtype=torch.float64),
            dim=0,
            interpolation="nearest",
        )
        return [(int(low), int(high)) for low, high in ends.T]

    def _redundancy(self, kind: str, metric: str) -> Float64[Tensor, "w l"]:
        if metric not in ("cosine", "angular"):
            raise InputInvalid(f"the metric is {metric!r}", mend="give cosine or angular")
        kind = _known(kind)
        return self.cosines[kind][0] if metric == "cosine" else -self.angles[kind][0]


def _known(kind: str) -> str:
    if kind not in KINDS:
        raise InputInvalid(
            f"there is no sub-layer {kind!r}", mend=f"give one of {', '.join(KINDS)}"
        )
    return kind


def _order(redundancy: Float64[Tensor, " l"]) -> list[int]:
    """Highest first, by layer where equal, without NaN."""
    there = [i for i, value in enumerate(redundancy.tolist()) if not math.isnan(value)]
    return sorted(there, key=lambda i: (-float(redundancy[i]), i))


class _Sums:
    """Running sums of what one sub-layer does to a batch of windows."""

    def __init__(self, layers: int) -> None:
        self.rows: list[Float64[Tensor, "b 4 l"]] = []
        self.layers = layers

    def start(self, batch: int) -> None:
        self.rows.append(torch.full((batch, 4, self.layers), math.nan, dtype=torch.float64))

    def add(self, layer: int, x: Tensor, y: Tensor, counted: Bool[Tensor, "b n"]) -> None:
        cosine = torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=-1)
        # The angle of 1 rounded up is no number.
        both = cosine, cosine.clamp(-1, 1).arccos() / math.pi
        later = counted.clone()
        later[:, 0] = False
        masked = [v.double().masked_fill(~use, 0).sum(1) for v in both for use in (counted, later)]
        self.rows[-1][:, :, layer] = torch.stack(masked, 1).cpu()

    def pairs(self) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
        whole = torch.cat(self.rows)
        return (whole[:, 0], whole[:, 1]), (whole[:, 2], whole[:, 3])


@torch.no_grad()
def score_layers(
    model: Any,
    windows: Int[Tensor, "w n"],
    attention_mask: Int[Tensor, "w n"] | None = None,
    *,
    batch_size: int = 1,
    progress: bool | None = None,
) -> LayerScores:
    """Score every sub-layer in one pass over a text.

    Parameters
    ----------
    model
        A causal model of one of `zeitgeist.compression.dropped.LAYOUTS`.
    windows
        Token ids.
    attention_mask
        1 for tokens, 0 for padding, which is not counted; None: all are tokens.
    batch_size
        Windows at a time.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Raises
    ------
    InputInvalid
        The family is not known, or there is no text.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(**shape))
    >>> scores = score_layers(model, torch.arange(16).view(2, 8), progress=False)
    >>> scores.similarity("attention").shape, sorted(scores.ranking("block"))
    (torch.Size([2]), [0, 1])
    """
    layout, skips = layout_of(model.config), skips_of(model.config)
    if not windows.numel():
        raise InputInvalid("there is no text to score layers on", mend="give at least one window")
    layers = model.model.layers
    sums = {kind: _Sums(len(layers)) for kind in KINDS}
    state: dict[str, Tensor] = {}

    def first(_module: Any, args: Any, kwargs: Any) -> None:
        state["x"] = args[0] if args else kwargs["hidden_states"]

    def middle(_module: Any, args: Any) -> None:
        state["middle"] = args[0]

    def last(index: int) -> Any:
        def hook(_module: Any, _args: Any, _kwargs: Any, output: Any) -> None:
            y = output[0] if isinstance(output, tuple) else output
            counted = state["counted"].bool()
            has_attention, has_mlp = index not in skips.attention, index not in skips.mlp
            mid = state["middle"]
            if has_attention:
                sums["attention"].add(index, state["x"], mid, counted)
            if has_mlp:
                sums["mlp"].add(index, mid, y, counted)
            if has_attention and has_mlp:
                sums["block"].add(index, state["x"], y, counted)

        return hook

    mask = torch.ones_like(windows) if attention_mask is None else attention_mask
    model.eval()
    with ExitStack() as hooks:
        for index, layer in enumerate(layers):
            entry = getattr(layer, layout.mlp_norms[0])
            for handle in (
                layer.register_forward_pre_hook(first, with_kwargs=True),
                entry.register_forward_pre_hook(middle),
                layer.register_forward_hook(last(index), with_kwargs=True),
            ):
                hooks.callback(handle.remove)
        batches = list(zip(windows.split(batch_size), mask.split(batch_size), strict=True))
        for ids, use in tqdm(
            batches, desc="score", unit="batch", disable=None if progress is None else not progress
        ):
            state["counted"] = use.to(model.device)
            for each in sums.values():
                each.start(len(ids))
            given = None if attention_mask is None else state["counted"]
            model.model(ids.to(model.device), attention_mask=given, use_cache=False)
    pairs = {kind: each.pairs() for kind, each in sums.items()}
    tokens = mask.sum(1).double().cpu()
    return LayerScores(
        {kind: pair[0] for kind, pair in pairs.items()},
        {kind: pair[1] for kind, pair in pairs.items()},
        (tokens, tokens - mask[:, 0].double().cpu()),
    )


def _without(model: Any, kind: str, layers: Sequence[int]) -> Any:
    return drop_layers(
        model,
        attention=layers if kind in ("attention", "block") else (),
        mlp=layers if kind in ("mlp", "block") else (),
    )


def score_iteratively(model: Any, windows: Int[Tensor, "w n"], kind: str, count: int) -> list[int]:
    """Drop the most redundant, score again, and so on.

    Returns
    -------
    list of int
        The layers in the order in which they went.
    """
    _known(kind)
    gone: list[int] = []
    for _ in range(count):
        left = score_layers(model, windows, progress=False).ranking(kind)
        if not left:
            raise InputInvalid(
                f"{count} are to be dropped and there are {len(gone)} of kind {kind!r}",
                mend="ask for fewer",
            )
        gone.append(left[0])
        model = _without(model, kind, left[:1])
    return gone


def score_by_perplexity(
    model: Any,
    windows: Int[Tensor, "w n"],
    kind: str,
    candidates: Sequence[int] | None = None,
) -> list[float]:
    """What the perplexity of a text rises by when one sub-layer goes, for each.

    Parameters
    ----------
    model, windows
        As for `score_layers`.
    kind
        Of the sub-layer.
    candidates
        Layers to try; None: all. Others get NaN.
    """
    _known(kind)

    def perplexity(of: Any) -> float:
        return float(token_nll(of, windows).double().mean().exp())

    whole = perplexity(model)
    costs = [math.nan] * len(model.model.layers)
    for layer in range(len(costs)) if candidates is None else candidates:
        costs[layer] = perplexity(_without(model, kind, [layer])) - whole
    return costs
