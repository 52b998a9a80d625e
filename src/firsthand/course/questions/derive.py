"""Derive: an expression, decided by equality over the reals and not by its spelling."""

from __future__ import annotations

from firsthand.course.algebra import EqualityState, check_expression, differs_at_points
from firsthand.course.answers import Malformed, show_number
from firsthand.course.expressions import Reader
from firsthand.course.questions.grading import (
    MOST_DRAWS,
    Grade,
    Mistakes,
    Question,
    QuestionError,
    generator_for,
    graded,
    only,
    passed,
    undecided,
    wrong,
)
from firsthand.course.steps import Derive, Expression
from firsthand.course.verdicts import Evidence, Outcome, Verdict


def ask_derive(step: Derive, seed: int, mistakes: Mistakes, small: bool = False) -> Question:
    """Raises QuestionError where wrong expressions equal the right one or each other."""
    expression = draw_expression(step, seed, small)
    form = Reader(expression.symbols, expression.functions).form
    functions = f" Functions: {', '.join(expression.functions)}." if expression.functions else ""
    positive = f" Positive: {', '.join(expression.positive)}." if expression.positive else ""
    symbols = f"Symbols: {', '.join(expression.symbols)}.{functions}{positive}"
    last = expression.working[-1] if expression.working else expression.answer
    return Question(
        prompt=f"{expression.ask}\n\n{symbols}",
        form=form,
        grade=grade_expression(expression, mistakes),
        working=tuple(expression.working),
        wrong_lines=tuple(
            (name, with_expression(last, expression.answer, text))
            for name, text in expression.wrong.items()
        ),
        solution=expression.answer,
        seed=seed,
        parameters={"answer_symbols": list(expression.symbols), "ask": expression.ask},
        wrong_answers=dict(expression.wrong),
    )


def draw_expression(step: Derive, seed: int, small: bool) -> Expression:
    """The expression of this case: the first draw that separates the wrong ones."""
    generator = generator_for(step.id, seed, small)
    for _ in range(MOST_DRAWS):
        expression = step.draw(generator, small)
        if _fair(expression):
            return expression
    raise QuestionError(
        f"step {step.id}: in {MOST_DRAWS} draws the right expression was never different from "
        "zero and from every wrong one, and these from each other"
    )


def grade_expression(expression: Expression, mistakes: Mistakes) -> Grade:
    """Grade a typed expression; a wrong one that equals exactly one mistake's is named."""
    form = Reader(expression.symbols, expression.functions).form

    def judge(text: str) -> Verdict:
        found = check_expression(
            text,
            expression.answer,
            expression.symbols,
            expression.positive,
            expression.functions,
        )
        if found.state is EqualityState.MALFORMED:
            return Verdict(Outcome.MALFORMED, found.message, (Evidence("form", form),))
        if found.state is EqualityState.UNDECIDED:
            return undecided(found.message)
        if found.equal:
            return passed(f"Right: equal to {expression.answer}.")
        matches = [
            name
            for name, other in expression.wrong.items()
            if check_expression(
                text, other, expression.symbols, expression.positive, expression.functions
            ).equal
        ]
        point = ", ".join(f"{name} = {show_number(value)}" for name, value in found.point)
        value = found.answer_value
        yours = "undefined" if value is None else show_number(value)
        evidence = Evidence("counterexample", f"at {point or 'any point'}: yours is {yours}")
        headline = "The expression has another value than the computed one at the point below."
        return wrong(headline, evidence, mistake=only(matches, mistakes))

    return graded(judge)


def with_expression(line: str, right: str, text: str) -> str:
    """`line` with the answer replaced by another expression."""
    if right in line:
        before, _, after = line.rpartition(right)
        return before + text + after
    before, equals, _ = line.rpartition("=")
    return f"{before}{equals} {text}".strip() if equals else text


def _fair(expression: Expression) -> bool:
    texts = [expression.answer, *expression.wrong.values()]
    pairs = [(a, b) for index, a in enumerate(texts) for b in texts[index + 1 :]]
    pairs.append((expression.answer, "0"))
    try:
        return all(
            differs_at_points(a, b, expression.symbols, expression.positive, expression.functions)
            for a, b in pairs
        )
    except Malformed as malformed:
        raise QuestionError(f"an expression cannot be read: {malformed.problem}") from None
