"""The seam between who judges and who executes: a request goes to the child, a run comes back.

The judge (engine process) draws the inputs and computes what is expected; the child executes the
learner's code and sends plain values. Nothing expected ever travels to the child, and nothing but
plain numbers, text, arrays and containers of them travels back (checks/values.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol


@dataclass(frozen=True)
class Limits:
    """Limits of one run. seconds: wall clock for import and all calls together."""

    seconds: float = 5.0
    megabytes: int = 2048  # above what the warm worker holds
    output_bytes: int = 4_000_000
    processes: int = 0  # new processes the code may start


@dataclass(frozen=True)
class Request:
    """One run of one part of the learner.

    workspace: its folder, importable in the child as the package `mine`.
    module: 'foundations.neuron'; its file is workspace/foundations/neuron.py, or `file` if given
        (a Debug file, a filled-in rung). name: the part's top-level name.
    stack: the package of the reference ('firsthand.llm'), also the twin of `mine`.
    session_module: module whose top-level function `driver` calls the part; None: part(*arguments).
    calls: argument tuples.
    references: parts ('foundations.activations:sigmoid') that come from the reference, because the
        learner has not mastered them yet. A workspace file that is missing is the reference whole.
    forbids: ('numpy.dot', '@'): using one from the learner's file is reported, not prevented.
    measure_layout: record strides, memory sharing and allocated bytes of each call.
    timed: (index of the call, repeats): time this call and return the median of the repeats.
    reference: run the stack's own part instead of the learner's, in the same kind of child (for a
        ratio of times); no file of the workspace is read.
    """

    workspace: Path
    stack: str
    module: str
    name: str
    calls: tuple[tuple[Any, ...], ...]
    session_module: str | None = None
    driver: str | None = None
    file: Path | None = None
    references: tuple[str, ...] = ()
    forbids: tuple[str, ...] = ()
    measure_layout: bool = False
    timed: tuple[int, int] | None = None
    reference: bool = False
    limits: Limits = field(default_factory=Limits)


class RunStatus(StrEnum):
    """How the child ended."""

    FINISHED = "finished"
    MISSING = "missing"  # the file or the name in it is not there
    SYNTAX = "syntax"
    IMPORT = "import"  # importing the file raised
    REFERENCE = "reference"  # the file imports the reference version of the part
    TIME = "time"
    MEMORY = "memory"
    OUTPUT = "output"
    PROCESSES = "processes"
    EXITED = "exited"  # os._exit, sys.exit, SystemExit, a closed channel
    CRASHED = "crashed"  # a signal, e.g. a segmentation fault; the worker killed
    ENGINE = "engine"  # the checker itself failed


@dataclass(frozen=True)
class Returned:
    """One call that returned.

    value: decoded plain value, or Opaque. arguments: the arguments after the call (to see changes).
    layout: for an array result {'shares': [argument indices], 'contiguous': bool, 'strides': [...],
    'owns': bool}; allocated: peak bytes, with measure_layout. seconds: median, with timed.
    """

    value: Any
    arguments: tuple[Any, ...]
    layout: dict[str, Any] | None = None
    allocated: int | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Opaque:
    """A returned object that is no plain value: only its type's name travels."""

    type_name: str


@dataclass(frozen=True)
class Raised:
    """One call that raised.

    line: last line of the learner's file in the traceback, 1-based.
    ancestors: names of the classes that the exception's own class is derived from.
    """

    type_name: str
    message: str
    line: int | None
    source: str = ""
    file: str = ""
    ancestors: tuple[str, ...] = ()

    def is_a(self, type_name: str) -> bool:
        """Whether `except type_name` would catch it."""
        return type_name == self.type_name or type_name in self.ancestors


@dataclass(frozen=True)
class Run:
    """What came back. results are in the order of the calls and complete only when FINISHED.

    current: index of the call that was running when the run was stopped, if any.
    signature: str(inspect.signature(part)) of the learner's part, when it could be read.
    used: forbidden functions that the learner's file used.
    """

    status: RunStatus
    results: tuple[Returned | Raised, ...] = ()
    message: str = ""
    line: int | None = None
    source: str = ""
    current: int | None = None
    signature: str | None = None
    used: tuple[str, ...] = ()
    printed: str = ""
    seconds: float = 0.0


class Executor(Protocol):
    """Runs requests. The isolated worker for learners, in process for the author's own versions."""

    def execute(self, request: Request) -> Run: ...
