"""The rungs below a file step are cut from the reference."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from firsthand.course import code_sources
from firsthand.course.checks import presentation
from firsthand.course.loading import Course
from firsthand.course.sources import ModuleSource, PartName, SourceError, module_source
from firsthand.course.steps import Build, Mistake
from firsthand.course.verdicts import Outcome, Verdict

COURSE = Course()
BUILDS = [
    (step_id, step)
    for session in COURSE.outline.sessions
    for step_id, step in COURSE.code(session.id).steps.items()
    if isinstance(step, Build)
]
each_build = pytest.mark.parametrize(("step_id", "build"), BUILDS, ids=[name for name, _ in BUILDS])
Copy = Callable[..., Course]


def get(step_id: str) -> Build:
    step = COURSE.step(step_id)
    assert isinstance(step, Build)
    return step


def source_of(build: Build) -> ModuleSource:
    return module_source(f"firsthand.llm.{PartName.parse(build.part).module}")


def mistakes_of(step_id: str, build: Build) -> list[Mistake]:
    code = COURSE.code(COURSE.outline.step(step_id).session)
    return [item for item in code.mistakes_of(build) if isinstance(item, Mistake)]


def test_the_functions_of_a_step() -> None:
    dot, scalar = get("1.1/dot-product"), get("1.4/scalar-operations")
    names = [node.name for node in code_sources.built_functions(dot, source_of(dot))]
    assert names == ["dot_product"]
    nodes = code_sources.built_functions(scalar, source_of(scalar))
    assert [node.name for node in nodes] == ["__add__", "__mul__"]


def test_a_class_without_methods_is_the_authors_fault(copied_course: Copy) -> None:
    course = copied_course(
        ("steps.py", "foundations.neuron:layer", "foundations.scalar_autograd:Scalar")
    )
    build = course.step("1.1/layer")
    assert isinstance(build, Build)
    with pytest.raises(SourceError, match="is a class: its step names the methods"):
        code_sources.built_functions(build, source_of(build))


@each_build
def test_the_lines_are_those_of_the_reference(step_id: str, build: Build) -> None:
    source = source_of(build)
    lines = code_sources.rung_lines(build, source)
    assert sum(build.key_line in line for line in lines) == 1
    assert not any('"""' in line for line in lines)
    functions = code_sources.built_functions(build, source)
    if len(functions) == 1:
        body = "def f():\n" + "".join(f"    {line}\n" for line in lines)
        wanted = functions[0].body[1:] if ast.get_docstring(functions[0]) else functions[0].body
        assert ast.unparse(ast.parse(body).body[0].body) == ast.unparse(wanted)  # type: ignore[attr-defined, arg-type]
    else:
        assert sum(line.startswith("def ") for line in lines) == len(functions)


@each_build
def test_the_key_line_put_back_is_the_reference(step_id: str, build: Build) -> None:
    source = source_of(build)
    line = next(line for line in code_sources.rung_lines(build, source) if build.key_line in line)
    same = code_sources.with_line(source, build, line.strip())
    assert ast.unparse(ast.parse(same)) == ast.unparse(source.tree)
    if not line.rstrip().endswith(":"):  # a block's head cannot simply go
        changed = code_sources.with_line(source, build, "pass")
        assert ast.unparse(ast.parse(changed)) != ast.unparse(source.tree)


def test_a_key_line_that_is_nowhere(copied_course: Copy) -> None:
    course = copied_course(
        ("steps.py", 'key_line="return inputs @ weights + biases"', 'key_line="nowhere"')
    )
    build = course.step("1.1/layer")
    assert isinstance(build, Build)
    with pytest.raises(SourceError, match="no statement holds the key line 'nowhere'"):
        code_sources.with_line(source_of(build), build, "pass")


def test_a_body_can_be_exchanged() -> None:
    build = get("1.1/dot-product")
    source = source_of(build)
    (node,) = code_sources.built_functions(build, source)
    body = code_sources.rung_lines(build, source)
    same = code_sources.with_body(source, node, body)
    names = {item.name for item in ast.parse(same).body if isinstance(item, ast.FunctionDef)}
    assert names == {item.name for item in source.tree.body if isinstance(item, ast.FunctionDef)}
    scope: dict[str, object] = {"__name__": "exchanged"}
    exec(compile(code_sources.with_body(source, node, ("return 42.0",)), "x", "exec"), scope)
    assert scope["dot_product"](None, None) == 42.0  # type: ignore[operator]


@each_build
def test_wrong_lines_are_lines_of_a_mistake_and_not_of_the_reference(
    step_id: str, build: Build
) -> None:
    source = source_of(build)
    lines = code_sources.rung_lines(build, source)
    mistakes = mistakes_of(step_id, build)
    found = code_sources.wrong_lines(build, source, lines, mistakes)
    assert len(found) <= 4
    assert len({line for _, line in found}) == len(found)
    names = {mistake.id for mistake in mistakes}
    for name, line in found:
        assert name in names
        assert line not in lines


