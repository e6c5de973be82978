"""Pictures that a command is asked to write: checked before the work, written after it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

from zeitgeist.errors import ExtraMissing, InputInvalid, OutputExists


def check_picture(picture: Path | None, *, overwrite: bool | None = None) -> None:
    """Refuse what could not be written later.

    Parameters
    ----------
    picture
        Where to; None: nowhere.
    overwrite
        Whether an existing one may be replaced; None: the command has no such option.

    Raises
    ------
    InputInvalid
        The name says no format, is a directory, or lies in a file.
    OutputExists
        It is there already.
    ExtraMissing
        What draws is not installed.

    Examples
    --------
    >>> check_picture(Path("costs.gif"))
    Traceback (most recent call last):
    zeitgeist.errors.InputInvalid: the picture 'costs.gif' is no .png or .svg; name it so
    """
    if picture is None:
        return
    if picture.suffix not in (".png", ".svg"):
        raise InputInvalid(f"the picture '{picture}' is no .png or .svg", mend="name it so")
    if any(parent.is_file() for parent in picture.parents):
        raise InputInvalid(f"the picture '{picture}' lies in a file", mend="choose another name")
    if picture.is_dir():
        raise InputInvalid(f"the picture '{picture}' is a directory", mend="choose another name")
    if picture.exists() and not overwrite:
        mend = "choose another name" + ("" if overwrite is None else " or --overwrite")
        raise OutputExists(f"the picture '{picture}' is already there", mend=mend)
    if not all(map(find_spec, ("altair", "vl_convert"))):
        raise ExtraMissing.named("report", "drawing a picture")


def write_picture(figure: Any, picture: Path) -> None:
    """Write a figure in the format of its name, whole or not at all."""
    picture.parent.mkdir(parents=True, exist_ok=True)
    content = figure.png() if picture.suffix == ".png" else figure.svg().encode()
    partial = picture.with_name(f".{picture.name}.partial")
    partial.write_bytes(content)
    partial.replace(picture)
