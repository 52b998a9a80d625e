"""A small stack, a session and a workspace of their own, and one warm worker for a module."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from firsthand.course.checks.requests import Limits, Request, Run
from firsthand.course.checks.worker import Worker

STACK = {
    "__init__.py": "",
    "basics/__init__.py": "",
    "basics/sums.py": """
        import numpy as np
        from tiny_stack.basics.bends import bend

        def total(left, right):
            return float(np.sum(left * right))

        def bent_total(left, right):
            return bend(total(left, right))

        class Counter:
            def __init__(self):
                self.value = 0

            def add(self, amount):
                self.value += amount
                return self

            def take(self, amount):
                self.value -= amount
                return self
        """,
    "basics/bends.py": """
        def bend(x):
            return max(x, 0.0)

        def fold(x):
            return abs(x)
        """,
    "basics/towers.py": """
        from tiny_stack.basics.sums import total

        def tower(left, right):
            return [total(left, right)]
        """,
}
SESSION = """
    from tiny_stack.basics.sums import total

    def twice(part, left, right):
        return part(left, right) + part(left, right)

    def beside_reference(part, left, right):
        return (part(left, right), total(left, right))

    def lazily(part, left, right):
        from tiny_stack.basics.sums import total as reference

        return part(left, right) - reference(left, right)

    def count(part, amount):
        return part().add(amount).take(1).value
    """


def write(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))


@pytest.fixture(scope="package")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder on the import path with the stack `tiny_stack` and the session `tiny_session`."""
    folder = tmp_path_factory.mktemp("library")
    write(folder, {f"tiny_stack/{name}": text for name, text in STACK.items()})
    write(folder, {"tiny_session.py": SESSION})
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="package")
def worker(library: Path) -> Iterator[Worker]:
    with Worker() as warm:
        yield warm


@pytest.fixture
def request_for(tmp_path: Path, library: Path) -> Callable[..., Request]:
    """request_for(text of basics/sums.py, files=..., **fields) -> a request for its `total`."""
    workspace = tmp_path / "my_work"
    workspace.mkdir()

    def build(text: str | None, files: dict[str, str] | None = None, **fields: object) -> Request:
        write(workspace, files or {})
        if text is not None:
            write(workspace, {"basics/sums.py": text})
        request = Request(
            workspace=workspace,
            stack="tiny_stack",
            module="basics.sums",
            name="total",
            calls=((np.arange(3.0), np.ones(3)), (np.full(2, 2.0), np.ones(2))),
            limits=Limits(seconds=10.0, megabytes=512),
        )
        return replace(request, **fields)  # type: ignore[arg-type]

    return build


@pytest.fixture
def run(worker: Worker, request_for: Callable[..., Request]) -> Callable[..., Run]:
    """run(text, files=..., **fields) -> what the shared worker says of it."""
    return lambda *arguments, **fields: worker.execute(request_for(*arguments, **fields))
