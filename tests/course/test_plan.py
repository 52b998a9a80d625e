"""The plan: estimated from what is written, and cut at a date without touching the order."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

from firsthand.course.outline import Outline
from firsthand.course.plan import plan


def test_a_date_never_leaves_a_gap_in_the_order(learner: Any, small_outline: Outline) -> None:
    learner.go_on()
    long, *rest = small_outline.phases
    # One session of 200 minutes fits into 2 weeks of 3 hours; the 160 minutes that are left
    # would hold two of phase 2, which come after the ones left out.
    sessions = tuple(replace(session, minutes=200) for session in long.sessions)
    outline = Outline((replace(long, sessions=sessions), *rest), small_outline.root)
    today = learner.clock().date()
    learner.sitting.change_profile("pacing", f"time-boxed {today + timedelta(days=14)}")
    table = plan(outline, learner.sitting.progress, today)
    assert [row.left_out for row in table.rows] == [2, 12, 12, 12, 12]


def test_what_is_complete_is_not_planned_again(learner: Any) -> None:
    today = learner.clock().date()
    learner.go_on()
    before = plan(learner.outline, learner.sitting.progress, today)
    learner.pass_steps(3)
    after = plan(learner.outline, learner.sitting.progress, today)
    assert [row.complete for row in after.rows] == [1, 0, 0, 0, 0]
    # One hour less at three hours a week.
    assert round(before.weeks - after.weeks, 1) == 0.3
    assert before.hours == after.hours == 3 + 4 * 12


def test_focus_areas_are_marked(learner: Any) -> None:
    learner.go_on()
    learner.sitting.change_profile("focus", "2, 4")
    table = plan(learner.outline, learner.sitting.progress, learner.clock().date())
    assert [row.phase for row in table.rows if row.chosen] == [2, 4]
