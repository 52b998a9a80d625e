"""Numba functions cached on disk, stamped with every file whose code may be in them.

Numba stamps a cached function with the time of its own file only. Compiled functions call each
other across files, and a checkout that updates one file would go on running the old code of
another. Where no folder can be written, nothing is cached.

Numba also counts references to arrays in every compiled function, which can cost more than its few
instructions. So compiled functions create no arrays, and do without.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from numba import njit

Function = TypeVar("Function", bound=Callable[..., Any])
Stamp = tuple[tuple[str, int, int], ...]


def cached(function: Function, sources: Iterable[Path], **options: Any) -> Function:
    """Compiles a function on its first call, without the interpreter's lock, or loads it.

    Args:
        function: creates no arrays.
        sources: the files with the functions that it may call; this module's own is added.
        options: more of `numba.njit`.
    """
    options |= {"nogil": True, "_nrt": False, "no_cfunc_wrapper": True}
    dispatcher = njit(**options)(function)
    try:
        dispatcher.enable_caching()
        files = dispatcher._cache._cache_file
        stamp = _stamp_once((*sources, Path(__file__)))
        files._source_stamp = (files._source_stamp, stamp)
    except (RuntimeError, OSError, AttributeError):
        # RuntimeError: no folder for the cache. AttributeError: another Numba keeps its stamp
        # elsewhere, and no cache is better than a stale one.
        dispatcher = njit(**options)(function)
    return cast(Function, dispatcher)


def source_stamp(files: Iterable[Path]) -> Stamp:
    """Path, time of change (ns) and size of each file, in the order of the paths."""
    return tuple(
        (str(file), file.stat().st_mtime_ns, file.stat().st_size) for file in sorted(set(files))
    )


@cache
def _stamp_once(files: tuple[Path, ...]) -> Stamp:
    """Functions of a folder share it: asking for each file anew takes a tenth of a second."""
    return source_stamp(files)
