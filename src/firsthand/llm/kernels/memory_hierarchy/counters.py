"""Misses of the last-level cache, counted by the processor, where a process may read its counters.

Linux hands them out by `perf_event_open`. Virtual machines mostly have no counters at all, and
containers refuse the call; then the reason is what comes back. What is counted as a miss is the
processor's own choice: most leave out what prefetching fetched, so a count is at most what moved.

Source: Linux manual, perf_event_open(2).
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARANOID = Path("/proc/sys/kernel/perf_event_paranoid")
_CALLS = {"x86_64": 298, "aarch64": 241}
_HARDWARE, _CACHE_MISSES = 0, 3
_CACHE, _LAST_LEVEL_READ_MISS = 3, 2 | 0 << 8 | 1 << 16
_SIZE = 64
_ENABLED_AND_RUNNING_TIME = 1 | 2
# Starts disabled; this process alone, not the kernel, no hypervisor: what a user may count.
_FLAGS = 1 << 0 | 1 << 5 | 1 << 6
_ENABLE, _DISABLE, _RESET = 0x2400, 0x2401, 0x2403
_WHY = {
    errno.ENOENT: "this processor, or its virtual machine, has no such counter",
    errno.EACCES: "the system does not let this process count (perf_event_paranoid is {paranoid})",
    errno.EPERM: "the system or the container does not let this process count",
    errno.ENOSYS: "this kernel has no counters",
    errno.EOPNOTSUPP: "this processor, or its virtual machine, has no such counter",
}


@dataclass(frozen=True)
class Misses:
    """What a call missed in the last-level cache.

    Attributes:
        lines: None where nothing could be counted.
        reason: then one clause that says why.
    """

    lines: int | None
    reason: str = ""


def count_misses(call: Callable[[], object]) -> Misses:
    """Run `call` and count its last-level cache misses in this thread alone, if that is possible.

    The call runs in any case. If the processor counted only part of the time, being asked for more
    than it has counters for, the count is scaled up.
    """
    opened = _open()
    if isinstance(opened, str):
        call()
        return Misses(None, opened)
    import fcntl

    try:
        fcntl.ioctl(opened, _RESET, 0)
        fcntl.ioctl(opened, _ENABLE, 0)
        try:
            call()
        finally:
            fcntl.ioctl(opened, _DISABLE, 0)
        count, enabled, running = struct.unpack("QQQ", os.read(opened, 24))
    finally:
        os.close(opened)
    if not running:
        return Misses(None, "the counter never ran: others use all of them")
    return Misses(round(count * enabled / running))


def _open() -> int | str:
    """A file descriptor, or why there is none."""
    number = _CALLS.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return f"counters are read on Linux on x86-64 and AArch64, not on {platform.platform()}"
    library = ctypes.CDLL(None, use_errno=True)
    problem = 0
    for kind, config in ((_CACHE, _LAST_LEVEL_READ_MISS), (_HARDWARE, _CACHE_MISSES)):
        descriptor = library.syscall(number, _attributes(kind, config), 0, -1, -1, 0)
        if descriptor >= 0:
            return int(descriptor)
        problem = ctypes.get_errno()
    return _WHY.get(problem, os.strerror(problem)).format(paranoid=_paranoid())


def _attributes(kind: int, config: int) -> Any:
    """The first version of `struct perf_event_attr`, which every kernel takes."""
    fields = struct.pack("IIQQQQQ", kind, _SIZE, config, 0, 0, _ENABLED_AND_RUNNING_TIME, _FLAGS)
    return ctypes.create_string_buffer(fields, _SIZE)


def _paranoid() -> str:
    try:
        return PARANOID.read_text(encoding="ascii").strip()
    except OSError:
        return "unreadable"
