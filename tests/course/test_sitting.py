"""A sitting under odd conditions: two at once, stale answers, a log that fails."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from firsthand.course.gate import Rung
from firsthand.course.log import EventKind, EventLog, LogError
from firsthand.course.screens import CourseEnd, StepScreen
from firsthand.course.sitting import SittingError
from firsthand.course.verdicts import Outcome


def test_a_restart_asks_the_same_question(learner: Any) -> None:
    learner.wrong()
    before = learner.step()
    learner.sit_down()
    assert learner.step() == before
    learner.wrong()
    assert learner.step().seed != before.seed


def test_two_faces_at_once_see_each_other(
    learner: Any, new_learner: Any, make_verdict: Any
) -> None:
    learner.step()
    with EventLog(learner.log.path, clock=learner.clock) as log:
        other = new_learner(log, learner.clock, learner.outline)
        stale = other.step()
        assert stale.step == learner.step().step
        learner.wrong()
        with pytest.raises(SittingError, match="answered elsewhere"):
            other.sitting.answer(stale, make_verdict(Outcome.PASSED), "late")
        assert other.step().used == 1
        learner.right()
        assert other.step().step == "1.1/guess"


def test_an_answer_that_cannot_be_stored_comes_back(learner: Any, make_verdict: Any) -> None:
    screen = learner.step()
    learner.log._connection.execute("PRAGMA query_only = ON")
    with pytest.raises(LogError) as caught:
        learner.sitting.answer(screen, make_verdict(Outcome.WRONG), "my answer")
    assert caught.value.data["answer"] == "my answer"
    learner.log._connection.execute("PRAGMA query_only = OFF")
    assert learner.step() == screen
    assert learner.wrong().counted


def test_the_same_file_is_recognised_but_the_same_number_is_not(
    learner: Any, make_verdict: Any
) -> None:
    wrong = make_verdict(Outcome.WRONG)
    assert learner.sitting.answer(learner.step(), wrong, "def f(): ...").counted
    assert learner.sitting.answer(learner.step(), wrong, "def f(): ...").repeated
    learner.right()
    assert learner.sitting.answer(learner.step(), wrong, "12").counted
    # The numbers are fresh, so the same text is another answer.
    assert learner.sitting.answer(learner.step(), wrong, "12").descended


def test_hints_are_counted_to_three_and_leave_the_question(learner: Any) -> None:
    screen = learner.step()
    assert [learner.sitting.hint() for _ in range(4)] == [1, 2, 3, None]
    assert learner.sitting.next() == screen
    assert learner.sitting.next().hints == 3
    assert learner.sitting.progress.steps[screen.step].gate.judged == 0
    learner.right()
    assert learner.sitting.hint(available=0) is None


def test_simplify_down_to_the_worked_example_and_back(learner: Any) -> None:
    screen = learner.step()
    for rung in (Rung.SMALL, Rung.ORDER, Rung.FILL):
        learner.sitting.simplify()
        assert learner.step().rung is rung
    learner.sitting.simplify()
    worked = learner.go_on()
    assert worked.name == "worked"
    learner.sitting.seen(worked)
    again = learner.step()
    assert again.rung is Rung.STEP
    assert again.seed != screen.seed
    assert learner.right().passed


def test_a_rung_passed_leads_back_to_the_step(learner: Any) -> None:
    learner.wrong()
    learner.wrong()
    consequence = learner.right()
    assert consequence.back_at_step
    assert not consequence.passed
    assert learner.step().rung is Rung.STEP


def test_turning_to_another_open_session_and_back(learner: Any) -> None:
    learner.step()
    learner.sitting.test_out("1.3")
    assert learner.step().step == "1.3/trace"
    learner.sitting.focus("1.1")
    assert learner.step().step == "1.1/neuron"
    with pytest.raises(SittingError, match="opens when"):
        learner.sitting.focus("1.2")


def test_test_out_needs_the_start_and_an_open_session(learner: Any) -> None:
    with pytest.raises(SittingError, match="profile"):
        learner.sitting.test_out("1.2")
    learner.pass_steps(3)
    learner.go_on()
    with pytest.raises(SittingError, match="complete"):
        learner.sitting.test_out("1.1")


def test_the_end_says_what_is_not_written(learner: Any) -> None:
    learner.machine = type(learner.machine).from_json(
        {**learner.machine.to_json(), "gpu": {"name": "a card", "memory": 2**34}}
    )
    learner.sit_down()
    learner.pass_steps(9)
    end = learner.go_on()
    assert isinstance(end, CourseEnd)
    assert end.locked == ()
    assert end.not_written == ("Attention", "Phase 3", "Phase 4", "Phase 5")
    assert {mastery.concept for mastery in end.mastered} == {"dot", "loss", "chain"}
    kinds = [milestone.kind for milestone in learner.sitting.progress.milestones]
    assert kinds.count("phase") == 1


def test_pause_stops_the_clock_of_the_work(learner: Any) -> None:
    screen = learner.step()
    learner.sitting.pause()
    before = learner.sitting.progress.seconds
    learner.clock.pass_by(minutes=20)
    learner.wrong()
    assert learner.sitting.progress.seconds == before
    assert isinstance(learner.sitting.next(), StepScreen)
    assert screen.step == learner.step().step


def test_every_event_that_a_sitting_writes_is_understood(learner: Any) -> None:
    learner.wrong("x")
    learner.sitting.hint()
    learner.sitting.simplify()
    learner.sitting.note("text")
    learner.sitting.has_read("title")
    learner.right()
    learner.sitting.test_out("1.2")
    learner.sitting.focus("1.1")
    learner.pass_steps(3)
    learner.sitting.pause()
    learner.go_on()
    assert learner.sitting.progress.ignored == ()
    assert EventKind.SESSION_END in {event.kind for event in learner.log.events()}


def test_the_state_is_read_without_the_heavy_libraries() -> None:
    script = (
        "import sys; import firsthand.course.sitting, firsthand.course.exchange;"
        "print([m for m in ('numpy', 'sympy', 'pydantic', 'rich', 'typer') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout.strip() == "[]", found.stderr
