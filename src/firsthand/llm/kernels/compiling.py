"""How the loops of the Numba rungs are compiled: for SIMD, without the interpreter's lock, cached.

A folder below that has loops of its own, such as the engine's, compiles them by the same functions.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from numba import types
from numba.core import sigutils
from numba.extending import intrinsic

from firsthand.llm.compiling import Function, cached

_arguments_of: Any = sigutils.normalize_signature
STACK = Path(__file__).parents[1]

# Sums in any order, so that eight run side by side, and a · b + c rounded once. Not "nnan" and
# "ninf": a NaN has to reach the loss, where the training loop looks for it.
_ARITHMETIC = {"contract", "reassoc", "nsz", "arcp"}
# As written, but for that rounding once.
_ORDERED = {"contract", "nsz"}


def compiled(function: Function) -> Function:
    """Compiles, on its first call, a function that creates no arrays and raises nothing.

    `error_model="numpy"` makes a division by zero infinite instead of an exception, whose test in
    each iteration would keep the loop from SIMD.
    """
    return _compiled(function)


def ordered(function: Function) -> Function:
    """As `compiled`, with all arithmetic in the order in which it is written.

    Numba marks what `emitted` code computes like the rest of the function, so tiles whose numbers
    may not depend on what stands beside them are called from here.
    """
    return _compiled(function, fastmath=_ORDERED)


def inner(function: Function) -> Function:
    """As `compiled`, for a function that compiled functions alone call.

    Python needs a wrapper that takes each argument apart. For tuples of many arrays it takes longer
    to compile than the function.
    """
    return _compiled(function, no_cpython_wrapper=True)


def inlined(function: Function) -> Function:
    """For a function of numbers that compiled loops call for each element; keeps its order."""
    return _compiled(function, forceinline=True, no_cpython_wrapper=True, fastmath=_ORDERED)


def emitted(generator: Callable[..., Any]) -> Callable[..., Any]:
    """What compiled functions call like a function, and `generator` writes in LLVM's language.

    Args:
        generator: (typing context, a Numba type for each argument) -> a signature, and a function
            (target context, IR builder, signature, IR values) -> the IR value of the result.
    """
    made: Callable[..., Any] = intrinsic(generator)
    return made


@dataclass(frozen=True)
class Separate:
    """A compiled function whose code is in none of its callers'.

    Numba puts the code of what a function calls into the function, and LLVM goes over it once more,
    in each caller and in each of theirs. A large function that many call is compiled once instead,
    and called at its address. The caller is handed the address as a number, because what is cached
    on disk holds none.

    Attributes:
        function: of `compiled`, returns nothing.
        signature: its types, as Numba writes them.
        call: for compiled functions, (address, the function's arguments) -> None.
    """

    function: Callable[..., None]
    signature: str
    call: Callable[..., None]

    def address(self) -> np.int64:
        """Where it lies in this process; compiled, or loaded, at the first time."""
        dispatcher: Any = self.function
        kinds, _ = _arguments_of(self.signature)
        dispatcher.compile(kinds)
        made = dispatcher.overloads[kinds]
        return np.int64(made.library.get_pointer_to_function(made.fndesc.llvm_func_name))


def separate(function: Callable[..., None], signature: str) -> Separate:
    """See `Separate`. Arguments of other types are a TypingError where the caller is compiled."""
    kinds, _ = _arguments_of(signature)

    def generator(context: Any, address: Any, *_: Any) -> Any:
        def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            where, *given = arguments
            kind = target.call_conv.get_function_type(types.void, kinds).as_pointer()
            callee = builder.inttoptr(where, kind)
            # It raises nothing, so its status is not looked at.
            target.call_conv.call_function(builder, callee, types.void, kinds, given)
            return target.get_dummy_value()

        return types.void(types.int64, *kinds), generate

    one = inspect.Parameter.POSITIONAL_OR_KEYWORD
    names = ["context", "address", *inspect.signature(function).parameters]
    generator.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [inspect.Parameter(name, one) for name in names]
    )
    return Separate(function, signature, emitted(generator))


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
