"""Lines of a derivation as material: shuffled and lettered, with a value replaced or blanked."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Callable, Collection, Sequence

import numpy as np

from firsthand.course.answers import Value, read_number, read_order, show_value
from firsthand.course.questions.grading import (
    Grade,
    Mistakes,
    QuestionError,
    WrongLines,
    close,
    graded,
    only,
    passed,
    wrong,
)
from firsthand.course.verdicts import Evidence, Verdict

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
BLANK = "____"
# not the 8 of INT8, the 1 of x_1 or the 2 of 2x: those are names and coefficients
NUMBER = re.compile(
    r"(?<![\w.])(?:(?<![\w)\]]\s)(?<![\w)\]])-)?(?:\d[\d_]*(?:\.\d+)?|\.\d+)(?:e[-+]?\d+)?(?![\w.]*\w)"
)


def with_value(line: str, right: Value, value: Value) -> str:
    """`line` with its answer replaced: the last text that shows `right`, else the last number."""
    shown = show_value(value)
    if isinstance(right, tuple):
        spaced = r"\s*".join(map(re.escape, re.findall(r"\d+|\S", show_value(right))))
        if found := list(re.finditer(spaced, line)):
            return line[: found[-1].start()] + shown + line[found[-1].end() :]
        return f"{line.rstrip()} -> {shown}"
    hits = list(NUMBER.finditer(line))
    for hit in reversed(hits):
        if close(float(hit.group().replace("_", "")), right, 1e-3):
            return line[: hit.start()] + shown + line[hit.end() :]
    if hits:
        return line[: hits[-1].start()] + shown + line[hits[-1].end() :]
    return f"{line.rstrip()} = {shown}"


def scaled(line: str, ratio: float) -> str | None:
    """`line` with its last number multiplied; None where it has none."""
    hits = list(NUMBER.finditer(line))
    if not hits:
        return None
    number = float(hits[-1].group().replace("_", ""))
    value = number * ratio if number else ratio
    shown = show_value(int(value) if value == int(value) else float(f"{value:.6g}"))
    return line[: hits[-1].start()] + shown + line[hits[-1].end() :]


# --------------------------------------------------------------------------- one blank


def blank_line(
    lines: Sequence[str], shown: str, generator: np.random.Generator
) -> tuple[int, re.Match[str]] | None:
    """Which line gets a blank, and its last number. None where no line has a number.

    Preferred are numbers that stand nowhere else in what is shown with them (`shown` and the lines
    up to theirs): a question must not hold its answer.
    """
    candidates: list[tuple[int, re.Match[str]]] = []
    fair: list[tuple[int, re.Match[str]]] = []
    seen = {_number(hit) for hit in NUMBER.finditer(shown)}
    for index, line in enumerate(lines):
        hits = list(NUMBER.finditer(line))
        if hits:
            candidates.append((index, hits[-1]))
            others = seen | {_number(hit) for hit in hits[:-1]}
            if _number(hits[-1]) not in others:
                fair.append((index, hits[-1]))
        seen |= {_number(hit) for hit in hits}
    if not candidates:
        return None
    return fair[int(generator.integers(len(fair)))] if fair else candidates[-1]


def _number(hit: re.Match[str]) -> float:
    return float(hit.group().replace("_", ""))


def shown_precision(text: str) -> float:
    """One unit in the last place of a number as it is written; 0 for an integer."""
    mantissa, _, exponent = text.lower().partition("e")
    if "." not in mantissa:
        return 0.0
    return float(10.0 ** (int(exponent or 0) - len(mantissa.split(".")[1])))


def grade_blank(
    line: str, hit: re.Match[str], wrong_lines: WrongLines, mistakes: Mistakes, form: str
) -> Grade:
    """Grade the number that belongs in the blank; a mistake's line with this number is named."""
    text = hit.group().replace("_", "")
    right = float(text) if "." in text or "e" in text else int(text)
    before, after = line[: hit.start()], line[hit.end() :]
    room = shown_precision(text)

    def judge(answer: str) -> Verdict:
        read = read_number(answer, form=form).value
        if close(read, right, 0.0) or abs(read - right) <= room:
            return passed(f"Right: {hit.group()}.", Evidence("line", line))
        matches = []
        for name, wrong_line in wrong_lines:
            if wrong_line.startswith(before) and wrong_line.endswith(after):
                middle = wrong_line[len(before) : len(wrong_line) - len(after)]
                if NUMBER.fullmatch(middle) and close(read, float(middle.replace("_", "")), 1e-3):
                    matches.append(name)
        headline = f"Read as {show_value(read)}; this is not what belongs in the line."
        return wrong(
            headline, Evidence("read as", show_value(read)), mistake=only(matches, mistakes)
        )

    return graded(judge)


