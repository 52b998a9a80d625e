"""Traffic of operations over whole arrays, one after the other, as NumPy and PyTorch run them.

An operation goes over its arrays side by side, from front to back, so at the share f of the way it
stands at the share f of each. An array that was used at time s and is used again at time t has
line f still in the cache if what was used in between fits, which is

- every array of the operations between, whole;
- of the arrays of operation s, the part behind f, and of those of operation t, the part before f;
  of an array in both, therefore, all of it.

This distance grows or falls linearly with f, so part of an array can be found and the rest not. A
matrix product is such an operation too, in which one factor is swept: for each block of rows of
the other factor all of it is read again, head by head.

The shares are looked at in CELLS places. Source of the distance: Mattson et al. 1970, "Evaluation
techniques for storage hierarchies".
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.ladder import AnyArray
from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError
from firsthand.llm.kernels.memory_hierarchy.hierarchy import CacheLevel
from firsthand.llm.kernels.memory_hierarchy.simulator import CHANGE, READ, Cache, bounded, touch
from firsthand.llm.kernels.memory_hierarchy.traffic import Traffic, require

CELLS = 64
Cells = NDArray[np.float64]
_SHARES: Cells = (np.arange(CELLS) + 0.5) / CELLS


@dataclass(frozen=True)
class Use:
    """What one operation does with one array.

    Attributes:
        array: a name for its place in memory; a buffer that is freed and taken again keeps it.
        size: bytes.
        written: whether it is changed. A line is read before it is, as a cache does.
        parts: a swept array comes in so many equal parts, one after the other,
        times: each of which is gone over so many times before the next. 1 and 1: not swept.
        start, end: the share of what the operation goes over that this is; `modelled` cuts arrays
            up that are used in several sizes.
    """

    array: str
    size: int
    written: bool = False
    parts: int = 1
    times: int = 1
    start: float = 0.0
    end: float = 1.0

    def first(self, share: Cells) -> Cells:
        """When, as a share of the operation, it comes to this share of the array."""
        there = self.start + share * (self.end - self.start)
        part = np.floor(there * self.parts)
        return (part + (there * self.parts - part) / self.times) / self.parts

    def last(self, share: Cells) -> Cells:
        """When it leaves this share for good."""
        return self.first(share) + (self.times - 1) / (self.times * self.parts)

    def before(self, time: Cells) -> Cells:
        """The share of the array that has been used by then."""
        part = np.floor(time * self.parts)
        there = (part + np.minimum(1.0, (time * self.parts - part) * self.times)) / self.parts
        return np.clip((there - self.start) / (self.end - self.start), 0.0, 1.0)

    def after(self, time: Cells) -> Cells:
        """The share of the array that is used from then on."""
        part = np.floor(time * self.parts)
        left = np.minimum(1.0, (1.0 - (time * self.parts - part)) * self.times)
        there = (self.parts - 1 - part + left) / self.parts
        return np.clip((there - (1.0 - self.end)) / (self.end - self.start), 0.0, 1.0)


Operation = tuple[Use, ...]
Program = Sequence[Operation]


@dataclass
class _Place:
    """What is known of an array: its last use, the operation, which cells are changed."""

    use: Use
    time: int
    changed: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(CELLS, np.bool_))


def modelled(program: Program, cache: int) -> Traffic:
    """What the operations move, and what is changed at the end written back.

    Raises:
        TrafficError: a negative cache, an array of no byte.
    """
    require(cache=cache + 1)
    places: OrderedDict[str, _Place] = OrderedDict()
    read = written = 0.0
    for time, operation in enumerate(_cut(program)):
        found = [_found(places, operation, use, time, cache) for use in operation]
        for use, here in zip(operation, found, strict=True):
            cell = use.size / CELLS
            place = places.pop(use.array, None) or _Place(use, time)
            read += cell * float((~here).sum())
            written += cell * float((place.changed & ~here).sum())
            place.changed &= here
            again = (use.times - 1) * (_back(operation, use) > cache)
            read += again * use.size
            if use.written:
                written += again * use.size
                place.changed[:] = True
            place.use, place.time = use, time
            places[use.array] = place
    written += sum(place.use.size / CELLS * place.changed.sum() for place in places.values())
    return Traffic(round(read), round(written))


def _cut(program: Program) -> Program:
    """An array that is used in several sizes becomes several, one behind the other."""
    sizes: dict[str, set[int]] = {}
    for use in (use for operation in program for use in operation):
        require(**{f"the size of {use.array}": use.size})
        sizes.setdefault(use.array, set()).add(use.size)

    def cut(use: Use) -> Iterator[Use]:
        before = 0
        for size in sorted(size for size in sizes[use.array] if size <= use.size):
            name = f"{use.array}[{before}:{size}]"
            start, end = before / use.size, size / use.size
            yield replace(use, array=name, size=size - before, start=start, end=end)
            before = size

    return [tuple(piece for use in operation for piece in cut(use)) for operation in program]


def _found(
    places: OrderedDict[str, _Place], operation: Operation, use: Use, time: int, cache: int
) -> NDArray[np.bool_]:
    """Which cells of an array are still in the cache."""
    known = places.get(use.array)
    if known is None:
        return np.zeros(CELLS, np.bool_)
    between, then = 0, []
    for place in reversed(places.values()):
        if place.time < known.time:
            break
        if place.time == known.time:
            then.append(place.use)
        else:
            between += place.use.size
    # Arrays used in between are whole in the sum already.
    now = {
        other.array: other
        for other in operation
        if other.array not in places or places[other.array].time <= known.time
    }
    around = sum(
        other.size for other in {use.array: use for use in (*then, *now.values())}.values()
    )
    if between > cache or between + around <= cache:
        return np.full(CELLS, between <= cache)
    left, back = known.use.last(_SHARES), use.first(_SHARES)
    distance = np.full(CELLS, float(between))
    for other in then:
        share = other.after(left)
        if other.array in now:
            share = np.minimum(1.0, share + now.pop(other.array).before(back))
        distance += other.size * share
    for other in now.values():
        distance += other.size * other.before(back)
    fits: NDArray[np.bool_] = distance <= cache
    return fits


def _back(operation: Operation, swept: Use) -> float:
    """Bytes between two sweeps of a part: the part, and what goes by meanwhile."""
    return sum(
        use.size / use.parts if use.times > 1 else use.size / (swept.parts * swept.times)
        for use in operation
    )


def simulated(program: Program, level: CacheLevel) -> Traffic:
    """The same operations run through a cache, line by line."""
    sizes: dict[str, int] = {}
    for use in (use for operation in program for use in operation):
        require(**{f"the size of {use.array}": use.size})
        sizes[use.array] = max(use.size, sizes.get(use.array, 0))
    starts, free = {}, 0
    for name, size in sizes.items():
        starts[name] = free
        free += -(-size // level.line) * level.line
    most = sum(use.size * use.times for operation in program for use in operation) / level.line
    bounded(most, level)
    cache = Cache(level)
    for operation in program:
        swept = {(use.parts, use.times) for use in operation if use.times > 1 or use.parts > 1}
        if len(swept) > 1:
            raise TrafficError(f"arrays of one operation are swept in one way, not in {swept}")
        parts, times = next(iter(swept), (0, 0))
        rows = [
            (
                starts[use.array],
                use.size,
                CHANGE if use.written else READ,
                use.parts * use.times > 1,
            )
            for use in operation
        ]
        cache.run(_operation, np.array(rows, np.int64), parts, times)
    return cache.traffic


def touched(program: Iterable[Operation]) -> int:
    """Bytes that the operations go over, each use once: what would move with no cache at all."""
    return sum(use.size * (1 + use.written) for operation in program for use in operation)


@compiled
def _operation(
    entries: AnyArray, counts: AnyArray, line: int, uses: AnyArray, parts: int, times: int
) -> None:
    steps = parts * times
    if steps == 0:
        for use in range(len(uses)):
            steps = max(steps, (uses[use, 1] + line - 1) // line)
    for step in range(steps):
        for use in range(len(uses)):
            start, lines, mode = uses[use, 0], (uses[use, 1] + line - 1) // line, uses[use, 2]
            if uses[use, 3]:
                part = step // times
                first, last = lines * part // parts, lines * (part + 1) // parts
            else:
                first, last = lines * step // steps, lines * (step + 1) // steps
            touch(entries, counts, line, start + first * line, (last - first) * line, mode)
