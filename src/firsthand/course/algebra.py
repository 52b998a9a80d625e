"""Are two expressions equal? Random points first, then SymPy in a child with a time limit.

A counterexample is a proof, so float64 values at many points come first: where they differ there
is nothing left to ask. Where they agree, SymPy confirms with 60 digits and symbolically. A child
that hangs or dies is killed and replaced, and the agreement at the points decides.
"""

from __future__ import annotations

import atexit
import json
import queue
import random
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from fractions import Fraction
from pathlib import Path
from typing import Any

from firsthand.course.answers import Malformed
from firsthand.course.expressions import Reader, Tree, differ_in_digits, evaluate, free_symbols

START_SECONDS = 60.0
SMALL_POINTS = 40
RANDOM_POINTS = 60
LEAST_POINTS = 8
RELATIVE = 1e-7
ABSOLUTE = 1e-12

Point = dict[str, Fraction]


class EqualityState(StrEnum):
    EQUAL = "equal"
    DIFFERENT = "different"
    MALFORMED = "malformed"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Equality:
    """Whether an answer equals the expected expression, and the point where it does not.

    point: symbol -> value, where `answer_value` (None: undefined there) differs from
    `expected_value`. method: 'symbolic', 'digits' or 'points', what decided.
    """

    state: EqualityState
    message: str = ""
    point: tuple[tuple[str, float], ...] = ()
    answer_value: float | None = None
    expected_value: float | None = None
    method: str = ""

    @property
    def equal(self) -> bool:
        return self.state is EqualityState.EQUAL


class SymbolicChild:
    """The SymPy process: started at the first question, killed at a time-out, then restarted."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()

    def ask(self, request: dict[str, Any], seconds: float) -> dict[str, Any] | None:
        """The child's reply, or None when it did not come within `seconds`."""
        with self._lock:
            deadline = time.monotonic() + seconds
            if self.process is None or self.process.poll() is not None:
                self._close()
                if not self._start():
                    return None
                # importing SymPy is not part of the question
                deadline = time.monotonic() + seconds
            try:
                requests = self.process.stdin if self.process else None
                if requests is None:
                    return None
                requests.write(json.dumps(request) + "\n")
                requests.flush()
                reply = self._replies.get(timeout=max(0.0, deadline - time.monotonic()))
            except (queue.Empty, OSError):
                reply = None
            if reply is None:
                self._close()
            return reply

    def close(self) -> None:
        """Kill the process, if there is one."""
        with self._lock:
            self._close()

    def _start(self) -> bool:
        # by its file and with -P: neither the folder it runs in nor its own is searched for modules
        command = [sys.executable, "-P", str(Path(__file__).with_name("symbolic.py"))]
        replies: queue.SimpleQueue[dict[str, Any] | None] = queue.SimpleQueue()
        try:
            process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                # Ctrl-C in the terminal is for the face, not for a warm child
                start_new_session=True,
            )
        except OSError:
            return False
        self.process, self._replies = process, replies

        def pump() -> None:
            assert process.stdout is not None
            try:
                for line in process.stdout:
                    replies.put(json.loads(line))
            except ValueError:
                pass
            replies.put(None)

        threading.Thread(target=pump, daemon=True, name="symbolic replies").start()
        try:
            ready = replies.get(timeout=START_SECONDS)
        except queue.Empty:
            ready = None
        if ready is None:
            self._close()
        return ready is not None

    def _close(self) -> None:
        process, self.process = self.process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                try:
                    stream.close()
                except OSError:
                    continue


CHILD = SymbolicChild()
atexit.register(CHILD.close)


def sample_points(symbols: Sequence[str], positive: Sequence[str], seed: int) -> Iterator[Point]:
    """Points to compare at: small round ones first, then random sixteenths. Deterministic.

    Drawn one by one: most comparisons end at the first.
    """
    generator = random.Random(seed)
    round_values = [Fraction(number) for number in (2, 3, 5, 1)]
    round_values += [Fraction(1, 2), Fraction(3, 2), Fraction(4), Fraction(7)]
    for index in range(SMALL_POINTS + RANDOM_POINTS):
        point: Point = {}
        for name in symbols:
            if index < SMALL_POINTS:
                size = generator.choice(round_values)
            else:
                size = Fraction(generator.randint(2, 56), 16)
            negative = name not in positive and generator.random() < 0.5
            point[name] = -size if negative else size
        yield point


