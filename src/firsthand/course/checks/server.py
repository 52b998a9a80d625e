"""The warm server: holds what is slow to import, and forks a fresh child for every job.

It runs none of the learner's code itself. It reads the child's frames and output, keeps the time,
ends the child with all it has started, and says how it ended. It leaves when its client does.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import secrets
import select
import signal
import socket
import struct
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from firsthand.course.checks import child, isolation
from firsthand.course.checks.child import Job
from firsthand.course.checks.requests import RunStatus
from firsthand.course.checks.values import MalformedValue, decode

FRAME = struct.Struct(">QQ")  # bytes of the JSON header, bytes of the blobs after it
GRACE_SECONDS = 0.5  # from the alarm inside the child to its end from outside
PRINTED_BYTES = 2000
REPORT_BYTES = 1 << 28
_STOPS = frozenset(status for status in RunStatus if status is not RunStatus.FINISHED)


class ClientGone(Exception):
    """The client closed its end; the server has nothing left to do."""


def send_frame(connection: socket.socket, header: dict[str, Any], blobs: list[bytes]) -> None:
    """Write one frame: a JSON object and the blobs, whose lengths are added to it as 'lengths'."""
    text = json.dumps(header | {"lengths": [len(blob) for blob in blobs]}).encode()
    body = b"".join(blobs)
    connection.sendall(FRAME.pack(len(text), len(body)) + text)
    connection.sendall(body)


def receive_frame(
    receive: Callable[[int], bytes],
) -> tuple[dict[str, Any], list[bytes]]:
    """Read one frame. receive(n): exactly n bytes, or an exception."""
    text_size, body_size = FRAME.unpack(receive(FRAME.size))
    header = json.loads(receive(text_size))
    body = memoryview(receive(body_size))
    blobs, start = [], 0
    for length in header.pop("lengths"):
        blobs.append(bytes(body[start : start + length]))
        start += length
    return header, blobs


def serve(connection: socket.socket, preload: list[str], threads: int) -> None:
    """Answer jobs until the client leaves. Runs in a process of its own; returns when done."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def receive(size: int) -> bytes:
        pieces, left = [], size
        while left:
            piece = connection.recv(min(left, 1 << 20))
            if not piece:
                raise ClientGone
            pieces.append(piece)
            left -= len(piece)
        return b"".join(pieces)

    try:
        for name in preload:
            importlib.import_module(name)
        isolation.available()
        isolation.harden_server()
        sys.dont_write_bytecode = True
        _freeze()
        send_frame(connection, {"ready": True}, [])
        while True:
            header, blobs = receive_frame(receive)
            _answer(connection, header, blobs, threads)
    except (ClientGone, BrokenPipeError, ConnectionResetError):
        return


def _freeze() -> None:
    """Move what lives to where a child's collector does not touch it: its pages stay shared."""
    gc.collect()
    gc.freeze()


def _answer(
    connection: socket.socket, header: dict[str, Any], blobs: list[bytes], threads: int
) -> None:
    try:
        job = Job.from_json(header)
        driver = _driver(job)
    except Exception as error:
        text = traceback.format_exc()[-2000:]
        message = f"the session cannot be loaded: {type(error).__name__}: {error}\n{text}"
        send_frame(connection, {"started": False, "message": message}, [])
        return
    send_frame(connection, {"started": True}, [])
    report = _Watch(connection, job, blobs, driver, threads).run()
    send_frame(connection, *report)


def _driver(job: Job) -> Callable[..., Any] | None:
    """The driver. Its module and the reference's are imported on first use and stay warm."""
    names = [f"{job.stack}.{job.module}", *([job.session_module] if job.session_module else [])]
    fresh = [name for name in names if name not in sys.modules]
    for name in fresh:
        importlib.import_module(name)
    if fresh:
        _freeze()
    if job.session_module is None or job.driver is None:
        return None
    driver: Callable[..., Any] = getattr(sys.modules[job.session_module], job.driver)
    return driver


@dataclass
class _Received:
    """What has arrived from the child so far."""

    pending: bytearray = field(default_factory=bytearray)
    results: list[bytes] = field(default_factory=list)
    loaded: dict[str, Any] | None = None
    seconds: float | None = None
    final: dict[str, Any] | None = None
    stop: dict[str, Any] | None = None
    size: int = 0
    printed: bytearray = field(default_factory=bytearray)
    output_size: int = 0

    @property
    def ended(self) -> bool:
        return self.final is not None or self.stop is not None


class _Foreign(Exception):
    """The channel carried what the child's reporter cannot have written."""


