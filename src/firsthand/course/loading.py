"""A session's code: its `steps.py` and `mistakes.py`, imported when the session is worked on."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from firsthand.course.outline import Outline, Session, read_outline
from firsthand.course.sources import PartName, edited_part

if TYPE_CHECKING:  # they import NumPy, and `status` starts without it
    from firsthand.course.steps import Alternative, AnyMistake, Build, Mistake, Step


class CourseError(ValueError):
    """A session whose code does not fit its outline; for the author."""


@dataclass(frozen=True)
class SessionCode:
    """The declarations of one session.

    steps: by full step id, in order. mistakes, alternatives: as declared, all steps together.
    values: the module `steps.py`, whose names the prose can compute with.
    """

    session: Session
    steps: dict[str, Step]
    mistakes: tuple[AnyMistake, ...]
    alternatives: tuple[Alternative, ...]
    module: ModuleType

    def mistakes_of(self, step: Step) -> tuple[AnyMistake, ...]:
        """The mistakes of a step; of a Debug step those of the part that it repairs."""
        owner = _owner(step)
        return tuple(mistake for mistake in self.mistakes if mistake.step == owner)

    def alternatives_of(self, step: Step) -> tuple[Alternative, ...]:
        owner = _owner(step)
        return tuple(item for item in self.alternatives if item.step == owner)


def _owner(step: Step) -> str:
    """The id under which the mistakes of a step are declared."""
    from firsthand.course.steps import Debug

    return step.build.id if isinstance(step, Debug) else step.id


@dataclass(frozen=True)
class Course:
    """A curriculum package and the stack it teaches, both by name.

    The engine imports neither by itself: the application names them.
    """

    curriculum: str = "firsthand.curriculum"
    stack: str = "firsthand.llm"

    @cached_property
    def root(self) -> Path:
        spec = importlib.util.find_spec(self.curriculum)
        if spec is None or not spec.submodule_search_locations:
            raise CourseError(f"there is no curriculum package {self.curriculum}")
        return Path(next(iter(spec.submodule_search_locations)))

    @cached_property
    def outline(self) -> Outline:
        return read_outline(self.root)

    @cached_property
    def _loaded(self) -> dict[str, SessionCode]:
        return {}

    def code(self, session_id: str) -> SessionCode:
        """Import a session's declarations (cached). Raises CourseError, KeyError."""
        if session_id not in self._loaded:
            self._loaded[session_id] = self._load(self.outline.session(session_id))
        return self._loaded[session_id]

    def step(self, step_id: str) -> Step:
        """The declaration of a step by its full id. Raises KeyError, CourseError."""
        return self.code(self.outline.step(step_id).session).steps[step_id]

    def _load(self, session: Session) -> SessionCode:
        package = f"{self.curriculum}.{session.package}"
        steps_module = importlib.import_module(f"{package}.steps")
        mistakes_module = importlib.import_module(f"{package}.mistakes")
        steps = {f"{session.id}/{step.id}": step for step in steps_module.STEPS}
        headings = [heading.id for heading in session.steps]
        if list(steps) != headings:
            raise CourseError(
                f"session {session.id}: steps.py declares {list(steps)}, "
                f"lesson.md announces {headings}"
            )
        for heading, step in zip(session.steps, steps.values(), strict=True):
            if heading.kind != step.kind:
                raise CourseError(
                    f"step {heading.id}: lesson.md says {heading.kind}, steps.py says {step.kind}"
                )
        return SessionCode(
            session=session,
            steps=steps,
            mistakes=tuple(mistakes_module.MISTAKES),
            alternatives=tuple(mistakes_module.ALTERNATIVES),
            module=steps_module,
        )

    def parts_until(self, session_id: str) -> dict[str, tuple[str, ...]]:
        """Every part built up to this session (included) -> the Build steps that build it.

        Later sessions are not looked at, so that an early one never imports what they need.
        """
        from firsthand.course.steps import Build

        found: dict[str, list[str]] = {}
        for session in self.outline.sessions:
            for step_id, step in self.code(session.id).steps.items():
                if isinstance(step, Build):
                    found.setdefault(step.part, []).append(step_id)
            if session.id == session_id:
                break
        return {part: tuple(ids) for part, ids in found.items()}

    def methods_until(self, part: str, session_id: str) -> frozenset[str]:
        """The methods of a class part that are built up to this session."""
        from firsthand.course.steps import Build

        methods: set[str] = set()
        for step_id in self.parts_until(session_id).get(part, ()):
            step = self.step(step_id)
            if isinstance(step, Build):
                methods.update(step.methods)
        return frozenset(methods)

    def reference(self, part: PartName) -> Any:
        """The stack's own version of a part."""
        return getattr(importlib.import_module(f"{self.stack}.{part.module}"), part.name)

    def version(self, mistake: Mistake, build: Build) -> Any:
        """The wrong version of the part that a mistake describes."""
        if mistake.code is not None:
            return mistake.code
        part = PartName.parse(build.part)
        return edited_part(self.stack, part, mistake.edits, mistake.id.replace("-", "_"))
