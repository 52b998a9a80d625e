"""The gate: two attempts, then a rung down, never a skip (PROTOCOL C3 and C5). Pure functions.

A `Gate` is where one learner stands at one step. Every function takes a gate and returns the next
one; none reads a clock (PROTOCOL D2), and only `succeeded` at `Rung.STEP` passes a step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum

from firsthand.course.verdicts import Outcome

ATTEMPTS = 2


class GateError(ValueError):
    """A transition that does not exist, e.g. an answer to the worked example."""


class Rung(IntEnum):
    """From the step itself down to its worked example."""

    STEP = 0
    SMALL = 1  # the same question with smaller numbers
    ORDER = 2  # its lines to be put in order, wrong lines mixed in
    FILL = 3  # one line to be filled in
    WORKED = 4  # the worked example: nothing is asked


@dataclass(frozen=True)
class Gate:
    """Where the learner stands at one step.

    used: judged failures at this rung since it was entered, 0 or 1 (the second one descends).
    deepest: the deepest rung visited in this cycle. cycle: 1 for the first way down the ladder.
    judged: all judged attempts. failures: those that failed. turn: grows whenever a fresh question
    is due, so that (rung, turn) names a question.
    """

    rung: Rung = Rung.STEP
    used: int = 0
    deepest: Rung = Rung.STEP
    cycle: int = 1
    judged: int = 0
    failures: int = 0
    turn: int = 0
    passed: bool = False

    @property
    def left(self) -> int:
        """Attempts left at this rung; 0 where nothing is asked."""
        return ATTEMPTS - self.used if self.may_answer else 0

    @property
    def may_answer(self) -> bool:
        """Whether a question stands open: not after the pass, not at the worked example."""
        return not self.passed and self.rung is not Rung.WORKED

    @property
    def may_simplify(self) -> bool:
        """Whether there is a rung below this one."""
        return self.may_answer

    @property
    def asks_simplify(self) -> bool:
        """On arrival at a lower rung that still asks, "pause or simplify?" is offered (C5)."""
        return self.may_answer and self.rung is not Rung.STEP and self.used == 0


def costs(outcome: Outcome) -> bool:
    """Whether an attempt with this outcome is judged: what could not be judged is free."""
    return outcome is Outcome.PASSED or outcome.costs_attempt


def judged(gate: Gate, outcome: Outcome) -> Gate:
    """The gate after one attempt at the rung where it stands; unchanged if the outcome is free."""
    if not costs(outcome):
        return gate
    return succeeded(gate) if outcome is Outcome.PASSED else failed(gate)


def succeeded(gate: Gate) -> Gate:
    """A right answer: passes the step, or leads from a lower rung back to the step afresh."""
    _require_question(gate)
    gate = replace(gate, judged=gate.judged + 1, turn=gate.turn + 1, used=0)
    return replace(gate, passed=True) if gate.rung is Rung.STEP else replace(gate, rung=Rung.STEP)


def failed(gate: Gate) -> Gate:
    """A judged failure: the first leaves the rung, the second goes one rung down."""
    _require_question(gate)
    gate = replace(
        gate,
        judged=gate.judged + 1,
        failures=gate.failures + 1,
        turn=gate.turn + 1,
        used=gate.used + 1,
    )
    return _descended(gate) if gate.used == ATTEMPTS else gate


def simplified(gate: Gate) -> Gate:
    """The learner's own wish: one rung down at once, without an attempt."""
    _require_question(gate)
    return _descended(replace(gate, turn=gate.turn + 1))


def worked_seen(gate: Gate) -> Gate:
    """The worked example was read: back at the step, with fresh numbers."""
    if gate.passed or gate.rung is not Rung.WORKED:
        raise GateError("the worked example is not what this step shows now")
    return replace(gate, rung=Rung.STEP, used=0, turn=gate.turn + 1)


def describe(gate: Gate) -> str:
    """What the learner may know about the gate of a step: 'attempt 2 of 2', 'passed', ..."""
    if gate.passed:
        return "passed"
    if gate.rung is Rung.WORKED:
        return "worked example, then back to the step"
    where = "" if gate.rung is Rung.STEP else f", rung {int(gate.rung)} of {int(Rung.WORKED)}"
    return f"attempt {gate.used + 1} of {ATTEMPTS}{where}"


def _descended(gate: Gate) -> Gate:
    if gate.rung is not Rung.STEP:
        below, cycle = Rung(gate.rung + 1), gate.cycle
    elif gate.deepest is not Rung.WORKED:
        below, cycle = Rung(gate.deepest + 1), gate.cycle
    else:
        return replace(gate, rung=Rung.SMALL, deepest=Rung.SMALL, used=0, cycle=gate.cycle + 1)
    return replace(gate, rung=below, deepest=max(gate.deepest, below), used=0, cycle=cycle)


def _require_question(gate: Gate) -> None:
    if not gate.may_answer:
        what = "the step is passed" if gate.passed else "the worked example asks nothing"
        raise GateError(f"there is no open question here: {what}")
