"""The child process with SymPy: told a pair of trees as JSON, it says whether they are equal.

Run as a script by `course.algebra`; one JSON object a line in, one out. It receives trees
that passed the whitelist of `expressions`, never text to evaluate. It may still hang or exhaust its
memory on a legal expression; `course.algebra` then kills it, and only it.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

MEGABYTES = 2048
DIGITS = 60


def limit_memory() -> None:
    """Bound the address space where the system can do so."""
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (MEGABYTES << 20, MEGABYTES << 20))
    except (ImportError, ValueError, OSError):
        return


def build(tree: Sequence[Any], symbols: dict[str, Any]) -> Any:
    """The SymPy expression of a tree."""
    import sympy as sp

    head = tree[0]
    if head == "num":
        return sp.Rational(tree[1])
    if head == "sym":
        return sp.pi if tree[1] == "pi" and "pi" not in symbols else symbols[tree[1]]
    if head == "call":
        arguments = [build(item, symbols) for item in tree[2:]]
        x = arguments[0]
        composed = {
            "sigmoid": lambda: 1 / (1 + sp.exp(-x)),
            "relu": lambda: sp.Max(0, x),
            "softplus": lambda: sp.log(1 + sp.exp(x)),
            "abs": lambda: sp.Abs(x),
            "max": lambda: sp.Max(*arguments),
            "min": lambda: sp.Min(*arguments),
            "sum": lambda: sp.Add(*arguments),
        }
        if tree[1] in composed:
            return composed[tree[1]]()
        known = ("exp", "log", "sqrt", "tanh", "sinh", "cosh", "sin", "cos", "erf", "sign")
        return getattr(sp, tree[1])(x) if tree[1] in known else sp.Function(tree[1])(x)
    if head == "neg":
        return -build(tree[1], symbols)
    left, right = build(tree[1], symbols), build(tree[2], symbols)
    if head == "+":
        return left + right
    if head == "-":
        return left - right
    if head == "*":
        return left * right
    return left / right if head == "/" else left**right


def compare(request: dict[str, Any]) -> dict[str, Any]:
    """{'state': 'equal' | 'unknown'} or {'state': 'different', 'point': index}.

    Different is said only with a point, evaluated with 60 digits, where the two values differ.
    """
    import sympy as sp

    positive = set(request["positive"])
    symbols = {
        name: sp.Symbol(name, real=True, positive=True if name in positive else None)
        for name in request["symbols"]
    }
    answer, expected = build(request["answer"], symbols), build(request["expected"], symbols)
    difference = answer - expected
    if difference == 0:
        return {"state": "equal"}
    for index, point in enumerate(request["points"]):
        values = {symbols[name]: sp.Rational(text) for name, text in point.items()}
        gap = difference.subs(values).evalf(DIGITS)
        size = abs(expected.subs(values).evalf(DIGITS)) + 1
        if (
            gap.is_number
            and gap.is_finite
            and abs(gap) > size * sp.Rational(1, 10 ** (DIGITS // 2))
        ):
            return {"state": "different", "point": index}
    if sp.expand(difference) == 0 or sp.simplify(difference) == 0:
        return {"state": "equal"}
    return {"state": "unknown"}


def main() -> None:
    """Serve requests until the input ends."""
    limit_memory()
    import sympy  # noqa: F401  the warm-up is the point

    output = sys.stdout
    output.write(json.dumps({"state": "ready"}) + "\n")
    output.flush()
    for line in sys.stdin:
        try:
            reply = compare(json.loads(line))
        except Exception as error:  # a reply for everything: the parent decides without it
            reply = {"state": "unknown", "message": f"{type(error).__name__}: {error}"[:300]}
        output.write(json.dumps(reply) + "\n")
        output.flush()


if __name__ == "__main__":
    main()
