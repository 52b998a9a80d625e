"""Runs trusted versions of a part in this process: the reference, the mistakes, the alternatives.

No isolation and no limits, so it is fast enough for the author's check, which runs each version on
many seeds. Arguments and results make the same journey through bytes as in the worker, so that what
is judged looks the same.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from dataclasses import replace
from types import CodeType
from typing import Any

import numpy as np

from firsthand.course.checks import calls
from firsthand.course.checks.calls import Sources
from firsthand.course.checks.child import signature_of
from firsthand.course.checks.requests import Raised, Request, Returned, Run, RunStatus
from firsthand.course.checks.values import UnsendableValue, encode


class InProcess:
    """An `Executor` for one object: a function or class that stands for the part.

    Of a request it uses calls, session_module and driver, measure_layout and timed. An exception
    of the part is `Raised`; SystemExit and KeyboardInterrupt pass through.
    """

    def __init__(self, part: object) -> None:
        self._part = part
        code: CodeType | None = getattr(part, "__code__", None)
        self._sources = Sources(files={} if code is None else {code.co_filename: ""})

    def execute(self, request: Request) -> Run:
        """Run all calls of the request on the part."""
        begin = time.perf_counter()
        try:
            blobs = [encode(tuple(arguments), opaque=False) for arguments in request.calls]
        except UnsendableValue as error:
            return Run(RunStatus.ENGINE, message=f"the arguments cannot be sent: {error}")
        function = self._function(request)
        results = [self._call(function, blob, request.measure_layout) for blob in blobs]
        if request.timed is not None and 0 <= request.timed[0] < len(results):
            index, repeats = request.timed
            timed = results[index]
            if isinstance(timed, Returned):
                seconds = calls.time_call(function, blobs[index], repeats)
                results[index] = replace(timed, seconds=seconds)
        return Run(
            status=RunStatus.FINISHED,
            results=tuple(results),
            signature=signature_of(self._part),
            seconds=time.perf_counter() - begin,
        )

    def _function(self, request: Request) -> Callable[..., Any]:
        part: Any = self._part
        if request.session_module is None or request.driver is None:
            function: Callable[..., Any] = part
            return function
        driver = getattr(importlib.import_module(request.session_module), request.driver)
        return lambda *arguments: driver(part, *arguments)

    def _call(
        self, function: Callable[..., Any], blob: bytes, measure_layout: bool
    ) -> Returned | Raised:
        try:
            with np.errstate(all="ignore"):  # known mistakes may overflow; nobody needs to be told
                outcome = calls.call(function, blob, measure_layout)
        except Exception as error:
            return calls.raised(error, self._sources)
        return calls.returned(*outcome)
