"""Sums of what the micro-batches of an update say, so that means do not depend on the cut."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from firsthand.llm.training.distributed import World


class Sums:
    """Named sums over all batches and ranks, and what they are divided by.

    Args:
        world: the ranks; all of them add the same names.
        names: that a rank has even if it never adds anything.
    """

    def __init__(self, world: World, names: Sequence[str] = ()) -> None:
        self._world = world
        self._totals: dict[str, float] = dict.fromkeys(names, 0.0)
        self._count = 0

    def add(self, sums: Mapping[str, float], count: int) -> None:
        """Add a batch: sums over so many things."""
        for name, value in sums.items():
            self._totals[name] = self._totals.get(name, 0.0) + value
        self._count += count

    def clear(self) -> None:
        """Forget everything."""
        self._totals.clear()
        self._count = 0

    def means(self) -> dict[str, float]:
        """Each sum over the number of things, of all ranks; {} when there was nothing."""
        names = sorted(self._totals)
        *totals, count = self._world.sums([*(self._totals[name] for name in names), self._count])
        if not count:
            return {}
        return {name: total / count for name, total in zip(names, totals, strict=True)}
