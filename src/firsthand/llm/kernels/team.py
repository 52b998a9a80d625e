"""Compiled loops on PyTorch's own threads.

PyTorch's threads spin while they wait for its next operation, so threads beside them find no free
core. Where PyTorch brings GNU's OpenMP library, `GOMP_parallel` of that very copy hands the same
threads a C function. The one built here takes a table of 64-bit words, finds its thread's share of
the rows and calls the kernel as Numba's compiled code calls it: the same machine code as from
Python, with no interpreter in between.

Source: GCC, "libgomp", the chapter on the library's ABI; Numba's call convention is
`int (result **, exception **, arguments...)`, each array in fields as its data model lists them.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from llvmlite import binding, ir
from numba import int64, typeof

_WORD = ir.IntType(64)
_INT = ir.IntType(32)
_POINTER = ir.IntType(8).as_pointer()
# Words before the arguments': the kernel's address and the number of rows.
_HEAD = 2

# By kernel and kinds of arguments: the C function, the kernel's address; None where it cannot be.
_entries: dict[tuple[Any, ...], tuple[int, int] | None] = {}
# The C functions by their arguments' types, and the engines that own their code.
_functions: dict[tuple[str, ...], int] = {}
_engines: list[Any] = []
_state = {"forked": False}


def available() -> bool:
    """Whether PyTorch's threads can be asked: not in a forked child, where a team may be gone."""
    return not _state["forked"] and _library() is not None


def run(kernel: Callable[..., Any], threads: int, rows: int, arguments: Sequence[Any]) -> bool:
    """Call kernel(first, last, *arguments) on so many threads, whose ranges cover the rows.

    Args:
        kernel: of `compiling.compiled`; it raises nothing and creates no arrays.
        arguments: NumPy arrays, numbers and tuples of integers.

    Returns:
        Whether it was done; False where this PyTorch or this Numba does not offer it.
    """
    library = _library()
    if library is None or _state["forked"]:
        return False
    key = (kernel, *map(_kind, arguments))
    if key not in _entries:
        _entries[key] = _entry(kernel, arguments)
    entry = _entries[key]
    if entry is None:
        return False
    function, address = entry
    words = [address, rows]
    for argument in arguments:
        words += _words(argument)
    table = (ctypes.c_int64 * len(words))(*words)
    library.GOMP_parallel(function, table, threads, 0)
    return True


def _forget_team() -> None:
    _state["forked"] = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_team)


@lru_cache(maxsize=1)
def _library() -> Any:
    """GNU's OpenMP library as PyTorch has loaded it, or None.

    Loading its path again returns the loaded one; another copy would have threads of its own.
    """
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return None
    package = Path(torch.__file__).parent
    found = {Path(line.split(maxsplit=5)[-1]) for line in maps.splitlines() if "libgomp" in line}
    ours = [p for p in found if p.parent in (package / "lib", package.parent / "torch.libs")]
    if len(ours) != 1:
        return None
    try:
        library = ctypes.CDLL(str(ours[0]))
        library.GOMP_parallel.argtypes = (
            ctypes.c_void_p,
            ctypes.c_void_p,
            ctypes.c_uint,
            ctypes.c_uint,
        )
        library.GOMP_parallel.restype = None
        _ = library.omp_get_thread_num, library.omp_get_num_threads
    except (OSError, AttributeError):
        return None
    return library


def _kind(argument: Any) -> Any:
    """What decides the argument's type in Numba, at less cost than asking Numba."""
    if isinstance(argument, np.ndarray):
        flags = argument.flags
        return argument.dtype, argument.ndim, flags.c_contiguous, flags.writeable, flags.aligned
    return (tuple, len(argument)) if isinstance(argument, tuple) else type(argument)


def _words(argument: Any) -> list[int]:
    """The argument's fields in Numba's order, each as 64 bits; an array has no owner."""
    if isinstance(argument, np.ndarray):
        address = argument.__array_interface__["data"][0]
        size = (argument.size, argument.itemsize)
        return [0, 0, *size, address, *argument.shape, *argument.strides]
    if isinstance(argument, tuple):
        return list(argument)
    if isinstance(argument, np.float32):
        return [int(argument.view(np.int32))]
    return [int(argument)]


def _entry(kernel: Any, arguments: Sequence[Any]) -> tuple[int, int] | None:
    try:
        types = (int64, int64, *map(typeof, arguments))
        kernel.compile(types)
        found = kernel.overloads[types]
        fields = found.target_context.get_arg_packer(found.fndesc.argtypes).argument_types
        address = found.library.get_pointer_to_function(found.fndesc.llvm_func_name)
    except (AttributeError, KeyError, TypeError):
        return None  # Another Numba keeps these elsewhere.
    kinds = tuple(map(str, fields))
    if len(kinds) != 2 + sum(len(_words(a)) for a in arguments) or not address:
        return None
    if not all(isinstance(f, (ir.IntType, ir.PointerType, ir.FloatType)) for f in fields):
        return None
    if kinds not in _functions:
        _functions[kinds] = _c_function(fields)
    return _functions[kinds], address


def _c_function(fields: Sequence[Any]) -> int:
    """The address of `void (words *)`, which calls the kernel for the present thread's rows.

    Args:
        fields: the types of what the kernel takes; first and last are the first two.
    """
    module = ir.Module()
    module.triple = binding.get_process_triple()
    function = ir.Function(module, ir.FunctionType(ir.VoidType(), [_WORD.as_pointer()]), "share")
    builder = ir.IRBuilder(function.append_basic_block())
    (table,) = function.args

    def word(place: int) -> Any:
        return builder.load(builder.gep(table, [_INT(place)]))

    library = _library()
    asked = []
    for name in (library.omp_get_thread_num, library.omp_get_num_threads):
        address = _WORD(ctypes.cast(name, ctypes.c_void_p).value)
        number = builder.inttoptr(address, ir.FunctionType(_INT, []).as_pointer())
        asked.append(builder.sext(builder.call(number, []), _WORD))
    thread, threads = asked
    rows = word(1)
    first = builder.sdiv(builder.mul(rows, thread), threads)
    last = builder.sdiv(builder.mul(rows, builder.add(thread, _WORD(1))), threads)
    values = [first, last]
    for place, field in enumerate(fields[2:], _HEAD):
        value = word(place)
        if isinstance(field, ir.PointerType):
            value = builder.inttoptr(value, field)
        elif isinstance(field, ir.FloatType):
            value = builder.bitcast(builder.trunc(value, _INT), field)
        elif field != _WORD:
            value = builder.trunc(value, field)
        values.append(value)
    # Where the kernel would leave a result and an exception.
    slots = [builder.alloca(_POINTER), builder.alloca(_POINTER)]
    shape = ir.FunctionType(_INT, [*(slot.type for slot in slots), *fields])
    builder.call(builder.inttoptr(word(0), shape.as_pointer()), [*slots, *values])
    builder.ret_void()
    parsed = binding.parse_assembly(str(module))
    machine = binding.Target.from_default_triple().create_target_machine(jit=True)
    engine = binding.create_mcjit_compiler(parsed, machine)
    engine.finalize_object()
    _engines.append(engine)
    return int(engine.get_function_address("share"))
