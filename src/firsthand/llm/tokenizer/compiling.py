"""How the hot loops are compiled: Numba, without the interpreter's lock, cached on disk.

Numba counts references to arrays in every compiled function, which costs more than the few
instructions of `find` or `character_at`. So compiled functions create no arrays, and do without.

Numba stamps a cached function with the time of its own file only. Functions here call each other
across files, and a checkout that updates one file would go on running the old code of another; so
the stamp covers all files of the folder. Where no folder can be written, nothing is cached.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias, TypeVar, cast

import numpy as np
from numba import njit

Integer: TypeAlias = int | np.int64
"""In compiled code all integers are of 64 bits; mypy sees Python's and NumPy's."""

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """Compiles, on the first call from Python, a function that creates no arrays."""
    return _compiled(function)


def compiled_part(function: Function) -> Function:
    """As `compiled`, for a function that only compiled ones call: it gets no door to Python.

    Building that door takes longer than compiling the function.
    """
    return _compiled(function, no_cpython_wrapper=True)


def inlined(function: Function) -> Function:
    """As `compiled_part`, for what runs for every piece: an array is seven arguments to a call."""
    return _compiled(function, no_cpython_wrapper=True, forceinline=True)


def _compiled(function: Function, **options: Any) -> Function:
    options |= {"nogil": True, "_nrt": False, "no_cfunc_wrapper": True}
    dispatcher = njit(**options)(function)
    try:
        dispatcher.enable_caching()
        files = dispatcher._cache._cache_file
        files._source_stamp = (files._source_stamp, source_stamp(Path(__file__).parent))
    except (RuntimeError, OSError, AttributeError):
        # RuntimeError: no folder for the cache. AttributeError: another Numba keeps its stamp
        # elsewhere, and no cache is better than a stale one.
        dispatcher = njit(**options)(function)
    return cast(Function, dispatcher)


def source_stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, time of change (ns) and size of every Python file of a folder."""
    files = sorted(folder.glob("*.py"))
    return tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files)
