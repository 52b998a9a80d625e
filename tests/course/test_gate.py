"""The gate alone: every transition of the ladder."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.course import gate as gates
from firsthand.course.gate import ATTEMPTS, Gate, GateError, Rung
from firsthand.course.verdicts import Outcome


def fail_twice(gate: Gate) -> Gate:
    return gates.failed(gates.failed(gate))


def test_one_failure_stays_two_go_one_rung_down() -> None:
    gate = gates.failed(Gate())
    assert (gate.rung, gate.used, gate.left) == (Rung.STEP, 1, 1)
    assert gates.failed(gate).rung is Rung.SMALL


def test_each_pair_of_failures_descends_to_the_worked_example() -> None:
    gate, visited = Gate(), []
    while gate.rung is not Rung.WORKED:
        gate = fail_twice(gate)
        visited.append(gate.rung)
    assert visited == [Rung.SMALL, Rung.ORDER, Rung.FILL, Rung.WORKED]


def test_passing_a_rung_leads_back_to_the_step_with_all_attempts() -> None:
    gate = gates.succeeded(gates.failed(fail_twice(Gate())))
    assert (gate.rung, gate.used, gate.passed) == (Rung.STEP, 0, False)


def test_failing_again_descends_below_the_deepest_rung_of_the_cycle() -> None:
    gate = gates.succeeded(fail_twice(Gate()))
    assert fail_twice(gate).rung is Rung.ORDER


def test_after_the_worked_example_a_new_cycle_begins_at_small() -> None:
    gate = Gate()
    for _ in range(4):
        gate = fail_twice(gate)
    gate = gates.worked_seen(gate)
    assert (gate.rung, gate.used, gate.cycle) == (Rung.STEP, 0, 1)
    gate = fail_twice(gate)
    assert (gate.rung, gate.cycle, gate.deepest) == (Rung.SMALL, 2, Rung.SMALL)
    assert fail_twice(gates.succeeded(gate)).rung is Rung.ORDER


def test_simplify_goes_down_at_once_and_costs_no_attempt() -> None:
    gate = gates.simplified(gates.failed(Gate()))
    assert (gate.rung, gate.judged, gate.used) == (Rung.SMALL, 1, 0)


def test_nothing_is_answered_after_the_pass_or_at_the_worked_example() -> None:
    passed = gates.succeeded(Gate())
    worked = Gate(rung=Rung.WORKED, deepest=Rung.WORKED)
    for gate in (passed, worked):
        for move in (gates.failed, gates.succeeded, gates.simplified):
            with pytest.raises(GateError):
                move(gate)
    for gate in (passed, Gate()):
        with pytest.raises(GateError):
            gates.worked_seen(gate)


@pytest.mark.parametrize("outcome", list(Outcome))
def test_only_judged_outcomes_move_the_gate(outcome: Outcome) -> None:
    judged = {Outcome.PASSED, Outcome.WRONG, Outcome.LIBRARY}
    assert (gates.judged(Gate(), outcome) != Gate()) == (outcome in judged)


MOVES = {
    "wrong": gates.failed,
    "right": gates.succeeded,
    "simplify": gates.simplified,
    "read": gates.worked_seen,
}


@given(st.lists(st.sampled_from(list(MOVES))))
def test_any_path_keeps_the_invariants(path: list[str]) -> None:
    gate = Gate()
    for name in path:
        try:
            moved = MOVES[name](gate)
        except GateError:
            continue
        assert moved.turn == gate.turn + 1
        assert 0 <= moved.used < ATTEMPTS
        assert moved.deepest >= moved.rung
        assert moved.passed == (name == "right" and gate.rung is Rung.STEP)
        assert moved.failures <= moved.judged
        assert moved.rung - gate.rung <= 1 or gate.rung is Rung.STEP
        gate = moved
