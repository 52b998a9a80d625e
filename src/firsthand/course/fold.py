"""The fold: events in, `Progress` out. Pure: same events, same outline, same result.

`_Fold.apply` moves what one event touches (gates, profile, time); `standing.settled` then works out
what follows from it all: open steps, complete sessions, mastery, what comes next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from datetime import datetime
from typing import Any

from firsthand.course import gate as gates
from firsthand.course.gate import Rung
from firsthand.course.log import Event, EventKind
from firsthand.course.outline import Outline
from firsthand.course.progress import (
    Attempt,
    Difficulty,
    MachineRecord,
    Measurement,
    Note,
    ProfileEntry,
    Progress,
    SessionProgress,
    SittingRecord,
    StepProgress,
)
from firsthand.course.standing import settled
from firsthand.course.verdicts import Outcome

LONGEST_GAP = 30 * 60.0  # seconds between two events that still count as work


def progress(events: Iterable[Event], outline: Outline) -> Progress:
    """What all events of a log add up to."""
    return advance(Progress(), events, outline)


def advance(before: Progress, events: Iterable[Event], outline: Outline) -> Progress:
    """Progress after more events: advance(progress(a), b) == progress(a + b)."""
    fold = _Fold(before, outline)
    for event in events:
        fold.apply(event)
    return fold.result()


class _Unreadable(ValueError):
    """An event whose data this version cannot use."""


class _Fold:
    """The only mutable thing: copies of the mappings and lists of a Progress while it grows."""

    def __init__(self, before: Progress, outline: Outline) -> None:
        self.outline = outline
        self.now = before
        # What nearly every event moves is held apart: a Progress has many fields to copy.
        self.focus = before.focus
        self.seconds = before.seconds
        self.last_number, self.last_at = before.last_number, before.last_at
        self.paused = before.paused
        self.steps = {
            step.id: before.steps.get(step.id, StepProgress(step.id)) for step in outline.steps
        }
        self.sessions = {
            session.id: before.sessions.get(session.id, SessionProgress(session.id))
            for session in outline.sessions
        }
        self.profile = dict(before.profile)
        self.machines = dict(before.machines)
        self.sittings = dict(before.sittings)
        self.resources = dict(before.resources)
        self.difficulties = list(before.difficulties)
        self.ignored = list(before.ignored)

    def apply(self, event: Event) -> None:
        self._spend(event)
        handler = HANDLERS.get(event.kind)
        try:
            if handler is None:
                raise _Unreadable(f"its kind '{event.kind}' is not known here")
            handler(self, event)
        except _Unreadable as reason:
            self.ignored.append(f"Event {event.number} is ignored: {reason}.")
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            self.ignored.append(
                f"Event {event.number} ({event.kind}) is ignored: its data cannot be read"
                f" ({type(error).__name__}: {error})."
            )

    def result(self) -> Progress:
        grown = replace(
            self.now,
            steps=self.steps,
            sessions=self.sessions,
            profile=self.profile,
            machines=self.machines,
            sittings=self.sittings,
            resources=self.resources,
            difficulties=tuple(self.difficulties),
            ignored=tuple(self.ignored),
            focus=self.focus,
            seconds=self.seconds,
            last_number=self.last_number,
            last_at=self.last_at,
            paused=self.paused,
        )
        return settled(grown, self.outline)

    # ------------------------------------------------------------------ look-ups and time

    def step_of(self, event: Event) -> StepProgress:
        if event.step not in self.steps:
            raise _Unreadable(f"the outline has no step '{event.step}'")
        self.focus = self.outline.step(event.step).session
        return self.steps[event.step]

    def session_of(self, event: Event) -> SessionProgress:
        if event.session not in self.sessions:
            raise _Unreadable(f"the outline has no session '{event.session}'")
        return self.sessions[event.session]

    def keep(self, step: StepProgress, **changes: Any) -> StepProgress:
        self.steps[step.id] = replace(step, **changes)
        return self.steps[step.id]

    def _spend(self, event: Event) -> None:
        seconds = 0.0
        if self.last_at is not None and not self.paused and event.kind != EventKind.SITTING:
            try:
                gap = (event.time - datetime.fromisoformat(self.last_at)).total_seconds()
            except (ValueError, TypeError):
                gap = 0.0
            # A clock that was set back must not take time away.
            seconds = min(max(gap, 0.0), LONGEST_GAP)
        self.seconds += seconds
        self.last_number, self.last_at = event.number, event.at
        self.paused = event.kind == EventKind.PAUSE
        session_id = event.session
        if event.step in self.steps:
            session_id = self.outline.step(event.step).session
        if session_id in self.sessions:
            session = self.sessions[session_id]
            self.sessions[session_id] = replace(
                session,
                seconds=session.seconds + seconds,
                first_at=session.first_at or event.at,
                last_at=event.at,
            )

    # ------------------------------------------------------------------ one handler for each kind

    def created(self, event: Event) -> None:
        if self.now.workspace:
            raise _Unreadable("the workspace was created before")
        self.now = replace(
            self.now,
            workspace=str(event.data["workspace"]),
            salt=str(event.data["salt"]),
            created_at=event.at,
        )

    def machine(self, event: Event) -> None:
        identifier = str(event.data["id"])
        known = self.machines.get(identifier)
        self.machines[identifier] = MachineRecord(event.data, known.measured if known else ())
        self.now = replace(self.now, machine=identifier)

    def sitting(self, event: Event) -> None:
        identifier = str(event.data["sitting"])
        machine = event.data.get("machine")
        self.sittings[identifier] = SittingRecord(identifier, event.at, machine)
        self.now = replace(self.now, machine=machine or self.now.machine)

    def seen(self, event: Event) -> None:
        self._sit(event, screen=str(event.data["screen"]))

    def _sit(
        self,
        event: Event,
        screen: str | None = None,
        passed: str | None = None,
        reviewed: str | None = None,
    ) -> None:
        record = self.sittings.get(str(event.data.get("sitting")))
        if record is not None:
            self.sittings[record.id] = replace(
                record,
                seen=record.seen | {screen} if screen else record.seen,
                passed=(*record.passed, passed) if passed else record.passed,
                reviewed=(*record.reviewed, reviewed) if reviewed else record.reviewed,
            )

    def profiled(self, event: Event) -> None:
        self.profile[str(event.data["field"])] = ProfileEntry(
            event.data["value"], str(event.data.get("answer", "")), event.at
        )

    def start(self, event: Event) -> None:
        self.now = replace(self.now, started_at=self.now.started_at or event.at)

    def attempt(self, event: Event) -> None:
        step = self.step_of(event)
        rung = Rung(event.data["rung"])
        outcome, mistake, headline = _read_verdict(event)
        fingerprint = event.data.get("fingerprint")
        repeated = fingerprint is not None and step.fingerprints.get(rung) == fingerprint
        counted = (
            step.gate.may_answer
            and rung is step.gate.rung
            and gates.costs(outcome)
            and (outcome is Outcome.PASSED or not repeated)
        )
        number = len(step.attempts) + 1
        attempt = Attempt(
            step.id, number, event.number, event.at, rung, outcome, counted, mistake, headline
        )
        step = self.keep(step, attempts=(*step.attempts, attempt))
        if "measured" in (event.data["verdict"].get("data") or {}):
            self._measured(event)
        if not counted:
            return
        if fingerprint is not None:
            step = self.keep(step, fingerprints={**step.fingerprints, rung: str(fingerprint)})
        self._move(step, gates.judged(step.gate, outcome))
        if outcome is not Outcome.PASSED:
            self.difficulties.append(
                Difficulty(step.id, number, rung, outcome, mistake, headline, event.at)
            )
        elif rung is Rung.STEP:
            self.keep(self.steps[step.id], solved=attempt)
            self._sit(event, passed=step.id)

    def _move(self, step: StepProgress, gate: gates.Gate) -> None:
        below = gate.rung is not Rung.STEP and gate.rung is not step.gate.rung
        self.keep(step, gate=gate, rungs=(*step.rungs, gate.rung) if below else step.rungs)

    def _measured(self, event: Event) -> None:
        identifier = str(event.data.get("machine") or self.now.machine)
        known = self.machines.get(identifier, MachineRecord({"id": identifier}))
        value = event.data["verdict"]["data"]["measured"]
        found = Measurement(str(event.step), value, event.at)
        self.machines[identifier] = replace(known, measured=(*known.measured, found))

    def simplify(self, event: Event) -> None:
        step = self.step_of(event)
        if not step.gate.may_simplify:
            raise _Unreadable("there is nothing to simplify at this step")
        self._move(step, gates.simplified(step.gate))
        self.keep(self.steps[step.id], simplified=step.simplified + 1)

    def worked(self, event: Event) -> None:
        step = self.step_of(event)
        self._move(step, gates.worked_seen(step.gate))

    def hint(self, event: Event) -> None:
        step = self.step_of(event)
        self.keep(step, hints=step.hints + 1)

    def review(self, event: Event) -> None:
        if event.step not in self.steps:
            raise _Unreadable(f"the outline has no step '{event.step}'")
        step = self.steps[event.step]
        if not step.gate.passed:
            raise _Unreadable("only a passed step is reviewed")
        outcome, mistake, headline = _read_verdict(event)
        counted = gates.costs(outcome)
        number = len(step.reviews) + 1
        attempt = Attempt(
            step.id, number, event.number, event.at, Rung.STEP, outcome, counted, mistake, headline
        )
        self.keep(step, reviews=(*step.reviews, attempt))
        if counted or outcome is Outcome.UNDECIDED:
            self._sit(event, reviewed=step.id)

    def test_out(self, event: Event) -> None:
        session = self.session_of(event)
        self.sessions[session.id] = replace(session, tested_out=True)
        self.focus = session.id

    def turn_to(self, event: Event) -> None:
        self.focus = self.session_of(event).id

    def mastered(self, event: Event) -> None:
        titles = tuple(str(item["title"]) for item in event.data["resources"])
        self.resources[str(event.data["concept"])] = titles

    def session_end(self, event: Event) -> None:
        session = self.session_of(event)
        self.sessions[session.id] = replace(session, summarised=True)

    def read(self, event: Event) -> None:
        title = str(event.data["title"])
        if title not in self.now.read:
            self.now = replace(self.now, read=(*self.now.read, title))

    def note(self, event: Event) -> None:
        insight = bool(event.data.get("insight", False))
        note = Note(str(event.data["text"]), event.session, insight, event.at)
        self.now = replace(self.now, notes=(*self.now.notes, note))

    def nothing(self, event: Event) -> None:
        """PAUSE and EXPORTED only say when something happened."""


HANDLERS: dict[str, Callable[[_Fold, Event], None]] = {
    EventKind.CREATED: _Fold.created,
    EventKind.MACHINE: _Fold.machine,
    EventKind.SITTING: _Fold.sitting,
    EventKind.PAUSE: _Fold.nothing,
    EventKind.SEEN: _Fold.seen,
    EventKind.PROFILE: _Fold.profiled,
    EventKind.START: _Fold.start,
    EventKind.ATTEMPT: _Fold.attempt,
    EventKind.HINT: _Fold.hint,
    EventKind.SIMPLIFY: _Fold.simplify,
    EventKind.WORKED: _Fold.worked,
    EventKind.REVIEW: _Fold.review,
    EventKind.TEST_OUT: _Fold.test_out,
    EventKind.FOCUS: _Fold.turn_to,
    EventKind.MASTERED: _Fold.mastered,
    EventKind.SESSION_END: _Fold.session_end,
    EventKind.READ: _Fold.read,
    EventKind.NOTE: _Fold.note,
    EventKind.EXPORTED: _Fold.nothing,
}


def _read_verdict(event: Event) -> tuple[Outcome, str | None, str]:
    verdict = event.data["verdict"]
    return Outcome(verdict["outcome"]), verdict.get("mistake"), str(verdict.get("headline", ""))
