"""PROTOCOL.md, rule by rule, as far as questions, lessons and checks decide it.

The rules that the state of the learner decides are in test_protocol.py.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from firsthand.course.checks.checker import Checker
from firsthand.course.checks.in_process import InProcess
from firsthand.course.checks.requests import Request, Returned, Run
from firsthand.course.lesson import Lesson
from firsthand.course.loading import Course
from firsthand.course.outline import KIND_NAMES, Session
from firsthand.course.questions.question import Question, ask
from firsthand.course.questions.rungs import rung_question
from firsthand.course.sources import PartName
from firsthand.course.steps import Build, Debug, Defend, Measure, Step
from firsthand.course.verdicts import Outcome

COURSE = Course()
SESSIONS = COURSE.outline.sessions
each_session = pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.id)

# Assent in the words of several languages: none of it is a result.
STATEMENTS = (
    "",
    "yes",
    "Yes.",
    "ok",
    "OK!",
    "I understand",
    "I understand the concept now",
    "understood",
    "clear, go on",
    "next",
    "skip",
    "si",
    "sí, entiendo",
    "ja",
    "ja, verstanden",
    "oui, j'ai compris",
    "sì, ho capito",
    "sim, entendi",
    "да, понял",
    "так, зрозуміло",
    "tak, rozumiem",
    "evet, anladım",
    "はい、わかりました",
    "好的，我明白了",
    "नहीं, समझ गया",
    "نعم، فهمت",
    "👍",
)


def typed_steps() -> list[tuple[str, Step]]:
    return [
        (step_id, step)
        for session in SESSIONS
        for step_id, step in COURSE.code(session.id).steps.items()
        if not isinstance(step, Build | Debug)
    ]


def one_of_each_kind() -> dict[str, tuple[str, Step]]:
    return {step.kind: (step_id, step) for step_id, step in reversed(typed_steps())}


def asked(step_id: str, step: Step, seed: int = 5) -> Question:
    return ask(step, seed, COURSE.code(COURSE.outline.step(step_id).session).mistakes_of(step))


# ---------------------------------------------------------------------- B3: one session


@each_session
def test_b3_one_objective_and_about_an_hour(session: Session) -> None:
    assert 45 <= session.minutes <= 80
    sentences = re.findall(r"[.!?](?:\s|$)", session.objective)
    assert len(sentences) == 1
    assert session.able
    kinds = [step.kind for step in session.steps]
    assert "Build" in kinds
    assert len(set(kinds)) >= 3


# ---------------------------------------------------------------------- C4: results, not statements


def test_c4_every_typed_kind_is_asked_about() -> None:
    assert set(one_of_each_kind()) == set(KIND_NAMES) - {"Build", "Debug"}


@pytest.mark.parametrize("kind", sorted(set(KIND_NAMES) - {"Build", "Debug"}))
@pytest.mark.parametrize("statement", STATEMENTS)
def test_c4_a_statement_is_no_answer_and_costs_nothing(kind: str, statement: str) -> None:
    step_id, step = one_of_each_kind()[kind]
    verdict = asked(step_id, step).grade(statement)
    assert verdict.outcome is Outcome.MALFORMED, verdict
    assert not verdict.outcome.costs_attempt


@pytest.mark.parametrize("rung", [1, 2, 3])
def test_c4_nor_is_it_one_on_a_rung(rung: int) -> None:
    for step_id, step in one_of_each_kind().values():
        mistakes = COURSE.code(COURSE.outline.step(step_id).session).mistakes_of(step)
        question = rung_question(step, rung, 5, mistakes)  # type: ignore[arg-type]
        assert isinstance(question, Question)
        for statement in ("yes", "I understand", "ja, verstanden", "да"):
            assert not question.grade(statement).passed


@pytest.mark.parametrize("statement", ["pass", "return", "return True", "return 'I understand'"])
def test_c4_nor_is_it_one_in_a_file(statement: str) -> None:
    checker = Checker(COURSE, InProcess(None), Path("."))
    names: dict[str, Any] = {}
    exec(f"def dot_product(weights, inputs):\n    {statement}\n", names)
    verdict = checker.check_version("1.1/dot-product", 1, names["dot_product"])
    assert not verdict.passed


def test_c4_a_result_is_one() -> None:
    for step_id, step in one_of_each_kind().values():
        if not isinstance(step, Measure):
            question = asked(step_id, step)
            assert question.grade(question.solution).passed, step_id


# ---------------------------------------------------------------------- C6: pictures


@each_session
def test_c6_a_diagram_and_a_table(session: Session) -> None:
    text = Lesson(session, {}).text
    assert "```mermaid\n" in text
    assert re.search(r"^\|.+\|\n\|[ :|-]+\|\n\|.+\|$", text, re.MULTILINE)


# ---------------------------------------------------------------------- C2: the answer stays hidden


def test_c2_neither_prompt_nor_form_nor_verdict_holds_the_answer() -> None:
    for step_id, step in typed_steps():
        if isinstance(step, Measure) or step.kind not in ("Predict", "Derive"):
            continue
        for seed in range(3):
            question = asked(step_id, step, seed)
            long = len(question.solution) > 3
            assert not long or question.solution not in question.form
            assert not long or question.solution not in question.prompt
            for answer in question.wrong_answers.values():
                verdict = question.grade(answer)
                told = " ".join([verdict.headline, *(item.text for item in verdict.evidence)])
                told = told.replace(answer, " ")
                pattern = rf"(?<![\w.]){re.escape(question.solution)}(?![\w.])"
                assert not long or not re.search(pattern, told), (step_id, told)


# ---------------------------------------------------------------------- D3: a topic is closed


@each_session
def test_d3_the_last_step_closes_a_concept_and_is_recomputed(session: Session) -> None:
    last = COURSE.code(session.id).steps[session.steps[-1].id]
    assert isinstance(last, Defend)
    assert last.closes in {concept.id for concept in session.concepts}
    first, other = (asked(session.steps[-1].id, last, seed) for seed in (1, 4))
    assert first.grade(first.solution).passed
    figures = re.findall(r"= ([^;]+)", first.solution)
    assert figures
    for figure in figures:  # each of the stated figures is checked, one at a time
        changed = first.solution.replace(f"= {figure}", f"= {float(figure) * 1.3 + 7!r}", 1)
        verdict = first.grade(changed)
        assert verdict.outcome is Outcome.WRONG, changed
    if other.prompt != first.prompt:
        assert not other.grade(first.solution).passed


@each_session
def test_d3_an_imprecise_statement_gets_one_correction(session: Session) -> None:
    step_id = session.steps[-1].id
    question = asked(step_id, COURSE.step(step_id))
    assert question.wrong_answers
    for name, answer in question.wrong_answers.items():
        verdict = question.grade(answer)
        assert verdict.mistake == name
        assert (verdict.question or "").count("?") == 1


# ---------------------------------------------------------------------- G: fair verdicts


def test_g1_both_paths_are_checked() -> None:
    """A tensor that computes right and propagates wrong does not pass, nor the other way round."""
    checker = Checker(COURSE, InProcess(None), Path("."))
    step_id = "1.5/tensor-products"
    build = COURSE.step(step_id)
    assert isinstance(build, Build)
    tensor = COURSE.reference(PartName.parse(build.part))
    assert checker.check_version(step_id, 2, tensor).passed

    class WrongBackward(tensor):  # type: ignore[misc, valid-type]
        def __matmul__(self, other: Any) -> Any:
            made = super().__matmul__(other)
            rule = made.backward_rule
            made.backward_rule = lambda gradient: tuple(2 * share for share in rule(gradient))
            return made

    class WrongForward(tensor):  # type: ignore[misc, valid-type]
        def __matmul__(self, other: Any) -> Any:
            made = super().__matmul__(other)
            made.data = made.data * 2
            return made

    for wrong in (WrongBackward, WrongForward):
        assert checker.check_version(step_id, 2, wrong).outcome is Outcome.WRONG


class Timed:
    """An executor whose measurements are given: the learner's code takes `ratio` times as long."""

    def __init__(self, part: Any, ratio: float) -> None:
        self.part, self.ratio = part, ratio

    def execute(self, request: Request) -> Run:
        run = InProcess(self.part).execute(replace(request, timed=None))
        first = run.results[0]
        if request.timed is None or not isinstance(first, Returned):
            return run
        seconds = 1.0 if request.reference else self.ratio
        return replace(run, results=(replace(first, seconds=seconds),))


