"""What could be captured of a model, with shapes and bytes, before any weight is read."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from zeitgeist.activations.capture import capture
from zeitgeist.activations.layouts import layout_of
from zeitgeist.activations.sites import SITES, depth_of, resolve_site
from zeitgeist.errors import InputInvalid


@dataclass(frozen=True)
class SiteRow:
    """One site: its shape and bytes in every layer, and the module in the first of them."""

    site: str
    path: str
    side: str
    shape: tuple[int, ...]
    bytes: int
    layers: int


def blank(place: Path) -> Any:
    """A model without weights, from its configuration alone.

    Raises
    ------
    InputInvalid
        The directory holds no configuration of a causal model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    try:
        config = AutoConfig.from_pretrained(place, local_files_only=True)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError) as error:
        first = str(error).splitlines()[0]
        raise InputInvalid(first, origin=place, mend="give a causal transformers model") from error


def site_table(model: Any, *, batch: int = 1, tokens: int = 128) -> list[SiteRow]:
    """Every portable site of a model, as a run of this size would show it.

    Parameters
    ----------
    model
        A causal transformers model; one without weights will do.
    batch, tokens
        Of the run.

    Raises
    ------
    InputInvalid
        The model is built like no known family, or the run is empty.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> with torch.device("meta"):
    ...     model = LlamaForCausalLM(LlamaConfig(**shape))
    >>> rows = {row.site: row for row in site_table(model, tokens=5)}
    >>> rows["z"].shape, rows["z"].bytes, rows["z"].layers
    ((1, 5, 2, 4), 160, 2)
    """
    if batch < 1 or tokens < 1:
        raise InputInvalid(f"a run of {batch} x {tokens} tokens", mend="give at least one of each")
    layout = layout_of(model)
    depth = depth_of(model, layout)
    names = [name for name in SITES if name != "resid_mid" or layout.middle]
    device = next(model.parameters()).device
    ids = torch.zeros(batch, tokens, dtype=torch.long, device=device)
    # A square mask is taken as it is: nothing asks for values that a blank model does not have.
    mask = torch.zeros(batch, 1, tokens, tokens, dtype=model.dtype, device=device)
    with capture(model, names, layers=[0]) as acts, torch.no_grad():
        model(ids, attention_mask=mask, use_cache=False)
    rows = []
    for name in names:
        site, x = resolve_site(model, name, 0), acts[name, 0]
        rows.append(SiteRow(name, site.path, site.side, tuple(x.shape), x.nbytes, depth))
    return rows
