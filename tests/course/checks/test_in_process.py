"""Trusted versions give the same reports as the worker."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from firsthand.course.checks.in_process import InProcess
from firsthand.course.checks.requests import Opaque, Raised, Request, Returned, Run, RunStatus
from firsthand.course.checks.worker import Worker

Builder = Callable[..., Request]

VERSIONS = {
    "value": "def total(left, right):\n    return float((left * right).sum())\n",
    "mutates": "def total(left, right):\n    left += 1\n    return left\n",
    "raises": "def total(left, right):\n    raise ValueError('no')\n",
    "opaque": "def total(left, right):\n    return total\n",
    "too deep": "def total(left, right):\n    x = []\n    x.append(x)\n    return x\n",
    "view": "def total(left, right):\n    return right[::-1]\n",
}


def comparable(run: Run) -> list[object]:
    found: list[object] = []
    for result in run.results:
        if isinstance(result, Raised):
            found.append((result.type_name, result.message, result.line))
        else:
            found.append((str(result.value), str(result.arguments), str(result.layout)))
    return found


@pytest.mark.parametrize("text", VERSIONS.values(), ids=VERSIONS)
def test_the_report_is_the_workers(text: str, request_for: Builder, worker: Worker) -> None:
    request = request_for(text, measure_layout=True)
    names: dict[str, object] = {}
    exec(compile(text, "version.py", "exec"), names)
    here, there = InProcess(names["total"]).execute(request), worker.execute(request)
    assert (here.status, here.signature) == (there.status, there.signature)
    assert comparable(here) == comparable(there)


def test_callers_arguments_are_not_touched(request_for: Builder) -> None:
    array = np.zeros(3)

    def part(left: np.ndarray, right: int) -> np.ndarray:  # type: ignore[type-arg]
        left += right
        return left

    got = InProcess(part).execute(request_for(None, calls=((array, 1), (array, 1))))
    assert [
        np.array_equal(r.value, np.ones(3)) for r in got.results if isinstance(r, Returned)
    ] == [
        True,
        True,
    ]
    assert np.array_equal(array, np.zeros(3))


def test_a_driver_and_a_time(request_for: Builder) -> None:
    request = request_for(None, session_module="tiny_session", driver="twice", timed=(1, 3))
    got = InProcess(lambda left, right: 2.0).execute(request)
    assert [r.value for r in got.results if isinstance(r, Returned)] == [4.0, 4.0]
    last = got.results[1]
    assert isinstance(last, Returned)
    assert last.seconds is not None


def test_what_cannot_be_sent_is_the_authors_fault(request_for: Builder) -> None:
    got = InProcess(print).execute(request_for(None, calls=((print,),)))
    assert got.status is RunStatus.ENGINE


def test_a_result_that_is_no_plain_value_is_opaque(request_for: Builder) -> None:
    got = InProcess(lambda left, right: {1, 2}).execute(request_for(None))
    assert isinstance(got.results[0], Returned)
    assert got.results[0].value == Opaque("set")
