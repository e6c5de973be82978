"""Transformers' models of Llama's and GPT-2's layout, run edge by edge from their own submodules.

Rotary positions, query groups, norms of queries and keys, biases of projections: as in the model.
Whether its parts put together give what the whole gives is checked on real tokens; a model that
computes something else is refused.

Letters as in `zeitgeist.inspection.circuit_models`.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from zeitgeist.activations import layout_of
from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.circuit_graph import Graph
from zeitgeist.inspection.circuit_models import CircuitModel, SmallTransformer, project

CLOSE = 1e-3
"""How far logits may be from the model's own, relative to their spread."""


class LlamaCircuit:
    """A causal model of Llama's layout; one input source, the embedding."""

    causal = True

    def __init__(self, model: Any) -> None:
        self.model = model
        config = model.config
        self.layers = model.get_submodule(layout_of(model).blocks)
        attention = self.layers[0].self_attn
        self.width = int(attention.head_dim)
        kv_heads = attention.k_proj.out_features // self.width
        self.graph = Graph(len(self.layers), int(config.num_attention_heads), kv_heads, mlp=True)
        windowed = getattr(config, "use_sliding_window", True)
        self.window: int | None = getattr(config, "sliding_window", None) if windowed else None

    @cached_property
    def stem(self) -> Any:
        """The model without its head."""
        return self.model.get_submodule(layout_of(self.model).blocks.rpartition(".")[0])

    def embed(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "s n t d"]:
        """Token embeddings."""
        if self.window is not None and tokens.shape[1] > self.window:
            raise InputInvalid(
                f"texts of {tokens.shape[1]} tokens are longer than the window of {self.window} "
                "that this model attends to",
                mend="give shorter ones",
            )
        found: Tensor = self.stem.embed_tokens(tokens)
        return found[None]

    def heads(
        self,
        layer: int,
        q: Float[Tensor, "h m t d"],
        k: Float[Tensor, "j m t d"],
        v: Float[Tensor, "j m t d"],
        chosen: Sequence[int],
    ) -> Float[Tensor, "h m t d"]:
        """What the chosen heads write."""
        block = self.layers[layer]
        attention = block.self_attn
        group = self.graph.heads // self.graph.kv_heads
        shared = sorted({head // group for head in chosen})
        q, k, v = (
            self._projected(getattr(attention, f"{name}_proj"), block.input_layernorm(x), some)
            for name, x, some in (("q", q, chosen), ("k", k, shared), ("v", v, shared))
        )
        if hasattr(attention, "q_norm"):
            q, k = attention.q_norm(q), attention.k_norm(k)
        places = torch.arange(q.shape[2], device=q.device)[None]
        cos, sin = self.stem.rotary_emb(q, places)
        q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        own = [shared.index(head // group) for head in chosen]
        mixed = F.scaled_dot_product_attention(
            q, k[own], v[own], is_causal=True, scale=attention.scaling
        )
        out = attention.o_proj.weight.T.unflatten(0, (self.graph.heads, self.width))
        return project(mixed, _some(out, chosen), None)

    def _projected(
        self, linear: Any, x: Float[Tensor, "h m t d"], chosen: Sequence[int]
    ) -> Float[Tensor, "h m t e"]:
        count = linear.out_features // self.width
        weight = linear.weight.unflatten(0, (count, self.width)).transpose(1, 2)
        bias = None if linear.bias is None else linear.bias.view(count, self.width)
        return project(x, _some(weight, chosen), None if bias is None else bias[list(chosen)])

    def mlp(self, layer: int, x: Float[Tensor, "m t d"]) -> Float[Tensor, "m t d"]:
        """What an MLP writes."""
        block = self.layers[layer]
        made: Tensor = block.mlp(block.post_attention_layernorm(x))
        return made

    def bias(self, layer: int) -> Float[Tensor, " d"]:
        """The attention's output bias, where there is one."""
        linear = self.layers[layer].self_attn.o_proj
        if linear.bias is None:
            return torch.zeros_like(linear.weight[:, 0])
        found: Tensor = linear.bias
        return found

    def logits(self, x: Float[Tensor, "m t d"]) -> Float[Tensor, "m t v"]:
        """Of the next token."""
        made: Tensor = self.model.lm_head(self.stem.norm(x))
        return made


class Gpt2Circuit:
    """GPT-2; one input source, tokens and positions together."""

    causal = True

    def __init__(self, model: Any) -> None:
        self.model = model
        self.layers = model.transformer.h
        heads = int(model.config.n_head)
        self.graph = Graph(len(self.layers), heads, heads, mlp=True)

    def embed(self, tokens: Int[Tensor, "n t"]) -> Float[Tensor, "s n t d"]:
        """Token and position embeddings, added."""
        stem = self.model.transformer
        places = torch.arange(tokens.shape[1], device=tokens.device)
        found: Tensor = stem.wte(tokens) + stem.wpe(places)
        return found[None]

    def heads(
        self,
        layer: int,
        q: Float[Tensor, "h m t d"],
        k: Float[Tensor, "j m t d"],
        v: Float[Tensor, "j m t d"],
        chosen: Sequence[int],
    ) -> Float[Tensor, "h m t d"]:
        """What the chosen heads write."""
        block, heads = self.layers[layer], self.graph.heads
        fused = block.attn.c_attn
        # (d, 3hd) as 3 x h matrices of d x e
        weights = fused.weight.unflatten(1, (3, heads, -1)).permute(1, 2, 0, 3)
        biases = fused.bias.unflatten(0, (3, heads, -1))
        q, k, v = (
            project(block.ln_1(x), _some(weights[i], chosen), biases[i][list(chosen)])
            for i, x in enumerate((q, k, v))
        )
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out = block.attn.c_proj.weight.unflatten(0, (heads, -1))
        return project(mixed, _some(out, chosen), None)

    def mlp(self, layer: int, x: Float[Tensor, "m t d"]) -> Float[Tensor, "m t d"]:
        """What an MLP writes."""
        block = self.layers[layer]
        made: Tensor = block.mlp(block.ln_2(x))
        return made

    def bias(self, layer: int) -> Float[Tensor, " d"]:
        """The attention's output bias."""
        found: Tensor = self.layers[layer].attn.c_proj.bias
        return found

    def logits(self, x: Float[Tensor, "m t d"]) -> Float[Tensor, "m t v"]:
        """Of the next token."""
        made: Tensor = self.model.lm_head(self.model.transformer.ln_f(x))
        return made


def circuit_model(model: Any) -> CircuitModel:
    """A model whose edges can be cut: itself where it is one, or a transformers model taken apart.

    Parameters
    ----------
    model
        A `SmallTransformer` or another `CircuitModel`, or a causal transformers model of Llama's
        or GPT-2's layout.

    Raises
    ------
    InputInvalid
        It is of another layout or in training mode, or its parts do not compute what it computes.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> circuit_model(LlamaForCausalLM(LlamaConfig(**shape)).eval()).graph.edge_count
    36
    """
    if isinstance(model, SmallTransformer | LlamaCircuit | Gpt2Circuit):
        return model
    if not hasattr(model, "config"):
        if isinstance(model, CircuitModel):
            return model
        raise InputInvalid(
            f"a {type(model).__name__} is no model whose edges can be cut",
            mend="give a transformers model or a CircuitModel",
        )
    known: dict[str, Callable[[Any], CircuitModel]] = {"llama": LlamaCircuit, "gpt2": Gpt2Circuit}
    name = layout_of(model).name
    if name not in known:
        raise InputInvalid(
            f"a {type(model).__name__} has the layout {name!r}, whose edges are not known here",
            mend=f"use a model of the layout {' or '.join(known)}",
        )
    if model.training:
        raise InputInvalid(
            "the model is in training mode",
            mend="call model.eval() first: dropout would be part of every score",
        )
    made = known[name](model)
    _check_equal(model, made)
    return made


@torch.no_grad()
def _check_equal(model: Any, made: CircuitModel) -> None:
    from zeitgeist.inspection.circuit_runner import trace

    device = next(model.parameters()).device
    ids = torch.arange(12, device=device).view(2, 6) * 7 % model.config.vocab_size
    meant = model(input_ids=ids, use_cache=False).logits.float()
    found = trace(made, ids).logits.float()
    off = float((meant - found).abs().max() / meant.std().clamp_min(1e-6))
    rough = 1 if model.dtype == torch.float32 or model.dtype == torch.float64 else 100
    if not off < CLOSE * rough:
        raise InputInvalid(
            f"a {type(model).__name__} put together from its parts computes something else "
            f"(logits off by {off:.2g} of their spread)",
            mend="use a model of Llama's or GPT-2's own kind",
        )


def _some(weight: Float[Tensor, "h a b"], chosen: Sequence[int]) -> Float[Tensor, "i a b"]:
    return weight if len(chosen) == weight.shape[0] else weight[list(chosen)]


def _rotated(
    x: Float[Tensor, "h m t e"], cos: Float[Tensor, "1 t c"], sin: Float[Tensor, "1 t c"]
) -> Float[Tensor, "h m t e"]:
    """Rotary positions; dimensions beyond those that turn stay."""
    turned, still = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    left, right = turned.chunk(2, dim=-1)
    made = turned * cos + torch.cat((-right, left), dim=-1) * sin
    return torch.cat((made, still), dim=-1) if still.shape[-1] else made
