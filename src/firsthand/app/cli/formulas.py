"""LaTeX formulas as one line of Unicode, for a terminal: `\\frac{a}{b}` is a/b, `x_i` is xᵢ."""

from __future__ import annotations

import re
from functools import cache

FRACTION = re.compile(r"\\[dt]?frac\s*")
SCRIPT = re.compile(r"([_^])(?:\{([^{}]*)\}|(\\?[A-Za-z]+|[0-9]))")
COMMAND = re.compile(r"(\\[A-Za-z]+)(?=[_^])")
WORDS = re.compile(r"([_^])\\(?:text|mathrm|operatorname)\{([^{}]*)\}")
MARKS = {"_": "\ue000", "^": "\ue001"}  # stand-ins until the LaTeX around them is read
SIMPLE = re.compile(r"(?:\\partial\s*)?(?:[\w.]+|\\[A-Za-z]+)(?:[_^](?:\w|\{[^{}]*\}))?")


def formula_text(latex: str) -> str:
    """One formula without its dollars, as text. Anything unknown stays as it is written."""
    from pylatexenc.latex2text import LatexNodes2Text

    text = re.sub(r"\\ne(?![A-Za-z])", r"\\neq", latex.strip())  # a macro the reader lacks
    text = _scripts(_fractions(text))
    text = LatexNodes2Text(math_mode="text", strict_latex_spaces=False).latex_to_text(text)
    for sign, mark in MARKS.items():
        text = text.replace(mark, sign)
    return " ".join(re.sub(r"([·×∘])(?=\S)", r"\1 ", text).split())


def _group(text: str, start: int) -> tuple[str, int] | None:
    """The braced group at `start` and where it ends; one character where there are no braces."""
    if start >= len(text):
        return None
    if text[start] != "{":
        return text[start], start + 1
    depth = 0
    for position in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[start + 1 : position], position + 1
    return None


def _fractions(text: str) -> str:
    while match := FRACTION.search(text):
        above = _group(text, match.end())
        below = _group(text, above[1]) if above else None
        if above is None or below is None:
            return text
        text = (
            text[: match.start()]
            + f"{_bracketed(above[0])}/{_bracketed(below[0])}"
            + (" " if re.match(r"[\\\w]", text[below[1] :]) else "")
            + text[below[1] :]
        )
    return text


def _bracketed(text: str) -> str:
    text = text.strip()
    return text if SIMPLE.fullmatch(text) else f"({text})"


def _scripts(text: str) -> str:
    """Subscripts and superscripts in Unicode where it has all the characters, else in brackets."""
    text = COMMAND.sub(r"\1{}", WORDS.sub(r"\1{\2}", text))
    previous = None
    while previous != text:
        previous = text
        text = SCRIPT.sub(lambda match: _script(match[1], match[2] or match[3] or ""), text)
    return text


@cache
def _script(sign: str, inner: str) -> str:
    import unicodeit

    replaced = str(unicodeit.replace(f"x{sign}{{{inner}}}"))
    if replaced.startswith("x") and not any(mark in replaced for mark in "_^{}\\"):
        return replaced[1:]
    return f"{MARKS[sign]}({inner})" if len(inner) > 1 else f"{MARKS[sign]}{inner}"
