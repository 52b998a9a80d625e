"""The prose of a session: `lesson.md` cut into steps, its numbers computed when it is shown.

`{{ expression }}` is evaluated over the names of the session's `steps.py` (which imports what it
needs of the stack), so that no number of a lesson is typed. Headings `## Kind: Title {#id}` cut the
text; what comes before the first one opens the session.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, TemplateError
from jinja2.sandbox import SandboxedEnvironment

from firsthand.course.outline import HEADING, Session

BUILTINS: dict[str, Any] = {
    "abs": abs,
    "int": int,
    "len": len,
    "list": list,
    "log": math.log,
    "max": max,
    "min": min,
    "range": range,
    "round": round,
    "sqrt": math.sqrt,
    "sum": sum,
    "tuple": tuple,
    "zip": zip,
}


class LessonError(ValueError):
    """An expression of a lesson that cannot be computed; names the session and the step."""


def decimals(value: float, places: int = 3) -> str:
    """A number with a fixed count of decimals; a negative zero loses its sign."""
    text = f"{float(value):.{places}f}"
    return text.lstrip("-") if float(text) == 0 else text


def significant(value: float, digits: int = 3) -> str:
    """A number with a fixed count of significant digits."""
    return f"{float(value):.{digits}g}"


def environment() -> SandboxedEnvironment:
    """Jinja with `{{ }}` alone: `{%` and `{#` are ordinary text in a lesson (`{#id}` headings)."""
    made = SandboxedEnvironment(
        undefined=StrictUndefined,
        autoescape=False,
        keep_trailing_newline=True,
        block_start_string="<%",
        block_end_string="%>",
        comment_start_string="<%#",
        comment_end_string="#%>",
    )
    made.filters["decimals"] = decimals
    made.filters["significant"] = significant
    return made


class Lesson:
    """One session's prose. names: what `{{ }}` may use."""

    def __init__(self, session: Session, names: Mapping[str, Any]) -> None:
        self.session = session
        self._names = {**BUILTINS, **names}

    @cached_property
    def text(self) -> str:
        return Path(self.session.folder / "lesson.md").read_text(encoding="utf-8")

    @cached_property
    def sections(self) -> dict[str, str]:
        """Unrendered prose by full step id, headings left out; '' holds the opening."""
        found: dict[str, str] = {}
        matches = list(HEADING.finditer(self.text))
        first = matches[0].start() if matches else len(self.text)
        found[""] = re.sub(r"\A# .*\n", "", self.text[:first]).strip()
        ends = [*(match.start() for match in matches[1:]), len(self.text)][: len(matches)]
        for match, end in zip(matches, ends, strict=True):
            found[f"{self.session.id}/{match[3]}"] = self.text[match.end() : end].strip()
        return found

    def opening(self) -> str:
        """The session's first words, rendered. Raises LessonError."""
        return self._render("", self.sections[""])

    def theory(self, step_id: str) -> str:
        """The prose that comes before a step's question, rendered. Raises LessonError, KeyError."""
        return self._render(step_id, self.sections[step_id])

    def _render(self, step_id: str, text: str) -> str:
        try:
            return environment().from_string(text).render(self._public_names)
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            SyntaxError,  # what Jinja compiles to may not be Python
            TypeError,
            ValueError,
        ) as error:
            place = step_id or f"{self.session.id}, the opening"
            raise LessonError(f"lesson of {place}: {type(error).__name__}: {error}") from error

    @cached_property
    def _public_names(self) -> dict[str, Any]:
        return {name: value for name, value in self._names.items() if not name.startswith("_")}


PROSE_NUMBER = re.compile(r"(?<![\w.$\\^_{])(?<!\w-)(\d+\.\d+|\d{3,})(?![\w}])")
YEAR = re.compile(r"(19|20)\d\d\Z")


def typed_numbers(text: str) -> list[str]:
    """Decimals and numbers of three digits or more that stand typed in the prose of a lesson.

    Code, formulas, computed expressions, headings, links, years and `section 3.2` do not count.
    """
    strip: tuple[tuple[str, int], ...] = (
        (r"```.*?```", re.DOTALL),
        (r"`[^`\n]*`", 0),
        (r"\$\$.*?\$\$", re.DOTALL),
        (r"\$[^$\n]+\$", 0),
        (r"\{\{.*?\}\}", re.DOTALL),
        (r"^#.*$", re.MULTILINE),
        (r"\]\([^)]*\)", 0),
        (r"https?://\S+|arXiv[: ]\S+", 0),
        (
            r"(?i)\b(sections?|chapters?|equations?|tables?|figures?|session|phase|python|numpy|ieee)"
            r" [\d.,–-]+",
            0,
        ),
    )
    for pattern, flags in strip:
        text = re.sub(pattern, " ", text, flags=flags)
    return [number for number in PROSE_NUMBER.findall(text) if not YEAR.match(number)]
