"""Trace: the intermediate values of a worked example, all blanks at once."""

from __future__ import annotations

from collections.abc import Mapping

from firsthand.course.answers import Value, read_assignments, show_value
from firsthand.course.questions.grading import (
    MOST_DRAWS,
    Mistakes,
    Question,
    QuestionError,
    apart,
    as_json,
    close,
    finite,
    generator_for,
    graded,
    is_zero,
    only,
    passed,
    plain,
    wrong,
)
from firsthand.course.questions.lines import BLANK, with_value
from firsthand.course.steps import Trace, Worked
from firsthand.course.verdicts import Evidence, Verdict

Blanks = dict[str, Value]


def ask_trace(step: Trace, seed: int, mistakes: Mistakes, small: bool = False) -> Question:
    """Raises QuestionError where no draw separates the mistakes from the right values."""
    generator = generator_for(step.id, seed, small)
    for _ in range(MOST_DRAWS):
        worked = step.draw(generator, small)
        right: Blanks = {name: plain(value) for name, value in worked.blanks.items()}
        others = {
            name: right | {blank: plain(value) for blank, value in values.items()}
            for name, values in worked.wrong.items()
        }
        if _fair(right, list(others.values()), worked.tolerance):
            break
    else:
        raise QuestionError(
            f"step {step.id}: in {MOST_DRAWS} draws the right values were never finite, not all "
            "zero and different from those of every mistake, and these from each other"
        )
    names = list(right)
    shapes = [name for name in names if isinstance(right[name], tuple)]
    form = _form(names, shapes, worked.tolerance)

    def judge(text: str) -> Verdict:
        read = read_assignments(text, names, shapes, form)
        good = [name for name in names if close(read[name], right[name], worked.tolerance)]
        if len(good) == len(names):
            values = ", ".join(f"{name} = {show_value(right[name])}" for name in names)
            return passed(
                f"Right: {values}. Accepted: within {worked.tolerance:.3g} of each value, relative."
            )
        matches = [name for name, values in others.items() if _same(read, values, worked.tolerance)]
        first = next(name for name in names if name not in good)
        headline = f"The first value that differs is `{first}`, read as {show_value(read[first])}."
        evidence = (
            Evidence("right", ", ".join(good) or "none"),
            Evidence("read as", f"{first} = {show_value(read[first])}"),
        )
        return wrong(headline, *evidence, mistake=only(matches, mistakes))

    rows = "\n".join(f"- `{name}` = {BLANK}" for name in names)
    return Question(
        prompt=f"{worked.given}\n\nFill in all of these:\n\n{rows}",
        form=form,
        grade=graded(judge),
        working=tuple(worked.working),
        wrong_lines=tuple(
            (name, _wrong_line(worked, right, values)) for name, values in others.items()
        ),
        solution=_answer(right),
        seed=seed,
        parameters=as_json({"given": worked.given}),
        wrong_answers={name: _answer(values) for name, values in others.items()},
    )


def _answer(values: Blanks) -> str:
    return "; ".join(f"{name} = {_exact(value)}" for name, value in values.items())


def _exact(value: Value) -> str:
    return repr(value) if isinstance(value, float) else show_value(value)


def _same(read: Mapping[str, Value], values: Blanks, tolerance: float) -> bool:
    return all(close(read[name], value, tolerance) for name, value in values.items())


def _fair(right: Blanks, others: list[Blanks], tolerance: float) -> bool:
    everything = [right, *others]
    return (
        all(finite(value) for values in everything for value in values.values())
        and not all(is_zero(value) for value in right.values())
        and all(
            any(apart(a[name], b[name], tolerance) for name in right)
            for index, a in enumerate(everything)
            for b in everything[index + 1 :]
        )
    )


def _wrong_line(worked: Worked, right: Blanks, values: Blanks) -> str:
    """The line of the first blank in which the mistake differs, ending in its value."""
    for line, name in zip(worked.working, right, strict=False):
        if apart(right[name], values[name], worked.tolerance):
            return with_value(line, right[name], values[name])
    name = next(name for name in right if apart(right[name], values[name], worked.tolerance))
    return f"{name} = {show_value(values[name])}"


def _form(names: list[str], shapes: list[str], tolerance: float) -> str:
    example = ", ".join(f"{name} = {'(9, 8, 7)' if name in shapes else '-123.5'}" for name in names)
    digits = f", numbers to within {100 * tolerance:.3g} %" if tolerance else ""
    return f"a value for each name{digits}, for example `{example}`"
