"""The event log: all state of a learner, append-only, in one SQLite file.

`append` returns when the event is on the disk (WAL with synchronous=FULL). UPDATE and DELETE are
refused by triggers. Two processes may append at once. Everything else that the course knows about
a learner is a pure function of these events (`progress.py`).
"""

from __future__ import annotations

import json
import secrets
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

from firsthand.course.errors import FirsthandError

APPLICATION_ID = 0x46484C47
SCHEMA_VERSION = 1
TABLE = """
CREATE TABLE events (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at TEXT NOT NULL,
    kind TEXT NOT NULL,
    session TEXT,
    step TEXT,
    data TEXT NOT NULL
)
"""
TRIGGERS = tuple(
    f"CREATE TRIGGER events_refuse_{action} BEFORE {action} ON events"
    " BEGIN SELECT RAISE(ABORT, 'the event log only grows'); END"
    for action in ("UPDATE", "DELETE")
)

Clock = Callable[[], datetime]


class LogError(FirsthandError):
    """The log cannot be read or written, in one sentence.

    data: what `append` was given and could not store (the learner's answer among it), so that the
    face can still show it; empty otherwise.
    """

    def __init__(self, message: str, data: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.data: dict[str, Any] = data or {}


class EventKind(StrEnum):
    """What can happen. No kind passes a step but an ATTEMPT whose verdict passed."""

    CREATED = "created"  # workspace, salt
    MACHINE = "machine"  # the record of machine.Machine
    SITTING = "sitting"  # sitting, machine: the learner sat down
    PAUSE = "pause"  # sitting
    SEEN = "seen"  # sitting, screen
    PROFILE = "profile"  # field, value, answer
    START = "start"
    ATTEMPT = "attempt"  # rung, seed, answer, fingerprint, verdict, machine
    HINT = "hint"  # number
    SIMPLIFY = "simplify"  # rung
    WORKED = "worked"  # the worked example was read
    REVIEW = "review"  # seed, answer, fingerprint, verdict
    TEST_OUT = "test_out"  # session
    FOCUS = "focus"  # session: the learner turns to another open session
    MASTERED = "mastered"  # concept, resources: they were shown
    SESSION_END = "session_end"  # the summary was shown
    READ = "read"  # title of a resource that the learner has read
    NOTE = "note"  # text, insight: the learner's own words
    EXPORTED = "exported"  # path


@dataclass(frozen=True)
class Event:
    """One line of the log. at: UTC, ISO 8601. kind is a plain str where this version is older."""

    number: int
    at: str
    kind: EventKind | str
    session: str | None = None
    step: str | None = None
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def time(self) -> datetime:
        return datetime.fromisoformat(self.at)


def utc_now() -> datetime:
    return datetime.now(UTC)


def known_kind(kind: str) -> EventKind | str:
    """The EventKind of this name, or the name itself when a newer version wrote it."""
    try:
        return EventKind(kind)
    except ValueError:
        return kind


class EventLog:
    """The log at `path`, created if there is none (unless read_only).

    busy_seconds: how long another process may hold the file before LogError.
    """

    def __init__(
        self,
        path: Path,
        *,
        clock: Clock = utc_now,
        busy_seconds: float = 5.0,
        read_only: bool = False,
    ) -> None:
        self.path = Path(path)
        self._clock = clock
        self._busy_seconds = busy_seconds
        self._lock = threading.RLock()
        if read_only and not self.path.exists():
            raise LogError(f"{self.path}: there is no such file")
        self._connection = self._connect(read_only)
        self._file = 0  # the inode; 0 until it is open
        try:
            with self._translated():
                self._open(read_only)
            self._file = self._inode()
        except BaseException:
            self._connection.close()
            raise

    # ------------------------------------------------------------------ reading and writing

    def append(
        self,
        kind: EventKind,
        session: str | None = None,
        step: str | None = None,
        **data: Any,
    ) -> Event:
        """Store one event; it is durable on return. Raises LogError (with `data`) if it is not."""
        text = json.dumps(data, sort_keys=True)
        if self._inode() != self._file:  # SQLite would write on into the file that was deleted
            raise LogError(f"{self.path}: the log is gone; was its folder deleted or moved?", data)
        with self._translated(data), self._transaction():
            return self._insert(self._now(), kind, session, step, text)

    def append_all(self, events: Iterable[Event]) -> int:
        """Store events of another copy of this log, all or none, with their own times."""
        with self._translated(), self._transaction():
            return self._insert_all(events)

    def ensure_created(self) -> Event:
        """The CREATED event: the first one, made now if the log is empty."""
        with self._translated(), self._transaction():
            first = self._select(0, limit=1)
            if first:
                return first[0]
            data = {"salt": secrets.token_hex(16), "workspace": secrets.token_hex(8)}
            text = json.dumps(data, sort_keys=True)
            return self._insert(self._now(), EventKind.CREATED, None, None, text)

    def events(self, after: int = 0) -> tuple[Event, ...]:
        """All events with a number above `after`, in order."""
        with self._lock, self._translated():
            return tuple(self._select(after))

    def replace_all(self, events: Iterable[Event], backup: Path) -> int:
        """Write a copy of this log to `backup`, then hold `events` instead, in one transaction."""
        with self._lock, self._translated():
            if backup.exists():
                raise LogError(f"{backup}: the backup would overwrite this file")
            copy = sqlite3.connect(backup)
            try:
                self._connection.backup(copy)
            finally:
                copy.close()
            with self._transaction():
                for action in ("UPDATE", "DELETE"):
                    self._connection.execute(f"DROP TRIGGER events_refuse_{action}")
                self._connection.execute("DELETE FROM events")
                self._connection.execute("DELETE FROM sqlite_sequence WHERE name = 'events'")
                count = self._insert_all(events)
                for statement in TRIGGERS:
                    self._connection.execute(statement)
            return count

    def close(self) -> None:
        with self._lock:
            self._connection.close()

    def __enter__(self) -> EventLog:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # ------------------------------------------------------------------ the file

    def _connect(self, read_only: bool) -> sqlite3.Connection:
        try:
            if not read_only:
                self.path.parent.mkdir(parents=True, exist_ok=True)
            uri = f"{self.path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}"
            return sqlite3.connect(
                uri,
                uri=True,
                timeout=self._busy_seconds,
                isolation_level=None,
                check_same_thread=False,
            )
        except OSError as error:
            raise LogError(f"{error.filename}: {error.strerror}") from None
        except sqlite3.Error as error:
            raise LogError(f"{self.path}: the log cannot be opened ({error})") from None

    def _open(self, read_only: bool) -> None:
        application, version = self._stamp()
        if (application, version) == (0, 0) and self._is_empty() and not read_only:
            self._create()
            application, version = self._stamp()
        if application != APPLICATION_ID:
            raise LogError(f"{self.path}: this SQLite file belongs to another program")
        if version > SCHEMA_VERSION:
            raise LogError(
                f"{self.path}: the log was written by a newer firsthand (format {version}, this "
                f"one reads {SCHEMA_VERSION}); update firsthand"
            )
        if read_only:
            self._connection.execute("PRAGMA query_only = ON")
        else:
            self._connection.execute("PRAGMA synchronous = FULL")
        (finding,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        if finding != "ok":
            raise LogError(f"{self.path}: the log is damaged ({finding})")

    def _create(self) -> None:
        # Switching to WAL can be refused at once, without the busy timeout, while another process
        # creates the same file.
        deadline = time.monotonic() + self._busy_seconds
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                if _base_code(error) != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
        with self._transaction():
            if self._stamp() == (0, 0):
                for statement in (TABLE, *TRIGGERS):
                    self._connection.execute(statement)
                self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
                self._connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")

    def _inode(self) -> int:
        try:
            return self.path.stat().st_ino
        except OSError:
            return 0

    def _stamp(self) -> tuple[int, int]:
        (application,) = self._connection.execute("PRAGMA application_id").fetchone()
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        return application, version

    def _is_empty(self) -> bool:
        (tables,) = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        return bool(tables == 0)

    # ------------------------------------------------------------------ rows

    def _now(self) -> str:
        return self._clock().astimezone(UTC).isoformat(timespec="microseconds")

    def _insert(
        self, at: str, kind: str, session: str | None, step: str | None, data: str
    ) -> Event:
        cursor = self._connection.execute(
            "INSERT INTO events (at, kind, session, step, data) VALUES (?, ?, ?, ?, ?)",
            (at, str(kind), session, step, data),
        )
        assert cursor.lastrowid is not None
        # Read back from the text, so that the event equals what a later reader gets.
        return Event(cursor.lastrowid, at, known_kind(kind), session, step, json.loads(data))

    def _insert_all(self, events: Iterable[Event]) -> int:
        count = 0
        for event in events:
            text = json.dumps(event.data, sort_keys=True)
            self._insert(event.at, event.kind, event.session, event.step, text)
            count += 1
        return count

    def _select(self, after: int, limit: int = -1) -> list[Event]:
        rows = self._connection.execute(
            "SELECT number, at, kind, session, step, data FROM events"
            " WHERE number > ? ORDER BY number LIMIT ?",
            (after, limit),
        )
        events = []
        for number, at, kind, session, step, data in rows:
            try:
                events.append(Event(number, at, known_kind(kind), session, step, json.loads(data)))
            except ValueError:
                raise LogError(
                    f"{self.path}: the log is damaged (event {number} is unreadable)"
                ) from None
        return events

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._connection.execute("COMMIT")
            except BaseException:
                # After a full disk SQLite may have rolled back by itself.
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise

    @contextmanager
    def _translated(self, data: dict[str, Any] | None = None) -> Iterator[None]:
        """SQLite's errors as LogError."""
        try:
            yield
        except sqlite3.Error as error:
            raise LogError(f"{self.path}: {self._explain(error)}", data) from error

    def _explain(self, error: sqlite3.Error) -> str:
        code = _base_code(error)
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return (
                f"another process has held the log for more than {self._busy_seconds:g} seconds;"
                " close it and try again"
            )
        if code == sqlite3.SQLITE_NOTADB:
            return "this is not a firsthand log (not an SQLite file)"
        if code == sqlite3.SQLITE_CORRUPT:
            return f"the log is damaged ({self._finding() or error})"
        if code == sqlite3.SQLITE_READONLY:
            return "the log is read-only, so nothing was stored"
        if code == sqlite3.SQLITE_FULL:
            return "the disk is full, so nothing was stored; what was stored before is intact"
        if code == sqlite3.SQLITE_CANTOPEN:
            return "the log cannot be opened; is the folder there, and may you write to it?"
        if code == sqlite3.SQLITE_IOERR:
            return f"the log could not be read or written ({error}); is the disk full?"
        return f"the log failed ({error})"

    def _finding(self) -> str:
        try:
            (finding,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
        except sqlite3.Error:
            return ""
        return "" if finding == "ok" else str(finding)


def _base_code(error: sqlite3.Error) -> int:
    """The primary result code; extended codes keep it in the lowest byte."""
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & 0xFF
