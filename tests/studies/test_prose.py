"""Prose in three parts that share nothing."""

from itertools import pairwise

import pytest
import torch

from zeitgeist.errors import InputInvalid
from zeitgeist.studies.prose import SHARES, documents, windows


def letters(text, add_special_tokens):
    return {"input_ids": list(map(ord, text))}


@pytest.mark.parametrize("seed", range(3))
def test_no_paragraph_is_in_two_parts(seed):
    parts = {p: {q for d in docs for q in d.split("\n\n")} for p, docs in documents(seed).items()}
    names = list(SHARES)
    for i, one in enumerate(names):
        for other in names[:i]:
            assert not parts[one] & parts[other]


def test_parts_have_about_their_shares():
    for seed in range(5):
        sizes = {part: sum(map(len, docs)) for part, docs in documents(seed).items()}
        for part, share in SHARES.items():
            assert sizes[part] / sum(sizes.values()) == pytest.approx(share, abs=0.1)


def test_the_seed_decides():
    def drawn(seed):
        return windows(letters, part="train", seed=seed, length=32, count=4)

    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))


def test_windows_do_not_overlap():
    text = "\n\n".join(documents(0)["calibration"])
    drawn = windows(letters, part="calibration", seed=0, length=64, count=5)
    starts = [text.index("".join(map(chr, row.tolist()))) for row in drawn]
    assert all(b - a >= 64 for a, b in pairwise(starts))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"part": "test"}, "no part 'test'"),
        ({"length": 10**7}, "has 0 windows of 10000000 tokens, not 2"),
        ({"count": 0}, "0 windows"),
    ],
)
def test_what_is_not_there_is_told(given, told):
    with pytest.raises(InputInvalid, match=told):
        windows(letters, **{"part": "train", "seed": 0, "length": 8, "count": 2, **given})
