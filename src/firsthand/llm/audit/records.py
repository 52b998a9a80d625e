"""Measured limits of one device, as records that check themselves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from firsthand.llm.audit.errors import AuditError


@dataclass(frozen=True)
class Bandwidths:
    """Bytes a second that all threads together move, over and over through the same bytes.

    Attributes:
        working_set: bytes of all threads; a copy's source and target are half each.
        read: of a sum.
        write: of plain stores. What a store has to fetch first is not counted.
        copy: bytes read plus bytes written.
        spread: how much longer the median run of the three took than the best, as a share of the
            best; the largest.
    """

    working_set: int
    read: float
    write: float
    copy: float
    spread: float = 0.0

    def __post_init__(self) -> None:
        rates = (self.read, self.write, self.copy)
        if self.working_set < 1 or not all(0 < rate < math.inf for rate in rates):
            raise AuditError(
                f"a bandwidth is above 0 and finite, of at least a byte: {self.working_set} bytes, "
                f"{self.read} read, {self.write} written, {self.copy} copied"
            )


@dataclass(frozen=True)
class DeviceCeilings:
    """What a CPU or a GPU does at most.

    Attributes:
        device: "cpu" or "cuda".
        name: of the device.
        bandwidths: by growing working set, at least one.
        flop_rates: of a large matrix product, FLOPs a second ("int8": operations, two for each
            multiplication and addition), for "float32", "bfloat16" and "int8"; what cannot run
            here is missing.
        int8_kernel_rate: operations a second of the project's own INT8 product, the shapes of a
            prefill of 512 tokens; 0 where there is none.
        region_seconds: one meeting of the CPU engine's crew on all threads; 0 on a GPU.
        launch_seconds: of one tiny operation of PyTorch; on a GPU, of launching a kernel.
        memory: bytes that can be used.
        threads: at work in the measurements; 1 on a GPU.
        int8_by: whose product `flop_rates["int8"]` is.
        overheads: seconds of other things that cost the same whatever the work, by name.
        kernel_rates: of the stack's own kernels, by name: (size, work a second) by growing size;
            see `kernel_rates`.
    """

    device: str
    name: str
    bandwidths: tuple[Bandwidths, ...]
    flop_rates: dict[str, float]
    int8_kernel_rate: float
    region_seconds: float
    launch_seconds: float
    memory: int
    threads: int
    int8_by: str = ""
    overheads: dict[str, float] = field(default_factory=dict)
    kernel_rates: dict[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.bandwidths:
            raise AuditError(f"{self.device}: there is no bandwidth")
        if any(a.working_set >= b.working_set for a, b in pairwise(self.bandwidths)):
            raise AuditError(f"{self.device}: the working sets do not grow")
        numbers = [self.int8_kernel_rate, self.region_seconds, self.launch_seconds]
        numbers += self.overheads.values()
        if not all(0 <= number < math.inf for number in numbers):
            raise AuditError(f"{self.device}: a rate or a time is below 0 or not finite")
        if not all(0 < rate < math.inf for rate in self.flop_rates.values()):
            raise AuditError(f"{self.device}: a FLOP rate is not above 0 or not finite")
        for name, points in self.kernel_rates.items():
            grow = all(a[0] < b[0] for a, b in pairwise(points))
            if not (points and grow and all(0 < rate < math.inf for _, rate in points)):
                raise AuditError(f"{self.device}: the rates of {name!r} are not of growing sizes")
        if self.memory < 0 or self.threads < 1:
            raise AuditError(f"{self.device}: {self.memory} bytes and {self.threads} threads")

    def read_bandwidth(self, working_set: int) -> float:
        """Bytes a second; between two working sets linear in the logarithm of the size.

        Below the smallest and above the largest it stays the same.
        """
        return self._interpolated("read", working_set)

    def write_bandwidth(self, working_set: int) -> float:
        """As `read_bandwidth`, for stores."""
        return self._interpolated("write", working_set)

    def copy_bandwidth(self, working_set: int) -> float:
        """As `read_bandwidth`, for copies: bytes read plus bytes written."""
        return self._interpolated("copy", working_set)

    def kernel_rate(self, name: str, size: float) -> float | None:
        """Work a second of one of the stack's kernels; None where it was not measured.

        Between two sizes as the bandwidths.
        """
        points = self.kernel_rates.get(name)
        return _between(points, size) if points else None

    def _interpolated(self, kind: str, working_set: int) -> float:
        points = [(point.working_set, getattr(point, kind)) for point in self.bandwidths]
        return _between(points, working_set)


def _between(points: Sequence[tuple[int, float]], size: float) -> float:
    """Linear in the logarithm of the size; beyond both ends as there."""
    if size <= points[0][0]:
        return points[0][1]
    for (low, below), (high, above) in pairwise(points):
        if size <= high:
            return below + math.log(size / low) / math.log(high / low) * (above - below)
    return points[-1][1]
