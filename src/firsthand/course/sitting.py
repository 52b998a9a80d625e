"""The conductor of a sitting: what comes next, and what the learner's answers leave in the log.

`next` decides the order of PROTOCOL B1 to B5, C1 to C5 and D1 to D5 from the log alone; a face only
draws the screen and reports back. While a question stands open, `next` returns that question.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from typing import Any

from firsthand.course import recap
from firsthand.course.agenda import Agenda, session_of_concept, subject
from firsthand.course.errors import FirsthandError
from firsthand.course.fold import advance
from firsthand.course.gate import Gate, Rung, costs
from firsthand.course.log import Clock, EventKind, EventLog, utc_now
from firsthand.course.machine import Machine, measure_machine
from firsthand.course.outline import Outline
from firsthand.course.profile import question
from firsthand.course.progress import Progress, State, review_seed, seed_for, why_locked
from firsthand.course.screens import (
    MasteryScreen,
    OtherMachine,
    PlanScreen,
    ProfileScreen,
    Review,
    Screen,
    SessionEnd,
    StepScreen,
    WorkedScreen,
)
from firsthand.course.verdicts import Verdict

MOST_HINTS = 3


class SittingError(FirsthandError):
    """A report that does not fit what is open, e.g. an answer to a question that is gone."""


@dataclass(frozen=True)
class Consequence:
    """What an answer did to the gate.

    counted: whether it cost (or won) an attempt. repeated: the same file or answer as before.
    """

    counted: bool
    repeated: bool
    before: Gate
    after: Gate

    @property
    def passed(self) -> bool:
        """The step is passed by this answer."""
        return self.after.passed and not self.before.passed

    @property
    def descended(self) -> bool:
        return self.after.rung > self.before.rung

    @property
    def back_at_step(self) -> bool:
        """A rung below was answered right: the step comes again, with fresh numbers."""
        return self.before.rung is not Rung.STEP and self.after.rung is Rung.STEP


class Sitting:
    """One sitting of one learner. Opening it appends a SITTING event.

    machine: this machine, measured when it is not given. clock: for time shown and reviews only.
    brief: for a single command (`check`, `hint`): straight to the open step.
    """

    def __init__(
        self,
        outline: Outline,
        log: EventLog,
        clock: Clock = utc_now,
        machine: Machine | None = None,
        *,
        brief: bool = False,
    ) -> None:
        self.brief = brief
        self.outline = outline
        self.log = log
        self.machine = machine or measure_machine()
        self.id = secrets.token_hex(4)
        self._clock = clock
        self._progress = Progress()
        self._open: Screen | None = None
        self._theory_given: set[str] = set()
        log.ensure_created()
        # Loaded before the sitting is noted, so that B5 reports the state as it was saved.
        self.loaded = recap.loaded(outline, self.progress)
        known = self.progress.machines.get(self.machine.id)
        if known is None or dict(known.record) != self.machine.to_json():
            log.append(EventKind.MACHINE, **self.machine.to_json())
        log.append(EventKind.SITTING, sitting=self.id, machine=self.machine.id)

    @property
    def progress(self) -> Progress:
        """Up to date with the log, also with what another process has appended."""
        new = self.log.events(after=self._progress.last_number)
        if new:
            self._progress = advance(self._progress, new, self.outline)
        return self._progress

    @property
    def now(self) -> datetime:
        return self._clock()

    # ------------------------------------------------------------------ what comes next

    def next(self) -> Screen:
        """The one thing to show now; the same until it is answered or seen."""
        progress = self.progress
        if self._open is None or not self._stands(self._open, progress):
            self._open = self._agenda(progress).next()
        return self._open

    def _agenda(self, progress: Progress) -> Agenda:
        return Agenda(
            outline=self.outline,
            progress=progress,
            machine=self.machine,
            sitting=progress.sittings[self.id],
            now=self.now,
            loaded=self.loaded,
            theory_given=frozenset(self._theory_given),
            brief=self.brief,
        )

    # ------------------------------------------------------------------ what the learner did

    def tell(self, screen: ProfileScreen, answer: str) -> Any:
        """Store the answer to a profile question; raises answers.Malformed if it is unreadable."""
        self._require_open(screen)
        return self.change_profile(screen.question.id, answer)

    def change_profile(self, field: str, answer: str) -> Any:
        """Set a field of the profile, at any time. Raises answers.Malformed, KeyError."""
        asked = question(field, self.progress, self.machine, self.now.date())
        value = asked.read(answer)
        self.log.append(EventKind.PROFILE, field=field, value=value, answer=answer)
        if isinstance(self._open, ProfileScreen | PlanScreen):
            self._open = None  # an open question of a step stays
        return value

    def start(self, screen: PlanScreen) -> None:
        """The explicit start that ends the onboarding (A5)."""
        self._require_open(screen)
        self.log.append(EventKind.START)
        self._log_seen(screen)

    def seen(self, screen: Screen) -> None:
        """The learner has read a screen that asks nothing and goes on."""
        self._require_open(screen)
        match screen:
            case WorkedScreen():
                self.log.append(EventKind.WORKED, session=screen.session, step=screen.step)
                self._open = None
            case MasteryScreen():
                concept = screen.mastery.concept
                session = session_of_concept(concept, self.outline).id
                resources = [asdict(resource) for resource in screen.resources]
                self.log.append(EventKind.MASTERED, session, concept=concept, resources=resources)
                self._open = None
            case SessionEnd():
                self.log.append(EventKind.SESSION_END, session=screen.summary.session)
                self._open = None
            case OtherMachine(may_go_on=False):
                raise SittingError(f"Session {screen.session} needs a machine with a GPU.")
            case _ if screen.asks:
                raise SittingError("This screen asks something; nothing follows before the answer.")
            case _:
                self._log_seen(screen)

    def answer(
        self,
        screen: StepScreen | Review,
        verdict: Verdict,
        answer_text: str,
        fingerprint: str | None = None,
    ) -> Consequence:
        """Store a judged answer; durable on return.

        answer_text: what was typed, or the text of the file. fingerprint: equal for equal answers
        to one question; by default made from the answer (and, unless it is a file, the seed).
        Raises SittingError if the question is no longer open, LogError if it cannot be stored.
        """
        self._require_open(screen)
        typed = isinstance(screen, Review) or (
            screen.rung is not Rung.STEP or screen.kind not in ("Build", "Debug")
        )
        if fingerprint is None:
            text = f"{screen.seed}|{answer_text}" if typed else answer_text
            fingerprint = hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]
        before = self.progress.steps[screen.step]
        data: dict[str, Any] = {
            "seed": screen.seed,
            "answer": answer_text,
            "fingerprint": fingerprint,
            "verdict": verdict.to_json(),
            "machine": self.machine.id,
            "sitting": self.id,
        }
        session = self.outline.step(screen.step).session
        if isinstance(screen, Review):
            self.log.append(EventKind.REVIEW, session, screen.step, **data)
        else:
            self.log.append(EventKind.ATTEMPT, session, screen.step, rung=int(screen.rung), **data)
            self._theory_given.add(screen.step)
        self._open = None
        after = self.progress.steps[screen.step]
        last = (after.reviews if isinstance(screen, Review) else after.attempts)[-1]
        repeated = costs(verdict.outcome) and not last.counted
        return Consequence(last.counted, repeated, before.gate, after.gate)

    def hint(self, available: int = MOST_HINTS) -> int | None:
        """Note one more hint at the open step; its 1-based number, None when there is none left."""
        screen = self._open_step()
        shown = self.progress.steps[screen.step].hints
        if shown >= min(available, MOST_HINTS):
            return None
        self.log.append(EventKind.HINT, session=screen.session, step=screen.step, number=shown + 1)
        self._open = replace(screen, hints=shown + 1)
        return shown + 1

    def simplify(self) -> None:
        """One rung down at once, by the learner's own wish (C5)."""
        screen = self._open_step()
        self.log.append(
            EventKind.SIMPLIFY, session=screen.session, step=screen.step, rung=int(screen.rung)
        )
        self._theory_given.add(screen.step)
        self._open = None

    def test_out(self, session_id: str) -> None:
        """Take a later session's gate cold. Raises KeyError for an unknown session."""
        session = self.outline.session(session_id)
        if self.progress.started_at is None:
            raise SittingError("The course starts with the profile and the plan.")
        if self.progress.sessions[session.id].complete:
            raise SittingError(f"Session {session.id} is complete.")
        self.log.append(EventKind.TEST_OUT, session=session.id)
        self._open = None

    def focus(self, session_id: str) -> None:
        """Turn to another open session. Raises SittingError saying what would open it."""
        self.outline.session(session_id)
        if self.progress.sessions[session_id].state is not State.OPEN:
            reason = why_locked(session_id, self.progress, self.outline)
            raise SittingError(reason or f"Session {session_id} is complete.")
        self.log.append(EventKind.FOCUS, session=session_id)
        self._open = None

    def note(self, text: str, *, insight: bool = False) -> None:
        """Keep the learner's own words with the session they are in."""
        current = self.progress.current
        session = self.outline.step(current).session if current else None
        self.log.append(EventKind.NOTE, session=session, text=text, insight=insight)

    def has_read(self, title: str) -> None:
        """A resource was read."""
        self.log.append(EventKind.READ, title=title)

    def pause(self) -> None:
        """Stop the clock. Everything is saved; `next` goes on with the same question."""
        self.log.append(EventKind.PAUSE, sitting=self.id)

    # ------------------------------------------------------------------ what stands open

    def _stands(self, screen: Screen, progress: Progress) -> bool:
        """Whether a screen shown before is still the one, also after another process wrote."""
        match screen:
            case StepScreen() | WorkedScreen():
                step = progress.steps[screen.step]
                rung = screen.rung if isinstance(screen, StepScreen) else Rung.WORKED
                return (
                    step.state is State.OPEN
                    and progress.current == screen.step
                    and step.gate.rung is rung
                    and seed_for(screen.step, progress) == screen.seed
                )
            case Review():
                return review_seed(screen.step, progress) == screen.seed
            case ProfileScreen():
                return screen.question.id not in progress.profile
            case PlanScreen():
                return progress.started_at is None
            case _:
                fresh = self._agenda(progress).next()
                return type(fresh) is type(screen) and subject(fresh) == subject(screen)

    def _require_open(self, screen: Screen) -> None:
        fresh = self.next()
        same = type(fresh) is type(screen) and subject(fresh) == subject(screen)
        if not same or (screen.asks and fresh != screen):
            raise SittingError("This question is no longer open; it was answered elsewhere.")

    def _open_step(self) -> StepScreen:
        screen = self.next()
        if not isinstance(screen, StepScreen):
            raise SittingError("No step is open here.")
        return screen

    def _log_seen(self, screen: Screen) -> None:
        self.log.append(EventKind.SEEN, sitting=self.id, screen=subject(screen))
        self._open = None
