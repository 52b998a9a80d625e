"""A step screen made concrete: what is shown, where it is written, how it is decided."""

from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest

from firsthand.course.checks.in_process import InProcess
from firsthand.course.checks.requests import Request, Run
from firsthand.course.fold import progress
from firsthand.course.gate import Rung
from firsthand.course.loading import Course
from firsthand.course.progress import Attempt, Progress
from firsthand.course.screens import Review, StepScreen, WorkedScreen
from firsthand.course.sources import PartName
from firsthand.course.steps import Build, Debug
from firsthand.course.tasks import Tasks, file_text
from firsthand.course.verdicts import Outcome
from firsthand.course.workspace import Workspace

COURSE = Course()
NOTHING_YET = progress([], COURSE.outline)


class FileInProcess:
    """Runs the part of the learner's file, or of the file named, in this process."""

    def __init__(self) -> None:
        self.requests: list[Request] = []

    def execute(self, request: Request) -> Run:
        self.requests.append(request)
        path = request.file or request.workspace / f"{request.module.replace('.', '/')}.py"
        names: dict[str, object] = {"__name__": "mine.run"}
        exec(compile(path.read_text(), str(path), "exec"), names)
        return InProcess(names[request.name]).execute(request)


@pytest.fixture
def tasks(tmp_path: Path) -> Tasks:
    return Tasks(COURSE, Workspace.create(tmp_path / "mine"), FileInProcess())


def screen(step_id: str, rung: Rung = Rung.STEP, *, seed: int = 7, **changes: object) -> StepScreen:
    heading = COURSE.outline.step(step_id)
    made = StepScreen(
        step=step_id,
        kind=heading.kind,
        title=heading.title,
        session=heading.session,
        rung=rung,
        seed=seed,
        visit_seed=seed,
        used=0,
        of=2,
        theory=True,
        ask_simplify=False,
        hints=0,
    )
    return replace(made, **changes)  # type: ignore[arg-type]


def solved(*step_ids: str) -> Progress:
    attempt = Attempt.__new__(Attempt)  # only its presence counts here
    steps = dict(NOTHING_YET.steps)
    for step_id in step_ids:
        steps[step_id] = replace(steps[step_id], solved=attempt)
    return replace(NOTHING_YET, steps=steps)


# ---------------------------------------------------------------------- typed answers


def test_a_typed_step_has_theory_question_and_a_judge(tasks: Tasks) -> None:
    task = tasks.task(screen("1.1/vector-bytes"), NOTHING_YET)
    assert task.typed
    assert (task.file, task.step) == (None, "1.1/vector-bytes")
    assert task.theory == tasks.theory("1.1/vector-bytes")
    assert "{{" not in (task.theory or "")
    assert task.prompt.endswith("How many bytes do its elements occupy?")
    assert task.hints == COURSE.step("1.1/vector-bytes").hints
    assert task.check("0").outcome is Outcome.WRONG
    assert task.check("ok").outcome is Outcome.MALFORMED


def test_the_same_seed_asks_the_same_and_another_seed_something_else(tasks: Tasks) -> None:
    prompts = [
        tasks.task(screen("1.1/vector-bytes", seed=seed), NOTHING_YET).prompt for seed in (1, 1, 2)
    ]
    assert prompts[0] == prompts[1] != prompts[2]


def test_theory_is_left_out_when_it_was_shown_and_on_a_rung(tasks: Tasks) -> None:
    assert tasks.task(screen("1.1/vector-bytes", theory=False), NOTHING_YET).theory is None
    assert tasks.task(screen("1.1/vector-bytes", Rung.SMALL), NOTHING_YET).theory is None


def test_a_review_asks_without_theory(tasks: Tasks) -> None:
    task = tasks.review(Review("1.1/vector-bytes", "a title", 3, 1, 2))
    assert task.theory is None
    assert task.typed
    same = tasks.task(screen("1.1/vector-bytes", seed=3), NOTHING_YET)
    assert task.prompt == same.prompt


def test_the_opening_is_rendered(tasks: Tasks) -> None:
    assert "```mermaid" in tasks.opening("1.1")
    assert "{{" not in tasks.opening("1.1")


# ---------------------------------------------------------------------- Build


def test_a_build_step_puts_its_starter_and_checks_the_file(tasks: Tasks) -> None:
    task = tasks.task(screen("1.1/dot-product"), NOTHING_YET)
    assert task.file == tasks.workspace.root / "foundations" / "neuron.py"
    assert file_text(task.file).splitlines()[task.line - 1].startswith("def dot_product(")
    assert "```python\ndef dot_product(" in task.prompt
    assert "`numpy.dot`" in task.prompt
    assert task.check("").outcome is Outcome.UNFINISHED
    text = task.file.read_text()
    body = "return sum(float(w) * float(x) for w, x in zip(weights, inputs, strict=True))"
    task.file.write_text(text.replace("raise NotImplementedError", body, 1))
    assert task.check("").passed
    again = tasks.task(screen("1.1/dot-product"), NOTHING_YET)
    assert body in file_text(again.file)  # type: ignore[arg-type]


def test_a_class_step_names_its_methods(tasks: Tasks) -> None:
    task = tasks.task(screen("1.4/scalar-operations"), NOTHING_YET)
    assert "of the class `Scalar`" in task.prompt
    for name in ("__add__", "__mul__"):
        assert f"def {name}(self, other" in task.prompt


