"""`ask`: a question for a typed step, the same for the same step, seed and size."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from firsthand.course.questions.defend import ask_defend
from firsthand.course.questions.derive import ask_derive
from firsthand.course.questions.grading import Mistakes, Question, QuestionError, WorkedExample
from firsthand.course.questions.measure import ask_measure
from firsthand.course.questions.order import ask_order
from firsthand.course.questions.predict import ask_predict
from firsthand.course.questions.trace import ask_trace
from firsthand.course.steps import Defend, Derive, Measure, Order, Predict, Step, Trace

__all__ = ["TYPED", "Question", "QuestionError", "WorkedExample", "ask"]

TYPED: dict[type[Step], Callable[[Any, int, Mistakes, bool], Question]] = {
    Predict: ask_predict,
    Derive: ask_derive,
    Trace: ask_trace,
    Measure: ask_measure,
    Order: ask_order,
    Defend: ask_defend,
}


def ask(step: Step, seed: int, mistakes: Mistakes, small: bool = False) -> Question:
    """The question of a typed step. mistakes: those that belong to it. small: smaller numbers.

    Raises QuestionError, naming the step, when the declaration gives no fair question, and
    TypeError for a step that is answered with a file.
    """
    for kind, make in TYPED.items():
        if isinstance(step, kind):
            return make(step, seed, mistakes, small)
    raise TypeError(f"step {step.id}: a {step.kind} step is answered with a file")
