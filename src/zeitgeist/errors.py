"""What can go wrong for a person, each error with the value, where it came from and what to do."""


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
