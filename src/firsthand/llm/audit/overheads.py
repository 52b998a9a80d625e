"""Time that passes whatever the work: a meeting of threads, a parallel loop, a small operation."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from firsthand.llm.audit.peaks import torch_threads
from firsthand.llm.audit.threads import AnyArray, barrier, clock, compiled, run_together
from firsthand.llm.kernels import compiling, team
from firsthand.llm.kernels.ceilings import seconds_of

CREW, OPERATION = "a meeting of the engine's threads", "an operation of PyTorch"
TEAM, PARALLEL = "a loop on PyTorch's threads", "a parallel loop of Numba"
LAUNCH = "a kernel of the GPU"

# Few in a run and few runs at a time: where another program has a core, each meeting waits for it.
_RUNS = 6
_MEETINGS = 50
_OPERATIONS = 200
_LOOPS = 20


class OverheadProbe:
    """Seconds of each, with so many threads, by name; the least of many runs.

    `CREW`: where a stage of the CPU engine's step ends, all threads meet. `OPERATION`: one addition
    of one number, which is dispatch and nothing else. `TEAM`: how the compiled loops of the
    training's kernels begin and end; missing where PyTorch's threads cannot be had. `PARALLEL`: the
    same for Numba's own threads (prange), which the stack does not use.

    Args:
        threads: at least 1.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._best: dict[str, float] = {}

    def steps(self) -> list[Callable[[], None]]:
        """A step for each."""
        measures: dict[str, Callable[[], float]] = {
            CREW: lambda: min(
                run_together(_meetings, self._threads, _RUNS, _MEETINGS, lambda thread: ())
            ),
            OPERATION: lambda: operation_seconds("cpu"),
            TEAM: lambda: _team_seconds(self._threads),
            PARALLEL: lambda: _parallel_seconds(self._threads),
        }
        if not team.available():
            del measures[TEAM]
        return [partial(self._measure, name, call) for name, call in measures.items()]

    def result(self) -> dict[str, float]:
        """Seconds by name; each step was taken."""
        return {name: value for name, value in self._best.items() if math.isfinite(value)}

    def _measure(self, name: str, call: Callable[[], float]) -> None:
        with torch_threads(self._threads):
            self._best[name] = min(self._best.get(name, math.inf), call())


class LaunchProbe:
    """Seconds of launching a kernel on the GPU."""

    def __init__(self, device: str = "cuda") -> None:
        self._device, self._best = device, math.inf

    def steps(self) -> list[Callable[[], None]]:
        """One."""
        return [self._measure]

    def result(self) -> float:
        """The least of many runs; the step was taken."""
        return self._best

    def _measure(self) -> None:
        self._best = min(self._best, operation_seconds(self._device))


def operation_seconds(device: str) -> float:
    """Of one of many tiny operations of PyTorch in a row; on a GPU, of launching a kernel."""
    left, right, out = (torch.ones(1, device=device) for _ in range(3))

    def many() -> None:
        for _ in range(_OPERATIONS):
            torch.add(left, right, out=out)

    with torch.no_grad():
        return min(seconds_of(many, _RUNS, device)) / _OPERATIONS


@compiled
def _meetings(thread: int, threads: int, numbers: AnyArray, times: AnyArray, passes: int) -> None:
    met = 0
    for run in range(len(times)):
        met = barrier(numbers, 0, threads, met, 0)
        began = clock()
        for _ in range(passes):
            met = barrier(numbers, 0, threads, met, 0)
        if thread == 0:
            times[run] = clock() - began


@compiling.compiled
def _mark(first: int, last: int, marks: AnyArray) -> None:
    for place in range(first, last):
        marks[place] += 1


def _team_seconds(threads: int) -> float:
    marks = np.zeros(threads, np.int64)

    def many() -> None:
        for _ in range(_LOOPS):
            team.run(_mark, threads, threads, [marks])

    if not team.run(_mark, threads, threads, [marks]):
        return math.inf
    return min(seconds_of(many, _RUNS)) / _LOOPS


def _parallel_seconds(threads: int) -> float:
    import numba

    before = numba.get_num_threads()
    most = min(threads, before)
    marks = np.zeros(most, np.int64)

    def many() -> None:
        for _ in range(_LOOPS):
            _parallel_loop()(marks)

    numba.set_num_threads(most)
    try:
        return min(seconds_of(many, _RUNS)) / _LOOPS
    finally:
        numba.set_num_threads(before)


_loops: list[Callable[[AnyArray], None]] = []


def _parallel_loop() -> Callable[[AnyArray], None]:
    """Compiled when it is asked for: that takes a second, and starts Numba's threads."""
    if not _loops:
        from numba import njit, prange

        @njit(parallel=True)
        def mark(marks):  # type: ignore[no-untyped-def]
            for place in prange(len(marks)):
                marks[place] += 1

        _loops.append(mark)
    return _loops[0]
