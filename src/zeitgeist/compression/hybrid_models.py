"""Language models with LoLCATs' hybrid attention, as ordinary transformers classes.

Zhang, Arora, Chalamala, Wu, Spector, Singhal, Ramesh, Re: "LoLCATs: On Low-Rank Linearizing of
Large Language Models", arXiv 2410.10254. A class of its own for each family (`zeitgeist_lolcats_`
and the family's name) is registered when this module is imported, so that
`AutoModelForCausalLM.from_pretrained` opens what `save_pretrained` wrote; no code lies with the
weights. Every weight of the base is kept; a converted layer gains two feature maps and a gate.

Between tokens a converted layer keeps, in transformers' cache (layer type `hybrid_sliding`), the
keys and values of the last token's window and the sum of everything older, in float32. Which key is
where follows from positions alone, so that decoding sees what reading the prompt at once would.
First tokens that always count as near (``sinks``, an extension) are a second state beside the sum.

    b batch   h query heads   r key heads   n tokens   d head dimension   f features   e = d + 1
"""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    DynamicCache,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MistralConfig,
    MistralForCausalLM,
    MistralModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen2Model,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3Model,
)
from transformers.masking_utils import create_causal_mask
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from zeitgeist.compression.feature_maps import FeatureMap
from zeitgeist.compression.hybrid_attention import (
    check_window,
    fold,
    hybrid_chunked,
    hybrid_quadratic,
    hybrid_step,
    window_start,
)
from zeitgeist.errors import InputInvalid

PREFIX = "zeitgeist_lolcats_"
GATE = -2.1972
"""sigmoid of it is 0.1, the authors' start."""
SEGMENT = 64
"""Tokens that are read at once behind a cache."""
FAMILIES: dict[str, tuple[type, type, type]] = {
    "llama": (LlamaConfig, LlamaModel, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralModel, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2Model, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3Model, Qwen3ForCausalLM),
}