# --------------------------------------------------------------------------- lettered lines


class Lettered:
    """Right and wrong lines, shuffled and given letters.

    right: texts in their order. wrong: (mistake id, text). accepts(order of indices): whether the
    order of right lines is one that passes; used to avoid showing the solution as it stands.
    """

    def __init__(
        self,
        step_id: str,
        right: Sequence[str],
        wrong: WrongLines,
        generator: np.random.Generator,
        accepts: Callable[[list[int]], bool] | None = None,
        form: str = "",
    ) -> None:
        self.right = tuple(right)
        merged: dict[str, str] = {}
        for name, text in wrong:
            if text not in self.right:
                # one text of two mistakes names neither
                merged[text] = name if text not in merged else ""
        self.wrong = tuple((name, text) for text, name in merged.items())
        count = len(self.right) + len(self.wrong)
        if count > len(LETTERS):
            raise QuestionError(f"step {step_id}: {count} lines are more than there are letters")
        for _ in range(20):
            self.places = [int(place) for place in generator.permutation(count)]
            shown = [place for place in self.places if place < len(self.right)]
            in_order = accepts(shown) if accepts else shown == sorted(shown)
            if not in_order or len(shown) < 2:
                break
        self.letters = LETTERS[:count]
        # the example is one letter short of any right answer, or too long for it
        example = "B A" if len(self.right) != 2 else "B"
        order = f"an order of letters of the right lines, for example `{example}`"
        self.form = form or order

    def text_of(self, place: int) -> str:
        if place < len(self.right):
            return self.right[place]
        return self.wrong[place - len(self.right)][1]

    def letter_of(self, place: int) -> str:
        return self.letters[self.places.index(place)]

    def table(self) -> str:
        """The lettered lines as a code block, so that indentation and symbols stay as they are."""
        rows = [
            f"{letter}  {self.text_of(place)}"
            for letter, place in zip(self.letters, self.places, strict=True)
        ]
        return "\n".join(("```text", *rows, "```"))

    def solution(self) -> str:
        return " ".join(self.letter_of(place) for place in range(len(self.right)))

    def with_wrong_lines(self) -> dict[str, str]:
        """For each mistake the right order with its wrong line at the end."""
        count = len(self.right)
        return {
            name: f"{self.solution()} {self.letter_of(count + index)}"
            for index, (name, _) in enumerate(self.wrong)
            if name
        }

    def read(self, text: str, mistakes: Mistakes) -> list[int] | Verdict:
        """The places of the right lines in the order given; a verdict if the set is not right.

        Of lines with the same text any may stand for any other.
        """
        letters = read_order(text, self.letters, self.form)
        places = [self.places[self.letters.index(letter)] for letter in letters]
        count = len(self.right)
        chosen = [self.wrong[place - count][0] for place in places if place >= count]
        shown = Evidence("read as", " ".join(self.letter_of(place) for place in places))
        if chosen:
            number = len(chosen)
            headline = "One of these lines is wrong."
            if number > 1:
                headline = f"{number} of these lines are wrong."
            return wrong(headline, shown, mistake=only(chosen, mistakes))
        if len(places) < count:
            missing = count - len(places)
            number_text = "One right line is" if missing == 1 else f"{missing} right lines are"
            return wrong(f"{number_text} missing.", shown)
        copies: dict[str, deque[int]] = defaultdict(deque)
        for place in range(count):
            copies[self.right[place]].append(place)
        return [copies[self.right[place]].popleft() for place in places]


def grade_sequence(
    lines: Lettered, mistakes: Mistakes, swappable: Collection[tuple[int, int]] = ()
) -> Grade:
    """Grade on the one sequence; two lines whose index pair is in `swappable` may change places."""
    free = {frozenset(pair) for pair in swappable}

    def judge(text: str) -> Verdict:
        places = lines.read(text, mistakes)
        if isinstance(places, Verdict):
            return places
        for index, place in enumerate(places):
            early = [other for other in places[index + 1 :] if other < place]
            if any(frozenset((place, other)) not in free for other in early):
                letters = " ".join(lines.letter_of(item) for item in places)
                return wrong(
                    f"Line {lines.letter_of(place)} stands too early.",
                    Evidence("read as", letters),
                )
        return passed("Right: the lines are in order.")

    return graded(judge)
