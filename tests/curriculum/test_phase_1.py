"""Phase 1 as its author and as its learner meet it: every promise, and every file in one workspace.

All tests are parametrised over what the outline holds, so that a new session joins by itself.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from firsthand.app.cli.terminal import FENCE, diagram
from firsthand.course import starters
from firsthand.course.authoring import LEAST_MISTAKES, Seeds, check_course
from firsthand.course.checks.checker import Checker
from firsthand.course.checks.requests import Request, Run
from firsthand.course.checks.worker import Worker
from firsthand.course.lesson import Lesson
from firsthand.course.loading import Course
from firsthand.course.outline import KIND_NAMES, Session
from firsthand.course.sources import PartName, text_lines
from firsthand.course.steps import Build, Debug, Mistake
from firsthand.course.verdicts import Outcome
from firsthand.course.workspace import Workspace

COURSE = Course()
SESSIONS = [session for session in COURSE.outline.sessions if session.phase == 1]
FEW_SEEDS = Seeds(builds=2, answers=5, measures=1)
SEED = 3
WIDTH = 80

each_session = pytest.mark.parametrize("session", SESSIONS, ids=lambda session: session.id)


# ---------------------------------------------------------------------- as the author


@each_session
def test_the_authors_check_has_no_finding(session: Session) -> None:
    assert [str(item) for item in check_course(COURSE, [session.id], seeds=FEW_SEEDS)] == []


@pytest.mark.slow
@each_session
def test_the_authors_check_has_no_finding_on_all_seeds(session: Session) -> None:
    assert [str(item) for item in check_course(COURSE, [session.id])] == []


def test_there_is_enough_of_everything() -> None:
    kinds = Counter(step.kind for session in SESSIONS for step in session.steps)
    assert sum(kinds.values()) >= 45
    assert kinds["Build"] >= 20
    assert {kind: kinds[kind] for kind in KIND_NAMES if kinds[kind] < 2} == {}
    assert len(SESSIONS) == COURSE.outline.phases[0].planned_sessions


@each_session
def test_every_build_has_three_mistakes(session: Session) -> None:
    code = COURSE.code(session.id)
    for step in code.steps.values():
        if isinstance(step, Build):
            found = [item for item in code.mistakes_of(step) if isinstance(item, Mistake)]
            assert len(found) >= LEAST_MISTAKES, step.id


@each_session
def test_every_diagram_is_drawn_on_eighty_columns(session: Session) -> None:
    lesson = Lesson(session, vars(COURSE.code(session.id).module))
    texts = [lesson.opening(), *(lesson.theory(step.id) for step in session.steps)]
    drawn = [
        (body, diagram(body, WIDTH))
        for text in texts
        for language, body in FENCE.findall(text)
        if language == "mermaid"
    ]
    assert drawn
    for body, picture in drawn:
        assert max(map(len, picture.splitlines())) <= WIDTH, picture
        assert not picture.lstrip().startswith(body.split()[0]), "the source, not a drawing"
        for label in re.findall(r"\[\"?([^\"\]|]+)\"?\]", body):
            assert label.split()[0] in picture


# ---------------------------------------------------------------------- as the learner


class Listening:
    """The real worker; keeps what the last run printed."""

    def __init__(self, worker: Worker) -> None:
        self.worker, self.printed = worker, ""

    def execute(self, request: Request) -> Run:
        run = self.worker.execute(request)
        self.printed = run.printed
        return run


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    with Worker() as warm:
        yield warm


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    return Workspace.create(tmp_path / "mine")


def replaced(text: str, name: str, build: Build) -> str:
    """The text of a learner's file with the part (or its built methods) as the stack has it."""
    part = PartName.parse(build.part)
    source = starters.starter_source(COURSE.stack, part)
    tree = ast.parse(text)
    node = next(item for item in tree.body if getattr(item, "name", None) == name)
    assert isinstance(node, ast.FunctionDef | ast.ClassDef)
    pairs: list[tuple[ast.stmt, str]] = [(node, source.segment(source.definition(name)))]
    if build.methods:
        pairs = [
            (item, source.segment(source.method(name, item.name)))
            for item in node.body
            if isinstance(item, ast.FunctionDef) and item.name in build.methods
        ]
        assert len(pairs) == len(build.methods)
    lines = text_lines(text)
    for old, new in sorted(pairs, key=lambda pair: -pair[0].lineno):
        decorators = getattr(old, "decorator_list", [])
        first = min([old.lineno, *(item.lineno for item in decorators)])
        lines[first - 1 : old.end_lineno] = [new]
    return "".join(lines)


def fill(path: Path, build: Build) -> None:
    path.write_text(replaced(path.read_text(), PartName.parse(build.part).name, build))


