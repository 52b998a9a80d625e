"""What this machine is, read with the standard library alone: a proposal the learner confirms.

Numbers are what a process may really use: the affinity mask and the cgroup's quota limit the
cores, the cgroup's limit the memory.
"""

from __future__ import annotations

import hashlib
import platform
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firsthand.resources import read, usable_cores, usable_memory

GIB = 2**30
MIB = 2**20


@dataclass(frozen=True)
class Gpu:
    """A graphics card. memory: bytes."""

    name: str
    memory: int


@dataclass(frozen=True)
class Machine:
    """One of the learner's machines. id: stable hash. memory: bytes of RAM this process may use."""

    id: str
    name: str
    system: str
    python: str
    processor: str
    cores: int
    memory: int
    gpu: Gpu | None = None

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Machine:
        gpu = record.get("gpu")
        known = {name: record[name] for name in cls.__dataclass_fields__ if name != "gpu"}
        return cls(**known, gpu=Gpu(gpu["name"], gpu["memory"]) if gpu else None)

    @property
    def summary(self) -> str:
        """One line: '8 cores, 15.5 GiB RAM, no NVIDIA GPU (AMD Ryzen 7, Linux, Python 3.11.7)'."""
        gpu = f"{self.gpu.name} with {self.gpu.memory / GIB:.1f} GiB" if self.gpu else None
        return (
            f"{self.cores} cores, {self.memory / GIB:.1f} GiB RAM, {gpu or 'no NVIDIA GPU'}"
            f" ({self.processor}, {self.system}, Python {self.python})"
        )

    def serves(self, needs: str) -> bool:
        """Whether a session that needs 'any', 'gpu' or 'cpu' (no GPU) belongs here (F5)."""
        return needs == "any" or (needs == "gpu") == (self.gpu is not None)


def measure_machine(root: Path = Path("/")) -> Machine:
    """Read this machine. root: where /proc, /sys and /etc are found."""
    processor = _processor(root)
    return Machine(
        id=_identity(root, processor),
        name=platform.node() or "this machine",
        system=platform.system(),
        python=platform.python_version(),
        processor=processor,
        cores=usable_cores(root),
        memory=usable_memory(root),
        gpu=_gpu(),
    )


def _identity(root: Path, processor: str) -> str:
    known = read(root / "etc/machine-id") or f"{platform.node()}|{processor}"
    return hashlib.sha256(f"firsthand machine|{known}".encode()).hexdigest()[:12]


def _processor(root: Path) -> str:
    for line in read(root / "proc/cpuinfo").splitlines():
        if line.lower().startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine() or "unknown processor"


def _gpu() -> Gpu | None:
    program = shutil.which("nvidia-smi")
    if program is None:
        return None
    query = [program, "--query-gpu=name,memory.total", "--format=csv,noheader,nounits"]
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    cards = []
    for line in answer.stdout.splitlines() if answer.returncode == 0 else ():
        name, _, mebibytes = line.rpartition(",")
        if name and mebibytes.strip().isdigit():
            cards.append(Gpu(name.strip(), int(mebibytes) * MIB))
    return max(cards, key=lambda card: card.memory, default=None)
