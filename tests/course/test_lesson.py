"""The prose: cut by headings, computed when it is shown, no number typed."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.course.lesson import Lesson, LessonError, decimals, significant, typed_numbers
from firsthand.course.outline import Outline

TEXT = """# The title

Opening with {{ half }}.

## Predict: a guess {#guess}

Sum: {{ sum([1, 2]) }}, root {{ sqrt(16) | decimals(1) }}, {{ array.sum() }} and {{ 2 * half }}.
A set {#no-comment} and {% this is text %}.

## Build: a part {#part}

{{ EXPRESSION }}
"""


@pytest.fixture
def make(tmp_path: Path, small_outline: Outline) -> Any:
    session = replace(small_outline.session("1.1"), folder=tmp_path)

    def build(text: str, **names: Any) -> Lesson:
        (tmp_path / "lesson.md").write_text(text, encoding="utf-8")
        return Lesson(session, names)

    return build


def test_sections_are_cut_at_headings_and_computed(make: Any) -> None:
    lesson = make(TEXT, half=0.5, array=np.arange(4))
    assert list(lesson.sections) == ["", "1.1/guess", "1.1/part"]
    assert lesson.opening() == "Opening with 0.5."
    assert lesson.theory("1.1/guess") == (
        "Sum: 3, root 4.0, 6 and 1.0.\nA set {#no-comment} and {% this is text %}."
    )
    with pytest.raises(KeyError):
        lesson.theory("1.1/none")


@pytest.mark.parametrize(
    "expression",
    [
        "{{ unknown }}",
        "{{ 1 / 0 }}",
        "{{ half.nothing.at_all }}",
        "{{ [1][4] }}",
        "{{ half( }}",
        "{{ half | nofilter }}",
        "{{ 'a' + half }}",
        "{{ half | decimals('x') }}",
        "{{ ''.__class__.__mro__ }}",
        "{{ _private }}",
        "{{ sqrt(-1) }}",
    ],
)
def test_what_cannot_be_computed_names_its_step(make: Any, expression: str) -> None:
    text = TEXT.replace("{{ EXPRESSION }}", expression)
    lesson = make(text, half=0.5, array=np.arange(4), _private=3)
    assert lesson.opening()
    with pytest.raises(LessonError, match=r"lesson of 1\.1/part: "):
        lesson.theory("1.1/part")
    broken = make(f"# T\n\n{expression}\n", half=0.5)
    with pytest.raises(LessonError, match=r"lesson of 1\.1, the opening: "):
        broken.opening()


def test_a_lesson_cannot_reach_the_interpreter(make: Any) -> None:
    for expression in ("{{ f.__globals__ }}", "{{ f.__init__.__globals__['os'] }}"):
        with pytest.raises(LessonError):
            make(expression, f=test_a_lesson_cannot_reach_the_interpreter).opening()


@given(st.floats(-1e6, 1e6), st.integers(0, 8))
def test_decimals_keep_their_count_and_no_negative_zero(value: float, places: int) -> None:
    text = decimals(value, places)
    assert len(text.partition(".")[2]) == places
    assert abs(float(text) - value) <= 0.5 * 10.0**-places * (1 + 1e-9) + 1e-9
    assert not (text.startswith("-") and float(text) == 0)


@given(st.floats(1e-9, 1e9), st.integers(1, 8))
def test_significant_digits(value: float, digits: int) -> None:
    assert math.isclose(float(significant(value, digits)), value, rel_tol=10.0 ** (1 - digits))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("It takes 0.25 seconds.", ["0.25"]),
        ("It has 768 columns and 12 heads.", ["768"]),
        ("| a | 4096 |", ["4096"]),
        ("About -3.5 and (2.75).", ["3.5", "2.75"]),
        ("In 1958, Rosenblatt (section 3.2, table 4.1).", []),
        ("Two of 64 bits.", []),
        ("`np.zeros(1024)` and $x = 0.25$ and {{ 1000 * n }}", []),
        ("$$ y = 0.125 $$\n```text\n1024\n```\n## Build: 1024 {#b}", []),
        ("[here](https://a.b/1234.5) and arXiv:1706.03762", []),
        ("Python 3.11 and IEEE 754", []),
    ],
)
def test_typed_numbers(text: str, found: list[str]) -> None:
    assert typed_numbers(text) == found