def test_some_wrong_line_is_there() -> None:
    build = get("1.1/dot-product")
    found = code_sources.wrong_lines(
        build,
        source_of(build),
        code_sources.rung_lines(build, source_of(build)),
        mistakes_of("1.1/dot-product", build),
    )
    assert ("last-product-only", "    total = float(weight) * float(value)") in found


def test_the_small_case_is_what_the_reference_returns() -> None:
    build = get("1.1/dot-product")
    module = COURSE.code("1.1").module.__name__
    assert code_sources.small_answer(COURSE, build, module) == 1.0
    assert presentation.call_of(build, build.small()) == (
        "dot_product(np.array([1., 2., 3.]), np.array([4., 0., -1.]))"
    )
    driven = get("1.1/neuron")
    assert code_sources.small_answer(COURSE, driven, module) == 3.0
    assert "doubling" in presentation.call_of(driven, driven.small())


def test_a_small_case_that_raises_is_the_authors_fault(copied_course: Copy) -> None:
    course = copied_course(
        (
            "steps.py",
            "small=lambda: (np.array([1.0, 2.0, 3.0]), np.array([4.0, 0.0, -1.0])),",
            "small=lambda: (np.ones(2), np.ones(3)),",
        )
    )
    build = course.step("1.1/dot-product")
    assert isinstance(build, Build)
    with pytest.raises(SourceError, match="the reference raises on its small case"):
        code_sources.small_answer(course, build, course.code("1.1").module.__name__)


def test_the_trace_shows_each_value_as_it_comes() -> None:
    lines = code_sources.traced(COURSE, get("1.1/dot-product"))
    totals = [line.rpartition("total = ")[2] for line in lines if "  total = " in line]
    assert totals == ["0.0", "4.0", "1.0"]  # 4, then 4 + 0 (unchanged), then 4 + 0 - 3
    assert all("=" in line for line in lines)
    assert code_sources.traced(COURSE, get("1.1/neuron")) == ()  # called through a driver
    assert code_sources.traced(COURSE, get("1.4/backward-pass")) == ()


def test_a_long_trace_is_cut_and_says_so() -> None:
    build = get("1.1/dot-product")
    from dataclasses import replace

    import numpy as np

    long = replace(build, small=lambda: (np.arange(1.0, 30.0), np.ones(29)))
    lines = code_sources.traced(COURSE, long)
    assert len(lines) == code_sources.MOST_TRACED + 1
    assert lines[-1].startswith("... ")
    assert lines[-1].endswith(" more")


def test_tracing_restores_what_traced_before() -> None:
    import sys

    before = sys.gettrace()
    code_sources.traced(COURSE, get("1.1/dot-product"))
    assert sys.gettrace() is before


def test_filled_and_ordered_lines_are_written_and_checked(tmp_path: Path) -> None:
    build = get("1.1/dot-product")
    seen: list[str] = []

    def check(file: Path) -> Verdict:
        seen.append(file.read_text())
        return Verdict(Outcome.PASSED, "Seen.")

    cut = code_sources.code_source(
        COURSE,
        build,
        mistakes_of("1.1/dot-product", build),
        session_module=COURSE.code("1.1").module.__name__,
        check_file=check,
        scratch=tmp_path / "rungs" / "dot.py",
    )
    assert (cut.name, cut.small_answer) == ("dot_product", 1.0)
    assert cut.signature.startswith("def dot_product(weights")
    assert cut.check_filled("total += 7.0").passed
    assert "        total += 7.0\n" in seen[0]
    assert build.key_line not in seen[0]
    assert cut.check_ordered is not None
    assert cut.check_ordered(("return 1.0",)).passed
    ast.parse(seen[1])
    assert "    return 1.0\n" in seen[1]


def test_several_methods_are_not_ordered_as_one_body(tmp_path: Path) -> None:
    build = get("1.4/scalar-operations")
    cut = code_sources.code_source(
        COURSE,
        build,
        mistakes_of("1.4/scalar-operations", build),
        session_module=COURSE.code("1.4").module.__name__,
        check_file=lambda file: Verdict(Outcome.PASSED, ""),
        scratch=tmp_path / "x.py",
    )
    assert cut.check_ordered is None
    assert (cut.name, cut.signature) == ("Scalar", "")
    single = get("1.4/backward-pass")
    one = code_sources.code_source(
        COURSE,
        single,
        mistakes_of("1.4/backward-pass", single),
        session_module=COURSE.code("1.4").module.__name__,
        check_file=lambda file: Verdict(Outcome.PASSED, ""),
        scratch=tmp_path / "x.py",
    )
    assert one.name == "Scalar.backward"
