"""Threads that begin and end each run of a measurement together, and a clock in compiled code.

A thread that came late would find the memory busy for less time than it seems. So all threads stay
inside one compiled call, meet before each run and after it, and the first of them reads the clock:
no interpreter, no lock and no start of a thread is in what is measured.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.compiling import Function, cached
from firsthand.llm.inference.cpu import atomics
from firsthand.llm.inference.cpu.atomics import barrier
from firsthand.llm.kernels.compiling import emitted, sources_of

__all__ = ["AnyArray", "barrier", "clock", "compiled", "run_together"]

AnyArray = NDArray[Any]

_WORD, _INT = ir.IntType(64), ir.IntType(32)
_MONOTONIC = getattr(time, "CLOCK_MONOTONIC", 1)
_CLOCK = "clock_gettime"
_NANOSECOND = 1e-9


def compiled(function: Function) -> Function:
    """As `kernels.compiling.compiled`; it may call what the CPU engine's threads meet by."""
    files = [file for path in (__file__, atomics.__file__) for file in sources_of(Path(path))]
    return cached(function, files, error_model="numpy")


@emitted
def clock(context: Any) -> Any:
    """Nanoseconds since some moment (POSIX clock_gettime, the monotonic clock)."""

    def generate(target: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        alloca: Any = cgutils.alloca_once
        moment = alloca(builder, ir.ArrayType(_WORD, 2))
        shape = ir.FunctionType(_INT, [_INT, moment.type])
        module = builder.module
        function = module.globals.get(_CLOCK) or ir.Function(module, shape, _CLOCK)
        builder.call(function, [_INT(_MONOTONIC), moment])
        seconds, nanoseconds = (
            builder.load(builder.gep(moment, [_INT(0), _INT(place)])) for place in (0, 1)
        )
        return builder.add(builder.mul(seconds, _WORD(10**9)), nanoseconds)

    return types.int64(), generate


def run_together(
    kernel: Callable[..., None],
    threads: int,
    runs: int,
    passes: int,
    arguments: Callable[[int], Sequence[Any]],
) -> list[float]:
    """Seconds of one pass in each run.

    Args:
        kernel: (thread, threads, numbers, times, passes, *arguments), of `compiled`. For each of
            `times` it meets the others by numbers[0], does its work `passes` times, meets them
            again, and thread 0 writes the nanoseconds of the run.
        threads: at least 1; the caller is thread 0.
        runs, passes: at least 1.
        arguments: of each thread, by its number.
    Raises:
        AuditError: the system starts no more threads.
    """
    numbers = np.zeros(atomics.APART, np.int64)
    times = np.zeros(runs, np.int64)
    gate = threading.Event()
    left = [False]

    def work(thread: int, given: Sequence[Any]) -> None:
        gate.wait()
        if not left[0]:
            kernel(thread, threads, numbers, times, passes, *given)

    # Of the same types, so that no thread compiles while the others wait for it.
    first = arguments(0)
    kernel(0, 1, np.zeros_like(numbers), np.zeros(0, np.int64), 0, *first)
    others = [
        threading.Thread(target=work, args=(thread, arguments(thread)), daemon=True)
        for thread in range(1, threads)
    ]
    started: list[threading.Thread] = []
    try:
        for other in others:
            other.start()
            started.append(other)
    except RuntimeError as error:
        left[0] = True
        raise AuditError(
            f"the system starts {len(started) + 1} of {threads} threads: {error}"
        ) from error
    finally:
        gate.set()
    kernel(0, threads, numbers, times, passes, *first)
    for other in others:
        other.join()
    return [max(1, nanoseconds) * _NANOSECOND / passes for nanoseconds in times.tolist()]
