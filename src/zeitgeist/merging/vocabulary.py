"""Merging models whose vocabularies differ: which token gets which row, and where it comes from.

The rules are mergekit's (Goddard et al., *Arcee's MergeKit*, arXiv:2403.13257; version 0.1.5).
The output has the tokens of all models, of the base, or of one model. Each model's embedding (and
output head) is brought into that order before the merge; a token that a model lacks takes there

    the base's row, if the base has the token; else the only owner's row;
    else the mean of the owners' rows; else, if nobody has it, zero.

A rule for a single token can name another row, and ``force`` imposes it on the owners too. Rows
added to reach a round number are the mean of the others (Hewitt 2021, *Initializing new word
embeddings for pretrained language models*), so that a padded token is never the likeliest.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Int64, Shaped
from torch import Tensor

from zeitgeist.errors import InputInvalid


@dataclass(frozen=True)
class ZeroRow:
    """The row of a token is zero."""


@dataclass(frozen=True)
class ModelToken:
    """The row of a token is that of another token of one model.

    Parameters
    ----------
    model
        The model it is taken from.
    token
        The other token as text; or
    token_id
        its row.
    """

    model: str
    token: str | None = None
    token_id: int | None = None


@dataclass(frozen=True)
class TokenRule:
    """Where the row of one token comes from.

    Parameters
    ----------
    source
        A model, :class:`ZeroRow`, :class:`ModelToken`, or none for the common rule.
    force
        Whether the models that have the token take this row too.
    """

    source: str | ZeroRow | ModelToken | None = None
    force: bool = False


@dataclass(frozen=True)
class TokenizerRule:
    """Which vocabulary the merged model has.

    Parameters
    ----------
    source
        ``"union"`` (mergekit's default), ``"base"``, or a model.
    tokens
        Rules for single tokens; tokens that no vocabulary holds are added.
    pad_to_multiple_of
        Rows are added until their number is a multiple of this; none: no padding.
    """

    source: str = "union"
    tokens: Mapping[str, TokenRule] = field(default_factory=dict)
    pad_to_multiple_of: int | None = None


Vocabulary = Mapping[str, int]
Fill = tuple[tuple[str, int], ...]
"""The rows (model, row) whose mean is taken; none of them means zero."""


@dataclass(frozen=True)
class Alignment:
    """How each model's rows are brought into one order.

    Parameters
    ----------
    vocabulary
        Token to row of the output.
    size
        Rows of the output, padding included.
    rows
        For each model, the row of its own that each output row is; -1 where it has none.
    fills
        For each model, what stands in its rows of -1; padding rows are not among them.
    """

    vocabulary: Vocabulary
    size: int
    rows: Mapping[str, Int64[np.ndarray, " size"]]
    fills: Mapping[str, Mapping[int, Fill]]

    def unchanged(self, model: str, rows: int) -> bool:
        """Whether a matrix of ``rows`` rows of ``model`` can be used as it is."""
        return rows == self.size and np.array_equal(self.rows[model], np.arange(self.size))


def new_vocabulary(
    vocabularies: Mapping[str, Vocabulary], rule: TokenizerRule, *, base: str
) -> dict[str, int]:
    """The output's vocabulary.

    Parameters
    ----------
    vocabularies
        Token to row, of each model.
    rule
        Which tokens the output has.
    base
        The model whose tokens keep their rows in a union.

    Returns
    -------
    dict
        Token to row. A union begins with the base's rows; what others have besides follows, in
        the order of the models and of their rows.

    Raises
    ------
    InputInvalid
        The rule names a model without a vocabulary.

    Examples
    --------
    >>> vocabularies = {"b": {"<s>": 0, "a": 1}, "x": {"c": 0, "a": 1}}
    >>> new_vocabulary(vocabularies, TokenizerRule("union"), base="b")
    {'<s>': 0, 'a': 1, 'c': 2}
    >>> new_vocabulary(vocabularies, TokenizerRule("x", {"<new>": TokenRule()}), base="b")
    {'c': 0, 'a': 1, '<new>': 2}
    """
    source = base if rule.source in ("union", "base") else rule.source
    if source not in vocabularies:
        raise InputInvalid(
            f"the tokenizer is to come from {source!r}, which is not among the models",
            mend=f"use one of {', '.join(vocabularies)}",
        )
    # Tokenizers list their tokens in an order that differs from run to run.
    vocabulary = dict(sorted(vocabularies[source].items(), key=lambda item: item[1]))
    following = max(vocabulary.values(), default=-1) + 1
    for token in _additions(vocabularies, rule):
        if token not in vocabulary:
            vocabulary[token] = following
            following += 1
    return vocabulary


def _additions(vocabularies: Mapping[str, Vocabulary], rule: TokenizerRule) -> Iterator[str]:
    if rule.source == "union":
        for vocabulary in vocabularies.values():
            yield from sorted(vocabulary, key=lambda token: (vocabulary[token], token))
    yield from rule.tokens


def align(
    vocabulary: Vocabulary,
    vocabularies: Mapping[str, Vocabulary],
    rule: TokenizerRule,
    *,
    base: str,
    heights: Mapping[str, int],
) -> Alignment:
    """The row of every token in every model, and what fills the gaps.

    Parameters
    ----------
    vocabulary
        The output's, from :func:`new_vocabulary`.
    vocabularies
        Token to row, of each model that is merged.
    rule
        Rules for single tokens, and padding.
    base
        The model that fills gaps first.
    heights
        Rows of each model's embedding; a token numbered beyond has no row.

    Returns
    -------
    Alignment
        Of all models in ``vocabularies``.

    Raises
    ------
    InputInvalid
        A rule asks for a row that does not exist.

    Examples
    --------
    >>> vocabularies = {"b": {"a": 0, "b": 1}, "x": {"c": 0, "a": 1}}
    >>> vocabulary = {"a": 0, "b": 1, "c": 2}
    >>> found = align(vocabulary, vocabularies, TokenizerRule(pad_to_multiple_of=4), base="b",
    ...     heights={"b": 2, "x": 2})
    >>> found.size, found.rows["x"].tolist(), found.fills["x"]
    (4, [1, -1, 0, -1], {1: (('b', 1),)})
    """
    count = max(vocabulary.values(), default=-1) + 1
    multiple = rule.pad_to_multiple_of or 1
    size = -(-count // multiple) * multiple
    rows = {
        model: _rows(vocabulary, own, heights[model], size) for model, own in vocabularies.items()
    }
    owners = np.stack(list(rows.values())) >= 0
    fills: dict[str, dict[int, Fill]] = {model: {} for model in rows}
    for token, row in vocabulary.items():
        given = rule.tokens.get(token, TokenRule())
        if owners[:, row].all() and not given.force:
            continue
        if given.source is None:
            fill = _common_fill(row, rows, base)
        else:
            fill = _named_fill(token, given.source, rows, row, vocabularies, heights)
        for model in rows:
            if given.force or rows[model][row] < 0:
                fills[model][row] = fill
    forced = [vocabulary[token] for token, given in rule.tokens.items() if given.force]
    for own in rows.values():
        own[forced] = -1
    return Alignment(vocabulary, size, rows, fills)


def _rows(
    vocabulary: Vocabulary, own: Vocabulary, height: int, size: int
) -> Int64[np.ndarray, " size"]:
    found = np.full(size, -1, dtype=np.int64)
    for token, row in vocabulary.items():
        here = own.get(token, -1)
        if here < height:
            found[row] = here
    return found


def _common_fill(row: int, rows: Mapping[str, Int64[np.ndarray, " size"]], base: str) -> Fill:
    owners = tuple((model, int(own[row])) for model, own in rows.items() if own[row] >= 0)
    from_base = tuple(owner for owner in owners if owner[0] == base)
    return from_base or owners


def _named_fill(
    token: str,
    source: str | ZeroRow | ModelToken,
    rows: Mapping[str, Int64[np.ndarray, " size"]],
    row: int,
    vocabularies: Mapping[str, Vocabulary],
    heights: Mapping[str, int],
) -> Fill:
    if isinstance(source, ZeroRow):
        return ()
    model = source.model if isinstance(source, ModelToken) else source
    if model not in rows:
        raise InputInvalid(
            f"the row of {token!r} is to come from {model!r}, which is not merged here",
            mend=f"use one of {', '.join(rows)}",
        )
    wanted = token
    if not isinstance(source, ModelToken):
        found = int(rows[model][row])
    elif source.token_id is not None:
        found = source.token_id
    else:
        wanted = str(source.token)
        found = vocabularies[model].get(wanted, -1)
    if not 0 <= found < heights[model]:
        what = (
            f"row {found}"
            if isinstance(source, ModelToken) and source.token is None
            else (f"token {wanted!r}")
        )
        raise InputInvalid(
            f"the row of {token!r} is to come from {what} of {model!r}, which it does not have",
            mend="name a token of that model, or {kind: zero}",
        )
    return ((model, found),)


def fill_rows(
    alignment: Alignment, model: str, matrices: Mapping[str, Shaped[Tensor, "_ *columns"]]
) -> dict[int, Shaped[Tensor, "*columns"]]:
    """What stands in the rows that ``model`` does not have.

    A row taken from one place is a view of it and costs no memory; means are in float64.

    Parameters
    ----------
    alignment
        From :func:`align`.
    model
        The model whose matrix is brought into order.
    matrices
        The same tensor of every model, vocabulary first.

    Returns
    -------
    dict
        Output row to its values, for all rows of -1.

    Examples
    --------
    >>> vocabularies = {"b": {"a": 0, "b": 1}, "x": {"c": 0, "a": 1}}
    >>> found = align({"a": 0, "b": 1, "c": 2}, vocabularies, TokenizerRule(), base="b",
    ...     heights={"b": 2, "x": 2})
    >>> matrices = {"b": torch.tensor([[1.0], [2.0]]), "x": torch.tensor([[3.0], [4.0]])}
    >>> fill_rows(found, "x", matrices)
    {1: tensor([2.])}
    """
    own = matrices[model]
    zero = own.new_zeros(own.shape[1:])
    found: dict[int, Tensor] = {}
    for row, fill in alignment.fills[model].items():
        if len(fill) == 1:
            found[row] = matrices[fill[0][0]][fill[0][1]]
        elif fill:
            found[row] = torch.stack([matrices[m][r].double() for m, r in fill]).mean(0)
        else:
            found[row] = zero
    padding = np.flatnonzero(alignment.rows[model] < 0)
    padding = padding[~np.isin(padding, list(found))]
    if len(padding):
        mean = _mean_row(own, alignment.rows[model], list(found.values()))
        found.update({int(row): mean for row in padding})
    return found


def _mean_row(
    own: Shaped[Tensor, "_ *columns"], rows: Int64[np.ndarray, " size"], others: Sequence[Tensor]
) -> Shaped[Tensor, "*columns"]:
    """The mean of the rows used so far; a few thousand rows are in memory at a time."""
    total = torch.zeros(own.shape[1:], dtype=torch.float64)
    used = torch.from_numpy(rows[rows >= 0])
    for part in used.split(4096):
        total += own[part].double().sum(0)
    for other in others:
        total += other.double()
    return total / max(1, len(used) + len(others))


def vocabulary_axis(name: str, shape: Sequence[int], height: int) -> int | None:
    """Which axis of a tensor counts tokens, if one does.

    Embeddings, output heads and their biases stand outside the numbered blocks of a model and are
    as long as its vocabulary.

    Parameters
    ----------
    name
        The tensor's name.
    shape
        Its shape.
    height
        ``vocab_size`` of the model it belongs to.

    Examples
    --------
    >>> vocabulary_axis("model.embed_tokens.weight", (288, 32), 288)
    0
    >>> vocabulary_axis("final_logits_bias", (1, 288), 288)
    1
    >>> vocabulary_axis("model.layers.0.mlp.up_proj.weight", (288, 32), 288) is None
    True
    """
    if any(part.isdecimal() for part in name.split(".")) or height not in shape:
        return None
    if shape[0] == height:
        return 0
    return 1 if shape[0] == 1 and shape[1] == height else None
