"""Numbers that several threads change at once, and how a thread waits for another.

Numba has no atomic operations for a CPU, and LLVM has them all; these are its own, on an array of
64-bit integers. All are sequentially consistent: what a thread wrote before is seen by whoever
sees the number. Numbers that different threads change stand APART from each other, or each write
would take the other's cache line away.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import binding, ir
from numba import types
from numpy.typing import NDArray

from firsthand.llm.kernels.compiling import compiled, emitted

AnyArray = NDArray[Any]

# Places between two numbers, in 64-bit words: two cache lines, for they are fetched in pairs.
APART = 16
# 0 as a 64-bit integer. A plain 0 would be a type of its own to Numba, which would compile what it
# is passed to once more.
ZERO: Any = np.int64(0)
# Looks at a number before the core is offered to others.
SPINS = 2000

_WORD = ir.IntType(64)
_ORDER = "seq_cst"


def _pointer(target: Any, builder: Any, kind: Any, array: Any, place: Any) -> Any:
    data = target.make_array(kind)(target, builder, array).data
    return builder.gep(builder.bitcast(data, _WORD.as_pointer()), [place])


@emitted
def atomic_load(context: Any, numbers: Any, place: Any) -> Any:
    """numbers[place]."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = _pointer(target, builder, signature.args[0], *arguments)
        return builder.load_atomic(pointer, _ORDER, 8)

    return types.int64(numbers, types.int64), generate


@emitted
def atomic_store(context: Any, numbers: Any, place: Any, value: Any) -> Any:
    """numbers[place] = value."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, value = arguments
        pointer = _pointer(target, builder, signature.args[0], array, place)
        builder.store_atomic(value, pointer, _ORDER, 8)
        return target.get_dummy_value()

    return types.void(numbers, types.int64, types.int64), generate


@emitted
def atomic_add(context: Any, numbers: Any, place: Any, value: Any) -> Any:
    """numbers[place] += value; returns what stood there before."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, value = arguments
        pointer = _pointer(target, builder, signature.args[0], array, place)
        return builder.atomic_rmw("add", pointer, value, _ORDER)

    return types.int64(numbers, types.int64, types.int64), generate


@emitted
def atomic_swap_if(context: Any, numbers: Any, place: Any, expected: Any, value: Any) -> Any:
    """Replace numbers[place] by value if it is `expected`; returns whether it was."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array, place, expected, value = arguments
        pointer = _pointer(target, builder, signature.args[0], array, place)
        result = builder.cmpxchg(pointer, expected, value, _ORDER, _ORDER)
        return builder.extract_value(result, 1)

    return types.boolean(numbers, types.int64, types.int64, types.int64), generate


def _call(builder: Any, name: str, result: Any) -> Any:
    known = builder.module.globals.get(name)
    function = known or ir.Function(builder.module, ir.FunctionType(result, []), name)
    return builder.call(function, [])


_X86 = binding.get_default_triple().startswith(("x86_64", "i686"))


@emitted
def _pause(context: Any) -> Any:
    """Tell the processor that this loop waits, so that it saves power and pipelines."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        if _X86:
            _call(builder, "llvm.x86.sse2.pause", ir.VoidType())
        return target.get_dummy_value()

    return types.void(), generate


@emitted
def _give_way(context: Any) -> Any:
    """Let another thread have this core if one waits for it (POSIX sched_yield)."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        _call(builder, "sched_yield", ir.IntType(32))
        return target.get_dummy_value()

    return types.void(), generate


@compiled
def wait_a_little(spins: int) -> None:
    """One turn of a loop that waits; `spins` counts the turns so far."""
    if spins < SPINS:
        _pause()
    else:
        _give_way()


@compiled
def barrier(numbers: AnyArray, place: int, threads: int, met: int, before: int) -> int:
    """Wait until all threads are here, who have met `met` times before; returns met + 1.

    Args:
        numbers: numbers[place] counts arrivals and is never set back: a thread that is slow to
            leave a meeting still has to see that all were there.
        before: arrivals before the first meeting of these threads.
    """
    if threads > 1:
        atomic_add(numbers, place, 1)
        spins = 0
        while atomic_load(numbers, place) < before + threads * (met + 1):
            wait_a_little(spins)
            spins += 1
    return met + 1


@compiled
def take_portion(counters: AnyArray, met: int, thread: int, threads: int, portions: int) -> int:
    """The next portion of a stage for this thread; -1 when all are taken.

    Each thread has a share of portions that follow each other, so that it reads memory in order;
    who has finished its own takes what is left of the others'. So nobody waits for a thread that
    the operating system has stopped, or to which memory is slower.

    Args:
        counters: for each of three stages in turn and each thread, APART, how many portions of its
            share are taken.
        met: how often the threads have met, which tells the stages apart.
    """
    for other in range(threads):
        owner = (thread + other) % threads
        first, last = portions * owner // threads, portions * (owner + 1) // threads
        place = _counter(met, owner, threads)
        # A look is cheaper than taking the line from its owner.
        if other == 0 or first + counters[place] < last:
            portion: int = first + atomic_add(counters, place, 1)
            if portion < last:
                return portion
    return -1


@compiled
def forget_portions(counters: AnyArray, met: int, thread: int, threads: int) -> None:
    """Clear this thread's counter of the stage before, which all have left."""
    counters[_counter(met + 2, thread, threads)] = 0


@compiled
def _counter(met: int, thread: int, threads: int) -> int:
    return (met % 3 * threads + thread) * APART
