"""What a check or a graded answer says: one outcome, the stage that decided, the evidence.

A verdict never guesses (docs/authoring.md, "The message"): code is called wrong only with a failing
input, slow only with a measurement, and a mistake is named only when it is the only match.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Outcome(StrEnum):
    """How an attempt ended. Everything but PASSED leaves the step where it is."""

    PASSED = "passed"
    WRONG = "wrong"  # there is a failing input, or the answer differs from the computed one
    LIBRARY = "library"  # calls the function that is being built
    SLOW = "slow"  # right, but a measured ratio is over its limit
    UNFINISHED = "unfinished"  # NotImplementedError: the starter, or a part of it, is still there
    BROKEN = "broken"  # does not run: syntax, missing file or name, signature, an exception
    STOPPED = "stopped"  # time, memory, output, processes, exit, crash
    MALFORMED = "malformed"  # an answer that cannot be read in the form asked for
    UNDECIDED = "undecided"  # the checker itself failed: said so, and never a pass

    @property
    def costs_attempt(self) -> bool:
        """Only a judged answer costs an attempt; what could not be judged is free (rule C3)."""
        return self in (Outcome.WRONG, Outcome.LIBRARY)


class Stage(StrEnum):
    """The stages of a check, in order; the first that fails ends it."""

    IMPORT = "import"
    SIGNATURE = "signature"
    SHAPE = "shape and dtype"
    FINITE = "finite"
    RELATIONS = "relations"
    VALUES = "values"
    GRADIENT = "gradient"
    LAYOUT = "memory layout"
    SPEED = "speed"


class StageState(StrEnum):
    PASSED = "passed"
    FAILED = "failed"
    NOT_RUN = "not run"


@dataclass(frozen=True)
class StageReport:
    """One line of the table of stages. A stage the step does not declare is left out."""

    stage: Stage
    state: StageState
    cases: int = 0  # how many calls it looked at


@dataclass(frozen=True)
class Evidence:
    """One labelled fact: `call`, `got`, `expected`, `relation`, `line`, `printed`, ..."""

    label: str
    text: str


@dataclass(frozen=True)
class Verdict:
    """The result of one attempt, ready for the log and for every face.

    headline: at most three sentences. mistake: id of the one mistake that matches, else None.
    question: at most one. line: line of the learner's file, 1-based. accepted: for a number, the
    interval that counts as right, shown only once the step is passed.
    """

    outcome: Outcome
    headline: str
    evidence: tuple[Evidence, ...] = ()
    stages: tuple[StageReport, ...] = ()
    mistake: str | None = None
    question: str | None = None
    line: int | None = None
    seconds: float | None = None
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def passed(self) -> bool:
        return self.outcome is Outcome.PASSED

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every field; `from_json` is its inverse."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Verdict:
        return cls(
            outcome=Outcome(record["outcome"]),
            headline=record["headline"],
            evidence=tuple(Evidence(**item) for item in record.get("evidence", ())),
            stages=tuple(
                StageReport(Stage(item["stage"]), StageState(item["state"]), item["cases"])
                for item in record.get("stages", ())
            ),
            mistake=record.get("mistake"),
            question=record.get("question"),
            line=record.get("line"),
            seconds=record.get("seconds"),
            data=record.get("data", {}),
        )
