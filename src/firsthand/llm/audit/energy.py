"""Joules of a token, where the machine tells them.

Linux shows the energy counters of Intel's and AMD's processors (RAPL) under /sys/class/powercap,
one folder for each package: microjoules since some moment, from 0 again behind max_energy_range_uj.
They count all that the package does, other programs too. Most virtual machines have none, and many
systems let only root read them. A GPU tells its present power.

Source: Linux, Documentation/power/powercap/powercap.rst.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from firsthand.llm.audit.errors import AuditError

POWERCAP = Path("/sys/class/powercap")
_MICRO, _MILLI = 1e-6, 1e-3
# Seconds between two looks at a GPU's power.
_BETWEEN = 0.05


@dataclass(frozen=True)
class Energy:
    """What a token took.

    Attributes:
        name: of the engine, as `Waterfall.name`.
        joules: a token.
        watts: meanwhile, on average.
        idle_watts: just before, with nothing of ours running.
        source: which counter.
    """

    name: str
    joules: float
    watts: float
    idle_watts: float
    source: str

    def to_json(self) -> dict[str, Any]:
        """The fields."""
        return asdict(self)


class PackageCounters:
    """The energy counters of the processor's packages.

    Args:
        folder: where the system shows them.
    Raises:
        AuditError: there is none that can be read; says why.
    """

    def __init__(self, folder: Path = POWERCAP) -> None:
        zones = sorted(folder.glob("intel-rapl:*")) if folder.is_dir() else []
        # A zone of a zone (a core's, the memory's) is counted in its package or is none of it.
        self._zones = [zone for zone in zones if zone.name.count(":") == 1]
        if not self._zones:
            raise AuditError("this machine does not tell the energy of its processor")
        try:
            self._ranges = [_number(zone / "max_energy_range_uj") for zone in self._zones]
            self.read()
        except PermissionError as error:
            raise AuditError(
                "the energy of the processor may be read by root alone on this machine"
            ) from error
        except (OSError, ValueError) as error:
            raise AuditError("this machine does not tell the energy of its processor") from error

    def read(self) -> list[int]:
        """Microjoules of each package."""
        return [_number(zone / "energy_uj") for zone in self._zones]

    def joules(self, before: list[int], after: list[int]) -> float:
        """Between two readings, less than one turn of the counters apart."""
        return _MICRO * sum(
            new - old if new >= old else new + turn - old
            for old, new, turn in zip(before, after, self._ranges, strict=True)
        )


def processor_energy(
    name: str,
    token: Callable[[], object],
    *,
    seconds: float = 2.0,
    folder: Path = POWERCAP,
) -> Energy:
    """The energy of a token by the processor's counters.

    Args:
        name: of the engine.
        token: makes one.
        seconds: to make tokens for; half as long nothing is done before.
        folder: of the counters.
    Raises:
        AuditError: the machine does not tell.
    """
    counters = PackageCounters(folder)
    before, began = counters.read(), time.perf_counter()
    time.sleep(seconds / 2)
    idle = counters.joules(before, counters.read()) / (time.perf_counter() - began)
    before, began, made = counters.read(), time.perf_counter(), 0
    while made == 0 or time.perf_counter() - began < seconds:
        token()
        made += 1
    spent = time.perf_counter() - began
    joules = counters.joules(before, counters.read())
    return Energy(name, joules / made, joules / spent, idle, "RAPL")


def gpu_energy(name: str, token: Callable[[], object], *, seconds: float = 2.0) -> Energy:
    """The energy of a token by the power that the GPU says it draws.

    Args:
        name, token, seconds: as `processor_energy`.
    Raises:
        AuditError: the machine does not tell.
    """
    power = _power_source()
    watts, over = [power()], threading.Event()

    def watch() -> None:
        while not over.wait(_BETWEEN):
            watts.append(power())

    watcher = threading.Thread(target=watch, daemon=True)
    began, made = time.perf_counter(), 0
    watcher.start()
    try:
        while made == 0 or time.perf_counter() - began < seconds:
            token()
            made += 1
        spent = time.perf_counter() - began
    finally:
        over.set()
        watcher.join()
    # The first was taken before there was work.
    during = watts[1:] or watts
    mean = sum(during) / len(during)
    return Energy(name, mean * spent / made, mean, watts[0], "NVML")


def _power_source() -> Callable[[], float]:
    """What gives the GPU's watts: PyTorch by NVML, else the driver's own program."""
    for source in (_by_torch, _by_program):
        try:
            source()
            return source
        except (RuntimeError, ImportError, AssertionError, OSError, ValueError):
            continue
    raise AuditError("this machine does not tell the power of its GPU")


def _by_torch() -> float:
    import torch

    return _MILLI * torch.cuda.power_draw()


def _by_program() -> float:
    words = ["nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits", "--id=0"]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=10, check=False)
    return float(shown.stdout)


def _number(path: Path) -> int:
    return int(path.read_text(encoding="ascii"))
