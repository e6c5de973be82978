"""Language models without some of their attention layers and MLPs, as transformers classes.

He, Sun, Shen, Li: "What matters in transformers? Not all attention is needed", arXiv 2406.15786. A
residual sub-layer y = x + F(norm(x)) is dropped by leaving out norm and F, so that y = x. Their
weights are gone from the model and from its file.

A class of its own for each family (`zeitgeist_dropped_` and the family's name) is registered when
this module is imported; `AutoModelForCausalLM.from_pretrained` then opens what `save_pretrained`
wrote, and no code lies with the weights. The configuration says what is left out in transformers'
vocabulary, ``{"3": {"skip": ["attention"]}}``, under ``dropped_layers``: its own field of that
vocabulary, ``per_layer_config``, is read by no model class so far and would be ignored.
Layers keep their numbers. In the cache a layer without attention keeps keys of no width; where it
is the layer that transformers asks how long the cache is, a byte a token.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from zeitgeist.errors import InputInvalid

PREFIX = "zeitgeist_dropped_"


@dataclass(frozen=True)
class Layout:
    """Where a family's decoder layer has what: sub-layers, and the norms that belong to each."""

    config: str
    causal: str
    attention_norms: tuple[str, ...] = ("input_layernorm",)
    mlp_norms: tuple[str, ...] = ("post_attention_layernorm",)


_SANDWICH = (
    ("input_layernorm", "post_attention_layernorm"),
    ("pre_feedforward_layernorm", "post_feedforward_layernorm"),
)
LAYOUTS: Mapping[str, Layout] = {
    "llama": Layout("LlamaConfig", "LlamaForCausalLM"),
    "mistral": Layout("MistralConfig", "MistralForCausalLM"),
    "qwen2": Layout("Qwen2Config", "Qwen2ForCausalLM"),
    "qwen3": Layout("Qwen3Config", "Qwen3ForCausalLM"),
    "granite": Layout("GraniteConfig", "GraniteForCausalLM"),
    "gemma2": Layout("Gemma2Config", "Gemma2ForCausalLM", *_SANDWICH),
    "gemma3_text": Layout("Gemma3TextConfig", "Gemma3ForCausalLM", *_SANDWICH),
}
REFUSED: Mapping[str, str] = {
    "gpt_neox": "attention and MLP read the same input",
    "gptj": "attention and MLP read the same input",
    "phi": "attention and MLP read the same input",
    "falcon": "attention and MLP read the same input",
    "cohere": "attention and MLP read the same input",
    "gemma3n_text": "layers share keys and values, and a producer cannot go without its readers",
    "gemma4_text": "layers share keys and values, and a producer cannot go without its readers",
}


@dataclass(frozen=True)
class Skips:
    """Layers without attention, and layers without MLP, in order."""

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    def vocabulary(self) -> dict[str, dict[str, list[str]]]:
        """As the configuration says it.

        Examples
        --------
        >>> Skips((3,), (1, 3)).vocabulary()
        {'1': {'skip': ['mlp']}, '3': {'skip': ['attention', 'mlp']}}
        """
        both = (("attention", self.attention), ("mlp", self.mlp))
        return {
            str(layer): {"skip": [kind for kind, layers in both if layer in layers]}
            for layer in sorted({*self.attention, *self.mlp})
        }


class NoAttention(nn.Module):
    """Nothing where attention was: adds zero, and counts tokens in the cache."""

    def __init__(self, layer_idx: int, width: int) -> None:
        super().__init__()
        self.layer_idx, self.width = layer_idx, width

    def forward(
        self, hidden_states: Float[Tensor, "b n c"], *_: Any, past_key_values: Any = None, **__: Any
    ) -> tuple[Float[Tensor, "b n c"], None]:
        """Zeros of the shape of ``hidden_states``."""
        if past_key_values is not None:
            batch, length = hidden_states.shape[:2]
            shape = (batch, 1, length, self.width)
            marks = hidden_states.new_zeros(shape, dtype=torch.bool)
            past_key_values.update(marks, marks[..., :0], self.layer_idx)
        return torch.zeros_like(hidden_states), None


