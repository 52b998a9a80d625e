"""Where the learner is: what the events of the log add up to, over an outline.

`progress` and `advance` (in `fold.py`) make a `Progress`; the functions here answer questions about
one. Nothing in it is stored anywhere: the log alone is. Times are kept for the recap and the
reviews; no state of a step or session depends on one (PROTOCOL D2).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from firsthand.course.gate import Gate, Rung
from firsthand.course.outline import Outline
from firsthand.course.verdicts import Outcome


class State(StrEnum):
    """Of a step: LOCKED, OPEN or PASSED. Of a session: LOCKED, OPEN or COMPLETE."""

    LOCKED = "locked"
    OPEN = "open"
    PASSED = "passed"
    COMPLETE = "complete"


@dataclass(frozen=True)
class Attempt:
    """One answer. number: 1-based at its step, free ones included. event: its number in the log.

    counted: whether it was judged at the rung that was open, and was not the same file or answer
    as the last one there.
    """

    step: str
    number: int
    event: int
    at: str
    rung: Rung
    outcome: Outcome
    counted: bool
    mistake: str | None = None
    headline: str = ""


@dataclass(frozen=True)
class StepProgress:
    """One step. rungs: the rungs visited below the step, in order, cycle after cycle.

    fingerprints: the last judged fingerprint at each rung. hints: shown so far. simplified: how
    often the learner asked for a simpler case. solved: the attempt that passed the step, whether or
    not the step can be reached yet (see `state`).
    """

    id: str
    state: State = State.LOCKED
    gate: Gate = field(default_factory=Gate)
    attempts: tuple[Attempt, ...] = ()
    reviews: tuple[Attempt, ...] = ()
    rungs: tuple[Rung, ...] = ()
    fingerprints: Mapping[Rung, str] = field(default_factory=dict)
    hints: int = 0
    simplified: int = 0
    solved: Attempt | None = None

    @property
    def passed(self) -> bool:
        return self.state is State.PASSED


@dataclass(frozen=True)
class SessionProgress:
    """One session. seconds: time spent in it. summarised: its end summary was shown."""

    id: str
    state: State = State.LOCKED
    tested_out: bool = False
    summarised: bool = False
    seconds: float = 0.0
    first_at: str | None = None
    last_at: str | None = None
    completed_at: str | None = None

    @property
    def complete(self) -> bool:
        return self.state is State.COMPLETE


@dataclass(frozen=True)
class Proof:
    """One of the proofs of a concept: which step, which attempt, when (PROTOCOL D4)."""

    step: str
    attempt: int
    at: str


@dataclass(frozen=True)
class Mastery:
    """A concept and all its proofs. at: when the last one was given."""

    concept: str
    title: str
    proofs: tuple[Proof, ...]
    at: str


@dataclass(frozen=True)
class Difficulty:
    """A judged failure, with its evidence (PROTOCOL F4)."""

    step: str
    attempt: int
    rung: Rung
    outcome: Outcome
    mistake: str | None
    headline: str
    at: str


@dataclass(frozen=True)
class Milestone:
    """What is kept whole however old it is (PROTOCOL F3)."""

    kind: str  # started, concept, session tested out, phase
    title: str
    at: str


@dataclass(frozen=True)
class ProfileEntry:
    """The present value of one field of the profile, and the answer it was read from."""

    value: Any
    answer: str
    at: str


@dataclass(frozen=True)
class Measurement:
    """What was measured on a machine at a Measure step."""

    step: str
    value: Any
    at: str


@dataclass(frozen=True)
class MachineRecord:
    """One of the learner's machines (PROTOCOL F5). record: see machine.Machine.from_json."""

    record: Mapping[str, Any]
    measured: tuple[Measurement, ...] = ()


@dataclass(frozen=True)
class SittingRecord:
    """One sitting. seen: the screens that were shown. passed: the steps passed in it.

    reviewed: the steps reviewed in it, also where the checker could not decide.
    """

    id: str
    at: str
    machine: str | None = None
    seen: frozenset[str] = frozenset()
    passed: tuple[str, ...] = ()
    reviewed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Note:
    """The learner's own words about a session. insight: worth keeping in the phase log."""

    text: str
    session: str | None
    insight: bool
    at: str


