"""The reference as text: one part's signature, docstring, body lines, and edited versions of it.

Starters, mistakes and the rungs made of code are all cut from the reference's own file, so none of
them can drift from it (DESIGN.md section 5, "The gate").
"""

from __future__ import annotations

import ast
import importlib.util
import io
import linecache
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

Definition = ast.FunctionDef | ast.ClassDef


class SourceError(ValueError):
    """A part, method or edit that the reference's source does not hold."""


@dataclass(frozen=True)
class PartName:
    """'foundations.neuron:dot_product' taken apart."""

    module: str
    name: str

    @classmethod
    def parse(cls, text: str) -> PartName:
        module, separator, name = text.partition(":")
        if not separator or not module or not name.isidentifier():
            raise SourceError(f"a part is written 'folder.module:name', not {text!r}")
        return cls(module, name)

    @property
    def file(self) -> Path:
        """Path below the workspace: foundations/neuron.py."""
        return Path(*self.module.split(".")).with_suffix(".py")

    def __str__(self) -> str:
        return f"{self.module}:{self.name}"


def text_lines(text: str) -> list[str]:
    """Lines with their ends, as Python counts them: `str.splitlines` also ends them at form feeds
    and at some separators of Unicode, after which no line number of `ast` would fit."""
    return list(io.StringIO(text, newline=""))


class ModuleSource:
    """The text of one module of the stack, found without importing it."""

    def __init__(self, qualified_name: str) -> None:
        self.qualified_name = qualified_name
        spec = importlib.util.find_spec(qualified_name)
        if spec is None or spec.origin is None:
            raise SourceError(f"the stack has no module {qualified_name}")
        self.path = Path(spec.origin)
        self.text = self.path.read_text(encoding="utf-8")
        self.lines = text_lines(self.text)

    @classmethod
    def from_text(cls, original: ModuleSource, text: str) -> ModuleSource:
        """The same module with another text, e.g. one in which a mistake is written."""
        made = cls.__new__(cls)
        made.qualified_name, made.path, made.text = original.qualified_name, original.path, text
        made.lines = text_lines(text)
        return made

    @cached_property
    def tree(self) -> ast.Module:
        return ast.parse(self.text, filename=str(self.path))

    @cached_property
    def definitions(self) -> dict[str, Definition]:
        """Top-level functions and classes by name."""
        return {
            node.name: node
            for node in self.tree.body
            if isinstance(node, ast.FunctionDef | ast.ClassDef)
        }

    @cached_property
    def constants(self) -> dict[str, ast.stmt]:
        """Top-level assignments by the name they bind."""
        found: dict[str, ast.stmt] = {}
        for node in self.tree.body:
            if isinstance(node, ast.Assign):
                for target in node.targets:
                    if isinstance(target, ast.Name):
                        found[target.id] = node
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                found[node.target.id] = node
        return found

    @cached_property
    def imports(self) -> tuple[ast.Import | ast.ImportFrom, ...]:
        return tuple(
            node for node in self.tree.body if isinstance(node, ast.Import | ast.ImportFrom)
        )

    def definition(self, name: str) -> Definition:
        try:
            return self.definitions[name]
        except KeyError:
            raise SourceError(f"{self.path}: no function or class {name}") from None

    def method(self, class_name: str, method: str) -> ast.FunctionDef:
        node = self.definition(class_name)
        for item in node.body:
            if isinstance(item, ast.FunctionDef) and item.name == method:
                return item
        raise SourceError(f"{self.path}: class {class_name} has no method {method}")

    def span(self, node: ast.stmt) -> tuple[int, int]:
        """First and last line (1-based, inclusive), decorators included."""
        first = node.lineno
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.decorator_list:
            first = min(first, node.decorator_list[0].lineno)
        return first, node.end_lineno or node.lineno

    def segment(self, node: ast.stmt) -> str:
        first, last = self.span(node)
        return "".join(self.lines[first - 1 : last])

    def body_lines(self, node: ast.FunctionDef) -> tuple[str, ...]:
        """The body of a function, one logical line each, indented; no docstring, no comments."""
        body = node.body
        if body and isinstance(body[0], ast.Expr) and isinstance(body[0].value, ast.Constant):
            body = body[1:]
        return tuple(logical_lines(body))

    def edited(self, name: str, edits: tuple[tuple[str, str], ...]) -> str:
        """The module's text with each (old, new) replaced within the part `name`.

        Raises SourceError unless each `old` occurs exactly once in the part.
        """
        first, last = self.span(self.definition(name))
        part = "".join(self.lines[first - 1 : last])
        for old, new in edits:
            if part.count(old) != 1:
                raise SourceError(
                    f"{self.path}: {old!r} occurs {part.count(old)} times in {name}, not once"
                )
            part = part.replace(old, new)
        return "".join(self.lines[: first - 1]) + part + "".join(self.lines[last:])


def logical_lines(statements: list[ast.stmt], depth: int = 0) -> Iterator[str]:
    """Statements as lines: a statement that spans several is one, a block its head and its body."""
    pad = "    " * depth
    for node in statements:
        if isinstance(node, ast.If):
            yield f"{pad}if {ast.unparse(node.test)}:"
            yield from logical_lines(node.body, depth + 1)
            if node.orelse:
                yield f"{pad}else:"
                yield from logical_lines(node.orelse, depth + 1)
        elif isinstance(node, ast.For):
            yield f"{pad}for {ast.unparse(node.target)} in {ast.unparse(node.iter)}:"
            yield from logical_lines(node.body, depth + 1)
        elif isinstance(node, ast.While):
            yield f"{pad}while {ast.unparse(node.test)}:"
            yield from logical_lines(node.body, depth + 1)
        elif isinstance(node, ast.With):
            items = ", ".join(ast.unparse(item) for item in node.items)
            yield f"{pad}with {items}:"
            yield from logical_lines(node.body, depth + 1)
        else:
            for line in ast.unparse(node).splitlines():
                yield pad + line


@cache
def module_source(qualified_name: str) -> ModuleSource:
    """The (cached) source of a module of the stack; raises SourceError when there is none."""
    return ModuleSource(qualified_name)


def execute_text(text: str, name: str) -> types.ModuleType:
    """Run the text of a module as a new module `name` and return it. For trusted text only."""
    module = types.ModuleType(name)
    filename = f"<{name}>"
    module.__file__ = filename
    sys.modules[name] = module  # dataclasses look their module up here
    linecache.cache[filename] = (len(text), None, text.splitlines(keepends=True), filename)
    try:
        exec(compile(text, filename, "exec"), module.__dict__)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def edited_part(stack: str, part: PartName, edits: tuple[tuple[str, str], ...], tag: str) -> Any:
    """The part as a module with these edits defines it; `tag` names the version."""
    source = module_source(f"{stack}.{part.module}")
    module = execute_text(source.edited(part.name, edits), f"{stack}.{part.module}__{tag}")
    return getattr(module, part.name)
