"""Predict: a number or a shape, computed from the stack, with fresh parameters at each attempt."""

from __future__ import annotations

from firsthand.course.answers import (
    BYTES,
    Value,
    number_form,
    read_number,
    read_shape,
    show_number,
    show_value,
)
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
    interval,
    is_zero,
    only,
    passed,
    plain,
    with_unit,
    wrong,
)
from firsthand.course.questions.lines import with_value
from firsthand.course.steps import Predict, WrongFormula
from firsthand.course.verdicts import Evidence, Verdict

NUMBER_EXAMPLES = (96, 12.5, 7000)
SHAPE_EXAMPLES = ((2, 5), (9, 8, 7), (11,))


def ask_predict(step: Predict, seed: int, mistakes: Mistakes, small: bool = False) -> Question:
    """Draw until the right answer and that of every wrong formula are pairwise different.

    Raises QuestionError, naming the step, when 200 draws give no such parameters.
    """
    formulas = [mistake for mistake in mistakes if isinstance(mistake, WrongFormula)]
    generator = generator_for(step.id, seed, small)
    for _ in range(MOST_DRAWS):
        parameters = dict(step.draw(generator, small))
        right = plain(step.answer(**parameters))
        values = {item.id: plain(item.formula(**parameters)) for item in formulas}
        if _fair(right, list(values.values()), step.tolerance):
            break
    else:
        raise QuestionError(
            f"step {step.id}: in {MOST_DRAWS} draws the right answer was never non-zero, finite "
            "and different from every wrong formula, and these from each other"
        )
    form = _form(right, [right, *values.values()], step.unit)

    def judge(text: str) -> Verdict:
        if isinstance(right, tuple):
            read: Value = read_shape(text, form)
        else:
            read = read_number(text, step.unit, form=form).value
        if close(read, right, step.tolerance):
            return _right(right, step)
        matches = [name for name, value in values.items() if close(read, value, step.tolerance)]
        evidence = [Evidence("read as", with_unit(read, step.unit))]
        if isinstance(read, tuple) and isinstance(right, tuple) and len(read) != len(right):
            evidence.append(Evidence("shape", "the number of axes differs"))
        headline = f"Read as {with_unit(read, step.unit)}; this is not what is computed."
        return wrong(headline, *evidence, mistake=only(matches, mistakes))

    working = tuple(step.working(**parameters))
    last = working[-1] if working else f"answer = {show_value(right)}"
    return Question(
        prompt=step.ask.format(**parameters),
        form=form,
        grade=graded(judge),
        working=working,
        wrong_lines=tuple((name, with_value(last, right, value)) for name, value in values.items()),
        solution=show_value(right) if not isinstance(right, float) else repr(right),
        seed=seed,
        parameters=as_json(parameters),
        wrong_answers={
            name: repr(value) if isinstance(value, float) else show_value(value)
            for name, value in values.items()
        },
    )


def _fair(right: Value, values: list[Value], tolerance: float) -> bool:
    everything = [right, *values]
    return (
        all(map(finite, everything))
        and not is_zero(right)
        and all(
            apart(a, b, tolerance)
            for index, a in enumerate(everything)
            for b in everything[index + 1 :]
        )
    )


def _form(right: Value, values: list[Value], unit: str) -> str:
    """The form with an example that is far from the right answer and from every wrong one."""
    if isinstance(right, tuple):
        shape = next(shape for shape in SHAPE_EXAMPLES if shape != right)
        return f"a shape, for example `{show_value(shape)}` or `{'x'.join(map(str, shape))}`"
    for example in NUMBER_EXAMPLES:
        if all(isinstance(v, tuple) or not 0.3 * example < abs(v) < 3 * example for v in values):
            break
    text = f"`{show_number(example)}{' ' + unit if unit else ''}` or `3^5 * 1e20`"
    if unit in BYTES:
        text = f"`{show_number(example)}` or `{show_number(example)} TiB`"
    return number_form(unit, text)


def _right(right: Value, step: Predict) -> Verdict:
    accepted = interval(right, step.tolerance)
    headline = f"Right: {with_unit(right, step.unit)}."
    if accepted is None:
        return passed(headline)
    low, high = map(show_number, accepted)
    return passed(f"{headline} Accepted: {low} to {high}.", accepted=list(accepted))
