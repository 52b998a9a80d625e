"""The filter's program on both machines, and what holds where the kernel offers less."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from firsthand.course.checks import isolation
from firsthand.course.checks.requests import Limits

ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x00050001, 0x00050026, 0x80000000
PID = 4321
THREAD = 0x10000


def decide(
    program: list[isolation.Instruction], architecture: int, number: int, first: int = 0
) -> int:
    """Run a classic BPF program on one system call, as the kernel would."""
    data = {0: number, 4: architecture, 16: first}
    accumulator, position = 0, 0
    while True:
        code, if_true, if_false, constant = program[position]
        position += 1
        if code == 0x06:
            return constant
        if code == 0x20:
            accumulator = data[constant]
            continue
        holds = {
            0x15: accumulator == constant,
            0x35: accumulator >= constant,
            0x45: bool(accumulator & constant),
        }[code]
        position += if_true if holds else if_false


@pytest.mark.parametrize(
    ("machine", "architecture", "numbers"),
    [
        (
            "x86_64",
            0xC000003E,
            {"kill": 62, "tgkill": 234, "clone": 56, "clone3": 435, "socket": 41, "ptrace": 101}
            | {"write": 1, "exit_group": 231, "execve": 59, "prlimit64": 302, "futex": 202},
        ),
        (
            "aarch64",
            0xC00000B7,
            {"kill": 129, "tgkill": 131, "clone": 220, "clone3": 435, "socket": 198, "ptrace": 117}
            | {"write": 64, "exit_group": 94, "execve": 221, "prlimit64": 261, "futex": 98},
        ),
    ],
)
def test_the_filter_decides_as_documented(
    machine: str, architecture: int, numbers: dict[str, int]
) -> None:
    strict = isolation._seccomp_program(machine, PID, processes=0)
    expected = [
        ("write", 0, ALLOW),
        ("futex", 0, ALLOW),
        ("exit_group", 0, ALLOW),
        ("kill", PID, ALLOW),
        ("kill", 1, EPERM),
        ("kill", 0xFFFFFFFF, EPERM),
        ("tgkill", PID, ALLOW),
        ("tgkill", 1, EPERM),
        ("clone", THREAD | 0x100, ALLOW),
        ("clone", 17, EPERM),
        ("clone3", 0, ENOSYS),
        ("execve", 0, EPERM),
        ("socket", 2, EPERM),
        ("ptrace", 0, EPERM),
        ("prlimit64", 0, ALLOW),
        ("prlimit64", PID, ALLOW),
        ("prlimit64", 1, EPERM),
    ]
    for name, first, outcome in expected:
        assert decide(strict, architecture, numbers[name], first) == outcome, name
    assert decide(strict, 0x40000003, numbers["write"]) == KILL
    if machine == "x86_64":
        assert decide(strict, architecture, 0x40000000 | numbers["write"]) == ENOSYS
    lenient = isolation._seccomp_program(machine, PID, processes=2)
    for name in ("clone", "clone3", "execve"):
        assert decide(lenient, architecture, numbers[name], 17) == ALLOW
    assert decide(lenient, architecture, numbers["kill"], 1) == EPERM


def confined(act: Callable[[], object], **mechanisms: bool) -> str:
    """What `act` returns or raises in a process confined with only these mechanisms."""
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        text = "nothing"
        try:
            isolation.available = lambda: dict.fromkeys(isolation_keys, False) | mechanisms
            isolation.enter(Limits(seconds=5.0, megabytes=256), parent)
            text = str(act())
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        finally:
            os.write(writing, text.encode())
            os._exit(0)
    os.close(writing)
    with open(reading, encoding="utf-8") as stream:
        text = stream.read()
    os.waitpid(pid, 0)
    return text


isolation_keys = tuple(isolation.available())


def test_the_mechanisms_are_named() -> None:
    assert set(isolation_keys) == {"seccomp", "landlock", "subreaper", "limits"}
    assert all(type(value) is bool for value in isolation.available().values())


def test_without_seccomp_the_interpreter_refuses_processes() -> None:
    assert confined(os.fork) == "PermissionError: a check may not start processes"
    assert confined(lambda: os.system("true")).startswith("PermissionError")


def test_without_landlock_the_interpreter_refuses_to_change_files(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("text")
    refused = "PermissionError: a check may not change files"
    assert confined(lambda: kept.write_text("other")) == refused
    assert confined(lambda: kept.unlink()) == refused
    assert confined(lambda: (tmp_path / "folder").mkdir()) == refused
    assert confined(lambda: os.open(kept, os.O_RDWR)) == refused
    assert confined(kept.read_text) == "text"
    assert kept.read_text() == "text"


@pytest.mark.skipif(not isolation.available()["landlock"], reason="needs Landlock")
def test_landlock_alone_keeps_files(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    kept.write_text("text")
    for act in (lambda: kept.write_text("other"), kept.unlink, (tmp_path / "folder").mkdir):
        assert confined(act, landlock=True).startswith("PermissionError")
    assert confined(lambda: Path(os.devnull).write_text("x"), landlock=True) == "1"
    assert kept.read_text() == "text"


@pytest.mark.skipif(not isolation.available()["seccomp"], reason="needs seccomp")
def test_seccomp_alone_refuses_signals() -> None:
    assert confined(lambda: os.kill(os.getppid(), 0), seccomp=True).startswith("PermissionError")
    assert confined(lambda: os.kill(os.getppid(), 0)) == "None"


@pytest.mark.skipif(not isolation.available()["limits"], reason="needs setrlimit")
def test_the_limit_of_memory_alone_holds() -> None:
    def take() -> int:
        return len(bytearray(300 << 20))

    assert confined(take, limits=True).startswith("MemoryError")
    assert confined(take) == str(300 << 20)
