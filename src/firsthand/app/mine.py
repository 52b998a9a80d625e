"""The learner's own parts in the real system: what `--mine` trains with.

A field of `Parts` is the learner's when its Build steps are passed and the concepts that they prove
are mastered; everything else is the stack's, and the table says why. The log proves the file as it
was: before a run takes a part, the file as it is now is imported and compared with the reference
(see `preflight`). One that does not agree stops the run: the stack's never takes over in silence.
"""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from firsthand.app.cli.place import COURSE, open_log, workspace_at
from firsthand.app.preflight import find_difference
from firsthand.course.checks import calls, imports
from firsthand.course.checks.values import type_name
from firsthand.course.errors import FirsthandError
from firsthand.course.fold import progress as fold
from firsthand.course.loading import Course
from firsthand.course.log import Event
from firsthand.course.progress import Progress
from firsthand.course.sources import PartName
from firsthand.course.workspace import Workspace
from firsthand.llm.model.parts import Parts
from firsthand.llm.parts import REFERENCE
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.memory import is_out_of_memory

Part = Callable[..., Any]

MASTERED = "mastered"
CHANGED = "mastered; changed since, compared again"
NO_STEP = "no step builds it"
NOT_AT_FIRST = "the run began with the stack's"


class PartError(FirsthandError, TrainingError):
    """A part of the learner's that cannot be used; names the function, its file and its line."""


@dataclass(frozen=True)
class Row:
    """Whose code a part is.

    Attributes:
        part: the field of `Parts`.
        whose: the learner's or the stack's.
        where: "mine/model/attention.py:12", or the module and name in the stack.
        why: what made it so.
    """

    part: str
    whose: Literal["yours", "stack"]
    where: str
    why: str


def own_parts(
    workspace: Path | None,
    base: Parts,
    *,
    course: Course = COURSE,
    only: Collection[str] | None = None,
) -> tuple[Parts, list[Row]]:
    """`base` with the learner's parts wherever they are mastered, and whose each part is.

    The modules of the workspace are imported as `mine`, anew with each call. In them too a part
    that is not mastered is the stack's, as in a check. Random numbers are drawn from none of the
    generators that a run uses.

    Args:
        workspace: its folder; None is the one that this folder lies in, or ./mine.
        base: what the other parts are.
        course: whose steps build the parts.
        only: the parts that a run began with, to go on with it; None takes all that are mastered.
    Raises:
        WorkspaceError, LogError: there is no workspace, or its log cannot be read.
        PartError: a mastered part is gone, cannot be imported or called, differs from the
            reference; or one of `only` is not mastered here.
    """
    place = workspace_at(workspace)
    events: tuple[Event, ...] = ()
    if place.log_path.exists():
        with open_log(place, read_only=True) as log:
            events = log.events()
    standings = _standings(course, fold(events, course.outline))
    wanted = {name: _part_of(course, name) for name in REFERENCE.origins()}
    own = {
        name: found
        for name, part in wanted.items()
        if (found := standings.get(str(part))) is not None
        and found.mastered
        and (only is None or name in only)
    }
    for name in sorted(set(only or ()) - set(own)):
        found = standings.get(str(wanted[name])) if name in wanted else None
        raise PartError(
            f"The run began with your {name}; here it is not mastered "
            f"({found.why if found else NO_STEP}). Give the workspace that it began with."
        )
    rows = []
    with torch.random.fork_rng(devices=[]):
        code = _OwnCode(place, course.stack, standings)
        taken = {name: code.proven(name, wanted[name], found) for name, found in own.items()}
    for name, origin in base.origins().items():
        found = standings.get(str(wanted[name]))
        if name in own and found is not None:
            changed = code.changed(wanted[name], found, events)
            rows.append(
                Row(name, "yours", code.where(wanted[name]), CHANGED if changed else found.why)
            )
        else:
            kept = found is not None and found.mastered
            why = NO_STEP if found is None else NOT_AT_FIRST if kept else found.why
            rows.append(Row(name, "stack", origin, why))
    return replace(base, **taken), rows


def run_record(rows: Iterable[Row]) -> dict[str, Any]:
    """The rows as plain values for the record of a run."""
    return {"whose": {r.part: {"whose": r.whose, "where": r.where, "why": r.why} for r in rows}}


def parts_table(rows: Sequence[Row]) -> RenderableType:
    """Part, whose and where, the learner's first; below it why the others are the stack's."""
    table = Table("part", "whose", "where", box=None, pad_edge=False)
    for row in sorted(rows, key=lambda row: row.whose != "yours"):
        where = row.where.removeprefix("firsthand.")
        changed = " (changed since it was proven)" if row.why == CHANGED else ""
        table.add_row(row.part, row.whose, Text(where + changed, overflow="fold"))
    reasons: dict[str, list[str]] = {}
    for row in rows:
        if row.whose == "stack":
            reasons.setdefault(row.why, []).append(row.part)
    own = sum(row.whose == "yours" for row in rows)
    lines = [f"{own} of {len(rows)} parts are yours."]
    for why, names in reasons.items():
        shown = ", ".join(names) if why != NO_STEP else f"{len(names)} parts"
        lines.append(f"The stack's, {why}: {shown}.")
    return Group(table, *(Text(line) for line in lines))