@dataclass(frozen=True)
class Progress:
    """All that the log says. The mappings follow the order of the outline.

    seconds: time spent, without pauses. focus: the session last worked in. current: the step that
    comes next, None when nothing is open. resources: concepts whose resources were shown. read:
    titles read. ignored: one sentence for each event that means nothing here.
    """

    workspace: str = ""
    salt: str = ""
    created_at: str = ""
    started_at: str | None = None
    profile: Mapping[str, ProfileEntry] = field(default_factory=dict)
    machines: Mapping[str, MachineRecord] = field(default_factory=dict)
    machine: str | None = None
    steps: Mapping[str, StepProgress] = field(default_factory=dict)
    sessions: Mapping[str, SessionProgress] = field(default_factory=dict)
    mastered: tuple[Mastery, ...] = ()
    difficulties: tuple[Difficulty, ...] = ()
    milestones: tuple[Milestone, ...] = ()
    sittings: Mapping[str, SittingRecord] = field(default_factory=dict)
    resources: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    read: tuple[str, ...] = ()
    notes: tuple[Note, ...] = ()
    ignored: tuple[str, ...] = ()
    seconds: float = 0.0
    focus: str | None = None
    current: str | None = None
    last_number: int = 0
    last_at: str | None = None
    paused: bool = True

    @property
    def concepts_mastered(self) -> frozenset[str]:
        return frozenset(mastery.concept for mastery in self.mastered)

    @property
    def tried(self) -> bool:
        """Whether any step was ever answered: before that, it is the first session (B1)."""
        return any(step.gate.judged for step in self.steps.values())


def seed_for(step_id: str, progress: Progress) -> int:
    """The seed of the question that is open at a step, in 0 ... 2**32 - 1.

    Fresh after each judged attempt and on each rung, the same until the question is answered, so
    that a restart shows the same question; different from workspace to workspace.
    """
    gate = progress.steps[step_id].gate
    return _seed(progress.salt, step_id, "gate", gate.rung, gate.turn)


def visit_seed(step_id: str, progress: Progress) -> int:
    """The seed of a visit to a rung: the same for its attempts, another when the rung changes."""
    step = progress.steps[step_id]
    return _seed(progress.salt, step_id, "visit", step.gate.rung, len(step.rungs))


def review_seed(step_id: str, progress: Progress) -> int:
    """The seed of the next review of a step: fresh after each judged review."""
    judged = sum(attempt.counted for attempt in progress.steps[step_id].reviews)
    return _seed(progress.salt, step_id, "review", judged)


def _seed(*parts: object) -> int:
    digest = hashlib.sha256("|".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def unlocks(session_id: str, outline: Outline) -> tuple[str, ...]:
    """The sessions that wait for this one."""
    return tuple(other.id for other in outline.sessions if session_id in other.requires)


def why_locked(identifier: str, progress: Progress, outline: Outline) -> str:
    """One sentence on what unlocks a step or session; empty where it is not locked.

    Raises KeyError where the outline has no such step or session.
    """
    if identifier in progress.sessions:
        return _why_session_locked(identifier, progress, outline)
    step = outline.step(identifier)
    if progress.steps[identifier].state is not State.LOCKED:
        return ""
    if progress.sessions[step.session].state is State.LOCKED:
        return _why_session_locked(step.session, progress, outline)
    waiting = next(
        other
        for other in outline.session(step.session).steps
        if progress.steps[other.id].state is State.OPEN
    )
    return f"{identifier} opens when {waiting.id} ({waiting.title}) is passed."


def _why_session_locked(session_id: str, progress: Progress, outline: Outline) -> str:
    if progress.sessions[session_id].state is not State.LOCKED:
        return ""
    missing = [
        f"{required} ({outline.session(required).title})" if required in outline else required
        for required in outline.session(session_id).requires
        if not (required in progress.sessions and progress.sessions[required].complete)
    ]
    return (
        f"Session {session_id} opens when {' and '.join(missing)}"
        f" {'is' if len(missing) == 1 else 'are'} complete, or by test-out:"
        f" its own gate, taken now."
    )
