"""`firsthand course check`: does each step keep the promises that a learner relies on?

For each step, on many seeds: the starter fails as a starter, the reference and another right
version pass, each known mistake fails under its own name, nothing is met by zeros or by the negated
answer, no step needs code of a later one, every number of the prose computes, and no answer stands
beside its question.
"""

from __future__ import annotations

import ast
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from firsthand.course import starters
from firsthand.course.checks.cheats import cheats, pairwise_different
from firsthand.course.checks.checker import Checker
from firsthand.course.checks.comparison import TIGHTEST
from firsthand.course.checks.in_process import InProcess
from firsthand.course.code_sources import built_functions, code_source, rung_lines
from firsthand.course.gate import Rung
from firsthand.course.lesson import Lesson, LessonError, typed_numbers
from firsthand.course.loading import Course, SessionCode
from firsthand.course.outline import OutlineError, StepHeading
from firsthand.course.questions.code_rungs import code_rung_question
from firsthand.course.questions.question import Question, QuestionError, WorkedExample, ask
from firsthand.course.questions.rungs import rung_question
from firsthand.course.sources import (
    ModuleSource,
    PartName,
    SourceError,
    execute_text,
    module_source,
)
from firsthand.course.steps import Build, Debug, Measure, Mistake, Order, Step
from firsthand.course.verdicts import Outcome, Verdict

LEAST_MISTAKES = 3


@dataclass(frozen=True)
class Seeds:
    """On how many seeds a promise is tried: for files, typed answers, measured answers."""

    builds: int = 6
    answers: int = 25
    measures: int = 2


ALL_SEEDS = Seeds()


@dataclass(frozen=True)
class Finding:
    """One broken promise: where, and what is wrong."""

    place: str
    problem: str

    def __str__(self) -> str:
        return f"{self.place}: {self.problem}"


def check_course(
    course: Course,
    session_ids: list[str] | None = None,
    *,
    on_step: Callable[[str], None] = lambda step_id: None,
    seeds: Seeds = ALL_SEEDS,
) -> list[Finding]:
    """All findings of the given sessions (default: all). on_step is called as each one starts."""
    findings: list[Finding] = []
    try:
        wanted = session_ids or [session.id for session in course.outline.sessions]
    except OutlineError as error:
        return [Finding("outline", str(error))]
    for session_id in wanted:
        try:
            code = course.code(session_id)
        except Exception as error:  # importing runs the author's code: anything can come
            findings.append(Finding(session_id, f"{type(error).__name__}: {error}"))
            continue
        findings += SessionCheck(course, code, seeds).run(on_step)
    return findings


