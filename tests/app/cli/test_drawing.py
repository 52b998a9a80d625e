"""What is drawn, without a terminal around it."""

from __future__ import annotations

import io

from rich.console import Console, RenderableType

from firsthand.app.cli import drawing
from firsthand.app.cli.terminal import THEME, cut
from firsthand.course.answers import Malformed
from firsthand.course.plan import Plan, PlanRow
from firsthand.course.verdicts import Evidence, Outcome, Verdict


def drawn(item: RenderableType, width: int = 80) -> str:
    console = Console(file=io.StringIO(), width=width, theme=THEME, highlight=False)
    console.print(item)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())  # type: ignore[attr-defined]


def plan_of(*chosen: bool) -> Plan:
    rows = tuple(
        PlanRow(number, f"Phase {number}", "focus", "hands", 12, 12, 0, "written", chosen=mark)
        for number, mark in enumerate(chosen, start=1)
    )
    return Plan(rows, ("write " + "a neuron and " * 12,), "depth-first", "10M", 24, 8)


def test_a_focus_is_marked_only_where_it_says_something() -> None:
    assert "your focus" not in drawn(drawing.plan_table(plan_of(True, True)))
    assert "your focus" not in drawn(drawing.plan_table(plan_of(False, False)))
    some = " ".join(drawn(drawing.plan_table(plan_of(True, False)), 200).split())
    assert some.count("(your focus)") == 1
    assert "Phase 1 (your focus)" in some


def test_lists_wrap_below_their_own_beginning() -> None:
    text = drawn(drawing.plan_table(plan_of(True)))
    first, *others = text.split("You will be able to:\n")[1].splitlines()
    assert first.startswith("- write")
    assert others
    assert all(line.startswith("  ") for line in others)


def test_a_malformed_answer_is_told_its_form_once() -> None:
    malformed = Malformed("`x` is not a number.", "a number, for example `1.5`")
    verdict = Verdict(
        Outcome.MALFORMED,
        str(malformed),
        (Evidence("form", malformed.form), Evidence("read", "x9")),
    )
    shown = " ".join(drawn(drawing.verdict(verdict)).split())
    assert shown.count("a number, for example") == 1
    assert "read x9" in shown


def test_what_code_prints_moves_no_cursor() -> None:
    hostile = "a\x1b[2Jb\rc\x9bd\u202ee\x00\x07"
    verdict = Verdict(Outcome.BROKEN, f"It said {hostile}.", (Evidence("printed", hostile),))
    shown = drawn(drawing.verdict(verdict))
    for character in "\x1b\r\x9b\u202e\x00\x07":
        assert character not in shown
    assert "\\x1b[2J" in shown
    assert drawing.visible("two\nlines\tand é") == "two\nlines\tand é"


def test_long_titles_are_cut_not_wrapped() -> None:
    assert cut("short", 5) == "short"
    assert cut("a longer title", 8) == "a lon..."
    line = drawn(drawing._two_ends("  1.1  " + "a very long title " * 6, "3 of 9 steps, open"), 80)
    assert len(line.splitlines()) == 1
    assert "... " in line
    assert line.endswith(" 3 of 9 steps, open")
