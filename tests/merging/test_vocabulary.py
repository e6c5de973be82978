"""Vocabularies that differ: whose row each token takes, held against mergekit's own rows."""

import types
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from zeitgeist.errors import InputInvalid
from zeitgeist.merging.vocabulary import (
    Alignment,
    ModelToken,
    TokenizerRule,
    TokenRule,
    ZeroRow,
    align,
    fill_rows,
    new_vocabulary,
    vocabulary_axis,
)

BASE = {"<s>": 0, "a": 1, "b": 2}
ONE = {"<s>": 0, "a": 1, "<im>": 2, "c": 3}
TWO = {"a": 0, "c": 1, "<s>": 2, "d": 3}
ALL = {"base": BASE, "one": ONE, "two": TWO}


def aligned(
    rule: TokenizerRule, vocabularies: Mapping[str, Mapping[str, int]] = ALL, base: str = "base"
) -> Alignment:
    vocabulary = new_vocabulary(vocabularies, rule, base=base)
    heights = {model: len(own) for model, own in vocabularies.items()}
    return align(vocabulary, vocabularies, rule, base=base, heights=heights)


def matrices(columns: int = 3) -> dict[str, Tensor]:
    """Row r of model m is 100 m + r, so that a row says where it is from."""
    return {
        model: (100.0 * m + torch.arange(len(own)))[:, None].expand(-1, columns).contiguous()
        for m, (model, own) in enumerate(ALL.items())
    }


def rebuilt(found: Alignment, model: str, all_matrices: Mapping[str, Tensor]) -> Tensor:
    """What the merge sees of ``model``: its rows in the new order."""
    fills = fill_rows(found, model, all_matrices)
    own = all_matrices[model]
    rows = [fills[i] if row < 0 else own[row] for i, row in enumerate(found.rows[model])]
    return torch.stack([row.double() for row in rows])


def test_a_union_keeps_the_rows_of_the_base_and_holds_every_token() -> None:
    vocabulary = new_vocabulary(ALL, TokenizerRule("union"), base="base")
    assert {token: vocabulary[token] for token in BASE} == BASE
    assert set(vocabulary) == {*BASE, *ONE, *TWO}
    assert sorted(vocabulary.values()) == list(range(len(vocabulary)))


def test_base_or_a_model_gives_its_vocabulary_as_it_is() -> None:
    assert new_vocabulary(ALL, TokenizerRule("base"), base="base") == BASE
    assert new_vocabulary(ALL, TokenizerRule("two"), base="base") == TWO


def test_a_gap_is_filled_from_the_base_else_the_only_owner_else_the_mean() -> None:
    found = aligned(TokenizerRule("union"))
    row = found.vocabulary
    one = rebuilt(found, "one", matrices())[:, 0]
    assert one[row["b"]] == 2  # only the base has it, and it is the base
    assert one[row["d"]] == 203  # only two has it
    base = rebuilt(found, "base", matrices())[:, 0]
    assert base[row["<im>"]] == 102  # only one has it
    assert base[row["c"]] == (103 + 201) / 2  # one and two have it, the base has not
    assert base[row["<s>"]] == 0 and one[row["<s>"]] == 100  # whoever has it keeps its own


def test_models_with_one_vocabulary_are_left_alone() -> None:
    same = {"base": BASE, "x": dict(BASE)}
    found = aligned(TokenizerRule("union"), same)
    for model in same:
        assert found.unchanged(model, len(BASE))
        assert not found.fills[model]
    assert not found.unchanged("x", len(BASE) + 1)


def test_a_row_that_a_rule_names_is_taken_and_forced_on_the_owners_too() -> None:
    rules = {
        "<im>": TokenRule("one"),
        "a": TokenRule("two", force=True),
        "d": TokenRule(ZeroRow()),
        "<new>": TokenRule(ModelToken("one", token="c")),
        "<newer>": TokenRule(ModelToken("two", token_id=3)),
        "<empty>": TokenRule(),
    }
    found = aligned(TokenizerRule("union", rules))
    row, all_matrices = found.vocabulary, matrices()
    for model in ALL:
        values = rebuilt(found, model, all_matrices)[:, 0]
        assert values[row["a"]] == 200
        assert values[row["<new>"]] == 103
        assert values[row["<newer>"]] == 203
        assert values[row["<im>"]] == 102
        assert values[row["<empty>"]] == 0
        assert values[row["d"]] == (203 if model == "two" else 0)


def test_padding_rows_are_the_mean_of_the_others() -> None:
    found = aligned(TokenizerRule("union", pad_to_multiple_of=8))
    assert found.size == 8
    count = len(found.vocabulary)
    values = rebuilt(found, "two", matrices())
    expected = values[:count].mean(0)
    assert count < 8
    for i in range(count, 8):
        torch.testing.assert_close(values[i], expected)


def test_a_token_beyond_the_matrix_has_no_row() -> None:
    vocabularies = {"base": BASE, "x": {"<s>": 0, "a": 1, "b": 2}}
    found = align(
        BASE, vocabularies, TokenizerRule("base"), base="base", heights={"base": 3, "x": 2}
    )
    assert found.rows["x"].tolist() == [0, 1, -1]
    assert found.fills["x"] == {2: (("base", 2),)}


def test_a_row_from_one_place_is_not_copied() -> None:
    all_matrices = matrices()
    found = aligned(TokenizerRule("union"))
    filled = fill_rows(found, "one", all_matrices)[found.vocabulary["b"]]
    assert filled.data_ptr() == all_matrices["base"][2].data_ptr()