# --------------------------------------------------------------------------- what the log says


@dataclass(frozen=True)
class _Standing:
    """Of one part: its Build steps, whether it is mastered, the event of its latest proof."""

    steps: tuple[str, ...]
    mastered: bool
    why: str
    proof: int = 0


def _part_of(course: Course, name: str) -> PartName:
    """The name of a field's reference below the stack, which is the one in the workspace."""
    module, _, leaf = REFERENCE.origins()[name].rpartition(".")
    return PartName(module.removeprefix(course.stack + "."), leaf)


def _standings(course: Course, progress: Progress) -> dict[str, _Standing]:
    """Every part that the course builds."""
    sessions = course.outline.sessions
    built = course.parts_until(sessions[-1].id) if sessions else {}
    return {part: _standing(course, progress, steps) for part, steps in built.items()}


def _standing(course: Course, progress: Progress, steps: tuple[str, ...]) -> _Standing:
    left = [step for step in steps if not progress.steps[step].passed]
    if left:
        return _Standing(steps, False, f"not built yet: {left[0]}")
    for step in steps:
        for concept in course.outline.concepts_of(step):
            if concept.id not in progress.concepts_mastered:
                states = {proof: progress.steps.get(proof) for proof in concept.proofs}
                waiting = [id_ for id_, state in states.items() if not (state and state.passed)]
                missing = f"{waiting[0]} is not passed yet" if waiting else concept.title
                return _Standing(steps, False, f"built, not mastered: {missing}")
    solved = [attempt for step in steps if (attempt := progress.steps[step].solved) is not None]
    latest = max(attempt.event for attempt in solved)
    return _Standing(steps, True, MASTERED, latest)


# --------------------------------------------------------------------------- the learner's files


