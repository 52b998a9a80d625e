"""The ladder below a typed step: smaller numbers, lines to order, one line to fill, worked out."""

from __future__ import annotations

from dataclasses import replace

from firsthand.course.gate import Rung
from firsthand.course.questions.derive import draw_expression, grade_expression
from firsthand.course.questions.grading import (
    Mistakes,
    Question,
    QuestionError,
    WorkedExample,
    derived_seed,
    generator_for,
    graded,
    passed,
)
from firsthand.course.questions.lines import (
    BLANK,
    Lettered,
    blank_line,
    grade_blank,
    grade_sequence,
    scaled,
)
from firsthand.course.questions.order import ask_order, check_lines, first_early, grade_graph
from firsthand.course.questions.question import ask
from firsthand.course.steps import Derive, Measure, Order, Step
from firsthand.course.verdicts import Verdict

__all__ = ["Rung", "rung_question"]

BLANK_FORM = "a number, for example `-123.5` or `3^5 * 1e20`"


def rung_question(
    step: Step, rung: Rung, seed: int, mistakes: Mistakes
) -> Question | WorkedExample:
    """What is asked at a rung, with a case of its own; deterministic in (step, rung, seed)."""
    rung = Rung(rung)
    if rung is Rung.STEP:
        return ask(step, seed, mistakes)
    if isinstance(step, Order):
        return _order_rung(step, rung, seed, mistakes)
    if rung is Rung.SMALL and not isinstance(step, Measure):
        return ask(step, seed, mistakes, small=True)
    case_seed = derived_seed(seed, rung.name)
    case = ask(step, case_seed, mistakes, small=True)
    if not case.working:
        raise QuestionError(f"step {step.id}: without working lines it has no rungs")
    if rung is Rung.WORKED:
        return worked_example(case)
    if rung is Rung.ORDER:
        return _sequence(step, case, mistakes)
    return _fill(step, case, mistakes, last=rung is Rung.SMALL)


def worked_example(case: Question) -> WorkedExample:
    """The case with all of its lines."""
    lines = "\n".join(("```text", *case.working, "```"))
    return WorkedExample(f"{case.prompt}\n\nWorked out:\n\n{lines}")


def _sequence(step: Step, case: Question, mistakes: Mistakes) -> Question:
    wrong_lines = case.wrong_lines
    if not any(text not in case.working for _, text in wrong_lines):
        changed = (scaled(line, 2.0) for line in reversed(case.working))
        invented = next((line for line in changed if line is not None), None)
        wrong_lines = (("", invented),) if invented else ()
    lettered = Lettered(step.id, case.working, wrong_lines, generator_for(step.id, case.seed, True))
    leave_out = " and leave the wrong ones out" if lettered.wrong else ""
    return replace(
        case,
        prompt=(
            f"{case.prompt}\n\nHere the derivation is given. Put its lines in order{leave_out}:"
            f"\n\n{lettered.table()}"
        ),
        form=lettered.form,
        grade=grade_sequence(lettered, mistakes),
        solution=lettered.solution(),
    )


def _fill(step: Step, case: Question, mistakes: Mistakes, *, last: bool) -> Question:
    generator = generator_for(step.id, case.seed, True)
    if isinstance(step, Derive) and (question := _fill_expression(step, case, mistakes)):
        return question
    lines = case.working
    chosen = blank_line(lines[-1:] if last else lines, case.prompt, generator)
    if chosen is None and last:
        chosen = blank_line(lines, case.prompt, generator)
        last = False
    if chosen is None:
        raise QuestionError(f"step {step.id}: no working line has a number to leave out")
    index, hit = chosen
    index = len(lines) - 1 if last else index
    blanked = lines[index][: hit.start()] + BLANK + lines[index][hit.end() :]
    return replace(
        case,
        prompt=_fill_prompt(case, index, blanked),
        form=BLANK_FORM,
        grade=grade_blank(lines[index], hit, case.wrong_lines, mistakes, BLANK_FORM),
        solution=hit.group(),
    )


