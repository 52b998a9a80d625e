"""Which library functions the learner's code uses where it is to build them itself.

Two ways see it. While the code runs, a stand-in in the library notes calls from the learner's
part. Before it runs, the syntax tree of the part is searched, which also sees operators, methods
and lines that no call reached. Both look at the part and at helpers of the learner's own, never at
another part of the stack in the same file: there the function may be allowed.

A forbidden name is 'numpy.dot', 'sum' (a builtin), '@' (matrix product), or 'method:dot'.
"""

from __future__ import annotations

import ast
import builtins
import importlib
import sys
from collections.abc import Callable, Collection, Iterator
from types import FrameType
from typing import Any

globals()["__builtins__"] = dict(vars(builtins))  # see checks/values.py

_METHOD = "method:"
_MATRIX_PRODUCT = frozenset(("operator.matmul", "operator.__matmul__", "operator.imatmul"))
_MATRIX_METHODS = frozenset(("__matmul__", "__rmatmul__", "__imatmul__"))
_Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


# --------------------------------------------------------------------------- before it runs


def used_in_source(
    tree: ast.Module, name: str, forbids: Collection[str], parts: Collection[str]
) -> set[str]:
    """The forbidden names in the definition of `name` and in the helpers it refers to.

    Args:
        tree: the learner's file.
        parts: names that are parts of the stack; their definitions are not searched.
    """
    aliases = _aliases(tree)
    found = {aliases[name]} if name in aliases else set()
    for definition in _reach(tree, name, parts):
        shadowed = aliases | _aliases(definition)
        for node in ast.walk(definition):
            found.update(_names_of(node, shadowed))
    return found & set(forbids)


def imported_roots(tree: ast.Module) -> set[str]:
    """The top packages that the file imports."""
    roots: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            roots.update(alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            roots.add(node.module.split(".")[0])
    return roots


def _reach(tree: ast.Module, name: str, parts: Collection[str]) -> Iterator[ast.stmt]:
    """The definition of the name, and what it refers to at the top level of the same file."""
    top: dict[str, list[ast.stmt]] = {}
    for statement in tree.body:
        if isinstance(statement, _Definition):
            top.setdefault(statement.name, []).append(statement)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            for target in targets:
                if isinstance(target, ast.Name):
                    top.setdefault(target.id, []).append(statement)
    waiting, seen = [name], {name}
    while waiting:
        for statement in top.get(waiting.pop(), ()):
            yield statement
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and node.id not in seen and node.id not in parts:
                    seen.add(node.id)
                    waiting.append(node.id)


def _aliases(tree: ast.AST) -> dict[str, str]:
    """local name -> dotted name, from imports and plain assignments such as `dot = np.dot`."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first = alias.name.split(".")[0]
                aliases[alias.asname or first] = alias.name if alias.asname else first
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                aliases[alias.asname or alias.name] = f"{node.module}.{alias.name}"
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign) and len(node.targets) == 1:
            target, value = node.targets[0], _dotted(node.value, aliases)
            if isinstance(target, ast.Name) and value and "." in value:
                aliases[target.id] = value
    return aliases


def _dotted(node: ast.expr, aliases: dict[str, str]) -> str | None:
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if not isinstance(node, ast.Name):
        return None
    root = aliases.get(node.id)
    if root is None:
        return node.id if not names else None
    return ".".join([root, *reversed(names)])


def _names_of(node: ast.AST, aliases: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.BinOp | ast.AugAssign) and isinstance(node.op, ast.MatMult):
        yield "@"
    if isinstance(node, ast.Attribute | ast.Name):
        dotted = _dotted(node, aliases)
        if dotted is not None and "." in dotted:
            yield dotted
            if dotted in _MATRIX_PRODUCT:
                yield "@"
    if isinstance(node, ast.Attribute) and node.attr in _MATRIX_METHODS:
        yield "@"
    if isinstance(node, ast.Call):
        function = node.func
        if isinstance(function, ast.Attribute) and _dotted(function, aliases) is None:
            yield _METHOD + function.attr
        elif isinstance(function, ast.Name):
            yield function.id


# --------------------------------------------------------------------------- while it runs


class Watch:
    """Stand-ins for the forbidden library functions; `used` collects the ones that were called.

    Args:
        is_learners(path): whether a file is the learner's.
        name: the part under check. parts: names of all parts of the stack in its module.
    """

    def __init__(
        self, is_learners: Callable[[str], bool], name: str, parts: Collection[str]
    ) -> None:
        self.used: set[str] = set()
        self._is_learners = is_learners
        self._others = frozenset(parts) - {name}
        self._frame: Callable[[int], FrameType] = sys._getframe

    def install(self, forbids: Collection[str], roots: Collection[str]) -> None:
        """Put a stand-in for each name whose package is loaded or in `roots` (will be)."""
        for name in forbids:
            module_name, _, attribute = name.rpartition(".")
            if not module_name or name.startswith(_METHOD):
                continue
            root = module_name.split(".")[0]
            if module_name not in sys.modules and root not in roots:
                continue
            try:
                module = importlib.import_module(module_name)
                original = getattr(module, attribute)
            except Exception:  # a library that cannot be loaded here; its import will say why
                continue
            # A stand-in for a class would break isinstance; the syntax tree must suffice there.
            if callable(original) and not isinstance(original, type):
                setattr(module, attribute, StandIn(name, original, self))

    def note(self, name: str) -> None:
        frame: FrameType | None = self._frame(2)
        if frame is None or not self._is_learners(frame.f_code.co_filename):
            return
        if frame.f_code.co_qualname.split(".")[0] not in self._others:
            self.used.add(name)


class StandIn:
    """Behaves as the library's function and notes who calls it."""

    def __init__(self, name: str, original: Any, watch: Watch) -> None:
        self._forbidden = (name, original, watch)

    def __call__(self, /, *arguments: Any, **named: Any) -> Any:
        name, original, watch = self._forbidden
        watch.note(name)
        return original(*arguments, **named)

    def __getattr__(self, attribute: str) -> Any:
        if attribute == "_forbidden":
            raise AttributeError(attribute)
        return getattr(self._forbidden[1], attribute)

    @property
    def name(self) -> str:
        """The forbidden name it stands for."""
        return str(self._forbidden[0])

    def __repr__(self) -> str:
        return repr(self._forbidden[1])
