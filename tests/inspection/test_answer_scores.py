"""Scores without training: closed forms, and p(True) in a model that knows two letters."""

import math
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.answer_scores import check_p_true, letter_ids, p_true, token_scores


@pytest.fixture(scope="module")
def opened(save_llama, tmp_path_factory):
    path = save_llama(tmp_path_factory.mktemp("scores") / "m", dtype=torch.float32, perturb=0.3)
    model = AutoModelForCausalLM.from_pretrained(path, local_files_only=True).eval()
    model.config.max_position_embeddings = 512
    return model, AutoTokenizer.from_pretrained(path, local_files_only=True)


def test_scores_are_of_the_whole_answer_and_of_its_exact_answer():
    logits, logprobs = torch.tensor([4.0, -1.0, 3.0, 7.0]), torch.tensor([-0.5, -3.0, -1.0, -0.1])
    found = token_scores(logits, logprobs, (1, 2))
    wanted = {"mean": (3.25, 1.0), "min": (-1.0, -1.0), "max": (7.0, 3.0), "last": (7.0, 3.0)}
    for how, (whole, exact) in wanted.items():
        assert found[f"logit_{how}"] == whole and found[f"logit_{how}_exact"] == exact
    assert found["logprob_min"] == -3.0 and found["logprob_last_exact"] == -1.0
    assert found["logprob_mean"] == pytest.approx(-1.15)
    assert (found["length"], found["span_length"]) == (4.0, 2.0)


def test_where_there_is_no_exact_answer_there_is_no_number():
    found = token_scores(torch.ones(2), -torch.ones(2), None)
    unknown = {name for name, value in found.items() if math.isnan(value)}
    assert unknown == {name for name in found if name.endswith("_exact")} | {"span_length"}
    empty = token_scores(torch.zeros(0), torch.zeros(0), None)
    assert empty.pop("length") == 0 and all(map(math.isnan, empty.values()))


class Letters:
    """Says A with odds e^lean, and when told to follow the word True, says its letter so."""

    def __init__(self, tokenizer, lean, follows):
        self.tokenizer, self.lean, self.follows = tokenizer, lean, follows
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(get_text_config=lambda: SimpleNamespace())

    def forward(self, input_ids, attention_mask, logits_to_keep=0):
        raise NotImplementedError

    def __call__(self, input_ids, attention_mask, **_):
        a, b = letter_ids(self.tokenizer, chat=False)
        logits = torch.zeros(*input_ids.shape, len(self.tokenizer))
        for row, (ids, seen) in enumerate(zip(input_ids, attention_mask, strict=True)):
            told = self.tokenizer.decode(ids[seen.bool()])
            true_first = "(A) True" in told
            logits[row, -1, a] = self.lean * (1 if true_first or not self.follows else -1)
            logits[row, -1, b] = 0.0
        return SimpleNamespace(logits=logits)


def test_a_model_that_only_likes_a_letter_gives_p_and_one_minus_p(opened):
    _, tokenizer = opened
    found = p_true(
        Letters(tokenizer, 1.5, follows=False),
        tokenizer,
        ["the cat?", "the big red dog?"],
        ["it sat", "no"],
        chat=False,
        batch_size=2,
    )
    p = 1 / (1 + math.exp(-1.5))
    assert torch.allclose(found["p_true"], torch.tensor(p))
    assert torch.allclose(found["p_true_swapped"], torch.tensor(1 - p))


def test_a_model_that_follows_the_word_does_not_mind_the_order(opened):
    _, tokenizer = opened
    found = p_true(
        Letters(tokenizer, 0.7, follows=True), tokenizer, ["a?"], ["b"], chat=False, batch_size=4
    )
    assert torch.allclose(found["p_true"], found["p_true_swapped"])


@pytest.mark.parametrize("chat", [True, False])
def test_p_true_is_the_softmax_of_two_logits_whatever_the_batch(opened, chat):
    model, tokenizer = opened
    questions, answers = ["the cat?", "the big red dog sat on?", "he?"], ["it", "the mat", "she"]
    found = p_true(model, tokenizer, questions, answers, chat=chat, batch_size=3)
    single = p_true(model, tokenizer, questions, answers, chat=chat, batch_size=1)
    first, second = letter_ids(tokenizer, chat=chat)
    for row, (question, answer) in enumerate(zip(questions, answers, strict=True)):
        text = (
            f"Question: {question}\nPossible answer: {answer}\nIs the possible answer:\n"
            "(A) True\n(B) False\nThe possible answer is:"
        )
        ids = tokenizer(f"<s>{text}</s>" if chat else text, return_tensors="pt")["input_ids"]
        with torch.no_grad():
            logits = model(ids).logits[0, -1]
        odds = float(logits[first] - logits[second])
        assert float(found["p_true"][row]) == pytest.approx(1 / (1 + math.exp(-odds)), abs=1e-4)
        for name in found:
            assert float(found[name][row]) == pytest.approx(float(single[name][row]), abs=1e-4)


def test_p_true_asks_for_letters_and_for_room(opened):
    model, tokenizer = opened
    with pytest.raises(InputInvalid, match=r"question 1 has .* asked about by p_true"):
        check_p_true(model, tokenizer, ["the cat?" * 200], chat=False, room=8)

    class Halves:
        def __call__(self, text, **_):
            return {"input_ids": [1, 2]}

    with pytest.raises(InputInvalid, match="no single tokens"):
        letter_ids(Halves(), chat=True)
