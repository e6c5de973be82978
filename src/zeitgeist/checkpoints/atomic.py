"""A directory that appears complete or not at all.

Work goes to a hidden sibling, ``.NAME.partial``, which is flushed to disk and renamed to ``NAME``
when everything in it is finished. A reader of ``NAME`` therefore never sees half a model: not
after an error, not after Ctrl-C, not after ``kill -9``, not after a power cut.
"""

import ctypes
import errno
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from zeitgeist.errors import InputInvalid, OutputExists

if sys.platform == "win32":  # pragma: no cover
    raise ImportError("zeitgeist.checkpoints needs a POSIX system (Linux or macOS)")

import fcntl

REPLACEABLE = ("config.json", "adapter_config.json", "*.safetensors")


def check_output(
    out: Path,
    *,
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
    replaces: Sequence[str] = REPLACEABLE,
) -> None:
    """Refuse an output that would destroy something, before any work is done.

    Parameters
    ----------
    out
        Directory that is going to be made.
    overwrite
        Whether an existing ``out`` may be replaced.
    inputs
        Files and directories that are read; ``out`` may neither be, contain, nor lie in one.
    replaces
        Glob patterns, one of which a directory must contain to be replaced: ``overwrite`` is for
        earlier outputs, not for whatever a mistyped path names. An empty directory always passes.

    Raises
    ------
    OutputExists
        ``out`` is there and ``overwrite`` is false.
    InputInvalid
        ``out`` overlaps an input, is a file, or is a directory that no earlier run can have made.

    Examples
    --------
    >>> check_output(Path("models/merged"), inputs=[Path("models/base")])
    >>> check_output(Path("models/base/merged"), inputs=[Path("models/base")])
    Traceback (most recent call last):
    zeitgeist.errors.InputInvalid: the output 'models/base/merged' lies in the input ...
    """
    target = out.resolve()
    for path in (target, _partial(target)):
        for source in _real_places(inputs):
            if path == source:
                relation = "is the input"
            elif path.is_relative_to(source):
                relation = "lies in the input"
            elif source.is_relative_to(path):
                relation = "contains the input"
            else:
                continue
            raise InputInvalid(
                f"the output '{out}' {relation} '{source}'", mend="choose another output directory"
            )
    if not os.path.lexists(target):
        return
    if not target.is_dir():
        raise InputInvalid(f"the output '{out}' is a file", mend="name a directory")
    if not overwrite:
        raise OutputExists(
            f"the output '{out}' is already there",
            mend="choose another name or ask for it to be replaced with --overwrite",
        )
    precious = [Path.cwd().resolve(), Path.home().resolve()]
    if any(place.is_relative_to(target) for place in precious) or target.is_mount():
        raise InputInvalid(
            f"the output '{out}' is or contains the working directory, the home directory or a "
            "mount point and will not be replaced",
            mend="choose another output directory",
        )
    if any(target.iterdir()) and not any(any(target.glob(p)) for p in replaces):
        raise InputInvalid(
            f"the output '{out}' holds no {' or '.join(replaces)}, so it is no earlier output and "
            "will not be replaced",
            mend="choose another output directory or empty this one yourself",
        )


@contextmanager
def new_directory(
    out: Path,
    *,
    overwrite: bool = False,
    inputs: Sequence[Path] = (),
    keep_partial: bool = False,
    replaces: Sequence[str] = REPLACEABLE,
) -> Iterator[Path]:
    """Make a directory that appears under its name only when it is complete.

    Parameters
    ----------
    out
        Directory to make. Missing parents are created.
    overwrite
        Replace an existing ``out``, in one step at the end (exchanged on Linux, so that there is
        no moment without one).
    inputs
        What is read meanwhile; see `check_output`.
    keep_partial
        Hand over what an earlier, interrupted attempt left, and leave it again on failure.
    replaces
        What marks a directory as an earlier output; see `check_output`.

    Yields
    ------
    Path
        An empty (or, with ``keep_partial``, possibly filled) sibling directory to write into.

    Raises
    ------
    OutputExists
        ``out`` is there, or another process is making it at this moment.
    InputInvalid
        See `check_output`.

    Examples
    --------
    >>> import tempfile
    >>> out = Path(tempfile.mkdtemp()) / "model"
    >>> with new_directory(out) as partial:
    ...     _ = (partial / "config.json").write_text("{}")
    ...     out.exists()
    False
    >>> [path.name for path in out.iterdir()]
    ['config.json']
    """
    check_output(out, overwrite=overwrite, inputs=inputs, replaces=replaces)
    target = out.resolve()
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = _partial(target)
    with _only_writer(target, out):
        if not keep_partial:
            remove(partial)
        partial.mkdir(exist_ok=True)
        try:
            yield partial
            # Another tool may have made `out` meanwhile; the refusal must still hold now.
            check_output(out, overwrite=overwrite, inputs=inputs, replaces=replaces)
            for path in [*partial.rglob("*"), partial]:
                sync(path)
            _replace(partial, target)
            sync(target.parent)
        except BaseException:
            if not keep_partial:
                remove(partial)
            raise
        remove(partial)


def sync(path: Path) -> None:
    """Wait until a file's contents, or a directory's entries, are on the disk."""
    if path.is_symlink():
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file, a link, or a directory with all that is in it; nothing if it is not there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _partial(target: Path) -> Path:
    return target.with_name(f".{target.name}.partial")


def _real_places(inputs: Sequence[Path]) -> list[Path]:
    """The inputs, and whatever their entries link to (the hub cache is made of links)."""
    places: dict[Path, None] = {}
    for path in inputs:
        places[path.resolve()] = None
        if path.is_dir():
            places |= {entry.resolve(): None for entry in path.iterdir() if entry.is_symlink()}
    return list(places)


@contextmanager
def _only_writer(target: Path, out: Path) -> Iterator[None]:
    """Hold a lock that the system releases when the process ends, however it ends."""
    path = target.with_name(f".{target.name}.lock")
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            raise OutputExists(
                f"another process is writing '{out}' at this moment",
                mend="wait for it or choose another output directory",
            ) from None
        except OSError as error:
            # Some network file systems have no locks; the lock only guards against a mistake.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EBADF):
                os.close(descriptor)
                raise
        # The previous holder may have unlinked the file between our open and our lock; then this
        # lock is on a file nobody else can find, and we must take the one at the path instead.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), path.stat()):
                break
        os.close(descriptor)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(descriptor)


def _replace(partial: Path, target: Path) -> None:
    """Put ``partial`` in the place of ``target``; what was there ends up at ``partial``."""
    if not target.exists():
        partial.rename(target)
        return
    if _exchange(partial, target):
        return
    aside = target.with_name(f".{target.name}.replaced")
    remove(aside)
    target.rename(aside)
    try:
        partial.rename(target)
    except BaseException:
        aside.rename(target)
        raise
    aside.rename(partial)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two names in one step where the system can (Linux ``renameat2``, macOS ``renamex_np``).

    The standard library has no call for this.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    swap = 2  # RENAME_EXCHANGE and RENAME_SWAP alike
    if hasattr(libc, "renameat2"):
        here = -100  # AT_FDCWD
        return bool(libc.renameat2(here, names[0], here, names[1], swap) == 0)
    if hasattr(libc, "renamex_np"):
        return bool(libc.renamex_np(*names, swap) == 0)
    return False
