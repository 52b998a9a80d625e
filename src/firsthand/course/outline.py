"""What there is to learn, as light data: phases, sessions, step headings, concepts.

Read from `phase.toml`, `session.toml` and the headings of `lesson.md` alone, so that `status` never
imports a session's code (or NumPy). `course check` keeps `steps.py` equal to these headings.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from firsthand.course.errors import FirsthandError

KIND_NAMES = ("Build", "Predict", "Derive", "Trace", "Debug", "Measure", "Order", "Defend")
REVIEWABLE_KINDS = ("Predict", "Derive", "Trace", "Order", "Defend")
HEADING = re.compile(rf"^## ({'|'.join(KIND_NAMES)}): (.+?) \{{#([a-z0-9-]+)\}}\s*$", re.MULTILINE)


class OutlineError(FirsthandError):
    """A phase or session folder that cannot be read: names the file and what is wrong in it."""


@dataclass(frozen=True)
class Resource:
    """Something outside to read on mastery (PROTOCOL D5)."""

    title: str
    kind: str  # paper, book, video, article, code, documentation
    where: str  # address, or section of a book
    why: str = ""


@dataclass(frozen=True)
class Concept:
    """A thing to master. proofs: full step ids ('1.3/softmax'), at least two, all needed."""

    id: str
    title: str
    proofs: tuple[str, ...]


@dataclass(frozen=True)
class StepHeading:
    """A step as its heading in lesson.md announces it. id: 'session/anchor', e.g. '1.3/softmax'."""

    id: str
    kind: str
    title: str
    session: str

    @property
    def anchor(self) -> str:
        return self.id.split("/", 1)[1]

    @property
    def reviewable(self) -> bool:
        """Whether the step can come back with fresh parameters in a later session."""
        return self.kind in REVIEWABLE_KINDS


@dataclass(frozen=True)
class Session:
    """One session of about an hour. id: 'phase.number'. requires: ids of sessions before it."""

    id: str
    number: int
    phase: int
    title: str
    objective: str
    minutes: int
    machine: str  # 'any', 'gpu' or 'cpu': which of the learner's machines it needs (PROTOCOL F5)
    requires: tuple[str, ...]
    concepts: tuple[Concept, ...]
    resources: tuple[Resource, ...]
    steps: tuple[StepHeading, ...]
    able: tuple[str, ...]  # what one can do afterwards
    folder: Path

    @property
    def package(self) -> str:
        """Dotted name below the curriculum package: 'phase_1_neurons.session_03_activations'."""
        return f"{self.folder.parent.name}.{self.folder.name}"


@dataclass(frozen=True)
class Phase:
    """One of the five phases; sessions may be empty while they are not yet written."""

    number: int
    title: str
    focus: str
    hands_on: str
    hours: int
    sessions: tuple[Session, ...]
    planned_sessions: int


@dataclass(frozen=True)
class Outline:
    """The whole course. All look-ups are by the ids above."""

    phases: tuple[Phase, ...]
    root: Path

    @cached_property
    def sessions(self) -> tuple[Session, ...]:
        return tuple(session for phase in self.phases for session in phase.sessions)

    @cached_property
    def steps(self) -> tuple[StepHeading, ...]:
        return tuple(step for session in self.sessions for step in session.steps)

    @cached_property
    def concepts(self) -> tuple[Concept, ...]:
        return tuple(concept for session in self.sessions for concept in session.concepts)

    @cached_property
    def _steps_by_id(self) -> dict[str, StepHeading]:
        return {step.id: step for step in self.steps}

    @cached_property
    def _sessions_by_id(self) -> dict[str, Session]:
        return {session.id: session for session in self.sessions}

    def step(self, step_id: str) -> StepHeading:
        """Raises KeyError where there is no such step."""
        return self._steps_by_id[step_id]

    def session(self, session_id: str) -> Session:
        """Raises KeyError where there is no such session."""
        return self._sessions_by_id[session_id]

    def __contains__(self, identifier: object) -> bool:
        return identifier in self._steps_by_id or identifier in self._sessions_by_id

    def find_steps(self, text: str) -> tuple[StepHeading, ...]:
        """The steps that a learner may mean by `text`: a full id, an anchor, or a part of one."""
        if text in self._steps_by_id:
            return (self._steps_by_id[text],)
        exact = tuple(step for step in self.steps if step.anchor == text)
        return exact or tuple(step for step in self.steps if text and text in step.id)

    def concepts_of(self, step_id: str) -> Iterator[Concept]:
        return (concept for concept in self.concepts if step_id in concept.proofs)


def read_outline(root: Path) -> Outline:
    """Read every phase folder below `root`; raises OutlineError naming the file at fault."""
    folders = sorted(root.glob("phase_*_*/phase.toml"))
    if not folders:
        raise OutlineError(f"{root}: no phase_<n>_<name>/phase.toml found")
    phases: list[Phase] = []
    for file in folders:
        written = [session.id for phase in phases for session in phase.sessions]
        phases.append(_read_phase(file, written[-1] if written else None))
    return Outline(tuple(phases), root)


def _read_phase(file: Path, previous: str | None) -> Phase:
    record = _read_toml(file)
    number = int(file.parent.name.split("_")[1])
    sessions: list[Session] = []
    for session_file in sorted(file.parent.glob("session_*_*/session.toml")):
        sessions.append(_read_session(session_file, number, previous))
        previous = sessions[-1].id
    try:
        return Phase(
            number=number,
            title=record["title"],
            focus=record["focus"],
            hands_on=record["hands_on"],
            hours=record["hours"],
            sessions=tuple(sessions),
            planned_sessions=record["sessions"],
        )
    except KeyError as missing:
        raise OutlineError(f"{file}: the key {missing} is missing") from None


def _read_session(file: Path, phase: int, previous: str | None) -> Session:
    record = _read_toml(file)
    number = int(file.parent.name.split("_")[1])
    session_id = f"{phase}.{number}"
    lesson = file.with_name("lesson.md")
    try:
        text = lesson.read_text(encoding="utf-8")
    except OSError as error:
        raise OutlineError(f"{lesson}: {error.strerror}") from None
    steps = tuple(
        StepHeading(f"{session_id}/{match[3]}", match[1], match[2], session_id)
        for match in HEADING.finditer(text)
    )
    try:
        concepts = tuple(
            Concept(
                concept_id,
                body["title"],
                tuple(
                    proof if "/" in proof else f"{session_id}/{proof}" for proof in body["proofs"]
                ),
            )
            for concept_id, body in record["concepts"].items()
        )
        return Session(
            id=session_id,
            number=number,
            phase=phase,
            title=record["title"],
            objective=record["objective"],
            minutes=record["minutes"],
            machine=record.get("machine", "any"),
            requires=tuple(record.get("requires", [previous] if previous else [])),
            concepts=concepts,
            resources=tuple(Resource(**item) for item in record["resources"]),
            steps=steps,
            able=tuple(record["able"]),
            folder=file.parent,
        )
    except KeyError as missing:
        raise OutlineError(f"{file}: the key {missing} is missing") from None
    except TypeError as error:
        raise OutlineError(f"{file}: {error}") from None


def _read_toml(file: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise OutlineError(f"{file}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise OutlineError(f"{file}: {error}") from None
