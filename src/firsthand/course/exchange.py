"""One file carries the whole state between the GPU machine and the laptop.

Export is atomic. Import validates everything before it writes, appends only what is new, and on any
error leaves the log as it was. Two logs of one workspace are the same story when the learner's
events of one continue those of the other; events that only say that somebody sat down do not count.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from firsthand.course.errors import FirsthandError
from firsthand.course.log import Clock, Event, EventKind, EventLog, LogError, known_kind, utc_now

FORMAT = "firsthand state"
VERSION = 1
MOST_BYTES = 256 * 2**20
BOOKKEEPING = frozenset(
    (
        EventKind.CREATED,
        EventKind.MACHINE,
        EventKind.SITTING,
        EventKind.PAUSE,
        EventKind.SEEN,
        EventKind.EXPORTED,
    )
)


class ExchangeError(FirsthandError):
    """A file that cannot be exported to or imported from, in one sentence."""


@dataclass(frozen=True)
class Exported:
    """What was written. sha256: over the canonical events."""

    path: Path
    events: int
    sha256: str


@dataclass(frozen=True)
class Imported:
    """What was read. added: events new to this log. backup: the former log, where one was made."""

    workspace: str
    events: int
    added: int
    exported_at: str
    backup: Path | None = None


def export_state(log: EventLog, path: Path, *, clock: Clock = utc_now) -> Exported:
    """Write every event to `path`, whole or not at all. Raises ExchangeError, LogError."""
    events = log.events()
    workspace = _workspace(events)
    if workspace is None:
        raise ExchangeError("There is nothing to export yet: the log is empty.")
    machines = [event.data for event in events if event.kind == EventKind.MACHINE]
    records = [_record(event) for event in events]
    checksum = _checksum(records)
    document = {
        "format": FORMAT,
        "version": VERSION,
        "workspace": workspace,
        "exported_at": clock().isoformat(timespec="seconds"),
        "machine": machines[-1] if machines else None,
        "sha256": checksum,
        "events": records,
    }
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(document, file, indent=1, sort_keys=True)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise ExchangeError(f"{path}: not written ({error.strerror}).") from None
    with suppress(LogError):  # the file is whole; a log that takes no line makes it no less so
        log.append(EventKind.EXPORTED, path=str(path), sha256=checksum)
    return Exported(path, len(events), checksum)


def import_state(
    path: Path, log: EventLog, *, replace: bool = False, clock: Clock = utc_now
) -> Imported:
    """Append what `path` has and `log` has not. Raises ExchangeError and changes nothing if the
    file is unsound or tells another story; `replace` then backs the log up and takes the file's.
    """
    document = _read(path)
    there: list[Event] = document["events"]
    here = log.events()
    workspace, exported_at = document["workspace"], document["exported_at"]
    done = len(there)
    if not here:
        return Imported(workspace, done, log.append_all(there), exported_at)
    difference = _difference(here, there)
    if difference is None:
        known = Counter(map(_identity, here))
        new = []
        for event in there:
            identity = _identity(event)
            if known[identity] > 0:
                known[identity] -= 1
            else:
                new.append(event)
        ours, theirs = _told(here), _told(there)
        added = log.append_all(new) if len(theirs) > len(ours) else 0
        return Imported(workspace, done, added, exported_at)
    untouched = not _told(here)
    if not (replace or untouched):
        raise ExchangeError(f"{path}: not imported, since {difference}.")
    backup = _free_name(log.path, clock())
    added = log.replace_all(there, backup)
    return Imported(workspace, done, added, exported_at, backup)


# ---------------------------------------------------------------------- comparing two logs


def _told(events: Sequence[Event]) -> list[str]:
    """The identities of the learner's own events, in order."""
    return [_identity(event) for event in events if event.kind not in BOOKKEEPING]


def _difference(here: Sequence[Event], there: Sequence[Event]) -> str | None:
    """What keeps the two from being one story; None if nothing does."""
    if _workspace(here) != _workspace(there):
        return "it belongs to another workspace"
    ours = [event for event in here if event.kind not in BOOKKEEPING]
    theirs = [event for event in there if event.kind not in BOOKKEEPING]
    for shared, (mine, other) in enumerate(zip(ours, theirs, strict=False)):
        if _identity(mine) != _identity(other):
            return (
                f"the two logs share {shared} events and then differ: here {_named(mine)},"
                f" there {_named(other)}"
            )
    return None


