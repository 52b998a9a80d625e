"""Onboarding: one numbered question at a time, each with its reason and an example (A1 to A4).

The answers become PROFILE events; a later change is one more event. The profile sizes the work and
the words. It never reaches the gate.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import Any

from firsthand.course.answers import Malformed
from firsthand.course.machine import GIB, Machine
from firsthand.course.plan import DEPTH_FIRST, TIME_BOXED
from firsthand.course.progress import Progress

LARGE_TRACK, SMALL_TRACK = "100M", "10M"
LARGE_TRACK_GPU = 16 * 10**9 * 0.95  # bytes; a "16 GB" card reports a little less
FIELDS = (
    "language",
    "level",
    "goals",
    "hardware",
    "time",
    "focus",
    "tone",
    "pacing",
    "track",
)
PHASE_NUMBERS = frozenset("12345")


@dataclass(frozen=True)
class ProfileQuestion:
    """One question of the profile.

    number: 1-based, of `of`. proposal: what an empty answer means, None where one must be typed.
    parse(answer) -> a JSON value; raises Malformed, which says the form expected.
    """

    id: str
    number: int
    of: int
    text: str
    why: str
    example: str
    parse: Callable[[str], Any] = field(compare=False, repr=False)
    proposal: str | None = None

    def read(self, answer: str) -> Any:
        """The value of an answer; an empty one takes the proposal. Raises Malformed."""
        answer = answer.strip()
        if not answer:
            if self.proposal is None:
                raise Malformed("This has no default.", f"your own words, e.g. {self.example}")
            answer = self.proposal
        return self.parse(answer)


def next_question(
    progress: Progress, machine: Machine | None, today: date
) -> ProfileQuestion | None:
    """The first question without an answer; None when the profile is complete."""
    for name in FIELDS:
        if name not in progress.profile:
            return question(name, progress, machine, today)
    return None


def question(
    name: str, progress: Progress, machine: Machine | None, today: date
) -> ProfileQuestion:
    """The question of one field, also to change it later. Raises KeyError for an unknown field."""
    makers: dict[str, Callable[[], _Question]] = {
        "language": _language,
        "level": _level,
        "goals": _goals,
        "hardware": lambda: _hardware(machine),
        "time": _time,
        "focus": _focus,
        "tone": _tone,
        "pacing": lambda: _pacing(today),
        "track": lambda: _track(progress, machine),
    }
    text, why, example, proposal, parse = makers[name]()
    number = FIELDS.index(name) + 1
    return ProfileQuestion(name, number, len(FIELDS), text, why, example, parse, proposal)


def proposed_track(gpu_bytes: int) -> str:
    """100M parameters with a GPU of 16 GB or more, else 10M (A4)."""
    return LARGE_TRACK if gpu_bytes >= LARGE_TRACK_GPU else SMALL_TRACK


_Question = tuple[str, str, str, str | None, Callable[[str], Any]]


def _language() -> _Question:
    def parse(answer: str) -> str:
        if answer.lower() not in ("en", "english"):
            raise Malformed("The interface speaks English for now.", "en")
        return "en"

    return (
        "Which language should the interface use?",
        "It is stored for the day when there are others.",
        "en",
        "en",
        parse,
    )


def _level() -> _Question:
    def parse(answer: str) -> str:
        if len(answer) < 3:
            raise Malformed("", "what you have worked with, e.g. NumPy, some CNNs")
        return answer

    return (
        "What have you worked with so far?",
        "The mentor starts from what you know; the steps are the same for everyone.",
        "NumPy daily, some backprop, a few CNNs in PyTorch",
        None,
        parse,
    )


def _goals() -> _Question:
    def parse(answer: str) -> list[str]:
        goals = [goal.strip() for goal in re.split(r"[;\n]", answer) if goal.strip()]
        if not goals or max(len(goal) for goal in goals) < 3:
            raise Malformed("", "one goal or more, separated by semicolons")
        return goals

    return (
        "What do you want to be able to do at the end?",
        "The first page and the end of the course come back to it.",
        "design a 100M-parameter model; defend it in an interview",
        "design, build and defend a small language model",
        parse,
    )


def _hardware(machine: Machine | None) -> _Question:
    measured: dict[str, Any] = {"cores": 1, "ram": 0.0, "gpu": "", "vram": 0.0}
    if machine is not None:
        measured = {
            "cores": machine.cores,
            "ram": round(machine.memory / GIB, 1),
            "gpu": machine.gpu.name if machine.gpu else "",
            "vram": round(machine.gpu.memory / GIB, 1) if machine.gpu else 0.0,
        }

    def parse(answer: str) -> dict[str, Any]:
        value = dict(measured)
        if answer != "confirm":
            pairs = re.findall(
                r"(cores|ram|vram)\s*=\s*(\d+(?:\.\d+)?)\s*(?:GiB|GB)?", answer, re.IGNORECASE
            )
            if not pairs:
                raise Malformed("", "confirm, or the figures to correct, e.g. ram = 16, vram = 0")
            for name, number in pairs:
                value[name.lower()] = int(float(number)) if name == "cores" else float(number)
        return {**value, "machine": machine.id if machine else None}

    found = machine.summary if machine else "nothing could be measured"
    return (
        f"This machine: {found}. Is that right?",
        "Memory and GPU decide which model you train and what is measured where.",
        "ram = 16, vram = 0",
        "confirm" if machine else None,
        parse,
    )


def _time() -> _Question:
    def parse(answer: str) -> dict[str, int]:
        numbers = [int(number) for number in re.findall(r"\d+", answer)]
        if len(numbers) != 2 or not (1 <= numbers[0] <= 21 and 15 <= numbers[1] <= 240):
            raise Malformed("", "sessions a week (1-21) and minutes each (15-240), e.g. 3 x 60")
        return {"per_week": numbers[0], "minutes": numbers[1]}

    return (
        "How many sessions a week, of how many minutes?",
        "It sizes a sitting and dates the plan; it never changes what is asked.",
        "3 x 60",
        "3 x 60",
        parse,
    )


def _focus() -> _Question:
    def parse(answer: str) -> list[int]:
        if answer.lower() == "all":
            return [1, 2, 3, 4, 5]
        digits = re.findall(r"\d+", answer)
        if not digits or not PHASE_NUMBERS.issuperset(digits):
            raise Malformed("", "all, or phases by number from 1 to 5, e.g. 2, 3")
        return sorted({int(digit) for digit in digits})

    return (
        "Which phases matter most to you?",
        "The plan marks them; no phase is left out by it.",
        "2, 3",
        "all",
        parse,
    )


def _tone() -> _Question:
    def parse(answer: str) -> dict[str, str]:
        value = {"tone": "neutral", "name": "", "voice": "", "analogies": ""}
        if answer.lower() == "neutral":
            return value
        for part in answer.split(";"):
            name, found, text = part.partition("=")
            if not found or name.strip().lower() not in value or not text.strip():
                raise Malformed("", "neutral, or a persona, e.g. name = Ada; voice = dry")
            value[name.strip().lower()] = text.strip()
        return value

    return (
        "Which tone should the mentor have?",
        "A persona is data for the mentor's words; it has no say in what is right.",
        "name = Ada; voice = dry; analogies = from plumbing",
        "neutral",
        parse,
    )


def _pacing(today: date) -> _Question:
    form = f"{DEPTH_FIRST}, or {TIME_BOXED} and a date after today, YYYY-MM-DD"

    def parse(answer: str) -> dict[str, str]:
        if answer.lower() == DEPTH_FIRST:
            return {"kind": DEPTH_FIRST}
        match = re.fullmatch(rf"{TIME_BOXED}[\s:,]+(\d{{4}}-\d{{2}}-\d{{2}})", answer.lower())
        try:
            until = date.fromisoformat(match[1]) if match else today
        except ValueError:
            raise Malformed("", form) from None
        if until <= today:
            raise Malformed("", form)
        return {"kind": TIME_BOXED, "until": until.isoformat()}

    return (
        f"Which pacing: {DEPTH_FIRST} or {TIME_BOXED}?",
        f"{DEPTH_FIRST}: only mastery decides when you move on. {TIME_BOXED}: the plan shows what"
        " a date leaves out; the gate stays as strict.",
        f"{TIME_BOXED} {today.replace(year=today.year + 1, day=1).isoformat()}",
        DEPTH_FIRST,
        parse,
    )


def _track(progress: Progress, machine: Machine | None) -> _Question:
    hardware = progress.profile.get("hardware")
    if hardware is not None:
        gpu_bytes = int(float(hardware.value["vram"]) * GIB)
    else:
        gpu_bytes = machine.gpu.memory if machine and machine.gpu else 0

    def parse(answer: str) -> str:
        track = answer.upper()
        if track not in (LARGE_TRACK, SMALL_TRACK):
            raise Malformed("", f"{LARGE_TRACK} or {SMALL_TRACK}")
        return track

    return (
        f"Which model will you train: {LARGE_TRACK} or {SMALL_TRACK} parameters?",
        f"{LARGE_TRACK} needs a GPU of 16 GB or more; {SMALL_TRACK} trains on a CPU laptop."
        " You can change it later.",
        SMALL_TRACK,
        proposed_track(gpu_bytes),
        parse,
    )
