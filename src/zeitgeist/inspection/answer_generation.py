"""Answers token by token, with what flowed through the model while it made them.

A model is asked in its chat template, with no system text beyond what the template itself writes,
or as ``Q: ... A:`` where it has none, and then a newline ends its answer. Hidden states are taken
while the answer is generated; nothing runs twice.

Sizes: b rows, s = 1 + answer tokens, L layers, d width, v vocabulary. Place 0 of s is the last
token of the prompt; place k + 1 is answer token k. Rows are padded on the left.
"""

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from zeitgeist.activations import capture
from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.exact_answer import decoded

Choose = Callable[[Tensor, int], Tensor]
"""From logits (b v) and the step to the tokens that are emitted (b)."""


@dataclass(frozen=True)
class Traced:
    """Answers of a batch.

    ``ids`` are without what ended them. ``logits`` and ``logprobs`` are of the emitted tokens, at
    temperature 1, each from the token before it; ``states`` is b x s x L x d.
    """

    ids: list[list[int]]
    logits: list[Float[Tensor, " _"]]
    logprobs: list[Float[Tensor, " _"]]
    states: Float[Tensor, "b s L d"]


def is_chat(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def prompt_ids(tokenizer: Any, text: str, *, chat: bool, asked: bool = True) -> list[int]:
    """Tokens of a prompt, up to where the answer begins.

    Parameters
    ----------
    tokenizer
        Of the model.
    text
        What the user says.
    chat
        In the chat template; else as plain text.
    asked
        Plain text is framed as ``Q: ... A:``.
    """
    if chat:
        rendered = tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], tokenize=False, add_generation_prompt=True
        )
        return list(tokenizer(rendered, add_special_tokens=False)["input_ids"])
    return list(tokenizer(f"Q: {text}\nA:" if asked else text)["input_ids"])


def answer_ids(tokenizer: Any, answer: str, *, chat: bool) -> list[int]:
    """Tokens of a given answer."""
    text = answer if chat or answer[:1].isspace() else f" {answer}"
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def context_of(model: Any) -> int:
    """Tokens that a model can hold; very many where its configuration does not say."""
    config = model.config.get_text_config()
    return int(getattr(config, "max_position_embeddings", None) or 2**31)


def stop_ids(model: Any, tokenizer: Any) -> set[int]:
    """Tokens that end an answer."""
    own = getattr(model.generation_config, "eos_token_id", None)
    found = set(own) if isinstance(own, list | tuple) else {own}
    return {int(one) for one in found | {tokenizer.eos_token_id} if one is not None}


def padded(
    rows: Sequence[Sequence[int]], pad: int, device: torch.device
) -> tuple[Int64[Tensor, "b n"], Int64[Tensor, "b n"]]:
    """Rows of one length, padded on the left, and their attention mask."""
    length = max(map(len, rows))
    ids = torch.full((len(rows), length), pad, dtype=torch.int64)
    mask = torch.zeros((len(rows), length), dtype=torch.int64)
    for at, row in enumerate(rows):
        ids[at, length - len(row) :] = torch.tensor(row, dtype=torch.int64)
        mask[at, length - len(row) :] = 1
    return ids.to(device), mask.to(device)


def pad_id(tokenizer: Any) -> int:
    """What fills a row; hidden from attention, so that any token will do."""
    known = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return int(next(one for one in known if one is not None))


def run(model: Any, ids: Tensor, mask: Tensor, *, last_only: bool, **more: Any) -> Any:
    """One call of a model on rows padded on the left; ``mask`` covers the cache as well."""
    takes = inspect.signature(model.forward).parameters
    if "position_ids" in takes:
        places = (mask.cumsum(1) - 1).clamp(min=0)
        more["position_ids"] = places[:, -ids.shape[1] :]
    if last_only and "logits_to_keep" in takes:
        more["logits_to_keep"] = 1
    return model(input_ids=ids, attention_mask=mask, **more)


def greedy(logits: Tensor, _step: int) -> Tensor:
    """The likeliest token."""
    return logits.argmax(-1)


def sampler(
    uniforms: Float[np.ndarray, "b t"], *, temperature: float, top_p: float, top_k: int
) -> Choose:
    """Draw tokens by the inverse of their distribution function.

    Every row brings its own numbers, so that a draw does not depend on what else is in the batch.

    Parameters
    ----------
    uniforms
        One per row and step, in [0, 1).
    temperature
        Logits are divided by it.
    top_p
        Only the likeliest tokens that together have this probability; 1: all.
    top_k
        Only that many of the likeliest; 0: all.
    """

    def choose(logits: Tensor, step: int) -> Tensor:
        values, order = (logits.double() / temperature).softmax(-1).sort(-1, descending=True)
        if top_k:
            values[:, top_k:] = 0
            values = values / values.sum(-1, keepdim=True)
        # A token is kept while those before it have not reached top_p: the first one always is.
        before = values.cumsum(-1) - values
        values[before >= top_p] = 0
        reached = values.cumsum(-1)
        drawn = torch.as_tensor(uniforms[:, step : step + 1], device=logits.device)
        at = torch.searchsorted(reached, drawn * reached[:, -1:], right=True)
        # Rounding may carry a draw past the last token that has any probability.
        at = at.clamp(max=(values > 0).sum(-1, keepdim=True) - 1)
        return order.gather(-1, at)[:, 0]

    return choose


