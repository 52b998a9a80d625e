"""The reference as text."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.course.sources import (
    ModuleSource,
    PartName,
    SourceError,
    edited_part,
    execute_text,
    logical_lines,
    module_source,
    text_lines,
)

TEXT = '''"""A module."""

import math

LIMIT = 3
NAMED: int = 4


def shorten(text: str, width: int = 4) -> str:
    """Cut it."""
    # a comment
    if len(text) > width:
        text = text[
            :width
        ]
    else:
        text = text + "."
    return text


@property
def twice(self):
    return self.one + self.one


class Box:
    """Holds."""

    size = 1

    def grow(self) -> None:
        self.size += 1

    @staticmethod
    def make() -> "Box":
        return Box()
'''


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleSource:
    (tmp_path / "sourced_module.py").write_text(TEXT)
    monkeypatch.syspath_prepend(str(tmp_path))
    return ModuleSource("sourced_module")


@pytest.mark.parametrize("text", ["no_colon", ":name", "module:", "module:not a name", "a:b.c"])
def test_part_names_are_module_and_name(text: str) -> None:
    with pytest.raises(SourceError, match="a part is written"):
        PartName.parse(text)


def test_a_part_name_and_its_file() -> None:
    part = PartName.parse("model.attention:softmax")
    assert (part.module, part.name, str(part)) == (
        "model.attention",
        "softmax",
        "model.attention:softmax",
    )
    assert part.file == Path("model/attention.py")


def test_definitions_constants_and_imports(source: ModuleSource) -> None:
    assert list(source.definitions) == ["shorten", "twice", "Box"]
    assert list(source.constants) == ["LIMIT", "NAMED"]
    assert [ast.unparse(node) for node in source.imports] == ["import math"]
    assert source.method("Box", "grow").name == "grow"


def test_what_is_not_there(source: ModuleSource) -> None:
    with pytest.raises(SourceError, match="no function or class lengthen"):
        source.definition("lengthen")
    with pytest.raises(SourceError, match="class Box has no method shrink"):
        source.method("Box", "shrink")
    with pytest.raises(SourceError, match="no module sourced_module_2"):
        ModuleSource("sourced_module_2")


def test_segments_hold_their_decorators(source: ModuleSource) -> None:
    assert source.segment(source.definition("twice")).startswith("@property\ndef twice")
    assert source.segment(source.method("Box", "make")).startswith("    @staticmethod\n")
    assert source.segment(source.definition("Box")).endswith("return Box()\n")


def test_body_lines_are_logical_lines(source: ModuleSource) -> None:
    node = source.definition("shorten")
    assert isinstance(node, ast.FunctionDef)
    assert source.body_lines(node) == (
        "if len(text) > width:",
        "    text = text[:width]",
        "else:",
        "    text = text + '.'",
        "return text",
    )


def test_blocks_keep_their_heads() -> None:
    text = (
        "for a in b:\n    while a:\n        a -= 1\nwith open(f) as g, h:\n    g()\n"
        "try:\n    x()\nexcept E:\n    y()\n"
    )
    lines = list(logical_lines(ast.parse(text).body))
    assert ast.unparse(ast.parse("\n".join(lines))) == ast.unparse(ast.parse(text))
    assert lines[:3] == ["for a in b:", "    while a:", "        a -= 1"]


def test_an_edit_stays_within_its_part(source: ModuleSource) -> None:
    edited = source.edited("Box", (("return Box()", "return None"),))
    assert edited == TEXT.replace("return Box()", "return None")
    assert source.edited("shorten", ()) == TEXT
    for old, count in (("absent", 0), ("text", 7), ("self", 0)):
        with pytest.raises(SourceError, match=f"occurs {count} times in shorten"):
            source.edited("shorten", ((old, "new"),))


def test_edits_apply_one_after_the_other(source: ModuleSource) -> None:
    edited = source.edited("Box", (("size += 1", "size += 2"), ("size += 2", "size += 3")))
    assert "size += 3" in edited


def test_executed_text_is_a_module_of_its_own() -> None:
    module = execute_text("import dataclasses\nONE = 1\ndef f():\n    return ONE\n", "made_module")
    assert module.f() == 1
    assert sys.modules.pop("made_module") is module
    with pytest.raises(ZeroDivisionError):
        execute_text("1 / 0", "made_badly")
    assert "made_badly" not in sys.modules


def test_a_traceback_shows_the_executed_line() -> None:
    import traceback

    module = execute_text("def f():\n    return [][0]  # here\n", "made_for_a_traceback")
    with pytest.raises(IndexError) as caught:
        module.f()
    assert "return [][0]  # here" in "".join(traceback.format_exception(caught.value))


def test_an_edited_part_leaves_the_stack_alone() -> None:
    part = PartName.parse("foundations.neuron:dot_product")
    edited = edited_part("firsthand.llm", part, (("total += ", "total = "),), "a_test")
    assert edited(np.array([2.0, 3.0]), np.array([1.0, 1.0])) == 3.0
    original = module_source("firsthand.llm.foundations.neuron")
    assert "total += " in original.text


@given(st.text(alphabet=st.sampled_from("a\n\r\x0b\x0c\x1c\u2028\x85 #"), max_size=30))
def test_lines_are_counted_as_python_counts_them(text: str) -> None:
    lines = text_lines(text)
    assert "".join(lines) == text
    marked = text + "\nlast = 1\n"
    try:
        tree = ast.parse(marked)
    except SyntaxError:
        return
    number = tree.body[-1].lineno
    assert text_lines(marked)[number - 1].startswith("last = 1")
