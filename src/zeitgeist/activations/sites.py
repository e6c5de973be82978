"""Portable names for places in a transformer, and the tensors found there.

    resid_pre, resid_mid, resid_post    the residual stream before, inside and after a block
    attn_out, mlp_out                   what a sub-layer adds to it
    q, k, v                             projections, before norms and RoPE: b, n, heads, d
    z                                   head outputs before the output projection: b, n, heads, d
    pattern                             attention weights: b, heads, queries, keys
    mlp_pre                             the MLP before its non-linearity

Anything else is the dotted path of a module: its output, or with ``:in`` behind it its input.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from zeitgeist.activations.layouts import Layout, layout_of
from zeitgeist.errors import InputInvalid, did_you_mean

SITES = (
    "resid_pre",
    "resid_mid",
    "resid_post",
    "attn_out",
    "mlp_out",
    "q",
    "k",
    "v",
    "z",
    "pattern",
    "mlp_pre",
)


@dataclass(frozen=True)
class Site:
    """A tensor of a running model.

    Parameters
    ----------
    name, layer
        As asked for; a raw path has no layer.
    path
        Of the module.
    side
        Its input (``"in"``), its output (``"out"``), or its attention weights (``"pattern"``).
    view
        From the module's tensor to the one that is shown, without a copy.
    """

    name: str
    layer: int | None
    path: str
    side: str
    view: Callable[[Tensor], Tensor]

    @property
    def key(self) -> tuple[str, int] | str:
        """How captured tensors are asked for."""
        return self.name if self.layer is None else (self.name, self.layer)


def depth_of(model: Any, layout: Layout) -> int:
    """How many blocks there are."""
    blocks: nn.ModuleList = model.get_submodule(layout.blocks)
    return len(blocks)


def resolve_site(
    model: Any, name: str, layer: int | None = None, *, layout: Layout | None = None
) -> Site:
    """Where a site is in a model.

    Parameters
    ----------
    model
        Any module for a raw path; a causal transformers model for a portable name.
    name
        One of `SITES`, or the path of a module.
    layer
        For portable names; negative counts from the end.
    layout
        Of the model, where it is known already.

    Raises
    ------
    InputInvalid
        No such site, module or layer, or a place that this architecture does not have.

    Examples
    --------
    >>> from transformers import GPT2Config, GPT2LMHeadModel
    >>> model = GPT2LMHeadModel(GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=16))
    >>> site = resolve_site(model, "z", -1)
    >>> site.path, site.side, site.key
    ('transformer.h.1.attn.c_proj', 'in', ('z', 1))
    """
    if name not in SITES:
        path, _, side = name.partition(":")
        known = dict(model.named_modules())
        if path not in known or not path or side not in ("", "in", "out"):
            raise InputInvalid(
                f"there is no site {name!r}", mend=did_you_mean(path, [*SITES, *known])
            )
        return Site(name, None, path, side or "out", _as_it_is)
    layout = layout or layout_of(model)
    depth = depth_of(model, layout)
    if layer is None or not -depth <= layer < depth:
        raise InputInvalid(f"{name} of layer {layer}", mend=f"the layers are 0 to {depth - 1}")
    layer %= depth
    block = layout.block(layer)
    if name == "resid_mid" and not layout.middle:
        raise InputInvalid(
            "there is no resid_mid where attention and MLP are in parallel",
            mend="take resid_pre or resid_post",
        )
    places: dict[str, tuple[str, str]] = {
        "resid_pre": ("", "in"),
        "resid_post": ("", "out"),
        "resid_mid": (layout.middle, "in"),
        "attn_out": (layout.attention_out, "out"),
        "mlp_out": (layout.mlp_out, "out"),
        "mlp_pre": (layout.mlp_pre, "out"),
        "q": (layout.q, "out"),
        "k": (layout.k, "out"),
        "v": (layout.v, "out"),
        "z": (layout.o, "in"),
        "pattern": (layout.attention, "pattern"),
    }
    part, side = places[name]
    path = f"{block}.{part}" if part else block
    return Site(name, layer, path, side, _view(model, layout, name, layer))


def _as_it_is(x: Tensor) -> Tensor:
    return x


def _view(model: Any, layout: Layout, name: str, layer: int) -> Callable[[Tensor], Tensor]:
    if name not in ("q", "k", "v", "z"):
        return _as_it_is
    config = model.config.get_text_config()
    heads = int(config.num_attention_heads)
    if name == "z":
        return lambda x: x.unflatten(-1, (heads, -1))
    if layout.name == "gpt2":
        part = "qkv".index(name)
        return lambda x: x.unflatten(-1, (3, heads, -1))[..., part, :, :]
    if layout.name == "neox":
        part = "qkv".index(name)
        return lambda x: x.unflatten(-1, (heads, 3, -1))[..., part, :]
    attention = model.get_submodule(f"{layout.block(layer)}.{layout.attention}")
    size = int(attention.head_dim)
    return lambda x: x.unflatten(-1, (-1, size))
