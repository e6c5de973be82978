"""States taken while an answer is made are those of a teacher-forced pass, and so are its scores.

The reference is written out here: one answer at a time, no padding, no cache, no batch.
"""

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.answer_generation import (
    check_fits,
    generate,
    padded,
    prompt_ids,
    read,
    sampler,
)

PROMPTS = ([1, 70, 71, 72], [1, 90], [1, 80, 81, 82, 83, 84, 85, 86, 87])
FREE = {"site": "resid_post", "layers": None, "max_new_tokens": 6, "stop_at_newline": False}


@pytest.fixture(scope="module")
def opened(save_llama, tmp_path_factory):
    path = save_llama(tmp_path_factory.mktemp("generation") / "m", dtype=torch.float32, perturb=0.3)
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
    return model, AutoTokenizer.from_pretrained(path, local_files_only=True)


@pytest.fixture(scope="module")
def llama(opened):
    return opened[0]


@torch.no_grad()
def forced(model, prompt, answer):
    """Hidden states by block behind its prompt's last token, and the emitted tokens' logits."""
    ids = torch.tensor([[*prompt, *answer]])
    kept = {}
    hooks = [
        block.register_forward_hook(
            lambda _m, _i, out, at=at: kept.update(
                {at: out if isinstance(out, torch.Tensor) else out[0]}
            )
        )
        for at, block in enumerate(model.model.layers)
    ]
    logits = model(ids, use_cache=False).logits[0].float()
    for hook in hooks:
        hook.remove()
    states = torch.stack([kept[at][0] for at in sorted(kept)], 1)[len(prompt) - 1 :]
    before = logits[len(prompt) - 1 : -1]
    at = torch.arange(len(answer))
    raw = before[at, torch.tensor(answer)]
    return states, raw, before.log_softmax(-1)[at, torch.tensor(answer)]


def test_states_of_a_generation_are_those_of_one_forced_pass(opened):
    model, tokenizer = opened
    traced = generate(model, tokenizer, PROMPTS, **FREE)
    assert max(map(len, traced.ids)) > 1
    for row, prompt in enumerate(PROMPTS):
        answer = traced.ids[row]
        states, raw, sure = forced(model, prompt, answer)
        assert torch.allclose(traced.states[row, : len(answer) + 1], states, atol=1e-4)
        assert torch.allclose(traced.logits[row], raw, atol=1e-4)
        assert torch.allclose(traced.logprobs[row], sure, atol=1e-4)


def test_answers_read_in_one_pass_are_as_if_generated(opened):
    model, tokenizer = opened
    made = generate(model, tokenizer, PROMPTS, **FREE)
    again = read(model, tokenizer, PROMPTS, made.ids, site="resid_post", layers=None)
    for row, answer in enumerate(made.ids):
        s = len(answer) + 1
        assert torch.allclose(made.states[row, :s], again.states[row, :s], atol=1e-4)
        assert torch.allclose(made.logprobs[row], again.logprobs[row], atol=1e-4)


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_what_else_is_in_a_batch_does_not_matter(opened, site):
    model, tokenizer = opened
    asked = {**FREE, "site": site}
    together = generate(model, tokenizer, PROMPTS, **asked)
    for row, prompt in enumerate(PROMPTS):
        alone = generate(model, tokenizer, [prompt], **asked)
        assert alone.ids[0] == together.ids[row]
        s = len(alone.ids[0]) + 1
        assert torch.allclose(alone.states[0, :s], together.states[row, :s], atol=1e-4)


def test_the_residual_stream_grows_by_what_attention_and_the_mlp_write(opened):
    model, tokenizer = opened
    stream, attention, mlp = (
        generate(model, tokenizer, PROMPTS[:1], **{**FREE, "site": site}).states[0]
        for site in ("resid_post", "attn_out", "mlp_out")
    )
    assert torch.allclose(stream[:, 1], stream[:, 0] + attention[:, 1] + mlp[:, 1], atol=1e-4)


def test_the_product_over_an_answer_is_the_models_own_loss(opened):
    model, tokenizer = opened
    prompt = PROMPTS[0]
    traced = generate(model, tokenizer, [prompt], **FREE)
    ids = torch.tensor([[*prompt, *traced.ids[0]]])
    labels = ids.clone()
    labels[:, : len(prompt)] = -100
    with torch.no_grad():
        loss = model(ids, labels=labels, use_cache=False).loss
    assert float(traced.logprobs[0].sum()) == pytest.approx(-len(traced.ids[0]) * float(loss), 1e-4)


def test_greedy_answers_are_those_of_transformers(opened):
    model, tokenizer = opened
    traced = generate(model, tokenizer, PROMPTS, **FREE)
    for row, prompt in enumerate(PROMPTS):
        ids = torch.tensor([prompt])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=6
        )
        answer = [token for token in made[0, len(prompt) :].tolist() if token not in (2, 3)]
        assert traced.ids[row] == answer


