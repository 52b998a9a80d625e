"""The caches of a machine: how large, in lines of how many bytes, of how many ways."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from firsthand.llm.kernels.memory_hierarchy.errors import TrafficError

LINE = 64
SYSTEM = Path("/sys/devices/system/cpu/cpu0/cache")
_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30}


@dataclass(frozen=True)
class CacheLevel:
    """A cache between a processor and a larger, slower memory.

    Attributes:
        name: such as "L2".
        size: bytes.
        line: bytes that move together, a power of two.
        ways: places that a line can lie in; 0 is anywhere (fully associative).
        cpus: logical processors that share it, as the system writes them; "" if unknown.

    Raises:
        TrafficError: no whole number of sets.
    """

    name: str
    size: int
    line: int = LINE
    ways: int = 0
    cpus: str = ""

    def __post_init__(self) -> None:
        if self.line < 1 or self.line & (self.line - 1):
            raise TrafficError(f"a cache line has a power of two of bytes, not {self.line}")
        if self.ways < 0:
            raise TrafficError(f"a cache has 0 ways (fully associative) or more, not {self.ways}")
        each = self.line * max(1, self.ways)
        if self.size < each or self.size % each:
            raise TrafficError(
                f"{self.name} has {self.size} bytes; it takes a multiple of {each}, which is "
                f"{max(1, self.ways)} lines of {self.line}"
            )

    @property
    def lines(self) -> int:
        """How many lines it holds."""
        return self.size // self.line

    @property
    def sets(self) -> int:
        """How many groups of `ways` lines; 1 where a line can lie anywhere."""
        return self.lines // self.ways if self.ways else 1


def cpu_levels(folder: Path = SYSTEM) -> tuple[CacheLevel, ...]:
    """The data caches of the first processor, innermost first, as Linux describes them.

    Empty where it describes none: other systems, and some virtual machines and containers. What a
    virtual machine describes is its host's choice, and other guests may share the last level.

    Source: Linux, Documentation/ABI/testing/sysfs-devices-system-cpu, cache/index*.
    """
    levels = []
    for entry in sorted(folder.glob("index*")):
        try:
            level = _level(entry)
        except (OSError, ValueError):
            continue
        if level is not None:
            levels.append(level)
    return tuple(sorted(levels, key=lambda level: level.size))


def last_level(folder: Path = SYSTEM) -> CacheLevel | None:
    """The outermost cache of the first processor, or None where it cannot be read."""
    levels = cpu_levels(folder)
    return levels[-1] if levels else None


def gpu_levels() -> tuple[CacheLevel, ...]:
    """SRAM of a multiprocessor and the L2 cache of the first GPU that PyTorch sees, if any.

    Its SRAM holds what a program puts there, line by line as it likes: fully associative.
    """
    import torch

    if not torch.cuda.is_available():
        return ()
    found = torch.cuda.get_device_properties(0)
    sizes = (
        ("SRAM", getattr(found, "shared_memory_per_multiprocessor", 0)),
        ("L2", getattr(found, "L2_cache_size", 0)),
    )
    return tuple(CacheLevel(name, size // LINE * LINE) for name, size in sizes if size >= LINE)


def bytes_of(text: str) -> int:
    """Bytes from "262144", "256K", "256 KiB" or "1MB"; each unit is a power of 1024.

    Raises:
        TrafficError: none of these, or no byte.
    """
    match = re.fullmatch(r"\s*(\d+)\s*([KMG]?)(?:i?B)?\s*", text, re.IGNORECASE)
    size = int(match[1]) * _UNITS[match[2].upper()] if match else 0
    if size < 1:
        raise TrafficError(f"a size is written as 262144, 256K or 1M; this is {text!r}")
    return size


def _level(entry: Path) -> CacheLevel | None:
    def read(name: str) -> str:
        return (entry / name).read_text(encoding="ascii").strip()

    if read("type") == "Instruction":
        return None
    ways = int(read("ways_of_associativity"))
    cpus = read("shared_cpu_list") if (entry / "shared_cpu_list").exists() else ""
    return CacheLevel(
        f"L{int(read('level'))}",
        bytes_of(read("size")),
        int(read("coherency_line_size")),
        ways,
        cpus,
    )
