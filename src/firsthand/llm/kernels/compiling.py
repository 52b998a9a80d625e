"""How the loops of the Numba rungs are compiled: for SIMD, without the interpreter's lock, cached.

Numba stamps a cached function with the time of its own file only, while these call each other
across files; so the stamp covers all of this folder's. Where no folder can be written, nothing is
cached.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])

# Sums in any order, so that eight run side by side, and a · b + c rounded once. Not "nnan" and
# "ninf": a NaN has to reach the loss, where the training loop looks for it.
_ARITHMETIC = {"contract", "reassoc", "nsz", "arcp"}


def compiled(function: Function) -> Function:
    """Compiles, on its first call, a function that creates no arrays and raises nothing.

    `error_model="numpy"` makes a division by zero infinite instead of an exception, whose test in
    each iteration would keep the loop from SIMD.
    """
    return _compiled(function)


def inlined(function: Function) -> Function:
    """For a function of numbers that compiled loops call for each element; keeps its order."""
    return _compiled(
        function, forceinline=True, no_cpython_wrapper=True, fastmath={"contract", "nsz"}
    )


def _compiled(function: Function, **options: Any) -> Function:
    options = {"fastmath": _ARITHMETIC, "error_model": "numpy", **options}
    options |= {"nogil": True, "_nrt": False, "no_cfunc_wrapper": True}
    dispatcher = njit(**options)(function)
    try:
        dispatcher.enable_caching()
        files = dispatcher._cache._cache_file
        files._source_stamp = (files._source_stamp, _stamp(Path(__file__).parent))
    except (RuntimeError, OSError, AttributeError):
        # RuntimeError: no folder for the cache. AttributeError: another Numba keeps its stamp
        # elsewhere, and no cache is better than a stale one.
        dispatcher = njit(**options)(function)
    return cast(Function, dispatcher)


def _stamp(folder: Path) -> tuple[tuple[str, int, int], ...]:
    files = sorted([*folder.glob("*.py"), *folder.glob("*/with_numba.py")])
    return tuple((str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in files)
