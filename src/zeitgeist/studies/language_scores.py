"""Scores of a language model on tasks and texts.

A task item counts as *exact* when every token of the right answer, the end included, is the model's
first choice given the tokens before it. That is the same as greedy decoding giving exactly this
answer, in one forward pass. Every item also has its *NLL*: the mean over its tokens of
-log p(token | what comes before), in nats; perplexity is exp of its mean over a text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from tqdm import tqdm

from zeitgeist.training import Example, answer_logits, collate


@dataclass(frozen=True)
class Scores:
    """Per item of every task and text: answered exactly, and NLL in nats per token."""

    exact: Mapping[str, Sequence[bool]]
    nll: Mapping[str, Sequence[float]]


@torch.inference_mode()
def score(
    model: Any,
    sets: Mapping[str, Sequence[Example]],
    *,
    pad: int = 0,
    batch_size: int = 16,
    progress: "tqdm[Any] | None" = None,
) -> Scores:
    """Score a model on every item.

    Parameters
    ----------
    model
        A causal transformers model.
    sets
        Items of each task and text.
    pad
        Token id to fill batches with.
    batch_size
        Items per forward pass. Items of like length go together.
    progress
        A bar to move, by items.
    """
    places = [(name, i) for name, items in sets.items() for i in range(len(items))]
    places.sort(key=lambda place: len(sets[place[0]][place[1]]))
    exact: dict[str, list[bool]] = {name: [False] * len(items) for name, items in sets.items()}
    nll: dict[str, list[float]] = {name: [0.0] * len(items) for name, items in sets.items()}
    for start in range(0, len(places), batch_size):
        chosen = places[start : start + batch_size]
        batch = collate([sets[name][i] for name, i in chosen], pad=pad)
        ids, predicts = (batch[k].to(model.device) for k in ("input_ids", "predicts"))
        logits, targets = answer_logits(model, ids, predicts)
        losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
        lengths = predicts.sum(1).tolist()
        right = (logits.argmax(-1) == targets).split(lengths)
        for (name, i), one, loss in zip(chosen, right, losses.split(lengths), strict=True):
            exact[name][i], nll[name][i] = bool(one.all()), float(loss.double().mean())
        if progress is not None:
            progress.update(len(chosen))
    return Scores(exact, nll)
