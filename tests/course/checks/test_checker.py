"""The checker: from a step's id to a verdict, with the learner's file run elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from firsthand.course.checks.checker import Checker
from firsthand.course.checks.in_process import InProcess
from firsthand.course.checks.requests import Request, Returned, Run, RunStatus
from firsthand.course.checks.worker import Worker
from firsthand.course.loading import Course
from firsthand.course.sources import PartName, module_source
from firsthand.course.verdicts import Outcome, Stage

DOT = "1.1/dot-product"
RIGHT = """
def dot_product(weights, inputs):
    if weights.shape != inputs.shape:
        raise ValueError("lengths differ")
    total = 0.0
    for index in range(len(weights)):
        total += weights[index] * inputs[index]
    return total
"""


class Recording:
    """An executor that notes its requests and answers with the reference's run."""

    def __init__(self, part: Any, seconds: tuple[float, float] = (1.0, 1.0)) -> None:
        self.requests: list[Request] = []
        self.part, self.seconds = part, seconds

    def execute(self, request: Request) -> Run:
        self.requests.append(request)
        run = InProcess(self.part).execute(replace(request, timed=None))
        if request.timed is None:
            return run
        first = run.results[0]
        assert isinstance(first, Returned)
        seconds = self.seconds[1] if request.reference else self.seconds[0]
        return replace(run, results=(replace(first, seconds=seconds),))


