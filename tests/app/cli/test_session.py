"""The main test of the product: session 1.1 from its first question to its end, in a terminal."""

from __future__ import annotations

import json
from typing import Any

from firsthand.app.cli.place import COURSE
from firsthand.course.exchange import import_state
from firsthand.course.fold import progress
from firsthand.course.log import EventKind, EventLog

SESSION = "1.1"


def test_a_session_from_its_first_question_to_its_end(place: Any, tmp_path: Any) -> None:
    session = COURSE.outline.session(SESSION)
    terminal = place.terminal("learn")
    terminal.onboard()
    terminal.say("")
    mastered, answered = [], []
    while True:
        terminal.until(
            r"answer> ", r"n note, q pause\.", r"Enter goes on\. ", r"What will you keep[^?]*\? "
        )
        if terminal.found == 3:
            break
        if terminal.found == 2:
            mastered.append(terminal.shown.rsplit("Mastered: ", 1)[1])
            terminal.say("")
            continue
        answered.append(place.progress.current)
        if terminal.found == 0:
            terminal.say(place.solution())
        else:
            place.build(place.progress.current)
        terminal.until(r"Passed\.", r"Not right\.", r"Not readable\.", r"Does not run\.")
        assert terminal.found == 0, terminal.shown[-1500:]

    assert answered == [step.id for step in session.steps]
    end = terminal.shown.rsplit("The end of a session", 1)[1]
    for step in session.steps:
        assert step.title[:20] in end
    terminal.say("one step of the last axis is one element")
    terminal.until(r"Progress exported to mine/\.firsthand/state\.json\.")
    terminal.until(r"n note, q pause\.")
    assert "Session 1.2" in terminal.shown
    terminal.key("q")
    assert terminal.end() == 0

    found = place.progress
    assert found.sessions[SESSION].complete
    assert found.sessions["1.2"].state == "open"
    assert {step for step in found.steps if found.steps[step].passed} == set(answered)
    assert [len(found.steps[step].attempts) for step in answered] == [1] * len(answered)
    assert found.concepts_mastered == {concept.id for concept in session.concepts}
    assert len(mastered) == len(session.concepts)
    for screen in mastered:  # D5: five to seven outside resources
        assert 5 <= screen.count("\n- ") <= 7
        assert "Proofs: 1.1/" in screen
    assert found.notes[-1].insight
    assert found.notes[-1].text == "one step of the last axis is one element"

    exported = place.mine / ".firsthand" / "state.json"
    assert json.loads(exported.read_text())["format"] == "firsthand state"
    with EventLog(tmp_path / "other.sqlite") as log:
        import_state(exported, log)
        assert progress(log.events(), COURSE.outline).sessions[SESSION].complete


def test_the_end_of_a_session_leaves_no_attempt_out(place: Any) -> None:
    """B4: what the summary says comes from the log, also the failures."""
    last = COURSE.outline.session(SESSION).steps[-1].id
    place.begin(last)
    terminal = place.terminal("learn")
    terminal.to_question()
    terminal.say("I understand")
    terminal.until(r"answer> ")
    terminal.say(place.solution())
    terminal.until(r"Enter goes on\. ")
    terminal.say("")
    terminal.until(r"What will you keep")
    attempts = place.events(EventKind.ATTEMPT)
    assert [event.data["verdict"]["outcome"] for event in attempts[-2:]] == ["malformed", "passed"]
    assert "(1 attempt)" in terminal.shown
    terminal.key("\x04")
    assert terminal.end() == 0
