"""Bytes a second of a GPU by working set: its L2 cache, then its memory.

PyTorch's own kernels: a sum, a fill, a copy. Each is launched many times before the clock is read,
and the time of a launch is in it, so that small working sets would show that instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch

from firsthand.llm.audit.bandwidth import BEYOND, KINDS, bandwidths_of
from firsthand.llm.audit.processor import GraphicsCard
from firsthand.llm.audit.records import Bandwidths
from firsthand.llm.kernels.ceilings import seconds_of

# Where the GPU does not say how large its cache is.
_UNKNOWN_CACHE = 1 << 25
_LEAST_MEMORY = 1 << 30
_SHARE = 0.25
_RUN_SECONDS = 5e-3
_RUNS = 3


def gpu_working_sets(card: GraphicsCard, free: int) -> list[int]:
    """From a quarter of the last cache to well beyond it, doubling; at most a quarter of `free`."""
    cache = max((level.size for level in card.levels), default=_UNKNOWN_CACHE)
    wanted, most = max(BEYOND * cache, _LEAST_MEMORY), free * _SHARE
    sizes = [cache // 4]
    while sizes[-1] < wanted and 2 * sizes[-1] <= most:
        sizes.append(2 * sizes[-1])
    return sizes


class TensorProbe:
    """The bandwidths of PyTorch's tensors on a device, by working set.

    Args:
        sizes: bytes, growing, each at least 16.
        device: "cuda", or "cpu".
    """

    def __init__(self, sizes: Sequence[int], device: str = "cuda") -> None:
        self._sizes, self._device = sizes, device
        self._whole = torch.ones(sizes[-1] // 8, dtype=torch.float64, device=device)
        self._total = torch.zeros((), dtype=torch.float64, device=device)
        self._times: dict[tuple[int, str], list[float]] = {}

    def steps(self) -> list[Callable[[], None]]:
        """A step for each working set and kind."""
        return [partial(self._measure, size, kind) for size in self._sizes for kind in KINDS]

    def result(self) -> tuple[Bandwidths, ...]:
        """One record for each working set; each step was taken."""
        return tuple(
            bandwidths_of(
                size,
                {kind: self._times[size, kind] for kind in KINDS},
                dict.fromkeys(KINDS, size // 16 * 16),
            )
            for size in self._sizes
        )

    def _call(self, size: int, kind: str) -> Callable[[], object]:
        part = self._whole[: size // 16 * 2]
        if kind == "read":
            return lambda: torch.sum(part, 0, out=self._total)
        if kind == "write":
            return lambda: part.fill_(1.0)
        first, second = part.chunk(2)
        return lambda: second.copy_(first)

    def _measure(self, size: int, kind: str) -> None:
        call, times = self._call(size, kind), self._times.setdefault((size, kind), [])
        if not times:
            times += seconds_of(call, _RUNS, self._device)
        passes = math.ceil(_RUN_SECONDS / min(times))

        def many() -> None:
            for _ in range(passes):
                call()

        times += [spent / passes for spent in seconds_of(many, _RUNS, self._device)]
