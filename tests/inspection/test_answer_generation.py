"""What is generated beyond `test_answers`: ragged batches, hooks, and transformers' truncation."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zeitgeist.inspection.answer_generation import generate, read, sampler

PROMPTS = ([1, 70, 71, 72], [1, 90], [1, 80, 81, 82, 83, 84, 85, 86, 87])
FREE = {"site": "resid_post", "layers": None, "max_new_tokens": 6, "stop_at_newline": False}


@pytest.fixture(scope="module")
def opened(save_llama, tmp_path_factory):
    path = save_llama(tmp_path_factory.mktemp("generation") / "m", dtype=torch.float32, perturb=0.3)
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(path, local_files_only=True)


def scripted(script):
    """Emits each row's tokens one after the other."""
    table = torch.tensor(script)
    return lambda _logits, step: table[:, step]


def test_answers_of_a_batch_end_each_where_it_ends(opened):
    model, tokenizer = opened
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    script = [[70, 2, 71, 72], [70, 71, newline, 72], [newline, 70, 71, 72]]
    for stops, wanted in (
        (True, [[70], [70, 71], []]),
        (False, [[70], [70, 71, newline, 72], [newline, 70, 71, 72]]),
    ):
        asked = {**FREE, "max_new_tokens": 4, "stop_at_newline": stops}
        traced = generate(model, tokenizer, PROMPTS, **asked, choose=scripted(script))
        assert traced.ids == wanted
        for row, answer in enumerate(wanted):
            assert len(traced.logits[row]) == len(traced.logprobs[row]) == len(answer)
            if answer:
                again = read(
                    model, tokenizer, [PROMPTS[row]], [answer], site="resid_post", layers=None
                )
                states = traced.states[row, : len(answer) + 1]
                assert torch.allclose(states, again.states[0], atol=1e-4)
                assert torch.allclose(traced.logits[row], again.logits[0], atol=1e-4)


def test_the_residual_stream_grows_by_what_attention_and_the_mlp_write(opened):
    stream, attention, mlp = (
        generate(*opened, PROMPTS[:1], **{**FREE, "site": site}).states[0]
        for site in ("resid_post", "attn_out", "mlp_out")
    )
    assert torch.allclose(stream[:, 1], stream[:, 0] + attention[:, 1] + mlp[:, 1], atol=1e-4)


def test_nothing_stays_hooked_when_a_choice_fails(opened):
    with pytest.raises(ZeroDivisionError):
        generate(*opened, PROMPTS, **FREE, choose=lambda _logits, _step: 1 / 0)
    hooked = [m for m in opened[0].modules() if m._forward_hooks or m._forward_pre_hooks]
    assert not hooked


def test_truncated_samples_have_the_probabilities_of_transformers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits, count = torch.tensor([[1.0, 0.9, 0.5, 0.0, -0.3, -2.0]]), 40_000
    even = (np.arange(count) + 0.5)[:, None] / count
    for temperature, top_p, top_k in ((1.0, 0.6, 0), (0.7, 1.0, 2), (1.0, 0.55, 3), (1.3, 0.8, 4)):
        scores = TemperatureLogitsWarper(temperature)(None, logits)
        scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
        scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
        choose = sampler(even, temperature=temperature, top_p=top_p, top_k=top_k)
        drawn = choose(logits.expand(count, -1), 0)
        share = torch.bincount(drawn, minlength=6).double() / count
        assert torch.allclose(share, scores.softmax(-1)[0].double(), atol=1e-3)
