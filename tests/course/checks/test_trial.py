"""What is known before the learner's code runs: calls, expectations, fingerprints, tolerance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firsthand.course.checks.in_process import InProcess
from firsthand.course.checks.requests import Raised, Returned, Run, RunStatus
from firsthand.course.checks.trial import (
    Facts,
    Print,
    Trial,
    facts_of,
    layout_broken,
    plain,
    prepare,
    print_of,
    request_for,
)
from firsthand.course.steps import Build, Layout, Mistake, Relation


def add(x: Any, y: Any) -> Any:
    return x + y


def driven(part: Any, x: Any, y: Any) -> Any:
    return part(x, y)


BUILD = Build(
    id="add",
    part="maths.adding:add",
    probes=lambda generator: [(1.0, 2.0), (generator.normal(size=3), 1.0), ("a", 1.0)],
    oracle=lambda x, y: np.longdouble(x) + y if isinstance(x, float) else x + y,
    small=lambda: (1.0, 2.0),
    key_line="return x + y",
    relations=(
        Relation(says="r0", groups=lambda g: [[(1.0, 1.0)]], holds=lambda group, out: True),
        Relation(
            says="r1",
            groups=lambda g: [[(1.0, 1.0), (2.0, 1.0)], [(g.normal(), 0.0)]],
            holds=lambda group, out: True,
        ),
    ),
)


def mistake(name: str, code: Any) -> Mistake:
    return Mistake(id=name, step="add", belief="B.", question="Q?", code=code)


def made(seed: int = 3, mistakes: tuple[Mistake, ...] = (), build: Build = BUILD) -> Trial:
    versions = [(item, item.code) for item in mistakes]
    return prepare(build, seed, versions, stack="none", session_module="none")


def print_from(part: Any, trial: Trial) -> Print:
    probes = trial.calls[: trial.probe_count]
    request = request_for(
        trial.build, probes, stack="none", session_module="none", workspace=Path(".")
    )
    return print_of(trial.build, probes, InProcess(part).execute(request))


def test_probes_come_first_then_the_groups() -> None:
    trial = made()
    assert trial.probe_count == 3
    assert trial.groups == ((0, 3, 4), (1, 4, 6), (1, 6, 7))
    assert len(trial.calls) == 7
    assert trial.calls[4:6] == ((1.0, 1.0), (2.0, 1.0))


def test_the_same_seed_gives_the_same_calls_and_another_seed_others() -> None:
    one, same, other = made(3), made(3), made(4)
    assert np.array_equal(one.calls[1][0], same.calls[1][0])
    assert not np.array_equal(one.calls[1][0], other.calls[1][0])
    renamed = made(3, build=replace(BUILD, id="add-again"))
    assert not np.array_equal(one.calls[1][0], renamed.calls[1][0])


def test_what_is_expected_comes_from_the_oracle_in_the_types_of_the_part() -> None:
    first, _, last = made().expected.results
    assert isinstance(first, Returned)
    assert type(first.value) is float
    assert first.value == 3.0
    assert isinstance(last, Raised)
    assert last.type_name == "TypeError"


def test_an_oracle_that_writes_into_its_arguments_harms_nothing() -> None:
    def greedy(x: Any, y: Any) -> Any:
        if isinstance(x, np.ndarray):
            x += 100.0
        return x + y

    trial = made(build=replace(BUILD, oracle=greedy))
    assert float(np.abs(trial.calls[1][0]).max()) < 50.0


def test_fingerprints_distances_and_tolerance() -> None:
    near = mistake("near", lambda x, y: x + y * 1.00001)
    far = mistake("far", lambda x, y: x - y)
    other_form = mistake("other-form", lambda x, y: [x])
    trial = made(mistakes=(near, far, other_form))
    assert set(trial.prints) == {"near", "far", "other-form"}
    assert 0 < trial.distances["near"] < trial.distances["far"] < np.inf
    assert trial.distances["other-form"] == np.inf
    assert trial.tolerance == pytest.approx(trial.distances["near"] / 100)
    assert trial.matches(print_from(far.code, trial)) == ["far"]
    assert trial.matches(print_from(add, trial)) == []


def test_a_mistake_that_cannot_be_run_has_no_fingerprint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InProcess, "execute", lambda self, request: Run(RunStatus.ENGINE))
    assert made(mistakes=(mistake("far", lambda x, y: x - y),)).prints == {}


def test_prints_of_other_lengths_or_facts_are_infinitely_far() -> None:
    results = (Returned(1.0, ()), Returned(2.0, ()))
    quiet, loud = Facts((), None), Facts((0,), None)
    one = Print(results, (quiet, quiet))
    assert one.distance(one) == 0.0
    assert one.distance(Print(results[:1], (quiet,))) == np.inf
    assert one.distance(Print(results, (quiet, loud))) == np.inf


def test_plain_brings_longdouble_home() -> None:
    value = plain((np.longdouble(1), [np.ones(2, np.longdouble)], {"a": np.longdouble(2)}, "x", 3))
    assert type(value[0]) is float
    assert value[1][0].dtype == np.float64
    assert value[2] == {"a": 2.0}
    assert value[3:] == ("x", 3)


def test_the_request_says_what_the_step_declares() -> None:
    build = replace(
        BUILD, driver=driven, forbids=("sum",), layout=Layout(), seconds=2.5, megabytes=99
    )
    request = request_for(build, [(1.0, 2.0)], stack="s", session_module="m", workspace=Path("w"))
    assert (request.module, request.name, request.stack) == ("maths.adding", "add", "s")
    assert (request.session_module, request.driver) == ("m", "driven")
    assert (request.forbids, request.measure_layout) == (("sum",), True)
    assert (request.limits.seconds, request.limits.megabytes) == (2.5, 99)
    bare = request_for(BUILD, [], stack="s", session_module="m", workspace=Path("w"))
    assert (bare.session_module, bare.driver, bare.measure_layout) == (None, None, False)


def test_facts_are_what_is_not_allowed() -> None:
    before = (np.ones(2), np.ones(2))
    result = Returned(0.0, (np.zeros(2), np.zeros(2)))
    assert facts_of(BUILD, before, result).changed == (0, 1)
    assert facts_of(replace(BUILD, mutates=(1,)), before, result).changed == (0,)
    assert facts_of(BUILD, before, Raised("E", "", None)) == Facts((), None)


@pytest.mark.parametrize(
    ("rule", "shares", "contiguous", "allocated", "words"),
    [
        (Layout(), [0], False, 10**9, None),
        (Layout(shares_argument=1), [0, 1], True, None, None),
        (Layout(shares_argument=1), [0], True, None, "a copy, not a view of argument 2"),
        (Layout(shares_argument=-1), [], True, None, None),
        (Layout(shares_argument=-1), [1], True, None, "shares the memory of argument 2"),
        (Layout(contiguous=True), [], False, None, "not contiguous"),
        (Layout(contiguous=False), [], True, None, "is contiguous"),
        (Layout(most_bytes=lambda arguments: 64), [], True, 64, None),
        (Layout(most_bytes=lambda arguments: 64), [], True, 65, "allocates more"),
    ],
)
def test_layout_rules(
    rule: Layout, shares: list[int], contiguous: bool, allocated: int | None, words: str | None
) -> None:
    layout = {"shares": shares, "contiguous": contiguous, "strides": [8], "owns": True}
    result = Returned(np.ones(2), (), layout, allocated)
    found = layout_broken(replace(BUILD, layout=rule), (), result)
    assert found is None if words is None else words in (found or "")


def test_no_layout_is_no_view() -> None:
    build = replace(BUILD, layout=Layout(shares_argument=0))
    assert "a copy" in (layout_broken(build, (), Returned(1.0, (), None, None)) or "")
