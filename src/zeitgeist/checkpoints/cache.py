"""Directories that are made once per machine and then shared by every process.

The place is ``$ZEITGEIST_CACHE`` or the user's cache directory. What is in it can be deleted at any
time: it is made again when it is needed.
"""

import fcntl
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from platformdirs import user_cache_path

from zeitgeist.checkpoints.atomic import new_directory


def cache_directory() -> Path:
    """Where downloaded and converted models are kept.

    Returns
    -------
    Path
        ``$ZEITGEIST_CACHE`` if it is set, else the user's cache directory (on Linux
        ``~/.cache/zeitgeist``); it need not exist.

    Examples
    --------
    >>> cache_directory().is_absolute()
    True
    """
    chosen = os.environ.get("ZEITGEIST_CACHE", "")
    return Path(chosen).expanduser().absolute() if chosen else user_cache_path("zeitgeist")


def made_once(out: Path, make: Callable[[Path], None], *, progress: bool = True) -> Path:
    """``out``, made by ``make`` unless it is already there.

    Parameters
    ----------
    out
        Directory in the cache. It appears complete or not at all.
    make
        Fills the empty directory it is given. Anything it raises leaves no ``out``.
    progress
        Say on a terminal's stderr that another process is being waited for.

    Returns
    -------
    Path
        ``out``.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "squares"
    >>> made_once(out, lambda new: new.joinpath("4").touch()) == out
    True
    >>> made_once(out, lambda new: 1 / 0) == out
    True
    """
    if out.is_dir():
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    with _turn(out.parent / f".{out.name}.turn", progress=progress):
        if not out.is_dir():
            with new_directory(out) as new:
                make(new)
    return out


@contextmanager
def _turn(path: Path, *, progress: bool) -> Iterator[None]:
    # new_directory refuses a second writer; here the second one wants the first one's result.
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if progress and sys.stderr.isatty():
                sys.stderr.write(f"waiting for the process that is making {path.name[1:-5]}\n")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
