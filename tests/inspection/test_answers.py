"""Answers: states taken while generating are those of one pass, batches do not matter, scores."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.answer_generation import (
    answer_ids,
    generate,
    padded,
    prompt_ids,
    read,
    run,
    sampler,
)
from zeitgeist.inspection.answer_records import places
from zeitgeist.inspection.answer_scores import letter_ids, p_true, token_scores
from zeitgeist.inspection.answers import (
    POSITIONS,
    AnswerOptions,
    SamplingOptions,
    generate_answers,
    locate_answers,
    sample_answers,
)
from zeitgeist.inspection.exact_answer import blind, by_pattern, decoded, published
from zeitgeist.inspection.questions import Question

QUESTIONS = (
    Question("the cat sat", ("a",), entity="cat"),
    Question("on?", ("zz",)),
    Question("they was red and big and he ran", ("the",), entity="cat"),
    Question("it is in", ("e",)),
    Question("dog", ("q",)),
)
OPTIONS = AnswerOptions(max_new_tokens=12, batch_size=2, p_true=False)
ANY = by_pattern(r"\S")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer):
    return AutoTokenizer.from_pretrained(tiny_tokenizer)


@pytest.fixture(scope="module")
def plain(tiny_tokenizer):
    made = AutoTokenizer.from_pretrained(tiny_tokenizer)
    made.chat_template = None
    return made


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        config = LlamaConfig(
            vocab_size=288, hidden_size=32, intermediate_size=64, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
            bos_token_id=1, eos_token_id=2, pad_token_id=3, initializer_range=0.3,
        )  # fmt: skip
        return LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("site", ["resid_post", "mlp_out", "attn_out"])
def test_states_of_generation_are_those_of_one_pass(model, tokenizer, site):
    prompts = [prompt_ids(tokenizer, q.question, chat=True) for q in QUESTIONS]
    assert len({len(prompt) for prompt in prompts}) > 2  # so that rows are padded
    made = generate(
        model, tokenizer, prompts, site=site, layers=[0, 2], max_new_tokens=9, stop_at_newline=False
    )
    assert any(made.ids)
    for row, (prompt, ids) in enumerate(zip(prompts, made.ids, strict=True)):
        if not ids:
            continue
        alone = read(model, tokenizer, [prompt], [ids], site=site, layers=[0, 2])
        got = made.states[row, : len(ids) + 1]
        torch.testing.assert_close(got, alone.states[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(made.logits[row], alone.logits[0], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(made.logprobs[row], alone.logprobs[0], atol=1e-4, rtol=1e-4)


def test_reading_a_padded_batch_is_reading_alone(model, tokenizer):
    prompts = [prompt_ids(tokenizer, q.question, chat=True) for q in QUESTIONS[:3]]
    answers = [answer_ids(tokenizer, text, chat=True) for text in ("the cat", "mat", "a dog ran")]
    made = read(model, tokenizer, prompts, answers, site="resid_post", layers=None)
    for row, (prompt, ids) in enumerate(zip(prompts, answers, strict=True)):
        alone = read(model, tokenizer, [prompt], [ids], site="resid_post", layers=None)
        got = made.states[row, : len(ids) + 1]
        torch.testing.assert_close(got, alone.states[0], atol=1e-4, rtol=1e-4)


def test_greedy_answers_are_those_of_transformers(model, tokenizer):
    found = generate_answers(model, tokenizer, QUESTIONS, OPTIONS, extractor=ANY, progress=False)
    for question, row in zip(QUESTIONS, found.rows, strict=True):
        ids = torch.tensor([prompt_ids(tokenizer, question.question, chat=True)])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12,
            pad_token_id=3,
        )  # fmt: skip
        wanted = out[0, ids.shape[1] :].tolist()
        assert list(row.token_ids) == (wanted[:-1] if wanted[-1] == 2 else wanted)


def test_the_product_of_probabilities_is_the_models_own_loss(model, tokenizer):
    question = replace(QUESTIONS[0], answer="the dog ran")
    found = generate_answers(model, tokenizer, [question], OPTIONS, progress=False)
    ids = found.rows[0].token_ids
    prompt = prompt_ids(tokenizer, question.question, chat=True)
    both = torch.tensor([[*prompt, *ids]])
    labels = both.clone()
    labels[:, : len(prompt)] = -100
    with torch.no_grad():
        loss = float(model(input_ids=both, labels=labels).loss)
    mean = float(found.scores["logprob_mean"][0])
    assert math.exp(mean * len(ids)) == pytest.approx(math.exp(-loss * len(ids)), rel=1e-4)


@pytest.mark.parametrize("batch_size", [1, 3, 5])
def test_batches_do_not_matter(model, tokenizer, batch_size):
    wanted = generate_answers(model, tokenizer, QUESTIONS, OPTIONS, extractor=ANY, progress=False)
    options = replace(OPTIONS, batch_size=batch_size)
    got = generate_answers(model, tokenizer, QUESTIONS, options, extractor=ANY, progress=False)
    assert got.rows == wanted.rows
    assert got.present.equal(wanted.present)
    torch.testing.assert_close(got.features, wanted.features, atol=1e-4, rtol=1e-4)
    for name, values in wanted.scores.items():
        torch.testing.assert_close(got.scores[name], values, atol=1e-4, rtol=1e-4, equal_nan=True)


def test_features_are_the_states_at_their_tokens(model, tokenizer):
    question = replace(QUESTIONS[0], answer="the big red dog ran on", exact="red dog")
    found = generate_answers(model, tokenizer, [question], OPTIONS, progress=False)
    row = found.rows[0]
    assert row.status == "ok" and row.exact == "red dog"
    assert "red dog" in decoded(tokenizer, row.token_ids[row.span[0] : row.span[1] + 1])
    prompt = prompt_ids(tokenizer, question.question, chat=True)
    out = model(torch.tensor([[*prompt, *row.token_ids]]), output_hidden_states=True)
    low, high = row.span
    end = len(row.token_ids)
    wanted = {
        "question_last": -1, "answer_first": 0, "answer_second": 1, "before_exact": low - 1,
        "exact_first": low, "exact_last": high, "after_exact": high + 1, "minus_1": end - 1,
        "minus_3": end - 3,
    }  # fmt: skip
    for name, token in wanted.items():
        for layer in (0, 1):  # the last hidden state of transformers is behind the final norm
            state = out.hidden_states[layer + 1][0, len(prompt) + token]
            torch.testing.assert_close(found.at(name)[0, layer], state, atol=1e-4, rtol=1e-4)


def test_missing_positions_are_zero_and_not_present(model, tokenizer):
    questions = [replace(QUESTIONS[0], answer="e"), replace(QUESTIONS[1], answer="the cat ran")]
    nothing = by_pattern("never")
    found = generate_answers(
        model, tokenizer, questions, OPTIONS, extractor=nothing, progress=False
    )
    assert [row.status for row in found.rows] == ["no exact answer"] * 2
    assert not found.usable.any()
    for at, name in enumerate(POSITIONS):
        there = found.present[:, at].tolist()
        if "exact" in name:
            assert there == [False, False]
        for row in (0, 1):
            assert bool(found.features[row, :, at].any()) is there[row]
    assert found.present[0].sum() < found.present[1].sum()
    assert math.isnan(float(found.scores["logprob_mean_exact"][0]))
    assert found.scores["length"][1] > found.scores["length"][0] == 1


def test_places_at_the_ends():
    names = ("before_exact", "exact_first", "exact_last", "after_exact", "answer_second", "minus_2")
    assert places(names, 1, (0, 0)) == [0, 1, 1, 1, None, None]
    assert places(names, 3, (0, 2)) == [0, 1, 3, 3, 2, 2]
    assert places(POSITIONS, 0, None) == [0, *[None] * 14]


def test_several_rules_locate_in_the_same_answers(model, tokenizer):
    questions = [replace(q, answer="it is the cat and a dog", aliases=("dog",)) for q in QUESTIONS]
    made = locate_answers(
        model, tokenizer, questions, OPTIONS,
        extractors={"blind": blind, "published": published}, progress=False,
    )  # fmt: skip
    assert [row.exact for row in made["blind"].rows] == ["cat"] * 5
    assert [row.exact for row in made["published"].rows] == ["dog"] * 5
    one, other = made["blind"], made["published"]
    at = POSITIONS.index("minus_1")
    assert one.features[:, :, at].equal(other.features[:, :, at])
    assert not one.at("exact_last").equal(other.at("exact_last"))
    assert one.scores["logit_mean"].equal(other.scores["logit_mean"])
    assert one.groups == ("cat", "on?", "cat", "it is in", "dog")
    assert one.correct.all() and one.fingerprint == other.fingerprint


def test_an_extraction_that_is_not_in_the_answer_is_told(model, tokenizer):
    question = replace(QUESTIONS[0], answer="the cat")
    found = generate_answers(
        model, tokenizer, [question], OPTIONS, extractor=lambda q, a: "horse", progress=False
    )
    assert found.rows[0].status == "not in the answer" and found.rows[0].span is None


def test_a_plain_prompt_ends_at_a_newline(model, plain):
    assert plain.decode(prompt_ids(plain, "Why?", chat=False)).endswith("Q: Why?\nA:")
    newline = plain("\n", add_special_tokens=False)["input_ids"][0]
    script = [plain(" ", add_special_tokens=False)["input_ids"][0], newline, newline]

    def scripted(logits, step):
        return torch.full((len(logits),), script[min(step, 2)])

    known = {"site": "resid_post", "layers": [0], "max_new_tokens": 5, "choose": scripted}
    prompts = [prompt_ids(plain, "Why?", chat=False)]
    assert generate(model, plain, prompts, stop_at_newline=True, **known).ids == [script[:1]]
    assert len(generate(model, plain, prompts, stop_at_newline=False, **known).ids[0]) == 5


def test_an_empty_answer_is_a_row(model, tokenizer, monkeypatch):
    from zeitgeist.inspection import answers

    monkeypatch.setattr(answers, "greedy", lambda logits, step: torch.full((len(logits),), 2))
    found = generate_answers(model, tokenizer, QUESTIONS, OPTIONS, progress=False)
    assert {row.status for row in found.rows} == {"empty"}
    assert found.present.sum(0).tolist() == [5, *[0] * 14]


def test_bfloat16_features_are_rounded(model, tokenizer):
    options = replace(OPTIONS, stored="bfloat16")
    got = generate_answers(model, tokenizer, QUESTIONS, options, extractor=ANY, progress=False)
    wanted = generate_answers(model, tokenizer, QUESTIONS, OPTIONS, extractor=ANY, progress=False)
    assert got.features.dtype == torch.bfloat16
    torch.testing.assert_close(got.features.float(), wanted.features, atol=1e-2, rtol=1e-2)


def test_samples_depend_on_their_numbers_alone(model, tokenizer):
    drawing = SamplingOptions(count=3)
    wanted = sample_answers(
        model, tokenizer, QUESTIONS, OPTIONS, drawing, extractor=ANY, progress=False
    )
    assert len(wanted.rows) == 15 and len({row.text for row in wanted.rows[:3]}) > 1
    for batch_size, some in ((5, QUESTIONS), (1, QUESTIONS[:2])):
        options = replace(OPTIONS, batch_size=batch_size)
        got = sample_answers(
            model, tokenizer, some, options, drawing, extractor=ANY, progress=False
        )
        assert got.rows == wanted.rows[: 3 * len(some)]
    other = sample_answers(
        model, tokenizer, QUESTIONS, OPTIONS, replace(drawing, seed=1), extractor=ANY,
        progress=False,
    )  # fmt: skip
    assert other.rows != wanted.rows
    first = replace(drawing, top_k=1)
    same = sample_answers(
        model, tokenizer, QUESTIONS, OPTIONS, first, extractor=ANY, progress=False
    )
    greedy = generate_answers(model, tokenizer, QUESTIONS, OPTIONS, extractor=ANY, progress=False)
    assert same.rows[::3] == same.rows[1::3] == greedy.rows


@pytest.mark.parametrize(
    ("top_p", "top_k", "kept"), [(1.0, 0, [0.5, 0.3, 0.2]), (0.6, 0, [0.625, 0.375, 0]),
                                 (1.0, 2, [0.625, 0.375, 0]), (0.5, 0, [1.0, 0.0, 0.0])],
)  # fmt: skip
def test_draws_have_the_probabilities_asked_for(top_p, top_k, kept):
    logits = torch.tensor([0.2, 0.5, 0.3]).log().expand(10_000, 3)
    uniforms = (np.arange(10_000)[:, None] + 0.5) / 10_000
    choose = sampler(uniforms, temperature=1.0, top_p=top_p, top_k=top_k)
    share = choose(logits, 0).bincount(minlength=3) / 10_000
    torch.testing.assert_close(share, torch.tensor([kept[2], kept[0], kept[1]]), atol=1e-3, rtol=0)


def test_a_temperature_near_nought_is_greedy():
    logits = torch.randn(50, 9, generator=torch.Generator().manual_seed(0))
    choose = sampler(np.random.default_rng(0).random((50, 1)), temperature=1e-4, top_p=1.0, top_k=0)
    assert choose(logits, 0).equal(logits.argmax(-1))


def test_token_scores_by_hand():
    logits, logprobs = torch.tensor([1.0, 5.0, 3.0]), torch.tensor([-3.0, -1.0, -2.0])
    found = token_scores(logits, logprobs, (1, 2))
    wanted = {
        "logit_mean": 3, "logit_min": 1, "logit_max": 5, "logit_last": 3,
        "logit_mean_exact": 4, "logit_min_exact": 3, "logit_max_exact": 5, "logit_last_exact": 3,
        "logprob_mean": -2, "logprob_min": -3, "logprob_max": -1, "logprob_last": -2,
        "logprob_mean_exact": -1.5, "logprob_min_exact": -2, "logprob_max_exact": -1,
        "logprob_last_exact": -2, "length": 3, "span_length": 2,
    }  # fmt: skip
    assert found == wanted


class Symmetric(torch.nn.Module):
    """Believes the letter of *True* with probability p, whichever that is."""

    def __init__(self, tokenizer, p):
        super().__init__()
        self.tokenizer, self.p, self.device = tokenizer, p, torch.device("cpu")

    def forward(self, input_ids, attention_mask, **_):
        logits = torch.zeros(len(input_ids), input_ids.shape[1], 288)
        a, b = letter_ids(self.tokenizer, chat=True)
        for row, ids in enumerate(input_ids):
            first = "(A) True" in self.tokenizer.decode(ids)
            logits[row, -1, a if first else b] = math.log(self.p / (1 - self.p))
        return type("Out", (), {"logits": logits})


@pytest.mark.parametrize("p", [0.9, 0.2])
def test_swapping_the_options_swaps_the_letters_and_not_the_belief(tokenizer, p):
    found = p_true(
        Symmetric(tokenizer, p), tokenizer, ["q", "longer?"], ["a", "b"], chat=True, batch_size=2
    )
    for values in found.values():
        torch.testing.assert_close(values, torch.full((2,), p))


def test_a_model_that_always_says_a_believes_p_and_one_minus_p(tokenizer):
    class Always(Symmetric):
        def forward(self, input_ids, attention_mask, **_):
            logits = torch.zeros(len(input_ids), input_ids.shape[1], 288)
            logits[:, -1, letter_ids(tokenizer, chat=True)[0]] = 2.0
            return type("Out", (), {"logits": logits})

    found = p_true(Always(tokenizer, 0.5), tokenizer, ["q"], ["a"], chat=True, batch_size=1)
    torch.testing.assert_close(found["p_true"] + found["p_true_swapped"], torch.ones(1))
    assert found["p_true"] > 0.8


def test_p_true_is_the_models_own_and_batches_do_not_matter(model, tokenizer):
    options = replace(OPTIONS, p_true=True)
    one = generate_answers(model, tokenizer, QUESTIONS, options, extractor=ANY, progress=False)
    options = replace(options, batch_size=5)
    other = generate_answers(model, tokenizer, QUESTIONS, options, extractor=ANY, progress=False)
    for name in ("p_true", "p_true_swapped"):
        torch.testing.assert_close(one.scores[name], other.scores[name], atol=1e-5, rtol=1e-4)
        assert ((one.scores[name] > 0) & (one.scores[name] < 1)).all()


def test_padding_is_on_the_left_and_hidden(model):
    rows = [[5, 6, 7], [8]]
    ids, mask = padded(rows, 3, model.device)
    assert ids.tolist() == [[5, 6, 7], [3, 3, 8]] and mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    with torch.no_grad():
        both = run(model, ids, mask, last_only=True).logits[:, -1]
        alone = model(torch.tensor([[8]])).logits[0, -1]
    torch.testing.assert_close(both[1], alone, atol=1e-4, rtol=1e-4)


def test_bad_requests_are_told_before_anything_runs(model, tokenizer, plain, monkeypatch):
    monkeypatch.setattr(model, "forward", None)

    def ask(questions=QUESTIONS, *, by=tokenizer, **changes):
        return generate_answers(model, by, questions, replace(OPTIONS, **changes), progress=False)

    with pytest.raises(InputInvalid, match="there are no questions"):
        ask(())
    with pytest.raises(InputInvalid, match=r"question 2 has \d+ tokens .* context of 512"):
        ask([QUESTIONS[0], Question("x" * 600, ("a",))])
    with pytest.raises(InputInvalid, match=r"asked about by p_true, may have 440"):
        ask(max_new_tokens=440, p_true=True)
    with pytest.raises(InputInvalid, match="no layer 3; they are 0 to 2"):
        ask(layers=(3,))
    with pytest.raises(InputInvalid, match="no chat template"):
        ask(by=plain, chat=True)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"site": "resid"}, "the site is 'resid'"),
        ({"positions": ("exact",)}, "no position 'exact'"),
        ({"positions": ()}, "the positions are"),
        ({"positions": ("minus_1", "minus_1")}, "each once"),
        ({"layers": ()}, "the layers are"),
        ({"max_new_tokens": 0}, "max_new_tokens is 0"),
        ({"batch_size": 0}, "batch_size is 0"),
    ],
)
def test_bad_options_are_told(changes, told):
    with pytest.raises(InputInvalid, match=told):
        AnswerOptions(**changes)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"count": 0}, "count is 0"),
        ({"temperature": 0.0}, "temperature is 0.0"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_k": -1}, "top_k is -1"),
    ],
)
def test_bad_sampling_is_told(changes, told):
    with pytest.raises(InputInvalid, match=told):
        SamplingOptions(**changes)


def test_letters_that_are_no_tokens_are_told():
    def letters(text, **_):
        return {"input_ids": [1, 2]}

    with pytest.raises(InputInvalid, match="no single tokens"):
        letter_ids(letters, chat=True)


def test_a_model_in_training_answers_without_dropout_and_stays_in_training(tokenizer):
    config = GPT2Config(
        n_embd=16, n_layer=2, n_head=2, vocab_size=288, n_positions=256, eos_token_id=2,
        pad_token_id=3, bos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = GPT2LMHeadModel(config)
    asked = [Question("what sat?", ("cat",), answer="the cat sat")]
    assert model.training
    one, other = (generate_answers(model, tokenizer, asked, progress=False) for _ in range(2))
    assert model.training
    assert torch.equal(one.features, other.features)
    assert all(torch.equal(one.scores[name], other.scores[name]) for name in one.scores)


def test_a_long_answer_takes_room_from_its_own_question_alone(model, tokenizer):
    room = model.config.max_position_embeddings
    long = "the cat sat on the mat and " * (room // 16)
    short = Question("what sat on the mat?", ("cat",), answer="the cat")
    options = AnswerOptions(p_true=False, max_new_tokens=10**6)
    made = generate_answers(model, tokenizer, [short], options, progress=False)
    assert len(made.rows) == 1
    with pytest.raises(InputInvalid, match="question 2 has"):
        generate_answers(
            model,
            tokenizer,
            [short, Question("what?", ("cat",), answer=long * 4)],
            options,
            progress=False,
        )
