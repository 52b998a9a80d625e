"""What the learner starts from: cut from the reference, never written a second time.

A function's starter is its signature, its docstring and `raise NotImplementedError`. A class keeps
whole every method that no step builds (they are given); the built ones are emptied like functions.
Helpers of the module that given code needs come along. Imports of modules in which the learner
builds something point to `mine`, the learner's own package.
"""

from __future__ import annotations

import ast
import textwrap
from collections.abc import Collection, Iterable, Iterator, Mapping
from copy import copy

from firsthand.course.sources import Definition, ModuleSource, PartName, module_source

BODY = "raise NotImplementedError"


Built = Mapping[str, Collection[str]]  # module -> names of the parts the learner builds in it


def file_header(source: ModuleSource, stack: str, built: Built) -> str:
    """The opening of a workspace file: a docstring and the reference's imports."""
    module = source.qualified_name.removeprefix(stack + ".")
    lines = [f'"""My own {module}.', "", "Checked by `firsthand learn` at each save.", '"""', ""]
    return "\n".join(lines) + "\n" + import_lines(source, stack, built)


def import_lines(source: ModuleSource, stack: str, built: Built) -> str:
    """The reference's imports; names of parts that the learner builds come from `mine`.

    Annotations are not evaluated, so that a helper may name a class that stands below it.
    """
    lines = ["from __future__ import annotations", ""]
    for node in source.imports:
        if isinstance(node, ast.ImportFrom) and node.module == "__future__":
            continue
        lines += [_import_text(item) for item in _redirected(node, stack, built)]
    return "\n".join(lines).rstrip() + "\n"


def missing_imports(
    source: ModuleSource, stack: str, built: Built, pieces: str, bound: Collection[str]
) -> str:
    """The reference's imports of names that `pieces` use and a file with `bound` names lacks."""
    used = used_names([ast.parse(pieces)]) - set(bound)
    lines: list[str] = []
    for node in source.imports:
        for item in _redirected(node, stack, built):
            if isinstance(item, ast.ImportFrom) and item.module == "__future__":
                continue
            item.names = [name for name in item.names if _bound_name(name) in used]
            if item.names:
                lines.append(_import_text(item))
    return "".join(f"{line}\n" for line in lines)


def _bound_name(alias: ast.alias) -> str:
    return alias.asname or alias.name.split(".")[0]


def _redirected(
    node: ast.Import | ast.ImportFrom, stack: str, built: Built
) -> list[ast.Import | ast.ImportFrom]:
    if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(stack + "."):
        return [copy(node)]
    assert node.module is not None
    inner = node.module.removeprefix(stack + ".")
    mine = [alias for alias in node.names if alias.name in built.get(inner, ())]
    rest = [alias for alias in node.names if alias not in mine]
    found: list[ast.Import | ast.ImportFrom] = []
    if rest:
        found.append(ast.ImportFrom(module=node.module, names=rest, level=0))
    if mine:
        found.append(ast.ImportFrom(module=f"mine.{inner}", names=mine, level=0))
    return found


def _import_text(node: ast.Import | ast.ImportFrom) -> str:
    text = ast.unparse(node)
    if len(text) > 100 and isinstance(node, ast.ImportFrom):
        names = "".join(f"    {ast.unparse(name)},\n" for name in node.names)
        text = f"from {node.module} import (\n{names})"
    return text


def part_starter(source: ModuleSource, name: str, built_methods: Collection[str] = ()) -> str:
    """The starter of one part, without imports or helpers."""
    node = source.definition(name)
    if isinstance(node, ast.FunctionDef):
        return emptied(source, node)
    return _class_starter(source, node, built_methods)


def emptied(source: ModuleSource, node: ast.FunctionDef) -> str:
    """Signature and docstring as written, the body replaced."""
    first, _ = source.span(node)
    docstring = _docstring_node(node)
    if docstring is not None:
        head_end = docstring.end_lineno or docstring.lineno
    else:
        head_end = node.body[0].lineno - 1
    head = "".join(source.lines[first - 1 : head_end])
    return f"{head}{' ' * (node.col_offset + 4)}{BODY}\n"


