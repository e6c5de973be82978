"""stub"""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class ZeroRow:
    """The embedding of a token is zero."""


@dataclass(frozen=True)
class ModelToken:
    """The embedding of a token is that of another token in one model.

    Parameters
    ----------
    model
        The model it is taken from.
    token
        The other token as text; or
    token_id
        its number.
    """

    model: str
    token: str | None = None
    token_id: int | None = None


@dataclass(frozen=True)
class TokenRule:
    """Where the embedding of one token comes from.

    Parameters
    ----------
    source
        A model, :class:`ZeroRow`, :class:`ModelToken`, or none for the common rule.
    force
        Whether also the models that have the token take this embedding.
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
