"""Reviews: passed steps come back on fixed growing intervals, with fresh parameters.

Expanding against fixed intervals makes hardly a difference (Latimier et al. 2021, section 4), so
the intervals are a plain list: a right answer moves on in it, a wrong one goes back to its start.
A review never changes the gate.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from firsthand.course.outline import Outline
from firsthand.course.progress import Progress, StepProgress, review_seed
from firsthand.course.verdicts import Outcome

INTERVALS = (1, 3, 7, 16, 35)  # days
MOST_IN_A_SITTING = 3


@dataclass(frozen=True)
class ReviewDue:
    """The next review of a step. number: 1-based place in INTERVALS. due: UTC."""

    step: str
    title: str
    number: int
    seed: int
    due: datetime


def next_review(step: StepProgress) -> tuple[int, datetime] | None:
    """(0-based place in INTERVALS, when it is due); None where nothing is to come back.

    After a right answer on the last interval the step does not return.
    """
    if step.solved is None or not step.passed:
        return None
    place, since = 0, step.solved.at
    for attempt in step.reviews:
        if attempt.counted:
            place = place + 1 if attempt.outcome is Outcome.PASSED else 0
            since = attempt.at
    if place == len(INTERVALS):
        return None
    return place, datetime.fromisoformat(since) + timedelta(days=INTERVALS[place])


def scheduled_reviews(progress: Progress, outline: Outline) -> list[ReviewDue]:
    """Every review that is to come, the earliest first; ties in the order of the outline."""
    found = []
    for heading in outline.steps:
        coming = next_review(progress.steps[heading.id]) if heading.reviewable else None
        if coming is not None:
            place, due = coming
            seed = review_seed(heading.id, progress)
            found.append(ReviewDue(heading.id, heading.title, place + 1, seed, due))
    return sorted(found, key=lambda review: review.due)


def due_reviews(
    progress: Progress, outline: Outline, now: datetime, limit: int = MOST_IN_A_SITTING
) -> list[ReviewDue]:
    """The reviews that are due, the oldest first, at most `limit`. now: aware, any zone."""
    return [due for due in scheduled_reviews(progress, outline) if due.due <= now][: max(limit, 0)]
