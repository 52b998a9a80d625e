"""What the learner starts from is cut from the reference."""

from __future__ import annotations

import ast
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from firsthand.course import starters
from firsthand.course.sources import ModuleSource, PartName

FILES = {
    "__init__.py": "",
    "shapes/__init__.py": "",
    "shapes/sizes.py": """
        def area(width, height):
            return width * height

        def unit():
            return 1
        """,
    "shapes/boxes.py": '''
        """Boxes."""

        from __future__ import annotations

        import math
        from starter_stack.shapes.sizes import area, unit
        from collections.abc import Callable

        LIMIT = 3
        SPARE = 4


        def doubled(value: float) -> float:
            """Twice."""
            return _helped(value) + LIMIT


        def _helped(value: float) -> float:
            return value


        def undocumented(value):
            # a comment
            return value


        class Box:
            """Holds."""

            size = LIMIT

            def __init__(self, width: float) -> None:
                self.width = width

            def grow(
                self, by: float
            ) -> Box:
                """Larger.

                By `by`.
                """
                return Box(self.width + by)

            @staticmethod
            def made() -> Box:
                return as_box(unit())


        def as_box(value: "Box | float") -> Box:
            return value if isinstance(value, Box) else Box(value)


        def main() -> None:
            print(area(1, 2))
        ''',
}


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleSource]:
    for name, text in FILES.items():
        path = tmp_path / "starter_stack" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip())
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ModuleSource("starter_stack.shapes.boxes")
    for name in [name for name in sys.modules if name.startswith("starter_stack")]:
        del sys.modules[name]


def test_a_function_keeps_its_signature_and_docstring(source: ModuleSource) -> None:
    assert starters.part_starter(source, "doubled") == (
        'def doubled(value: float) -> float:\n    """Twice."""\n    raise NotImplementedError\n'
    )
    assert starters.part_starter(source, "undocumented").endswith("    raise NotImplementedError\n")
    assert "return" not in starters.part_starter(source, "undocumented")


def test_a_class_keeps_given_methods_and_empties_the_built_ones(source: ModuleSource) -> None:
    text = starters.part_starter(source, "Box", ("grow", "made"))
    node = ast.parse(text).body[0]
    assert isinstance(node, ast.ClassDef)
    bodies = {
        item.name: ast.unparse(item.body[-1])
        for item in node.body
        if isinstance(item, ast.FunctionDef)
    }
    assert bodies == {
        "__init__": "self.width = width",
        "grow": "raise NotImplementedError",
        "made": "raise NotImplementedError",
    }
    assert "size = LIMIT" in text
    assert "By `by`." in text
    assert "@staticmethod\n    def made" in text
    assert starters.part_starter(source, "Box") == source.segment(source.definition("Box"))


def test_no_line_of_a_built_body_is_left(source: ModuleSource) -> None:
    for name, methods in (("doubled", ()), ("Box", ("grow", "made", "__init__"))):
        text = starters.part_starter(source, name, methods)
        for line in ("_helped(value) + LIMIT", "self.width + by", "unit()", "self.width = width"):
            assert line not in text


def test_the_header_takes_built_names_from_mine_and_the_rest_from_the_stack(
    source: ModuleSource,
) -> None:
    header = starters.file_header(source, "starter_stack", {"shapes.sizes": {"area"}})
    assert header.startswith('"""My own shapes.boxes.\n')
    lines = header.splitlines()
    assert lines.count("from __future__ import annotations") == 1
    assert lines[-4:] == [
        "import math",
        "from starter_stack.shapes.sizes import unit",
        "from mine.shapes.sizes import area",
        "from collections.abc import Callable",
    ]
    none = starters.import_lines(source, "starter_stack", {})
    assert "from starter_stack.shapes.sizes import area, unit" in none
    both = starters.import_lines(source, "starter_stack", {"shapes.sizes": {"area", "unit"}})
    assert "starter_stack" not in both
    ast.parse(header)


def test_a_long_import_is_wrapped(source: ModuleSource, tmp_path: Path) -> None:
    names = ", ".join(f"a_rather_long_name_{number}" for number in range(8))
    long = ModuleSource.from_text(source, f"from starter_stack.shapes.sizes import {names}\n")
    text = starters.import_lines(long, "starter_stack", {})
    assert max(map(len, text.splitlines())) <= 100
    assert len(ast.parse(text).body[1].names) == 8  # type: ignore[attr-defined]


def test_helpers_of_a_function_are_what_it_uses(source: ModuleSource) -> None:
    assert starters.helpers(source, "doubled", {"doubled"}) == ["LIMIT", "_helped"]
    assert starters.helpers(source, "doubled", {"doubled", "_helped"}) == ["LIMIT"]
    assert starters.helpers(source, "undocumented", {"undocumented"}) == []
    assert starters.helpers(source, "as_box", {"as_box"}) == ["LIMIT", "Box"]


def test_helpers_of_a_class_are_the_whole_module_but_its_entry_point(
    source: ModuleSource,
) -> None:
    assert starters.helpers(source, "Box", {"Box", "doubled"}) == [
        "LIMIT",
        "SPARE",
        "_helped",
        "undocumented",
        "as_box",
    ]
    assert starters.helper_text(source, "LIMIT") == "LIMIT = 3\n"
    assert starters.helper_text(source, "_helped").startswith("def _helped")


def test_shared_names_are_the_parts_and_what_comes_with_a_class(source: ModuleSource) -> None:
    assert starters.shared_names(source, {"doubled"}) == {"doubled"}
    assert "as_box" in starters.shared_names(source, {"Box"})


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (
            "import numpy as np\nimport os.path\nfrom a import b as c, d\nX = 1\nY: int = 2\n"
            "Z: int\ndef f(): ...\nclass G: ...\nif X:\n    W = 1\n",
            {"np", "os", "c", "d", "X", "Y", "Z", "f", "G", "W"},
        ),
        ("", set()),
        ("\ufeffX = 1\n", {"X"}),
        ("def f(:\n", None),
        ("x = '\0'\n", None),
        ("(" * 5000, None),
    ],
    ids=["all", "empty", "byte order mark", "syntax", "null", "nested"],
)
def test_defined_names(text: str, names: set[str] | None) -> None:
    assert starters.defined_names(text) == names


def test_missing_methods() -> None:
    text = "class A:\n    def f(self): ...\n\nclass B:\n    def g(self): ...\n"
    assert starters.methods_missing(text, "A", ("f", "g", "h")) == ["g", "h"]
    assert starters.methods_missing(text, "C", ("f",)) == []
    assert starters.methods_missing("class A(:", "A", ("f",)) == []


def test_docstrings(source: ModuleSource) -> None:
    assert starters.docstring_of(source, "doubled") == "Twice."
    assert starters.docstring_of(source, "Box", "grow") == "Larger.\n\nBy `by`."
    assert starters.docstring_of(source, "undocumented") == ""


def test_the_stack_of_a_part() -> None:
    part = PartName.parse("foundations.neuron:layer")
    source = starters.starter_source("firsthand.llm", part)
    assert source.qualified_name == "firsthand.llm.foundations.neuron"