class NoMlp(nn.Module):
    """Nothing where an MLP was: adds zero."""

    def forward(self, hidden_states: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
        """Zeros of the shape of ``hidden_states``."""
        return torch.zeros_like(hidden_states)


def skips_of(config: Any) -> Skips:
    """What a model's configuration says is left out.

    Raises
    ------
    InputInvalid
        The vocabulary is not understood.
    """
    attention, mlp = [], []
    for layer, entry in sorted((getattr(config, "dropped_layers", None) or {}).items()):
        kinds = set(entry.get("skip", ()))
        if kinds - {"attention", "mlp"} or set(entry) != {"skip"}:
            raise InputInvalid(
                f"layer {layer} says {entry}", origin="config.json", mend="skip attention or mlp"
            )
        attention += [int(layer)] if "attention" in kinds else []
        mlp += [int(layer)] if "mlp" in kinds else []
    return Skips(tuple(sorted(attention)), tuple(sorted(mlp)))


def layout_of(config: Any) -> Layout:
    """Where a model has its sub-layers.

    Raises
    ------
    InputInvalid
        The family is not known here; the message says why where there is a reason.
    """
    family = config.model_type.removeprefix(PREFIX)
    if family not in LAYOUTS:
        why = REFUSED.get(family, "its layers have no layout here")
        raise InputInvalid(
            f"no layer of a model of type {family!r} can be dropped: {why}",
            mend=f"give one of {', '.join(LAYOUTS)}",
        )
    return LAYOUTS[family]


def _leave_out(inner: Any, skips: Skips, layout: Layout) -> None:
    """Take the sub-layers and their norms out, in place."""
    layers, kinds = inner.layers, getattr(inner.config, "layer_types", None) or ()
    # transformers asks these two layers for the length of what a cache holds.
    asked = {0, kinds.index("full_attention") if "full_attention" in kinds else 0}
    for index in skips.attention:
        layers[index].self_attn = NoAttention(index, int(index in asked))
        for name in layout.attention_norms:
            setattr(layers[index], name, nn.Identity())
    for index in skips.mlp:
        layers[index].mlp = NoMlp()
        for name in layout.mlp_norms:
            setattr(layers[index], name, nn.Identity())


def _register(family: str, layout: Layout) -> tuple[Any, Any]:
    config, causal = (getattr(transformers, name) for name in (layout.config, layout.causal))
    own_config = type(
        f"Dropped{layout.config}",
        (config,),
        {"model_type": PREFIX + family, "__module__": __name__, "dropped_layers": None},
    )

    def start(self: Any, config: Any) -> None:
        causal.__init__(self, config)
        _leave_out(self.model, skips_of(config), layout)

    own_causal = type(
        f"Dropped{layout.causal}",
        (causal,),
        {"config_class": own_config, "__init__": start, "__module__": __name__},
    )
    AutoConfig.register(PREFIX + family, own_config, exist_ok=True)
    AutoModelForCausalLM.register(own_config, own_causal, exist_ok=True)
    return own_config, own_causal


DROPPED = {family: _register(family, layout) for family, layout in LAYOUTS.items()}


def drop_layers(model: Any, *, attention: Sequence[int] = (), mlp: Sequence[int] = ()) -> Any:
    """The model without some of its sub-layers; what is left is shared with it.

    Parameters
    ----------
    model
        A causal model of one of `LAYOUTS`, or one that this function returned.
    attention, mlp
        Layers to leave out, counted from 0 in the model as it was trained.

    Returns
    -------
    PreTrainedModel
        Of a class registered here. ``save_pretrained`` writes only what is left.

    Raises
    ------
    InputInvalid
        The family is not known, or a layer is out of range, named twice or dropped already.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> less = drop_layers(LlamaForCausalLM(LlamaConfig(**shape)), attention=[0])
    >>> less.config.dropped_layers, [n for n in less.state_dict() if "layers.0.self_attn" in n]
    ({'0': {'skip': ['attention']}}, [])
    """
    base, layout, depth = model.config, layout_of(model.config), model.config.num_hidden_layers
    gone = skips_of(base)
    for kind, wanted, before in (
        ("attention", attention, gone.attention),
        ("mlp", mlp, gone.mlp),
    ):
        for layer in wanted:
            if not 0 <= layer < depth:
                raise InputInvalid(
                    f"layer {layer} is out of range", mend=f"give layers from 0 to {depth - 1}"
                )
            if layer in before or list(wanted).count(layer) > 1:
                raise InputInvalid(
                    f"the {kind} of layer {layer} is dropped already", mend="name each layer once"
                )
    skips = Skips(tuple(sorted({*gone.attention, *attention})), tuple(sorted({*gone.mlp, *mlp})))
    family = base.model_type.removeprefix(PREFIX)
    config_class, causal_class = DROPPED[family]
    known = {**base.to_dict(), "dropped_layers": skips.vocabulary()}
    for name in ("model_type", "architectures", "transformers_version"):
        known.pop(name, None)
    config = config_class(**known)
    config._attn_implementation = base._attn_implementation
    with torch.device("meta"):
        made = causal_class(config)
    for name, child in model.model.named_children():
        if name != "layers":
            setattr(made.model, name, child)
    made.lm_head = model.lm_head
    for own, old in zip(made.model.layers, model.model.layers, strict=True):
        for name, child in old.named_children():
            setattr(own, name, child)
    _leave_out(made.model, skips, layout)
    if left := [name for name, tensor in made.state_dict().items() if tensor.is_meta]:
        raise InputInvalid(f"{left[0]} of the model is nowhere to be found", mend="load it whole")
    made.generation_config = model.generation_config
    return made.train(model.training)


def parameters_removed(model: Any, skips: Skips) -> int:
    """Parameters that dropping would take out of a model.

    Examples
    --------
    >>> from transformers import LlamaConfig, LlamaForCausalLM
    >>> shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=2, vocab_size=16,
    ...              num_attention_heads=2, num_key_value_heads=1)
    >>> parameters_removed(LlamaForCausalLM(LlamaConfig(**shape)), Skips(attention=(1,)))
    200
    """
    layout, layers = layout_of(model.config), model.model.layers
    parts = [
        getattr(layers[index], name)
        for chosen, names in (
            (skips.attention, ("self_attn", *layout.attention_norms)),
            (skips.mlp, ("mlp", *layout.mlp_norms)),
        )
        for index in chosen
        for name in names
    ]
    return sum(parameter.numel() for part in parts for parameter in part.parameters())