def test_a_part_is_mastered_when_all_its_steps_so_far_are_passed(tasks: Tasks) -> None:
    part = "foundations.scalar_autograd:Scalar"
    steps = COURSE.parts_until("1.4")[part]
    assert len(steps) > 1
    some, every = solved(*steps[:-1]), solved(*steps)
    assert part not in tasks.mastered("1.4/backward-pass", some)
    assert part in tasks.mastered("1.4/backward-pass", every)
    assert tasks.mastered("1.1/layer", every) == frozenset()  # not built yet in session 1


def test_what_is_mastered_reaches_the_check(tasks: Tasks) -> None:
    executor = tasks.checker.executor
    assert isinstance(executor, FileInProcess)
    part = "foundations.neuron:dot_product"
    for state, present in ((NOTHING_YET, True), (solved("1.1/dot-product"), False)):
        tasks.task(screen("1.1/neuron"), state).check("")
        assert (part in executor.requests[-1].references) is present


# ---------------------------------------------------------------------- Debug


def test_a_debug_step_gives_code_and_does_not_name_its_mistake(tasks: Tasks) -> None:
    step_id = "1.3/log-softmax"
    step = COURSE.step(step_id)
    assert isinstance(step, Debug)
    given: set[str] = set()
    for seed in range(12):
        task = tasks.task(screen(step_id, seed=seed), NOTHING_YET)
        assert task.file is not None
        text = file_text(task.file)
        given.add(text)
        assert step.symptom in task.prompt
        assert task.check(text).outcome is Outcome.UNFINISHED
        verdict = task.check(text + "\n# touched\n")
        assert not verdict.passed
        assert verdict.mistake is None
        assert verdict.question is None
        beliefs = [item.belief for item in tasks.checker.mistakes(step_id)]
        assert not any(belief in verdict.headline for belief in beliefs)
        task.file.unlink()
    assert len(given) == len(step.mistakes)  # the seed picks, and picks each in time


def test_the_given_fault_stays_the_same_between_attempts(tasks: Tasks) -> None:
    first = tasks.task(screen("1.3/log-softmax", seed=1), NOTHING_YET)
    second = tasks.task(screen("1.3/log-softmax", seed=9, visit_seed=1), NOTHING_YET)
    assert first.file == second.file
    assert first.check(file_text(first.file)).outcome is Outcome.UNFINISHED  # type: ignore[arg-type]
    assert second.check(file_text(first.file)).outcome is Outcome.UNFINISHED  # type: ignore[arg-type]


def test_after_a_rung_the_fault_is_given_in_a_new_file(tasks: Tasks) -> None:
    step_id = "1.3/log-softmax"
    first = tasks.task(screen(step_id), NOTHING_YET).file
    steps = dict(NOTHING_YET.steps)
    steps[step_id] = replace(steps[step_id], rungs=(Rung.SMALL,))
    second = tasks.task(screen(step_id), replace(NOTHING_YET, steps=steps)).file
    assert first is not None
    assert second is not None
    assert first != second
    assert first.exists()


def test_a_repaired_file_passes(tasks: Tasks) -> None:
    step = COURSE.step("1.3/log-softmax")
    assert isinstance(step, Debug)
    task = tasks.task(screen("1.3/log-softmax"), NOTHING_YET)
    assert task.file is not None
    part = PartName.parse(step.build.part)
    node = next(
        item
        for item in ast.parse(task.file.read_text()).body
        if getattr(item, "name", "") == part.name
    )
    lines = task.file.read_text().splitlines()
    reference = f"from firsthand.llm.{part.module} import {part.name}"
    task.file.write_text("\n".join([*lines[: node.lineno - 1], reference]))
    assert task.check("").passed


# ---------------------------------------------------------------------- rungs


@pytest.mark.parametrize("rung", [Rung.SMALL, Rung.ORDER, Rung.FILL])
@pytest.mark.parametrize("step_id", ["1.1/dot-product", "1.3/log-softmax", "1.1/vector-bytes"])
def test_each_rung_is_typed_and_needs_a_result(tasks: Tasks, step_id: str, rung: Rung) -> None:
    task = tasks.task(screen(step_id, rung), NOTHING_YET)
    assert task.typed
    assert task.prompt
    assert task.form
    assert not task.check("yes").passed
    assert task.prompt == tasks.task(screen(step_id, rung), NOTHING_YET).prompt


def test_a_filled_line_is_checked_by_running_it(tasks: Tasks) -> None:
    build = COURSE.step("1.1/dot-product")
    assert isinstance(build, Build)
    task = tasks.task(screen("1.1/dot-product", Rung.FILL), NOTHING_YET)
    assert task.check(build.key_line).passed
    assert task.check("total += float(value) * float(weight)").passed  # another right line
    assert not task.check("total = float(weight) * float(value)").passed
    assert not task.check("total +=").passed


def test_the_worked_example_shows_everything(tasks: Tasks) -> None:
    for step_id in ("1.1/dot-product", "1.1/vector-bytes", "1.3/log-softmax"):
        heading = COURSE.outline.step(step_id)
        text = tasks.worked(WorkedScreen(step_id, heading.kind, heading.title, heading.session, 5))
        assert text.strip()
    build = COURSE.step("1.1/dot-product")
    assert isinstance(build, Build)
    worked = tasks.worked(WorkedScreen("1.1/dot-product", "Build", "t", "1.1", 5))
    assert build.key_line in worked


def test_the_text_of_a_file_that_is_gone_or_odd(tmp_path: Path) -> None:
    assert file_text(tmp_path / "none.py") == ""
    (tmp_path / "odd.py").write_bytes(b"# caf\xe9")
    assert file_text(tmp_path / "odd.py").startswith("# caf")