def test_g2_slow_is_another_verdict_than_wrong(copied_course: Callable[..., Course]) -> None:
    course = copied_course(
        ("steps.py", "    Scenario,\n", "    Scenario,\n    Speed,\n"),
        (
            "steps.py",
            '    key_line="return inputs @ weights + biases",\n',
            '    key_line="return inputs @ weights + biases",\n'
            "    speed=Speed(arguments=lambda generator: (np.ones((2, 3)), np.ones((3, 4)), "
            'np.ones(4)), ratio=5.0, why="One product."),\n',
        ),
    )
    reference = course.reference(PartName.parse("foundations.neuron:layer"))

    def outcome(part: Any, ratio: float) -> Outcome:
        return Checker(course, Timed(part, ratio), Path(".")).check("1.1/layer", 1).outcome

    def wrong(inputs: Any, weights: Any, biases: Any) -> Any:
        return inputs @ weights

    assert outcome(reference, 2.0) is Outcome.PASSED
    assert outcome(reference, 50.0) is Outcome.SLOW
    assert outcome(wrong, 0.1) is outcome(wrong, 50.0) is Outcome.WRONG
    assert not Outcome.SLOW.costs_attempt


@pytest.mark.parametrize("step_id", ["1.1/dot-product", "1.1/layer", "1.1/row-major-strides"])
def test_g3_wrong_is_said_with_a_call_that_anyone_can_run(step_id: str) -> None:
    checker = Checker(COURSE, InProcess(None), Path("."))
    build = checker.build_of(step_id)
    part = PartName.parse(build.part)
    reference = COURSE.reference(part)
    for mistake in checker.mistakes(step_id):
        version = COURSE.version(mistake, build)
        verdict = checker.check_version(step_id, 1, version)
        assert verdict.outcome is Outcome.WRONG
        calls = [item.text for item in verdict.evidence if item.label == "call"]
        assert calls, mistake.id
        if "relation" in {item.label for item in verdict.evidence}:
            continue  # two calls that contradict each other, not the reference

        def run(function: Any, text: str) -> Any:
            try:
                return eval(text, {"np": np, part.name: function})
            except Exception as error:
                return type(error).__name__

        wrong, right = run(version, calls[0]), run(reference, calls[0])
        assert str(wrong) != str(right), (mistake.id, calls[0])


@each_session
def test_g4_right_code_in_another_style_passes(session: Session) -> None:
    code = COURSE.code(session.id)
    checker = Checker(COURSE, InProcess(None), Path("."))
    for step_id, step in code.steps.items():
        if isinstance(step, Build):
            assert code.alternatives_of(step)
            for other in code.alternatives_of(step):
                assert other.code is not COURSE.reference(PartName.parse(step.part))
                assert checker.check_version(step_id, 11, other.code).passed, step_id
