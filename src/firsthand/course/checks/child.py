"""The child: a fork of the warm server that runs one job of learner's code and reports over a pipe.

Each report is a frame: the job's nonce, one letter of kind, the length, an encoded value. The
learner's code is not given the nonce, so a frame that it writes to a guessed descriptor is
recognised as foreign and the run never counts as finished.

  S  the file is loaded: {'signature', 'used'}
  R  one call ended: {'raised'} or {'value', 'arguments', 'layout', 'allocated'}, where a value is
     its encoding as an array of bytes
  T  seconds of the timed call
  X  the run is stopped: {'status', 'message', 'line', 'source', 'used'}
  F  all calls ended: {'used'}
"""

from __future__ import annotations

import ast
import builtins
import difflib
import importlib
import inspect
import os
import signal
import struct
import sys
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import FrameType, ModuleType
from typing import Any, NoReturn, TypeGuard

import numpy as np

from firsthand.course.checks import calls, forbidden, imports, isolation
from firsthand.course.checks.calls import Place, Sources
from firsthand.course.checks.requests import Limits, RunStatus
from firsthand.course.checks.values import encode, type_name

globals()["__builtins__"] = dict(vars(builtins))  # see checks/values.py

HEADER = struct.Struct(">cQ")
NONCE_BYTES = 24
MESSAGE_CHARACTERS = calls.MESSAGE_CHARACTERS


@dataclass(frozen=True)
class Job:
    """A request as it reaches the child; the encoded arguments come beside it."""

    workspace: str
    stack: str
    module: str
    name: str
    session_module: str | None
    driver: str | None
    file: str | None
    references: tuple[str, ...]
    forbids: tuple[str, ...]
    measure_layout: bool
    timed: tuple[int, int] | None
    reference: bool
    limits: Limits

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Job:
        """The inverse of dataclasses.asdict, after a journey as JSON."""
        timed = record["timed"]
        return cls(
            **record
            | {
                "references": tuple(record["references"]),
                "forbids": tuple(record["forbids"]),
                "timed": None if timed is None else (int(timed[0]), int(timed[1])),
                "limits": Limits(**record["limits"]),
            }
        )


class _Stop(BaseException):
    """Ends the run with a status other than FINISHED."""

    def __init__(self, status: RunStatus, message: str, place: Place | None = None) -> None:
        self.status, self.message, self.place = status, message, place


class _Channel:
    """The writing end of the private pipe."""

    def __init__(self, descriptor: int, nonce: bytes) -> None:
        self._descriptor, self._nonce = descriptor, nonce
        self._write: Callable[[int, bytes], int] = os.write
        self._exit: Callable[[int], NoReturn] = os._exit
        self.busy = False

    def send(self, kind: bytes, payload: bytes) -> None:
        data = memoryview(self._nonce + HEADER.pack(kind, len(payload)) + payload)
        self.busy = True
        try:
            while data:
                data = data[self._write(self._descriptor, data) :]  # type: ignore[arg-type]
        except OSError:
            self._exit(70)  # the code closed the channel: there is nobody left to tell
        self.busy = False

    def end(self) -> NoReturn:
        self._exit(0)


def run(
    job: Job,
    blobs: list[bytes],
    driver: Callable[..., Any] | None,
    channel: int,
    nonce: bytes,
    *,
    server: int,
    threads: int,
) -> NoReturn:
    """Run the job and end the process. Standard streams are in place; everything else is closed."""
    pipe = _Channel(channel, nonce)
    child = _Child(job, blobs, driver, pipe)
    try:
        isolation.enter(job.limits, server, threads)
        child.work()
    except _Stop as stop:
        child.stop(stop)
    except BaseException as error:
        if calls.ran_out_of_memory(error):
            isolation.release_memory()
            child.stop(_Stop(RunStatus.MEMORY, child.memory_message))
        text = "".join(traceback.format_exception_only(error)).strip()[-MESSAGE_CHARACTERS:]
        child.stop(_Stop(RunStatus.ENGINE, f"the checker failed in the child: {text}"))
    pipe.end()


