"""Where the parts of a transformer are: which module is a block, its attention, its MLP.

A layout is found by the modules that are there, not by the name of the architecture, so that a new
family built like an old one works as it is. Families:

    llama      pre-norm (Llama, Mistral, Qwen2, Qwen3, Phi-3-like with separate projections)
    sandwich   norms before and after each sub-layer (Gemma 2, Gemma 3)
    post       norms after each sub-layer only (OLMo 2, OLMo 3)
    gpt2       fused query, key and value side by side
    neox       fused query, key and value per head; attention and MLP mostly in parallel
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from zeitgeist.errors import InputInvalid


@dataclass(frozen=True)
class Layout:
    """Paths inside a model; those of a block's parts are relative to the block.

    ``attention_out`` and ``mlp_out`` are the modules whose output is added to the residual stream,
    ``middle`` the one whose input is the stream between both sub-layers (empty: there is none, the
    sub-layers are in parallel). ``q``, ``k`` and ``v`` are one path where the projection is fused.
    """

    name: str
    blocks: str
    attention: str
    attention_out: str
    mlp_out: str
    middle: str
    q: str
    k: str
    v: str
    o: str
    mlp_pre: str

    def block(self, index: int) -> str:
        """The path of a block."""
        return f"{self.blocks}.{index}"


_PARTS = {
    "llama": (
        "self_attn",
        "self_attn",
        "mlp",
        "post_attention_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
    ),
    "sandwich": (
        "self_attn",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "pre_feedforward_layernorm",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
    ),
    "post": (
        "self_attn",
        "post_attention_layernorm",
        "post_feedforward_layernorm",
        "mlp",
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.gate_proj",
    ),
    "gpt2": (
        "attn",
        "attn",
        "mlp",
        "ln_2",
        "attn.c_attn",
        "attn.c_attn",
        "attn.c_attn",
        "attn.c_proj",
        "mlp.c_fc",
    ),
    "neox": (
        "attention",
        "post_attention_dropout",
        "post_mlp_dropout",
        "",
        "attention.query_key_value",
        "attention.query_key_value",
        "attention.query_key_value",
        "attention.dense",
        "mlp.dense_h_to_4h",
    ),
}


def layout_of(model: Any) -> Layout:
    """The layout of a causal transformers model.

    Raises
    ------
    InputInvalid
        It is built like none of the families above; raw module paths still work.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> found = layout_of(LlamaForCausalLM(LlamaConfig(**shape)))
    >>> found.name, found.block(1)
    ('llama', 'model.layers.1')
    """
    for path in _stacks(model):
        block = model.get_submodule(path)[0]
        name = _family(block)
        if name is None:
            continue
        parts = list(_PARTS[name])
        if name == "neox" and not getattr(model.config, "use_parallel_residual", True):
            raise InputInvalid(
                "a GPT-NeoX model without parallel residual adds only its attention to the MLP",
                mend="name modules by their paths",
            )
        return Layout(name, path, *parts)
    raise InputInvalid(
        f"the inside of a {type(model).__name__} is built like no family that is known here",
        mend="name modules by their paths, such as 'encoder.layers.0.linear1'",
    )


def _stacks(model: Any) -> list[str]:
    """Lists of two or more modules of one class, or of one; the longest first."""
    found = [
        (len(module), path)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) and path
    ]
    return [path for _, path in sorted(found, key=lambda each: -each[0])]


def _family(block: nn.Module) -> str | None:
    has = {path for path, _ in block.named_modules()}
    if {"self_attn.q_proj", "self_attn.o_proj", "mlp.gate_proj"} <= has:
        if "pre_feedforward_layernorm" in has:
            return "sandwich"
        if "post_feedforward_layernorm" in has:
            return "post"
        if "post_attention_layernorm" in has:
            return "llama"
    if {"attn.c_attn", "attn.c_proj", "ln_2", "mlp.c_fc"} <= has:
        return "gpt2"
    if {"attention.query_key_value", "attention.dense", "post_mlp_dropout"} <= has:
        return "neox"
    return None
