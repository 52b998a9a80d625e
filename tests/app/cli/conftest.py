"""A learner's folder, the command in it (in a pseudo-terminal or not), and the right answers."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tempfile
import termios
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn

import pexpect
import pytest

from firsthand.app.cli.main import main
from firsthand.app.cli.place import COURSE
from firsthand.course.checks.worker import Worker
from firsthand.course.fold import progress as fold
from firsthand.course.log import Event, EventKind, EventLog
from firsthand.course.machine import Machine
from firsthand.course.progress import Progress, review_seed, seed_for
from firsthand.course.questions.grading import Question
from firsthand.course.questions.question import ask
from firsthand.course.questions.rungs import rung_question
from firsthand.course.screens import PlanScreen, ProfileScreen, StepScreen
from firsthand.course.sitting import Sitting
from firsthand.course.sources import PartName, module_source
from firsthand.course.steps import Build, Debug
from firsthand.course.tasks import Tasks
from firsthand.course.verdicts import Outcome, Verdict
from firsthand.course.workspace import Workspace

Command = Callable[..., tuple[int, str, str]]

PATIENCE = 30.0  # seconds; a loaded machine is slow, and no test is about time
ESCAPES = re.compile(r"\x1b(?:\[[0-9;?]*[A-Za-z]|[()][A-Z0-9]|[=>])")
LAPTOP = Machine("laptop000000", "laptop", "Linux", "3.11.7", "a processor", 8, 16 * 2**30)
PROFILE = {"level": "NumPy, some CNNs"}


def plain(text: str) -> str:
    return ESCAPES.sub("", text).replace("\r", "")


def environment(**changes: str | None) -> dict[str, str]:
    """What the command sees: no colour, English, nothing of the caller's terminal."""
    kept = ("PATH", "VIRTUAL_ENV", "TMPDIR", "PYTHONPATH", "LD_LIBRARY_PATH")
    base: dict[str, str | None] = {name: os.environ[name] for name in kept if name in os.environ}
    base |= {"TERM": "xterm", "NO_COLOR": "1", "LANG": "C.UTF-8", "HOME": "/nonexistent"}
    return {name: value for name, value in (base | changes).items() if value is not None}


class Terminal:
    """The command in a pseudo-terminal. `shown` is all that it has printed so far."""

    def __init__(
        self,
        folder: Path,
        arguments: tuple[str, ...],
        *,
        columns: int = 80,
        env: dict[str, str] | None = None,
        preexec_fn: Callable[[], None] | None = None,
    ) -> None:
        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "firsthand", *arguments],
            cwd=str(folder),
            env=env or environment(),
            dimensions=(24, columns),
            timeout=PATIENCE,
            encoding="utf-8",
            codec_errors="replace",
            preexec_fn=preexec_fn,
        )
        self.child.delaybeforesend = None
        self.modes = termios.tcgetattr(self.child.child_fd)
        self.shown = ""

    def until(self, *patterns: str) -> str:
        """What is printed up to and with the first of `patterns`; see `found` for which."""
        self.found = self.child.expect(list(patterns))
        new = plain(self.child.before + self.child.after)
        self.shown += new
        return new

    def say(self, line: str) -> None:
        self.child.send(line + "\n")

    def key(self, key: str) -> None:
        self.child.send(key)

    def end(self) -> int:
        """Wait for the end; the exit code. The terminal must be as it was."""
        if not self.child.flag_eof:
            self.child.expect(pexpect.EOF)
        self.shown += plain(str(self.child.before))
        assert termios.tcgetattr(self.child.child_fd) == self.modes
        self.child.close()
        assert self.child.signalstatus is None, self.shown[-800:]
        return int(self.child.exitstatus)

    def leave(self, key: str) -> int:
        """Press Ctrl-C or Ctrl-D, again if need be; the exit code.

        Python's own `input` misses an interrupt between its prompt and its wait for a key.
        """
        for _ in range(5):
            self.key(key)
            if self.child.expect([pexpect.EOF, pexpect.TIMEOUT], timeout=PATIENCE / 5) == 0:
                break
        return self.end()

    def onboard(self) -> str:
        """The profile with the proposed answers, then `start`; up to "Any questions?"."""
        before = len(self.shown)
        while True:
            self.until(r"Enter alone means[^\n]*\n[^\n]*> ", r"CNNs in PyTorch\s+> ", r"pause\): ")
            if self.found == 2:
                break
            self.say("" if self.found == 0 else PROFILE["level"])
        self.say("start")
        self.until(r"Enter to go on: ")
        return self.shown[before:]

    def to_question(self) -> str:
        """From the start of a sitting to the open question."""
        self.until(r"Enter to go\s+on: ")
        self.say("")
        return self.until(r"answer> ", r"q pause\.")


