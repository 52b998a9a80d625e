"""One call of a part: what it returned or raised, where, and what it did to memory.

Used by the child (checks/child.py) and in process (checks/in_process.py), so that both report the
same things in the same form.
"""

from __future__ import annotations

import builtins
import dis
import gc
import math
import statistics
import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from types import FrameType, TracebackType
from typing import Any

import numpy as np

from firsthand.course.checks.requests import Opaque, Raised, Returned
from firsthand.course.checks.values import UnsendableValue, class_name, decode, encode, type_name

globals()["__builtins__"] = dict(vars(builtins))  # see checks/values.py

MESSAGE_CHARACTERS = 500
RESULT_BYTES = 1 << 26  # what one call may send back

_shares_memory: Callable[..., bool] = np.shares_memory  # its stub knows two values of max_work
_may_share_memory = np.may_share_memory
_too_hard = np.exceptions.TooHardError
_array_type = np.ndarray
_raise_opcodes = frozenset(dis.opmap[n] for n in ("RAISE_VARARGS", "RERAISE") if n in dis.opmap)
_get_message = str
_ancestors = type.mro
_start, _stop, _tracing = tracemalloc.start, tracemalloc.stop, tracemalloc.is_tracing
_traced, _reset_peak = tracemalloc.get_traced_memory, tracemalloc.reset_peak
_gc_enabled, _gc_disable, _gc_enable = gc.isenabled, gc.disable, gc.enable
_median, _nan = statistics.median, math.nan


@dataclass(frozen=True)
class Place:
    """A line of a file of the learner, 1-based, with its text."""

    file: str
    line: int
    source: str


class Sources:
    """Which files count as the learner's, and their lines as they were when they were loaded.

    root: a folder, all of whose files count. files: path -> text, filled by whoever loads them.
    """

    def __init__(self, root: str | None = None, files: Mapping[str, str] | None = None) -> None:
        self._prefix = None if root is None else root.rstrip("/") + "/"
        self._lines = {path: text.splitlines() for path, text in (files or {}).items()}

    def add(self, path: str, text: str) -> None:
        self._lines[path] = text.splitlines()

    def text(self, path: str) -> str:
        """The file as it was when it was loaded; '' if it was not."""
        return "\n".join(self._lines.get(path, ()))

    def owns(self, path: str) -> bool:
        prefix = self._prefix
        return path in self._lines or (prefix is not None and path[: len(prefix)] == prefix)

    def place(self, path: str, line: int) -> Place:
        lines = self._lines.get(path, [])
        text = lines[line - 1].strip() if 0 < line <= len(lines) else ""
        return Place(path, line, text)

    def last_in(self, traceback: TracebackType | None) -> Place | None:
        """The last line of the learner in a traceback."""
        found: tuple[str, int] | None = None
        while traceback is not None:
            path = traceback.tb_frame.f_code.co_filename
            if self.owns(path):
                found = (path, traceback.tb_lineno)
            traceback = traceback.tb_next
        return None if found is None else self.place(*found)

    def innermost(self, frame: FrameType | None) -> Place | None:
        """The learner's line nearest to the frame, going outwards."""
        while frame is not None:
            if self.owns(frame.f_code.co_filename):
                return self.place(frame.f_code.co_filename, frame.f_lineno)
            frame = frame.f_back
        return None


def message_of(error: BaseException) -> str:
    """The exception's text, at most 500 characters; its __str__ may be the learner's."""
    try:
        text = _get_message(error)
        return str.__getitem__(text, slice(0, MESSAGE_CHARACTERS))
    except BaseException as nested:
        return f"(its text cannot be read: {type_name(nested)})"


def raised(error: BaseException, sources: Sources) -> Raised:
    """The report of an exception, with the learner's last line in its traceback."""
    place = sources.last_in(error.__traceback__)
    return Raised(
        type_name=type_name(error),
        message=message_of(error),
        line=place.line if place else None,
        source=place.source if place else "",
        file=Path(place.file).name if place else "",
        ancestors=tuple(class_name(kind) for kind in _ancestors(type(error))[1:]),
    )


def ran_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, as opposed to a `raise MemoryError` in the code."""
    if not isinstance(error, MemoryError):
        return False
    last = error.__traceback__
    if last is None:
        return True
    while last.tb_next is not None:
        last = last.tb_next
    code = last.tb_frame.f_code.co_code
    return not (0 <= last.tb_lasti < len(code) and code[last.tb_lasti] in _raise_opcodes)


def call(
    function: Callable[..., Any], blob: bytes, measure_layout: bool
) -> tuple[Any, tuple[Any, ...], dict[str, Any] | None, int | None]:
    """Call with freshly decoded arguments: (result, arguments afterwards, layout, bytes).

    Raises whatever the function raises.
    """
    arguments = decode(blob)
    if not measure_layout:
        return function(*arguments), arguments, None, None
    _start(1)
    try:
        before = _traced()[0]
        _reset_peak()
        result = function(*arguments)
        allocated = max(_traced()[1] - before, 0) if _tracing() else None
    finally:
        _stop()
    return result, arguments, layout(result, arguments), allocated


def layout(result: object, arguments: tuple[object, ...]) -> dict[str, Any] | None:
    """How an array lies in memory; None for anything but an exact ndarray.

    'shares': indices of the arguments whose memory it overlaps; 'contiguous': C order;
    'strides': bytes per axis; 'owns': the array itself holds its memory.
    """
    if type(result) is not _array_type:
        return None
    return {
        "shares": [
            index
            for index, argument in enumerate(arguments)
            if type(argument) is _array_type and _overlaps(result, argument)
        ],
        "contiguous": bool(result.flags.c_contiguous),
        "strides": [int(stride) for stride in result.strides],
        "owns": bool(result.flags.owndata),
    }


def _overlaps(left: np.ndarray[Any, Any], right: np.ndarray[Any, Any]) -> bool:
    try:
        return bool(_shares_memory(left, right, max_work=100_000))
    except _too_hard:
        return bool(_may_share_memory(left, right))


def sendable(value: object, max_bytes: int = RESULT_BYTES) -> bytes:
    """The encoded value; an oversized one becomes Opaque with the reason in its name."""
    try:
        return encode(value, max_bytes=max_bytes)
    except UnsendableValue as error:
        return encode(Opaque(f"{type_name(value)} ({error})"))


def returned(
    result: object,
    arguments: tuple[object, ...],
    shape: dict[str, Any] | None,
    allocated: int | None,
) -> Returned:
    """A `Returned` whose values made the same journey as those from the worker."""
    after = tuple(decode(sendable(argument)) for argument in arguments)
    return Returned(decode(sendable(result)), after, shape, allocated)


def time_call(function: Callable[..., Any], blob: bytes, repeats: int) -> float:
    """Median seconds of `repeats` calls, each with fresh arguments decoded outside the timing."""
    collected = _gc_enabled()
    _gc_disable()
    try:
        seconds = [_nan] * max(repeats, 1)
        for index in range(len(seconds)):
            arguments = decode(blob)
            begin = perf_counter()
            function(*arguments)
            seconds[index] = perf_counter() - begin
            del arguments
    finally:
        if collected:
            _gc_enable()
    return float(_median(seconds))
