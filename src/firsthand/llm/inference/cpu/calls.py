"""How the crew's threads learn of a call, wait for it and park.

A call is one number, so that a thread that comes late and has no part in it cannot take the
threads of the next call for its: calls so far · _CALLS + the threads of this one.
"""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from firsthand.llm.inference.cpu.atomics import (
    APART,
    SPINS,
    atomic_load,
    atomic_store,
    atomic_swap_if,
    wait_a_little,
)
from firsthand.llm.kernels.compiling import compiled

AnyArray = NDArray[Any]

# Threads of a crew are fewer than what counts the calls in the same number.
_CALLS = 1024
MOST_THREADS = _CALLS - 1
# Places in the crew's numbers: the call, its rows, rows wanted, and the arrivals at meetings before
# it; the arrivals so far; then, APART, each thread's state and the call that it has seen.
_CALL, _ROWS, _WANTED, _BEFORE = 0, APART, APART + 1, APART + 2
ARRIVALS, _STATES = 2 * APART, 3 * APART
_WAITING, _PARKED, _LEAVING = 0, 1, 2
# Turns of waiting before a thread parks: the spins, and so many offers of the core to others. The
# pause of a loop that only decodes is shorter. A server's is longer, and then its other threads and
# its clients need the core more than this one, which wakes in less than a tenth of a millisecond.
_PATIENCE = SPINS + 1000


def places(threads: int) -> int:
    """How many numbers a crew needs."""
    return _STATES + threads * APART


@compiled
def announce(
    threads: int, rows: int, wanted: int, numbers: AnyArray, counters: AnyArray, parked: AnyArray
) -> int:
    """Begin a call for the others; returns how many are parked, and says which.

    Args:
        counters: set to 0.
        parked: int64 (threads of the crew - 1,), filled from the front.
    """
    numbers[_ROWS], numbers[_WANTED] = rows, wanted
    call = (numbers[_CALL] // _CALLS + 1) * _CALLS + threads
    numbers[_BEFORE] = numbers[ARRIVALS]
    counters[:] = 0
    atomic_store(numbers, _CALL, call)
    found = 0
    for thread in range(1, threads):
        if atomic_swap_if(numbers, _STATES + thread * APART, _PARKED, _WAITING):
            parked[found] = thread
            found += 1
    return found


@compiled
def next_call(thread: int, numbers: AnyArray) -> int:
    """The next call that this thread has a part in; -1 when it parks or leaves.

    Thread 0 is the caller and does not wait.
    """
    state = _STATES + thread * APART
    spins = 0
    while True:
        call: int = atomic_load(numbers, _CALL)
        if call != numbers[state + 1]:
            numbers[state + 1] = call
            if thread < threads_of(call):
                return call
        if atomic_load(numbers, state) == _LEAVING:
            return -1
        if spins > _PATIENCE and atomic_swap_if(numbers, state, _WAITING, _PARKED):
            # A call that came meanwhile either sees the parked state or is seen here.
            if atomic_load(numbers, _CALL) == numbers[state + 1]:
                return -1
            if not atomic_swap_if(numbers, state, _PARKED, _WAITING):
                return -1
        wait_a_little(spins)
        spins += 1


@compiled
def threads_of(call: int) -> int:
    """How many threads take part in this call."""
    return call % _CALLS


@compiled
def arrivals_before(numbers: AnyArray) -> int:
    """Arrivals at meetings before the present call."""
    return int(numbers[_BEFORE])


@compiled
def rows_of(numbers: AnyArray) -> int:
    """Rows of the present call."""
    return int(numbers[_ROWS])


@compiled
def wanted_of(numbers: AnyArray) -> int:
    """Rows of the present call whose logits are wanted."""
    return int(numbers[_WANTED])


@compiled
def dismiss(numbers: AnyArray, thread: int) -> None:
    """Tell a thread to leave."""
    atomic_store(numbers, _STATES + thread * APART, _LEAVING)
