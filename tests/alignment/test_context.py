"""Models with learned positions: what is longer is told, and corrections are shortened to fit."""

import pytest
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from zeitgeist.alignment.answering import answer
from zeitgeist.alignment.prefix_gap import gap
from zeitgeist.alignment.self_generated import SelfGeneratedOptions, build_mixed
from zeitgeist.errors import InputInvalid


def test_what_is_longer_than_the_model_reads_is_told(tiny_tokenizer, texts):
    tokenizer = AutoTokenizer.from_pretrained(tiny_tokenizer, local_files_only=True)
    config = GPT2Config(vocab_size=288, n_positions=4, n_embd=8, n_layer=1, n_head=2,
                        bos_token_id=1, eos_token_id=2)  # fmt: skip
    model = GPT2LMHeadModel(config)
    for work in (
        lambda: answer(model, tokenizer, ["the cat"], passes=1, max_new_tokens=8),
        lambda: gap(model, tokenizer, texts),
        lambda: build_mixed(model, tokenizer, texts, options=SelfGeneratedOptions()),
    ):
        with pytest.raises(InputInvalid, match="the model reads 4"):
            work()
    with pytest.raises(InputInvalid):
        answer(model, tokenizer, ["the cat"], max_new_tokens=3)
