"""Find attention sinks, drained values, residual peaks, and heads that sleep on some texts.

Guo, Pai, Bai, Jiao, Jordan, Mei: "Active-dormant attention heads: mechanistically demystifying
extreme-token phenomena in LLMs", arXiv 2410.13835. A few tokens get most of the attention
(sinks), their values are small (drains), and their residual stream is huge (peaks). They hurt
quantisation, eviction from the key-value cache, and maps of attention that people read. A head
that sleeps on one kind of text, with all its attention on a sink, may work on another.

The mathematics is in `zeitgeist.inspection.heads_measures`. Sinks are found, not assumed: models
without a BOS have them on ordinary words, some also on the first full stop. Patterns are reduced
inside the hook that sees them, so that a scan holds numbers per head and token, never per pair.

The doors: `scan` (look), `zeitgeist.inspection.heads_ablate.ablate` (does a head matter, and on
which text), `zeitgeist.inspection.heads_toy.train_toy` (why it happens, in a small model).
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm import tqdm

from zeitgeist.activations import capture, layout_of
from zeitgeist.activations.capture import Key, Reduction
from zeitgeist.activations.sites import depth_of
from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.heads_measures import (
    attention_measures,
    head_norms,
    projection_norms,
    stream_measures,
)
from zeitgeist.inspection.heads_options import HeadsOptions
from zeitgeist.inspection.heads_report import (
    HeadRow,
    HeadsReport,
    MassiveRow,
    PeakRow,
    Seen,
    SinkRow,
)
from zeitgeist.inspection.heads_windows import Windows, check_context, domain_windows

__all__ = ["HeadsOptions", "HeadsReport", "scan"]


def head_projections(model: Any, layer: int) -> Float[Tensor, "h d c"]:
    """Every head's slice of a layer's output projection.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=1, n_head=2, vocab_size=16))
    >>> head_projections(model, 0).shape
    torch.Size([2, 4, 8])
    """
    layout = layout_of(model)
    weight = model.get_submodule(f"{layout.block(layer)}.{layout.o}").weight.detach()
    # GPT-2 stores its projections the other way round.
    weight = weight if layout.name == "gpt2" else weight.T
    heads = int(model.config.get_text_config().num_attention_heads)
    made: Tensor = weight.unflatten(0, (heads, -1))
    return made


@torch.no_grad()
def scan(
    model: Any,
    tokenizer: Any,
    domains: Mapping[str, Sequence[str] | str],
    options: HeadsOptions | None = None,
    *,
    layers: Sequence[int] | None = None,
    progress: bool | None = None,
) -> HeadsReport:
    """Sinks, drains, peaks and dormant heads of a model, on texts of one or more domains.

    Guo, Pai, Bai, Jiao, Jordan, Mei, arXiv 2410.13835.

    Parameters
    ----------
    model, tokenizer
        A causal transformers model and its tokenizer.
    domains
        Name to texts, such as ``{"prose": [...], "code": [...]}``; each is cut into windows.
    options
        None: the defaults of `HeadsOptions`.
    layers
        Which; None: all. Sinks are then looked for in these alone.
    progress
        Show a bar on stderr; None: when it is a terminal.

    Returns
    -------
    HeadsReport
        A row per head and domain, sinks, norms of the residual stream, massive coordinates.

    Raises
    ------
    InputInvalid
        No text, a text shorter than a window, a window longer than the model's table of positions,
        a layer that is not there, or a model that is built
        like no known family.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=128,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> def letters(text, add_special_tokens): return {"input_ids": list(map(ord, text))}
    >>> found = scan(LlamaForCausalLM(LlamaConfig(**shape)), letters, {"all": "a text " * 9},
    ...              HeadsOptions(length=20), progress=False)
    >>> len(found.heads), found.heads[0].kind, found.sinks
    (4, 'active', ())
    """
    chosen = options or HeadsOptions()
    depth = depth_of(model, layout_of(model))
    for layer in layers or ():
        if not 0 <= layer < depth:
            raise InputInvalid(f"layer {layer} is to be scanned", mend=f"give 0 to {depth - 1}")
    wanted = list(range(depth)) if layers is None else sorted(set(layers))
    if not wanted:
        raise InputInvalid("no layer is to be scanned", mend="give at least one")
    check_context(model, chosen.length)
    windows = domain_windows(
        tokenizer, domains, length=chosen.length, count=chosen.windows, bos=chosen.bos
    )
    factors = {layer: projection_norms(head_projections(model, layer)) for layer in wanted}
    total = sum(len(each.ids) for each in windows.values())
    hidden = None if progress is None else not progress
    rows: list[HeadRow] = []
    sinks: list[SinkRow] = []
    peaks: list[PeakRow] = []
    massive: list[MassiveRow] = []
    tensors: dict[str, Tensor] = {}
    was_training = model.training
    model.eval()
    try:
        with tqdm(total=total, desc="scan", unit="window", disable=hidden) as bar:
            for name, each in windows.items():
                seen = _observe(model, each, wanted, factors, chosen.batch_size, bar.update)
                found = Seen(
                    name,
                    chosen,
                    tuple(wanted),
                    seen["pattern"],
                    seen["v"],
                    seen["z"],
                    torch.cat([seen["resid_pre"], seen["resid_post"]], 1),
                )
                rows += found.head_rows()
                sinks += found.sink_rows(tokenizer, each.ids)
                peaks += found.peak_rows()
                massive += found.massive_rows()
                tensors |= {f"{name}.{key}": x for key, x in found.kept().items()}
    finally:
        model.train(was_training)
    return HeadsReport(
        chosen, tuple(wanted), tuple(rows), tuple(sinks), tuple(peaks), tuple(massive), tensors
    )


@torch.no_grad()
def head_patterns(
    model: Any,
    tokenizer: Any,
    domains: Mapping[str, Sequence[str] | str],
    layer: int,
    head: int,
    *,
    length: int = 48,
    bos: bool = False,
) -> dict[str, tuple[list[str], Float[Tensor, "n n"]]]:
    """One head's attention weights on the first window of every domain, with its tokens.

    Parameters
    ----------
    model, tokenizer, domains
        See `scan`.
    layer, head
        Which.
    length, bos
        Tokens of the window, and whether it begins with a BOS.

    Raises
    ------
    InputInvalid
        There is no such layer or head, or texts as in `scan`.
    """
    heads = int(model.config.get_text_config().num_attention_heads)
    if not 0 <= head < heads:
        raise InputInvalid(f"there is no head {head}", mend=f"give 0 to {heads - 1}")
    check_context(model, length)
    windows = domain_windows(tokenizer, domains, length=length, count=1, bos=bos)
    decode = getattr(tokenizer, "decode", str)
    found = {}
    was_training = model.training
    model.eval()
    try:
        for name, each in windows.items():
            reduce: dict[Key, Reduction] = {"pattern": lambda pattern: pattern[:, head]}
            with capture(model, "pattern", layers=[layer], reduce=reduce) as acts:
                run_inside(model, each.ids)
            tokens = [str(decode([token])) for token in each.ids[0].tolist()]
            found[name] = (tokens, acts["pattern", layer][0].float().cpu())
    finally:
        model.train(was_training)
    return found


def run_inside(model: Any, ids: Int[Tensor, "b n"]) -> None:
    """The model without its vocabulary, which costs a small one a fifth of its time."""
    inner = getattr(model, "base_model", model)
    inner(input_ids=ids.to(model.device), use_cache=False)


def _observe(
    model: Any,
    windows: Windows,
    layers: Sequence[int],
    factors: Mapping[int, Tensor],
    batch_size: int,
    count: Callable[[int], Any],
) -> dict[str, Tensor]:
    """Everything that is reduced in hooks, windows x layers x ..., on the processor."""

    def norms(layer: int) -> Callable[[Tensor], Tensor]:
        return lambda x: head_norms(x, factors[layer])

    reduce: dict[Key, Reduction] = {
        "pattern": attention_measures,
        "resid_post": stream_measures,
        "resid_pre": stream_measures,
        **{("v", layer): norms(layer) for layer in layers},
        **{("z", layer): norms(layer) for layer in layers},
    }
    sites = ("pattern", "v", "z", "resid_pre", "resid_post")
    found: dict[str, list[Tensor]] = {site: [] for site in sites}
    for ids in windows.ids.split(batch_size):
        with capture(model, sites, layers=layers, reduce=reduce) as acts:
            run_inside(model, ids)
        for site in sites:
            which = layers[:1] if site == "resid_pre" else layers
            found[site].append(torch.stack([acts[site, layer] for layer in which], 1).cpu())
        count(len(ids))
    return {site: torch.cat(parts) for site, parts in found.items()}
