"""What a sitting opens and closes with, as data drawn from the log (B1 to B5, F2 to F4).

No drawing here: each face prints these records its own way.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from firsthand.course.gate import Rung, describe
from firsthand.course.outline import Outline, Session
from firsthand.course.plan import PlanRow, plan
from firsthand.course.progress import (
    Difficulty,
    Mastery,
    Milestone,
    Progress,
    SessionProgress,
    State,
    StepProgress,
)
from firsthand.course.reviews import ReviewDue, due_reviews

WHOLE_SESSIONS = 5  # older ones are shown as a digest (F3)
PRACTICAL = (
    "A session has one objective and takes about an hour; you may stop at any step.",
    "Every answer is saved at once. The log stays on this machine.",
    "Two attempts at a question, then a simpler one. Nothing is skipped.",
    "You write the code in your workspace, in your own editor.",
)


@dataclass(frozen=True)
class StepSummary:
    """One step as the log has it. attempts: judged ones. rungs: names of the rungs visited."""

    id: str
    kind: str
    title: str
    state: State
    attempts: int
    failures: int
    rungs: tuple[str, ...]
    mistakes: tuple[str, ...]
    hints: int
    passed_at: str | None
    result: str  # the headline of the verdict that passed it, '' before that


@dataclass(frozen=True)
class SessionSummary:
    """One session, step by step (B4, and the last session of B2)."""

    session: str
    number: int
    title: str
    objective: str
    state: State
    minutes: int
    steps: tuple[StepSummary, ...]
    built: tuple[str, ...]
    concepts: tuple[Mastery, ...]
    able: tuple[str, ...]
    insights: tuple[str, ...]
    notes: tuple[str, ...]


@dataclass(frozen=True)
class Digest:
    """A session older than the last five, in one line (F3)."""

    session: str
    title: str
    concepts: tuple[str, ...]
    failures: int


@dataclass(frozen=True)
class PathLine:
    """One session of the path in short."""

    session: str
    title: str
    state: State
    passed: int
    steps: int


@dataclass(frozen=True)
class FirstSession:
    """B1, in its order. plan: empty where it was shown a moment ago. session: None if unwritten."""

    title: str
    plan: tuple[PlanRow, ...]
    goals: tuple[str, ...]
    able: tuple[str, ...]
    practical: tuple[str, ...]
    session: str | None
    session_title: str
    objective: str


@dataclass(frozen=True)
class LaterSession:
    """B2, in its order: where, path, last session, what was read, due reviews."""

    where: str
    next_step: str | None
    path: tuple[PathLine, ...]
    last: SessionSummary | None
    older: tuple[Digest, ...]
    milestones: tuple[Milestone, ...]
    read: tuple[str, ...]
    to_read: tuple[str, ...]
    reviews: tuple[ReviewDue, ...]


@dataclass(frozen=True)
class Loaded:
    """B5: what was loaded and how far it reaches."""

    workspace: str
    events: int
    since: str
    until: str | None
    sessions_complete: int
    sessions_written: int
    steps_passed: int
    steps_written: int
    concepts_mastered: int
    hours: float
    next_step: str | None
    ignored: tuple[str, ...]

    @property
    def sentence(self) -> str:
        """The whole in one sentence."""
        events = "1 event" if self.events == 1 else f"{self.events} events"
        concepts = (
            "1 concept" if self.concepts_mastered == 1 else (f"{self.concepts_mastered} concepts")
        )
        return (
            f"Loaded {events} up to {local_time(self.until) if self.until else 'now'}:"
            f" {self.steps_passed} of {self.steps_written} steps passed, {self.sessions_complete}"
            f" of {self.sessions_written} sessions complete, {concepts} mastered;"
            f" next: {self.next_step or 'nothing is open'}."
        )


def local_time(at: str) -> str:
    """A time of the log (UTC, ISO 8601) as the learner's clock shows it, to the minute."""
    return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M}"