def _class_starter(source: ModuleSource, node: ast.ClassDef, built: Collection[str]) -> str:
    pieces: list[str] = []
    line = source.span(node)[0]
    for item in node.body:
        if isinstance(item, ast.FunctionDef) and item.name in built:
            first, last = source.span(item)
            pieces.append("".join(source.lines[line - 1 : first - 1]))
            pieces.append(emptied(source, item))
            line = last + 1
    pieces.append("".join(source.lines[line - 1 : node.end_lineno]))
    return "".join(pieces)


def _docstring_node(node: Definition) -> ast.expr | None:
    first = node.body[0]
    if (
        isinstance(first, ast.Expr)
        and isinstance(first.value, ast.Constant)
        and isinstance(first.value.value, str)
    ):
        return first.value
    return None


def helpers(source: ModuleSource, name: str, all_parts: Collection[str]) -> list[str]:
    """Names of the module that come along with a part, in the module's order.

    With a function what it uses, directly or not. With a class everything: functions beside a class
    make or take its objects, and those of the stack's class would not fit the learner's. Other
    parts are left out: they are the learner's, or a starter of their own.
    """
    node = source.definition(name)
    everything = [*source.constants, *source.definitions]
    wanted: set[str] = set()
    if isinstance(node, ast.ClassDef):
        wanted = set(everything) - {name, *all_parts, *_entry_points(source)}
    # The body to be written may lean on the same small helpers as the given code: they are given.
    queue = used_names([node])
    while queue:
        current = queue.pop()
        if current in wanted or current == name or current in all_parts:
            continue
        definition = source.definitions.get(current) or source.constants.get(current)
        if definition is None:
            continue
        wanted.add(current)
        queue |= used_names([definition])
    positions = {
        item: (source.definitions.get(item) or source.constants[item]).lineno for item in everything
    }
    return sorted(wanted, key=lambda item: positions[item])


def _entry_points(source: ModuleSource) -> set[str]:
    """`main` of a module that can be run: it belongs to the stack."""
    return {name for name in source.definitions if name == "main"}


def shared_names(source: ModuleSource, parts: Collection[str]) -> set[str]:
    """The names that others import from the learner's twin of a module: parts, what came along."""
    found = set(parts)
    for name in parts:
        if isinstance(source.definition(name), ast.ClassDef):
            found |= set(helpers(source, name, parts))
    return found


def used_names(nodes: Iterable[ast.AST]) -> set[str]:
    found: set[str] = set()
    for node in nodes:
        for item in ast.walk(node):
            if isinstance(item, ast.Name):
                found.add(item.id)
            elif isinstance(item, ast.Constant) and isinstance(item.value, str):
                text = item.value  # a quoted annotation: "Scalar | float"
                if len(text) < 60 and "\n" not in text:
                    found |= set(filter(str.isidentifier, text.replace("|", " ").split()))
    return found


def helper_text(source: ModuleSource, name: str) -> str:
    node = source.definitions.get(name) or source.constants[name]
    return source.segment(node)


def parsed(text: str) -> ast.Module | None:
    """The tree of a learner's file; None while it does not parse, for whatever reason."""
    try:
        return ast.parse(text.removeprefix("\ufeff"))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def defined_names(text: str) -> set[str] | None:
    """Top-level names that a workspace file defines; None while it does not parse."""
    tree = parsed(text)
    if tree is None:
        return None
    found: set[str] = set()
    for node in _statements(tree.body):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {item.id for item in node.targets if isinstance(item, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            found |= {_bound_name(item) for item in node.names}
    return found


def _statements(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """What runs at the top level, inside `if`, `try` and the like too."""
    for node in body:
        yield node
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            blocks = [getattr(node, name, []) for name in ("body", "orelse", "finalbody")]
            blocks += [handler.body for handler in getattr(node, "handlers", [])]
            for block in blocks:
                if isinstance(block, list):
                    yield from _statements(block)


def methods_missing(text: str, name: str, methods: Collection[str]) -> list[str]:
    """Methods that the file's class `name` does not define yet."""
    tree = parsed(text)
    for node in tree.body if tree else ():
        if isinstance(node, ast.ClassDef) and node.name == name:
            present = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
            return [method for method in methods if method not in present]
    return []


def starter_source(stack: str, part: PartName) -> ModuleSource:
    return module_source(f"{stack}.{part.module}")


def docstring_of(source: ModuleSource, name: str, method: str | None = None) -> str:
    """The docstring of a part or of one of its methods, dedented; '' where there is none."""
    node = source.method(name, method) if method else source.definition(name)
    return textwrap.dedent(ast.get_docstring(node) or "")