class Place:
    """A folder with (perhaps) a workspace `mine`, and what its learner would do."""

    environment = staticmethod(environment)

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.terminals: list[Terminal] = []

    @property
    def mine(self) -> Path:
        return self.folder / "mine"

    @property
    def workspace(self) -> Workspace:
        return Workspace.open(self.mine)

    # ------------------------------------------------------------------ the command

    def run(self, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        """Without a terminal; stdin is empty. env: changes to the environment.

        In a fork of this process where nothing special is asked for: a fresh interpreter imports
        the same modules for most of a second.
        """
        if not options.keys() - {"cwd"}:
            return _forked(arguments, options.get("cwd", self.folder))
        env = environment(**options.pop("env", {}))
        options = {"stdin": subprocess.DEVNULL, "cwd": self.folder, **options}
        return subprocess.run(
            [sys.executable, "-m", "firsthand", *arguments],
            capture_output=True,
            text=True,
            errors="replace",
            env=env,
            timeout=PATIENCE,
            check=False,
            **options,
        )

    def terminal(self, *arguments: str, **options: Any) -> Terminal:
        opened = Terminal(self.folder, arguments or ("learn",), **options)
        self.terminals.append(opened)
        return opened

    # ------------------------------------------------------------------ the log

    def events(self, *kinds: EventKind) -> list[Event]:
        with EventLog(self.workspace.log_path, read_only=True) as log:
            return [event for event in log.events() if not kinds or event.kind in kinds]

    @property
    def progress(self) -> Progress:
        return fold(self.events(), COURSE.outline)

    def begin(self, until: str | None = None, *, days_ago: float = 0) -> Place:
        """A course that was started, with every step before `until` passed."""
        workspace = Workspace.create(self.mine)
        now = datetime.now(UTC) - timedelta(days=days_ago)

        def clock() -> datetime:
            return now

        with EventLog(workspace.log_path, clock=clock) as log:
            sitting = Sitting(COURSE.outline, log, clock, LAPTOP, brief=True)
            while True:
                screen = sitting.next()
                if isinstance(screen, ProfileScreen):
                    sitting.tell(screen, PROFILE.get(screen.question.id, ""))
                elif isinstance(screen, PlanScreen):
                    sitting.start(screen)
                elif not isinstance(screen, StepScreen):
                    sitting.seen(screen)
                elif until is None or screen.step == until:
                    return self
                else:
                    if isinstance(COURSE.step(screen.step), Build):
                        self.build(screen.step)
                    sitting.answer(screen, Verdict(Outcome.PASSED, "Right."), "right")

    # ------------------------------------------------------------------ what is right

    def solution(self) -> str:
        """The right answer to the typed question that is open."""
        found = self.progress
        assert found.current is not None
        step = COURSE.step(found.current)
        mistakes = COURSE.code(COURSE.outline.step(found.current).session).mistakes_of(step)
        rung, seed = found.steps[found.current].gate.rung, seed_for(found.current, found)
        question: object
        if isinstance(step, Build | Debug):
            tasks = Tasks(COURSE, self.workspace, Worker())  # which runs no code here
            question = tasks._code_rung(found.current, rung, seed, step)
        else:
            question = rung_question(step, rung, seed, mistakes)
        assert isinstance(question, Question)
        return question.solution.replace("\n", "; ")

    def review_solution(self, step_id: str) -> str:
        step = COURSE.step(step_id)
        mistakes = COURSE.code(COURSE.outline.step(step_id).session).mistakes_of(step)
        return ask(step, review_seed(step_id, self.progress), mistakes).solution

    def built(self, step_id: str) -> tuple[Path, str]:
        """The file of a Build step and its text with the part as the reference has it."""
        step = COURSE.step(step_id)
        assert isinstance(step, Build)
        path = self.workspace.add_starter(COURSE, COURSE.outline.step(step_id).session, step).path
        return path, _filled(path.read_text(encoding="utf-8"), step)

    def repaired(self, step_id: str, path: Path) -> str:
        """The text of a Debug step's file with the reference's part in it."""
        step = COURSE.step(step_id)
        assert isinstance(step, Debug)
        return _filled(path.read_text(encoding="utf-8"), step.build)

    def build(self, step_id: str) -> Path:
        """Write the part of a Build step as the reference has it."""
        path, text = self.built(step_id)
        path.write_text(text, encoding="utf-8")
        return path


def _forked(arguments: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as errors:
        child = os.fork()
        if child == 0:
            _command(arguments, folder, out.fileno(), errors.fileno())
        _, status = os.waitpid(child, 0)
        texts = []
        for file in (out, errors):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
    code = os.waitstatus_to_exitcode(status)
    return subprocess.CompletedProcess(arguments, code, texts[0], texts[1])


def _command(arguments: tuple[str, ...], folder: Path, out: int, errors: int) -> NoReturn:
    """The child: the entry point with its own streams and environment. Never returns."""
    code: object = 0
    try:
        os.chdir(folder)
        for target, source in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out), (2, errors)):
            os.dup2(source, target)
        sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
        os.environ.clear()
        os.environ.update(environment())
        sys.argv = ["firsthand", *arguments]
        main()
    except SystemExit as exit_:
        code = exit_.code
    except BaseException:
        traceback.print_exc()
        code = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0 if code is None else 1)


