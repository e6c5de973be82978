"""The logit lens: what a model would say if it stopped after each layer.

The residual stream after every layer is sent through what the model itself does after its last
one: final norm, output matrix, soft cap. That tail is not looked up by name; the model runs with
the output of its last block replaced, so that the lens after the last layer is the model, for any
architecture.

Sizes: d depth, b batch, t tokens, v vocabulary, k best tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from zeitgeist.activations.capture import capture, patch
from zeitgeist.activations.layouts import layout_of
from zeitgeist.activations.sites import depth_of
from zeitgeist.errors import InputInvalid

__all__ = ["Lens", "logit_lens"]


@dataclass(frozen=True)
class Lens:
    """Axis 0 is depth: the embedding, then the stream after each layer.

    ``tokens`` are the likeliest next ones and ``probabilities`` theirs; ``kl`` is the divergence in
    nats of the model's own answer from each layer's, ``entropy`` that of each layer's, and
    ``rank`` the place (0: first) of the model's own first choice there.
    """

    tokens: Int[Tensor, "d b t k"]
    probabilities: Float[Tensor, "d b t k"]
    kl: Float[Tensor, "d b t"]
    entropy: Float[Tensor, "d b t"]
    rank: Int[Tensor, "d b t"]


@torch.no_grad()
def logit_lens(model: Any, ids: Int[Tensor, "b t"], *, k: int = 1) -> Lens:
    """Read every layer's residual stream through the end of the model.

    Parameters
    ----------
    model
        A causal transformers model of a layout that `zeitgeist.activations` knows.
    ids
        Token ids, b x t, without padding.
    k
        How many of the likeliest tokens to keep.

    Returns
    -------
    Lens
        On the model's device, statistics in float32.

    Raises
    ------
    InputInvalid
        There are no tokens, ``k`` is less than 1, or the layout is unknown.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> model = LlamaForCausalLM(LlamaConfig(**shape)).eval()
    >>> lens = logit_lens(model, torch.arange(5)[None], k=3)
    >>> lens.tokens.shape, float(lens.kl[-1].max())
    (torch.Size([3, 1, 5, 3]), 0.0)
    """
    if not ids.numel() or k < 1:
        raise InputInvalid(
            f"a lens on {tuple(ids.shape)} tokens with the best {k}", mend="give at least one each"
        )
    ids = ids.to(model.device)
    last = depth_of(model, layout_of(model)) - 1
    was_training = model.training
    model.eval()
    try:
        with capture(model, ["resid_pre", "resid_post"]) as acts:
            final = model(ids, use_cache=False).logits.float().log_softmax(-1)
        streams = [acts["resid_pre", 0], *(acts["resid_post", layer] for layer in range(last + 1))]
        choice = final.argmax(-1, keepdim=True)
        rows = [_row(_tail(model, ids, x, last), final, choice, k) for x in streams]
    finally:
        model.train(was_training)
    return Lens(*(torch.stack(part) for part in zip(*rows, strict=True)))


def _tail(model: Any, ids: Tensor, stream: Tensor, last: int) -> Tensor:
    with patch(model, {("resid_post", last): stream}):
        logits: Tensor = model(ids, use_cache=False).logits
    return logits.float().log_softmax(-1)


def _row(here: Tensor, final: Tensor, choice: Tensor, k: int) -> Sequence[Tensor]:
    best = here.topk(min(k, here.shape[-1]), -1)
    probability = here.exp()
    return (
        best.indices,
        best.values.exp(),
        (final.exp() * (final - here)).sum(-1),
        -(probability * here).sum(-1),
        (here > here.gather(-1, choice)).sum(-1),
    )
