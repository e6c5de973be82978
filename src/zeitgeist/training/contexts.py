"""Inputs that are not their own targets: a mixed context with gold labels, a draft that is masked.

`zeitgeist.training.answers` learns what stands in its inputs. A `Context` says both apart,

    loss = -(1 / n) sum over positions t with a label of log p(label_{t+1} | input_{<=t})

which is the loss that transformers computes from ``input_ids`` and ``labels``: labels lie where the
gold token would stand and are shifted once, inside. -100 stands where nothing is learned, by
position: a label that happens to be the padding token (SmolLM2 ends an answer with the token it
pads with) is learned like any other.

b: sequences, t: positions.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.training.answers import Example, answer_logits

UNLABELLED = -100
"""What transformers leaves out of the loss."""


@dataclass(frozen=True)
class Context:
    """Token ids that a model reads, and at each position the token that should have stood there.

    Examples
    --------
    >>> Context(input_ids=(5, 6, 9), labels=(-100, 7, 8)).labels
    (-100, 7, 8)
    """

    input_ids: tuple[int, ...]
    labels: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.input_ids) != len(self.labels):
            raise InputInvalid(
                f"a context has {len(self.input_ids)} input ids and {len(self.labels)} labels",
                mend="give one label per token",
            )
        if not self.labels or self.labels[0] != UNLABELLED:
            raise InputInvalid(
                "a context has a label at its first position, which nothing predicts",
                mend=f"put {UNLABELLED} there",
            )
        if all(label == UNLABELLED for label in self.labels):
            raise InputInvalid("a context has no label to learn", mend="give at least one")

    def __len__(self) -> int:
        return len(self.input_ids)


def gold_context(example: Example) -> Context:
    """What fine-tuning on demonstrations learns from: the inputs are gold as well.

    Examples
    --------
    >>> gold_context(Example(prompt=(5,), answer=(7, 8)))
    Context(input_ids=(5, 7, 8), labels=(-100, 7, 8))
    """
    return Context(
        example.prompt + example.answer,
        (UNLABELLED,) * len(example.prompt) + example.answer,
    )


def collate_contexts(contexts: Sequence[Context], *, pad: int) -> dict[str, Tensor]:
    """One batch, filled on the right, where a causal model cannot see it.

    Parameters
    ----------
    contexts
        Of any lengths.
    pad
        Token id to fill with.

    Returns
    -------
    dict
        ``input_ids`` and ``labels``, both (b, t) int64.

    Examples
    --------
    >>> batch = collate_contexts([Context((5, 9, 0), (-100, 7, 0)), Context((5, 8), (-100, 8))],
    ...                          pad=0)
    >>> batch["input_ids"].tolist(), batch["labels"].tolist()
    ([[5, 9, 0], [5, 8, 0]], [[-100, 7, 0], [-100, 8, -100]])
    """
    width = max(map(len, contexts))
    ids = torch.full((len(contexts), width), pad)
    labels = torch.full((len(contexts), width), UNLABELLED)
    for row, context in enumerate(contexts):
        ids[row, : len(context)] = torch.tensor(context.input_ids)
        labels[row, : len(context)] = torch.tensor(context.labels)
    return {"input_ids": ids, "labels": labels}


def context_loss(model: Any, batch: Mapping[str, Tensor]) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of the labels of a batch, in nats per label.

    The output head sees only the positions that predict a label, as in `answer_logits`.

    Parameters
    ----------
    model
        A causal transformers model, or a peft model around one.
    batch
        As from `collate_contexts`.
    """
    following = batch["labels"].roll(-1, dims=1)
    following[:, -1] = UNLABELLED
    predicts = following != UNLABELLED
    logits, _ = answer_logits(model, batch["input_ids"], predicts)
    return torch.nn.functional.cross_entropy(logits, following[predicts])