class LinearizedAttention(nn.Module):
    """The projections of a softmax attention, and hybrid attention between them.

    Parameters
    ----------
    base
        The attention to convert; its modules are used, not copied.
    recipe
        ``config.lolcats``.
    generator
        For maps that begin at random.
    """

    q_proj: nn.Linear
    k_proj: nn.Linear
    v_proj: nn.Linear
    o_proj: nn.Linear
    q_norm: nn.Module
    k_norm: nn.Module

    def __init__(
        self, base: Any, recipe: dict[str, Any], generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        self.config, self.layer_idx = base.config, base.layer_idx
        self.head_dim, self.scaling = base.head_dim, base.scaling
        self.groups = base.num_key_value_groups
        self.recipe = recipe
        for name in ("q_proj", "k_proj", "v_proj", "o_proj", "q_norm", "k_norm"):
            if hasattr(base, name):
                setattr(self, name, getattr(base, name))
        heads = base.config.num_attention_heads
        shape = (recipe["feature_map"], heads, self.head_dim, recipe["feature_dim"])
        self.feature_map_q = FeatureMap(*shape, recipe.get("init", "identity"), generator)
        self.feature_map_k = FeatureMap(*shape, recipe.get("init", "identity"), generator)
        self.gate = nn.Parameter(torch.full((heads,), GATE))

    def how(self) -> dict[str, Any]:
        """What the forms of hybrid attention want to know."""
        named = {name: self.recipe[name] for name in ("window", "kind", "blocks", "sinks")}
        return {**named, "scale": self.scaling}

    def forward(
        self,
        hidden_states: Float[Tensor, "b n c"],
        position_embeddings: tuple[Tensor, Tensor],
        attention_mask: Bool[Tensor, "b m"] | None = None,
        past_key_values: Any = None,
        position_ids: Int[Tensor, "_ n"] | None = None,
        **_: Any,
    ) -> tuple[Float[Tensor, "b n c"], None]:
        """As the family's attention; ``attention_mask`` is True for tokens, or None: all are."""
        q, k, v = self.projected(hidden_states, position_embeddings)
        batch, length = hidden_states.shape[:2]
        assert position_ids is not None
        places = position_ids.expand(batch, -1)
        if past_key_values is None:
            y = self._packed(q, k, v, places) if attention_mask is None else None
            y = self._whole(q, k, v, attention_mask) if y is None else y
        elif past_key_values.get_seq_length(self.layer_idx) == 0:
            y = self._whole(q, k, v, attention_mask)
            self._remember(past_key_values, k, v, attention_mask)
        else:
            parts = [
                self._behind(past_key_values, q[:, :, at], k[:, :, at], v[:, :, at], places[:, at])
                for start in range(0, length, SEGMENT)
                for at in [slice(start, start + SEGMENT)]
            ]
            y = torch.cat(parts, 2)
        return self.o_proj(y.transpose(1, 2).reshape(batch, length, -1).to(hidden_states)), None

    def projected(
        self, hidden_states: Float[Tensor, "b n c"], position_embeddings: tuple[Tensor, Tensor]
    ) -> tuple[Float[Tensor, "b h n d"], Float[Tensor, "b r n d"], Float[Tensor, "b r n d"]]:
        """Queries, keys and values, normalised where the family does, after RoPE."""
        split = (*hidden_states.shape[:-1], -1, self.head_dim)
        q, k, v = (p(hidden_states).view(split) for p in (self.q_proj, self.k_proj, self.v_proj))
        if hasattr(self, "q_norm"):
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        q, k = apply_rotary_pos_emb(q, k, *position_embeddings)
        return q, k, v

    def repeated(self, x: Float[Tensor, "b r n d"]) -> Float[Tensor, "b h n d"]:
        """Keys or values for every query head."""
        return x if self.groups == 1 else x.repeat_interleave(self.groups, 1)

    def attend(
        self,
        q: Float[Tensor, "b h n d"],
        k: Float[Tensor, "b h n d"],
        v: Float[Tensor, "b h n d"],
        valid: Bool[Tensor, "b n"] | None = None,
    ) -> Float[Tensor, "b h n d"]:
        """Hybrid attention of whole rows, padding at their end."""
        phi = self.feature_map_q(q), self.feature_map_k(k)
        return hybrid_chunked(q, k, v, *phi, self.gate.sigmoid(), **self.how(), valid=valid)

    def _whole(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Bool[Tensor, "b n"] | None
    ) -> Float[Tensor, "b h n d"]:
        """Rows with padding anywhere: tokens first, and back again."""
        k, v = self.repeated(k), self.repeated(v)
        if mask is None:
            return self.attend(q, k, v)
        order = (~mask).int().argsort(dim=1, stable=True)
        at = order[:, None, :, None].expand(q.shape)
        laid = q.gather(2, at), k.gather(2, at), v.gather(2, at)
        y = self.attend(*laid, valid=mask.gather(1, order))
        back = torch.zeros_like(y).scatter(2, at, y)
        return back.masked_fill(~mask[:, None, :, None], 0.0)

    def _packed(
        self, q: Tensor, k: Tensor, v: Tensor, places: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b h n d"] | None:
        """Documents behind each other, each a row of its own; None where there is one a row."""
        starts = torch.ones_like(places, dtype=torch.bool)
        starts[:, 1:] = places.diff(dim=1) != 1
        if int(starts.sum()) == len(places):
            return None
        flat = starts.flatten()
        row = flat.cumsum(0) - 1
        index = torch.arange(len(flat), device=flat.device)
        column = index - index[flat][row]
        rows, width = int(row[-1]) + 1, int(column.max()) + 1
        valid = torch.zeros(rows, width, dtype=torch.bool, device=flat.device)
        valid[row, column] = True
        unpacked = []
        for x in (q, self.repeated(k), self.repeated(v)):
            tokens = x.transpose(1, 2).flatten(0, 1)
            laid = tokens.new_zeros(rows, width, *tokens.shape[1:])
            laid[row, column] = tokens
            unpacked.append(laid.transpose(1, 2))
        y = self.attend(unpacked[0], unpacked[1], unpacked[2], valid).transpose(1, 2)[row, column]
        return y.view(len(places), -1, *y.shape[1:]).transpose(1, 2)

    def _remember(self, cache: Any, k: Tensor, v: Tensor, mask: Bool[Tensor, "b n"] | None) -> None:
        """Keep the last token's window, and the sum of what is older."""
        valid = torch.ones_like(k[:, 0, :, 0], dtype=torch.bool) if mask is None else mask
        rank = valid.long().cumsum(1) - 1
        old = valid & (rank >= self.recipe["sinks"]) & (rank < self._start(rank[:, -1:]))
        phi_k = self.feature_map_k(self.repeated(k))
        wide = torch.promote_types(v.dtype, torch.float32)
        state = phi_k.new_zeros(*phi_k.shape[:2], phi_k.shape[-1], v.shape[-1] + 1, dtype=wide)
        state = fold(state, phi_k, self.repeated(v), old)
        cache.update(k, v, self.layer_idx)
        cache.update_recurrent_state(state, self.layer_idx)
        self._sinks(cache, k, v, rank.masked_fill(~valid, -1))

    def _sinks(
        self, cache: Any, k: Float[Tensor, "b r m d"], v: Tensor, there: Int[Tensor, "b m"]
    ) -> tuple[Float[Tensor, "b r s d"], Float[Tensor, "b r s d"]]:
        """Keys and values of the first tokens as far as there are, after taking in these."""
        count, states = self.recipe["sinks"], cache.layers[self.layer_idx].recurrent_states
        if not count:
            return k[:, :, :0], v[:, :, :0]
        both = torch.cat([k, v], -1)
        kept = states[1]
        if kept is None:
            kept = both.new_zeros(*both.shape[:2], count, both.shape[-1])
        new = torch.arange(count, device=k.device)[:, None] == there[:, None]
        if new.any():
            laid = new[:, None].to(both.dtype) @ both
            kept = torch.where(new.any(-1)[:, None, :, None], laid, kept)
            cache.update_recurrent_state(kept, self.layer_idx, state_idx=1)
        first, second = kept.split(self.head_dim, -1)
        return first, second

    def _start(self, positions: Int[Tensor, "*n"]) -> Int[Tensor, "*n"]:
        how = self.recipe
        return window_start(positions, how["window"], how["kind"], how["blocks"])

    def _behind(
        self, cache: Any, q: Tensor, k: Tensor, v: Tensor, places: Int[Tensor, "b n"]
    ) -> Float[Tensor, "b h n d"]:
        """Tokens behind a cache. Its state holds what is older than the last token's window."""
        k, v = cache.update(k, v, self.layer_idx)
        state = cache.layers[self.layer_idx].recurrent_states[0]
        kept = k.shape[2] - q.shape[2]
        there = places[:, :1] - kept + torch.arange(k.shape[2], device=k.device)
        before, first = self._start(places[:, :1] - 1), self._start(places[:, :1])
        state = self._fold(state, k, v, there, before, first)
        sinks = self.recipe["sinks"]
        seen_k, seen_v, seen = k, v, there
        valid = (there >= 0) & ((there >= first) | (there < sinks))
        if sinks:
            early_k, early_v = self._sinks(cache, k, v, there)
            early = torch.arange(sinks, device=k.device).expand(len(k), -1)
            gone = (early < there[:, :1]) & (early < places[:, :1])
            seen_k, seen_v = torch.cat([early_k, k], 2), torch.cat([early_v, v], 2)
            seen, valid = torch.cat([early, there], 1), torch.cat([gone, valid], 1)
        gamma, phi_q = self.gate.sigmoid(), self.feature_map_q(q)
        if q.shape[2] == 1:
            y = hybrid_step(q, seen_k, seen_v, phi_q, gamma, state, scale=self.scaling, valid=valid)
        else:
            keys, values = self.repeated(seen_k), self.repeated(seen_v)
            y = hybrid_quadratic(
                q,
                keys,
                values,
                phi_q,
                self.feature_map_k(keys),
                gamma,
                **self.how(),
                query_positions=places,
                key_positions=seen,
                valid=valid,
                state=state,
            )
            state = self._fold(state, k, v, there, first, self._start(places[:, -1:]))
        cache.update_recurrent_state(state, self.layer_idx)
        return y

    def _fold(
        self,
        state: Float[Tensor, "b h f e"],
        k: Float[Tensor, "b r m d"],
        v: Float[Tensor, "b r m d"],
        there: Int[Tensor, "b m"],
        low: Int[Tensor, "b 1"],
        high: Int[Tensor, "b 1"],
    ) -> Float[Tensor, "b h f e"]:
        """Add the keys at positions low, ..., high - 1, but for sinks."""
        keep = (there >= low.clamp(min=self.recipe["sinks"])) & (there < high)
        columns = keep.any(0).nonzero()
        if not len(columns):
            return state
        at = slice(int(columns[0]), int(columns[-1]) + 1)
        keys, values = self.repeated(k[:, :, at]), self.repeated(v[:, :, at])
        return fold(state, self.feature_map_k(keys), values, keep[:, at])


def _forward(
    self: Any,
    input_ids: Tensor | None = None,
    attention_mask: Tensor | None = None,
    position_ids: Tensor | None = None,
    past_key_values: Any = None,
    inputs_embeds: Tensor | None = None,
    use_cache: bool | None = None,
    output_hidden_states: bool | None = None,
    **kwargs: Any,
) -> BaseModelOutputWithPast:
    """The family's forward pass; converted layers get which tokens count, not a square mask."""
    if (input_ids is None) == (inputs_embeds is None):
        raise InputInvalid("give either input_ids or inputs_embeds")
    hidden = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
    if use_cache is None:
        use_cache = self.config.use_cache
    if use_cache and past_key_values is None and not self.training:
        past_key_values = DynamicCache(config=self.config)
    seen = past_key_values.get_seq_length() if past_key_values is not None else 0
    length = hidden.shape[1]
    if attention_mask is not None and attention_mask.ndim != 2:
        raise InputInvalid(
            f"the attention mask has {attention_mask.ndim} dimensions",
            mend="give one of batch x tokens, as tokenizers do",
        )
    if position_ids is None:
        if attention_mask is None:
            position_ids = torch.arange(seen, seen + length, device=hidden.device)[None]
        else:
            counted = attention_mask.long().cumsum(1) - 1
            position_ids = counted.clamp(min=0)[:, -length:]
    square = None
    if len(self.config.lolcats["layers"]) < len(self.layers):
        square = create_causal_mask(
            config=self.config,
            inputs_embeds=hidden,
            attention_mask=attention_mask,
            past_key_values=past_key_values,
            position_ids=position_ids,
        )
    tokens, places = None, position_ids
    if attention_mask is not None and not bool(attention_mask.all()):
        tokens = attention_mask[:, -length:].bool()
        if seen:
            places = _left_padded(attention_mask.bool(), length)
    embeddings = self.rotary_emb(hidden, position_ids=position_ids)
    states = [hidden]
    for layer in self.layers:
        linear = isinstance(layer.self_attn, LinearizedAttention)
        hidden = layer(
            hidden,
            attention_mask=tokens if linear else square,
            position_embeddings=embeddings,
            position_ids=places if linear else position_ids,
            past_key_values=past_key_values,
            use_cache=use_cache,
            **kwargs,
        )
        states.append(hidden)
    hidden = self.norm(hidden)
    if output_hidden_states is None:
        output_hidden_states = self.config.output_hidden_states
    shown = (*states[:-1], hidden) if output_hidden_states else None
    return BaseModelOutputWithPast(
        last_hidden_state=hidden, past_key_values=past_key_values, hidden_states=shown
    )


def _left_padded(mask: Bool[Tensor, "b m"], length: int) -> Int[Tensor, "b n"]:
    """Positions of the last tokens behind a cache, negative in the padding before a row."""
    if bool((mask[:, :-1] & ~mask[:, 1:]).any()):
        raise InputInvalid(
            "the attention mask hides tokens behind others, and a state cannot forget them",
            mend="pad on the left",
        )
    places = torch.arange(mask.shape[1], device=mask.device) - (~mask).sum(1, keepdim=True)
    return places[:, -length:]


def _register(name: str, config: Any, model: Any, causal: Any) -> tuple[Any, Any, Any]:
    """Classes of one family, made and made known."""
    title = config.__name__.removesuffix("Config")

    def start(self: Any, config: Any) -> None:
        model.__init__(self, config)
        for index in config.lolcats["layers"]:
            layer = self.layers[index]
            layer.self_attn = LinearizedAttention(layer.self_attn, config.lolcats)
        self.post_init()

    own_config = type(
        f"Lolcats{title}Config",
        (config,),
        {"model_type": PREFIX + name, "__module__": __name__, "lolcats": None},
    )
    precise = {
        "config_class": own_config,
        "_keep_in_fp32_modules_strict": {"feature_map_q", "feature_map_k", "self_attn.gate"},
        "__module__": __name__,
    }
    own_model = type(
        f"Lolcats{title}Model", (model,), {**precise, "__init__": start, "forward": _forward}
    )

    def start_causal(self: Any, config: Any) -> None:
        causal.__base__.__init__(self, config)
        self.model = own_model(config)
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()

    own_causal = type(
        f"Lolcats{title}ForCausalLM", (causal,), {**precise, "__init__": start_causal}
    )
    AutoConfig.register(PREFIX + name, own_config, exist_ok=True)
    AutoModel.register(own_config, own_model, exist_ok=True)
    AutoModelForCausalLM.register(own_config, own_causal, exist_ok=True)
    return own_config, own_model, own_causal


LINEARIZED = {name: _register(name, *classes) for name, classes in FAMILIES.items()}


def linearize_model(
    model: Any,
    *,
    window: int = 64,
    kind: str = "sliding",
    blocks: int = 2,
    sinks: int = 0,
    feature_map: str = "hedgehog",
    feature_dim: int | None = None,
    layers: Sequence[int] | None = None,
    init: str = "identity",
    seed: int = 0,
) -> Any:
    """A linearized model around the weights of a softmax model, nothing learned yet.

    Parameters
    ----------
    model
        A causal model of the Llama, Mistral, Qwen2 or Qwen3 family. Its weights are shared.
    window, kind, blocks, sinks
        See `zeitgeist.compression.hybrid_attention`.
    feature_map, init
        See `zeitgeist.compression.feature_maps`.
    feature_dim
        Columns of a map; None: half the head dimension for Hedgehog, all of it for T2R.
    layers
        Which to convert; None: all.
    seed
        Of maps that begin at random.

    Returns
    -------
    PreTrainedModel
        Of a class registered here.

    Raises
    ------
    InputInvalid
        The architecture is not among those above or linearized already, a layer is out of range,
        the window means nothing, or only some layers of a sliding-window model are asked for.

    Examples
    --------
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> made = linearize_model(LlamaForCausalLM(LlamaConfig(**shape)), window=4)
    >>> made.config.model_type, made.config.layer_types
    ('zeitgeist_lolcats_llama', ['hybrid_sliding', 'hybrid_sliding'])
    """
    base = model.config
    if base.model_type.startswith(PREFIX):
        raise InputInvalid("the model is linearized already", mend="start from its base")
    if base.model_type not in FAMILIES:
        raise InputInvalid(
            f"a model of type {base.model_type!r} cannot be linearized",
            mend=f"give one of {', '.join(FAMILIES)}",
        )
    check_window(window, kind, blocks, sinks)
    depth = base.num_hidden_layers
    chosen = sorted(set(range(depth) if layers is None else layers))
    if not chosen or chosen[0] < 0 or chosen[-1] >= depth:
        raise InputInvalid(
            f"the layers to convert are {list(layers or ())}", mend=f"give some of 0 to {depth - 1}"
        )
    kinds = getattr(base, "layer_types", None) or ["sliding_attention"] * depth
    reach = getattr(base, "sliding_window", None)
    base_windows = [reach if kind == "sliding_attention" else None for kind in kinds]
    if len(chosen) < depth and any(base_windows):
        raise InputInvalid(
            f"the model attends in a sliding window of {base.sliding_window} tokens",
            mend="convert all of its layers",
        )
    head_dim = getattr(base, "head_dim", None) or base.hidden_size // base.num_attention_heads
    if feature_dim is None:
        feature_dim = max(1, head_dim // 2) if feature_map == "hedgehog" else head_dim
    recipe = {
        "window": window,
        "kind": kind,
        "blocks": blocks,
        "sinks": sinks,
        "feature_map": feature_map,
        "feature_dim": feature_dim,
        "layers": chosen,
        "base_windows": base_windows,
    }
    known = base.to_dict()
    known |= {
        "lolcats": recipe,
        "layer_types": [
            "hybrid_sliding" if i in chosen else "full_attention" for i in range(depth)
        ],
        "sliding_window": max(window * (blocks if kind == "terraced" else 1), 1) + 1,
        "number_of_conv_states": 2 if sinks else 1,  # so the cache calls all states of a layer
        "use_sliding_window": True,  # without it Qwen's configurations forget the line above
    }
    for name in ("model_type", "architectures", "transformers_version"):
        known.pop(name, None)
    config_class, _, causal_class = LINEARIZED[base.model_type]
    config = config_class(**known)
    config._attn_implementation = base._attn_implementation
    with torch.device("meta"):
        made = causal_class(config)
    inner, source = made.model, model.model
    inner.embed_tokens, inner.norm = source.embed_tokens, source.norm
    inner.rotary_emb, made.lm_head = source.rotary_emb, model.lm_head
    generator = torch.Generator().manual_seed(seed)
    for index, (own, old) in enumerate(zip(inner.layers, source.layers, strict=True)):
        for name, child in old.named_children():
            setattr(own, name, child)
        if index in chosen:
            new = LinearizedAttention(old.self_attn, {**recipe, "init": init}, generator)
            own.self_attn = new.to(model.device)
            new.recipe = recipe
    made.generation_config = model.generation_config
    return made.train(model.training)


def state_bytes(config: Any, *, tokens: int = 0) -> tuple[int, int]:
    """Bytes that a sequence keeps between tokens in all layers: linearized, and softmax.

    Parameters
    ----------
    config
        Of a linearized model.
    tokens
        Of context.

    Returns
    -------
    tuple of int
        States (float32) and windows in the model's dtype, with the full caches of layers that were
        not converted; and the caches of the softmax model.

    Examples
    --------
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> made = linearize_model(LlamaForCausalLM(LlamaConfig(**shape)), window=4)
    >>> state_bytes(made.config, tokens=1000)
    (288, 32000)
    """
    recipe = config.lolcats
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    size = torch.empty((), dtype=config.dtype or torch.float32).element_size()
    key = 2 * config.num_key_value_heads * head_dim * size
    features = recipe["feature_dim"] * (2 if recipe["feature_map"] == "hedgehog" else 1)
    state = 4 * config.num_attention_heads * features * (head_dim + 1) + recipe["sinks"] * key
    converted, depth = len(recipe["layers"]), config.num_hidden_layers
    window = min(tokens, config.sliding_window - 1) * key
    linear = converted * (state + window) + (depth - converted) * tokens * key
    return linear, depth * tokens * key