@dataclass(frozen=True)
class PhaseLog:
    """F2: one phase. problems: its difficulties with their evidence (F4)."""

    phase: int
    title: str
    focus: str
    problems: tuple[Difficulty, ...]
    sessions: tuple[SessionSummary | Digest, ...]
    milestones: tuple[Milestone, ...]
    current: str | None
    following: str | None


@dataclass(frozen=True)
class Preference:
    """F4: a wish of the learner's and where it was said."""

    field: str
    answer: str
    at: str


def first_session(outline: Outline, progress: Progress, now: datetime) -> FirstSession:
    """B1: what the first session opens with."""
    session = _session_of(progress.current, outline)
    goals = progress.profile.get("goals")
    table = plan(outline, progress, now.date())
    return FirstSession(
        title="firsthand: build a small language model with your own hands",
        plan=table.rows,
        goals=tuple(goals.value) if goals else (),
        able=table.able,
        practical=PRACTICAL,
        session=session.id if session else None,
        session_title=session.title if session else "",
        objective=session.objective if session else "",
    )


def later_session(outline: Outline, progress: Progress, now: datetime) -> LaterSession:
    """B2: what every later session opens with."""
    worked = _worked_sessions(progress)
    given = [title for titles in progress.resources.values() for title in titles]
    current = _session_of(progress.current, outline)
    where = "Every written step is passed."
    if current is not None and progress.current is not None:
        step = outline.step(progress.current)
        gate = progress.steps[step.id].gate
        where = (
            f"Phase {current.phase}, session {current.id} ({current.title}): step {step.anchor}"
            f" ({step.title}), {describe(gate)}."
        )
    return LaterSession(
        where=where,
        next_step=progress.current,
        path=tuple(_path(outline, progress)),
        last=summary(worked[-1].id, outline, progress) if worked else None,
        older=tuple(digest(s.id, outline, progress) for s in worked[:-WHOLE_SESSIONS]),
        milestones=progress.milestones,
        read=progress.read,
        to_read=tuple(dict.fromkeys(title for title in given if title not in progress.read)),
        reviews=tuple(due_reviews(progress, outline, now)),
    )


def loaded(outline: Outline, progress: Progress) -> Loaded:
    """B5: what was loaded and how far it reaches."""
    return Loaded(
        workspace=progress.workspace,
        events=progress.last_number,
        since=progress.created_at,
        until=progress.last_at,
        sessions_complete=sum(session.complete for session in progress.sessions.values()),
        sessions_written=len(outline.sessions),
        steps_passed=sum(step.passed for step in progress.steps.values()),
        steps_written=len(outline.steps),
        concepts_mastered=len(progress.mastered),
        hours=round(progress.seconds / 3600, 1),
        next_step=progress.current,
        ignored=progress.ignored,
    )


def summary(session_id: str, outline: Outline, progress: Progress) -> SessionSummary:
    """B4: a session step by step, drawn from the log. Raises KeyError for an unknown session."""
    session = outline.session(session_id)
    record = progress.sessions[session_id]
    steps = tuple(
        _step_summary(heading.id, outline, progress)
        for heading in session.steps
        if progress.steps[heading.id].attempts or progress.steps[heading.id].rungs
    )
    own = {concept.id for concept in session.concepts}
    notes = [note for note in progress.notes if note.session == session_id]
    overcome = [
        f"{step.title}: {mistake}, corrected"
        for step in steps
        if step.passed_at is not None
        for mistake in step.mistakes
    ]
    return SessionSummary(
        session=session.id,
        number=session.number,
        title=session.title,
        objective=session.objective,
        state=record.state,
        minutes=round(record.seconds / 60),
        steps=steps,
        built=tuple(s.title for s in steps if s.kind == "Build" and s.passed_at is not None),
        concepts=tuple(mastery for mastery in progress.mastered if mastery.concept in own),
        able=session.able if record.complete else (),
        insights=(*overcome, *(note.text for note in notes if note.insight)),
        notes=tuple(note.text for note in notes if not note.insight),
    )


