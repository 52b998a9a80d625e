"""PROTOCOL.md, rule by rule, as far as the state of the learner decides it.

Elsewhere: B3's one coding part, C4, C6 and the checkable words of D3 (questions and lessons), G1 to
G4 (checks), E1 to E7 (mentor).
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from firsthand.course import recap
from firsthand.course.answers import Malformed
from firsthand.course.exchange import export_state, import_state
from firsthand.course.fold import progress
from firsthand.course.gate import Rung
from firsthand.course.log import EventKind, EventLog
from firsthand.course.machine import GIB, Gpu, Machine
from firsthand.course.outline import Outline
from firsthand.course.plan import plan
from firsthand.course.profile import FIELDS, question
from firsthand.course.progress import State
from firsthand.course.screens import (
    AnyQuestions,
    CourseEnd,
    MasteryScreen,
    Opening,
    OtherMachine,
    PlanScreen,
    ProfileScreen,
    SessionEnd,
    StepScreen,
    TimeSuggestion,
    WorkedScreen,
)
from firsthand.course.sitting import SittingError
from firsthand.course.verdicts import Outcome, Verdict

GPU = Machine("gpu000000000", "tower", "Linux", "3.11.7", "p", 16, 64 * GIB, Gpu("RTX", 16 * GIB))


def verdict_of(outcome: Outcome) -> Verdict:
    return Verdict(outcome, "headline")


def names(learner: Any) -> list[str]:
    return [screen.name for screen in learner.screens()]


# ---------------------------------------------------------------------- onboarding


def test_a1_one_numbered_question_at_a_time(learner: Any) -> None:
    asked = []
    for screen in learner.screens():
        if isinstance(screen, ProfileScreen):
            assert learner.sitting.next() is screen  # nothing else before the answer
            with pytest.raises(SittingError):
                learner.sitting.seen(screen)
            asked.append(screen.question)
    assert [(item.number, item.of) for item in asked] == [(n, 9) for n in range(1, 10)]
    for item in asked:
        assert item.text.endswith("?")
        assert item.why.endswith(".")
        item.parse(item.example)  # the example is an answer that is accepted


def test_a2_the_profile_holds_every_field(learner: Any) -> None:
    learner.go_on()
    profile = learner.sitting.progress.profile
    assert tuple(profile) == FIELDS
    assert profile["hardware"].value["ram"] == 16.0  # measured, then confirmed
    assert profile["hardware"].value["machine"] == learner.machine.id
    tone = learner.sitting.change_profile("tone", "name = Ada; voice = dry")
    assert tone == {"tone": "neutral", "name": "Ada", "voice": "dry", "analogies": ""}
    assert learner.sitting.change_profile("hardware", "ram = 8")["ram"] == 8.0


def test_a3_exactly_one_pacing_and_a_date_shows_what_is_left_out(learner: Any) -> None:
    learner.go_on()
    sitting, today = learner.sitting, learner.clock().date()
    assert sitting.progress.profile["pacing"].value == {"kind": "depth-first"}
    assert plan(learner.outline, sitting.progress, today).left_out == ()
    for unreadable in ("both", "time-boxed", "time-boxed 2025-13-40", "time-boxed 2020-01-01"):
        with pytest.raises(Malformed):
            sitting.change_profile("pacing", unreadable)
    gate = sitting.next()
    sitting.change_profile("pacing", f"time-boxed {today + timedelta(days=14)}")
    table = plan(learner.outline, sitting.progress, today)
    # 2 weeks x 3 sessions x 60 minutes: phase 1 whole, 3 of the 12 sessions of phase 2.
    assert [row.left_out for row in table.rows] == [0, 9, 12, 12, 12]
    assert "sessions 4 to 12" in table.left_out[0]
    assert sitting.next() == gate


@pytest.mark.parametrize(("gpu", "track"), [(16.0, "100M"), (8.0, "10M"), (None, "10M")])
def test_a4_the_hardware_sizes_the_track_and_it_can_change(
    log: EventLog, clock: Any, small_outline: Outline, new_learner: Any, gpu: Any, track: str
) -> None:
    card = Gpu("a card", int(gpu * GIB)) if gpu else None
    learner = new_learner(log, clock, small_outline)
    learner.machine = replace(GPU, gpu=card)
    learner.sit_down()
    learner.go_on()
    profile = learner.sitting.progress.profile
    assert profile["track"].value == track
    other = "10M" if track == "100M" else "100M"
    learner.sitting.change_profile("track", other)
    assert learner.sitting.progress.profile["track"].value == other


def test_a5_plan_table_what_one_can_do_and_an_explicit_start(learner: Any) -> None:
    for screen in learner.screens():
        if isinstance(screen, PlanScreen):
            with pytest.raises(SittingError):
                learner.sitting.seen(screen)
            assert learner.sitting.progress.started_at is None
            break
    rows = screen.plan.rows
    assert [row.phase for row in rows] == [1, 2, 3, 4, 5]
    assert all(row.focus and row.hands_on and row.hours for row in rows)
    assert [row.status for row in rows] == ["written", "partly written"] + ["not yet written"] * 3
    assert screen.plan.able
    learner.sitting.start(screen)
    assert learner.sitting.progress.started_at is not None


# ---------------------------------------------------------------------- sessions


def test_b1_first_session_in_its_order(learner: Any) -> None:
    screens = list(learner.screens())
    assert [s.name for s in screens] == [
        "welcome",
        *["profile"] * 9,
        "plan",
        "opening",
        "any questions",
        "step",
    ]
    opening = next(s for s in screens if isinstance(s, Opening))
    assert opening.later is None
    assert opening.first.goals
    assert opening.first.able
    assert opening.first.practical
    assert opening.first.objective == "objective of 1.1"
    assert opening.first.plan == ()  # it was shown a moment ago
    learner.sit_down()  # nothing was answered: still the first session, now with its plan
    again = learner.sitting.next()
    assert len(again.first.plan) == 5


def test_b2_later_sessions_in_their_order(learner: Any) -> None:
    learner.wrong("no_sum")
    learner.pass_steps(4)
    learner.sitting.has_read("1.1 text 0")
    learner.clock.pass_by(days=2)
    learner.sit_down()
    screens = list(learner.screens())
    assert [s.name for s in screens] == [
        "opening",
        "review",
        "review",
        "any questions",
        "step",
    ]
    later = screens[0].later
    assert "session 1.2" in later.where
    assert [(line.session, line.state) for line in later.path][:3] == [
        ("1.1", State.COMPLETE),
        ("1.2", State.OPEN),
        ("1.3", State.LOCKED),
    ]
    assert later.last.session == "1.2"
    assert later.read == ("1.1 text 0",)
    assert "1.1 text 1" in later.to_read
    assert [due.step for due in later.reviews] == ["1.1/guess", "1.1/order"]


def test_b3_proposes_to_stop_after_about_an_hour_at_a_break_and_once(learner: Any) -> None:
    open_step = learner.step()
    learner.clock.pass_by(minutes=61)
    assert learner.sitting.next() == open_step  # never cuts into a question
    learner.wrong()
    assert learner.step().step == open_step.step  # nor into a step
    learner.right()
    assert [type(screen) for screen in learner.screens()] == [TimeSuggestion, StepScreen]
    learner.clock.pass_by(minutes=61)
    learner.right()
    assert TimeSuggestion.name not in names(learner)


def test_b4_a_session_ends_with_a_summary_drawn_from_the_log(learner: Any) -> None:
    learner.wrong("no_sum")
    learner.pass_steps(2)
    learner.wrong("swapped")
    learner.wrong("swapped")
    learner.right()  # the smaller one
    learner.right()
    end = next(s for s in learner.screens() if isinstance(s, SessionEnd))
    assert [s.id for s in end.summary.steps] == ["1.1/neuron", "1.1/guess", "1.1/order"]
    first, _, last = end.summary.steps
    assert (first.attempts, first.failures, first.mistakes) == (2, 1, ("no_sum",))
    assert (last.attempts, last.rungs, last.mistakes) == (4, ("small",), ("swapped",))
    assert first.result == "headline: passed"
    assert end.summary.built == ("Neuron",)
    assert "Neuron: no_sum, corrected" in end.summary.insights
    assert end.summary.able == ("do 1.1",)
    learner.go_on()
    assert names(learner) == ["step"]  # shown once


def test_b5_loading_says_what_and_how_far(learner: Any) -> None:
    learner.pass_steps(4)
    learner.sit_down()
    opening = learner.sitting.next()
    loaded = opening.loaded
    assert (loaded.steps_passed, loaded.steps_written) == (4, 9)
    assert (loaded.sessions_complete, loaded.concepts_mastered) == (1, 1)
    assert loaded.next_step == "1.2/slope"
    assert loaded.until is not None
    assert "4 of 9 steps" in loaded.sentence


# ---------------------------------------------------------------------- steps and gate


def test_c1_one_step_at_a_time_theory_before_its_question(learner: Any) -> None:
    screen = learner.step()
    assert screen.theory
    states = [step.state for step in learner.sitting.progress.steps.values()]
    assert states.count(State.OPEN) == 1
    learner.wrong()
    assert not learner.step().theory


def test_c2_after_a_question_nothing_until_it_is_answered(learner: Any) -> None:
    screen = learner.step()
    for move in (
        lambda: learner.sitting.change_profile("track", "100M"),
        lambda: learner.sitting.hint(),
        lambda: learner.sitting.pause(),
        lambda: learner.clock.pass_by(hours=30),
    ):
        move()
        assert learner.sitting.next() == screen
        with pytest.raises(SittingError):
            learner.sitting.seen(screen)
    assert learner.right().passed


def test_c3_two_attempts_then_a_rung_down_never_a_skip(learner: Any) -> None:
    seen = []
    for _ in range(4):
        for used in (0, 1):
            screen = learner.step()
            seen.append((screen.rung, screen.seed))
            assert (screen.used, screen.of) == (used, 2)
            learner.wrong()
    assert [int(rung) for rung, _ in seen] == [0, 0, 1, 1, 2, 2, 3, 3]
    assert len({seed for _, seed in seen}) == 8
    worked = learner.go_on()
    assert isinstance(worked, WorkedScreen)
    with pytest.raises(SittingError):
        learner.sitting.simplify()
    learner.sitting.seen(worked)
    screen = learner.step()
    assert (screen.step, screen.rung, screen.used) == ("1.1/neuron", Rung.STEP, 0)
    assert (screen.rung, screen.seed) not in seen
    assert learner.sitting.progress.steps["1.1/guess"].state is State.LOCKED


def test_c3_what_cannot_be_judged_or_is_unchanged_is_free(learner: Any) -> None:
    free = [outcome for outcome in Outcome if not outcome.costs_attempt and outcome != "passed"]
    screen = learner.step()
    for outcome in free:
        consequence = learner.give(outcome)
        assert not consequence.counted
        assert learner.step() == screen  # the same question, the same numbers
    learner.sitting.answer(learner.step(), verdict_of(Outcome.WRONG), "def f(): ...")
    again = learner.sitting.answer(learner.step(), verdict_of(Outcome.WRONG), "def f(): ...")
    assert again.repeated
    assert learner.step().used == 1


def test_c5_two_failures_or_simplify_lead_to_a_simpler_case_and_the_offer(learner: Any) -> None:
    assert not learner.step().ask_simplify
    learner.wrong()
    assert learner.wrong().descended
    assert learner.step().ask_simplify
    learner.sitting.simplify()
    screen = learner.step()
    assert (screen.rung, screen.used, screen.ask_simplify) == (Rung.ORDER, 0, True)
    assert learner.sitting.progress.steps[screen.step].simplified == 1


def test_d1_no_new_topic_before_the_current_one_is_shown(learner: Any) -> None:
    learner.step()
    for session in ("1.2", "2.1"):
        with pytest.raises(SittingError, match=r"opens when .* complete, or by test-out"):
            learner.sitting.focus(session)
    learner.pass_steps(2)
    assert learner.sitting.progress.sessions["1.2"].state is State.LOCKED
    learner.pass_steps(1)
    assert learner.sitting.progress.sessions["1.2"].state is State.OPEN


def test_d2_time_never_influences_the_gate(learner: Any) -> None:
    learner.wrong()
    learner.pass_steps(2)
    learner.wrong()
    learner.wrong()
    events = learner.log.events()
    plain = progress(events, learner.outline)
    epoch = datetime(1999, 1, 1, tzinfo=UTC)
    for days in (0.0, -3.0, 400.0):
        moved = [
            replace(event, at=(epoch + timedelta(days=days * place)).isoformat())
            for place, event in enumerate(events)
        ]
        shifted = progress(moved, learner.outline)
        for id_, step in plain.steps.items():
            assert (shifted.steps[id_].state, shifted.steps[id_].gate) == (step.state, step.gate)
        assert shifted.concepts_mastered == plain.concepts_mastered
        assert shifted.current == plain.current


def test_d4_a_concept_is_mastered_only_with_all_its_proofs(learner: Any) -> None:
    learner.wrong()
    learner.pass_steps(1)
    assert learner.sitting.progress.mastered == ()
    learner.clock.pass_by(minutes=5)
    learner.pass_steps(1)
    (mastery,) = learner.sitting.progress.mastered
    assert mastery.concept == "dot"
    assert [(p.step, p.attempt) for p in mastery.proofs] == [("1.1/neuron", 2), ("1.1/guess", 1)]
    assert mastery.at == mastery.proofs[1].at > mastery.proofs[0].at
    learner.pass_steps(2)
    assert learner.sitting.progress.concepts_mastered == {"dot"}  # 'chain' spans two sessions
    learner.pass_steps(2)
    assert learner.sitting.progress.concepts_mastered == {"dot", "loss", "chain"}


def test_d4_one_proof_is_none(learner: Any, small_outline: Outline) -> None:
    learner.pass_steps(2)
    phase = small_outline.phases[0]
    first = phase.sessions[0]
    for proofs in ((), ("1.1/neuron",), ("1.1/neuron", "1.1/neuron")):
        concept = replace(first.concepts[0], proofs=proofs)
        session = replace(first, concepts=(concept,))
        changed = Outline((replace(phase, sessions=(session,)),), small_outline.root)
        assert progress(learner.log.events(), changed).mastered == ()


def test_d5_on_mastery_resources_are_shown_and_logged(learner: Any) -> None:
    learner.pass_steps(2)
    shown = [s for s in learner.screens() if isinstance(s, MasteryScreen)]
    assert [s.mastery.concept for s in shown] == ["dot"]
    assert 5 <= len(shown[0].resources) <= 7
    logged = [e for e in learner.log.events() if e.kind == EventKind.MASTERED]
    assert [item["title"] for item in logged[0].data["resources"]] == [
        f"1.1 text {n}" for n in range(5)
    ]
    assert all(item["kind"] and item["where"] for item in logged[0].data["resources"])
    learner.sit_down()
    assert MasteryScreen.name not in names(learner)


# ---------------------------------------------------------------------- state


def test_f1_saved_after_each_answer_and_export_offered_at_the_end(
    learner: Any, tmp_path: Path
) -> None:
    before = len(learner.log.events())
    learner.step()
    learner.wrong()
    with EventLog(learner.log.path) as other:  # what another process would find
        events = other.events()
    assert events[-1].kind is EventKind.ATTEMPT
    assert events[-1].data["answer"] == "try 1"
    assert len(events) > before
    learner.pass_steps(3)
    end = next(s for s in learner.screens() if isinstance(s, SessionEnd))
    assert end.export
    screen = learner.step()
    export_state(learner.log, tmp_path / "state.json")
    assert learner.sitting.next() == screen  # it interrupts nothing


def test_f2_the_log_per_phase(learner: Any) -> None:
    learner.wrong("no_sum")
    learner.pass_steps(4)
    learner.sitting.note("read section 2 again")
    learner.sitting.note("a mean divides the gradient too", insight=True)
    log = recap.phase_log(1, learner.outline, learner.sitting.progress)
    assert [item.mistake for item in log.problems] == ["no_sum"]
    assert [item.session for item in log.sessions] == ["1.1", "1.2"]
    assert [item.number for item in log.sessions] == [1, 2]
    assert log.sessions[0].concepts[0].concept == "dot"
    assert log.sessions[0].built == ("Neuron",)
    assert log.sessions[1].notes == ("read section 2 again",)
    assert log.sessions[1].insights == ("a mean divides the gradient too",)
    assert (log.current, log.following) == ("Session 1.2", "Session 1.3")
    assert recap.phase_log(2, learner.outline, learner.sitting.progress).sessions == ()


def test_f3_older_than_five_sessions_is_a_digest_and_milestones_stay(
    log: EventLog, clock: Any, small_outline: Outline, new_learner: Any
) -> None:
    first = small_outline.phases[0].sessions[0]
    sessions = []
    for number in range(1, 9):
        id_ = f"1.{number}"
        steps = tuple(replace(step, id=f"{id_}/{step.anchor}", session=id_) for step in first.steps)
        concept = replace(
            first.concepts[0],
            id=f"c{number}",
            title=f"Concept {number}",
            proofs=(steps[0].id, steps[1].id),
        )
        requires = (f"1.{number - 1}",) if number > 1 else ()
        sessions.append(
            replace(
                first, id=id_, number=number, steps=steps, requires=requires, concepts=(concept,)
            )
        )
    phase = replace(small_outline.phases[0], sessions=tuple(sessions), planned_sessions=8)
    learner = new_learner(log, clock, Outline((phase,), small_outline.root))
    for _ in range(8):
        learner.pass_steps(3)
        clock.pass_by(minutes=1)
    now = learner.sitting.progress
    later = recap.later_session(learner.outline, now, clock())
    assert [digest.session for digest in later.older] == ["1.1", "1.2", "1.3"]
    assert later.older[0].concepts == ("Concept 1",)
    assert [m.title for m in later.milestones if m.kind == "concept"] == [
        f"Concept {n}" for n in range(1, 9)
    ]
    assert [m.kind for m in later.milestones if m.kind in ("started", "phase")] == [
        "started",
        "phase",
    ]
    kinds = [type(item).__name__ for item in recap.phase_log(1, learner.outline, now).sessions]
    assert kinds == ["Digest"] * 3 + ["SessionSummary"] * 5
    assert isinstance(learner.go_on(), CourseEnd)


def test_f4_difficulties_and_preferences_keep_their_evidence(learner: Any) -> None:
    learner.wrong("no_sum")
    learner.pass_steps(1)
    learner.wrong()
    found = recap.difficulties(learner.sitting.progress, learner.outline)
    assert [(d.step, d.attempt, d.mistake) for d in found] == [
        ("1.1/guess", 1, None),
        ("1.1/neuron", 1, "no_sum"),
    ]
    wishes = {w.field: w.answer for w in recap.preferences(learner.sitting.progress)}
    assert wishes["level"] == "NumPy, some CNNs"


def test_f5_machines_are_kept_and_steps_know_theirs(learner: Any) -> None:
    learner.pass_steps(7)
    screen = learner.go_on()
    assert isinstance(screen, OtherMachine)
    assert (screen.needs, screen.may_go_on) == ("gpu", False)
    with pytest.raises(SittingError):
        learner.sitting.seen(screen)
    learner.machine = GPU
    learner.sit_down()
    step = learner.step()
    assert step.kind == "Measure"
    measured = replace(verdict_of(Outcome.PASSED), data={"measured": 33.1})
    learner.sitting.answer(step, measured, "33")
    machines = learner.sitting.progress.machines
    assert list(machines) == [learner.machine.id, "laptop000000"][::-1]
    assert [(m.step, m.value) for m in machines[GPU.id].measured] == [("2.1/measure", 33.1)]
    assert Machine.from_json(dict(machines[GPU.id].record)) == GPU


def test_test_out_is_the_same_gate_taken_cold(learner: Any) -> None:
    learner.step()
    learner.sitting.test_out("1.3")
    screen = learner.step()
    assert (screen.step, screen.theory, screen.of) == ("1.3/trace", False, 2)
    learner.wrong()
    assert learner.wrong().descended
    learner.right()
    learner.pass_steps(2)
    now = learner.sitting.progress
    assert now.sessions["1.3"].complete
    assert now.sessions["1.2"].state is State.LOCKED
    assert now.mastered == ()  # 'chain' also needs 1.1/order
    with pytest.raises(KeyError):
        learner.sitting.test_out("9.9")


def test_state_travels_and_comes_back(
    learner: Any, tmp_path: Path, clock: Any, new_learner: Any
) -> None:
    learner.wrong()
    learner.pass_steps(1)
    export_state(learner.log, tmp_path / "out.json")
    with EventLog(tmp_path / "other" / "log.sqlite", clock=clock) as there:
        import_state(tmp_path / "out.json", there)
        other = new_learner(there, clock, learner.outline)
        other.pass_steps(1)
        export_state(there, tmp_path / "back.json")
    learner.sit_down()  # only sat down meanwhile
    imported = import_state(tmp_path / "back.json", learner.log)
    assert imported.added > 0
    assert learner.sitting.progress.steps["1.1/guess"].passed
    assert json.loads((tmp_path / "back.json").read_text())["format"] == "firsthand state"


def test_questions_of_the_profile_are_the_fields(learner: Any) -> None:
    now = learner.sitting.progress
    today = learner.clock().date()
    assert [question(f, now, learner.machine, today).id for f in FIELDS] == list(FIELDS)
    assert AnyQuestions.name not in now.sittings[learner.sitting.id].seen
