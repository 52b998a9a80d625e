"""Uses of library functions that a step forbids."""

from __future__ import annotations

import ast
from collections.abc import Callable
from pathlib import Path

import pytest

from firsthand.course.checks.forbidden import used_in_source
from firsthand.course.checks.requests import Limits, Returned, Run, RunStatus

Runner = Callable[..., Run]
FORBIDS = ("numpy.dot", "numpy.linalg.norm", "math.fsum", "@", "method:dot", "sum")


@pytest.mark.parametrize(
    ("head", "expression", "used"),
    [
        ("import numpy as np", "np.dot(left, right)", "numpy.dot"),
        ("import numpy", "numpy.dot(left, right)", "numpy.dot"),
        ("from numpy import dot as d", "d(left, right)", "numpy.dot"),
        ("import numpy as np\nd = np.dot", "d(left, right)", "numpy.dot"),
        ("import numpy as np", "getattr(np, 'do' + 't')(left, right)", "numpy.dot"),
        ("import numpy.linalg as la", "la.norm(left)", "numpy.linalg.norm"),
        ("from numpy import linalg", "linalg.norm(left)", "numpy.linalg.norm"),
        ("from numpy.linalg import norm", "norm(left)", "numpy.linalg.norm"),
        ("from math import fsum", "fsum(left * right)", "math.fsum"),
        ("", "left @ right", "@"),
        ("import operator", "operator.matmul(left, right)", "@"),
        ("", "left.__matmul__(right)", "@"),
        ("", "left.dot(right)", "method:dot"),
        ("", "(left * 1).dot(right)", "method:dot"),
        ("", "sum(left * right)", "sum"),
        ("def _help(a, b):\n    return a @ b", "_help(left, right)", "@"),
    ],
)
def test_a_use_is_reported(run: Runner, head: str, expression: str, used: str) -> None:
    got = run(f"{head}\ndef total(left, right):\n    return {expression}\n", forbids=FORBIDS)
    assert got.status is RunStatus.FINISHED
    assert got.used == (used,)
    assert all(isinstance(result, Returned) for result in got.results)


@pytest.mark.parametrize(
    ("head", "expression"),
    [
        ("import numpy as np", "float((left * right).mean())"),
        ("import numpy as np\nimport numpy.linalg", "np.linalg.det(np.eye(2))"),
        ("import numpy as np\ndef bent_total(a, b):\n    return np.dot(a, b) + a @ b", "1.0"),
        ("def bent_total(a, b):\n    return a @ b", "bent_total(left, right)"),
        (
            "import numpy as np\ndef bent_total(a, b):\n    return np.dot(a, b)",
            "bent_total(left, right)",
        ),
        ("def unused(a, b):\n    return a.dot(b)", "2.0"),
        ("def dot(a, b):\n    return 1.0", "dot(left, right)"),
    ],
)
def test_what_other_parts_or_other_names_do_is_not_reported(
    run: Runner, head: str, expression: str
) -> None:
    got = run(f"{head}\ndef total(left, right):\n    return {expression}\n", forbids=FORBIDS)
    assert got.status is RunStatus.FINISHED
    assert got.used == ()
    assert all(isinstance(result, Returned) for result in got.results)


def test_the_library_function_itself_under_the_parts_name_is_reported(run: Runner) -> None:
    assert run("from numpy import dot as total\n", forbids=FORBIDS).used == ("numpy.dot",)
    assert run("import numpy\ntotal = numpy.dot\n", forbids=FORBIDS).used == ("numpy.dot",)


def test_a_use_is_reported_with_a_failure_too(run: Runner) -> None:
    text = (
        "import numpy as np\ndef total(left, right):\n"
        "    np.dot(left, right)\n    while True: pass\n"
    )
    got = run(text, forbids=FORBIDS, limits=Limits(seconds=1.0))
    assert (got.status, got.used) == (RunStatus.TIME, ("numpy.dot",))
    got = run(text.replace("while True: pass", "raise ValueError"), forbids=FORBIDS)
    assert got.used == ("numpy.dot",)


def test_a_line_that_no_call_reaches_is_reported() -> None:
    text = "import numpy as np\ndef total(a, b):\n    if False:\n        return np.dot(a, b)\n"
    assert used_in_source(ast.parse(text), "total", ("numpy.dot",), ()) == {"numpy.dot"}


def test_methods_of_a_class_are_searched() -> None:
    text = "class Layer:\n    def forward(self, x):\n        return x @ self.w\n"
    assert used_in_source(ast.parse(text), "Layer", ("@",), ("Layer",)) == {"@"}


def test_a_library_that_cannot_be_loaded_is_the_files_affair(run: Runner, library: Path) -> None:
    (library / "broken_library.py").write_text("raise FileNotFoundError('no temporary folder')\n")
    good = "def total(left, right):\n    return float((left * right).sum())\n"
    forbids = ("broken_library.dot",)
    assert run(f"import broken_library\n{good}", forbids=forbids).status is RunStatus.IMPORT
    text = f"def unused():\n    import broken_library\n\n{good}"
    assert run(text, forbids=forbids).status is RunStatus.FINISHED
