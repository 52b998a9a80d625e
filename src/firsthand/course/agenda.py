"""What comes next in a sitting, in the order of PROTOCOL A1, A5, B1 to B5, C1 and D1 to D5."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from firsthand.course import recap
from firsthand.course.gate import ATTEMPTS, Rung
from firsthand.course.machine import Machine
from firsthand.course.outline import Outline, Session
from firsthand.course.plan import MINUTES, plan
from firsthand.course.profile import next_question
from firsthand.course.progress import (
    Progress,
    SittingRecord,
    State,
    seed_for,
    visit_seed,
    why_locked,
)
from firsthand.course.reviews import MOST_IN_A_SITTING, scheduled_reviews
from firsthand.course.screens import (
    AnyQuestions,
    CourseEnd,
    MasteryScreen,
    Opening,
    OtherMachine,
    PlanScreen,
    ProfileScreen,
    Review,
    Screen,
    SessionEnd,
    StepScreen,
    TimeSuggestion,
    Welcome,
    WorkedScreen,
)

WELCOME = (
    "You write the parts of a small language model; checks that run your code decide when you move"
    " on.",
    "First a few questions that size the work. Enter takes the proposed answer.",
)


def subject(screen: Screen) -> str:
    """What a screen is about, as the log keeps it: 'plan', 'other machine 5.2', ..."""
    match screen:
        case OtherMachine():
            return f"{screen.name} {screen.session}"
        case MasteryScreen():
            return f"{screen.name} {screen.mastery.concept}"
        case SessionEnd():
            return f"{screen.name} {screen.summary.session}"
        case _:
            return screen.name


def session_of_concept(concept: str, outline: Outline) -> Session:
    """The session that declares a concept. Raises StopIteration for an unknown one."""
    return next(s for s in outline.sessions if any(c.id == concept for c in s.concepts))


@dataclass(frozen=True)
class Agenda:
    """One moment of a sitting. theory_given: steps whose theory was shown with a question.

    brief: a single command instead of an hour: no recap, no reviews, no word about the time.
    """

    outline: Outline
    progress: Progress
    machine: Machine
    sitting: SittingRecord
    now: datetime
    loaded: recap.Loaded
    theory_given: frozenset[str]
    brief: bool = False

    def next(self) -> Screen:
        """The one thing to show at this moment."""
        return self._onboarding() or self._opening() or self._break() or self._step()

    def _onboarding(self) -> Screen | None:
        progress, today = self.progress, self.now.date()
        if progress.started_at is not None:
            return None
        if not progress.profile and Welcome.name not in self.sitting.seen:
            return Welcome("firsthand", WELCOME)
        question = next_question(progress, self.machine, today)
        if question is not None:
            return ProfileScreen(question)
        return PlanScreen(plan(self.outline, progress, today))

    def _opening(self) -> Screen | None:
        seen = self.sitting.seen
        if self.brief or AnyQuestions.name in seen:
            return None
        if Opening.name not in seen:
            if self.progress.tried:
                later = recap.later_session(self.outline, self.progress, self.now)
                return Opening(self.loaded, later=later)
            first = recap.first_session(self.outline, self.progress, self.now)
            if PlanScreen.name in seen:
                first = recap.without_plan(first)
            return Opening(self.loaded, first=first)
        return self._review() or AnyQuestions()

    def _review(self) -> Screen | None:
        done = self.sitting.reviewed
        # A review that could not be decided is not asked twice in one sitting.
        due = [
            review
            for review in scheduled_reviews(self.progress, self.outline)
            if review.due <= self.now and review.step not in done
        ][: max(MOST_IN_A_SITTING - len(done), 0)]
        if not due:
            return None
        first, number = due[0], len(done) + 1
        return Review(first.step, first.title, first.seed, number, len(done) + len(due))

    def _break(self) -> Screen | None:
        """What belongs between two steps: mastery, the end of a session, the time."""
        progress = self.progress
        for mastery in progress.mastered:
            if mastery.concept not in progress.resources:
                session = session_of_concept(mastery.concept, self.outline)
                return MasteryScreen(mastery, session.resources, self._complete_phase(session))
        for record in progress.sessions.values():
            if record.complete and not record.summarised:
                return SessionEnd(recap.summary(record.id, self.outline, progress))
        return None if self.brief else self._time()

    def _complete_phase(self, session: Session) -> str | None:
        title = next(p.title for p in self.outline.phases if p.number == session.phase)
        reached = (m.kind == "phase" and m.title == title for m in self.progress.milestones)
        return title if any(reached) else None

    def _time(self) -> Screen | None:
        current = self.progress.current
        step = self.progress.steps[current] if current is not None else None
        if step is not None and (step.attempts or step.hints or step.gate.turn):
            return None  # in the middle of a step
        pace = self.progress.profile.get("time")
        planned = pace.value["minutes"] if pace else MINUTES
        minutes = (self.now - datetime.fromisoformat(self.sitting.at)).total_seconds() / 60
        if minutes < planned or TimeSuggestion.name in self.sitting.seen:
            return None
        return TimeSuggestion(int(minutes), current)

    def _step(self) -> Screen:
        if self.progress.current is None:
            return self._end()
        heading = self.outline.step(self.progress.current)
        session = self.outline.session(heading.session)
        step = self.progress.steps[heading.id]
        if not self.machine.serves(session.machine):
            # What belongs on the CPU-only machine can be done on any; a GPU cannot be replaced.
            may_go_on = session.machine != "gpu"
            other = OtherMachine(session.id, session.title, session.machine, may_go_on)
            if not (may_go_on and subject(other) in self.sitting.seen):
                return other
        seed = seed_for(heading.id, self.progress)
        if step.gate.rung is Rung.WORKED:
            return WorkedScreen(heading.id, heading.kind, heading.title, session.id, seed)
        cold = self.progress.sessions[session.id].tested_out
        return StepScreen(
            step=heading.id,
            kind=heading.kind,
            title=heading.title,
            session=session.id,
            rung=step.gate.rung,
            seed=seed,
            visit_seed=visit_seed(heading.id, self.progress),
            used=step.gate.used,
            of=ATTEMPTS,
            theory=not cold and heading.id not in self.theory_given,
            ask_simplify=step.gate.asks_simplify,
            hints=step.hints,
        )

    def _end(self) -> CourseEnd:
        goals = self.progress.profile.get("goals")
        locked = (
            why_locked(record.id, self.progress, self.outline)
            for record in self.progress.sessions.values()
            if record.state is State.LOCKED
        )
        return CourseEnd(
            goals=tuple(goals.value) if goals else (),
            mastered=self.progress.mastered,
            locked=tuple(locked),
            not_written=tuple(
                phase.title
                for phase in self.outline.phases
                if len(phase.sessions) < phase.planned_sessions
            ),
        )
