"""A small course, a clock that stands still, and a learner who goes through it."""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from firsthand.course.loading import Course
from firsthand.course.log import EventLog
from firsthand.course.machine import Machine
from firsthand.course.outline import Concept, Outline, Phase, Resource, Session, StepHeading
from firsthand.course.screens import (
    PlanScreen,
    ProfileScreen,
    Review,
    Screen,
    StepScreen,
)
from firsthand.course.sitting import Consequence, Sitting
from firsthand.course.verdicts import Outcome, Verdict

LAPTOP = Machine("laptop000000", "laptop", "Linux", "3.11.7", "a processor", 8, 16 * 2**30)
ANSWERS = {"level": "NumPy, some CNNs"}


class StillClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.time = datetime(2025, 3, 3, 20, 0, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def pass_by(self, **delta: float) -> None:
        self.time += timedelta(**delta)


def _session(
    id_: str, steps: dict[str, str], requires: tuple[str, ...], concepts: tuple[Concept, ...]
) -> Session:
    phase, number = (int(part) for part in id_.split("."))
    return Session(
        id=id_,
        number=number,
        phase=phase,
        title=f"Session {id_}",
        objective=f"objective of {id_}",
        minutes=60,
        machine="gpu" if id_ == "2.1" else "any",
        requires=requires,
        concepts=concepts,
        resources=tuple(Resource(f"{id_} text {n}", "paper", f"section {n}") for n in range(5)),
        steps=tuple(
            StepHeading(f"{id_}/{anchor}", kind, anchor.title(), id_)
            for anchor, kind in steps.items()
        ),
        able=(f"do {id_}",),
        folder=Path(f"phase_{phase}/session_{number}"),
    )


def make_outline() -> Outline:
    """Two phases with sessions, three that are not yet written."""
    first = _session(
        "1.1",
        {"neuron": "Build", "guess": "Predict", "order": "Order"},
        (),
        (Concept("dot", "Dot product", ("1.1/neuron", "1.1/guess")),),
    )
    second = _session(
        "1.2",
        {"loss": "Build", "slope": "Derive"},
        ("1.1",),
        (
            Concept("loss", "Loss", ("1.2/loss", "1.2/slope")),
            Concept("chain", "Chain rule", ("1.1/order", "1.3/trace")),
        ),
    )
    third = _session("1.3", {"trace": "Trace", "repair": "Debug"}, ("1.2",), ())
    fourth = _session("2.1", {"measure": "Measure", "defend": "Defend"}, ("1.3",), ())
    phases = [
        Phase(1, "Neurons", "dots", "NumPy", 3, (first, second, third), 3),
        Phase(2, "Attention", "heads", "PyTorch", 12, (fourth,), 12),
    ]
    phases += [Phase(n, f"Phase {n}", "focus", "hands on", 12, (), 12) for n in (3, 4, 5)]
    return Outline(tuple(phases), Path("curriculum"))


def verdict(outcome: Outcome, mistake: str | None = None) -> Verdict:
    """A verdict of this outcome."""
    return Verdict(outcome, f"headline: {outcome}", mistake=mistake)


class Learner:
    """Somebody at the screens of one sitting after another."""

    def __init__(self, log: EventLog, clock: StillClock, outline: Outline) -> None:
        self.log, self.clock, self.outline = log, clock, outline
        self.machine = LAPTOP
        self.typed = 0
        self.sit_down()

    def sit_down(self) -> None:
        self.sitting = Sitting(self.outline, self.log, self.clock, self.machine)

    def screens(self) -> Iterator[Screen]:
        """Each screen up to the first step, worked example or end, dealt with on the way."""
        while True:
            screen = self.sitting.next()
            yield screen
            if isinstance(screen, ProfileScreen):
                self.sitting.tell(screen, ANSWERS.get(screen.question.id, ""))
            elif isinstance(screen, PlanScreen):
                self.sitting.start(screen)
            elif isinstance(screen, Review):
                self.sitting.answer(screen, verdict(Outcome.PASSED), "right")
            elif screen.name in ("step", "worked", "end", "other machine"):
                return
            else:
                self.sitting.seen(screen)

    def go_on(self) -> Screen:
        """The next step, worked example or end."""
        return list(self.screens())[-1]

    def step(self) -> StepScreen:
        screen = self.go_on()
        assert isinstance(screen, StepScreen), screen
        return screen

    def give(self, outcome: Outcome, mistake: str | None = None) -> Consequence:
        """Answer the open step, each time with another text."""
        self.typed += 1
        return self.sitting.answer(self.step(), verdict(outcome, mistake), f"try {self.typed}")

    def right(self) -> Consequence:
        return self.give(Outcome.PASSED)

    def wrong(self, mistake: str | None = None) -> Consequence:
        return self.give(Outcome.WRONG, mistake)

    def pass_steps(self, number: int) -> None:
        for _ in range(number):
            assert self.right().passed


@pytest.fixture
def small_outline() -> Outline:
    return make_outline()


@pytest.fixture
def clock() -> StillClock:
    return StillClock()


@pytest.fixture
def log(tmp_path: Path, clock: StillClock) -> Iterator[EventLog]:
    with EventLog(tmp_path / "log.sqlite", clock=clock) as opened:
        yield opened


@pytest.fixture
def learner(log: EventLog, clock: StillClock, small_outline: Outline) -> Learner:
    return Learner(log, clock, small_outline)


@pytest.fixture
def make_verdict() -> Callable[..., Verdict]:
    return verdict


@pytest.fixture
def new_learner() -> type[Learner]:
    return Learner


# ---------------------------------------------------------------------- a curriculum of its own

CURRICULUM = Path(Course().root)
SESSION = Path("phase_1_neurons", "session_01_neuron")
COPIES = itertools.count()


@pytest.fixture(scope="session")
def real_course() -> Course:
    return Course()


@pytest.fixture
def copied_course(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Course]]:
    """copied_course((file, old, new), ...) -> a curriculum that is session 1.1 with these edits.

    Each `old` must be there once, so that an edit that no longer bites fails the test.
    """
    names: list[str] = []

    def copy(*edits: tuple[str, str, str]) -> Course:
        names.append(f"curriculum_copy_{next(COPIES)}")
        root = tmp_path / names[-1]
        folder = root / SESSION
        shutil.copytree(CURRICULUM / SESSION, folder, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(CURRICULUM / SESSION.parent / "phase.toml", root / SESSION.parent)
        for package in (root, root / SESSION.parent):
            (package / "__init__.py").touch()
        for file, old, new in edits:
            path = (root / SESSION.parent / file) if file == "phase.toml" else folder / file
            text = path.read_text(encoding="utf-8")
            assert text.count(old) == 1, (file, old, text.count(old))
            path.write_text(text.replace(old, new), encoding="utf-8")
        return Course(curriculum=names[-1])

    monkeypatch.syspath_prepend(str(tmp_path))
    yield copy
    for module in list(sys.modules):
        if module.split(".")[0] in names:
            del sys.modules[module]
