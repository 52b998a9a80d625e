"""The profile's questions: what they accept, and what they say when they cannot read."""

from __future__ import annotations

from typing import Any

import pytest

from firsthand.course.answers import Malformed
from firsthand.course.profile import FIELDS, next_question, question

READABLE = [
    ("language", "English", "en"),
    ("level", "NumPy and CNNs", "NumPy and CNNs"),
    ("goals", "design a model; defend it", ["design a model", "defend it"]),
    ("time", "2 sessions of 45 minutes", {"per_week": 2, "minutes": 45}),
    ("focus", "3, 2, 3", [2, 3]),
    ("focus", "all", [1, 2, 3, 4, 5]),
    ("pacing", "time-boxed: 2026-01-31", {"kind": "time-boxed", "until": "2026-01-31"}),
    ("pacing", "Depth-First", {"kind": "depth-first"}),
    ("track", "100m", "100M"),
]
UNREADABLE = [
    ("language", "fr"),
    ("level", ""),
    ("level", "?"),
    ("goals", ";"),
    ("hardware", "no"),
    ("hardware", "yes please"),
    ("time", "often"),
    ("time", "3 x 600"),
    ("focus", "7"),
    ("focus", "attention"),
    ("tone", "shouting"),
    ("tone", "salary = 3"),
    ("pacing", "both"),
    ("pacing", "time-boxed tomorrow"),
    ("track", "1B"),
]


@pytest.mark.parametrize(("field", "answer", "value"), READABLE)
def test_readable(learner: Any, field: str, answer: str, value: Any) -> None:
    assert learner.sitting.change_profile(field, answer) == value
    assert learner.sitting.progress.profile[field].value == value


@pytest.mark.parametrize(("field", "answer"), UNREADABLE)
def test_unreadable_says_the_form_and_stores_nothing(learner: Any, field: str, answer: str) -> None:
    with pytest.raises(Malformed, match="An answer here is"):
        learner.sitting.change_profile(field, answer)
    assert field not in learner.sitting.progress.profile


def test_an_empty_answer_takes_the_proposal(learner: Any) -> None:
    today = learner.clock().date()
    for field in FIELDS:
        asked = question(field, learner.sitting.progress, learner.machine, today)
        if asked.proposal is not None:
            assert asked.read("  ") == asked.parse(asked.proposal)


def test_without_a_measured_machine_nothing_is_proposed(learner: Any) -> None:
    asked = question("hardware", learner.sitting.progress, None, learner.clock().date())
    assert asked.proposal is None
    assert asked.read("cores = 4, ram = 8 GB")["ram"] == 8.0


def test_the_questions_end(learner: Any) -> None:
    learner.go_on()
    now = learner.sitting.progress
    assert next_question(now, learner.machine, learner.clock().date()) is None


def test_a_change_is_one_more_event(learner: Any) -> None:
    learner.go_on()
    before = learner.log.events()
    learner.sitting.change_profile("track", "100M")
    assert learner.log.events()[:-1] == before
    assert learner.sitting.progress.profile["track"].value == "100M"
