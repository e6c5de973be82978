"""What can go wrong for a person, each error with the value, where it came from and what to do."""

import difflib
from collections.abc import Iterable


class ZeitgeistError(Exception):
    """Anything the user can mend.

    Parameters
    ----------
    what
        What was wrong, quoting the offending value.
    origin
        Where that value came from: a file, a line of a recipe, an option.
    mend
        What to do about it, as an instruction.

    Examples
    --------
    >>> print(ZeitgeistError("density is 1.5", origin="recipe.yaml:7", mend="give at most 1"))
    recipe.yaml:7: density is 1.5; give at most 1
    """

    def __init__(self, what: str, *, origin: object = "", mend: str = "") -> None:
        super().__init__(what)
        self.what, self.origin, self.mend = what, str(origin), mend

    def __str__(self) -> str:
        text = f"{self.origin}: {self.what}" if self.origin else self.what
        return f"{text}; {self.mend}" if self.mend else text


class InputInvalid(ZeitgeistError, ValueError):
    """A value handed to a door or an option cannot be used."""


class ReferenceUnresolved(ZeitgeistError):
    """A model reference names nothing that can be reached from here."""


class CheckpointInvalid(ZeitgeistError):
    """Weights on disk are damaged, unsafe, or do not fit together."""


class RecipeInvalid(ZeitgeistError):
    """A recipe cannot be read or asks for something that does not exist."""


class EvidenceInvalid(ZeitgeistError):
    """Evidence on disk is damaged, was edited, or belongs to another study."""


class OutputExists(ZeitgeistError):
    """The output is already there and overwriting was not asked for."""


class ExtraMissing(ZeitgeistError, ImportError):
    """An optional dependency is not installed.

    Examples
    --------
    >>> print(ExtraMissing.named("gguf", "reading a GGUF file"))
    reading a GGUF file needs packages that are not installed; pip install 'zeitgeist[gguf]'
    """

    @classmethod
    def named(cls, extra: str, purpose: str) -> "ExtraMissing":
        """The error for a missing ``extra`` that ``purpose`` needs."""
        return cls(
            f"{purpose} needs packages that are not installed",
            mend=f"pip install 'zeitgeist[{extra}]'",
        )


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """What to do about a word nobody knows.

    Examples
    --------
    >>> did_you_mean("densty", ["weight", "density"])
    "did you mean 'density'?"
    >>> did_you_mean("x", ["weight", "density"])
    'known are density, weight'
    """
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1)
    if close:
        return f"did you mean {close[0]!r}?"
    return f"known are {', '.join(known)}" if known else "there is nothing to choose from"