@torch.no_grad()
def generate(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    site: str,
    layers: Sequence[int] | None,
    max_new_tokens: int,
    stop_at_newline: bool,
    choose: Choose = greedy,
) -> Traced:
    """Answer a batch of prompts and keep the states of every answer token.

    Parameters
    ----------
    model, tokenizer
        A causal transformers model and its tokenizer.
    prompts
        Token ids.
    site, layers
        What to keep; see `zeitgeist.activations.capture`.
    max_new_tokens
        After which an answer is cut off.
    stop_at_newline
        Whether a token with a newline in it ends an answer, as it does in a plain prompt.
    choose
        Which token comes next.
    """
    ids, mask = padded(prompts, pad_id(tokenizer), model.device)
    stops, filler = stop_ids(model, tokenizer), pad_id(tokenizer)
    rows = range(len(prompts))
    answers: list[list[int]] = [[] for _ in rows]
    going = [True for _ in rows]
    raw, sure = [], []
    with capture(model, site, layers=layers, positions=-1) as acts:
        out = run(model, ids, mask, last_only=True, use_cache=True)
        for step in range(max_new_tokens):
            logits = out.logits[:, -1].float()
            tokens = choose(logits, step)
            picked = logits.gather(-1, tokens[:, None])[:, 0]
            raw.append(picked)
            sure.append(picked - logits.logsumexp(-1))
            for row, token in zip(rows, tokens.tolist(), strict=True):
                if going[row]:
                    going[row] = token not in stops and not (
                        stop_at_newline and "\n" in decoded(tokenizer, [token])
                    )
                    answers[row] += [token] * going[row]
            if not any(going):
                break
            fed = torch.where(torch.tensor(going, device=tokens.device), tokens, filler)
            mask = torch.cat([mask, mask.new_ones((len(mask), 1))], 1)
            # The last token of an answer that is cut off is fed in too, for its states.
            out = run(model, fed[:, None], mask, last_only=True, use_cache=True,
                      past_key_values=out.past_key_values)  # fmt: skip
        states = torch.stack([acts[key] for key in acts.keys()], 2)  # noqa: SIM118 - no mapping

    def own(each: list[Tensor]) -> list[Tensor]:
        together = torch.stack(each, 1).cpu()
        return [together[row, : len(answers[row])] for row in rows]

    return Traced(answers, own(raw), own(sure), states)


@torch.no_grad()
def read(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    *,
    site: str,
    layers: Sequence[int] | None,
) -> Traced:
    """The same for answers that are there already, in one pass.

    Parameters
    ----------
    model, tokenizer, prompts, site, layers
        As for `generate`.
    answers
        Token ids, none empty.
    """
    rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    ids, mask = padded(rows, pad_id(tokenizer), model.device)
    with capture(model, site, layers=layers) as acts:
        logits = run(model, ids, mask, last_only=False, use_cache=False).logits
        taken = torch.stack([acts[key] for key in acts.keys()], 2)  # noqa: SIM118 - no mapping
    longest = max(map(len, answers))
    states = taken.new_zeros((len(rows), longest + 1, *taken.shape[2:]))
    raw, sure = [], []
    for row, answer in enumerate(answers):
        begin = ids.shape[1] - len(answer) - 1
        states[row, : len(answer) + 1] = taken[row, begin:]
        before = logits[row, begin:-1].float()
        picked = before.gather(-1, ids[row, begin + 1 :, None])[:, 0]
        raw.append(picked.cpu())
        sure.append((picked - before.logsumexp(-1)).cpu())
    return Traced([list(answer) for answer in answers], raw, sure, states)


@contextmanager
def answering(model: Any) -> Iterator[None]:
    """The model without dropout inside the block, and as it was behind it."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def check_fits(
    model: Any, prompts: Sequence[Sequence[int]], room: Sequence[int], what: str
) -> None:
    """Refuse what a model cannot hold, before anything is generated.

    Parameters
    ----------
    model
        Whose context counts.
    prompts
        Token ids.
    room
        Tokens that may come behind each.
    what
        The reader's word for them.
    """
    context = context_of(model)
    for number, (prompt, behind) in enumerate(zip(prompts, room, strict=True), 1):
        if len(prompt) + behind > context:
            raise InputInvalid(
                f"question {number} has {len(prompt)} tokens and {what} may have {behind}, more "
                f"than the model's context of {context}",
                mend="leave it out, or take a smaller max_new_tokens",
            )
