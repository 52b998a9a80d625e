"""Imports run one way (docs: the house). Read from the syntax trees, so nothing is executed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

import firsthand

ROOT = Path(firsthand.__file__).parent
LONGEST = 450
# Each folder of the stack imports only from those above it, and from itself.
STACK_ORDER = (
    "foundations",
    "tokenizer",
    "kernels",
    "model",
    "generation",
    "data",
    "training",
    "alignment",
    "quantization",
    "inference",
    "audit",
)
# `resources` is what a process may use of the machine: all may ask, and it asks nobody.
ALLOWED = {
    "resources": set(),
    "llm": {"llm", "resources"},
    "course": {"course", "resources"},
    "curriculum": {"curriculum", "course", "llm", "resources"},
    "mentor": {"mentor", "course", "resources"},
    "app": {"app", "mentor", "course", "llm", "resources"},
}
TEST_TOOLS = {"_pytest", "hypothesis", "pexpect", "playwright", "psutil", "pytest"}
# Oracles of the tests. An exchange with one of them may import it where it is called for.
PEERS = {"gguf", "llama_cpp", "tiktoken", "tokenizers", "torchao", "transformers", "trl"}


@dataclass(frozen=True)
class Import:
    """target: dotted name, as deep as it is a module. at_import: runs when the module is read."""

    module: str
    target: str
    line: int
    at_import: bool

    def __str__(self) -> str:
        return f"{self.module}, line {self.line}: {self.target}"


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, Path]:
    return {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def _targets(node: ast.Import | ast.ImportFrom, module: str, package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
        return
    base = node.module or ""
    if node.level:
        here = module.split(".")
        here = here[: len(here) - node.level + (1 if package else 0)]
        base = ".".join([*here, *([node.module] if node.module else [])])
    for alias in node.names:
        deeper = f"{base}.{alias.name}"
        yield deeper if deeper in modules() else base


def _walk(node: ast.AST, at_import: bool) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child, at_import
        else:
            late = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            types = isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test)
            yield from _walk(child, at_import and not late and not types)


def imports_of(text: str, module: str, package: bool = False) -> list[Import]:
    return [
        Import(module, target, node.lineno, at_import)
        for node, at_import in _walk(ast.parse(text), True)
        for target in _targets(node, module, package)
    ]


@cache
def all_imports() -> tuple[Import, ...]:
    return tuple(
        item
        for name, path in modules().items()
        for item in imports_of(path.read_text(encoding="utf-8"), name, path.stem == "__init__")
    )


def ours(name: str) -> str | None:
    """'llm' for firsthand.llm.model; None outside the package and for the package itself."""
    parts = name.split(".")
    return parts[1] if parts[0] == "firsthand" and len(parts) > 1 else None


def forbidden(item: Import) -> bool:
    source, target = ours(item.module), ours(item.target)
    return source in ALLOWED and target is not None and target not in ALLOWED[source]


def for_tests(item: Import) -> bool:
    root = item.target.split(".")[0]
    return root in TEST_TOOLS or (root in PEERS and item.at_import)


def climbs(item: Import) -> bool:
    """Whether a folder of the stack imports one below it in the list."""
    source, target = item.module.split("."), item.target.split(".")
    if source[1:2] != ["llm"] or target[1:2] != ["llm"] or len(source) < 3 or len(target) < 3:
        return False
    if source[2] not in STACK_ORDER:
        return False
    if target[2] not in STACK_ORDER:  # a module beside the folders: low, if it leans on none
        return any(
            other.module == item.target and other.target.startswith("firsthand.llm.")
            for other in all_imports()
        )
    return STACK_ORDER.index(target[2]) > STACK_ORDER.index(source[2])


def cycles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other (Tarjan's strongly connected components)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1 or name in graph.get(name, ()):
                found.append(sorted(group))

    for name in sorted(graph):
        if name not in index:
            visit(name)
    return found


def listed(items: list[Import]) -> str:
    return "\n".join(map(str, items))


# ---------------------------------------------------------------------- the rules


def test_there_is_something_to_look_at() -> None:
    assert len(modules()) > 50
    assert {ours(item.target) for item in all_imports()} >= {"llm", "course", "app"}
    folders = {path.name for path in (ROOT / "llm").iterdir() if (path / "__init__.py").exists()}
    assert folders <= set(STACK_ORDER), folders - set(STACK_ORDER)


def test_imports_between_the_halves_run_one_way() -> None:
    broken = [item for item in all_imports() if forbidden(item)]
    assert not broken, listed(broken)


def test_the_folders_of_the_stack_import_only_upwards() -> None:
    broken = [item for item in all_imports() if climbs(item)]
    assert not broken, listed(broken)


def test_no_circle_at_import_time() -> None:
    graph: dict[str, set[str]] = {name: set() for name in modules()}
    for item in all_imports():
        if item.at_import and item.target in graph and item.target != item.module:
            graph[item.module].add(item.target)
    assert cycles(graph) == []


def test_no_package_of_the_tests_is_imported() -> None:
    broken = [item for item in all_imports() if for_tests(item)]
    assert not broken, listed(broken)


def test_modules_can_be_read_in_one_sitting() -> None:
    long = [
        f"{name}: {count} lines"
        for name, path in modules().items()
        if ours(name) != "curriculum"
        and (count := len(path.read_text(encoding="utf-8").splitlines())) > LONGEST
    ]
    assert not long, "split these:\n" + "\n".join(long)


# ---------------------------------------------------------------------- the rules can fail


@pytest.mark.parametrize(
    ("text", "module", "broken"),
    [
        ("from firsthand.course import gate", "firsthand.llm.model.block", True),
        ("import firsthand.llm.model", "firsthand.course.gate", True),
        ("def f():\n    from firsthand.app import cli", "firsthand.course.gate", True),
        ("from firsthand.curriculum import phase_1_neurons", "firsthand.app.cli.main", True),
        ("from ...curriculum import x", "firsthand.app.cli.main", True),
        ("from firsthand.app import cli", "firsthand.mentor.hints", True),
        ("from firsthand.mentor import hints", "firsthand.app.cli.main", False),
        ("from firsthand.llm.model import block", "firsthand.curriculum.phase_1.s.steps", False),
        ("COURSE = 'firsthand.curriculum'", "firsthand.app.cli.main", False),
        ("from . import formulas", "firsthand.app.cli.main", False),
        ("from firsthand import resources", "firsthand.llm.kernels.threads", False),
        ("from firsthand.llm import model", "firsthand.resources", True),
    ],
)
def test_what_counts_as_forbidden(text: str, module: str, broken: bool) -> None:
    assert any(forbidden(item) for item in imports_of(text, module)) is broken


@pytest.mark.parametrize(
    ("text", "module", "broken"),
    [
        ("from firsthand.llm.training import loop", "firsthand.llm.model.block", True),
        ("from firsthand.llm.foundations import neuron", "firsthand.llm.model.block", False),
        ("from firsthand.llm.model import config", "firsthand.llm.model.block", False),
        ("from firsthand.llm import everything", "firsthand.llm.model.block", False),
        ("from firsthand.llm.training import loop", "firsthand.llm.reference", False),
    ],
)
def test_what_counts_as_climbing(text: str, module: str, broken: bool) -> None:
    assert any(climbs(item) for item in imports_of(text, module)) is broken


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("import pytest", True),
        ("def f():\n    import psutil", True),
        ("from transformers import LlamaConfig", True),
        ("def f():\n    import tiktoken", False),
        ("import numpy", False),
    ],
)
def test_what_belongs_to_the_tests(text: str, broken: bool) -> None:
    assert any(for_tests(item) for item in imports_of(text, "m")) is broken


def test_a_circle_is_found_and_a_late_import_is_none() -> None:
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    assert cycles({"a": {"b"}, "b": set()}) == []
    text = (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import a\n"
        "def f():\n    import b\nclass C:\n    import c\ntry:\n    import d\nexcept E:\n    pass\n"
    )
    early = {item.target for item in imports_of(text, "m") if item.at_import}
    assert early == {"typing", "c", "d"}
