"""Checks a step's file: prepares the trial, has the code executed, and judges what comes back."""

from __future__ import annotations

import inspect
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from firsthand.course.checks.in_process import InProcess
from firsthand.course.checks.judge import Examination
from firsthand.course.checks.requests import Executor, Request, Returned, Run, RunStatus
from firsthand.course.checks.trial import Trial, draw, prepare, request_for
from firsthand.course.loading import Course
from firsthand.course.sources import PartName
from firsthand.course.steps import Build, Debug, Mistake
from firsthand.course.verdicts import Outcome, Verdict

TIMED_REPEATS = 7


class Checker:
    """Judges Build and Debug files of one workspace.

    executor: the isolated worker for a learner; anything else only for trusted code.
    """

    def __init__(self, course: Course, executor: Executor, workspace: Path) -> None:
        self.course = course
        self.executor = executor
        self.workspace = workspace
        self._trials: dict[tuple[str, int], Trial] = {}

    def build_of(self, step_id: str) -> Build:
        """The Build declaration that decides a Build or a Debug step."""
        step = self.course.step(step_id)
        if isinstance(step, Debug):
            return step.build
        if isinstance(step, Build):
            return step
        raise TypeError(f"step {step_id} is answered by typing, not by a file")

    def trial(self, step_id: str, seed: int) -> Trial:
        """The trial of a step for a seed. Cached: it can be prepared while the learner types."""
        key = (step_id, seed)
        if key not in self._trials:
            build = self.build_of(step_id)
            versions = [
                (mistake, self.course.version(mistake, build)) for mistake in self.mistakes(step_id)
            ]
            self._trials = {
                key: prepare(
                    build,
                    seed,
                    versions,
                    stack=self.course.stack,
                    session_module=self.session_module(step_id),
                )
            }
        return self._trials[key]

    def check(
        self,
        step_id: str,
        seed: int,
        *,
        file: Path | None = None,
        mastered: Collection[str] = (),
    ) -> Verdict:
        """The verdict on the learner's file (or `file`) for a step.

        mastered: the parts ('foundations.neuron:dot_product') that the learner has built; what the
        file imports of `mine` comes from the reference for all other parts.
        """
        build = self.build_of(step_id)
        trial = self.trial(step_id, seed)
        request = replace(
            request_for(
                build,
                trial.calls,
                stack=self.course.stack,
                session_module=self.session_module(step_id),
                workspace=self.workspace,
            ),
            file=file,
            references=self._references(step_id, build, mastered),
        )
        run = self.executor.execute(request)
        return self.judge(step_id, trial, run, request, self.executor)

    def check_version(self, step_id: str, seed: int, part: object) -> Verdict:
        """The verdict on a trusted version of the part, run in this process (author's check)."""
        build = self.build_of(step_id)
        trial = self.trial(step_id, seed)
        request = request_for(
            build,
            trial.calls,
            stack=self.course.stack,
            session_module=self.session_module(step_id),
            workspace=self.workspace,
        )
        executor = InProcess(part)
        return self.judge(step_id, trial, executor.execute(request), request, executor)

    def judge(
        self, step_id: str, trial: Trial, run: Run, request: Request, executor: Executor
    ) -> Verdict:
        """Judge a run; measure the speed only when everything before it passed."""
        build = trial.build
        reference = self.course.reference(PartName.parse(build.part))
        examination = Examination(
            trial=trial,
            run=run,
            mistakes=self.mistakes(step_id),
            reference_signature=_signature(reference),
        )
        if build.speed is None:
            return examination.verdict()
        without_speed = replace_build(examination, replace(build, speed=None))
        first = without_speed.verdict()
        if first.outcome is not Outcome.PASSED:
            return first
        arguments = build.speed.arguments(draw(build, trial.seed))
        timed = replace(request, calls=(arguments,), timed=(0, TIMED_REPEATS))
        examination.learner_seconds = _seconds(executor.execute(timed))
        if isinstance(executor, InProcess):
            run = InProcess(reference).execute(timed)
        else:  # the same process and limits as the learner's
            run = executor.execute(replace(timed, reference=True))
        examination.reference_seconds = _seconds(run)
        return examination.verdict()

    def mistakes(self, step_id: str) -> tuple[Mistake, ...]:
        """The wrong versions of the part; a Debug step may borrow a part of another session."""
        build = self.build_of(step_id)
        found: dict[str, Mistake] = {}
        for session in self.course.outline.sessions:
            code = self.course.code(session.id)
            if any(step is build for step in code.steps.values()) or (
                session.id == self.course.outline.step(step_id).session
            ):
                for mistake in code.mistakes:
                    if isinstance(mistake, Mistake) and mistake.step == build.id:
                        found.setdefault(mistake.id, mistake)
            if session.id == self.course.outline.step(step_id).session:
                break
        return tuple(found.values())

    def session_module(self, step_id: str) -> str:
        """The module whose top-level function is the driver."""
        build = self.build_of(step_id)
        if build.driver is not None:
            return build.driver.__module__
        session = self.course.outline.step(step_id).session
        return self.course.code(session).module.__name__

    def _references(self, step_id: str, build: Build, mastered: Collection[str]) -> tuple[str, ...]:
        session = self.course.outline.step(step_id).session
        return tuple(
            part
            for part in self.course.parts_until(session)
            if part != build.part and part not in mastered
        )


def replace_build(examination: Examination, build: Build) -> Examination:
    """The same examination with another declaration of the step."""
    return replace(examination, trial=replace(examination.trial, build=build), reports=[])


def _signature(part: object) -> str | None:
    if not callable(part):
        return None
    try:
        return str(inspect.signature(part))
    except (TypeError, ValueError):
        return None


def _seconds(run: Run) -> float | None:
    if run.status is not RunStatus.FINISHED or not run.results:
        return None
    result = run.results[0]
    return result.seconds if isinstance(result, Returned) else None