def _named(event: Event) -> str:
    where = event.step or event.session
    return f"{event.kind}{f' at {where}' if where else ''} on {event.at[:16]}"


def _workspace(events: Sequence[Event]) -> str | None:
    for event in events:
        if event.kind == EventKind.CREATED:
            return str(event.data.get("workspace"))
    return None


def _record(event: Event) -> dict[str, Any]:
    return {
        "number": event.number,
        "at": event.at,
        "kind": str(event.kind),
        "session": event.session,
        "step": event.step,
        "data": event.data,
    }


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode("ascii")


def _identity(event: Event) -> str:
    """What an event is, wherever it stands in a log."""
    record = _record(event)
    del record["number"]
    return hashlib.sha256(_canonical(record)).hexdigest()


def _checksum(records: Sequence[dict[str, Any]]) -> str:
    return hashlib.sha256(_canonical(records)).hexdigest()


def _free_name(path: Path, now: datetime) -> Path:
    stem = f"{path.stem}.backup-{now:%Y%m%dT%H%M%S}"
    backup, copy = path.with_name(stem + path.suffix), 1
    while backup.exists():
        copy += 1
        backup = path.with_name(f"{stem}-{copy}{path.suffix}")
    return backup


# ---------------------------------------------------------------------- reading the file


def require_sound(path: Path) -> None:
    """Raises ExchangeError where `path` is not a whole export that this version reads."""
    _read(path)


def _read(path: Path) -> dict[str, Any]:
    """The document with its events as Event, validated throughout."""
    try:
        if path.stat().st_size > MOST_BYTES:
            raise ExchangeError(f"{path}: over {MOST_BYTES // 2**20} MiB, which no export is.")
        raw = json.loads(path.read_bytes())
    except OSError as error:
        raise ExchangeError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError):
        raise ExchangeError(f"{path}: truncated or not an export (no valid JSON).") from None
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        raise ExchangeError(f"{path}: not an export of firsthand.")
    version = raw.get("version")
    if type(version) is not int or version < 1:
        raise ExchangeError(f"{path}: the export has no version.")
    if version > VERSION:
        raise ExchangeError(
            f"{path}: written by a newer firsthand (format {version}, this one reads {VERSION})."
        )
    try:
        document = _validated(path, raw)
        checksum = _checksum(raw["events"])
    except RecursionError:
        raise ExchangeError(f"{path}: damaged (nested too deeply).") from None
    if checksum != raw["sha256"]:
        raise ExchangeError(f"{path}: damaged or changed by hand (its checksum does not match).")
    if _workspace(document["events"]) != raw["workspace"]:
        raise ExchangeError(f"{path}: damaged (it names a workspace that is not that of its log).")
    return document


def _validated(path: Path, raw: dict[str, Any]) -> dict[str, Any]:
    # Imported here: `status` must start without pydantic.
    from pydantic import AwareDatetime, BaseModel, ConfigDict, TypeAdapter, ValidationError

    class EventRecord(BaseModel):
        model_config = ConfigDict(strict=True, extra="forbid")
        number: int
        at: str
        kind: str
        session: str | None
        step: str | None
        data: dict[str, Any]

    class Document(BaseModel):
        model_config = ConfigDict(strict=True)
        workspace: str
        exported_at: str
        sha256: str
        events: list[EventRecord]

    times = TypeAdapter(AwareDatetime)
    try:
        document = Document.model_validate(raw)
        for place, record in enumerate(document.events, start=1):
            times.validate_python(record.at)
            datetime.fromisoformat(record.at)
            if record.number != place:
                raise ExchangeError(f"{path}: damaged (event {place} is missing).")
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ExchangeError(f"{path}: damaged ({where or 'a time'}: {first['msg']}).") from None
    except ValueError as error:
        raise ExchangeError(f"{path}: damaged ({error}).") from None
    if not document.events or document.events[0].kind != EventKind.CREATED:
        raise ExchangeError(f"{path}: damaged (its first event is not the creation).")
    events = [
        Event(item.number, item.at, known_kind(item.kind), item.session, item.step, item.data)
        for item in document.events
    ]
    return {**document.model_dump(exclude={"events"}), "events": events}
