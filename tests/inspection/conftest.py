"""Small transformers of every kind, with weights that are all of some size."""

import pytest
import torch

from zeitgeist.inspection.circuit_models import SmallConfig, SmallTransformer

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
