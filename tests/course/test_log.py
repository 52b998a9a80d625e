"""The event log: durable, append-only, shared, and clear about what is wrong with a file."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from firsthand.course.log import SCHEMA_VERSION, EventKind, EventLog, LogError


def child(script: str, *arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        text=True,
    )


APPENDER = """
    import sys
    from pathlib import Path
    from firsthand.course.log import EventKind, EventLog
    with EventLog(Path(sys.argv[1])) as log:
        for count in range(int(sys.argv[3])):
            event = log.append(EventKind.NOTE, text=f"{sys.argv[2]} {count}")
            print(event.number, flush=True)
"""


def test_what_is_appended_is_what_is_read(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "log.sqlite"
    clock_time = datetime(2025, 1, 1, 20, tzinfo=UTC)
    data = {"answer": "2×3 \ud800 'x'", "pair": (1, 2), "none": None, "nested": {"a": [1.5]}}
    with EventLog(path, clock=lambda: clock_time) as log:
        event = log.append(EventKind.ATTEMPT, "1.1", "1.1/neuron", **data)
    with EventLog(path) as log:
        assert log.events() == (event,)
        assert log.events(after=event.number) == ()
    assert event.data == {**data, "pair": [1, 2]}
    assert event.time == clock_time
    assert event.kind is EventKind.ATTEMPT


def test_every_commit_reaches_the_disk(tmp_path: Path) -> None:
    # A power cut cannot be tested here; that SQLite waits for the disk is a setting, 2 for FULL.
    with EventLog(tmp_path / "log.sqlite") as log:
        assert log._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert log._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_events_of_a_newer_version_keep_their_kind(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with EventLog(path) as log:
        log.append("hologram")  # type: ignore[arg-type]
        assert log.events()[0].kind == "hologram"


@pytest.mark.parametrize("statement", ["UPDATE events SET step = 'x'", "DELETE FROM events"])
def test_nothing_can_be_changed_or_deleted(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "log.sqlite"
    with EventLog(path) as log:
        log.append(EventKind.START)
        other = sqlite3.connect(path)
        with pytest.raises(sqlite3.DatabaseError, match="only grows"):
            other.execute(statement)
        other.close()
        assert len(log.events()) == 1


def test_two_processes_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"  # both also create it
    writers = [child(APPENDER, path, name, 200) for name in ("a", "b")]
    for writer in writers:
        output, _ = writer.communicate(timeout=120)
        assert writer.returncode == 0
        assert len(output.split()) == 200
    with EventLog(path) as log:
        events = log.events()
    texts = [event.data["text"] for event in events]
    assert [event.number for event in events] == list(range(1, 401))
    for name in ("a", "b"):
        assert [t for t in texts if t[0] == name] == [f"{name} {n}" for n in range(200)]


def test_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    acknowledged = 0
    for round_ in range(3):
        writer = child(APPENDER, path, round_, 100_000)
        assert writer.stdout is not None
        for _ in range(20 + 7 * round_):
            acknowledged = int(writer.stdout.readline())
        os.kill(writer.pid, signal.SIGKILL)
        rest, _ = writer.communicate(timeout=60)
        complete = [line for line in rest.splitlines(keepends=True) if line.endswith("\n")]
        acknowledged = int(complete[-1]) if complete else acknowledged
        with EventLog(path) as log:
            numbers = [event.number for event in log.events()]
            assert numbers == list(range(1, len(numbers) + 1))
            assert len(numbers) >= acknowledged
    check = sqlite3.connect(path)
    assert check.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    check.close()


def test_a_locked_log_says_so_and_gives_the_answer_back(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with EventLog(path, busy_seconds=0.1) as log:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(LogError, match="another process has held the log") as caught:
            log.append(EventKind.ATTEMPT, answer="x @ w + b")
        assert caught.value.data == {"answer": "x @ w + b"}
        other.execute("ROLLBACK")
        other.close()
        assert log.append(EventKind.START).number == 1


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    with EventLog(tmp_path / "log.sqlite") as log:
        log.append(EventKind.START)
        (pages,) = log._connection.execute("PRAGMA page_count").fetchone()
        log._connection.execute(f"PRAGMA max_page_count = {pages}")
        long_answer = "x" * 100_000
        with pytest.raises(LogError, match="disk is full") as caught:
            log.append(EventKind.ATTEMPT, answer=long_answer)
        assert caught.value.data["answer"] == long_answer
        assert [event.kind for event in log.events()] == [EventKind.START]
        log._connection.execute("PRAGMA max_page_count = 100000")
        assert log.append(EventKind.ATTEMPT, answer=long_answer).number == 2


def test_a_read_only_log_is_read_and_not_written(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with EventLog(path) as log:
        log.append(EventKind.START)
    with EventLog(path, read_only=True) as log:
        assert len(log.events()) == 1
        with pytest.raises(LogError, match="read-only") as caught:
            log.append(EventKind.NOTE, text="kept")
        assert caught.value.data == {"text": "kept"}
    with pytest.raises(LogError, match="no such file"):
        EventLog(tmp_path / "none.sqlite", read_only=True)


def test_a_text_file_is_not_a_log(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    path.write_text("some notes of mine\n" * 100)
    with pytest.raises(LogError, match="not an SQLite file"):
        EventLog(path)
    assert path.read_text().startswith("some notes")


def test_a_foreign_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE songs (title TEXT)")
    other.commit()
    other.close()
    before = path.read_bytes()
    with pytest.raises(LogError, match="belongs to another program"):
        EventLog(path)
    assert path.read_bytes() == before


def test_a_newer_log_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    EventLog(path).close()
    other = sqlite3.connect(path)
    other.execute(f"PRAGMA user_version = {SCHEMA_VERSION + 1}")
    other.close()
    with pytest.raises(LogError, match="newer firsthand"):
        EventLog(path)


def test_a_damaged_log_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with EventLog(path) as log:
        for _ in range(200):
            log.append(EventKind.NOTE, text="y" * 500)
    content = bytearray(path.read_bytes())
    content[8192:24576] = b"\xff" * 16384
    path.write_bytes(content)
    with pytest.raises(LogError, match="damaged"):
        EventLog(path)


def test_a_folder_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "log.sqlite").mkdir()
    with pytest.raises(LogError, match="cannot be opened"):
        EventLog(tmp_path / "log.sqlite")
    (tmp_path / "file").write_text("")
    with pytest.raises(LogError):
        EventLog(tmp_path / "file" / "log.sqlite")


def test_a_workspace_is_created_once(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite"
    with EventLog(path) as one, EventLog(path) as other:
        assert one.ensure_created() == other.ensure_created()
        assert len(one.events()) == 1
        log_data = one.events()[0].data
    with EventLog(tmp_path / "second.sqlite") as second:
        assert second.ensure_created().data != log_data


def test_threads_share_one_log(tmp_path: Path) -> None:
    with EventLog(tmp_path / "log.sqlite") as log:
        threads = [
            threading.Thread(target=lambda: [log.append(EventKind.START) for _ in range(30)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(log.events()) == 120
