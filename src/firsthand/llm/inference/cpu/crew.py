"""Threads that stay between two tokens.

A token takes a few milliseconds and the pause before the next one much less, so the crew waits by
looking: the next call begins within a microsecond. When nothing comes for a while each thread
parks, which costs nothing, and the next call wakes it. The threads are Python's; all they run is
compiled and does not hold the interpreter's lock.
"""

from __future__ import annotations

import os
import threading

import numpy as np

from firsthand.llm.inference.cpu.calls import announce, dismiss, places
from firsthand.llm.inference.cpu.stages import Cache, Shape, Work
from firsthand.llm.inference.cpu.step import take_part
from firsthand.llm.inference.cpu.weights import Weights
from firsthand.llm.inference.errors import InferenceError


class Crew:
    """The caller and threads - 1 others, who run the step together.

    Args:
        threads: at most MOST_THREADS.
        shape, weights, cache, work: what they work on.
    """

    def __init__(
        self, threads: int, shape: Shape, weights: Weights, cache: Cache, work: Work
    ) -> None:
        self.threads = threads
        self._bound = shape, weights, cache, work
        self._numbers = np.zeros(places(self.threads), np.int64)
        self._parked = np.zeros(self.threads - 1, np.int64)
        self._wakes = [threading.Semaphore(0) for _ in range(self.threads)]
        self._closed = False
        self._owner = os.getpid()
        self._others: list[threading.Thread] = []

    def run(self, threads: int, rows: int, wanted: int) -> None:
        """One call of the step on so many threads; returns when all of it is done.

        Raises:
            InferenceError: the crew is closed, or was left behind by a fork.
        """
        if self._closed or self._owner != os.getpid():
            raise InferenceError("the engine is closed, or belongs to the process that forked this")
        if threads > 1 and not self._others:
            self._start()
        counters = self._bound[3].counters
        found = announce(threads, rows, wanted, self._numbers, counters, self._parked)
        for thread in self._parked[:found]:
            self._wakes[thread].release()
        take_part(0, self._numbers, *self._bound)

    def close(self) -> None:
        """End the threads; the crew cannot be used afterwards."""
        if self._closed or self._owner != os.getpid():
            return
        self._closed = True
        for thread, other in enumerate(self._others, 1):
            dismiss(self._numbers, thread)
            self._wakes[thread].release()
            other.join()

    def _start(self) -> None:
        for thread in range(1, self.threads):
            other = threading.Thread(
                target=self._stay, args=(thread,), name=f"engine-{thread}", daemon=True
            )
            self._others.append(other)
            other.start()

    def _stay(self, thread: int) -> None:
        while not self._closed:
            take_part(thread, self._numbers, *self._bound)
            if not self._closed:
                self._wakes[thread].acquire()
