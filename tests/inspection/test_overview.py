"""The page says what its parts say."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from zeitgeist.errors import InputInvalid
from zeitgeist.inspection.heads import scan
from zeitgeist.inspection.heads_options import HeadsOptions
from zeitgeist.inspection.logit_lens import logit_lens
from zeitgeist.inspection.overview import overview


class Letters:
    """A tokenizer of one token per letter."""

    def __call__(self, text, add_special_tokens=True):
        return {"input_ids": [ord(letter) % 128 for letter in text]}

    def decode(self, ids):
        return "".join(map(chr, ids))


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return LlamaForCausalLM(
            LlamaConfig(
                hidden_size=16,
                intermediate_size=24,
                num_hidden_layers=3,
                num_attention_heads=4,
                num_key_value_heads=2,
                vocab_size=128,
            )
        )


def test_rows_are_those_of_the_scan_and_the_lens(model):
    text = ["some words that go on " * 9, "and others that do so too " * 9]
    seen = overview(model, Letters(), "abcde", text, length=40, windows=3, progress=False)
    assert model.training  # it was, and is again
    model.eval()
    heads = scan(
        model, Letters(), {"text": text}, HeadsOptions(length=40, windows=3), progress=False
    )
    lens = logit_lens(model, torch.tensor([Letters()("abcde")["input_ids"]]))
    assert [row.layer for row in seen.layers] == [0, 1, 2]
    for row in seen.layers:
        own = [each.sink_mass for each in heads.heads if each.layer == row.layer]
        assert row.sink_mass == pytest.approx(sum(own) / 4)
        assert row.kl == pytest.approx(float(lens.kl[row.layer + 1, 0, -1]), abs=1e-6)
        assert row.says == chr(int(lens.tokens[row.layer + 1, 0, -1, 0]))
    assert seen.layers[-1].kl == 0
    told = seen.told()
    assert told["sentence"] == "abcde"
    assert told["model"]["parameters"] == sum(x.numel() for x in model.parameters())
    assert (told["model"]["heads"], told["model"]["kv_heads"]) == (4, 2)


def test_an_empty_sentence_and_a_short_text_are_refused(model):
    with pytest.raises(InputInvalid, match="has no tokens"):
        overview(model, Letters(), "", progress=False)
    with pytest.raises(InputInvalid, match="a window has 128"):
        overview(model, Letters(), "abc", ["short"], progress=False)
