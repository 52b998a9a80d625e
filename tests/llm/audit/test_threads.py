"""Threads that run together, the clock of compiled code, and turns."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from firsthand.llm.audit import rounds
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.rounds import in_rounds
from firsthand.llm.audit.threads import AnyArray, barrier, clock, compiled, run_together


@compiled
def _now() -> int:
    return clock()


@compiled
def _mark(
    thread: int, threads: int, numbers: AnyArray, times: AnyArray, passes: int, marks: AnyArray
) -> None:
    met = 0
    for run in range(len(times)):
        met = barrier(numbers, 0, threads, met, 0)
        for _ in range(passes):
            marks[thread] += 1
        met = barrier(numbers, 0, threads, met, 0)
        if thread == 0:
            times[run] = 7000 + run


def test_the_clock_is_the_monotonic_one() -> None:
    for _ in range(3):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC)
        now = _now()
        assert before <= now <= time.clock_gettime_ns(time.CLOCK_MONOTONIC)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_each_thread_does_each_pass_of_each_run(threads: int) -> None:
    marks = np.zeros(threads, np.int64)
    times = run_together(_mark, threads, 3, 4, lambda thread: (marks,))
    assert marks.tolist() == [12] * threads
    assert times == pytest.approx([7000e-9 / 4, 7001e-9 / 4, 7002e-9 / 4])


def test_threads_that_do_not_start_leave_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    start, started = threading.Thread.start, []

    def refuse(self: threading.Thread) -> None:
        if len(started) == 2:
            raise RuntimeError("can't start new thread")
        started.append(self)
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    marks = np.zeros(5, np.int64)
    with pytest.raises(AuditError, match="starts 3 of 5 threads"):
        run_together(_mark, 5, 1, 1, lambda thread: (marks,))
    for thread in started:
        thread.join(10)
        assert not thread.is_alive()
    assert not marks.any()


class _Steps:
    def __init__(self, *steps: Callable[[], None]) -> None:
        self._steps = steps

    def steps(self) -> tuple[Callable[[], None], ...]:
        return self._steps


def test_every_step_is_taken_once_and_then_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now, taken, shares = [0.0], [], []
    monkeypatch.setattr(rounds.time, "monotonic", lambda: now[0])

    def step(name: str) -> Callable[[], Any]:
        def take() -> None:
            taken.append(name)
            now[0] += 1.0

        return take

    probes = [_Steps(step("a"), step("b")), _Steps(step("c"))]
    in_rounds(probes, 5.0, shares.append)
    assert "".join(taken) == "abcac"
    assert shares == sorted(shares)
    assert all(0 <= share <= 1 for share in shares)
    taken.clear()
    in_rounds(probes, 0.0)
    assert sorted(taken) == ["a", "b", "c"]


def test_each_probe_has_its_share_of_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now, spent = [0.0], [0.0, 0.0]
    monkeypatch.setattr(rounds.time, "monotonic", lambda: now[0])

    def step(probe: int, seconds: float) -> Callable[[], None]:
        def take() -> None:
            now[0] += seconds
            spent[probe] += seconds

        return take

    in_rounds([_Steps(step(0, 0.1)), _Steps(step(1, 3.0))], 100.0, shares=[3.0, 1.0])
    # Not of the first round, in which much is compiled.
    assert spent[0] - 0.1 == pytest.approx(0.75 * 96.9, abs=3)
    assert spent[1] - 3.0 == pytest.approx(0.25 * 96.9, abs=3)
