"""The whole of phase 1 in one terminal: every step answered right, every concept mastered."""

from __future__ import annotations

from typing import Any

import pytest

from firsthand.app.cli.place import COURSE
from firsthand.course.outline import Phase
from firsthand.course.questions.measure import measured
from firsthand.course.steps import Build, Debug, Measure


def answer(place: Any, terminal: Any) -> str:
    """Do what the open step asks for; returns its id."""
    step_id: str = place.progress.current
    step = COURSE.step(step_id)
    if isinstance(step, Build):
        place.build(step_id)
    elif isinstance(step, Debug):
        given = max((place.mine / "debug").glob("*.py"), key=lambda path: path.stat().st_mtime_ns)
        given.write_text(place.repaired(step_id, given), encoding="utf-8")
    elif isinstance(step, Measure):
        terminal.say(repr(measured(step)))
    else:
        terminal.say(place.solution())
    return step_id


@pytest.mark.timeout(600)
def test_phase_1_from_its_first_question_to_its_end(place: Any) -> None:
    phase: Phase = COURSE.outline.phases[0]
    terminal = place.terminal("learn")
    terminal.onboard()
    terminal.say("")
    answered: list[str] = []
    ended = 0
    while True:
        terminal.until(
            r"answer> ",
            r"n note, q pause\.",
            r"Enter goes on\. ",
            r"What will you keep[^?]*\? ",
            r"Nothing is open",
            r"Enter goes on, pause stops: ",
        )
        if terminal.found == 4:
            break
        if terminal.found >= 2:
            ended += terminal.found == 3
            terminal.say("")
            continue
        answered.append(answer(place, terminal))
        terminal.until(r"Passed\.", r"Not right\.", r"Not readable\.", r"Does not run\.")
        assert terminal.found == 0, f"{answered[-1]}: {terminal.shown[-1500:]}"
    assert terminal.end() == 0

    found = place.progress
    steps = [step.id for session in phase.sessions for step in session.steps]
    assert answered == steps
    assert ended == len(phase.sessions) == 7
    assert all(found.sessions[session.id].complete for session in phase.sessions)
    concepts = {concept.id for session in phase.sessions for concept in session.concepts}
    assert found.concepts_mastered == concepts
    assert any(milestone.kind == "phase" for milestone in found.milestones)
    assert "Phase complete: Neurons and backpropagation" in terminal.shown