def scripted(script):
    """Emits each row's tokens one after the other."""
    table = torch.tensor(script)
    return lambda _logits, step: table[:, step]


def test_an_answer_ends_before_its_end_token_and_a_newline_where_asked(opened):
    model, tokenizer = opened
    newline = tokenizer("\n", add_special_tokens=False)["input_ids"][0]
    script = [[70, 2, 71, 72], [70, 71, newline, 72], [newline, 70, 71, 72]]
    for stops, wanted in (
        (True, [[70], [70, 71], []]),
        (False, [[70], [70, 71, newline, 72], [newline, 70, 71, 72]]),
    ):
        traced = generate(
            model,
            tokenizer,
            PROMPTS,
            **{**FREE, "max_new_tokens": 4, "stop_at_newline": stops},
            choose=scripted(script),
        )
        assert traced.ids == wanted
        for row, answer in enumerate(wanted):
            assert len(traced.logits[row]) == len(traced.logprobs[row]) == len(answer)
            if answer:
                states = forced(model, PROMPTS[row], answer)[0]
                assert torch.allclose(traced.states[row, : len(answer) + 1], states, atol=1e-4)


def test_layers_are_kept_in_the_order_asked_for(opened):
    model, tokenizer = opened
    every = generate(model, tokenizer, PROMPTS[:2], **FREE).states
    second = generate(model, tokenizer, PROMPTS[:2], **{**FREE, "layers": [1]}).states
    assert every.shape[2] == 2 and second.shape[2] == 1
    assert torch.equal(every[:, :, 1:], second)


def test_nothing_stays_hooked(opened):
    model, tokenizer = opened
    generate(model, tokenizer, PROMPTS, **FREE)
    with pytest.raises(ZeroDivisionError):
        generate(model, tokenizer, PROMPTS, **FREE, choose=lambda _logits, _step: 1 / 0)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_rows_are_padded_on_the_left():
    ids, mask = padded([[5, 6], [7]], 3, torch.device("cpu"))
    assert ids.tolist() == [[5, 6], [3, 7]] and mask.tolist() == [[1, 1], [0, 1]]


def test_a_prompt_is_in_the_chat_template_or_framed(opened):
    _, tokenizer = opened
    assert tokenizer.decode(prompt_ids(tokenizer, "the cat?", chat=True)) == "<s>the cat?</s>"
    assert tokenizer.decode(prompt_ids(tokenizer, "the cat?", chat=False)) == "Q: the cat?\nA:"
    plain = prompt_ids(tokenizer, "the cat?", chat=False, asked=False)
    assert tokenizer.decode(plain) == "the cat?"


def test_too_long_a_question_is_refused_with_its_number(llama):
    check_fits(llama, [[1] * 60], 4, "its answer")
    with pytest.raises(InputInvalid, match=r"question 2 has 61 tokens.*context of 64"):
        check_fits(llama, [[1], [1] * 61], 4, "its answer")


def drawn(logits, count=40_000, **options):
    """Shares of tokens that are drawn with evenly spread numbers."""
    even = (np.arange(count) + 0.5)[:, None] / count
    choose = sampler(even, **{"temperature": 1.0, "top_p": 1.0, "top_k": 0, **options})
    tokens = choose(torch.tensor(logits).expand(count, -1), 0)
    return torch.bincount(tokens, minlength=len(logits)).double() / count


def test_samples_have_the_models_probabilities():
    logits = [0.3, -1.0, 2.0, 0.3, -4.0]
    plain = torch.tensor(logits).double()
    for temperature in (0.5, 1.0, 2.0):
        wanted = (plain / temperature).softmax(-1)
        assert torch.allclose(drawn(logits, temperature=temperature), wanted, atol=1e-3)


def test_truncated_samples_have_the_probabilities_of_transformers():
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = [1.0, 0.9, 0.5, 0.0, -0.3, -2.0]
    for temperature, top_p, top_k in ((1.0, 0.6, 0), (0.7, 1.0, 2), (1.0, 0.55, 3), (1.3, 0.8, 4)):
        scores = torch.tensor([logits])
        scores = TemperatureLogitsWarper(temperature)(None, scores)
        scores = TopKLogitsWarper(top_k)(None, scores) if top_k else scores
        scores = TopPLogitsWarper(top_p)(None, scores) if top_p < 1 else scores
        wanted = scores.softmax(-1)[0].double()
        found = drawn(logits, temperature=temperature, top_p=top_p, top_k=top_k)
        assert torch.allclose(found, wanted, atol=1e-3), (temperature, top_p, top_k)
