"""The ``config.json`` of a merged model: that of the base, where the merge did not change it.

A configuration may hold that of a language model as a part (``text_config``), beside a vision
tower's; what concerns layers and vocabulary is looked for and changed there.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from zeitgeist.merging.inputs import Model
from zeitgeist.merging.tokenizers import apply_changes

_TEXT_PARTS = ("text_config", "llm_config", "language_config")
_MEANINGS = (
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "hidden_act",
    "num_attention_heads",
    "rms_norm_eps",
    "sliding_window",
)
"""Settings under which equal shapes mean different things."""


def text_part(config: dict[str, Any]) -> dict[str, Any]:
    """The language model's part of a configuration.

    Examples
    --------
    >>> text_part({"text_config": {"vocab_size": 9}, "vision_config": {}})
    {'vocab_size': 9}
    """
    if isinstance(config.get("num_hidden_layers"), int):
        return config
    for key in _TEXT_PARTS:
        if isinstance(config.get(key), dict):
            return config[key]  # type: ignore[no-any-return]
    return config


def vocabulary_height(model: Model) -> int:
    """Rows of a model's embedding, by its configuration."""
    return int(text_part(model.config).get("vocab_size", model.config.get("vocab_size", -1)))


def differing_settings(origin: Model, models: Iterable[Model]) -> list[str]:
    """Where a model computes with its weights otherwise than the output will, a sentence each."""
    ours = text_part(origin.config)
    return [
        f"{key} is {theirs.get(key)!r} in {model.reference!r} and {ours.get(key)!r} in the output"
        for model in models
        for theirs in [text_part(model.config)]
        for key in _MEANINGS
        if ours.get(key) != theirs.get(key)
    ]


def layer_settings(kept: Sequence[tuple[Model, int]]) -> dict[str, Any]:
    """What a configuration lists layer by layer (``layer_types``), for the layers of the output.

    Parameters
    ----------
    kept
        For every layer of the output, the model it comes from and its number there.
    """
    told = [text_part(model.config) for model, _ in kept]
    depths = [config.get("num_hidden_layers") for config in told]
    return {
        key: [config[key][i] for config, (_, i) in zip(told, kept, strict=True)]
        for key in told[0]
        if "layer" in key
        and all(
            isinstance(config.get(key), list) and len(config[key]) == depth
            for config, depth in zip(told, depths, strict=True)
        )
    }


def output_config(
    config: Mapping[str, Any],
    text_changes: Mapping[str, Any],
    *,
    dtype: torch.dtype | None,
    untied: bool,
    vocabulary: Mapping[str, Any],
) -> dict[str, Any]:
    """The output's configuration.

    Parameters
    ----------
    config
        That of the base.
    text_changes
        What changes in the language model's part.
    dtype
        Of most of the output's tensors.
    untied
        Whether a head that was tied is stored.
    vocabulary
        What another tokenizer changes.

    Examples
    --------
    >>> output_config({"dtype": "float32", "num_hidden_layers": 2}, {"num_hidden_layers": 3},
    ...               dtype=torch.bfloat16, untied=False, vocabulary={})
    {'dtype': 'bfloat16', 'num_hidden_layers': 3}
    """
    made = {key: {**part} if isinstance(part, dict) else part for key, part in config.items()}
    text = text_part(made)
    text.update(text_changes)
    if dtype is not None:
        name = str(dtype).removeprefix("torch.")
        made["torch_dtype" if "torch_dtype" in made else "dtype"] = name
        for part in made.values():
            for key in ("dtype", "torch_dtype"):
                if isinstance(part, dict) and part.get(key) is not None:
                    part[key] = name
    if untied:
        text["tie_word_embeddings"] = made["tie_word_embeddings"] = False
    return apply_changes(made, vocabulary)
