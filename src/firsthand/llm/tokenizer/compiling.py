"""How the hot loops are compiled: Numba, without the interpreter's lock, cached on disk.

Functions here call each other across files, so any file of the folder makes what is cached stale.
"""

from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from firsthand.llm.compiling import Function, cached

Integer: TypeAlias = int | np.int64
"""In compiled code all integers are of 64 bits; mypy sees Python's and NumPy's."""


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
    return cached(function, Path(__file__).parent.glob("*.py"), **options)
