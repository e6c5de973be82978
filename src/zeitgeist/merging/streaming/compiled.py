"""Compiling a loop, once for this processor; the code is kept on disk."""

import inspect
from typing import Any

import numba


def compiled(function: Any) -> Any:
    """A function that runs as machine code and without the interpreter lock.

    What one compiled function calls must stand in the same module: numba notices that its file
    changed, not that another one did.
    """
    # The tests wrap every function to check its types at run time; numba wants the bare one.
    bare = inspect.unwrap(function)
    inner = bare.__name__.startswith("_")
    return numba.njit(nogil=True, cache=True, error_model="numpy", forceinline=inner)(bare)
