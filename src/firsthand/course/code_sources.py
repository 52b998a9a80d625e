"""What the rungs below a Build or Debug step are cut from: reference lines and a small call."""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

from firsthand.course.checks.in_process import InProcess
from firsthand.course.checks.presentation import call_of, value_text
from firsthand.course.checks.requests import Returned
from firsthand.course.checks.trial import request_for
from firsthand.course.loading import Course
from firsthand.course.questions.code_rungs import CodeSource
from firsthand.course.sources import ModuleSource, PartName, SourceError, module_source
from firsthand.course.steps import Build, Mistake
from firsthand.course.verdicts import Verdict

MOST_TRACED = 14


def built_functions(build: Build, source: ModuleSource) -> list[ast.FunctionDef]:
    """The functions or methods whose bodies a Build step asks for."""
    part = PartName.parse(build.part)
    if build.methods:
        return [source.method(part.name, method) for method in build.methods]
    node = source.definition(part.name)
    if not isinstance(node, ast.FunctionDef):
        raise SourceError(f"{build.part} is a class: its step names the methods that it builds")
    return [node]


def rung_lines(build: Build, source: ModuleSource) -> tuple[str, ...]:
    """The lines that the rungs show: the body, or for several methods each with its `def` line."""
    functions = built_functions(build, source)
    if len(functions) == 1:
        return source.body_lines(functions[0])
    lines: list[str] = []
    for node in functions:
        lines.append(f"def {node.name}({ast.unparse(node.args)}):")
        lines += [f"    {line}" for line in source.body_lines(node)]
    return tuple(lines)


def code_source(
    course: Course,
    build: Build,
    mistakes: Sequence[Mistake],
    *,
    session_module: str,
    check_file: Callable[[Path], Verdict],
    scratch: Path,
) -> CodeSource:
    """Everything a code rung needs. check_file judges a file; scratch: where one may be written."""
    part = PartName.parse(build.part)
    source = module_source(f"{course.stack}.{part.module}")
    lines = rung_lines(build, source)
    functions = built_functions(build, source)

    def check_filled(line: str) -> Verdict:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(with_line(source, build, line.strip()), encoding="utf-8")
        return check_file(scratch)

    def check_ordered(ordered: tuple[str, ...]) -> Verdict:
        scratch.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(with_body(source, functions[0], ordered), encoding="utf-8")
        return check_file(scratch)

    return CodeSource(
        name=part.name
        if len(functions) > 1 or not build.methods
        else f"{part.name}.{build.methods[0]}",
        lines=lines,
        wrong_lines=wrong_lines(build, source, lines, mistakes),
        key_line=build.key_line,
        small_call=call_of(build, build.small()),
        small_answer=small_answer(course, build, session_module),
        check_filled=check_filled,
        check_ordered=check_ordered if len(functions) == 1 else None,
        worked=traced(course, build),
        mistakes=tuple(mistakes),
        signature=signature_line(functions[0]) if len(functions) == 1 else "",
    )


def signature_line(node: ast.FunctionDef) -> str:
    returns = f" -> {ast.unparse(node.returns)}" if node.returns else ""
    return f"def {node.name}({ast.unparse(node.args)}){returns}:"


def wrong_lines(
    build: Build, source: ModuleSource, lines: tuple[str, ...], mistakes: Sequence[Mistake]
) -> tuple[tuple[str, str], ...]:
    """(mistake id, line) for lines that a mistake has and the reference has not; at most four."""
    part = PartName.parse(build.part)
    found: list[tuple[str, str]] = []
    for mistake in mistakes:
        if not mistake.edits:
            continue
        edited = ModuleSource.from_text(source, source.edited(part.name, mistake.edits))
        others = [line for line in rung_lines(build, edited) if line not in lines]
        if len(others) == 1 and all(others[0] != line for _, line in found):
            found.append((mistake.id, others[0]))
    return tuple(found[:4])


def small_answer(course: Course, build: Build, session_module: str) -> Any:
    """What the reference returns for the step's smallest case."""
    reference = course.reference(PartName.parse(build.part))
    request = request_for(
        build,
        [build.small()],
        stack=course.stack,
        session_module=session_module,
        workspace=Path("."),
    )
    result = InProcess(reference).execute(request).results[0]
    if not isinstance(result, Returned):
        raise SourceError(f"step {build.id}: the reference raises on its small case")
    return result.value


def with_line(source: ModuleSource, build: Build, line: str) -> str:
    """The module's text with the line that holds `key_line` replaced by another."""
    for function in built_functions(build, source):
        for node in ast.walk(function):
            if not isinstance(node, ast.stmt) or node is function:
                continue
            head = ast.unparse(node).splitlines()[0]
            if build.key_line not in head:
                continue
            body = getattr(node, "body", None)
            last = body[0].lineno - 1 if body else node.end_lineno or node.lineno
            indent = " " * node.col_offset
            return (
                "".join(source.lines[: node.lineno - 1])
                + f"{indent}{line}\n"
                + "".join(source.lines[last:])
            )
    raise SourceError(f"step {build.id}: no statement holds the key line {build.key_line!r}")


def with_body(source: ModuleSource, node: ast.FunctionDef, body: tuple[str, ...]) -> str:
    """The module's text with the body of one function replaced by these lines."""
    indent = " " * (node.col_offset + 4)
    lines = "".join(f"{indent}{line}\n" for line in body)
    last = node.end_lineno or node.lineno
    head = "".join(source.lines[: node.body[0].lineno - 1])
    return head + lines + "".join(source.lines[last:])


def traced(course: Course, build: Build) -> tuple[str, ...]:
    """The reference run on the small case: each line that changes a variable, with its new value.

    Only for functions called without a driver; a class is shown by its lines alone.
    """
    if build.driver is not None or build.methods:
        return ()
    reference = course.reference(PartName.parse(build.part))
    code: CodeType | None = getattr(reference, "__code__", None)
    if code is None:
        return ()
    source = module_source(f"{course.stack}.{PartName.parse(build.part).module}")
    seen: dict[str, str] = {}
    lines: list[str] = []
    previous: list[int] = []

    def watch(frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code is not code:
            return None
        if event == "call":
            seen.update({name: value_text(value) for name, value in frame.f_locals.items()})
            return watch
        for name, value in frame.f_locals.items():
            text = value_text(value)
            if seen.get(name) != text and previous:
                statement = source.lines[previous[-1] - 1].strip()
                lines.append(f"{statement:<44} {name} = {text}")
            seen[name] = text
        if event == "line":
            previous[:] = [frame.f_lineno]
        return watch

    before = sys.gettrace()
    sys.settrace(watch)
    try:
        reference(*build.small())
    finally:
        sys.settrace(before)
    if len(lines) > MOST_TRACED:
        lines[MOST_TRACED:] = [f"... {len(lines) - MOST_TRACED} more"]
    return tuple(lines)
