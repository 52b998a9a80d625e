"""Bytes a second by working set: which memory the bytes of a loop come from, and how fast.

All threads go over bytes of their own, again and again. As long as those fit into a cache, that
cache gives them; behind the last one DRAM does. Reading is a sum, writing stores of one number,
copying loads and stores, compiled to SIMD by LLVM. The stores are plain ones: where the line is not
in the cache, the processor reads it before it writes, which is not counted (half of what DRAM moves
then). Sources that write around the cache are faster, and nothing in the stack does.

The best of several runs counts, as a limit is what is possible; what else ran meanwhile shows in
the spread.

Source: McCalpin, "Memory Bandwidth and Machine Balance in Current High Performance Computers",
1995 (STREAM), whose arrays are at least four times the last-level cache.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.processor import Level
from firsthand.llm.audit.records import Bandwidths
from firsthand.llm.audit.threads import AnyArray, barrier, clock, compiled, run_together

KINDS = ("read", "write", "copy")

# Of one thread; half of the smallest first-level cache that is common.
LEAST = 1 << 14
# A DRAM working set, as a multiple of the last-level caches, and where those are unknown.
BEYOND = 4
UNKNOWN = 1 << 29
LEAST_DRAM = 1 << 28
# At most this share of the memory that is free.
SHARE = 0.25
# Long beside a meeting of threads, short beside what the system gives another process.
_RUN_SECONDS = 1e-3
_RUNS = 5
_WORD = 8
# Words that a thread goes over before it may stop: so a run of a large working set, too, is short,
# and goes on where the last one ended.
_PORTION = 1 << 18


@compiled
def _read(
    thread: int,
    threads: int,
    numbers: AnyArray,
    times: AnyArray,
    passes: int,
    source: AnyArray,
    portion: int,
    turn: int,
) -> None:
    met, total, portions = 0, np.int64(0), len(source) // portion
    for run in range(len(times)):
        met = barrier(numbers, 0, threads, met, 0)
        began = clock()
        for _ in range(passes):
            first, found = turn % portions * portion, np.int64(0)
            # A loop from 0 over a part of the array: indices that might be negative stop SIMD.
            part = source[first : first + portion]
            for i in range(len(part)):
                found += part[i]
            total ^= found + turn
            turn += 1
        met = barrier(numbers, 0, threads, met, 0)
        if thread == 0:
            times[run] = clock() - began
    # A sum that nobody could see would not be computed.
    numbers[1] = total


@compiled
def _write(
    thread: int,
    threads: int,
    numbers: AnyArray,
    times: AnyArray,
    passes: int,
    target: AnyArray,
    portion: int,
    turn: int,
) -> None:
    met, portions = 0, len(target) // portion
    for run in range(len(times)):
        met = barrier(numbers, 0, threads, met, 0)
        began = clock()
        for _ in range(passes):
            first, value = turn % portions * portion, np.int64(turn)
            part = target[first : first + portion]
            for i in range(len(part)):
                part[i] = value
            turn += 1
        met = barrier(numbers, 0, threads, met, 0)
        if thread == 0:
            times[run] = clock() - began


@compiled
def _copy(
    thread: int,
    threads: int,
    numbers: AnyArray,
    times: AnyArray,
    passes: int,
    both: AnyArray,
    portion: int,
    turn: int,
) -> None:
    met, half, length = 0, len(both) // 2, portion // 2
    portions = half // length
    for run in range(len(times)):
        met = barrier(numbers, 0, threads, met, 0)
        began = clock()
        for _ in range(passes):
            first = turn % portions * length
            source = both[first : first + length]
            target = both[half + first : half + first + length]
            for i in range(len(source)):
                target[i] = source[i]
            turn += 1
        met = barrier(numbers, 0, threads, met, 0)
        if thread == 0:
            times[run] = clock() - began


_KERNELS: dict[str, Callable[..., None]] = {"read": _read, "write": _write, "copy": _copy}


def working_sets(caches: Sequence[Level], threads: int, free: int) -> tuple[list[int], str]:
    """The sizes to measure, doubling, and why the largest is smaller than it should be, or "".

    Args:
        caches: of the processor, innermost first; may be empty.
        threads: that share a working set.
        free: bytes of memory that may be taken now.
    """
    last = max((level.total(threads) for level in caches), default=0)
    wanted = max(BEYOND * last, LEAST_DRAM) if last else UNKNOWN
    most = int(free * SHARE)
    sizes = [LEAST * threads]
    while sizes[-1] < wanted and 2 * sizes[-1] <= most:
        sizes.append(2 * sizes[-1])
    if sizes[-1] >= wanted:
        return sizes, ""
    beside = f"; {BEYOND} times the last-level cache is {wanted / 2**20:.0f} MiB" if last else ""
    return sizes, (
        f"Of the free memory, {free / 2**20:.0f} MiB, the largest working set takes "
        f"{sizes[-1] / 2**20:.2f} MiB{beside}: its bandwidth may be a cache's"
    )


class MemoryProbe:
    """The bandwidths of so many threads together, by working set.

    Args:
        sizes: bytes of all threads together, growing; rounded to whole words of each thread.
        threads: at least 1.
    Raises:
        AuditError: the memory cannot be had.
    """

    def __init__(self, sizes: Sequence[int], threads: int) -> None:
        self._sizes, self._threads = sizes, threads
        self._share = share = _words(sizes[-1], threads)
        try:
            self._whole = np.empty(share * threads, np.int64)
        except MemoryError as error:
            raise AuditError(f"{sizes[-1]} bytes of memory cannot be had: {error}") from error
        self._times: dict[tuple[int, str], list[float]] = {}
        self._turns: dict[tuple[int, str], int] = {}
        # Each thread touches its own part first, which puts it into the memory beside its core.
        run_together(
            _write, threads, 1, 1, lambda thread: (self._part(sizes[-1], thread), share, 0)
        )

    def steps(self) -> list[Callable[[], None]]:
        """A step for each working set and kind."""
        return [partial(self._measure, size, kind) for size in self._sizes for kind in KINDS]

    def result(self) -> tuple[Bandwidths, ...]:
        """One record for each working set; each step was taken."""
        return tuple(
            bandwidths_of(
                size,
                {kind: self._times[size, kind] for kind in KINDS},
                dict.fromkeys(KINDS, _portion(size, self._threads) * self._threads * _WORD),
            )
            for size in self._sizes
        )

    def _part(self, size: int, thread: int) -> AnyArray:
        return self._whole[thread * self._share :][: _words(size, self._threads)]

    def _measure(self, size: int, kind: str) -> None:
        times = self._times.setdefault((size, kind), [])
        if not times:
            once = min(self._run(size, kind, 3, 1))
            times += self._run(size, kind, 1, math.ceil(_RUN_SECONDS / once))
        passes = math.ceil(_RUN_SECONDS / min(times))
        times += self._run(size, kind, _RUNS, passes)

    def _run(self, size: int, kind: str, runs: int, passes: int) -> list[float]:
        """Seconds of going over a portion, which begins where the last one ended."""
        turn = self._turns.get((size, kind), 0)
        self._turns[size, kind] = turn + runs * passes
        portion = _portion(size, self._threads)
        return run_together(
            _KERNELS[kind],
            self._threads,
            runs,
            passes,
            lambda thread: (self._part(size, thread), portion, turn),
        )


def _words(size: int, threads: int) -> int:
    """Of one thread; an even number."""
    return max(1, size // (2 * _WORD * threads)) * 2


def _portion(size: int, threads: int) -> int:
    """Words that a thread goes over in one pass; an even number."""
    return min(_words(size, threads), _PORTION)


def bandwidths_of(size: int, times: dict[str, list[float]], moved: dict[str, int]) -> Bandwidths:
    """The record of a working set.

    Args:
        size: bytes of all threads together.
        times: seconds of one pass, of each run, by what was done.
        moved: bytes that a pass of all threads moves, likewise.
    """
    best = {kind: min(found) for kind, found in times.items()}
    rates = {kind: moved[kind] / best[kind] for kind in KINDS}
    spread = max(statistics.median(times[kind]) / best[kind] - 1 for kind in KINDS)
    return Bandwidths(working_set=size, **rates, spread=spread)
