"""A session's code must say what its lesson announces."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from firsthand.course.loading import Course, CourseError
from firsthand.course.sources import PartName, SourceError
from firsthand.course.steps import Build, Debug

Copy = Callable[..., Course]


def test_steps_mistakes_and_alternatives_by_step(real_course: Course) -> None:
    code = real_course.code("1.1")
    assert list(code.steps) == [step.id for step in real_course.outline.session("1.1").steps]
    step = code.steps["1.1/dot-product"]
    assert {item.step for item in code.mistakes_of(step)} == {"dot-product"}
    assert len(code.mistakes_of(step)) >= 3
    assert {item.step for item in code.alternatives_of(step)} == {"dot-product"}
    assert real_course.code("1.1") is code
    assert real_course.step("1.1/dot-product") is step


def test_a_debug_step_has_the_mistakes_of_its_part(real_course: Course) -> None:
    found = [
        (code, step)
        for session in real_course.outline.sessions
        for code in (real_course.code(session.id),)
        for step in code.steps.values()
        if isinstance(step, Debug)
    ]
    assert found
    for code, step in found:
        assert code.mistakes_of(step) == code.mistakes_of(step.build)


def test_unknown_ids(real_course: Course) -> None:
    for call in (real_course.code, real_course.step):
        with pytest.raises(KeyError):
            call("9.9/none")


@pytest.mark.parametrize(
    ("edit", "named"),
    [
        (("lesson.md", "{#neuron}", "{#neurone}"), r"steps.py declares .* announces"),
        (
            ("lesson.md", "## Trace: one neuron", "## Predict: one neuron"),
            r"1.1/trace-neuron: lesson.md says Predict, steps.py says Trace",
        ),
        (("steps.py", "    element_offset,\n", ""), r"steps.py declares .* announces"),
    ],
    ids=["anchor", "kind", "missing"],
)
def test_steps_and_headings_must_agree(
    copied_course: Copy, edit: tuple[str, str, str], named: str
) -> None:
    with pytest.raises(CourseError, match=named):
        copied_course(edit).code("1.1")


def test_a_curriculum_that_is_not_there() -> None:
    with pytest.raises(CourseError, match="no curriculum package"):
        _ = Course(curriculum="no_such_curriculum_here").root


def test_parts_until_a_session(real_course: Course) -> None:
    early = real_course.parts_until("1.1")
    assert early["foundations.neuron:dot_product"] == ("1.1/dot-product",)
    later = real_course.parts_until("1.5")
    assert set(early) < set(later)
    several = {part: steps for part, steps in later.items() if len(steps) > 1}
    assert several  # a class is built in several steps
    for part, steps in several.items():
        first, last = (step.split("/")[0] for step in (steps[0], steps[-1]))
        methods = real_course.methods_until(part, first)
        assert methods <= real_course.methods_until(part, last)
        assert methods
    assert real_course.methods_until("foundations.neuron:layer", "1.5") == frozenset()


def test_an_early_session_never_loads_a_later_one() -> None:
    course = Course()
    course.parts_until("1.2")
    assert set(course._loaded) == {"1.1", "1.2"}


def test_a_mistakes_version_differs_from_the_reference(real_course: Course) -> None:
    step = real_course.step("1.1/dot-product")
    assert isinstance(step, Build)
    reference = real_course.reference(PartName.parse(step.part))
    arguments = (np.array([1.0, 2.0]), np.array([3.0, 4.0]))
    assert reference(*arguments) == 11.0
    given = {m.id: m for m in real_course.code("1.1").mistakes_of(step)}
    assert real_course.version(given["last-product-only"], step)(*arguments) == 8.0
    whole = given["products-not-summed"]
    assert real_course.version(whole, step) is whole.code
    assert reference(*arguments) == 11.0  # the stack's own module is untouched


def test_an_edit_that_does_not_apply(copied_course: Copy) -> None:
    course = copied_course(("mistakes.py", '(("total += ", "total = "),)', '(("absent", ""),)'))
    step = course.step("1.1/dot-product")
    assert isinstance(step, Build)
    mistake = next(m for m in course.code("1.1").mistakes if m.id == "last-product-only")
    with pytest.raises(SourceError, match="times in dot_product, not once"):
        course.version(mistake, step)
