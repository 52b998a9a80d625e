"""How the loops of the Numba rungs are compiled: for SIMD, without the interpreter's lock, cached.

A folder below that has loops of its own, such as the engine's, compiles them by the same functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from numba.extending import intrinsic

from firsthand.llm.compiling import Function, cached

STACK = Path(__file__).parents[1]

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


def emitted(generator: Callable[..., Any]) -> Callable[..., Any]:
    """What compiled functions call like a function, and `generator` writes in LLVM's language.

    Args:
        generator: (typing context, a Numba type for each argument) -> a signature, and a function
            (target context, IR builder, signature, IR values) -> the IR value of the result.
    """
    made: Callable[..., Any] = intrinsic(generator)
    return made


def sources_of(file: Path, stack: Path = STACK) -> list[Path]:
    """The files that compiled functions of `file` may call: the kernels', and its own folder's.

    Args:
        file: of the function.
        stack: the folder that holds `kernels` and the other folders.
    """
    found = list(_python_files(stack / "kernels"))
    if file.is_relative_to(stack):
        found += _python_files(stack / file.relative_to(stack).parts[0])
    return found


@cache
def _python_files(folder: Path) -> tuple[Path, ...]:
    return tuple(folder.rglob("*.py"))


def _compiled(function: Function, **options: Any) -> Function:
    options = {"fastmath": _ARITHMETIC, "error_model": "numpy", **options}
    return cached(function, sources_of(Path(inspect.getfile(function))), **options)
