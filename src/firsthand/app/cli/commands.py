"""What the single commands do. They use the same sitting and the same gate as `learn`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from firsthand.app.cli import drawing
from firsthand.app.cli.terminal import console, lesson
from firsthand.course.answers import Malformed
from firsthand.course.fold import progress as fold
from firsthand.course.loading import Course
from firsthand.course.log import EventLog
from firsthand.course.outline import StepHeading
from firsthand.course.progress import why_locked
from firsthand.course.screens import MasteryScreen, Screen, SessionEnd, StepScreen, WorkedScreen
from firsthand.course.sitting import Sitting, SittingError
from firsthand.course.workspace import Workspace, WorkspaceError

if TYPE_CHECKING:
    from firsthand.course.tasks import Tasks


def find_step(course: Course, text: str) -> StepHeading:
    """The one step that is meant. Raises SittingError naming the candidates."""
    found = course.outline.find_steps(text)
    if len(found) == 1:
        return found[0]
    if not found:
        import difflib

        names = [step.anchor for step in course.outline.steps]
        near = difflib.get_close_matches(text, names, n=3)
        hint = f" Did you mean {', '.join(near)}?" if near else " See: firsthand status"
        raise SittingError(f"There is no step {text}.{hint}")
    raise SittingError(
        f"{text} may be {', '.join(step.id for step in found[:6])}: name one of them."
    )


def open_screen(sitting: Sitting) -> StepScreen:
    """The step that is open, after what belongs before it. Raises SittingError where none is."""
    while True:
        screen: Screen = sitting.next()
        match screen:
            case StepScreen():
                return screen
            case MasteryScreen():
                console().print(drawing.mastery(screen.mastery, screen.resources, screen.milestone))
                sitting.seen(screen)
            case SessionEnd():
                console().print(drawing.summary(screen.summary))
                sitting.seen(screen)
            case WorkedScreen():
                raise SittingError("The worked example comes next. Read it with: firsthand learn")
            case _ if sitting.progress.started_at is None:
                raise SittingError("The course begins with a few questions: firsthand learn")
            case _:
                raise SittingError("No step is open here. See: firsthand status")


def check_step(
    course: Course, workspace: Workspace, log: EventLog, named: str | None, answer: str | None
) -> bool:
    """Check the open step (recorded) or another one (only looked at). True when it passes."""
    from firsthand.course.checks.worker import Worker
    from firsthand.course.tasks import Tasks, file_text

    sitting = Sitting(course.outline, log, brief=True)
    heading = find_step(course, named) if named is not None else None
    with Worker() as worker:
        tasks = Tasks(course, workspace, worker)
        if heading is not None and heading.id != sitting.progress.current:
            return _look(course, sitting, tasks, heading)
        screen = open_screen(sitting)
        task = tasks.task(screen, sitting.progress)
        if not task.typed:
            assert task.file is not None
            text = file_text(task.file)
        elif answer is None:
            console().print(drawing.step_title(screen))
            if task.theory:
                console().print(lesson(task.theory))
            console().print(drawing.question(task.prompt, task.form))
            console().print(drawing.attempts(screen), style="dim")
            console().print("Answer with: firsthand check --answer '...'", markup=False)
            return False
        else:
            text = answer
        verdict = task.check(text)
        sitting.answer(screen, verdict, text)
        console().print(drawing.verdict(verdict))
        return verdict.passed


def _look(course: Course, sitting: Sitting, tasks: Tasks, heading: StepHeading) -> bool:
    from firsthand.course.steps import Build

    if reason := why_locked(heading.id, sitting.progress, course.outline):
        raise SittingError(reason)
    state = sitting.progress.steps[heading.id].state
    if not isinstance(course.step(heading.id), Build):
        raise SittingError(
            f"{heading.id} is {state}; only the open step can be answered. See: firsthand status"
        )
    verdict = tasks.checker.check(
        heading.id, seed=0, mastered=tasks.mastered(heading.id, sitting.progress)
    )
    console().print(drawing.verdict(verdict, f"{heading.id} is {state}: this is not recorded."))
    return verdict.passed


def show_hint(course: Course, workspace: Workspace, log: EventLog) -> None:
    sitting = Sitting(course.outline, log, brief=True)
    screen = open_screen(sitting)
    hints = course.step(screen.step).hints
    number = sitting.hint(len(hints))
    if number is None:
        console().print("There is no further hint. An easier case: firsthand simplify")
    else:
        console().print(Text(f"{screen.step}, hint {number} of {len(hints)}: {hints[number - 1]}"))


def go_down(course: Course, workspace: Workspace, log: EventLog) -> None:
    sitting = Sitting(course.outline, log, brief=True)
    open_screen(sitting)
    sitting.simplify()
    screen = sitting.next()
    if isinstance(screen, StepScreen):
        console().print(Text(f"{screen.step}: {drawing.RUNG_NAMES[screen.rung]}."))
    elif isinstance(screen, WorkedScreen):
        console().print(Text(f"{screen.step}: the worked example."))
    console().print("Go on with: firsthand learn")


def reviews(course: Course, workspace: Workspace, log: EventLog) -> None:
    from firsthand.app.cli.learning import Learning
    from firsthand.app.cli.terminal import interactive
    from firsthand.course.reviews import due_reviews

    found = fold(log.events(), course.outline)
    due = due_reviews(found, course.outline, datetime.now(UTC))
    if not due:
        console().print("No review is due now.")
        return
    if not interactive():
        console().print(drawing.lines(f"{item.step}: {item.title}" for item in due))
        console().print("Answer them in a terminal: firsthand review")
        return
    Learning(course, workspace, log, reviews_only=True).run()


def reset_step(course: Course, workspace: Workspace, named: str) -> None:
    from firsthand.course.steps import Build

    heading = find_step(course, named)
    step = course.step(heading.id)
    if not isinstance(step, Build):
        raise SittingError(f"{heading.id} is a {heading.kind} step: it has no starter.")
    backup = workspace.reset(course, heading.session, step)
    path = workspace.file_of(step)
    if backup == path:
        shown = workspace.shown(path)
        console().print(Text(f"There was no {shown}; it holds the starter of {heading.id} now."))
        return
    console().print(
        Text(
            f"The starter of {heading.id} is back in {workspace.shown(path)}. "
            f"Your file as it was: {workspace.shown(backup)}"
        )
    )


def show_plan(course: Course, log: EventLog, changes: list[str]) -> None:
    from firsthand.course.plan import plan
    from firsthand.course.profile import FIELDS

    sitting = Sitting(course.outline, log, brief=True)
    for change in changes:
        field, separator, value = change.partition("=")
        if not separator or field not in FIELDS:
            raise SittingError(f"--set takes field=value; the fields are {', '.join(FIELDS)}.")
        try:
            sitting.change_profile(field, value)
        except Malformed as problem:
            raise SittingError(f"{field}: {problem}") from None
    console().print(drawing.plan_table(plan(course.outline, sitting.progress, sitting.now.date())))


def where_we_are(course: Course, workspace: Workspace, log: EventLog, created: bool) -> list[str]:
    """For a run without a terminal: where the learner stands and what to type next."""
    from firsthand.course import recap

    found = fold(log.events(), course.outline)
    place = workspace.shown(workspace.root)
    lines = [f"Workspace: {place} ({'new' if created else 'yours'})."]
    if found.started_at is None:
        lines.append("The course has not been started yet: it begins with a few questions.")
    else:
        lines.append(recap.loaded(course.outline, found).sentence)
        if found.current is not None:
            heading = course.outline.step(found.current)
            lines.append(f"Next step: {heading.id}, {heading.kind}: {heading.title}.")
    lines.append("Next, in a terminal: make learn   (or: .venv/bin/firsthand learn)")
    return lines


def make_workspace(course: Course, folder: Path) -> None:
    from firsthand.course.steps import Build

    existed = (folder / ".firsthand").is_dir()
    workspace = Workspace.create(folder)
    with EventLog(workspace.log_path) as log:
        log.ensure_created()
        found = fold(log.events(), course.outline)
    added = 0
    for session in course.outline.sessions:
        if found.sessions[session.id].state == "locked":
            continue
        for step in course.code(session.id).steps.values():
            if isinstance(step, Build):
                added += workspace.add_starter(course, session.id, step).added
    state = "is there already" if existed else "is made"
    console().print(Text(f"{workspace.shown(workspace.root)} {state}; starters added: {added}."))
    console().print(Text(f"Next: firsthand learn --workspace {workspace.shown(workspace.root)}"))


def check_sessions(course: Course, sessions: list[str]) -> bool:
    """The author's check with a bar. True when there is no finding."""
    from firsthand.course.authoring import check_course

    known = {session.id: session for session in course.outline.sessions}
    for session in sessions:
        if session not in known:
            raise WorkspaceError(f"There is no session {session}; there are {', '.join(known)}.")
    wanted = [known[name] for name in sessions] or list(known.values())
    total = sum(len(session.steps) for session in wanted)
    bar = Progress(
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console(),
        transient=not console().is_terminal,
    )
    with bar:
        task = bar.add_task("", total=total)
        done = 0

        def on_step(step_id: str) -> None:
            nonlocal done
            bar.update(task, description=step_id, completed=done)
            done += 1

        findings = check_course(course, [session.id for session in wanted], on_step=on_step)
        bar.update(task, description="done", completed=total)
    for finding in findings:
        console().print(Text(str(finding)))
    count = len(findings)
    words = "no finding" if not count else f"{count} finding{'s' if count > 1 else ''}"
    sessions_text = "1 session" if len(wanted) == 1 else f"{len(wanted)} sessions"
    console().print(Text(f"{total} steps in {sessions_text}: {words}."))
    return not findings
