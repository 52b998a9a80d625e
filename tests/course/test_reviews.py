"""Reviews come back on growing intervals, with fresh seeds, a few in a sitting."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from firsthand.course.reviews import INTERVALS, due_reviews, scheduled_reviews
from firsthand.course.screens import Review
from firsthand.course.verdicts import Outcome


def review(learner: Any, make_verdict: Any, outcome: Outcome) -> int:
    """Answer the first review of a new sitting; its seed."""
    learner.sit_down()
    for screen in learner.screens():
        if isinstance(screen, Review):
            learner.sitting.answer(screen, make_verdict(outcome), "answer")
            return screen.seed
    raise AssertionError("no review was asked")


def first_due(learner: Any, step: str) -> timedelta | None:
    coming = scheduled_reviews(learner.sitting.progress, learner.outline)
    return next((item.due - learner.clock() for item in coming if item.step == step), None)


def test_intervals_grow_while_the_answers_are_right(learner: Any, make_verdict: Any) -> None:
    learner.pass_steps(2)  # a Build, which is not reviewed, and a Predict
    seeds = []
    for days in INTERVALS:
        assert first_due(learner, "1.1/guess") == timedelta(days=days)
        now = learner.clock() + timedelta(days=days, seconds=-1)
        assert due_reviews(learner.sitting.progress, learner.outline, now) == []
        learner.clock.pass_by(days=days)
        seeds.append(review(learner, make_verdict, Outcome.PASSED))
    assert first_due(learner, "1.1/guess") is None
    assert len(set(seeds)) == len(INTERVALS)


def test_a_wrong_answer_goes_back_to_the_first_interval(learner: Any, make_verdict: Any) -> None:
    learner.pass_steps(2)
    learner.clock.pass_by(days=1)
    review(learner, make_verdict, Outcome.PASSED)
    learner.clock.pass_by(days=3)
    gate = learner.sitting.progress.steps["1.1/guess"].gate
    review(learner, make_verdict, Outcome.WRONG)
    assert first_due(learner, "1.1/guess") == timedelta(days=1)
    assert learner.sitting.progress.steps["1.1/guess"].gate == gate


def test_an_unreadable_answer_asks_the_same_again(learner: Any, make_verdict: Any) -> None:
    learner.pass_steps(2)
    learner.clock.pass_by(days=1)
    seed = review(learner, make_verdict, Outcome.MALFORMED)
    again = learner.sitting.next()
    assert isinstance(again, Review)
    assert again.seed == seed


def test_a_review_that_cannot_be_decided_waits_for_the_next_sitting(
    learner: Any, make_verdict: Any
) -> None:
    learner.pass_steps(2)
    learner.clock.pass_by(days=1)
    seed = review(learner, make_verdict, Outcome.UNDECIDED)
    assert learner.sitting.next().name == "any questions"
    assert review(learner, make_verdict, Outcome.PASSED) == seed


def test_at_most_three_in_a_sitting_the_oldest_first(learner: Any) -> None:
    for _ in range(6):  # guess, order, slope, trace among them
        learner.pass_steps(1)
        learner.clock.pass_by(minutes=1)
    learner.clock.pass_by(days=2)
    learner.sit_down()
    asked = [screen for screen in learner.screens() if isinstance(screen, Review)]
    assert [screen.step for screen in asked] == ["1.1/guess", "1.1/order", "1.2/slope"]
    assert [(screen.number, screen.of) for screen in asked] == [(1, 3), (2, 3), (3, 3)]
    learner.sit_down()
    rest = [screen for screen in learner.screens() if isinstance(screen, Review)]
    assert [screen.step for screen in rest] == ["1.3/trace"]