def _differ(a: float, b: float) -> bool:
    return abs(a - b) > RELATIVE * max(abs(a), abs(b)) + ABSOLUTE


@dataclass(frozen=True)
class _Scan:
    """What float64 says about two trees: the first difference, and where both are defined."""

    different: Equality | None
    shared: tuple[Point, ...]


def _scan(answer: Tree, expected: Tree, points: Iterable[Point]) -> _Scan:
    shared: list[Point] = []
    undefined: Point | None = None
    undefined_value = 0.0
    for point in points:
        floats = {name: float(value) for name, value in point.items()}
        right = evaluate(expected, floats)
        if right is None:
            continue
        got = evaluate(answer, floats)
        if got is None:
            if undefined is None:
                undefined, undefined_value = point, right
            continue
        # a difference is told only if it is not one of rounding
        if _differ(got, right) and differ_in_digits(answer, expected, point):
            return _Scan(_difference(point, got, right, "points"), tuple(shared))
        shared.append(point)
    if not shared and undefined is not None:
        return _Scan(_difference(undefined, None, undefined_value, "points"), ())
    return _Scan(None, tuple(shared))


def _difference(point: Point, got: float | None, right: float | None, method: str) -> Equality:
    shown = tuple((name, float(value)) for name, value in point.items())
    return Equality(EqualityState.DIFFERENT, "", shown, got, right, method)


def _points_for(answer: Tree, expected: Tree, positive: Sequence[str], key: str) -> Iterator[Point]:
    names = sorted((free_symbols(answer) | free_symbols(expected)) - {"pi"})
    return sample_points(names, positive, zlib.crc32(key.encode()))


def differs_at_points(
    one: str,
    other: str,
    symbols: Sequence[str],
    positive: Sequence[str] = (),
    functions: Sequence[str] = (),
) -> bool:
    """True where float64 values at some point differ (a proof); False says nothing. For authors."""
    reader = Reader(symbols, functions)
    a, b = reader.read(one), reader.read(other)
    points = _points_for(a, b, Reader(positive).symbols, other)
    return _scan(a, b, points).different is not None


def check_expression(
    answer: str,
    expected: str,
    symbols: Sequence[str],
    positive: Sequence[str] = (),
    functions: Sequence[str] = (),
    seconds: float = 5.0,
) -> Equality:
    """Compare a typed expression with the expected one, over the reals.

    symbols: the names that may be used; `positive` of them take positive values only.
    functions: allowed besides exp, log, ln, sqrt, tanh. seconds: the limit for SymPy.
    """
    reader = Reader(symbols, functions)
    try:
        mine = reader.read(answer)
    except Malformed as malformed:
        return Equality(EqualityState.MALFORMED, str(malformed))
    try:
        right = reader.read(expected)
    except Malformed as malformed:
        message = f"the expected expression cannot be read: {malformed.problem}"
        return Equality(EqualityState.UNDECIDED, message)
    positive_names = Reader(positive).symbols
    points = _points_for(mine, right, positive_names, expected)
    scan = _scan(mine, right, points)
    if scan.different is not None:
        return scan.different
    names = sorted((free_symbols(mine) | free_symbols(right)) - {"pi"})
    request = {
        "answer": mine,
        "expected": right,
        "symbols": names,
        "positive": [name for name in names if name in positive_names],
        "points": [
            {name: str(value) for name, value in point.items()} for point in scan.shared[:12]
        ],
    }
    reply = CHILD.ask(request, seconds)
    state = reply["state"] if reply else "silent"
    if state == "equal":
        return Equality(EqualityState.EQUAL, method="symbolic")
    if reply and state == "different":
        point = scan.shared[int(reply["point"])]
        floats = {name: float(value) for name, value in point.items()}
        got, value = evaluate(mine, floats), evaluate(right, floats)
        return _difference(point, got, value, "digits")
    if len(scan.shared) >= LEAST_POINTS:
        return Equality(EqualityState.EQUAL, method="points")
    message = "the two could be compared at too few points, and SymPy did not decide"
    return Equality(EqualityState.UNDECIDED, message)
