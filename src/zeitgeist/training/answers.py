"""Prompts with answers: batches, and the logits of the answers alone.

Only answers are learned and scored. Sequences are padded on the right, where a causal model cannot
see the padding, and the answer is found by its length: an answer token that happens to be the
padding token (SmolLM2 ends an answer with the token it pads with) still counts.

b: sequences, t: positions, n: answer tokens of all sequences together, v: vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from zeitgeist.errors import InputInvalid


@dataclass(frozen=True)
class Example:
    """Token ids of a prompt and of the answer that should follow.

    Examples
    --------
    >>> len(Example(prompt=(5, 6), answer=(7,)))
    3
    """

    prompt: tuple[int, ...]
    answer: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.prompt or not self.answer:
            raise InputInvalid(
                f"an example has {len(self.prompt)} prompt and {len(self.answer)} answer tokens",
                mend="give at least one of each",
            )

    def __len__(self) -> int:
        return len(self.prompt) + len(self.answer)


def collate(examples: Sequence[Example], *, pad: int) -> dict[str, Tensor]:
    """One batch: padded ids, and which positions predict an answer token.

    Parameters
    ----------
    examples
        Of any lengths.
    pad
        Token id to fill with.

    Returns
    -------
    dict
        ``input_ids`` (b, t) int64 and ``predicts`` (b, t) bool: true where the *next* token belongs
        to the answer.

    Examples
    --------
    >>> batch = collate([Example((5, 6), (7, 0)), Example((5,), (8,))], pad=0)
    >>> batch["input_ids"].tolist()
    [[5, 6, 7, 0], [5, 8, 0, 0]]
    >>> batch["predicts"].tolist()
    [[False, True, True, False], [True, False, False, False]]
    """
    width = max(map(len, examples))
    ids = torch.full((len(examples), width), pad)
    predicts = torch.zeros(ids.shape, dtype=torch.bool)
    for row, example in enumerate(examples):
        ids[row, : len(example)] = torch.tensor(example.prompt + example.answer)
        predicts[row, len(example.prompt) - 1 : len(example) - 1] = True
    return {"input_ids": ids, "predicts": predicts}


def answer_logits(
    model: Any, input_ids: Int64[Tensor, "b t"], predicts: Bool[Tensor, "b t"]
) -> tuple[Float[Tensor, "n v"], Int64[Tensor, " n"]]:
    """Logits at the positions that predict answers, and the tokens that stand there.

    The output head sees only those positions: with 49,152 tokens in the vocabulary and short
    answers in longer prompts the full logits would cost a quarter of a step (measured).

    Parameters
    ----------
    model
        A causal transformers model, or a peft model around one.
    input_ids, predicts
        As from `collate`.

    Returns
    -------
    tuple
        Logits in float32 and target ids, in order of row, then position.
    """
    head = model.get_output_embeddings()

    def select(_: Any, inputs: tuple[Any, ...]) -> tuple[Tensor]:
        hidden: Tensor = inputs[0]
        return (hidden[predicts].unsqueeze(0),)

    hook = head.register_forward_pre_hook(select)
    try:
        logits = model(input_ids=input_ids, use_cache=False).logits
    finally:
        hook.remove()
    return logits.squeeze(0).float(), input_ids.roll(-1, dims=1)[predicts]