class _Watch:
    """One child from its fork to its end."""

    def __init__(
        self,
        connection: socket.socket,
        job: Job,
        blobs: list[bytes],
        driver: Callable[..., Any] | None,
        threads: int,
    ) -> None:
        self._connection, self._job, self._blobs, self._driver = connection, job, blobs, driver
        self._threads = threads
        self._nonce = secrets.token_bytes(child.NONCE_BYTES)
        self._got = _Received()

    def run(self) -> tuple[dict[str, Any], list[bytes]]:
        """(header, encoded results) of the reply."""
        begin = time.monotonic()
        # A pipe could be opened again for reading through /proc, and the nonce read from it.
        channel, channel_end = (end.detach() for end in socket.socketpair())
        output, output_end = os.pipe()
        pid = os.fork()
        if pid == 0:
            self._become_child(channel_end, output_end)
        os.close(channel_end)
        os.close(output_end)
        try:
            os.set_blocking(channel, False)
            os.set_blocking(output, False)
            deadline = begin + self._job.limits.seconds + GRACE_SECONDS
            cause = self._follow(channel, output, deadline)
            code = _end(pid, patient=cause is None and not self._got.ended)
            self._read_output(output)
        except ClientGone:
            _end(pid, patient=False)
            raise
        finally:
            os.close(channel)
            os.close(output)
        status, message = cause or self._conclude(code)
        return self._reply(status, message, time.monotonic() - begin), self._got.results

    def _become_child(self, channel: int, output: int) -> None:
        try:
            os.setsid()
            for number in (signal.SIGINT, signal.SIGALRM, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDONLY)
            high = 200 + secrets.randbelow(600)
            os.dup2(channel, high, inheritable=False)
            for source, standard in ((null, 0), (output, 1), (output, 2)):
                os.dup2(source, standard)
            os.closerange(3, high)
            os.closerange(high + 1, 1 << 16)
            for name, descriptor in (("stdout", 1), ("stderr", 2)):
                stream = open(  # noqa: SIM115 - stands until the process ends
                    descriptor, "w", buffering=1, encoding="utf-8", errors="backslashreplace"
                )
                setattr(sys, name, stream)
                setattr(sys, f"__{name}__", stream)
            sys.stdin = sys.__stdin__ = open(0, encoding="utf-8")  # type: ignore[misc] # noqa: SIM115
            nonce, self._nonce = self._nonce, b""
            child.run(
                self._job,
                self._blobs,
                self._driver,
                high,
                nonce,
                server=os.getppid(),
                threads=self._threads,
            )
        finally:
            os._exit(71)

    # ----------------------------------------------------------------- following

    def _follow(self, channel: int, output: int, deadline: float) -> tuple[RunStatus, str] | None:
        """Read until the last frame, the channel's end or a limit; the reason if it is a limit."""
        poll = select.poll()
        events = select.POLLIN | select.POLLHUP
        for descriptor in (channel, output, self._connection.fileno()):
            poll.register(descriptor, events)
        while True:
            left = deadline - time.monotonic()
            if left <= 0:
                message = f"still running after {self._job.limits.seconds:g} s, {self._where()}"
                return RunStatus.TIME, message
            for descriptor, _ in poll.poll(left * 1000 + 1):
                if descriptor == output:
                    if not self._read_output(output):
                        poll.unregister(output)
                    if self._got.output_size > self._job.limits.output_bytes:
                        most = self._job.limits.output_bytes
                        return (
                            RunStatus.OUTPUT,
                            f"printed more than {most:,} bytes, {self._where()}",
                        )
                elif descriptor == channel:
                    try:
                        open_still = self._read_channel(channel)
                    except _Foreign as error:
                        return RunStatus.CRASHED, f"the result channel was disturbed: {error}"
                    if self._got.ended or not open_still:
                        return None
                elif not self._connection.recv(1, socket.MSG_PEEK):
                    raise ClientGone

    def _read_output(self, output: int) -> bool:
        """Take what is there; False at the end of the stream."""
        got = self._got
        while got.output_size <= self._job.limits.output_bytes:
            try:
                piece = os.read(output, 1 << 16)
            except BlockingIOError:
                return True
            if not piece:
                return False
            got.output_size += len(piece)
            got.printed += piece[: PRINTED_BYTES - len(got.printed)]
        return True

    def _read_channel(self, channel: int) -> bool:
        """Take the frames that are there; False at the end of the stream."""
        try:
            while piece := os.read(channel, 1 << 18):
                self._got.pending += piece
                self._take_frames()
                if self._got.ended:
                    return True
        except BlockingIOError:
            return True
        except ConnectionResetError:
            return False
        return False

    def _take_frames(self) -> None:
        got, prefix = self._got, child.NONCE_BYTES + child.HEADER.size
        while len(got.pending) >= prefix:
            nonce = bytes(got.pending[: child.NONCE_BYTES])
            if not secrets.compare_digest(nonce, self._nonce):
                raise _Foreign("it carried data that the checker did not write")
            kind, size = child.HEADER.unpack(got.pending[child.NONCE_BYTES : prefix])
            if size > REPORT_BYTES - got.size:
                raise _Foreign(f"the results are larger than {REPORT_BYTES >> 20} MB")
            if len(got.pending) < prefix + size:
                return
            payload = bytes(got.pending[prefix : prefix + size])
            del got.pending[: prefix + size]
            got.size += size
            self._take(kind, payload)

    def _take(self, kind: bytes, payload: bytes) -> None:
        got = self._got
        try:
            if kind == b"R" and got.loaded is not None and len(got.results) < len(self._blobs):
                got.results.append(payload)
                return
            value = decode(payload)
        except MalformedValue as error:
            raise _Foreign(str(error)) from None
        if kind == b"T" and (value is None or type(value) is float):
            got.seconds = value
        elif kind == b"S" and got.loaded is None and type(value) is dict:
            got.loaded = value
        elif kind == b"X" and type(value) is dict and value.get("status") in _STOPS:
            got.stop = value
        elif kind == b"F" and type(value) is dict and len(got.results) == len(self._blobs):
            got.final = value
        else:
            raise _Foreign(f"a frame of kind {kind!r} was not due")

    # ----------------------------------------------------------------- the end

    def _where(self) -> str:
        if self._got.loaded is None:
            return "while the file was imported"
        done, count = len(self._got.results), len(self._blobs)
        return f"in call {done + 1} of {count}" if done < count else "after the last call"

    def _conclude(self, code: int | None) -> tuple[RunStatus, str]:
        got = self._got
        if got.stop is not None:
            return RunStatus(got.stop["status"]), str(got.stop.get("message", ""))
        if got.final is not None and not got.pending:
            return RunStatus.FINISHED, ""
        if code is None:
            return RunStatus.EXITED, f"the code closed the result channel, {self._where()}"
        if code >= 0:
            if code == 70:
                return RunStatus.EXITED, f"the code closed the result channel, {self._where()}"
            message = f"the code ended the process with status {code}, {self._where()}"
            return RunStatus.EXITED, message
        if -code == signal.SIGXCPU:
            return RunStatus.TIME, f"used up its processor time, {self._where()}"
        name = signal.strsignal(-code) or f"signal {-code}"
        return RunStatus.CRASHED, f"the process was ended by a signal ({name}), {self._where()}"

    def _reply(self, status: RunStatus, message: str, seconds: float) -> dict[str, Any]:
        got = self._got
        loaded, stop = got.loaded or {}, got.stop or {}
        last = got.stop or got.final or loaded
        finished = status is RunStatus.FINISHED
        return {
            "status": str(status),
            "message": message,
            "line": stop.get("line"),
            "source": stop.get("source", ""),
            "current": None if finished or got.loaded is None else self._current(),
            "signature": loaded.get("signature"),
            "used": list(last.get("used", ())),
            "printed": bytes(got.printed).decode("utf-8", "replace"),
            "seconds": seconds,
            "timed_seconds": got.seconds,
        }

    def _current(self) -> int | None:
        done = len(self._got.results)
        if done < len(self._blobs):
            return done
        return self._job.timed[0] if self._job.timed is not None else None


def _end(pid: int, *, patient: bool) -> int | None:
    """End the child and all it started: its exit code (negative: a signal), None if it was killed.

    patient: give a child that has closed its channel a moment to end by itself.
    """
    code: int | None = None
    until = time.monotonic() + (0.3 if patient else 0.0)
    while time.monotonic() < until:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            break
        time.sleep(0.001)
    for kill in (os.killpg, os.kill):  # the group first: afterwards its number may be free again
        try:
            if code is None or kill is os.killpg:
                kill(pid, signal.SIGKILL)
        except (ProcessLookupError, PermissionError):
            continue
    if code is None:
        os.waitpid(pid, 0)
    _end_strays()
    return code


def _end_strays() -> None:
    """Kill and reap what came back to this process as the adopter of orphans."""
    while True:
        try:
            done, _ = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if done == 0:
            for stray in _children():
                try:
                    os.kill(stray, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.001)


def _children() -> list[int]:
    own, found = os.getpid(), []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    parent = int(file.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            if parent == own:
                found.append(int(name))
    return found
