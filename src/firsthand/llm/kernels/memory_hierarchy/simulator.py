"""A cache that is run: set-associative, least recently used out, write-back, write-allocate.

Each line of memory lies in one set, line number modulo sets, in any of its ways. A line that is
not there is read from memory and takes the place of the one used longest ago, which is written to
memory first if it was changed. Source: Hennessy & Patterson, "Computer Architecture", 6th edition,
appendix B.1. Real last-level caches choose sets by a hash of the address and replace by rules that
only resemble this one; prefetching changes when lines come, hardly how many.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from firsthand.llm.kernels.compiling import compiled, inlined
from firsthand.llm.kernels.ladder import AnyArray
from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.hierarchy import CacheLevel
from firsthand.llm.kernels.memory_hierarchy.traffic import Traffic

# How a line is used: read; changed in part, so it has to be there; or written whole, which a GPU
# and a streaming store do without reading it first.
READ, CHANGE, FILL = 0, 1, 2
# What one simulation may take, in places looked at: half a minute or so.
MOST_LOOKS = 2 * 10**10
_EMPTY = -1
_READ, _WRITTEN, _TOUCHES = range(3)


class Cache:
    """The state of one cache and what has moved since it was empty."""

    def __init__(self, level: CacheLevel) -> None:
        self.level = level
        # A set's lines, most recently used first, each as 2 · number + changed.
        self._entries = np.full((level.sets, level.ways or level.lines), _EMPTY, np.int64)
        self._counts = np.zeros(3, np.int64)

    def access(self, lines: AnyArray, modes: AnyArray) -> None:
        """Use lines one after the other.

        Args:
            lines: their numbers, integers from 0.
            modes: READ, CHANGE or FILL for each.
        Raises:
            TrafficError: not as many modes as lines, a negative line, an unknown mode.
        """
        lines, modes = np.asarray(lines, np.int64), np.asarray(modes, np.int64)
        if lines.ndim != 1 or lines.shape != modes.shape:
            raise TrafficError(f"lines {lines.shape} and modes {modes.shape} are two equal lists")
        if len(lines) and (lines.min() < 0 or modes.min() < READ or modes.max() > FILL):
            raise TrafficError("lines count from 0, and a mode is READ, CHANGE or FILL")
        self.run(_each, lines, modes)

    def run(self, loop: Callable[..., None], *arguments: Any) -> None:
        """Run a compiled loop (entries, counts, line bytes, ...) that uses lines by `touch`."""
        loop(self._entries, self._counts, self.level.line, *arguments)

    @property
    def touches(self) -> int:
        """Uses of a line, found or not."""
        return int(self._counts[_TOUCHES])

    @property
    def traffic(self) -> Traffic:
        """Bytes read so far, and bytes written once all that is changed has been written back."""
        changed = int(((self._entries >= 0) & (self._entries % 2 == 1)).sum())
        read, written = int(self._counts[_READ]), int(self._counts[_WRITTEN]) + changed
        return Traffic(read * self.level.line, written * self.level.line)


def bounded(touches: float, level: CacheLevel) -> None:
    """Raise a TrafficError if so many uses of lines take too long to run.

    A line is looked for in all the ways of its set.
    """
    ways = level.ways or level.lines
    if touches * (ways + 4) > MOST_LOOKS:
        raise TrafficError(
            f"the simulation would use {touches:.1e} lines of a cache of {ways} ways, too much to "
            f"run; {MOST_LOOKS / (ways + 4):.0e} are the most"
        )


@inlined
def touch_line(entries: AnyArray, counts: AnyArray, number: int, mode: int) -> None:
    """Use one line."""
    ways = entries.shape[1]
    place = number % entries.shape[0]
    counts[_TOUCHES] += 1
    found = 0
    while found < ways and entries[place, found] >> 1 != number:
        found += 1
    if found < ways:
        entry = entries[place, found]
    else:
        found = ways - 1
        oldest = entries[place, found]
        if oldest >= 0 and oldest & 1:
            counts[_WRITTEN] += 1
        if mode != FILL:
            counts[_READ] += 1
        entry = number << 1
    if mode != READ:
        entry |= 1
    for way in range(found, 0, -1):
        entries[place, way] = entries[place, way - 1]
    entries[place, 0] = entry


@inlined
def touch(entries: AnyArray, counts: AnyArray, line: int, start: int, size: int, mode: int) -> None:
    """Use the lines of `size` bytes from the byte `start`."""
    for number in range(start // line, (start + size + line - 1) // line):
        touch_line(entries, counts, number, mode)


@compiled
def _each(
    entries: AnyArray, counts: AnyArray, line: int, numbers: AnyArray, modes: AnyArray
) -> None:
    for i in range(len(numbers)):
        touch_line(entries, counts, numbers[i], modes[i])
