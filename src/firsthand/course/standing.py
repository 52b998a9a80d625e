"""What follows from the gates of all steps: open and locked, complete, mastered, what comes next.

An answer to a step that cannot be reached is kept at its gate but counts only once the steps
before it are passed: nothing is skipped, and nothing is lost when a newer course adds a step.
"""

from __future__ import annotations

from dataclasses import replace

from firsthand.course.outline import Outline
from firsthand.course.progress import (
    Mastery,
    Milestone,
    Progress,
    Proof,
    SessionProgress,
    State,
    StepProgress,
)


def settled(grown: Progress, outline: Outline) -> Progress:
    """The same progress with every state that follows from its gates worked out anew."""
    steps, sessions = dict(grown.steps), dict(grown.sessions)
    complete = _settle(steps, sessions, outline)
    grown = replace(grown, steps=steps, sessions=sessions, current=None)
    mastered = _mastered(grown, outline)
    return replace(
        grown,
        mastered=mastered,
        milestones=_milestones(grown, mastered, complete, outline),
        current=_current(grown, outline),
    )


def _settle(
    steps: dict[str, StepProgress], sessions: dict[str, SessionProgress], outline: Outline
) -> set[str]:
    """Set the states of all steps and sessions; returns the complete sessions."""
    complete: set[str] = set()
    opened: set[str] = set()
    # Sessions may require later ones of the file order, so repeat until nothing more opens.
    waiting = list(outline.sessions)
    changed = True
    while changed:
        changed = False
        for session in tuple(waiting):
            if not (sessions[session.id].tested_out or complete.issuperset(session.requires)):
                continue
            waiting.remove(session)
            opened.add(session.id)
            changed = True
            # A session without steps proves nothing, so it is never complete.
            if session.steps and all(steps[step.id].gate.passed for step in session.steps):
                complete.add(session.id)
    for session in outline.sessions:
        state = State.LOCKED
        if session.id in opened:
            state = State.COMPLETE if session.id in complete else State.OPEN
        done_at = None
        if state is State.COMPLETE:
            last = max(
                (solved for step in session.steps if (solved := steps[step.id].solved)),
                key=lambda solved: solved.event,
            )
            done_at = last.at
        sessions[session.id] = replace(sessions[session.id], state=state, completed_at=done_at)
        reachable = state is not State.LOCKED
        for heading in session.steps:
            step = steps[heading.id]
            step_state = State.LOCKED
            if reachable:
                step_state = State.PASSED if step.gate.passed else State.OPEN
                reachable = step.gate.passed
            steps[heading.id] = replace(step, state=step_state)
    return complete


def _mastered(grown: Progress, outline: Outline) -> tuple[Mastery, ...]:
    found: list[tuple[int, Mastery]] = []
    for concept in outline.concepts:
        solved = [
            grown.steps[step_id].solved
            for step_id in concept.proofs
            if step_id in grown.steps and grown.steps[step_id].passed
        ]
        given = [attempt for attempt in solved if attempt is not None]
        if len(set(concept.proofs)) < 2 or len(given) < len(concept.proofs):
            continue
        last = max(given, key=lambda attempt: attempt.event)
        proofs = tuple(Proof(attempt.step, attempt.number, attempt.at) for attempt in given)
        found.append((last.event, Mastery(concept.id, concept.title, proofs, last.at)))
    return tuple(mastery for _, mastery in sorted(found, key=lambda item: item[0]))


def _milestones(
    grown: Progress, mastered: tuple[Mastery, ...], complete: set[str], outline: Outline
) -> tuple[Milestone, ...]:
    found = [Milestone("concept", mastery.title, mastery.at) for mastery in mastered]
    if grown.started_at is not None:
        found.append(Milestone("started", "The course", grown.started_at))
    for phase in outline.phases:
        ends = []
        for session in phase.sessions:
            record = grown.sessions[session.id]
            if record.completed_at is not None:
                ends.append(record.completed_at)
                if record.tested_out:
                    found.append(
                        Milestone("session tested out", session.title, record.completed_at)
                    )
        if ends and len(ends) == len(phase.sessions) >= phase.planned_sessions:
            found.append(Milestone("phase", phase.title, max(ends)))
    return tuple(sorted(found, key=lambda milestone: milestone.at))


def _current(grown: Progress, outline: Outline) -> str | None:
    """The next step: in the session last worked in, else in the next open one after it."""
    order = [session.id for session in outline.sessions]
    open_ones = [id_ for id_ in order if grown.sessions[id_].state is State.OPEN]
    if grown.focus in order:
        place = order.index(grown.focus)
        open_ones.sort(key=lambda id_: (order.index(id_) < place, order.index(id_)))
    for session_id in open_ones:
        for step in outline.session(session_id).steps:
            if grown.steps[step.id].state is State.OPEN:
                return step.id
    return None