def write_all(space: Workspace, until: Session) -> set[str]:
    """Everything that is built before a session, written; returns the mastered parts."""
    mastered: set[str] = set()
    for session in COURSE.outline.sessions:
        if session.id == until.id:
            break
        for step in COURSE.code(session.id).steps.values():
            if isinstance(step, Build):
                fill(space.add_starter(COURSE, session.id, step).path, step)
        mastered = set(COURSE.parts_until(session.id))
    return mastered


@each_session
def test_every_step_with_a_file_in_one_workspace(
    session: Session, space: Workspace, worker: Worker
) -> None:
    mastered = write_all(space, session)
    checker = Checker(COURSE, worker, space.root)
    for step_id, step in COURSE.code(session.id).steps.items():
        if isinstance(step, Build):
            path = space.add_starter(COURSE, session.id, step).path
            verdict = checker.check(step_id, SEED, mastered=mastered)
            assert verdict.outcome is Outcome.UNFINISHED, (step_id, verdict)
            fill(path, step)
            verdict = checker.check(step_id, SEED, mastered=mastered)
            assert verdict.passed, (step_id, verdict)
            if COURSE.parts_until(session.id)[step.part][-1] == step_id:
                mastered.add(step.part)
        elif isinstance(step, Debug):
            mistakes = {item.id: item for item in checker.mistakes(step_id)}
            for number, name in enumerate(step.mistakes, start=1):
                path = space.add_debug(COURSE, session.id, step, mistakes[name], number)
                verdict = checker.check(step_id, SEED, file=path, mastered=mastered)
                assert verdict.mistake == name, (step_id, verdict)
                assert verdict.outcome in (Outcome.WRONG, Outcome.BROKEN), (step_id, verdict)
                part = PartName.parse(step.build.part)
                path.write_text(replaced(path.read_text(), part.name, step.build))
                verdict = checker.check(step_id, SEED, file=path, mastered=mastered)
                assert verdict.passed, (step_id, name, verdict)


MY_TENSOR = """

ran = []


def my_product(left, right):
    if not ran:
        print("my Tensor multiplies")
    ran.append(1)
    return np.einsum("...ij,...jk->...ik", left, right)
"""
MY_CALL = """        print("my MLP is called") if not hasattr(self, "called") else None
        self.called = True
        signal = as_tensor(x)
        for layer in self.layers[:-1]:
            signal = self.activation(layer(signal))
        return self.layers[-1](signal)
"""


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) == 1, (path, old)
    path.write_text(text.replace(old, new))


def test_the_learners_own_tensor_trains_the_learners_own_network(
    space: Workspace, worker: Worker
) -> None:
    step_id = "1.6/train"
    step = COURSE.step(step_id)
    assert isinstance(step, Build)
    session = COURSE.outline.session("1.6")
    mastered = write_all(space, session)
    for other in COURSE.code(session.id).steps.values():
        if isinstance(other, Build):
            fill(space.add_starter(COURSE, session.id, other).path, other)
    mastered |= set(COURSE.parts_until(session.id)) - {step.part}

    folder = space.root / "foundations"
    edit(
        folder / "tensor_autograd.py", "self.data @ other.data", "my_product(self.data, other.data)"
    )
    with (folder / "tensor_autograd.py").open("a") as file:
        file.write(MY_TENSOR)
    edit(folder / "layers.py", "        return self.layer_outputs(x)[-1]\n", MY_CALL)
    for name in ("optimizers", "digits"):  # functions: a line at their beginning
        path = folder / f"{name}.py"
        for part in sorted(p for p in mastered if p.startswith(f"foundations.{name}:")):
            function = PartName.parse(part).name
            node = next(
                item
                for item in ast.parse(path.read_text()).body
                if isinstance(item, ast.FunctionDef) and item.name == function
            )
            lines = text_lines(path.read_text())
            lines.insert(node.body[1].lineno - 1, f'    print("my {function} runs")\n')
            path.write_text("".join(lines))

    listening = Listening(worker)
    checker = Checker(COURSE, listening, space.root)
    verdict = checker.check(step_id, SEED, mastered=mastered)
    assert verdict.passed, verdict
    assert {
        "my Tensor multiplies",
        "my MLP is called",
        "my adam_update runs",
        "my minibatches runs",
    } <= set(listening.printed.splitlines())

    verdict = checker.check(step_id, SEED)  # nothing mastered: the reference stands in
    assert verdict.passed, verdict
    assert "my " not in listening.printed

    edit(folder / "tensor_autograd.py", "return np.einsum", "return 0.5 * np.einsum")
    assert not checker.check(step_id, SEED, mastered=mastered).passed  # it is theirs that ran
