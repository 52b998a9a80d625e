"""`firsthand learn`: draws what the sitting says comes next, and hands it what the learner did."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from contextlib import suppress

from rich.console import RenderableType
from rich.text import Text

from firsthand.app.cli import drawing
from firsthand.app.cli.terminal import console, lesson
from firsthand.app.cli.watching import Watcher
from firsthand.course.answers import Malformed
from firsthand.course.checks.worker import Worker
from firsthand.course.exchange import export_state
from firsthand.course.gate import Rung
from firsthand.course.loading import Course
from firsthand.course.log import EventLog, LogError
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
from firsthand.course.sitting import Consequence, Sitting, SittingError
from firsthand.course.tasks import Task, Tasks, file_text
from firsthand.course.verdicts import Outcome, Verdict
from firsthand.course.workspace import Workspace, WorkspaceError

TYPED_HELP = "Also: hint, simplify, theory, note TEXT, pause."
FILE_KEYS = "Keys: c check now, h hint, s simplify, t theory, n note, q pause."
ELSEWHERE = "This question was answered in another window; the course goes on from there."
LEAVE = ("pause", "quit", "exit", "q")


class Pause(Exception):
    """The learner stops here; everything is saved."""


class Learning:
    """One sitting at a terminal. `run()` returns when the learner pauses or nothing is open.

    ask(prompt) -> a typed line; raises EOFError at the end of input. Given for tests.
    """

    def __init__(
        self,
        course: Course,
        workspace: Workspace,
        log: EventLog,
        *,
        ask: Callable[[str], str] | None = None,
        reviews_only: bool = False,
    ) -> None:
        self.course = course
        self.workspace = workspace
        self.log = log
        self.sitting = Sitting(course.outline, log)
        self.reviews_only = reviews_only
        self._ask = ask or _typed_line
        self._worker = Worker()
        self.tasks = Tasks(course, workspace, self._worker)
        self._opened: set[str] = set()

    def run(self) -> None:
        with self._worker:
            try:
                while not self._finished(screen := self.sitting.next()):
                    try:
                        self._show(screen)
                    except SittingError:  # another process was quicker
                        if self.sitting.next() == screen:
                            raise
                        self._print(Text(ELSEWHERE, style="note"), Text(""))
            except (Pause, EOFError, KeyboardInterrupt):
                self.sitting.pause()
                self._print(Text("\nPaused. Everything is saved; go on with: firsthand learn"))

    def _finished(self, screen: Screen) -> bool:
        if self.reviews_only and not isinstance(screen, Review | Opening | Welcome | ProfileScreen):
            self._print(Text("No review is due now."))
            return True
        if isinstance(screen, CourseEnd):
            self._course_end(screen)
            return True
        return False

    # ------------------------------------------------------------------ screens

    def _show(self, screen: Screen) -> None:
        match screen:
            case Welcome():
                self._print(drawing.title(screen.title), drawing.lines(screen.lines, mark=""))
                self.sitting.seen(screen)
            case ProfileScreen():
                self._profile(screen)
            case PlanScreen():
                self._plan(screen)
            case Opening():
                self._opening(screen)
            case AnyQuestions():
                self._any_questions(screen)
            case Review():
                self._review(screen)
            case StepScreen():
                self._step(screen)
            case WorkedScreen():
                self._print(
                    drawing.title(f"{screen.step}  Worked example"),
                    lesson(self.tasks.worked(screen)),
                )
                self._enter("Enter goes back to the step, with fresh numbers.")
                self.sitting.seen(screen)
            case MasteryScreen():
                self._print(drawing.mastery(screen.mastery, screen.resources, screen.milestone))
                self._enter("Enter goes on.")
                self.sitting.seen(screen)
            case SessionEnd():
                self._session_end(screen)
            case TimeSuggestion():
                self._time(screen)
            case OtherMachine():
                self._other_machine(screen)

    def _profile(self, screen: ProfileScreen) -> None:
        self._print(Text(""), drawing.profile_question(screen.question))
        while True:
            answer = self._line("> ")
            try:
                self.sitting.tell(screen, answer)
                return
            except Malformed as problem:
                self._print(Text(str(problem), style="note"))

    def _plan(self, screen: PlanScreen) -> None:
        self._print(drawing.title("The plan"), drawing.plan_table(screen.plan), Text(""))
        while True:
            answer = self._line("Type start to begin (or pause): ")
            if answer.strip().lower() == "start":
                self.sitting.start(screen)
                return
            self._print(Text("The course begins with the word start.", style="note"))

    def _opening(self, screen: Opening) -> None:
        if screen.first is not None:
            self._print(drawing.first_session(screen.first))
        if screen.later is not None:
            self._print(drawing.later_session(screen.later, screen.loaded.sentence))
        self.sitting.seen(screen)

    def _any_questions(self, screen: AnyQuestions) -> None:
        self._print(Text("\nAny questions?", style="bold"))
        answer = self._line("Type one to keep it with your notes, or Enter to go on: ")
        if answer.strip():
            self.sitting.note(answer.strip())
            self._print(Text("Kept with your notes.", style="dim"))
        self.sitting.seen(screen)

    def _session_end(self, screen: SessionEnd) -> None:
        self._print(drawing.title("The end of a session"), drawing.summary(screen.summary))
        insight = self._line("What will you keep from it, in a sentence (or Enter)? ")
        if insight.strip():
            self.sitting.note(insight.strip(), insight=True)
        self.sitting.seen(screen)
        path = self.workspace.state_folder / "state.json"
        with suppress(Exception):  # an export that fails never stops a session
            export_state(self.log, path)
            self._print(Text(f"Progress exported to {self.workspace.shown(path)}.", style="dim"))

    def _time(self, screen: TimeSuggestion) -> None:
        self._print(
            Text(
                f"\n{screen.minutes} minutes have passed, and this is a break between two steps. "
                "A good place to stop.",
                style="note",
            )
        )
        answer = self._line("Enter goes on, pause stops: ")
        del answer  # `pause` is handled where lines are read
        self.sitting.seen(screen)

    def _other_machine(self, screen: OtherMachine) -> None:
        self._print(
            Text(f"Session {screen.session}, {screen.title}, needs your {screen.needs} machine.")
        )
        if not screen.may_go_on:
            self._print(Text("Export there with: firsthand export state.json"))
            raise Pause
        self._enter("Enter does it here all the same.")
        self.sitting.seen(screen)

    def _course_end(self, screen: CourseEnd) -> None:
        self._print(drawing.title("Nothing is open"))
        if screen.mastered:
            self._print(Text("Mastered: " + "; ".join(item.title for item in screen.mastered)))
        self._print(drawing.lines(screen.locked))
        if screen.not_written:
            self._print(Text("Not yet written: " + "; ".join(screen.not_written)))

    # ------------------------------------------------------------------ questions

    def _review(self, screen: Review) -> None:
        task = self.tasks.review(screen)
        self._print(
            drawing.title(f"Review {screen.number} of {screen.of}: {screen.title}"),
            drawing.question(task.prompt, task.form),
        )
        while True:
            answer = self._line("answer> ")
            verdict = task.check(answer)
            if verdict.outcome is Outcome.MALFORMED:
                self._print(drawing.verdict(verdict))
                continue
            consequence = self._record(screen, verdict, answer)
            if consequence is None:
                continue
            sooner = "It returns sooner." if consequence.counted and not verdict.passed else ""
            self._print(drawing.verdict(verdict, sooner), Text(""))
            return

    def _step(self, screen: StepScreen) -> None:
        if screen.rung is Rung.STEP and screen.session not in self._opened:
            self._opened.add(screen.session)
            session = self.course.outline.session(screen.session)
            record = self.sitting.progress.sessions[screen.session]
            if not record.tested_out and screen.step == session.steps[0].id and screen.theory:
                self._print(
                    drawing.title(f"Session {session.id}  {session.title}"),
                    Text(session.objective, style="bold"),
                    lesson(self.tasks.opening(session.id)),
                    Text(""),
                )
        task = self.tasks.task(screen, self.sitting.progress)
        self._print(drawing.step_title(screen))
        if task.theory:
            self._print(lesson(task.theory))
        if screen.ask_simplify:
            self._print(Text("Pause or simplify? Or go on with this rung.", style="note"))
        self._print(drawing.question(task.prompt, task.form))
        self._print(Text(drawing.attempts(screen), style="dim"))
        if task.typed:
            self._typed(screen, task)
        else:
            self._file(screen, task)

    def _typed(self, screen: StepScreen, task: Task) -> None:
        self._print(Text(TYPED_HELP, style="dim"))
        while True:
            answer = self._line("answer> ")
            word = answer.strip().lower()
            if word == "hint":
                self._hint(screen, task)
            elif word == "theory":
                self._theory(screen, task)
            elif word == "simplify":
                self._simplify(screen)
                return
            elif word == "note" or word.startswith("note "):
                self._keep(answer.strip()[4:].strip())
            else:
                verdict = task.check(answer)
                if self._settled(screen, verdict, answer):
                    return

    def _file(self, screen: StepScreen, task: Task) -> None:
        assert task.file is not None
        place = f"{self.workspace.shown(task.file)}:{task.line}"
        with Watcher(task.file, self.workspace.state_folder) as watcher:
            self._print(Text(f"Open {place} in your editor; each save is checked.", style="dim"))
            self._print(Text(FILE_KEYS, style="dim"))
            self.tasks.checker.trial(screen.step, screen.seed)  # computed while the learner writes
            while True:
                pressed = watcher.wait()
                if pressed in ("saved", "c", "\n", "\r"):
                    watcher.seen()
                    text = file_text(task.file)
                    if self._settled(screen, task.check(text), text):
                        return
                elif pressed == "h":
                    self._hint(screen, task)
                elif pressed == "t":
                    self._theory(screen, task)
                elif pressed == "s":  # a key is pressed by mistake more easily than a word is typed
                    self._print(Text("An easier case? s again goes down; any other key stays."))
                    if watcher.wait() == "s":
                        self._simplify(screen)
                        return
                    self._print(Text("Nothing changed.", style="dim"))
                elif pressed == "n":
                    with watcher.lines():
                        self._keep(self._line("note> ").strip())
                elif pressed in ("q", "\x04"):
                    raise Pause
                elif pressed == "gone":
                    raise WorkspaceError(
                        f"{self.workspace.root} is no longer there; nothing can be saved in it."
                    )
                elif pressed.isprintable():
                    self._print(Text(FILE_KEYS, style="dim"))

    def _settled(self, screen: StepScreen, verdict: Verdict, answer: str) -> bool:
        """Record and show a verdict; True when something else comes next."""
        consequence = self._record(screen, verdict, answer)
        if consequence is None:
            return False
        self._print(drawing.verdict(verdict, self._note(screen, verdict, consequence)), Text(""))
        return consequence.counted or self.sitting.next() != screen

    def _record(
        self, screen: StepScreen | Review, verdict: Verdict, answer: str
    ) -> Consequence | None:
        try:
            return self.sitting.answer(screen, verdict, answer)
        except LogError as error:  # a full disk: the answer is shown, not lost
            self._print(Text(f"Not saved: {error}", style="wrong"))
            if isinstance(screen, Review) or "\n" not in answer:  # a file is on the disk already
                self._print(Text(f"Your answer was: {answer[:500]}"))
            self._print(Text("Once there is room, answer again; or pause."))
            return None

    def _note(self, screen: StepScreen, verdict: Verdict, consequence: Consequence) -> str:
        if consequence.passed:
            return ""
        if consequence.back_at_step:
            return "Back to the step, with fresh numbers."
        if consequence.descended:
            return f"Two attempts are used. Next: {drawing.RUNG_NAMES[consequence.after.rung]}."
        if consequence.repeated:
            return "The same as before: it costs no attempt."
        if consequence.counted:
            return f"Attempt {consequence.before.used + 1} of {screen.of} is used."
        return "This costs no attempt."

    def _hint(self, screen: StepScreen, task: Task) -> None:
        self._require_open(screen)
        number = self.sitting.hint(len(task.hints))
        if number is None:
            self._print(Text("There is no further hint. `simplify` goes to an easier case."))
        else:
            self._print(Text(f"Hint {number} of {len(task.hints)}: {task.hints[number - 1]}"))

    def _simplify(self, screen: StepScreen) -> None:
        self._require_open(screen)
        self.sitting.simplify()

    def _require_open(self, screen: StepScreen) -> None:
        """What another window did must not turn a wish for this question into one for the next."""
        if self.sitting.next() != screen:
            raise SittingError(ELSEWHERE)

    def _keep(self, text: str) -> None:
        if text:
            self.sitting.note(text)
        self._print(Text("Kept with your notes." if text else "A note needs a text.", style="dim"))

    def _theory(self, screen: StepScreen, task: Task) -> None:
        self._print(lesson(self.tasks.theory(screen.step)))

    # ------------------------------------------------------------------ input and output

    def _line(self, prompt: str) -> str:
        *above, last = textwrap.wrap(prompt, console().width - 12) or [""]
        self._print(*(Text(line) for line in above))
        answer = self._ask(f"{last} ")
        if answer.strip().lower() in LEAVE:
            raise Pause
        return answer

    def _enter(self, prompt: str) -> None:
        self._line(f"{prompt} ")

    def _print(self, *parts: RenderableType) -> None:
        for part in parts:
            console().print(part)


def _typed_line(prompt: str) -> str:
    with suppress(ImportError):
        import readline  # noqa: F401  (editing and history of the typed line)
    return input(prompt)
