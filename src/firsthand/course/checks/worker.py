"""The worker: the engine's side of the isolated process that runs the learner's code.

Expected values stay here: a request carries the learner's file, the inputs and the limits, and what
comes back is decoded strictly. Whatever the code does, the answer is a `Run`.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from firsthand.course.checks import server
from firsthand.course.checks.requests import (
    Limits,
    Raised,
    Request,
    Returned,
    Run,
    RunStatus,
)
from firsthand.course.checks.values import MalformedValue, UnsendableValue, decode, encode

START_SECONDS = 120.0  # importing PyTorch on a cold disk
LOAD_SECONDS = 120.0  # importing a session's module for the first time
GRACE_SECONDS = 5.0  # beyond the limit of the run, for a machine under load

# Python code of the process. The import path is handed over, so that the folder it was started in
# does not count, and a folder named numpy in a workspace cannot stand in for NumPy.
_ENTRY = """
import json, socket, sys
settings = json.loads(sys.argv[1])
sys.path[:] = settings["path"]
from firsthand.course.checks.server import serve
serve(socket.socket(fileno=settings["descriptor"]), settings["preload"], settings["threads"])
"""
_KEPT_VARIABLES = ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "VIRTUAL_ENV")


class _Lost(Exception):
    """The server did not answer."""


class Worker:
    """An `Executor` that runs each request in a fresh fork of a warm process.

    Args:
        preload: modules to import before the first request.
        threads: how many threads numerical libraries may use.

    A context manager; `close` is also called when the object is collected and at exit. One request
    runs at a time; other threads wait.
    """

    def __init__(self, preload: tuple[str, ...] = ("numpy",), threads: int = 1) -> None:
        self._preload = preload
        self._threads = threads
        self._lock = threading.Lock()
        self._server: _Server | None = None

    def __enter__(self) -> Worker:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The process id of the warm server; None while it does not run."""
        return None if self._server is None else self._server.process.pid

    def start(self) -> None:
        """Start the warm process, if it does not run.

        Raises:
            RuntimeError: it cannot start here.
        """
        with self._lock:
            self._start()

    def close(self) -> None:
        """End the warm process and whatever it runs."""
        with self._lock:
            self._drop()

    def execute(self, request: Request) -> Run:
        """Run a request. Never raises for what the learner's code does, and always returns within
        the request's limit of seconds and a few more (the first use of a session takes longer)."""
        begin = time.monotonic()
        with self._lock:
            try:
                header, blobs = _packed(request)
                self._start()
                return self._exchange(header, blobs, request)
            except UnsendableValue as error:
                return Run(RunStatus.ENGINE, message=f"the arguments cannot be sent: {error}")
            except RuntimeError as error:
                self._drop()
                return Run(RunStatus.ENGINE, message=str(error))
            except (_Lost, OSError) as error:
                self._drop()
                message = (
                    f"the process that runs checks was lost: {error}; the next check restarts it"
                )
                return Run(RunStatus.CRASHED, message=message, seconds=time.monotonic() - begin)
            except (
                BaseException
            ):  # an interrupt: the reply that is under way must not be read later
                self._drop()
                raise

    def _start(self) -> None:
        if self._server is not None and self._server.process.poll() is not None:
            self._drop()
        if self._server is None:
            self._server = _Server(self._preload, self._threads)

    def _drop(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    def _exchange(self, header: dict[str, Any], blobs: list[bytes], request: Request) -> Run:
        assert self._server is not None
        warm = self._server
        warm.send(header, blobs, LOAD_SECONDS)
        started, _ = warm.receive(LOAD_SECONDS)
        if not started.get("started"):
            return Run(RunStatus.ENGINE, message=str(started.get("message")))
        limit = request.limits.seconds + server.GRACE_SECONDS + GRACE_SECONDS
        reply, results = warm.receive(limit)
        return _run(reply, results, request)


class _Server:
    """The process and the connection to it."""

    def __init__(self, preload: tuple[str, ...], threads: int) -> None:
        if not hasattr(os, "fork"):
            raise RuntimeError("checks run in forked processes; this system has none (use Linux)")
        ours, theirs = socket.socketpair()
        settings = {
            "path": [os.path.abspath(entry) for entry in sys.path if entry],
            "descriptor": theirs.fileno(),
            "preload": list(preload),
            "threads": threads,
        }
        self.connection = ours
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed with the process
        with theirs:
            self.process = subprocess.Popen(
                [sys.executable, "-c", _ENTRY, json.dumps(settings)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
                pass_fds=(theirs.fileno(),),
                env=_environment(threads),
                start_new_session=True,
            )
        self._finalizer = weakref.finalize(self, _end, self.process, ours, self._errors)
        try:
            self.receive(START_SECONDS)
        except (_Lost, OSError) as error:
            text = self._error_text() or str(error)
            self.close()
            raise RuntimeError(f"the process that runs checks does not start: {text}") from None

    def close(self) -> None:
        self._finalizer()

    def send(self, header: dict[str, Any], blobs: list[bytes], seconds: float) -> None:
        self.connection.settimeout(seconds)
        try:
            server.send_frame(self.connection, header, blobs)
        except TimeoutError:
            raise _Lost("it does not take the request") from None

    def receive(self, seconds: float) -> tuple[dict[str, Any], list[bytes]]:
        """One frame, whole before the deadline."""
        deadline = time.monotonic() + seconds

        def exactly(size: int) -> bytes:
            data = bytearray()
            while len(data) < size:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise _Lost(f"no answer in {seconds:g} s")
                self.connection.settimeout(left)
                try:
                    piece = self.connection.recv(min(size - len(data), 1 << 20))
                except TimeoutError:
                    continue
                if not piece:
                    raise _Lost(self._error_text() or "it ended")
                data += piece
            return bytes(data)

        return server.receive_frame(exactly)

    def _error_text(self) -> str:
        """The last line that the process wrote to its standard error."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""


def _end(process: subprocess.Popen[bytes], connection: socket.socket, errors: IO[bytes]) -> None:
    connection.close()  # the server ends its child and leaves when it sees this
    try:
        process.wait(2.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    errors.close()


def _environment(threads: int) -> dict[str, str]:
    """A clean environment: no credentials, no Python settings of the user."""
    kept = {name: os.environ[name] for name in _KEPT_VARIABLES if name in os.environ}
    return kept | {
        "LC_ALL": "C.UTF-8",
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONHASHSEED": "0",
        "OMP_NUM_THREADS": str(threads),
        "OPENBLAS_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
    }


def _packed(request: Request) -> tuple[dict[str, Any], list[bytes]]:
    blobs = [encode(tuple(arguments), opaque=False) for arguments in request.calls]
    header = {
        "workspace": str(Path(request.workspace).absolute()),
        "stack": request.stack,
        "module": request.module,
        "name": request.name,
        "session_module": request.session_module,
        "driver": request.driver,
        "file": None if request.file is None else str(Path(request.file).absolute()),
        "references": list(request.references),
        "forbids": list(request.forbids),
        "measure_layout": request.measure_layout,
        "timed": None if request.timed is None else list(request.timed),
        "reference": request.reference,
        "limits": asdict(request.limits),
    }
    return header, blobs


def _run(reply: dict[str, Any], results: list[bytes], request: Request) -> Run:
    try:
        decoded = [_result(payload) for payload in results]
    except (MalformedValue, KeyError, TypeError, AttributeError) as error:
        return Run(RunStatus.CRASHED, message=f"the results cannot be read: {error}")
    seconds = reply["timed_seconds"]
    if request.timed is not None and seconds is not None and request.timed[0] < len(decoded):
        timed = decoded[request.timed[0]]
        if isinstance(timed, Returned):
            decoded[request.timed[0]] = Returned(**(vars(timed) | {"seconds": seconds}))
    return Run(
        status=RunStatus(reply["status"]),
        results=tuple(decoded),
        message=reply["message"],
        line=reply["line"],
        source=reply["source"],
        current=reply["current"],
        signature=reply["signature"],
        used=tuple(reply["used"]),
        printed=reply["printed"],
        seconds=reply["seconds"],
    )


def _result(payload: bytes) -> Returned | Raised:
    report = decode(payload)
    if "raised" in report:
        return Raised(**report["raised"])
    return Returned(
        value=decode(report["value"].tobytes()),
        arguments=tuple(decode(item.tobytes()) for item in report["arguments"]),
        layout=report["layout"],
        allocated=report["allocated"],
    )


__all__ = ["Limits", "Request", "Run", "RunStatus", "Worker"]
