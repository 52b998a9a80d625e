"""What the child may not do: the kernel's limits and sandbox, entered after the fork, never left.

On Linux a seccomp filter refuses signals to others, new processes, sockets and changed modes, and
Landlock refuses every write to a file. Where the kernel lacks one of them the rest still holds:
limits of memory, time, files and open descriptors, an audit hook in the interpreter, and the server
that kills what is left (checks/server.py). It stops accidents and casual tampering; it is no
boundary against someone who attacks the kernel.

Sources: seccomp(2), landlock(7), prctl(2), setrlimit(2); Linux kernel documentation,
"Landlock: unprivileged access control", ABI 1 to 6.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

from firsthand.course.checks.requests import Limits

try:
    import resource
except ImportError:  # pragma: no cover - Windows, where the worker cannot start anyway
    resource = None  # type: ignore[assignment]

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP = 1, 4, 22
_PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 36, 38
_SIGKILL = 9
_EPERM, _ENOSYS = 1, 38

SPARE_MEGABYTES = 64  # kept back so that a run that is out of memory can still say so
FILE_BYTES = 1 << 20
OPEN_FILES = 64

# --------------------------------------------------------------------------- seccomp

_X86_64, _AARCH64 = 0xC000003E, 0xC00000B7  # AUDIT_ARCH_*
_MACHINES = {"x86_64": _X86_64, "aarch64": _AARCH64}
# name: (x86_64, aarch64); -1 where the machine has no such call.
_ALWAYS_REFUSED: dict[str, tuple[int, int]] = {
    "tkill": (200, 130),
    "rt_sigqueueinfo": (129, 138),
    "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424),
    "pidfd_getfd": (438, 438),
    "ptrace": (101, 117),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "socket": (41, 198),
    "io_uring_setup": (425, 425),  # its operations pass no seccomp filter
    "chmod": (90, -1),
    "fchmod": (91, 52),
    "fchmodat": (268, 53),
    "fchmodat2": (452, 452),
    "chown": (92, -1),
    "lchown": (94, -1),
    "fchown": (93, 55),
    "fchownat": (260, 54),
    "utimensat": (280, 88),
    "setxattr": (188, 5),
    "removexattr": (197, 14),
    "truncate": (76, 45),
    "mount": (165, 40),
    "umount2": (166, 39),
    "pivot_root": (155, 41),
    "chroot": (161, 51),
    "reboot": (169, 142),
    "setns": (308, 268),
    "unshare": (272, 97),
    "bpf": (321, 280),
    "init_module": (175, 105),
    "finit_module": (313, 273),
    "kexec_load": (246, 104),
    "perf_event_open": (298, 241),
    "settimeofday": (164, 170),
    "clock_settime": (227, 112),
    "sethostname": (170, 161),
    "swapoff": (168, 225),
}
_PROCESS_CALLS: dict[str, tuple[int, int]] = {
    "fork": (57, -1),
    "vfork": (58, -1),
    "execve": (59, 221),
    "execveat": (322, 281),
}
_KILL, _TGKILL, _PRLIMIT64 = (62, 129), (234, 131), (302, 261)
_CLONE, _CLONE3 = (56, 220), (435, 435)
_CLONE_THREAD = 0x10000

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_SET, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL_PROCESS, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data

Instruction = tuple[int, int, int, int]  # code, jump if true, jump if false, constant


def _seccomp_program(machine: str, pid: int, processes: int) -> list[Instruction]:
    """The classic BPF filter for this process. The first rule that matches a call returns."""
    column = 0 if machine == "x86_64" else 1
    refuse: Instruction = (_RETURN, 0, 0, _ERRNO | _EPERM)
    allow: Instruction = (_RETURN, 0, 0, _ALLOW)
    first: Instruction = (_LOAD, 0, 0, _FIRST_ARGUMENT)
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, _MACHINES[machine]),
        (_RETURN, 0, 0, _KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER),
    ]
    if machine == "x86_64":  # the x32 numbers are another door to the same calls
        program += [(_JUMP_GREATER_EQUAL, 0, 1, 0x40000000), (_RETURN, 0, 0, _ERRNO | _ENOSYS)]

    def rule(number: int, *body: Instruction) -> None:
        if number >= 0:
            program.extend([(_JUMP_EQUAL, 0, len(body), number), *body])

    refused = dict(_ALWAYS_REFUSED)
    if processes == 0:
        refused |= _PROCESS_CALLS
        only_threads = (first, (_JUMP_SET, 0, 1, _CLONE_THREAD), allow, refuse)
        rule(_CLONE[column], *only_threads)
        # Its flags lie behind a pointer that a filter cannot read; libc falls back to clone.
        rule(_CLONE3[column], (_RETURN, 0, 0, _ERRNO | _ENOSYS))
    for numbers in refused.values():
        rule(numbers[column], refuse)
    to_itself = (first, (_JUMP_EQUAL, 0, 1, pid), allow, refuse)
    rule(_KILL[column], *to_itself)
    rule(_TGKILL[column], *to_itself)
    own_limits = (first, (_JUMP_EQUAL, 1, 0, 0), (_JUMP_EQUAL, 0, 1, pid), allow, refuse)
    rule(_PRLIMIT64[column], *own_limits)
    program.append(allow)
    return program


# --------------------------------------------------------------------------- Landlock

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every machine
_WRITE_FILE, _REFER, _TRUNCATE = 1 << 1, 1 << 13, 1 << 14
_CHANGES = _WRITE_FILE | sum(1 << bit for bit in range(4, 13))  # remove_dir ... make_sym
_SCOPE_SOCKETS_AND_SIGNALS = 0b11


def _landlock_attributes(abi: int) -> tuple[bytes, int]:
    """(struct landlock_ruleset_attr, handled file rights) of this ABI."""
    files = _CHANGES | (_REFER if abi >= 2 else 0) | (_TRUNCATE if abi >= 3 else 0)
    fields = [files]
    if abi >= 4:
        fields.append(0b11)  # bind and connect TCP
    if abi >= 6:
        fields.append(_SCOPE_SOCKETS_AND_SIGNALS)
    return struct.pack(f"={len(fields)}Q", *fields), files


# --------------------------------------------------------------------------- the system's calls


@cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def _call(name: str, *arguments: int | bytes | None) -> int:
    """A libc function; raises OSError when it returns a negative number."""
    wide = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    result = int(getattr(_libc(), name)(*wide))
    if result < 0:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), name)
    return result


def _landlock_abi() -> int:
    try:
        return _call("syscall", _CREATE_RULESET, None, 0, 1)
    except (OSError, AttributeError):
        return 0


def _has_seccomp() -> bool:
    if platform.machine() not in _MACHINES or sys.byteorder != "little":
        return False
    try:
        _call("prctl", _PR_SET_SECCOMP, 2, None, 0, 0)
    except OSError as error:
        return error.errno == 14  # EFAULT: the mode exists and only the program was missing
    except AttributeError:
        return False
    return False


@cache
def available() -> dict[str, bool]:
    """Which of the kernel's mechanisms this machine offers.

    Keys: 'seccomp' (calls refused), 'landlock' (files read-only), 'subreaper' (orphans return to
    the server), 'limits' (memory, CPU time, file size).
    """
    linux = sys.platform.startswith("linux")
    return {
        "seccomp": linux and _has_seccomp(),
        "landlock": linux and _landlock_abi() >= 1,
        "subreaper": linux,
        "limits": resource is not None,
    }


def harden_server() -> None:
    """In the server: adopt orphans of a child, and hide this process's memory and descriptors."""
    if available()["subreaper"]:
        _call("prctl", _PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
        _call("prctl", _PR_SET_DUMPABLE, 0, 0, 0, 0)


def enter(limits: Limits, server: int, threads: int = 1) -> None:
    """Confine this process for good. Call it in the child, before any code of the learner.

    Args:
        limits: of the run.
        server: the parent's process id; if it is gone already, this process ends too.
        threads: how many may compute at once, for the limit of CPU time.
    Raises:
        OSError: the kernel refused a mechanism that `available` reports.
    """
    mechanisms = available()
    _add_audit_hook(limits.processes, files=not mechanisms["landlock"])
    if sys.platform.startswith("linux"):
        _call("prctl", _PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
        if os.getppid() != server:
            os._exit(1)
        _call("prctl", _PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if mechanisms["limits"]:
        _set_limits(limits, threads, count_processes=not mechanisms["seccomp"])
    if mechanisms["landlock"]:
        _forbid_writes()
    if mechanisms["seccomp"]:
        _filter_calls(limits.processes)


def release_memory() -> None:
    """Open the spare memory, so that a run that used up its limit can be reported."""
    if resource is not None and sys.platform.startswith("linux"):
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))


def _set_limits(limits: Limits, threads: int, *, count_processes: bool) -> None:
    def limit(kind: int, soft: int, hard: int | None = None) -> None:
        ceiling = resource.getrlimit(kind)[1]
        wanted = soft if hard is None else hard
        if ceiling != resource.RLIM_INFINITY:
            wanted = min(wanted, ceiling)
        resource.setrlimit(kind, (min(soft, wanted), wanted))

    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_FSIZE, FILE_BYTES)
    limit(resource.RLIMIT_NOFILE, OPEN_FILES)
    seconds = int(limits.seconds * max(threads, 1)) + 2
    limit(resource.RLIMIT_CPU, seconds, seconds + 1)
    if sys.platform.startswith("linux"):
        with open("/proc/self/statm", "rb") as file:
            held = int(file.read().split()[0]) * resource.getpagesize()
        most = held + (limits.megabytes << 20)
        limit(resource.RLIMIT_AS, most, most + (SPARE_MEGABYTES << 20))
        if count_processes and os.geteuid() != 0:
            # The limit counts every task of the user, so it is what runs now and a few threads.
            limit(resource.RLIMIT_NPROC, _tasks_of_user() + 16 + limits.processes)