class SessionCheck:
    """The author's check of one session."""

    def __init__(self, course: Course, code: SessionCode, seeds: Seeds = ALL_SEEDS) -> None:
        self.course = course
        self.seeds = seeds
        self.code = code
        self.session = code.session
        self.lesson = Lesson(code.session, vars(code.module))
        self.checker = Checker(course, InProcess(None), Path("."))

    def run(self, on_step: Callable[[str], None] = lambda step_id: None) -> list[Finding]:
        findings = [Finding(self.session.id, problem) for problem in self._session()]
        for heading in self.session.steps:
            on_step(heading.id)
            step = self.code.steps[heading.id]
            findings += [Finding(heading.id, problem) for problem in self._prose(heading)]
            findings += [Finding(heading.id, problem) for problem in self._common(heading, step)]
            if isinstance(step, Build):
                problems = self._build(heading.id, step)
            elif isinstance(step, Debug):
                problems = self._debug(heading.id, step)
            else:
                problems = self._answer(heading.id, step)
            findings += [Finding(heading.id, problem) for problem in problems]
        return findings

    # ------------------------------------------------------------------ session and prose

    def _session(self) -> Iterator[str]:
        session = self.session
        kinds = {heading.id: heading.kind for heading in self.course.outline.steps}
        if not 5 <= len(session.resources) <= 7:
            yield f"{len(session.resources)} resources; five to seven are asked for"
        if not session.concepts:
            yield "no concepts"
        for concept in session.concepts:
            missing = [proof for proof in concept.proofs if proof not in kinds]
            if missing:
                yield f"concept {concept.id} names steps that do not exist: {missing}"
                continue
            found = {kinds[proof] for proof in concept.proofs}
            if "Build" not in found or len(found) < 2:
                yield f"concept {concept.id} needs a Build and a proof of another kind: {found}"
        last = self.code.steps[session.steps[-1].id]
        if last.closes not in {concept.id for concept in session.concepts}:
            yield "the last step closes none of the session's concepts"
        for required in session.requires:
            if required not in self.course.outline:
                yield f"requires {required}, which does not exist"
        known = {step.id for step in self.code.steps.values()}
        for mistake in self.code.mistakes:
            if mistake.step not in known:
                yield f"mistake {mistake.id} belongs to no step: {mistake.step}"
        names = [mistake.id for mistake in self.code.mistakes]
        for name in {name for name in names if names.count(name) > 1}:
            yield f"two mistakes are named {name}"
        if "```mermaid" not in self.lesson.text:
            yield "no diagram"
        if not re.search(r"^\|[ -]*-", self.lesson.text, re.MULTILINE):
            yield "no table"
        try:
            self.lesson.opening()
        except LessonError as error:
            yield str(error)

    def _prose(self, heading: StepHeading) -> Iterator[str]:
        source = self.lesson.sections[heading.id]
        if len(source) < 200:
            yield "the theory before the question is too short to learn from"
        typed = typed_numbers(source)
        if typed:
            yield f"numbers typed in the prose, not computed: {', '.join(typed)}"
        try:
            self.lesson.theory(heading.id)
        except LessonError as error:
            yield str(error)

    def _common(self, heading: StepHeading, step: Step) -> Iterator[str]:
        if not 1 <= len(step.hints) <= 3:
            yield f"{len(step.hints)} hints; one to three are asked for"
        for mistake in self.code.mistakes_of(step):
            if mistake.question.count("?") != 1:
                yield f"mistake {mistake.id} asks {mistake.question.count('?')} questions, not one"
            if sentences(mistake.belief) > 2:
                yield f"the belief of {mistake.id} is longer than two sentences"

    # ------------------------------------------------------------------ Build

    def _build(self, step_id: str, build: Build) -> Iterator[str]:
        part = PartName.parse(build.part)
        try:
            source = module_source(f"{self.course.stack}.{part.module}")
            source.definition(part.name)
            for method in build.methods:
                source.method(part.name, method)
        except SourceError as error:
            yield str(error)
            return
        yield from self._later_parts(step_id, build, source)
        yield from self._code_of_rungs(step_id, build, source)
        mistakes = [item for item in self.code.mistakes_of(build) if isinstance(item, Mistake)]
        if len(mistakes) < LEAST_MISTAKES:
            yield f"{len(mistakes)} mistakes; at least {LEAST_MISTAKES} are asked for"
        alternatives = self.code.alternatives_of(build)
        if not alternatives:
            yield "no differently written right version"
        try:
            versions = [(item, self.course.version(item, build)) for item in mistakes]
        except (SourceError, SyntaxError) as error:
            yield f"a mistake does not apply: {error}"
            return
        reference = self.course.reference(part)
        starter = starter_part(self.course, step_id, build)
        for seed in range(self.seeds.builds):
            trial = self.checker.trial(step_id, seed)
            yield from self._tolerance(trial.distances, trial.tolerance, seed)
            yield from self._expect(step_id, seed, starter, Outcome.UNFINISHED, "the starter")
            yield from self._expect(step_id, seed, reference, Outcome.PASSED, "the reference")
            for alternative in alternatives:
                name = f"the alternative {alternative.code.__name__}"
                yield from self._expect(step_id, seed, alternative.code, Outcome.PASSED, name)
            for mistake, version in versions:
                verdict = self.checker.check_version(step_id, seed, version)
                if verdict.passed:
                    yield f"seed {seed}: the mistake {mistake.id} passes"
                elif verdict.mistake != mistake.id:
                    yield (
                        f"seed {seed}: the mistake {mistake.id} is diagnosed as {verdict.mistake} "
                        f"({verdict.outcome}: {verdict.headline})"
                    )
            for cheat in cheats(reference):
                if self.checker.check_version(step_id, seed, cheat.part).passed and cheat.touched:
                    yield f"seed {seed}: {cheat.name} passes"
        if not any(pairwise_different(arguments) for arguments in trial.calls):
            yield "no probe has arrays with axes of pairwise different sizes"

    def _expect(
        self, step_id: str, seed: int, part: object, outcome: Outcome, name: str
    ) -> Iterator[str]:
        verdict = self.checker.check_version(step_id, seed, part)
        if verdict.outcome is not outcome:
            evidence = "; ".join(f"{item.label}: {item.text}" for item in verdict.evidence)
            yield (
                f"seed {seed}: {name} is {verdict.outcome}, not {outcome}: "
                f"{verdict.headline} {evidence}"
            )

    def _tolerance(self, distances: dict[str, float], tolerance: float, seed: int) -> Iterator[str]:
        for name, distance in distances.items():
            if distance <= 10 * TIGHTEST or distance <= 10 * tolerance:
                yield f"seed {seed}: the probes do not tell {name} from the reference"

    def _later_parts(self, step_id: str, build: Build, source: ModuleSource) -> Iterator[str]:
        """Names that the built code uses and that only a later step builds."""
        part = PartName.parse(build.part)
        order = [heading.id for heading in self.course.outline.steps]
        here = order.index(step_id)
        later: dict[tuple[str, str], str] = {}
        for session in self.course.outline.sessions:
            for other_id, other in self.course.code(session.id).steps.items():
                if isinstance(other, Build) and other.part != build.part:
                    named = PartName.parse(other.part)
                    place = (named.module, named.name)
                    if order.index(other_id) > here:
                        later.setdefault(place, other_id)
                    else:
                        later[place] = ""
        used = starters.used_names(built_functions(build, source))
        homes = dict.fromkeys(source.definitions, part.module)
        for node in source.imports:
            if isinstance(node, ast.ImportFrom) and node.module:
                module = node.module.removeprefix(f"{self.course.stack}.")
                homes.update({alias.asname or alias.name: module for alias in node.names})
        for name in sorted(used):
            step = later.get((homes.get(name, ""), name))
            if step:
                yield f"the reference uses {name}, which the later step {step} builds"

    def _code_of_rungs(self, step_id: str, build: Build, source: ModuleSource) -> Iterator[str]:
        lines = rung_lines(build, source)
        if not 1 <= len(lines) <= 16:
            yield f"the reference's body has {len(lines)} lines; a rung shows at most 16"
        hits = [line for line in lines if build.key_line in line]
        if len(hits) != 1:
            yield f"key_line {build.key_line!r} is in {len(hits)} lines of the reference, not one"
        for hint in build.hints:
            if build.key_line.strip() in hint:
                yield "a hint holds the key line"
        mistakes = [item for item in self.code.mistakes_of(build) if isinstance(item, Mistake)]
        for rung in (Rung.SMALL, Rung.ORDER, Rung.FILL, Rung.WORKED):
            try:
                cut = code_source(
                    self.course,
                    build,
                    mistakes,
                    session_module=self.code.module.__name__,
                    check_file=lambda file: self._check_text(step_id, build, file),
                    scratch=Path(tempfile.gettempdir()) / f"firsthand-rung-{os.getpid()}.py",
                )
                asked = code_rung_question(rung, 1, cut)
            except (SourceError, QuestionError, ValueError, TypeError) as error:
                yield f"the rung {rung.name} cannot be made: {type(error).__name__}: {error}"
                return
            if isinstance(asked, WorkedExample):
                continue
            verdict = asked.grade(asked.solution)
            if not verdict.passed:
                yield f"the solution of rung {rung.name} is {verdict.outcome}: {verdict.headline}"

    def _check_text(self, step_id: str, build: Build, file: Path) -> Verdict:
        """Judge a version of the reference's whole module, written to a file by a rung."""
        text = file.read_text(encoding="utf-8")
        file.unlink()
        part = PartName.parse(build.part)
        module = execute_text(text, f"{self.course.stack}.{part.module}__filled")
        return self.checker.check_version(step_id, 0, getattr(module, part.name))

    # ------------------------------------------------------------------ Debug

    def _debug(self, step_id: str, step: Debug) -> Iterator[str]:
        mistakes = {item.id: item for item in self.checker.mistakes(step_id)}
        part = PartName.parse(step.build.part)
        for name in step.mistakes:
            if name not in mistakes:
                yield f"the mistake {name} is none of {sorted(mistakes)}"
                continue
            if not mistakes[name].edits:
                yield f"the mistake {name} is not written as an edit: it cannot be given as code"
                continue
            version = self.course.version(mistakes[name], step.build)
            for seed in range(self.seeds.builds):
                verdict = self.checker.check_version(step_id, seed, version)
                if verdict.passed or verdict.mistake != name:
                    yield f"seed {seed}: the given code with {name} is {verdict.outcome}"
        for seed in range(self.seeds.builds):
            reference = self.course.reference(part)
            yield from self._expect(step_id, seed, reference, Outcome.PASSED, "the repaired code")

    # ------------------------------------------------------------------ typed answers

    def _answer(self, step_id: str, step: Step) -> Iterator[str]:
        mistakes = self.code.mistakes_of(step)
        seeds = self.seeds.measures if isinstance(step, Measure) else self.seeds.answers
        theory = self._theory_text(step_id)
        yield from self._silent_mistakes(step)
        if not isinstance(step, Measure) and len(mistakes) < 2:
            yield f"{len(mistakes)} mistakes; at least two wrong answers are asked for"
        for seed in range(seeds):
            for small in (False, True):
                try:
                    question = ask(step, seed, mistakes, small=small)
                except Exception as error:
                    name = type(error).__name__
                    yield f"seed {seed}: the question cannot be asked: {name}: {error}"
                    return
                yield from self._graded(question, seed)
                if not small and answer_stands_in(question, theory, step):
                    yield f"seed {seed}: the answer {question.solution!r} stands in the theory"
            for rung in (Rung.SMALL, Rung.ORDER, Rung.FILL, Rung.WORKED):
                try:
                    asked = rung_question(step, rung, seed, mistakes)
                except Exception as error:
                    yield f"seed {seed}: rung {rung.name} cannot be asked: {error}"
                    return
                if isinstance(asked, WorkedExample):
                    continue
                verdict = asked.grade(asked.solution)
                if not verdict.passed:
                    yield f"seed {seed}: the solution of rung {rung.name} is {verdict.outcome}"

    def _silent_mistakes(self, step: Step) -> Iterator[str]:
        """Wrong answers of a declaration that mistakes.py has no words for: never named."""
        try:
            asked = ask(step, 0, ())
        except QuestionError:
            return
        known = {mistake.id for mistake in self.code.mistakes_of(step)}
        for name in asked.wrong_answers:
            if name not in known:
                yield f"mistakes.py has no words for the wrong answer {name}"

    def _graded(self, question: Question, seed: int) -> Iterator[str]:
        verdict = question.grade(question.solution)
        if question.solution and not verdict.passed:
            yield (
                f"seed {seed}: the right answer {question.solution!r} is {verdict.outcome}: "
                f"{verdict.headline}"
            )
        for name, answer in question.wrong_answers.items():
            verdict = question.grade(answer)
            if verdict.outcome is not Outcome.WRONG or verdict.mistake != name:
                yield (
                    f"seed {seed}: the wrong answer of {name}, {answer!r}, is {verdict.outcome}, "
                    f"diagnosed as {verdict.mistake}"
                )
        for answer in ("", "I understand", "yes", "ok", "sí, entiendo"):
            if question.grade(answer).outcome is not Outcome.MALFORMED:
                yield f"seed {seed}: the answer {answer!r} is not refused as malformed"

    def _theory_text(self, step_id: str) -> str:
        try:
            return self.lesson.theory(step_id)
        except LessonError:
            return ""


def sentences(text: str) -> int:
    return len(re.findall(r"[.!?](?:\s|$)", text))


def starter_part(course: Course, step_id: str, build: Build) -> Any:
    """The part as its starter defines it, in a copy of the reference's module."""
    part = PartName.parse(build.part)
    source = module_source(f"{course.stack}.{part.module}")
    session = course.outline.step(step_id).session
    methods = course.methods_until(build.part, session)
    first, last = source.span(source.definition(part.name))
    starter = starters.part_starter(source, part.name, methods)
    text = "".join(source.lines[: first - 1]) + starter + "".join(source.lines[last:])
    module = execute_text(text, f"{source.qualified_name}__starter_{build.id.replace('-', '_')}")
    return getattr(module, part.name)


def answer_stands_in(question: Question, theory: str, step: Step) -> bool:
    """Whether the answer of a number question is a number of the text above it (rule C2)."""
    if isinstance(step, Order | Measure) or not re.fullmatch(r"-?[\d.]+", question.solution):
        return False
    value = float(question.solution)
    if abs(value) < 100:  # small whole numbers stand in any text
        return False
    found = [float(text) for text in re.findall(r"-?\d+(?:\.\d+)?", theory)]
    return value in found
