"""What all kinds of question share: the record, the comparison of values, the verdicts.

A WRONG verdict never holds the right answer: it says what was read, names the one mistake whose
value matches if there is exactly one, and asks that mistake's question.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from firsthand.course.answers import Malformed, Value, show_value
from firsthand.course.steps import AnyMistake
from firsthand.course.verdicts import Evidence, Outcome, Verdict

MOST_DRAWS = 200
EXACT_FLOAT = 1e-9
SEPARATION = 4.0  # wrong values stay this many tolerances away from the right one

Grade = Callable[[str], Verdict]
Mistakes = Sequence[AnyMistake]
Lines = tuple[str, ...]
WrongLines = tuple[tuple[str, str], ...]


class QuestionError(ValueError):
    """A declaration from which no fair question can be made; the author's fault, names the step."""


@dataclass(frozen=True)
class Question:
    """One question with fresh parameters, and how its answer is decided.

    prompt: Markdown. form: what an answer looks like, one line, with an example that is not near
    the answer. working: the derivation of this case, a line each. wrong_lines: (mistake id, a line
    that this mistake would write); the id is '' where no declared mistake gives it. solution: an
    answer that passes, for the author's check only; '' for Measure. wrong_answers: mistake id -> an
    answer that must be recognised as that mistake, likewise. parameters: JSON values.
    """

    prompt: str
    form: str
    grade: Grade
    working: Lines = ()
    wrong_lines: WrongLines = ()
    solution: str = ""
    seed: int = 0
    parameters: dict[str, Any] = field(default_factory=dict)
    wrong_answers: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkedExample:
    """The last rung: nothing is asked, all lines of a fresh case are shown. text: Markdown."""

    text: str


def generator_for(step_id: str, seed: int, small: bool) -> np.random.Generator:
    """The only source of chance in a question: the same step, seed and size give the same one."""
    return np.random.default_rng([zlib.crc32(step_id.encode()), abs(seed), int(small)])


def derived_seed(seed: int, name: str) -> int:
    """Another seed, so that a rung does not reuse the case of the step or of another rung."""
    return zlib.crc32(f"{seed}/{name}".encode())


def plain(value: object) -> Value:
    """A declared value as a Python number or a tuple of ints. Raises QuestionError."""
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, tuple | list):
        return tuple(int(item) for item in value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise QuestionError(f"{value!r} is neither a number nor a shape")
    return value


def finite(value: Value) -> bool:
    """Whether it is a shape or a finite number."""
    return isinstance(value, tuple | int) or math.isfinite(value)


def close(answer: Value, right: Value, tolerance: float) -> bool:
    """Whether an answer counts as `right`. tolerance: relative; 0 is exact (1e-9 for floats)."""
    if isinstance(answer, tuple) or isinstance(right, tuple):
        return answer == right
    if tolerance == 0 and isinstance(right, int):
        return answer == right
    room = max(tolerance, EXACT_FLOAT)
    # a computed zero is often 1e-17, and no relative tolerance reaches it
    return finite(answer) and abs(answer - right) <= max(room * abs(right), 1e-12)


def apart(a: Value, b: Value, tolerance: float) -> bool:
    """Whether two values differ by so much that no answer can count as both."""
    if isinstance(a, tuple) or isinstance(b, tuple):
        return a != b
    if not finite(a) or not finite(b):
        return False
    if tolerance == 0 and isinstance(a, int) and isinstance(b, int):
        return a != b
    room = SEPARATION * max(tolerance, EXACT_FLOAT)
    return abs(a - b) > max(room * max(abs(a), abs(b)), 1e-11)


def is_zero(value: Value) -> bool:
    """Whether a constant answer 0 would pass."""
    return not isinstance(value, tuple) and close(0, value, 0.0)


def interval(right: Value, tolerance: float) -> tuple[float, float] | None:
    """The accepted interval of a number with a tolerance, in ascending order."""
    if isinstance(right, tuple) or tolerance == 0:
        return None
    ends = sorted((right * (1 - tolerance), right * (1 + tolerance)))
    return ends[0], ends[1]


def with_unit(value: Value, unit: str) -> str:
    """`1024 bytes`, `12.5 %`, `(2, 3)`."""
    return f"{show_value(value)} {unit}".strip()


# --------------------------------------------------------------------------- verdicts


def graded(judge: Grade) -> Grade:
    """`judge` with its failures made verdicts: unreadable is MALFORMED, a crash UNDECIDED."""

    def grade(text: str) -> Verdict:
        try:
            return judge(text)
        except Malformed as malformed:
            evidence = (Evidence("form", malformed.form),)
            return Verdict(Outcome.MALFORMED, str(malformed), evidence)
        except Exception as error:  # fail closed: a checker that crashes never passes an answer
            return undecided(f"{type(error).__name__}: {error}"[:300])

    return grade


def undecided(reason: str) -> Verdict:
    """The check itself failed."""
    headline = "The answer could not be checked; it costs no attempt."
    return Verdict(Outcome.UNDECIDED, headline, (Evidence("reason", reason),))


def passed(headline: str, *evidence: Evidence, **data: Any) -> Verdict:
    return Verdict(Outcome.PASSED, headline, evidence, data=data)


def wrong(
    headline: str, *evidence: Evidence, mistake: AnyMistake | None = None, question: str = ""
) -> Verdict:
    """A WRONG verdict; with `mistake` its belief is named and its question asked."""
    if mistake is None:
        return Verdict(Outcome.WRONG, headline, evidence, question=question or None)
    headline = f"{headline} It is what follows from this: {mistake.belief}"
    return Verdict(Outcome.WRONG, headline, evidence, mistake=mistake.id, question=mistake.question)


def only(matches: Sequence[str], mistakes: Mistakes) -> AnyMistake | None:
    """The mistake to name: the only match, if its words are known; none or several name nothing."""
    if len(matches) != 1:
        return None
    return next((mistake for mistake in mistakes if mistake.id == matches[0]), None)


def as_json(value: object) -> Any:
    """Parameters as plain JSON values: NumPy scalars and arrays, tuples and mappings included."""
    if isinstance(value, Mapping):
        return {str(key): as_json(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(item) for item in value]
    if hasattr(value, "tolist"):
        return as_json(value.tolist())
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return repr(value)