def _fill_prompt(case: Question, index: int, blanked: str) -> str:
    # the lines after the blank are left out: they would show what belongs in it
    shown = "\n".join(("```text", *case.working[:index], blanked, "```"))
    says = f"Here the derivation is given up to one line. Fill in `{BLANK}`:"
    return f"{case.prompt}\n\n{says}\n\n{shown}"


def _fill_expression(step: Derive, case: Question, mistakes: Mistakes) -> Question | None:
    """The last line with its expression left out; None where it does not stand there as text."""
    before, found, after = case.working[-1].rpartition(case.solution)
    if not found or any(case.solution in line for line in case.working[:-1]):
        return None
    expression = draw_expression(step, case.seed, True)
    return replace(
        case,
        prompt=_fill_prompt(case, len(case.working) - 1, before + BLANK + after),
        grade=grade_expression(expression, mistakes),
    )


# --------------------------------------------------------------------------- Order steps


def _order_rung(step: Order, rung: Rung, seed: int, mistakes: Mistakes) -> Question | WorkedExample:
    check_lines(step)
    case_seed = derived_seed(seed, rung.name)
    if rung is Rung.SMALL:
        return ask_order(step, seed, mistakes, small=True)
    if rung is Rung.ORDER:
        return _one_wrong_line(step, case_seed, mistakes)
    if rung is Rung.FILL:
        return _one_missing_line(step, case_seed, mistakes)
    lines = "\n".join(("```text", *(line.text for line in step.lines), "```"))
    return WorkedExample(f"{step.ask}\n\nIn order:\n\n{lines}")


def _one_wrong_line(step: Order, seed: int, mistakes: Mistakes) -> Question:
    """All right lines with one wrong line mixed in, and the first line given."""
    generator = generator_for(step.id, seed, True)
    pairs = list(step.wrong.items())
    chosen = (pairs[int(generator.integers(len(pairs)))],) if pairs else ()
    lettered = Lettered(
        step.id,
        [line.text for line in step.lines],
        chosen,
        generator,
        lambda places: first_early(step.lines, places) is None,
    )
    leave_out = " One line is wrong: leave it out." if lettered.wrong else ""
    return Question(
        prompt=(
            f"{step.ask}\n\n{lettered.table()}\n\n"
            f"The first line is {lettered.letter_of(0)}.{leave_out}"
        ),
        form=lettered.form,
        grade=grade_graph(step.lines, lettered, mistakes),
        working=tuple(line.text for line in step.lines),
        wrong_lines=chosen,
        solution=lettered.solution(),
        seed=seed,
    )


def _one_missing_line(step: Order, seed: int, mistakes: Mistakes) -> Question:
    """The right order with one line left out, to be chosen among it and the wrong lines."""
    generator = generator_for(step.id, seed, True)
    texts = [line.text for line in step.lines]
    index = int(generator.integers(1, len(texts)))
    decoys = tuple(step.wrong.items()) or tuple(
        ("", text) for text in texts if text != texts[index]
    )
    form = "an order of one letter, for example `Z`"
    lettered = Lettered(step.id, [texts[index]], decoys, generator, form=form)
    shown = "\n".join(("```text", *texts[:index], BLANK, *texts[index + 1 :], "```"))

    def judge(text: str) -> Verdict:
        read = lettered.read(text, mistakes)
        if isinstance(read, Verdict):
            return read
        return passed("Right: this line belongs there.")

    return Question(
        prompt=f"{step.ask}\n\n{shown}\n\nWhich line belongs at `{BLANK}`?\n\n{lettered.table()}",
        form=form,
        grade=graded(judge),
        working=tuple(texts),
        wrong_lines=tuple(step.wrong.items()),
        solution=lettered.solution(),
        seed=seed,
    )
