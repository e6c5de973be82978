"""Scores of models on tasks and texts, and what can be said from so few items.

A task item counts as *exact* when every token of the right answer, the end included, is the model's
first choice given the tokens before it. That is the same as greedy decoding giving exactly this
answer, in one forward pass. Every item also has its *NLL*: the mean over its tokens of
-log p(token | what comes before), in nats; perplexity is exp of its mean over a text.

With s_m the mean score of model m on a task, and e the task's own expert,

    kept_m = s_m / s_e                      (1: the merge does what the expert did)
    ratio_m = perplexity_m / perplexity_base (1: nothing of the text was lost)

Intervals are at 95 % and over items only, not over seeds. Shares have Wilson's interval, which
also holds at 0 and 1; everything else the bootstrap's percentiles, with the same resampled items
for every model, so that ratios are paired.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from tqdm import tqdm

from zeitgeist.training import Example, answer_logits, collate

ALL = "all"
RESAMPLES = 2000
Z95 = 1.959964  # standard normal, two-sided 95 %


@dataclass(frozen=True)
class Scores:
    """Per item of every task and text: answered exactly, and NLL in nats per token."""

    exact: Mapping[str, Sequence[bool]]
    nll: Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Row:
    """One tidy result: ``metric`` of ``model`` on ``task`` (or text), with its interval."""

    model: str
    task: str
    metric: str
    value: float
    low: float
    high: float


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


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share.

    Examples
    --------
    >>> [round(bound, 3) for bound in wilson(0, 64)]
    [0.0, 0.057]
    """
    share, z2 = right / count, Z95**2
    centre = share + z2 / (2 * count)
    half = Z95 * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    scale = 1 + z2 / count
    return max(0.0, (centre - half) / scale), min(1.0, (centre + half) / scale)


def compare(
    scores: Mapping[str, Scores],
    *,
    base: str,
    experts: Mapping[str, str],
    seed: int = 0,
) -> list[Row]:
    """Every model's results as tidy rows.

    Parameters
    ----------
    scores
        By model.
    base
        Which model is the base.
    experts
        Task to the model that learned it. What else the scores hold are held-out texts.
    seed
        Of the bootstrap.

    Returns
    -------
    list of Row
        Per task ``exact_match``, ``answer_nll`` and ``kept``; per text ``nll``, ``perplexity`` and
        ``perplexity_ratio``. Under `ALL` the means over tasks of ``exact_match`` and ``kept``, and
        over texts the geometric mean of ``perplexity_ratio``. A task whose expert is never right
        has no ``kept``.
    """
    random = np.random.default_rng(seed)
    drawn = {
        name: random.integers(len(items), size=(RESAMPLES, len(items)))
        for name, items in scores[base].nll.items()
    }
    texts = [name for name in drawn if name not in experts]

    def means(
        values: Sequence[float] | Sequence[bool], name: str
    ) -> Float[np.ndarray, " resamples"]:
        """The mean of the items as they are, first, and then of each resample."""
        array = np.asarray(values, dtype=np.float64)
        return np.append(array.mean(), array[drawn[name]].mean(axis=1))

    def rows() -> Iterator[Row]:
        for model, own in scores.items():
            shares, kept = [], []
            for task, expert in experts.items():
                right, count = sum(own.exact[task]), len(own.exact[task])
                share = means(own.exact[task], task)
                shares.append(share)
                yield Row(model, task, "exact_match", right / count, *wilson(right, count))
                yield _row(model, task, "answer_nll", means(own.nll[task], task))
                if any(scores[expert].exact[task]):
                    kept.append(_ratio(share, means(scores[expert].exact[task], task)))
                    yield _row(model, task, "kept", kept[-1])
            yield _row(model, ALL, "exact_match", np.mean(shares, axis=0))
            if kept:
                yield _row(model, ALL, "kept", np.mean(kept, axis=0))
            lost = []
            for text in texts:
                nll = means(own.nll[text], text)
                lost.append(nll - means(scores[base].nll[text], text))
                yield _row(model, text, "nll", nll)
                yield _row(model, text, "perplexity", np.exp(nll))
                yield _row(model, text, "perplexity_ratio", np.exp(lost[-1]))
            if lost:
                yield _row(model, ALL, "perplexity_ratio", np.exp(np.mean(lost, axis=0)))

    return list(rows())


def _ratio(
    own: Float[np.ndarray, " resamples"], expert: Float[np.ndarray, " resamples"]
) -> Float[np.ndarray, " resamples"]:
    # A resample without one right answer of the expert says nothing.
    kept: Float[np.ndarray, " resamples"] = np.full(own.shape, np.nan)
    np.divide(own, expert, out=kept, where=expert > 0)
    return kept


def _row(model: str, task: str, metric: str, values: Float[np.ndarray, " resamples"]) -> Row:
    low, high = np.nanpercentile(values[1:], [2.5, 97.5])
    return Row(model, task, metric, float(values[0]), float(low), float(high))


def lookup(rows: Iterable[Row]) -> dict[tuple[str, str, str], Row]:
    """Rows by model, task and metric."""
    return {(row.model, row.task, row.metric): row for row in rows}
