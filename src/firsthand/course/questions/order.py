"""Order: lines to be put in order, wrong ones left out, decided by the dependency graph."""

from __future__ import annotations

from collections.abc import Sequence

from firsthand.course.questions.grading import (
    Grade,
    Mistakes,
    Question,
    QuestionError,
    generator_for,
    graded,
    passed,
    wrong,
)
from firsthand.course.questions.lines import Lettered
from firsthand.course.steps import Line, Order
from firsthand.course.verdicts import Evidence, Verdict


def ask_order(step: Order, seed: int, mistakes: Mistakes, small: bool = False) -> Question:
    """small: the first half of the lines, closed under what they need."""
    lines = first_half(step.lines) if small else step.lines
    check_lines(step)
    generator = generator_for(step.id, seed, small)
    wrong_lines = tuple(step.wrong.items())
    lettered = Lettered(
        step.id,
        [line.text for line in lines],
        wrong_lines,
        generator,
        lambda places: first_early(lines, places) is None,
    )
    ask = f"{step.ask}\n\n{lettered.table()}"
    if lettered.wrong:
        ask += "\n\nLeave the wrong lines out."
    return Question(
        prompt=ask,
        form=lettered.form,
        grade=grade_graph(lines, lettered, mistakes),
        working=tuple(line.text for line in lines),
        wrong_lines=wrong_lines,
        solution=lettered.solution(),
        seed=seed,
        parameters={"lines": [line.id for line in lines]},
        wrong_answers=lettered.with_wrong_lines(),
    )


def grade_graph(lines: Sequence[Line], lettered: Lettered, mistakes: Mistakes) -> Grade:
    """Any order passes in which no line stands before one that it needs."""

    def judge(text: str) -> Verdict:
        places = lettered.read(text, mistakes)
        if isinstance(places, Verdict):
            return places
        early = first_early(lines, places)
        if early is None:
            return passed("Right: every line stands after those that it needs.")
        shown = Evidence("read as", " ".join(lettered.letter_of(place) for place in places))
        return wrong(f"Line {lettered.letter_of(early)} stands before a line that it needs.", shown)

    return graded(judge)


def first_early(lines: Sequence[Line], places: Sequence[int]) -> int | None:
    """The first place whose line needs one that comes later; None for a valid order."""
    done: set[str] = set()
    for place in places:
        if not done.issuperset(lines[place].needs):
            return place
        done.add(lines[place].id)
    return None


def first_half(lines: Sequence[Line]) -> tuple[Line, ...]:
    """The first half, at least two lines, with everything that these need, in the same order."""
    by_id = {line.id: line for line in lines}
    wanted: set[str] = set()
    pending = [line.id for line in lines[: max(2, (len(lines) + 1) // 2)]]
    while pending:
        name = pending.pop()
        if name not in wanted and name in by_id:
            wanted.add(name)
            pending.extend(by_id[name].needs)
    return tuple(line for line in lines if line.id in wanted)


def check_lines(step: Order) -> None:
    """Raise QuestionError unless the declared order is valid and the reversed one is not."""
    ids = [line.id for line in step.lines]
    if len(set(ids)) != len(ids):
        raise QuestionError(f"step {step.id}: two lines have one id")
    early = first_early(step.lines, range(len(ids)))
    if early is not None:
        raise QuestionError(
            f"step {step.id}: line {ids[early]} is declared before a line that it needs"
        )
    if not any(line.needs for line in step.lines):
        raise QuestionError(f"step {step.id}: no line needs another, so any order would pass")
