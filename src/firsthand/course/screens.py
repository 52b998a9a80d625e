"""What a sitting can show, one at a time. Small frozen records: the faces draw them.

`name` is what the log keeps of a screen that was seen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

from firsthand.course.gate import Rung
from firsthand.course.outline import Resource
from firsthand.course.plan import Plan
from firsthand.course.profile import ProfileQuestion
from firsthand.course.progress import Mastery
from firsthand.course.recap import FirstSession, LaterSession, Loaded, SessionSummary


@dataclass(frozen=True)
class Screen:
    """One thing at a time. asks: nothing follows it until it is answered (C2)."""

    name: ClassVar[str] = ""
    asks: ClassVar[bool] = False


@dataclass(frozen=True)
class Welcome(Screen):
    """Greeting and title, before the first question of the profile (B1)."""

    name = "welcome"
    title: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class ProfileScreen(Screen):
    """One question of the profile (A1)."""

    name = "profile"
    asks = True
    question: ProfileQuestion


@dataclass(frozen=True)
class PlanScreen(Screen):
    """The plan, what one will be able to do, and an explicit start (A5)."""

    name = "plan"
    asks = True
    plan: Plan


@dataclass(frozen=True)
class Opening(Screen):
    """The recap: of the first session (B1) or of a later one (B2), and what was loaded (B5)."""

    name = "opening"
    loaded: Loaded
    first: FirstSession | None = None
    later: LaterSession | None = None


@dataclass(frozen=True)
class Review(Screen):
    """A due review, fresh parameters; one attempt. number of `of` in this sitting."""

    name = "review"
    asks = True
    step: str
    title: str
    seed: int
    number: int
    of: int


@dataclass(frozen=True)
class AnyQuestions(Screen):
    """ "Any questions?" and stop (B1, B2)."""

    name = "any questions"


@dataclass(frozen=True)
class StepScreen(Screen):
    """A step: its theory, if `theory`, then one question.

    seed: of this question, fresh at each attempt. visit_seed: the same for all attempts until the
    rung changes; it picks what must not change under the learner's hands, such as the fault of a
    Debug step. used: attempts used at this rung, of `of`. ask_simplify: offer "pause or simplify?"
    (C5). hints: shown so far.
    """

    name = "step"
    asks = True
    step: str
    kind: str
    title: str
    session: str
    rung: Rung
    seed: int
    visit_seed: int
    used: int
    of: int
    theory: bool = field(compare=False)
    ask_simplify: bool
    hints: int = field(compare=False)


@dataclass(frozen=True)
class WorkedScreen(Screen):
    """The worked example: read, then back to the step with fresh numbers."""

    name = "worked"
    step: str
    kind: str
    title: str
    session: str
    seed: int


@dataclass(frozen=True)
class MasteryScreen(Screen):
    """A concept is mastered: its proofs and what to read outside (D4, D5)."""

    name = "mastery"
    mastery: Mastery
    resources: tuple[Resource, ...]
    milestone: str | None  # the title of a phase that is complete with it


@dataclass(frozen=True)
class SessionEnd(Screen):
    """The summary of a session (B4). An export is offered here (F1)."""

    name = "session end"
    summary: SessionSummary
    export: bool = True


@dataclass(frozen=True)
class TimeSuggestion(Screen):
    """About an hour has passed: a proposal to stop, at a break, once (B3)."""

    name = "time"
    minutes: int
    next_step: str | None


@dataclass(frozen=True)
class OtherMachine(Screen):
    """The next session belongs on another machine (F5). may_go_on: it can be done here too."""

    name = "other machine"
    session: str
    title: str
    needs: str
    may_go_on: bool


@dataclass(frozen=True)
class CourseEnd(Screen):
    """Nothing is open. locked: why, for each session that is not. not_written: phases."""

    name = "end"
    goals: tuple[str, ...]
    mastered: tuple[Mastery, ...]
    locked: tuple[str, ...]
    not_written: tuple[str, ...]
