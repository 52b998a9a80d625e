"""What the machine is: its processor, caches, memory and GPU, as the system describes them."""

from __future__ import annotations

import os
import platform
from dataclasses import dataclass
from pathlib import Path

from firsthand import resources
from firsthand.llm.kernels.memory_hierarchy.hierarchy import cpu_levels

SYSTEM = Path("/")
# Instruction sets that the stack's loops gain from, by their names in /proc/cpuinfo.
_SIMD = {
    "sse4_2": "SSE4.2",
    "avx": "AVX",
    "fma": "FMA",
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX512-VNNI",
    "avx512_bf16": "AVX512-BF16",
    "amx_int8": "AMX-INT8",
    "amx_bf16": "AMX-BF16",
    "asimd": "NEON",
    "asimddp": "NEON-DOTPROD",
    "i8mm": "I8MM",
    "bf16": "BF16",
    "sve": "SVE",
}
# How far the memory of one machine may differ from one start of its system to the next.
_SAME_MEMORY = 0.05


@dataclass(frozen=True)
class Level:
    """A memory: a cache, or DRAM.

    Attributes:
        name: "L1", "L2", "L3" or "DRAM".
        size: bytes of one such cache; of DRAM, the RAM.
        cores: how many share one; 0 is all.
    """

    name: str
    size: int
    cores: int = 0

    def total(self, cores: int) -> int:
        """Bytes of all such caches that so many cores have together."""
        return self.size * (-(-cores // self.cores) if self.cores else 1)


@dataclass(frozen=True)
class GraphicsCard:
    """A GPU that PyTorch can use.

    Attributes:
        name: its own.
        memory: bytes.
        capability: compute capability, such as "9.0".
        multiprocessors: how many.
        levels: its caches, innermost first.
    """

    name: str
    memory: int
    capability: str
    multiprocessors: int
    levels: tuple[Level, ...] = ()


@dataclass(frozen=True)
class Processor:
    """The machine as one process sees it.

    Attributes:
        model: name of the CPU.
        cores: that this process keeps busy at most.
        machine_cores: that the machine has.
        quota: cores' worth of time that the control groups allow; None without a limit.
        simd: instruction sets that matter here; empty where the system does not say.
        caches: data caches, innermost first; empty where the system does not say.
        memory: bytes of RAM that this process may use; 0 if unknown.
        machine_memory: bytes of RAM of the machine; 0 if unknown.
        gpu: the first that PyTorch can use, or None.
        system, architecture: such as "Linux" and "x86_64".
    """

    model: str
    cores: int
    machine_cores: int
    quota: float | None
    simd: tuple[str, ...]
    caches: tuple[Level, ...]
    memory: int
    machine_memory: int
    gpu: GraphicsCard | None = None
    system: str = ""
    architecture: str = ""

    @property
    def lacks_avx2(self) -> bool:
        """Whether it is an x86 without the SIMD that the compiled loops are made for."""
        x86 = self.architecture.lower() in ("x86_64", "amd64", "i686")
        return x86 and "AVX2" not in self.simd

    @property
    def levels(self) -> tuple[Level, ...]:
        """The caches and, behind them, DRAM."""
        return (*self.caches, Level("DRAM", self.memory))

    def same_machine(self, other: Processor) -> bool:
        """Whether what was measured on the other holds here: equal, but for a little memory."""
        near = abs(self.memory - other.memory) <= _SAME_MEMORY * max(self.memory, other.memory)
        return near and all(
            getattr(self, name) == getattr(other, name)
            for name in (
                "model",
                "cores",
                "quota",
                "simd",
                "caches",
                "gpu",
                "system",
                "architecture",
            )
        )


def read_processor(root: Path = SYSTEM) -> Processor:
    """Describe this machine. What the system does not say is empty, 0 or None.

    Args:
        root: where /proc and /sys are found.
    """
    info = _cpu_info(root)
    flags = info.get("flags", info.get("features", "")).split()
    return Processor(
        model=info.get("model name") or platform.processor() or platform.machine() or "unknown",
        cores=resources.usable_cores(root),
        machine_cores=_machine_cores(root),
        quota=resources.core_quota(root),
        simd=tuple(name for flag, name in _SIMD.items() if flag in flags),
        caches=tuple(
            Level(level.name, level.size, _processors(level.cpus))
            for level in cpu_levels(root / "sys/devices/system/cpu/cpu0/cache")
        ),
        memory=resources.usable_memory(root),
        machine_memory=resources.total_memory(root),
        gpu=read_gpu(),
        system=platform.system(),
        architecture=platform.machine(),
    )


def read_gpu() -> GraphicsCard | None:
    """The first GPU that PyTorch can use, or None."""
    import torch

    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(0)
    cache = int(getattr(found, "L2_cache_size", 0))
    return GraphicsCard(
        name=str(found.name),
        memory=int(found.total_memory),
        capability=f"{found.major}.{found.minor}",
        multiprocessors=int(found.multi_processor_count),
        levels=(Level("L2", cache),) if cache else (),
    )


def _cpu_info(root: Path) -> dict[str, str]:
    """The fields of the first processor, in lower case."""
    found: dict[str, str] = {}
    for line in resources.read(root / "proc/cpuinfo").splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip().lower(), value.strip())
    return found


def _machine_cores(root: Path) -> int:
    listed = _processors(resources.read(root / "sys/devices/system/cpu/online"))
    return listed or os.cpu_count() or 1


def _processors(listed: str) -> int:
    """How many a list such as "0-3,8" names; 0 for none, or for no such list."""
    count = 0
    for part in listed.split(","):
        first, dash, last = part.partition("-")
        if not first.isdigit() or (dash and not last.isdigit()):
            return 0
        count += int(last) - int(first) + 1 if dash else 1
    return count
