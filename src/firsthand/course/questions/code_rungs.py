"""The ladder below a Build or Debug step, made from the reference's source.

The caller cuts the source and computes the small case (`course` knows no part of the stack); here
it becomes a question about the small call, lines to order, one line to type, or the worked example.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from firsthand.course.answers import Malformed, read_numbers, refuse_statement, show_number
from firsthand.course.gate import Rung
from firsthand.course.questions.grading import (
    Mistakes,
    Question,
    QuestionError,
    WorkedExample,
    WrongLines,
    close,
    derived_seed,
    generator_for,
    graded,
    passed,
    wrong,
)
from firsthand.course.questions.lines import BLANK, Lettered, grade_sequence
from firsthand.course.verdicts import Evidence, Outcome, Verdict

SMALL_TOLERANCE = 1e-3


@dataclass(frozen=True)
class CodeSource:
    """What a rung made of code needs.

    name: the part. lines: the body of the reference without its docstring, indentation kept.
    wrong_lines: (mistake id, line). key_line: a piece of the one line that is blanked. small_call:
    e.g. 'softmax([1, 2])'. small_answer: what it returns: a number, an array, or a tuple of them.
    check_filled(line): the check of the part with this line, indented as the blanked one, in its
    place. check_ordered(lines): the same with the whole body in another order, which may be right
    too; None where there is no such check. worked: lines that work the small call out. swappable:
    index pairs of `lines` that may change places. mistakes: the words of the mistakes. signature:
    the `def` line, for the context.
    """

    name: str
    lines: tuple[str, ...]
    wrong_lines: WrongLines
    key_line: str
    small_call: str
    small_answer: object
    check_filled: Callable[[str], Verdict]
    check_ordered: Callable[[tuple[str, ...]], Verdict] | None = None
    worked: tuple[str, ...] = ()
    swappable: tuple[tuple[int, int], ...] = ()
    mistakes: Mistakes = ()
    signature: str = ""


def flat_numbers(value: object) -> list[int | float]:
    """The numbers of a number, an array or a nest of tuples, in row order. Raises QuestionError."""
    if isinstance(value, tuple | list):
        return [number for item in value for number in flat_numbers(item)]
    array = np.asarray(value)
    if array.dtype.kind not in "biuf":
        raise QuestionError(f"{value!r} is not made of numbers")
    kind = float if array.dtype.kind == "f" else int
    return [kind(number) for number in array.ravel().tolist()]


def code_rung_question(rung: Rung, seed: int, source: CodeSource) -> Question | WorkedExample:
    """What is asked at a rung below a Build or Debug step. Raises QuestionError for Rung.STEP."""
    rung = Rung(rung)
    if rung is Rung.SMALL:
        return _small(seed, source)
    if rung is Rung.ORDER:
        return _order(seed, source)
    if rung is Rung.FILL:
        return _fill(seed, source)
    if rung is Rung.WORKED:
        return _worked(source)
    raise QuestionError(f"{source.name}: the step itself is answered with a file")


def _fenced(source: CodeSource, lines: tuple[str, ...]) -> str:
    if source.signature:
        lines = (source.signature, *(f"    {line}" for line in lines))
    return "\n".join(("```python", *lines, "```"))


def _small(seed: int, source: CodeSource) -> Question:
    right = flat_numbers(source.small_answer)
    several = len(right) > 1
    digits = ", to within 0.1 %" if any(isinstance(number, float) for number in right) else ""
    example = ", ".join(["-123.5"] * min(len(right), 4)) + (", ..." if len(right) > 4 else "")
    form = f"{len(right)} numbers" if several else "a number"
    form += f"{digits}, for example `{example}`"
    rows = ", arrays row by row in one list" if several else ""

    def judge(text: str) -> Verdict:
        read = read_numbers(text, len(right), form)
        pairs = zip(read, right, strict=True)
        good = [
            close(got, want, SMALL_TOLERANCE if isinstance(want, float) else 0.0)
            for got, want in pairs
        ]
        if all(good):
            return passed("Right: " + ", ".join(map(show_number, right)) + ".")
        first = good.index(False)
        place = f"Number {first + 1}, read as" if several else "Read as"
        return wrong(
            f"{place} {show_number(read[first])}; the call returns something else there.",
            Evidence("read as", ", ".join(map(show_number, read))),
        )

    return Question(
        prompt=f"What does `{source.small_call}` return{rows}?",
        form=form,
        grade=graded(judge),
        working=source.worked,
        wrong_lines=source.wrong_lines,
        solution=", ".join(repr(number) for number in right),
        seed=seed,
    )


def _order(seed: int, source: CodeSource) -> Question:
    kept = [index for index, line in enumerate(source.lines) if line.strip()]
    place = {index: position for position, index in enumerate(kept)}
    lines = [source.lines[index] for index in kept]
    pairs = [(place[a], place[b]) for a, b in source.swappable if a in place and b in place]
    generator = generator_for(source.name, derived_seed(seed, Rung.ORDER.name), True)
    lettered = Lettered(source.name, lines, source.wrong_lines, generator)
    leave_out = " and leave the wrong ones out" if lettered.wrong else ""
    head = f"```python\n{source.signature}\n```\n\n" if source.signature else ""
    return Question(
        prompt=(
            f"The body of `{source.name}`. Put its lines in order{leave_out}:\n\n"
            f"{head}{lettered.table()}"
        ),
        form=lettered.form,
        grade=_graded_order(lettered, source, pairs),
        working=source.worked,
        wrong_lines=source.wrong_lines,
        solution=lettered.solution(),
        seed=seed,
    )


def _graded_order(
    lettered: Lettered, source: CodeSource, pairs: list[tuple[int, int]]
) -> Callable[[str], Verdict]:
    """The reference's own sequence passes; another one passes if the code it makes does."""
    by_sequence = grade_sequence(lettered, source.mistakes, pairs)

    def grade(text: str) -> Verdict:
        verdict = by_sequence(text)
        if verdict.outcome is not Outcome.WRONG or source.check_ordered is None:
            return verdict
        places = lettered.read(text, source.mistakes)
        if isinstance(places, Verdict):
            return verdict
        tried = source.check_ordered(tuple(lettered.text_of(place) for place in places))
        return (
            passed("Right: in this order the code passes its check.") if tried.passed else verdict
        )

    return grade