@pytest.fixture
def workspace(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "work" / "foundations" / "neuron.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return tmp_path / "work"

    return write


@pytest.mark.parametrize(
    ("text", "outcome", "mistake"),
    [
        (RIGHT, Outcome.PASSED, None),
        (RIGHT.replace("total +=", "total ="), Outcome.WRONG, "last-product-only"),
        (RIGHT.replace("return total", "return -total"), Outcome.WRONG, None),
        (RIGHT.replace("return total", "raise NotImplementedError"), Outcome.UNFINISHED, None),
        (RIGHT.replace("return total", "retrun total"), Outcome.BROKEN, None),
        (RIGHT.replace("dot_product", "scalar_product"), Outcome.BROKEN, None),
        (RIGHT.replace("weights,", "w,"), Outcome.BROKEN, None),
        (RIGHT.replace("    total = 0.0", "    import os; os._exit(0)"), Outcome.STOPPED, None),
        (
            "import numpy as np\n"
            + RIGHT.replace("return total", "return np.dot(weights, inputs)"),
            Outcome.LIBRARY,
            None,
        ),
        ("from firsthand.llm.foundations.neuron import dot_product\n", Outcome.LIBRARY, None),
    ],
    ids=[
        "right",
        "named",
        "negated",
        "unfinished",
        "syntax",
        "name",
        "signature",
        "exit",
        "library",
        "reference",
    ],
)
def test_a_learners_file_in_the_real_worker(
    text: str,
    outcome: Outcome,
    mistake: str | None,
    workspace: Callable[[str], Path],
    real_course: Course,
    worker: Worker,
) -> None:
    verdict = Checker(real_course, worker, workspace(text)).check(DOT, 5)
    assert (verdict.outcome, verdict.mistake) == (outcome, mistake), verdict


def test_a_file_that_is_not_there_is_broken(
    tmp_path: Path, real_course: Course, worker: Worker
) -> None:
    assert Checker(real_course, worker, tmp_path).check(DOT, 1).outcome is Outcome.BROKEN


def test_another_file_is_checked_in_place_of_the_learners(
    tmp_path: Path, workspace: Callable[[str], Path], real_course: Course, worker: Worker
) -> None:
    root = workspace(RIGHT)
    other = tmp_path / "other.py"
    other.write_text(RIGHT.replace("+=", "="))
    checker = Checker(real_course, worker, root)
    assert checker.check(DOT, 1, file=other).mistake == "last-product-only"
    assert checker.check(DOT, 1).passed


def test_what_is_not_mastered_comes_from_the_reference(real_course: Course) -> None:
    reference = real_course.reference(PartName.parse("foundations.neuron:neuron"))
    executor = Recording(reference)
    checker = Checker(real_course, executor, Path("."))
    checker.check("1.1/neuron", 1)
    checker.check("1.1/neuron", 1, mastered={"foundations.neuron:dot_product"})
    first, second = (set(request.references) for request in executor.requests)
    assert "foundations.neuron:neuron" not in first | second  # the part itself is the learner's
    assert first - second == {"foundations.neuron:dot_product"}
    assert first == set(real_course.parts_until("1.1")) - {"foundations.neuron:neuron"}


def test_only_files_are_checked(real_course: Course) -> None:
    with pytest.raises(TypeError, match="answered by typing"):
        Checker(real_course, InProcess(None), Path(".")).build_of("1.1/vector-bytes")


def test_a_trial_is_prepared_once(real_course: Course) -> None:
    checker = Checker(real_course, InProcess(None), Path("."))
    trial = checker.trial(DOT, 1)
    assert checker.trial(DOT, 1) is trial
    assert checker.trial(DOT, 2) is not trial


def test_a_debug_step_is_decided_by_its_build_and_knows_its_mistakes(real_course: Course) -> None:
    checker = Checker(real_course, InProcess(None), Path("."))
    build = checker.build_of("1.4/repair-backward")
    assert build is checker.build_of("1.4/backward-pass")
    names = {item.id for item in checker.mistakes("1.4/repair-backward")}
    assert {"share-overwritten", "upstream-ignored"} <= names
    assert names == {item.id for item in checker.mistakes("1.4/backward-pass")}


def test_the_authors_version_is_judged_like_a_learners(real_course: Course) -> None:
    checker = Checker(real_course, InProcess(None), Path("."))
    reference = real_course.reference(PartName.parse("foundations.neuron:dot_product"))
    assert checker.check_version(DOT, 3, reference).passed
    verdict = checker.check_version(DOT, 3, lambda weights, inputs: 0.0)
    assert verdict.outcome is Outcome.WRONG


# ---------------------------------------------------------------------- speed

SPEEDY = (
    ("steps.py", "    Scenario,\n", "    Scenario,\n    Speed,\n"),
    (
        "steps.py",
        '    key_line="total += float(weight) * float(value)",\n',
        '    key_line="total += float(weight) * float(value)",\n'
        "    speed=Speed(arguments=lambda generator: (np.ones(50), np.ones(50)), ratio=2.0,"
        ' why="One pass over the numbers."),\n',
    ),
)


@pytest.mark.parametrize(
    ("seconds", "outcome"), [((1.9, 1.0), Outcome.PASSED), ((2.1, 1.0), Outcome.SLOW)]
)
def test_the_speed_is_measured_in_the_same_place_and_only_at_the_end(
    copied_course: Callable[..., Course], seconds: tuple[float, float], outcome: Outcome
) -> None:
    course = copied_course(*SPEEDY)
    reference = course.reference(PartName.parse("foundations.neuron:dot_product"))
    executor = Recording(reference, seconds)
    verdict = Checker(course, executor, Path(".")).check(DOT, 1)
    assert verdict.outcome is outcome
    assert [request.timed is None for request in executor.requests] == [True, False, False]
    assert [request.reference for request in executor.requests] == [False, False, True]
    assert verdict.stages[-1].stage is Stage.SPEED


def test_wrong_code_is_never_timed(copied_course: Callable[..., Course]) -> None:
    executor = Recording(lambda weights, inputs: 0.0)
    verdict = Checker(copied_course(*SPEEDY), executor, Path(".")).check(DOT, 1)
    assert verdict.outcome is Outcome.WRONG
    assert len(executor.requests) == 1


def test_a_measurement_that_fails_is_undecided(copied_course: Callable[..., Course]) -> None:
    class Stopping(Recording):
        def execute(self, request: Request) -> Run:
            run = super().execute(request)
            return Run(RunStatus.TIME) if request.timed else run

    course = copied_course(*SPEEDY)
    reference = course.reference(PartName.parse("foundations.neuron:dot_product"))
    verdict = Checker(course, Stopping(reference), Path(".")).check(DOT, 1)
    assert verdict.outcome is Outcome.UNDECIDED


def test_a_real_measurement_in_the_worker(
    copied_course: Callable[..., Course], workspace: Callable[[str], Path], worker: Worker
) -> None:
    course = copied_course(*SPEEDY)
    source = module_source("firsthand.llm.foundations.neuron")
    text = source.segment(source.definition("dot_product"))
    header = "import numpy as np\nfrom firsthand.llm.foundations.arrays import Array\n"
    slow = text.replace(
        "    total = 0.0\n", "    total = 0.0\n    for _ in range(20_000):\n        total *= 1\n"
    )
    assert slow != text
    checker = Checker(course, worker, workspace(header + slow))
    verdict = checker.check(DOT, 1)
    assert verdict.outcome is Outcome.SLOW, verdict
