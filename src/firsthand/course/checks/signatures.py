"""What a signature says of the calls that it takes."""

from __future__ import annotations

import ast


def parameters_of(signature: str) -> list[str] | None:
    """Parameter names and kinds of `(a, b=1, *, c)`; None when the text cannot be read."""
    try:
        node = ast.parse(f"def part{signature}: ...").body[0]
    except SyntaxError:
        return None
    assert isinstance(node, ast.FunctionDef)
    spec = node.args
    names = [item.arg for item in spec.posonlyargs + spec.args]
    if spec.vararg:
        names.append(f"*{spec.vararg.arg}")
    elif spec.kwonlyargs:
        names.append("*")
    names += [item.arg for item in spec.kwonlyargs]
    if spec.kwarg:
        names.append(f"**{spec.kwarg.arg}")
    return names


def takes(signature: str, wanted: list[str]) -> bool:
    """Whether a call by the parameters `wanted` is a call of `(a, b=1, *, c)` too (PROTOCOL G4).

    What it has beyond them must be optional: a default, `*rest` or `**named`. A signature of
    nothing but `*rest, **named` is that of a decorator and takes any call.
    """
    if parameters_of(signature) == wanted:
        return True
    node = ast.parse(f"def part{signature}: ...").body[0]
    assert isinstance(node, ast.FunctionDef)
    spec = node.args
    if any(name[0] == "*" for name in wanted):
        return False
    ordered = [item.arg for item in spec.posonlyargs + spec.args]
    if not ordered and not spec.kwonlyargs:
        return spec.vararg is not None and spec.kwarg is not None
    optional = len(ordered) - len(spec.defaults)
    return (
        ordered[: len(wanted)] == wanted
        and optional <= len(wanted)
        and all(default is not None for default in spec.kw_defaults)
    )
