"""The plan: a table of the phases, sized by the profile, and what a date leaves out (A3, A5).

A date changes what is planned, never what is asked: the gate does not read it (PROTOCOL D2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import date
from typing import Any

from firsthand.course.outline import Outline, Phase
from firsthand.course.progress import Progress

MINUTES = 60  # a session without a toml of its own yet
DEPTH_FIRST = "depth-first"
TIME_BOXED = "time-boxed"


@dataclass(frozen=True)
class PlanRow:
    """One phase. hours: estimated. left_out: sessions of it that the date leaves out."""

    phase: int
    title: str
    focus: str
    hands_on: str
    hours: float
    sessions: int
    complete: int
    status: str  # 'written', 'partly written', 'not yet written'
    left_out: int = 0
    chosen: bool = False  # a focus area of the profile

    @property
    def time(self) -> str:
        return f"{self.sessions} sessions, about {self.hours:g} h"


@dataclass(frozen=True)
class Plan:
    """The table and what it means. weeks: at the learner's pace. left_out: one line each.

    able: what one will be able to do, the first of each session's.
    """

    rows: tuple[PlanRow, ...]
    able: tuple[str, ...]
    pacing: str
    track: str
    hours: float
    weeks: float
    until: date | None = None
    left_out: tuple[str, ...] = ()


def plan(outline: Outline, progress: Progress, today: date) -> Plan:
    """The plan for this profile; fields that are not answered yet take their defaults."""
    profile = {name: entry.value for name, entry in progress.profile.items()}
    pacing: Mapping[str, Any] = profile.get("pacing") or {"kind": DEPTH_FIRST}
    pace: Mapping[str, Any] = profile.get("time") or {"minutes": MINUTES, "per_week": 3}
    until = date.fromisoformat(pacing["until"]) if pacing["kind"] == TIME_BOXED else None
    chosen = profile.get("focus", ())
    rows = [_row(phase, progress, phase.number in chosen) for phase in outline.phases]
    minutes = sum((row.sessions - row.complete) * 60.0 * row.hours / row.sessions for row in rows)
    weekly = pace["minutes"] * pace["per_week"]
    left_out: list[str] = []
    if until is not None:
        available = max((until - today).days, 0) / 7 * weekly
        rows, left_out = _until(rows, available, until)
    return Plan(
        rows=tuple(rows),
        able=tuple(session.able[0] for session in outline.sessions if session.able),
        pacing=pacing["kind"],
        track=str(profile.get("track", "")),
        hours=round(sum(row.hours for row in rows), 1),
        weeks=round(minutes / weekly, 1),
        until=until,
        left_out=tuple(left_out),
    )


def _row(phase: Phase, progress: Progress, chosen: bool) -> PlanRow:
    written = len(phase.sessions)
    sessions = max(phase.planned_sessions, written, 1)
    minutes = sum(session.minutes for session in phase.sessions)
    status = "written" if written >= sessions else "partly written" if written else None
    return PlanRow(
        phase=phase.number,
        title=phase.title,
        focus=phase.focus,
        hands_on=phase.hands_on,
        hours=round(minutes / 60, 1) if written >= sessions else float(phase.hours),
        sessions=sessions,
        complete=sum(progress.sessions[session.id].complete for session in phase.sessions),
        status=status or "not yet written",
        chosen=chosen,
    )


def _until(rows: list[PlanRow], minutes: float, until: date) -> tuple[list[PlanRow], list[str]]:
    """Fill the minutes until the date, phase by phase; what does not fit is left out."""
    shown, left_out = [], []
    for row in rows:
        each = 60.0 * row.hours / row.sessions
        wanted = row.sessions - row.complete
        fits = min(wanted, int(minutes / each + 1e-9))
        minutes -= fits * each
        missing = wanted - fits
        if missing:
            first = row.complete + fits + 1
            span = f"session {first}" if missing == 1 else f"sessions {first} to {row.sessions}"
            left_out.append(f"Phase {row.phase}, {span}: not before {until.isoformat()}.")
            minutes = 0.0  # the course is in order: nothing after what is left out
        shown.append(replace(row, left_out=missing))
    return shown, left_out
