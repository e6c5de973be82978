"""After the last layer the lens is the model; before, what it would say without the rest."""

import pytest
import torch
import transformers

from zeitgeist.activations import patch
from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.logit_lens import logit_lens

SHAPE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 40,
    "head_dim": 8,
    "pad_token_id": 0,
}
FAMILIES = {
    "LlamaForCausalLM": SHAPE,
    "Gemma2ForCausalLM": {**SHAPE, "final_logit_softcapping": 2.0},
    "GPT2LMHeadModel": {"n_embd": 16, "n_layer": 3, "n_head": 4, "vocab_size": 40},
    "GPTNeoXForCausalLM": {k: v for k, v in SHAPE.items() if k != "num_key_value_heads"},
}
IDS = torch.randint(1, 40, (2, 7), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=FAMILIES)
def model(request):
    kind = getattr(transformers, request.param)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(kind.config_class(**FAMILIES[request.param])).eval()


def test_the_last_layer_is_the_model(model):
    with torch.no_grad():
        logits = model(IDS, use_cache=False).logits.log_softmax(-1)
    lens = logit_lens(model, IDS, k=5)
    best = logits.topk(5, -1)
    assert torch.equal(lens.tokens[-1], best.indices)
    assert torch.equal(lens.probabilities[-1], best.values.exp())
    assert lens.kl[-1].abs().max() == 0
    assert lens.rank[-1].max() == 0
    entropy = -(logits.exp() * logits).sum(-1)
    assert torch.allclose(lens.entropy[-1], entropy, atol=1e-6)
    assert lens.kl.min() > -1e-6


def test_a_layer_is_a_model_whose_later_blocks_add_nothing(model):
    """By an independent road: the rest of the blocks are run, and add zero."""
    lens = logit_lens(model, IDS, k=3)
    for stopped in range(3):
        silent = {
            (site, layer): 0.0 for layer in range(stopped, 3) for site in ("attn_out", "mlp_out")
        }
        with patch(model, silent), torch.no_grad():
            logits = model(IDS, use_cache=False).logits.softmax(-1)
        best = logits.topk(3, -1)
        assert torch.equal(lens.tokens[stopped], best.indices)
        assert torch.allclose(lens.probabilities[stopped], best.values, atol=1e-5)


def test_rows_do_not_see_each_other_and_k_is_at_most_the_vocabulary(model):
    whole, alone = logit_lens(model, IDS, k=99), logit_lens(model, IDS[1:], k=99)
    assert whole.tokens.shape == (4, 2, 7, 40)
    assert torch.allclose(whole.kl[:, 1:], alone.kl, atol=1e-5)
    assert torch.allclose(whole.probabilities.sum(-1), torch.ones(4, 2, 7), atol=1e-5)


@pytest.mark.parametrize(("ids", "k"), [(IDS[:, :0], 1), (IDS, 0)])
def test_nothing_to_read_is_refused(model, ids, k):
    with pytest.raises(InputInvalid, match="at least one"):
        logit_lens(model, ids, k=k)
    assert not any(module._forward_hooks for module in model.modules())
