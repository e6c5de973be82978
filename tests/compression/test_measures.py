"""Loss against transformers' own, agreement with oneself, bytes against closed forms."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zeitgeist.compression.hybrid_models import linearize_model
from zeitgeist.compression.measures import (
    cache_bytes,
    decode_seconds,
    filled_cache,
    perplexity,
    prefill_seconds,
    token_nll,
    top1_agreement,
)

IDS = torch.randint(0, 32, (3, 11), generator=torch.Generator().manual_seed(0))


def drawn(seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2}
        heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 32}
        return LlamaForCausalLM(LlamaConfig(**shape, **heads)).eval()


@pytest.fixture(scope="module")
def model():
    return drawn(0)


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_loss_is_what_the_model_itself_says(model, batch_size):
    found = token_nll(model, IDS, batch_size=batch_size)
    with torch.no_grad():
        own = [float(model(row[None], labels=row[None]).loss) for row in IDS]
    assert found.shape == (3, 10)
    assert found.mean(1).tolist() == pytest.approx(own, rel=1e-5)
    assert perplexity(model, IDS) == pytest.approx(float(found.double().mean().exp()))


def test_a_model_agrees_with_itself_and_less_with_another(model):
    assert top1_agreement(model, model, IDS) == 1.0
    other = drawn(1)
    assert top1_agreement(other, model, IDS) == top1_agreement(model, other, IDS) < 1.0


@pytest.mark.parametrize("context", [5, 40])
def test_a_filled_cache_is_as_long_as_asked(model, context):
    cache = filled_cache(model, context)
    assert cache.get_seq_length() == context
    assert cache_bytes(cache) == 2 * 2 * context * 2 * 4 * 4  # layers, k and v, heads, dim, bytes


def test_a_state_is_as_large_at_any_length(model):
    linear = linearize_model(model, window=4)
    sizes = {cache_bytes(filled_cache(linear, context)) for context in (8, 64, 4096)}
    assert len(sizes) == 1
    assert filled_cache(linear, 4096).get_seq_length() == 4096


def test_times_are_of_something_that_ran(model):
    for each in (model, linearize_model(model, window=4)):
        assert decode_seconds(each, 32, steps=2) > 0
        assert prefill_seconds(each, 16, repeats=1) > 0
