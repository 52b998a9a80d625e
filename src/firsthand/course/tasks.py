"""A step screen made concrete: its theory, its question, its file, and how an answer is decided.

The sitting says which step and rung stands open; here that becomes text to show and a verdict to
record. Faces draw a `Task` and hand back what was typed, or say that the file was saved.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from firsthand.course import starters
from firsthand.course.checks.checker import Checker
from firsthand.course.checks.presentation import forbidden_text
from firsthand.course.checks.requests import Executor
from firsthand.course.code_sources import built_functions, code_source, signature_line
from firsthand.course.gate import Rung
from firsthand.course.lesson import Lesson
from firsthand.course.loading import Course
from firsthand.course.progress import Progress
from firsthand.course.questions.code_rungs import code_rung_question
from firsthand.course.questions.question import Question, WorkedExample, ask
from firsthand.course.questions.rungs import rung_question
from firsthand.course.screens import Review, StepScreen, WorkedScreen
from firsthand.course.sources import PartName
from firsthand.course.steps import AnyMistake, Build, Debug, Mistake, Step
from firsthand.course.verdicts import Outcome, Verdict
from firsthand.course.workspace import Workspace


@dataclass(frozen=True)
class Task:
    """What a face needs of an open step.

    theory: Markdown shown before the question, None where it was shown or is left out (a rung, a
    test-out). prompt: Markdown. form: how an answer looks; '' for a file. file, line: where to
    write; None for a typed answer. hints: all of the step's, the face shows those that were asked.
    check(answer) judges: the typed text, or for a file the text of the file (which is read again).
    """

    step: str
    theory: str | None
    prompt: str
    form: str
    file: Path | None
    line: int
    hints: tuple[str, ...]
    check: Callable[[str], Verdict]

    @property
    def typed(self) -> bool:
        return self.file is None


class Tasks:
    """Makes tasks for one workspace. executor: where the learner's code runs."""

    def __init__(self, course: Course, workspace: Workspace, executor: Executor) -> None:
        self.course = course
        self.workspace = workspace
        self.checker = Checker(course, executor, workspace.root)

    # ------------------------------------------------------------------ the three screens

    def opening(self, session_id: str) -> str:
        """The first words of a session, rendered."""
        return self._lesson(session_id).opening()

    def task(self, screen: StepScreen, progress: Progress) -> Task:
        """The task of an open step. Puts the starter or the given code where it belongs.

        Raises WorkspaceError where the workspace cannot be written.
        """
        step = self.course.step(screen.step)
        theory = None
        if screen.theory and screen.rung is Rung.STEP:
            theory = self._lesson(screen.session).theory(screen.step)
        if screen.rung is Rung.STEP and isinstance(step, Build):
            return self._build_task(screen, step, progress, theory)
        if screen.rung is Rung.STEP and isinstance(step, Debug):
            return self._debug_task(screen, step, progress, theory)
        if isinstance(step, Build | Debug):
            question = self._code_rung(screen.step, screen.rung, screen.seed, step)
        else:
            question = rung_question(step, screen.rung, screen.seed, self._mistakes(screen.step))
        assert isinstance(question, Question)  # the worked example has a screen of its own
        return self._typed(screen.step, step, question, theory)

    def theory(self, step_id: str) -> str:
        """The prose of a step, rendered: to be read again at any time."""
        return self._lesson(self.course.outline.step(step_id).session).theory(step_id)

    def review(self, screen: Review) -> Task:
        """A review: the step's question with fresh numbers, without its theory."""
        step = self.course.step(screen.step)
        question = ask(step, screen.seed, self._mistakes(screen.step))
        return self._typed(screen.step, step, question, None)

    def worked(self, screen: WorkedScreen) -> str:
        """The worked example, Markdown."""
        step = self.course.step(screen.step)
        if isinstance(step, Build | Debug):
            example = self._code_rung(screen.step, Rung.WORKED, screen.seed, step)
        else:
            example = rung_question(step, Rung.WORKED, screen.seed, self._mistakes(screen.step))
        assert isinstance(example, WorkedExample)
        return example.text

    # ------------------------------------------------------------------ kinds

    def _typed(self, step_id: str, step: Step, question: Question, theory: str | None) -> Task:
        return Task(
            step=step_id,
            theory=theory,
            prompt=question.prompt,
            form=question.form,
            file=None,
            line=1,
            hints=step.hints,
            check=question.grade,
        )

    def _build_task(
        self, screen: StepScreen, step: Build, progress: Progress, theory: str | None
    ) -> Task:
        started = self.workspace.add_starter(self.course, screen.session, step)
        mastered = self.mastered(screen.step, progress)

        def check(answer: str) -> Verdict:
            return self.checker.check(screen.step, screen.seed, mastered=mastered)

        return Task(
            step=screen.step,
            theory=theory,
            prompt=self._build_prompt(step, started.path),
            form="",
            file=started.path,
            line=started.line,
            hints=step.hints,
            check=check,
        )

    def _build_prompt(self, step: Build, path: Path) -> str:
        part = PartName.parse(step.part)
        source = starters.starter_source(self.course.stack, part)
        signatures = [signature_line(node) for node in built_functions(step, source)]
        owner = f" of the class `{part.name}`" if step.methods else ""
        place = self.workspace.shown(path)
        lines = [f"Write{owner} in `{place}`:", "", "```python", *signatures, "```", ""]
        lines.append("The docstring there states the contract. Each save is checked.")
        if step.forbids:
            shown = ", ".join(f"`{forbidden_text(name)}`" for name in step.forbids)
            lines += ["", f"Not to be used, for this is what you build: {shown}."]
        return "\n".join(lines)

    def _debug_task(
        self, screen: StepScreen, step: Debug, progress: Progress, theory: str | None
    ) -> Task:
        mistake = self._given_mistake(screen, step)
        number = len(progress.steps[screen.step].rungs) + 1
        path = self.workspace.add_debug(self.course, screen.session, step, mistake, number)
        given = self.workspace.given_text(self.course, screen.session, step, mistake)
        mastered = self.mastered(screen.step, progress)

        def check(answer: str) -> Verdict:
            if answer == given:
                return Verdict(Outcome.UNFINISHED, "The given code is as it was given.")
            verdict = self.checker.check(screen.step, screen.seed, file=path, mastered=mastered)
            if verdict.mistake == mistake.id:  # finding it is the step: it is not named
                headline = verdict.headline.removesuffix(mistake.belief).strip()
                return replace(verdict, headline=headline, mistake=None, question=None)
            return verdict

        return Task(
            step=screen.step,
            theory=theory,
            prompt=(
                f"`{self.workspace.shown(path)}` holds code with one mistake. What one sees: "
                f"{step.symptom}\n\nFind the line and repair it. Each save is checked."
            ),
            form="",
            file=path,
            line=1,
            hints=step.hints,
            check=check,
        )

    def _given_mistake(self, screen: StepScreen, step: Debug) -> Mistake:
        names = step.mistakes
        name = names[zlib.crc32(f"{screen.visit_seed}".encode()) % len(names)]
        return next(item for item in self.checker.mistakes(screen.step) if item.id == name)

    def _code_rung(
        self, step_id: str, rung: Rung, seed: int, step: Build | Debug
    ) -> Question | WorkedExample:
        build = step.build if isinstance(step, Debug) else step
        cut = code_source(
            self.course,
            build,
            self.checker.mistakes(step_id),
            session_module=self.checker.session_module(step_id),
            check_file=lambda file: self.checker.check(step_id, seed, file=file),
            scratch=self.workspace.state_folder / "rungs" / f"{build.id.replace('-', '_')}.py",
        )
        return code_rung_question(rung, seed, cut)

    # ------------------------------------------------------------------ shared

    def mastered(self, step_id: str, progress: Progress) -> frozenset[str]:
        """The parts whose Build steps so far are all passed: they are imported as `mine`."""
        session = self.course.outline.step(step_id).session
        return frozenset(
            part
            for part, steps in self.course.parts_until(session).items()
            if all(progress.steps[other].solved for other in steps)
        )

    def _mistakes(self, step_id: str) -> tuple[AnyMistake, ...]:
        code = self.course.code(self.course.outline.step(step_id).session)
        return code.mistakes_of(self.course.step(step_id))

    def _lesson(self, session_id: str) -> Lesson:
        code = self.course.code(session_id)
        return Lesson(code.session, vars(code.module))


def file_text(path: Path) -> str:
    """The text of a learner's file as it is now; '' when it is gone or cannot be read."""
    try:
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return ""
