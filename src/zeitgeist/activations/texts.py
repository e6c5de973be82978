"""Activations of many texts, one row each."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from zeitgeist.activations.capture import Key, capture
from zeitgeist.errors import InputInvalid


def capture_texts(
    model: Any,
    tokenizer: Any,
    texts: Sequence[str],
    sites: str | Sequence[str],
    *,
    layers: Sequence[int] | None = None,
    positions: str | Sequence[int] = "last",
    batch_size: int = 8,
    progress: bool | None = None,
) -> dict[Key, Tensor]:
    """Run texts through a model and keep some tokens of each.

    Parameters
    ----------
    model, tokenizer
        A causal transformers model and its tokenizer.
    texts
        One row each, none empty.
    sites, layers
        See `zeitgeist.activations.capture`; not attention weights, which are as wide as a text.
    positions
        ``"last"``, or tokens counted from the start that every text has.
    batch_size
        Texts at a time, of about one length so that little is padded.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    dict
        Site to texts x positions x ..., in the order of the texts, on the processor.

    Raises
    ------
    InputInvalid
        There is no text, one is empty or too short for the positions, a batch has none, or a site
        is refused.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=128,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> def letters(text): return {"input_ids": list(map(ord, text))}
    >>> found = capture_texts(LlamaForCausalLM(LlamaConfig(**shape)), letters, ["one", "three"],
    ...                       "resid_post", layers=[1], progress=False)
    >>> found["resid_post", 1].shape
    torch.Size([2, 1, 8])
    """
    names = [sites] if isinstance(sites, str) else list(sites)
    if "pattern" in names:
        raise InputInvalid(
            "attention weights are as wide as a text", mend="capture them text by text"
        )
    if not texts:
        raise InputInvalid("there are no texts", mend="give at least one")
    if not isinstance(positions, str) and (not positions or min(positions) < 0):
        raise InputInvalid(
            f"the positions are {list(positions)}", mend='count from the start, or give "last"'
        )
    if batch_size < 1:
        raise InputInvalid(f"batch_size is {batch_size}", mend="give at least 1")
    least = 1 if isinstance(positions, str) else max(positions) + 1
    rows = [torch.tensor(tokenizer(text)["input_ids"], dtype=torch.long) for text in texts]
    for index, row in enumerate(rows):
        if len(row) < least:
            raise InputInvalid(
                f"text {index} has {len(row)} tokens, and {least} are needed",
                mend="leave it out, or ask for other positions",
            )
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    hidden = None if progress is None else not progress
    found: dict[Key, list[Tensor]] = {}
    for batch in tqdm(batches, desc="capture", unit="batch", disable=hidden):
        some = [rows[index] for index in batch]
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).to(model.device)
        lengths = torch.tensor([len(row) for row in some], device=model.device)
        mask = (torch.arange(ids.shape[1], device=model.device) < lengths[:, None]).long()
        with capture(model, names, layers=layers, positions=positions) as acts, torch.no_grad():
            model(ids, attention_mask=mask, use_cache=False)
        for key in acts.keys():  # noqa: SIM118 - no mapping
            found.setdefault(key, []).append(acts[key].cpu())
    back = torch.tensor(order).argsort()
    return {key: torch.cat(parts)[back] for key, parts in found.items()}
