"""Direct preference optimisation, as a loss that transformers' Trainer minimises.

Rafailov, Sharma, Mitchell, Ermon, Manning, Finn: "Direct Preference Optimization: Your Language
Model is Secretly a Reward Model", arXiv 2305.18290. With log p summed over an answer, c chosen, r
rejected and q the reference model,

    loss = -log sigmoid(beta ((log p_c - log q_c) - (log p_r - log q_r))) + w NLL(c)

w = 1 keeps the chosen answer likely (Pang et al., arXiv 2404.19733); w = 0 is the paper's. With
gold as chosen and the model's own sample as rejected it is SPIN (Chen, Deng, Yuan, Ji, Gu,
2401.01335), which needs demonstrations only.

b: pairs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid

from zeitgeist.training import Example, answer_logits, collate


@dataclass(frozen=True)
class Pair:
    """A chosen and a rejected answer, and the log-likelihood a reference model gives each."""

    chosen: Example
    rejected: Example
    reference_chosen: float
    reference_rejected: float


def preference_loss(
    chosen: Float[Tensor, " b"],
    rejected: Float[Tensor, " b"],
    reference_chosen: Float[Tensor, " b"],
    reference_rejected: Float[Tensor, " b"],
    *,
    beta: float = 0.1,
) -> Float[Tensor, ""]:
    """The first term of the loss above, averaged over pairs, from summed log-likelihoods.

    Examples
    --------
    >>> same = torch.tensor([-3.0])
    >>> round(float(preference_loss(same, same, same, same)), 4)  # log 2
    0.6931
    """
    margins = (chosen - reference_chosen) - (rejected - reference_rejected)
    return -logsigmoid(beta * margins).mean()


def log_likelihoods(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, " b"]:
    """Log-likelihood of every answer of a batch of `zeitgeist.training.collate`."""
    predicts = batch["predicts"]
    logits, targets = answer_logits(model, batch["input_ids"], predicts)
    each = -cross_entropy(logits, targets, reduction="none")
    rows = predicts.nonzero()[:, 0]
    return torch.zeros(len(predicts), device=each.device).index_add(0, rows, each)


def collate_pairs(pairs: Sequence[Pair], *, pad: int) -> dict[str, Tensor]:
    """One batch: chosen answers, then rejected ones, and what the reference gives them."""
    batch = collate([*(p.chosen for p in pairs), *(p.rejected for p in pairs)], pad=pad)
    reference = [p.reference_chosen for p in pairs] + [p.reference_rejected for p in pairs]
    return {**batch, "reference": torch.tensor(reference)}


def pair_loss(
    model: Any, batch: Mapping[str, Tensor], *, beta: float = 0.1, weight: float = 1.0
) -> Float[Tensor, ""]:
    """The whole loss of a batch of `collate_pairs`; NLL is per token of the chosen answers."""
    found = log_likelihoods(model, batch)
    chosen, rejected = found.chunk(2)
    loss = preference_loss(chosen, rejected, *batch["reference"].chunk(2), beta=beta)
    tokens = batch["predicts"][: len(chosen)].sum()
    return loss - weight * chosen.sum() / tokens
