"""Screens, verdicts and tables as rich text. Everything also reads without colour."""

from __future__ import annotations

import re
from collections.abc import Iterable

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from firsthand.app.cli.terminal import console, cut, lesson
from firsthand.course.gate import Rung, describe
from firsthand.course.outline import Outline, Resource
from firsthand.course.plan import Plan
from firsthand.course.profile import ProfileQuestion
from firsthand.course.progress import Mastery, Progress, State, why_locked
from firsthand.course.recap import FirstSession, LaterSession, SessionSummary
from firsthand.course.screens import StepScreen
from firsthand.course.verdicts import Outcome, Stage, StageState, Verdict

CONTROL = re.compile(r"[^\S\n\t ]|[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
MARKS = {State.LOCKED: "locked", State.OPEN: "open", State.PASSED: "done", State.COMPLETE: "done"}
OUTCOMES = {
    Outcome.PASSED: ("Passed", "right"),
    Outcome.WRONG: ("Not right", "wrong"),
    Outcome.LIBRARY: ("Not built", "wrong"),
    Outcome.SLOW: ("Right, but slow", "note"),
    Outcome.UNFINISHED: ("Not written yet", "note"),
    Outcome.BROKEN: ("Does not run", "note"),
    Outcome.STOPPED: ("Stopped", "note"),
    Outcome.MALFORMED: ("Not readable", "note"),
    Outcome.UNDECIDED: ("Not decided", "note"),
}
RUNG_NAMES = {
    Rung.SMALL: "the same with smaller numbers",
    Rung.ORDER: "lines to order",
    Rung.FILL: "one line to fill",
    Rung.WORKED: "the worked example",
}


def title(text: str) -> RenderableType:
    return Rule(Text(text, style="bold"), align="left", style="dim", characters="-")


def lines(items: Iterable[str], mark: str = "- ") -> RenderableType:
    """A list; a line that wraps goes on under its own beginning."""
    return Group(*(hanging(mark, item) if mark else Text(item) for item in items))


def hanging(mark: str, text: str, style: str = "") -> RenderableType:
    """`mark` and then `text`, whose further lines begin below its first."""
    table = Table.grid()
    table.add_column(no_wrap=True, width=len(mark))
    table.add_column()
    table.add_row(Text(mark, style=style), Text(text, style=style))
    return table


# --------------------------------------------------------------------------- verdicts


def verdict(found: Verdict, note: str = "") -> RenderableType:
    """Outcome and headline, then the evidence, then the stages of a check, then one question."""
    name, style = OUTCOMES[found.outcome]
    head = Text.assemble((f"{name}. ", style), visible(found.headline))
    parts: list[RenderableType] = [head]
    # A malformed answer's headline says the form already.
    evidence = [item for item in found.evidence if item.text not in found.headline]
    if evidence:
        table = Table.grid(padding=(0, 2))
        table.add_column(style="label", no_wrap=True)
        table.add_column(overflow="fold")
        for item in evidence:
            table.add_row(item.label, Text(visible(item.text)))
        parts.append(Padding(table, (0, 0, 0, 2)))
    if found.stages and not found.passed:
        parts.append(stages(found))
    if found.question:
        parts.append(Text(found.question, style="bold"))
    if note:
        parts.append(Text(note, style="dim"))
    return Group(*parts)


def visible(text: str) -> str:
    """What a learner's code wrote, its control characters spelled out: `\\x1b` moves no cursor."""
    return CONTROL.sub(lambda match: repr(match[0])[1:-1], text)


def stages(found: Verdict) -> Text:
    """`import ok > signature ok > values FAILED > speed not run`."""
    words = {StageState.PASSED: "ok", StageState.FAILED: "FAILED", StageState.NOT_RUN: "not run"}
    order = list(Stage)
    reports = sorted(found.stages, key=lambda report: order.index(report.stage))
    shown = " > ".join(f"{report.stage} {words[report.state]}" for report in reports)
    return Text(shown, style="dim")


# --------------------------------------------------------------------------- steps


def step_title(screen: StepScreen) -> RenderableType:
    return title(f"{screen.step}  {screen.kind}: {screen.title}")


def attempts(screen: StepScreen) -> str:
    text = f"Attempt {screen.used + 1} of {screen.of}"
    if screen.rung is not Rung.STEP:
        text += f", {RUNG_NAMES[screen.rung]}; then back to the step with fresh numbers"
    return text + "."


def question(prompt: str, form: str) -> RenderableType:
    parts: list[RenderableType] = [lesson(prompt)]
    if form:
        parts.append(Group(Text("Answer with ", style="dim", end=""), lesson(form)))
    return Group(*parts)


# --------------------------------------------------------------------------- profile and plan


def profile_question(asked: ProfileQuestion) -> RenderableType:
    rows = [
        Text(f"{asked.number} of {asked.of}  {asked.text}", style="bold"),
        Text(f"Why: {asked.why}"),
        Text(f"Example: {asked.example}"),
    ]
    if asked.proposal is not None:
        rows.append(Text(f"Enter alone means: {asked.proposal}", style="dim"))
    return Group(*rows)


def plan_table(shown: Plan) -> RenderableType:
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("Phase")
    table.add_column("Focus")
    table.add_column("Hands-on")
    table.add_column("Time")
    all_chosen = all(row.chosen for row in shown.rows)  # then the mark says nothing
    for row in shown.rows:
        time = row.time if row.status == "written" else f"{row.time}, {row.status}"
        if row.left_out:
            time += f"; {row.left_out} left out"
        name = row.title + (" (your focus)" if row.chosen and not all_chosen else "")
        table.add_row(str(row.phase), name, row.focus, row.hands_on, time)
    parts: list[RenderableType] = [table, Text("")]
    words = f"In all about {shown.hours:g} hours, {shown.weeks:g} weeks at your pace"
    words += f"; {shown.pacing}" + (f" until {shown.until}" if shown.until else "")
    words += f"; track {shown.track} parameters." if shown.track else "."
    parts.append(Text(words))
    if shown.left_out:
        parts.append(lines(shown.left_out))
        parts.append(Text("The date leaves sessions out; it never makes the gate easier."))
    if shown.able:
        parts += [Text(""), Text("You will be able to:", style="bold"), lines(shown.able)]
    return Group(*parts)


def first_session(shown: FirstSession) -> RenderableType:
    parts: list[RenderableType] = [title(shown.title)]
    if shown.goals:
        parts += [Text("Your goals:", style="bold"), lines(shown.goals)]
    if shown.able and shown.plan:
        parts += [Text("You will be able to:", style="bold"), lines(shown.able)]
    parts += [Text("How it works:", style="bold"), lines(shown.practical)]
    parts.append(Text(f"First session, {shown.session}: {shown.session_title}", style="bold"))
    parts.append(Text(shown.objective))
    return Group(*parts)


def later_session(shown: LaterSession, loaded: str) -> RenderableType:
    parts: list[RenderableType] = [title("Where we are"), Text(loaded), Text(shown.where)]
    table = Table.grid(padding=(0, 2))
    for no_wrap in (True, False, True, True):
        table.add_column(no_wrap=no_wrap)
    for row in shown.path:
        table.add_row(row.session, row.title, f"{row.passed} of {row.steps}", MARKS[row.state])
    parts += [Text(""), Text("The path", style="bold"), table]
    if shown.last:
        parts += [Text(""), Text("The last session", style="bold"), summary(shown.last)]
    if shown.older:
        parts += [
            Text("Before that", style="bold"),
            lines(
                f"{item.session} {item.title}: {', '.join(item.concepts)}" for item in shown.older
            ),
        ]
    if shown.read:
        parts += [Text("Read so far", style="bold"), lines(shown.read)]
    if shown.reviews:
        due = ", ".join(item.title for item in shown.reviews)
        parts.append(Text(f"Due for review first: {due}."))
    return Group(*parts)


def summary(shown: SessionSummary) -> RenderableType:
    """A session step by step, drawn from the log (B4)."""
    head = f"{shown.session} {shown.title}: {shown.minutes} minutes so far."
    parts: list[RenderableType] = [Text(head), Text(shown.objective, style="dim")]
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(max_width=max(console().width // 3, 10))
    table.add_column()
    for step in shown.steps:
        if step.state is State.LOCKED:
            continue
        tries = "1 attempt" if step.attempts == 1 else f"{step.attempts} attempts"
        detail = tries + (f", down to {step.rungs[-1]}" if step.rungs else "")
        result = step.result or MARKS[step.state]
        table.add_row(step.kind, step.title, f"{result} ({detail})")
    parts.append(table)
    if shown.concepts:
        parts.append(hanging("Mastered: ", "; ".join(item.title for item in shown.concepts)))
    for heading, items in (("Built", shown.built), ("Insights", shown.insights)):
        if items:
            parts.append(hanging(f"{heading}: ", "; ".join(items)))
    for note in shown.notes:
        parts.append(hanging("Note: ", note))
    return Group(*parts)


def mastery(
    shown: Mastery, resources: tuple[Resource, ...], milestone: str | None
) -> RenderableType:
    proofs = ", ".join(f"{proof.step} (attempt {proof.attempt})" for proof in shown.proofs)
    parts: list[RenderableType] = [
        title(f"Mastered: {shown.title}"),
        Text(f"Proofs: {proofs}."),
        Text(""),
        Text("To read outside, now or later:", style="bold"),
    ]
    for item in resources:
        parts.append(hanging("- ", f"{item.title} ({item.kind}). {item.where}"))
        if item.why:
            parts.append(Padding(Text(item.why, style="dim"), (0, 0, 0, 2)))
    if milestone:
        parts += [Text(""), Text(f"Phase complete: {milestone}.", style="bold")]
    return Group(*parts)


# --------------------------------------------------------------------------- status


def status(outline: Outline, progress: Progress, loaded: str) -> RenderableType:
    """The map: phases, sessions, concepts, and what unlocks what is locked."""
    parts: list[RenderableType] = [Text(loaded)]
    for phase in outline.phases:
        parts += [Text(""), Text(f"Phase {phase.number}  {phase.title}", style="bold")]
        if not phase.sessions:
            parts.append(Text(f"  not yet written; {phase.planned_sessions} sessions", style="dim"))
        for session in phase.sessions:
            record = progress.sessions[session.id]
            passed = sum(progress.steps[step.id].passed for step in session.steps)
            cold = ", tested out" if record.tested_out else ""
            style = {"locked": "dim", "done": "right"}.get(MARKS[record.state], "")
            tail = f"{passed} of {len(session.steps)} steps, {MARKS[record.state]}{cold}"
            parts.append(_two_ends(f"  {session.id}  {session.title}", tail, style))
            mastered = [c.title for c in session.concepts if c.id in progress.concepts_mastered]
            if mastered:
                parts.append(hanging("       mastered: ", "; ".join(mastered)))
            if record.state is State.OPEN:
                parts += _open_session(outline, progress, session.id)
            elif record.state is State.LOCKED:
                reason = why_locked(session.id, progress, outline)
                parts.append(hanging("       ", reason, "dim"))
    return Group(*parts)


def _two_ends(head: str, tail: str, style: str = "", column: int = 46) -> Text:
    """One line: `tail` from `column` on, earlier where the line would wrap; `head` is cut."""
    width = console().width
    column = max(min(column, width - len(tail) - 1), width // 2)
    return Text(cut(f"{cut(head, column):<{column}} {tail}".rstrip(), width), style=style)


def _open_session(outline: Outline, progress: Progress, session_id: str) -> list[RenderableType]:
    rows: list[RenderableType] = []
    for heading in outline.session(session_id).steps:
        step = progress.steps[heading.id]
        if step.passed:
            word = "done"
        elif step.state is State.OPEN:
            word = f"next: {describe(step.gate)}"
        else:
            word = ""
        mark = {State.PASSED: "x", State.OPEN: ">"}.get(step.state, " ")
        text = f"       [{mark}] {heading.kind:<8}{heading.title}"
        rows.append(_two_ends(text, word, "" if word else "dim"))
    for concept in outline.session(session_id).concepts:
        if concept.id not in progress.concepts_mastered:
            missing = [proof for proof in concept.proofs if not progress.steps[proof].passed]
            todo = f"to master {concept.title}: {', '.join(missing)}"
            rows.append(hanging("       ", todo, "dim"))
    return rows
