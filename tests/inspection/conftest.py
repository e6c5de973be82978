"""Tiny models of several families, a tokenizer of letters, texts, and small transformers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers

from zeitgeist.inspection.circuit_models import SmallConfig, SmallTransformer

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 128,
    "head_dim": 8,
    "pad_token_id": 0,
}
PLAIN = {k: v for k, v in SHAPE.items() if k not in ("head_dim", "num_key_value_heads")}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": SHAPE,
    "Gemma2": {**SHAPE, "attn_logit_softcapping": 5.0},
    "GPT2": {"n_embd": 16, "n_layer": 2, "n_head": 4, "vocab_size": 128, "n_positions": 64},
    "GPTNeoX": PLAIN,
}


class Letters:
    """A tokenizer whose tokens are letters."""

    bos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) % 128 for letter in text]}

    def decode(self, ids: list[int]) -> str:
        return "".join(map(chr, ids))


@pytest.fixture
def letters() -> Letters:
    return Letters()


@pytest.fixture
def build_model() -> Callable[..., Any]:
    """A model with random weights, large enough that attention is not even."""

    def build(family: str = "Llama", scale: float = 8.0, **changes: Any) -> Any:
        config = getattr(transformers, f"{family}Config")(**{**FAMILIES[family], **changes})
        name = "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM"
        with torch.random.fork_rng():
            torch.manual_seed(1)
            model = getattr(transformers, name)(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter *= scale
        return model

    return build


@pytest.fixture
def texts() -> dict[str, list[str]]:
    return {
        "prose": ["the cat sat on the mat and went to sleep " * 3, "a dog ran " * 9],
        "code": ["for i in range(10): print(i ** 2); x[i] = y" * 4],
    }


KINDS = {
    "attention only": SmallConfig(20, 12, 16, 2, 3, 5),
    "mlp": SmallConfig(20, 12, 11, 3, 2, 4, mlp_width=7, split_inputs=False),
    "rms, both ways": SmallConfig(20, 12, 8, 2, 1, 3, mlp_width=5, norm="rms", causal=False),
    "no norm": SmallConfig(20, 12, 8, 2, 2, 4, outputs=3, norm="none", activation="relu"),
}


def shaken(config, seed=0):
    """A model in float64 whose biases and norms do something."""
    model = SmallTransformer(config, seed=seed).double()
    drawn = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=drawn, dtype=torch.float64)
    return model


@pytest.fixture(params=KINDS, scope="module")
def small(request):
    return shaken(KINDS[request.param])


@pytest.fixture(scope="module")
def attention_only():
    return shaken(KINDS["attention only"])