def test_biases_are_aligned_like_matrices() -> None:
    found = aligned(TokenizerRule("union", pad_to_multiple_of=8))
    flat = {model: matrix[:, 0].contiguous() for model, matrix in matrices().items()}
    for model in ALL:
        torch.testing.assert_close(
            rebuilt(found, model, flat), rebuilt(found, model, matrices())[:, 0]
        )


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("one", "token 'b' of 'one'"),
        ("elsewhere", "'elsewhere'"),
        (ModelToken("one", token="zzz"), "token 'zzz'"),
        (ModelToken("one", token_id=4), "row 4"),
        (ModelToken("one", token_id=-1), "row -1"),
    ],
)
def test_a_rule_for_a_row_that_does_not_exist_is_refused(source: Any, part: str) -> None:
    with pytest.raises(InputInvalid, match=part):
        aligned(TokenizerRule("union", {"b": TokenRule(source)}))


def test_a_tokenizer_of_no_model_is_refused() -> None:
    with pytest.raises(InputInvalid, match="elsewhere"):
        new_vocabulary(ALL, TokenizerRule("elsewhere"), base="base")


@pytest.mark.parametrize(
    ("name", "shape", "axis"),
    [
        ("lm_head.weight", (7, 4), 0),
        ("lm_head.bias", (7,), 0),
        ("model.norm.weight", (4,), None),
        ("encoder.layer.3.output.dense.weight", (7, 4), None),
        ("model.embed_positions.weight", (9, 4), None),
        ("scale", (), None),
    ],
)
def test_what_counts_tokens_stands_outside_the_blocks(
    name: str, shape: tuple[int, ...], axis: int | None
) -> None:
    assert vocabulary_axis(name, shape, 7) == axis


TOKENS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=7, unique=True)


@given(
    tokens=st.tuples(TOKENS, TOKENS, TOKENS),
    source=st.sampled_from(["union", "base", "one"]),
    multiple=st.sampled_from([None, 1, 4, 10]),
    rules=st.dictionaries(
        st.sampled_from("abcxy"),
        st.tuples(st.sampled_from(["zero", "token", "model"]), st.booleans()),
        max_size=3,
    ),
    with_base=st.booleans(),
)
def test_every_row_is_the_one_mergekit_computes(
    tokens: tuple[list[str], ...],
    source: str,
    multiple: int | None,
    rules: dict[str, tuple[str, bool]],
    with_base: bool,
) -> None:
    embed = pytest.importorskip("mergekit.tokenizer.embed", reason="mergekit is a test extra")
    config = pytest.importorskip("mergekit.tokenizer.config", reason="mergekit is a test extra")
    common = pytest.importorskip("mergekit.common", reason="mergekit is a test extra")
    vocabularies = {
        model: {token: i for i, token in enumerate(own)}
        for model, own in zip(("base", "one", "two"), tokens, strict=True)
    }
    # A model that has the token, so that the rule can be followed.
    owner = {
        token: next((m for m, v in vocabularies.items() if token in v), None) for token in rules
    }
    ours: dict[str, TokenRule] = {}
    theirs = {}
    for token, (kind, force) in rules.items():
        donor = owner[token]
        if kind == "zero" or (kind == "model" and donor is None):
            ours[token] = TokenRule(ZeroRow(), force)
            their_source: Any = config.ZeroEmbedding(kind="zero")
        elif kind == "model" and donor is not None:
            ours[token] = TokenRule(donor, force)
            their_source = common.ModelReference.parse(donor)
        else:
            ours[token] = TokenRule(ModelToken("two", token_id=0), force)
            their_source = config.ModelTokenEmbedding(
                kind="model_token", model=common.ModelReference.parse("two"), token_id=0
            )
        theirs[token] = config.TokenEmbeddingConfig(source=their_source, force=force)
    rule = TokenizerRule(source, ours, multiple)
    base = "base" if with_base else "not merged"
    vocabulary = new_vocabulary(vocabularies, rule, base="base")
    heights = {model: len(own) for model, own in vocabularies.items()}
    found = align(vocabulary, vocabularies, rule, base=base, heights=heights)

    generator = torch.Generator().manual_seed(0)
    stored = {
        model: torch.randn(len(own), 3, generator=generator, dtype=torch.float64)
        for model, own in vocabularies.items()
    }
    reference = {model: common.ModelReference.parse(model) for model in vocabularies}
    info = types.SimpleNamespace(
        tokenizer=types.SimpleNamespace(get_vocab=lambda: vocabulary),
        permutations={
            reference[model]: {row: own.get(token, -1) for token, row in vocabulary.items()}
            for model, own in vocabularies.items()
        },
        original_vocabs={reference[model]: own for model, own in vocabularies.items()},
    )
    task = embed.PermutedVocabulary.model_construct(
        tokens=theirs,
        pad_to_multiple_of=multiple,
        base_model=reference["base"] if with_base else None,
        vocabulary_axis=0,
    )
    expected = task.execute(info, {reference[model]: stored[model] for model in stored})
    for model in vocabularies:
        torch.testing.assert_close(
            rebuilt(found, model, stored), expected[reference[model]], rtol=1e-12, atol=1e-12
        )


def test_row_maps_are_int64() -> None:
    assert all(rows.dtype == np.int64 for rows in aligned(TokenizerRule()).rows.values())
