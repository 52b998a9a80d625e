"""The outline is read from phase.toml, session.toml and the headings of lesson.md alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from firsthand.course.loading import Course
from firsthand.course.outline import HEADING, OutlineError, read_outline

PHASE = 'title = "T{n}"\nfocus = "f"\nhands_on = "h"\nhours = 3\nsessions = 4\n'
LESSON = """# A title

Opening words.

## Predict: what it weighs {#what}

Prose with {#no-heading} in it.

## Build: the part {#the-part}
"""
SESSION = """
title = "S"
objective = "o"
minutes = 55
able = ["a"]
[concepts.first]
title = "First"
proofs = ["what", "1.1/the-part"]
[[resources]]
title = "R"
kind = "book"
where = "chapter 1"
"""


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


@pytest.fixture
def two_phases(tmp_path: Path) -> Path:
    return write(
        tmp_path,
        {
            "phase_1_one/phase.toml": PHASE.format(n=1),
            "phase_1_one/session_01_a/session.toml": SESSION,
            "phase_1_one/session_01_a/lesson.md": LESSON,
            "phase_1_one/session_02_b/session.toml": SESSION,
            "phase_1_one/session_02_b/lesson.md": LESSON,
            "phase_2_two/phase.toml": PHASE.format(n=2),
            "phase_2_two/session_01_c/session.toml": 'requires = ["1.1"]\nmachine = "gpu"\n'
            + SESSION,
            "phase_2_two/session_01_c/lesson.md": LESSON,
        },
    )


def test_ids_headings_and_defaults(two_phases: Path) -> None:
    outline = read_outline(two_phases)
    assert [session.id for session in outline.sessions] == ["1.1", "1.2", "2.1"]
    first, second, third = outline.sessions
    assert [(step.id, step.kind, step.title, step.anchor) for step in first.steps] == [
        ("1.1/what", "Predict", "what it weighs", "what"),
        ("1.1/the-part", "Build", "the part", "the-part"),
    ]
    assert [step.reviewable for step in first.steps] == [True, False]
    assert (first.requires, second.requires, third.requires) == ((), ("1.1",), ("1.1",))
    assert (first.machine, third.machine) == ("any", "gpu")
    assert first.concepts[0].proofs == ("1.1/what", "1.1/the-part")
    assert second.concepts[0].proofs == ("1.2/what", "1.1/the-part")  # a full id stays
    assert (third.package, third.minutes) == ("phase_2_two.session_01_c", 55)
    assert [phase.planned_sessions for phase in outline.phases] == [4, 4]


def test_the_first_session_of_a_phase_requires_the_last_of_the_phase_before(
    two_phases: Path,
) -> None:
    write(two_phases, {"phase_2_two/session_01_c/session.toml": SESSION})
    assert read_outline(two_phases).session("2.1").requires == ("1.2",)


def test_look_ups(two_phases: Path) -> None:
    outline = read_outline(two_phases)
    assert outline.step("1.2/what").session == "1.2"
    assert "1.2/what" in outline
    assert "2.1" in outline
    assert "9.9" not in outline
    for look_up in (outline.step, outline.session):
        with pytest.raises(KeyError):
            look_up("9.9/no")
    assert [step.id for step in outline.find_steps("1.2/what")] == ["1.2/what"]
    assert [step.id for step in outline.find_steps("what")] == ["1.1/what", "1.2/what", "2.1/what"]
    assert [step.id for step in outline.find_steps("2.1/the")] == ["2.1/the-part"]
    assert outline.find_steps("") == ()
    assert [concept.id for concept in outline.concepts_of("1.1/what")] == ["first"]


@pytest.mark.parametrize(
    ("files", "named"),
    [
        ({"phase_1_one/phase.toml": 'title = "only"\n'}, "phase_1_one/phase.toml: the key 'focus'"),
        ({"phase_1_one/phase.toml": "title = \n"}, "phase_1_one/phase.toml: "),
        (
            {"phase_1_one/session_01_a/session.toml": SESSION.replace("minutes = 55\n", "")},
            "session_01_a/session.toml: the key 'minutes' is missing",
        ),
        (
            {"phase_1_one/session_01_a/session.toml": SESSION + 'when = "2020"\n'},
            "session_01_a/session.toml: .*when",
        ),
        ({"phase_1_one/session_03_d/session.toml": SESSION}, "session_03_d/lesson.md: No such"),
    ],
    ids=["phase key", "no TOML", "session key", "unknown key of a resource", "no lesson"],
)
def test_an_error_names_the_file(two_phases: Path, files: dict[str, str], named: str) -> None:
    write(two_phases, files)
    with pytest.raises(OutlineError, match=named):
        read_outline(two_phases)


def test_a_folder_without_phases(tmp_path: Path) -> None:
    with pytest.raises(OutlineError, match=r"no phase_<n>_<name>/phase.toml"):
        read_outline(tmp_path)


@pytest.mark.parametrize(
    "line",
    [
        "## Guess: what {#what}",
        "### Predict: what {#what}",
        "## Predict what {#what}",
        "## Predict: what {#What}",
        "## Predict: what",
    ],
)
def test_what_is_no_heading_of_a_step(line: str) -> None:
    assert HEADING.search(line) is None


def test_the_outline_alone_imports_no_session_and_no_numpy() -> None:
    code = (
        "import sys; from firsthand.course.loading import Course;"
        "assert len(Course().outline.sessions) > 0;"
        "print([n for n in sys.modules if n == 'numpy' or '.session_' in n])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_real_outline_and_its_copy(
    real_course: Course, copied_course: Callable[..., Course]
) -> None:
    copy = copied_course().outline.sessions
    assert [step.id for step in copy[0].steps] == [
        step.id for step in real_course.outline.session("1.1").steps
    ]
