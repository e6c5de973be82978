"""Pictures that a command is asked to write: checked before the work, written after it."""

from pathlib import Path
from typing import Any

from zeitgeist.errors import InputInvalid


def check_picture(picture: Path | None) -> None:
    """Refuse a name that says no format.

    Examples
    --------
    >>> check_picture(Path("costs.gif"))
    Traceback (most recent call last):
    zeitgeist.errors.InputInvalid: the picture 'costs.gif' is no .png or .svg; name it so
    """
    if picture is not None and picture.suffix not in (".png", ".svg"):
        raise InputInvalid(f"the picture '{picture}' is no .png or .svg", mend="name it so")


def write_picture(figure: Any, picture: Path) -> None:
    """Write a figure in the format of its name."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    picture.write_bytes(figure.png() if picture.suffix == ".png" else figure.svg().encode())