class _OwnCode:
    """The modules of a workspace, importable as `mine` until the next one is made."""

    def __init__(self, place: Workspace, stack: str, standings: dict[str, _Standing]) -> None:
        self.place, self.stack = place, stack
        self.sources = calls.Sources(str(place.root))
        references: dict[str, list[str]] = {}
        for part, standing in standings.items():
            if not standing.mastered:
                module, _, name = part.partition(":")
                references.setdefault(module, []).append(name)
        finder = imports.Workspace(
            root=str(place.root),
            stack=stack,
            under_check=None,
            references=references,
            sources=self.sources,
            guard=imports.Guard(stack, (), self.sources),
        )
        earlier = [item for item in sys.meta_path if isinstance(item, imports.Workspace)]
        for item in earlier:
            sys.meta_path.remove(item)
        own = (imports.PACKAGE, imports.PACKAGE + ".")
        imports.modules_apart([n for n in list(sys.modules) if n == own[0] or n.startswith(own[1])])
        sys.meta_path.insert(0, finder)

    def proven(self, field: str, part: PartName, standing: _Standing) -> Part:
        """The learner's version, compared with the reference and wrapped to name its errors.

        Raises:
            PartError: it cannot be used.
        """
        found = self._imported(part, standing)
        reference = getattr(REFERENCE, field)
        again = f"Run its step again: firsthand check {standing.steps[-1]}"
        file = self.where(part)
        if found is reference or str(getattr(found, "__module__", "")).startswith(self.stack + "."):
            raise PartError(f"{part.name} ({file}) is the stack's version. {again}")
        if not callable(found):
            kind = type(found).__name__
            raise PartError(f"{part.name} ({file}) is of type {kind}, no function. {again}")
        refusal = _refused_call(found, reference)
        if refusal:
            raise PartError(f"{part.name} ({file}) cannot be called as it must: {refusal}. {again}")
        named = self._naming_errors(found, part)
        try:
            difference = find_difference(field, named)
        except PartError as error:
            raise PartError(f"{error} {again}") from error
        except Exception as error:
            kind, text = type_name(error), _first_line(calls.message_of(error))
            raise PartError(
                f"With your {part.name} ({file}) the stack stops: {kind}: {text} {again}"
            ) from error
        if difference is not None:
            raise PartError(
                f"Your {part.name} ({file}) differs from the reference: {difference}. {again}"
            )
        return named

    def where(self, part: PartName) -> str:
        """The file, from the workspace's name on, and the line where the part begins."""
        node = _definition(self._text(part), part.name)
        return self._shown(self._file(part), node.lineno if node else 1)

    def changed(self, part: PartName, standing: _Standing, events: Sequence[Event]) -> bool:
        """Whether the part's text is no longer that of the attempt which passed its last step."""
        proof = next((event for event in events if event.number == standing.proof), None)
        before = str(proof.data.get("answer", "")) if proof is not None else ""
        return _segment(before, part.name) != _segment(self._text(part), part.name)

    def _file(self, part: PartName) -> Path:
        return self.place.root / part.file

    def _text(self, part: PartName) -> str:
        try:
            return self._file(part).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return ""

    def _shown(self, file: Path | str, line: int | None) -> str:
        path = Path(file)
        if path.is_relative_to(self.place.root):
            path = path.relative_to(self.place.root.parent)
        return path.as_posix() if line is None else f"{path.as_posix()}:{line}"

    def _imported(self, part: PartName, standing: _Standing) -> object:
        file = self._file(part)
        if not file.is_file():
            raise PartError(
                f"{self._shown(file, None)} is not there, though {standing.steps[-1]} is passed: "
                f"it held your {part.name}."
            )
        try:
            module = importlib.import_module(f"{imports.PACKAGE}.{part.module}")
        except (Exception, SystemExit) as error:
            place = self.sources.last_in(error.__traceback__)
            if isinstance(error, SyntaxError) and error.filename and error.lineno:
                place = self.sources.place(error.filename, error.lineno)
            at = self._shown(place.file, place.line) if place else self._shown(file, None)
            kind, text = type_name(error), _first_line(calls.message_of(error))
            raise PartError(f"Your {part.name} cannot be imported: {at}: {kind}: {text}") from error
        if not hasattr(module, part.name):
            raise PartError(f"{self._shown(file, None)} defines no {part.name} any more.")
        found: object = getattr(module, part.name)
        return found

    # ----------------------------------------------------------------- errors on the way

    def _naming_errors(self, found: Part, part: PartName) -> Part:
        """The same function or class, whose exceptions say that it is this part's, and the line."""
        if not isinstance(found, type):
            return self._wrapped(found, part)
        members: dict[str, Any] = {}
        for owner in reversed(found.__mro__[:-1]):
            for name, member in vars(owner).items():
                # Python itself listens to what the other special methods raise.
                if name[:2] == "__" and name not in ("__init__", "__call__"):
                    continue
                if inspect.isfunction(member):
                    members[name] = self._wrapped(member, part, name)
                elif isinstance(member, property) and member.fget is not None:
                    getter = self._wrapped(member.fget, part, name)
                    members[name] = property(getter, member.fset, member.fdel, member.__doc__)
        named = {"__module__": found.__module__, "__qualname__": found.__qualname__}
        return type(found)(found.__name__, (found,), {**members, **named, "__doc__": found.__doc__})

    def _wrapped(self, function: Part, part: PartName, method: str = "") -> Part:
        explain, name = self._explained, f"{part.name}.{method}" if method else part.name

        def call(*arguments: Any, **named: Any) -> Any:
            try:
                return function(*arguments, **named)
            except Exception as error:
                explained = explain(error, name, part)
                if explained is None:
                    raise
                raise explained from error

        functools.update_wrapper(call, function)
        # A decorator of the learner's may have given it another name.
        call.__module__, call.__qualname__ = f"{imports.PACKAGE}.{part.module}", name
        return call

    def _explained(self, error: Exception, name: str, part: PartName) -> PartError | None:
        """None for what is no fault of the part: it goes on as it is."""
        if type(error).__module__.startswith("firsthand.") or is_out_of_memory(error):
            return None
        place = self.sources.last_in(error.__traceback__)
        at = self._shown(place.file, place.line) if place else self.where(part)
        source = f": `{place.source}`" if place and place.source else ""
        kind, text = type_name(error), _first_line(calls.message_of(error))
        return PartError(f"Your {name} raised {kind}: {text} ({at}{source}).")


def _refused_call(found: Part, reference: Part) -> str:
    """Why a call with the reference's arguments is none of the part; '' where it is one."""
    try:
        own, wanted = inspect.signature(found), inspect.signature(reference)
    except (TypeError, ValueError):  # it has none that can be read; the comparison calls it
        return ""
    parameters = wanted.parameters.values()
    by_name = {p.name: 0 for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty}
    places = [0 for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    try:
        own.bind(*places, **by_name)
    except TypeError as error:
        names = ", ".join(parameter.name for parameter in parameters)
        return f"the stack passes ({names}): {error}"
    return ""


def _definition(text: str, name: str) -> ast.stmt | None:
    """The statement of a module that binds a name last, in a text that may be broken."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError):
        return None
    found = None
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            bound = {node.name}
        elif isinstance(node, ast.Import | ast.ImportFrom):
            bound = {alias.asname or alias.name for alias in node.names}
        else:
            bound = {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
        if name in bound:
            found = node
    return found


def _segment(text: str, name: str) -> str | None:
    """The text of a definition, or all of it where there is none."""
    node = _definition(text, name)
    return text if node is None else ast.get_source_segment(text, node)


def _first_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[0] if lines else ""
