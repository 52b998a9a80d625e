"""The ladder of typed steps and the one made of code."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.course.gate import Rung
from firsthand.course.questions.code_rungs import CodeSource, code_rung_question, flat_numbers
from firsthand.course.questions.grading import Question, QuestionError, WorkedExample
from firsthand.course.questions.lines import BLANK, NUMBER, with_value
from firsthand.course.questions.question import ask
from firsthand.course.questions.rungs import rung_question
from firsthand.course.steps import Line, Order, Predict, WrongAnswer
from firsthand.course.verdicts import Outcome, Verdict

ASKED = (Rung.SMALL, Rung.ORDER, Rung.FILL)
SEEDS = 60


def asked(sample: Any, rung: Rung, seed: int) -> Question:
    question = rung_question(sample.step, rung, seed, sample.mistakes)
    assert isinstance(question, Question)
    return question


def letters(question: Question) -> dict[str, str]:
    return {text: letter for letter, text in re.findall(r"^([A-Z])  (.*)$", question.prompt, re.M)}


def test_the_solution_of_every_rung_passes(sample: Any) -> None:
    for rung in ASKED:
        for seed in range(SEEDS):
            question = asked(sample, rung, seed)
            verdict = question.grade(question.solution)
            assert verdict.outcome is Outcome.PASSED, (rung, seed, question, verdict)
            for text in ("", "ok", "I understand", "entiendo"):
                malformed = question.grade(text)
                assert malformed.outcome is Outcome.MALFORMED
                assert question.form in malformed.headline


def test_the_example_of_a_rungs_form_never_passes(sample: Any) -> None:
    for rung in ASKED:
        for seed in range(SEEDS // 2):
            question = asked(sample, rung, seed)
            for example in re.findall(r"`([^`]+)`", question.form):
                verdict = question.grade(example)
                assert verdict.outcome in (Outcome.WRONG, Outcome.MALFORMED), (rung, verdict)


def test_a_rung_is_a_function_of_step_rung_and_seed(sample: Any) -> None:
    for rung in ASKED:
        first, again = asked(sample, rung, 5), asked(sample, rung, 5)
        assert replace(first, grade=again.grade) == again
    example = rung_question(sample.step, Rung.WORKED, 5, sample.mistakes)
    assert example == rung_question(sample.step, Rung.WORKED, 5, sample.mistakes)


def test_the_step_itself_is_the_highest_rung(sample: Any) -> None:
    question = asked(sample, Rung.STEP, 3)
    assert question.prompt == ask(sample.step, 3, sample.mistakes).prompt


def test_the_worked_example_shows_all_lines_and_asks_nothing(sample: Any) -> None:
    example = rung_question(sample.step, Rung.WORKED, 2, sample.mistakes)
    assert isinstance(example, WorkedExample)
    assert BLANK not in example.text.split("Worked out:")[-1].split("In order:")[-1]


def test_rungs_have_cases_of_their_own(samples: dict[str, Any]) -> None:
    sample = samples["predict"]
    cases = [str(asked(sample, rung, 3).parameters) for rung in (Rung.STEP, *ASKED)]
    assert len(set(cases)) == len(cases)


def test_order_takes_the_lines_in_sequence_and_names_the_wrong_one(
    samples: dict[str, Any],
) -> None:
    for name in ("predict", "shape", "derive", "trace", "defend"):
        sample = samples[name]
        for seed in range(SEEDS):
            question = asked(sample, Rung.ORDER, seed)
            letter = letters(question)
            right = [letter[line] for line in question.working]
            assert question.grade(" ".join(right)).passed
            assert question.grade(" ".join(reversed(right))).outcome is Outcome.WRONG
            assert question.grade(" ".join(right[:-1])).outcome is Outcome.WRONG
            for mistake, line in question.wrong_lines:
                if [text for _, text in question.wrong_lines].count(line) > 1:
                    continue
                assert line not in question.working
                verdict = question.grade(" ".join([*right[:-1], letter[line]]))
                assert verdict.outcome is Outcome.WRONG
                assert verdict.mistake == mistake
                everything = question.grade(" ".join([*right, letter[line]]))
                assert everything.outcome is Outcome.WRONG


def test_where_no_mistake_gives_a_line_one_is_made(samples: dict[str, Any]) -> None:
    for name in ("predict", "measure", "share"):
        question = rung_question(samples[name].step, Rung.ORDER, 1, ())
        assert isinstance(question, Question)
        letter = letters(question)
        assert len(letter) == len(question.working) + 1
        wrong = next(text for text in letter if text not in question.working)
        right = [letter[line] for line in question.working]
        verdict = question.grade(" ".join([*right[:-1], letter[wrong]]))
        assert verdict.outcome is Outcome.WRONG
        assert verdict.mistake is None


def test_lines_with_one_text_are_interchangeable(samples: dict[str, Any]) -> None:
    step = replace(
        samples["predict"].step,
        working=lambda **p: ["add 1", "double", "add 1", f"that is {p['layers']}"],
    )
    question = rung_question(step, Rung.ORDER, 4, ())
    assert isinstance(question, Question)
    rows = re.findall(r"^([A-Z])  (.*)$", question.prompt, re.M)
    ones = [letter for letter, text in rows if text == "add 1"]
    double = next(letter for letter, text in rows if text == "double")
    last = next(letter for letter, text in rows if text == question.working[-1])
    assert question.grade(f"{ones[0]} {double} {ones[1]} {last}").passed
    assert question.grade(f"{ones[1]} {double} {ones[0]} {last}").passed
    assert not question.grade(f"{ones[0]} {ones[1]} {double} {last}").passed


def test_fill_blanks_a_number_that_nothing_shown_holds(samples: dict[str, Any]) -> None:
    for name in ("predict", "trace"):
        sample = samples[name]
        for seed in range(SEEDS):
            question = asked(sample, Rung.FILL, seed)
            assert question.prompt.count(BLANK) >= 1
            shown = question.prompt.split("Fill in `____`:")[1]
            assert shown.count(BLANK) == 1
            assert BLANK in shown.splitlines()[-2]  # nothing but the fence after the blank
            numbers = [hit.group() for hit in NUMBER.finditer(shown)]
            assert question.solution not in numbers
            assert question.grade("0").outcome is Outcome.WRONG
            assert question.grade(f"-{question.solution}").outcome is Outcome.WRONG


def test_fill_names_the_mistake_whose_line_holds_the_number(samples: dict[str, Any]) -> None:
    sample = samples["predict"]
    named = set()
    for seed in range(SEEDS):
        question = asked(sample, Rung.FILL, seed)
        blanked = question.prompt.splitlines()[-2]
        for mistake, line in question.wrong_lines:
            before, _, after = blanked.partition(BLANK)
            if line.startswith(before) and line.endswith(after) and "float16" in before:
                typed = line[len(before) : len(line) - len(after)]
                verdict = question.grade(typed)
                assert verdict.mistake == mistake
                assert question.solution not in re.findall(r"\d+", verdict.headline)
                named.add(mistake)
    assert named == {mistake.id for mistake in sample.mistakes}


def test_fill_of_a_derivation_asks_for_the_expression(samples: dict[str, Any]) -> None:
    question = asked(samples["derive"], Rung.FILL, 2)
    assert f"dL/dw = {BLANK}" in question.prompt
    assert question.solution not in question.prompt
    k = int(re.findall(r"L = (\d+)", question.prompt)[0])
    assert question.grade(f"({2 * k} w x - {2 * k} y) x").passed
    assert question.grade(f"{k}*x*(w*x - y)").mistake == "no-two"


def test_rungs_of_an_order_step(samples: dict[str, Any]) -> None:
    sample = samples["order"]
    small = asked(sample, Rung.SMALL, 0)
    assert len(letters(small)) == 3 + 2
    order = asked(sample, Rung.ORDER, 0)
    assert len(letters(order)) == 5 + 1
    assert f"The first line is {letters(order)['dL/da = 2 (a - y)']}" in order.prompt
    for seed in range(SEEDS):
        fill = asked(sample, Rung.FILL, seed)
        letter = letters(fill)
        assert len(letter) == 1 + 2
        for mistake, text in sample.step.wrong.items():
            assert fill.grade(letter[text]).mistake == mistake
    bare = Order(
        id="bare",
        ask="Order.",
        lines=(Line(id="a", text="first"), Line(id="b", text="second", needs=("a",))),
        wrong={},
    )
    for rung in ASKED:
        question = rung_question(bare, rung, 0, ())
        assert isinstance(question, Question)
        assert question.grade(question.solution).passed


def test_working_without_numbers_has_no_blank() -> None:
    step = Predict(
        id="mute",
        draw=lambda generator, small: {"n": int(generator.integers(2, 9))},
        ask="{n}?",
        answer=lambda n: n,
        working=lambda n: ["it is what it is"],
    )
    with pytest.raises(QuestionError, match="mute"):
        rung_question(step, Rung.FILL, 0, ())


@given(st.integers(1, 10**9), st.integers(1, 10**9))
def test_a_replaced_value_stands_where_the_right_one_stood(right: int, value: int) -> None:
    line = f"INT8, x_1: 2 * 3 = {right} bytes"
    assert with_value(line, right, value) == f"INT8, x_1: 2 * 3 = {value} bytes"
    assert with_value(f"so ({right}, 2)", (right, 2), (value, 3)) == f"so ({value}, 3)"
    assert with_value("so it is", right, value) == f"so it is = {value}"


# --------------------------------------------------------------------------- code

BODY = (
    "    largest = max(values)",
    "    shifted = [value - largest for value in values]",
    "    weights = [exp(value) for value in shifted]",
    "    total = sum(weights)",
    "    count = len(values)",
    "",
    "    return [weight / total for weight in weights]",
)
NO_SHIFT = WrongAnswer(
    id="no-shift", step="softmax", belief="exp takes any size.", question="What is exp(1000)?"
)


def filled(line: str) -> Verdict:
    if line == BODY[3]:
        return Verdict(Outcome.PASSED, "Passed.")
    return Verdict(Outcome.WRONG, f"Wrong: {line!r}")


SOURCE = CodeSource(
    name="softmax",
    lines=BODY,
    wrong_lines=(("no-shift", "    shifted = values"),),
    key_line="sum(weights)",
    small_call="softmax([0, 0, log(2)])",
    small_answer=(np.array([[0.25, 0.25], [0.5, 3.0]]), 7, np.float64(1 / 3)),
    check_filled=filled,
    worked=("exp gives 1, 1, 2",),
    swappable=((4, 0), (4, 1), (4, 2), (4, 3)),
    mistakes=(NO_SHIFT,),
    signature="def softmax(values):",
)


def coded(rung: Rung, seed: int = 0) -> Question:
    question = code_rung_question(rung, seed, SOURCE)
    assert isinstance(question, Question)
    return question


def test_the_small_call_is_answered_with_numbers_in_row_order() -> None:
    question = coded(Rung.SMALL)
    assert "softmax([0, 0, log(2)])" in question.prompt
    assert "6 numbers" in question.form
    for text in (
        question.solution,
        "0.25, 0.25, 0.5, 3, 7, 1/3",
        "([[0.25 0.25]\n [0.5 3.]], 7, 0.3333)",
    ):
        assert question.grade(text).passed, text
    wrong = question.grade("0.25, 0.5, 0.25, 3, 7, 1/3")
    assert wrong.outcome is Outcome.WRONG
    assert "Number 2, read as 0.5" in wrong.headline
    assert question.grade("0.25, 0.25, 0.5, 3, 7.001, 1/3").outcome is Outcome.WRONG
    assert question.grade("0.25, 0.25").outcome is Outcome.MALFORMED
    for text in ("0, 0, 0, 0, 0, 0", "-0.25, -0.25, -0.5, -3, -7, -1/3"):
        assert question.grade(text).outcome is Outcome.WRONG


def test_lines_of_code_keep_their_indentation_and_may_swap_where_allowed() -> None:
    for seed in range(SEEDS):
        question = coded(Rung.ORDER, seed)
        letter = letters(question)
        assert set(letter) == {line for line in BODY if line} | {"    shifted = values"}

        def answer(order: str, letter: dict[str, str] = letter) -> str:
            return " ".join(letter[BODY[int(index)]] for index in order)

        for order in ("012346", "401236", "041236"):
            assert question.grade(answer(order)).passed
        for order in ("102346", "013246", "012364", "640123"):
            assert question.grade(answer(order)).outcome is Outcome.WRONG
        named = question.grade(answer("02346") + " " + letter["    shifted = values"])
        assert named.mistake == "no-shift"
        assert question.grade(question.solution).passed


def test_the_filled_line_is_checked_in_its_place() -> None:
    question = coded(Rung.FILL)
    assert "sum(weights)" not in question.prompt
    assert f"    {BLANK}" in question.prompt
    assert question.grade("total = sum(weights)").passed
    assert question.grade("    `total = sum(weights)`  ").passed
    assert question.grade("total = 1").outcome is Outcome.WRONG
    for text in ("", "ok", "# nothing", "a = 1\nb = 2", "entiendo"):
        assert question.grade(text).outcome is Outcome.MALFORMED
    twice = replace(SOURCE, key_line="values")
    with pytest.raises(QuestionError, match="softmax"):
        code_rung_question(Rung.FILL, 0, twice)


def test_the_worked_code_and_what_has_no_rung() -> None:
    example = code_rung_question(Rung.WORKED, 0, SOURCE)
    assert isinstance(example, WorkedExample)
    for line in (*BODY, "exp gives 1, 1, 2", "0.25, 0.25, 0.5, 3, 7, 0.3333333333"):
        assert line in example.text
    with pytest.raises(QuestionError, match="file"):
        code_rung_question(Rung.STEP, 0, SOURCE)
    with pytest.raises(QuestionError, match="numbers"):
        flat_numbers("text")
    assert flat_numbers((True, [1, np.arange(2.0)])) == [1, 1, 0.0, 1.0]