def _filled(text: str, step: Build) -> str:
    """`text` with the part, or those of its methods that the step builds, as in the reference."""
    part = PartName.parse(step.part)
    source = module_source(f"{COURSE.stack}.{part.module}")
    node: Any = next(n for n in ast.parse(text).body if getattr(n, "name", "") == part.name)
    pairs = [(node, source.segment(source.definition(part.name)))]
    if step.methods:
        methods = [item for item in node.body if getattr(item, "name", "") in step.methods]
        pairs = [(n, source.segment(source.method(part.name, n.name))) for n in methods]
    lines = text.splitlines(keepends=True)
    for item, new in sorted(pairs, key=lambda pair: -pair[0].lineno):
        lines[item.lineno - 1 : item.end_lineno] = [new.rstrip("\n") + "\n"]
    return "".join(lines)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    """An empty folder."""
    made = Place(tmp_path)
    yield made
    for terminal in made.terminals:
        terminal.child.close(force=True)


@pytest.fixture
def begun(place: Place) -> Place:
    """A folder whose course was started; the first step is open."""
    return place.begin()


def _exit_code(patch: pytest.MonkeyPatch, words: tuple[str, ...], folder: Path | None) -> int:
    """Of the command, run in this process."""
    import torch  # most tests of the command do without it

    torch.set_num_threads(1)
    if folder is not None:
        patch.chdir(folder)
    patch.setattr(sys, "argv", ["firsthand", *words])
    try:
        main()
    except SystemExit as ended:
        return int(ended.code or 0)
    return 0


@pytest.fixture
def firsthand(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process: exit code, standard output, standard error."""

    def run(*words: str, folder: Path | None = None) -> tuple[int, str, str]:
        capsys.readouterr()
        code = _exit_code(monkeypatch, words, folder)
        out, err = capsys.readouterr()
        return code, out, err

    return run


@pytest.fixture(scope="session")
def prepare() -> Callable[..., None]:
    """Run a command that has to succeed, for what the tests of a module share."""

    def run(folder: Path, *words: str) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("FIRSTHAND_TRACEBACK", "1")
            assert _exit_code(patch, words, folder) == 0

    return run


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with text to train on in its folder `texts`."""
    path: Path = tmp_path_factory.mktemp("place")
    (path / "texts").mkdir()
    for number in range(20):
        lines = "\n".join(f"{number} plus {k} makes {number + k}, so it goes." for k in range(40))
        (path / "texts" / f"{number}.txt").write_text(lines, encoding="utf-8")
    return path