def digest(session_id: str, outline: Outline, progress: Progress) -> Digest:
    """F3: a session in one line."""
    session = outline.session(session_id)
    own = {concept.id for concept in session.concepts}
    return Digest(
        session=session.id,
        title=session.title,
        concepts=tuple(mastery.title for mastery in progress.mastered if mastery.concept in own),
        failures=sum(progress.steps[heading.id].gate.failures for heading in session.steps),
    )


def phase_log(phase_number: int, outline: Outline, progress: Progress) -> PhaseLog:
    """F2: the log of one phase. Raises KeyError for an unknown one."""
    phases = {phase.number: phase for phase in outline.phases}
    phase = phases[phase_number]
    ids = {session.id for session in phase.sessions}
    worked = [session.id for session in _worked_sessions(progress)]
    whole = set(worked[-WHOLE_SESSIONS:])
    current = _session_of(progress.current, outline)
    order = [session.id for session in outline.sessions]
    following = None
    if current is not None and order.index(current.id) + 1 < len(order):
        following = outline.session(order[order.index(current.id) + 1]).title
    titles = {concept.title for session in phase.sessions for concept in session.concepts}
    titles |= {session.title for session in phase.sessions} | {phase.title}
    return PhaseLog(
        phase=phase.number,
        title=phase.title,
        focus=phase.focus,
        problems=tuple(
            item for item in progress.difficulties if outline.step(item.step).session in ids
        ),
        sessions=tuple(
            summary(id_, outline, progress) if id_ in whole else digest(id_, outline, progress)
            for id_ in worked
            if id_ in ids
        ),
        milestones=tuple(item for item in progress.milestones if item.title in titles),
        current=current.title if current else None,
        following=following,
    )


def difficulties(progress: Progress, outline: Outline) -> tuple[Difficulty, ...]:
    """F4: the judged failures, those at steps that are still open first, the latest first."""
    latest = sorted(progress.difficulties, key=lambda item: item.at, reverse=True)
    return tuple(sorted(latest, key=lambda item: progress.steps[item.step].passed))


def preferences(progress: Progress) -> tuple[Preference, ...]:
    """F4: the profile as the learner said it, and when."""
    return tuple(
        Preference(field, entry.answer or str(entry.value), entry.at)
        for field, entry in progress.profile.items()
    )


def without_plan(first: FirstSession) -> FirstSession:
    """The same opening where the plan was shown a moment ago."""
    return replace(first, plan=())


def _session_of(step_id: str | None, outline: Outline) -> Session | None:
    return outline.session(outline.step(step_id).session) if step_id is not None else None


def _worked_sessions(progress: Progress) -> list[SessionProgress]:
    """The sessions with attempts, the one worked in last at the end."""
    tried = {step.id.split("/", 1)[0] for step in progress.steps.values() if step.attempts}
    found = [session for session in progress.sessions.values() if session.id in tried]
    return sorted(found, key=lambda session: session.last_at or "")


def _path(outline: Outline, progress: Progress) -> list[PathLine]:
    return [
        PathLine(
            session.id,
            session.title,
            progress.sessions[session.id].state,
            sum(progress.steps[step.id].passed for step in session.steps),
            len(session.steps),
        )
        for session in outline.sessions
    ]


def _step_summary(step_id: str, outline: Outline, progress: Progress) -> StepSummary:
    heading = outline.step(step_id)
    step: StepProgress = progress.steps[step_id]
    mistakes = dict.fromkeys(a.mistake for a in step.attempts if a.counted and a.mistake)
    return StepSummary(
        id=step_id,
        kind=heading.kind,
        title=heading.title,
        state=step.state,
        attempts=step.gate.judged,
        failures=step.gate.failures,
        rungs=tuple(Rung(rung).name.lower() for rung in step.rungs),
        mistakes=tuple(name for name in mistakes if name),
        hints=step.hints,
        passed_at=step.solved.at if step.solved else None,
        result=step.solved.headline if step.solved else "",
    )