class _Child:
    def __init__(
        self,
        job: Job,
        blobs: list[bytes],
        driver: Callable[..., Any] | None,
        pipe: _Channel,
    ) -> None:
        self._job, self._blobs, self._driver, self._pipe = job, blobs, driver, pipe
        self._used: set[str] = set()
        self._sources = Sources(job.workspace)
        self._watch: forbidden.Watch | None = None
        self._guard: imports.Guard | None = None
        self._settrace, self._setprofile = sys.settrace, sys.setprofile
        self._flush: Callable[[], None] = sys.stdout.flush
        self._where = "while the file was imported"
        most = job.limits.megabytes
        self.memory_message = f"the code asked for more than {most} MB"

    # ----------------------------------------------------------------- reports

    def stop(self, stop: _Stop) -> NoReturn:
        self._flush_output()
        place = stop.place
        report = {
            "status": str(stop.status),
            "message": stop.message,
            "line": place.line if place else None,
            "source": place.source if place else "",
            "used": self._all_used(),
        }
        self._pipe.send(b"X", encode(report))
        self._pipe.end()

    def _all_used(self) -> tuple[str, ...]:
        seen = self._used | (self._watch.used if self._watch is not None else set())
        return tuple(name for name in self._job.forbids if name in seen)

    def _flush_output(self) -> None:
        try:
            self._flush()
        except BaseException:  # a closed or replaced stream is the learner's own affair
            return

    def _on_alarm(self, number: int, frame: FrameType | None) -> None:
        if self._pipe.busy:
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        message = f"still running after {self._job.limits.seconds:g} s, {self._where}"
        self.stop(_Stop(RunStatus.TIME, message, self._sources.innermost(frame)))

    # ----------------------------------------------------------------- the run

    def work(self) -> NoReturn:
        job = self._job
        signal.signal(signal.SIGALRM, self._on_alarm)
        signal.setitimer(signal.ITIMER_REAL, job.limits.seconds)
        blocked = [f"{job.stack}.{job.module}"] if not job.reference else []
        if job.session_module and not job.reference:
            blocked.append(job.session_module)
        self._guard = imports.Guard(job.stack, blocked, self._sources)
        imports.modules_apart([name for name in sys.modules if name.startswith(_OWN_PACKAGE)])
        part = self._reference() if job.reference else self._load(self._guard)
        self._pipe.send(
            b"S", encode({"signature": signature_of(part), "used": tuple(sorted(self._used))})
        )
        function = part
        if (driver := self._driver) is not None:

            def function(*arguments: Any) -> Any:
                return driver(part, *arguments)

        for index, blob in enumerate(self._blobs):
            self._where = f"in call {index + 1} of {len(self._blobs)}"
            self._pipe.send(b"R", self._outcome(function, blob))
        if job.timed is not None and 0 <= job.timed[0] < len(self._blobs):
            self._where = "while it was timed"
            seconds = self._time(function, self._blobs[job.timed[0]], job.timed[1])
            self._pipe.send(b"T", encode(seconds))
        self._flush_output()
        self._pipe.send(b"F", encode({"used": self._all_used()}))
        self._pipe.end()

    def _outcome(self, function: Callable[..., Any], blob: bytes) -> bytes:
        """The encoded report of one call."""
        assert self._guard is not None
        self._guard.withdraw()
        try:
            result, arguments, layout, allocated = calls.call(
                function, blob, self._job.measure_layout
            )
        except BaseException as error:
            self._quiet()
            self._stop_if_fatal(error)
            found = calls.raised(error, self._sources)
            return encode({"raised": dict(vars(found))})
        self._quiet()
        self._stop_if_reference()
        return encode(
            {
                "value": _packed(result),
                "arguments": tuple(_packed(item) for item in arguments),
                "layout": layout,
                "allocated": allocated,
            }
        )

    def _time(self, function: Callable[..., Any], blob: bytes, repeats: int) -> float | None:
        try:
            return calls.time_call(function, blob, repeats)
        except BaseException as error:
            self._stop_if_fatal(error)
            return None
        finally:
            self._quiet()

    def _quiet(self) -> None:
        """End tracing that the code may have switched on."""
        self._settrace(None)
        self._setprofile(None)

    # ----------------------------------------------------------------- loading

    def _reference(self) -> Any:
        assert self._guard is not None
        module = self._guard.reference(f"{self._job.stack}.{self._job.module}")
        return getattr(module, self._job.name)

    def _load(self, guard: imports.Guard) -> Any:
        job = self._job
        file = job.file or os.path.join(job.workspace, job.module.replace(".", "/") + ".py")
        shown = os.path.relpath(file, job.workspace)
        if not os.path.isdir(job.workspace):
            raise _Stop(RunStatus.MISSING, f"the workspace folder {job.workspace} is not there")
        os.chdir(job.workspace)
        if not os.path.isfile(file):
            raise _Stop(RunStatus.MISSING, f"{shown} is not in the workspace")
        reference = guard.reference(f"{job.stack}.{job.module}")
        finder = imports.Workspace(
            root=job.workspace,
            stack=job.stack,
            under_check=(job.module, file),
            references=self._references(),
            sources=self._sources,
            guard=guard,
        )
        parts = imports.parts_of(reference)
        self._read(finder, file, shown, parts)
        model = vars(reference).get(job.name, _ABSENT)
        guard.watch_calls(model)
        guard.forbid_reading()
        sys.meta_path[:0] = [guard, finder]
        module = self._import(shown)
        self._stop_if_reference()
        part = vars(module).get(job.name, _ABSENT)
        if part is _ABSENT:
            raise _Stop(RunStatus.MISSING, _missing(shown, job.name, module))
        if part is model or (_is_class(part) and _is_class(model) and model in _ancestors(part)):
            raise _Stop(RunStatus.REFERENCE, f"{job.name} in {shown} is the reference version")
        if not callable(part):
            kind = type_name(part)
            raise _Stop(RunStatus.MISSING, f"{job.name} in {shown} is of type {kind}, no function")
        if isinstance(part, forbidden.StandIn):
            self._used.add(part.name)
        return part

    def _references(self) -> Mapping[str, list[str]]:
        own = f"{self._job.module}:{self._job.name}"
        grouped: dict[str, list[str]] = {}
        for part in self._job.references:
            if part != own:
                module, _, name = part.partition(":")
                grouped.setdefault(module, []).append(name)
        return grouped

    def _read(self, finder: imports.Workspace, file: str, shown: str, parts: list[str]) -> None:
        """Compile the file once ahead: its syntax, and the forbidden names in its tree."""
        try:
            finder.compile(file)
            tree = ast.parse(self._sources.text(file))
        except (SyntaxError, ValueError) as error:  # ValueError: NUL bytes; text in no encoding
            line = getattr(error, "lineno", None)
            text = getattr(error, "msg", None) or str(error)
            place = None if line is None else self._sources.place(file, line)
            raise _Stop(RunStatus.SYNTAX, f"{shown}: {text}", place) from None
        except OSError as error:
            raise _Stop(RunStatus.MISSING, f"{shown} cannot be read: {error.strerror}") from None
        except (RecursionError, MemoryError):
            raise _Stop(RunStatus.SYNTAX, f"{shown}: nested too deeply to be compiled") from None
        forbids, name = self._job.forbids, self._job.name
        if forbids:
            self._used |= forbidden.used_in_source(tree, name, forbids, parts)
            self._watch = forbidden.Watch(self._sources.owns, name, parts)
            self._watch.install(forbids, forbidden.imported_roots(tree))

    def _import(self, shown: str) -> ModuleType:
        try:
            module = importlib.import_module(f"{imports.PACKAGE}.{self._job.module}")
        except BaseException as error:
            self._quiet()
            self._stop_if_fatal(error)
            place = self._sources.last_in(error.__traceback__)
            if isinstance(error, SyntaxError) and error.filename and error.lineno:
                place = self._sources.place(error.filename, error.lineno)
            where = os.path.relpath(place.file, self._job.workspace) if place else shown
            text = f"importing {where} raised {type_name(error)}: {calls.message_of(error)}"
            raise _Stop(RunStatus.IMPORT, text, place) from None
        self._quiet()
        return module

    # ----------------------------------------------------------------- what ends a run

    def _stop_if_reference(self) -> None:
        guard = self._guard
        if guard is not None and guard.attempt is not None:
            what = f"{self._job.stack}.{self._job.module}"
            message = f"the file imports {what}, which holds the reference version of the part"
            raise _Stop(RunStatus.REFERENCE, message, guard.attempt)

    def _stop_if_fatal(self, error: BaseException) -> None:
        """Stop the run for what is no ordinary exception of the part."""
        if isinstance(error, _Stop):
            raise error
        self._stop_if_reference()
        place = self._sources.last_in(error.__traceback__)
        if isinstance(error, SystemExit):
            message = f"the code ended the process: sys.exit, {self._where}"
            raise _Stop(RunStatus.EXITED, message, place)
        if calls.ran_out_of_memory(error):
            error.__traceback__ = None  # its frames hold what filled the memory
            isolation.release_memory()
            raise _Stop(RunStatus.MEMORY, f"{self.memory_message}, {self._where}", place)
        if isolation.is_refused_process(error):
            message = f"{isolation.REFUSED_PROCESS}; the code tried to, {self._where}"
            raise _Stop(RunStatus.PROCESSES, message, place)


_ABSENT = object()
_ancestors = type.mro


def _is_class(value: object) -> TypeGuard[type]:
    return type in _ancestors(type(value))


_OWN_PACKAGE = __name__.rpartition(".")[0] + "."


def _packed(value: object) -> Any:
    """The value's own bytes, as an array: one that is too large spoils only itself."""
    return _bytes_as_array(calls.sendable(value), _BYTE)


_bytes_as_array, _BYTE = np.frombuffer, np.dtype(np.uint8)


def signature_of(part: object) -> str | None:
    """str(inspect.signature(part)), or None where it has none or lies about it."""
    try:
        return str.__getitem__(str(_signature(part)), slice(0, MESSAGE_CHARACTERS))  # type: ignore
    except BaseException:
        return None


_signature = inspect.signature


def _missing(shown: str, name: str, module: ModuleType) -> str:
    defined = [
        key
        for key, value in vars(module).items()
        if not key.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]
    near = difflib.get_close_matches(name, defined, n=1)
    if near:
        return f"{shown} defines no {name}; found {near[0]}"
    if defined:
        return f"{shown} defines no {name}; it defines {', '.join(defined[:10])}"
    return f"{shown} defines no {name}; it defines no function and no class"