def _fill(seed: int, source: CodeSource) -> Question:
    hits = [index for index, line in enumerate(source.lines) if source.key_line in line]
    if len(hits) != 1:
        raise QuestionError(f"{source.name}: the key line stands in {len(hits)} lines of the body")
    line = source.lines[hits[0]]
    indentation = line[: len(line) - len(line.lstrip())]
    shown = tuple(
        indentation + BLANK if index == hits[0] else text for index, text in enumerate(source.lines)
    )
    form = "a line of Python, for example `total = first - second`"

    def judge(text: str) -> Verdict:
        refuse_statement(text, form)
        typed = text.strip().strip("`").strip()
        if "\n" in typed or not typed or typed.startswith("#"):
            raise Malformed("One line is asked for.", form)
        return source.check_filled(indentation + typed)

    return Question(
        prompt=(
            f"One line of `{source.name}` is missing. Type the line at `{BLANK}`:\n\n"
            f"{_fenced(source, shown)}"
        ),
        form=form,
        grade=graded(judge),
        working=source.worked,
        wrong_lines=source.wrong_lines,
        solution=line.strip(),
        seed=seed,
    )


def _worked(source: CodeSource) -> WorkedExample:
    value = ", ".join(map(show_number, flat_numbers(source.small_answer)))
    steps = "\n".join(("```text", *source.worked, "```")) + "\n\n" if source.worked else ""
    return WorkedExample(
        f"`{source.name}` line by line:\n\n{_fenced(source, source.lines)}\n\n{steps}"
        f"`{source.small_call}` returns {value}."
    )