def _tasks_of_user() -> int:
    user, count = os.geteuid(), 0
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                if os.stat(f"/proc/{name}").st_uid == user:
                    count += len(os.listdir(f"/proc/{name}/task"))
            except OSError:
                continue
    return count


def _forbid_writes() -> None:
    attributes, files = _landlock_attributes(_landlock_abi())
    ruleset = _call("syscall", _CREATE_RULESET, attributes, len(attributes), 0)
    try:
        null = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)
        try:
            rule = struct.pack("=Qi", files & (_WRITE_FILE | _TRUNCATE), null)
            _call("syscall", _ADD_RULE, ruleset, 1, rule, 0)
        finally:
            os.close(null)
        _call("syscall", _RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _filter_calls(processes: int) -> None:
    program = _seccomp_program(platform.machine(), os.getpid(), processes)
    packed = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    header = _Program(len(program), packed)
    pointer = ctypes.cast(ctypes.byref(header), ctypes.c_void_p).value
    _call("prctl", _PR_SET_SECCOMP, 2, pointer, 0, 0)


_STARTS = frozenset(
    {
        *("os.fork", "os.forkpty", "os.exec", "os.posix_spawn", "os.spawn", "os.system"),
        *("subprocess.Popen", "pty.spawn"),
    }
)
_FILE_CHANGES = frozenset(
    {
        *("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink"),
        *("os.truncate", "os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move"),
    }
)
REFUSED_PROCESS = "a check may not start processes"


def _add_audit_hook(processes: int, *, files: bool) -> None:
    """Refuse in the interpreter, with a clear message, what the kernel refuses with a bare one."""
    left = processes
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
    starts, changes = _STARTS, _FILE_CHANGES if files else frozenset()
    refused: Callable[[str], PermissionError] = PermissionError

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if event in starts:
            if left <= 0:
                raise refused(REFUSED_PROCESS)
            if event != "os.exec":  # replaces the process, adds none
                left -= 1
        elif files and (
            event in changes
            or (
                event == "open"
                and isinstance(arguments[2], int)
                and arguments[2] & writing
                and not isinstance(arguments[0], int)
            )
        ):
            raise refused("a check may not change files")

    sys.addaudithook(hook)


def is_refused_process(error: BaseException) -> bool:
    """Whether the exception, or one it was raised from, is a refusal to start a process."""
    seen: BaseException | None = error
    for _ in range(10):
        if seen is None:
            break
        if isinstance(seen, PermissionError) and seen.args == (REFUSED_PROCESS,):
            return True
        seen = seen.__cause__ or seen.__context__
    return False
