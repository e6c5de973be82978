"""Which code and which machine a number comes from.

The code is one hash over everything that can change the number. From the functions of a study,
every module of this package that they import is followed, also those imported inside functions.
What is hashed is the syntax tree without docstrings, so that comments, wording and layout do not
make evidence stale. Left out is what cannot change a number: this package, the door to studies,
errors, charts (modules called ``..._charts``), and the declaration of the study itself (``STUDY``,
``CLAIMS``), which is recorded, and hashed by claim, beside the results.
"""

import ast
import importlib.util
import inspect
import marshal
import os
import platform
from collections.abc import Callable, Iterator
from contextlib import suppress
from hashlib import sha256
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

LIBRARIES = ("numpy", "peft", "scikit-learn", "scipy", "torch", "transformers", "zeitgeist")
_PACKAGE = "zeitgeist"
_WITHOUT = (
    "zeitgeist.catalogue",
    "zeitgeist.errors",
    "zeitgeist.evidence",
    "zeitgeist.studies.reproduction",
)
_DECLARATIONS = frozenset({"STUDY", "CLAIMS"})


def versions() -> dict[str, str]:
    """Versions of what decides the numbers; what is not installed is left out.

    Examples
    --------
    >>> sorted(versions())[0]
    'numpy'
    """
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def code_version(*functions: Callable[..., Any]) -> str:
    """A hash of all code that these functions can reach in this package, and of the libraries.

    Examples
    --------
    >>> from zeitgeist.merging import merge
    >>> code_version(merge) == code_version(merge)
    True
    """
    trees: dict[str, str] = {}
    for function in functions:
        own = inspect.unwrap(function)
        if own.__module__.startswith(_WITHOUT):
            continue
        path = Path(inspect.getsourcefile(own) or "")
        if path.is_file():
            _follow(own.__module__, path, trees)
        else:  # typed at a prompt
            trees[own.__qualname__] = sha256(marshal.dumps(own.__code__)).hexdigest()
    known = {name: v for name, v in versions().items() if name != _PACKAGE}
    return sha256(repr((sorted(trees.items()), sorted(known.items()))).encode()).hexdigest()[:16]


def _follow(name: str, path: Path, trees: dict[str, str]) -> None:
    if name in trees:
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    _drop_words(tree)
    trees[name] = sha256(ast.dump(tree).encode()).hexdigest()
    for module in _imports(tree):
        if not module.startswith(_WITHOUT) and not module.endswith("_charts"):
            origin = _origin(module)
            if origin is not None:
                _follow(module, origin, trees)


def _imports(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from (name for name in names if name.startswith(f"{_PACKAGE}."))


def _origin(module: str) -> Path | None:
    """Where a module lies; None for an attribute of a module."""
    try:
        spec = importlib.util.find_spec(module)
    except (ModuleNotFoundError, ValueError):
        return None
    return Path(spec.origin) if spec is not None and spec.origin else None


def _drop_words(tree: ast.Module) -> None:
    tree.body = [node for node in tree.body if not _declares(node)]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [each for each in body if not _is_text(each)]  # type: ignore[attr-defined]


def _declares(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(t, ast.Name) and t.id in _DECLARATIONS for t in targets)


def _is_text(node: ast.stmt) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def machine() -> dict[str, Any]:
    """What this ran on, without a name.

    Examples
    --------
    >>> sorted(machine())
    ['accelerator', 'cores', 'processor', 'system']
    """
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "accelerator": accelerator(),
    }


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


def accelerator() -> str:
    """The name of the GPU, or nothing."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""
