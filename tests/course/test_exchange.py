"""Export and import: the whole state or nothing, and never a word of the learner's lost."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firsthand.course.exchange import ExchangeError, export_state, import_state
from firsthand.course.fold import progress
from firsthand.course.log import Event, EventKind, EventLog
from firsthand.course.outline import Outline
from firsthand.course.verdicts import Outcome

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIXED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)


@pytest.fixture
def exported(learner: Any, tmp_path: Path) -> Path:
    learner.wrong("no_sum")
    learner.pass_steps(3)
    export_state(learner.log, tmp_path / "state.json")
    return tmp_path / "state.json"


def told(events: tuple[Event, ...]) -> list[Event]:
    return [event for event in events if event.kind != EventKind.EXPORTED]


def test_into_an_empty_workspace_gives_the_same_progress(
    learner: Any, exported: Path, tmp_path: Path
) -> None:
    with EventLog(tmp_path / "new.sqlite") as new:
        imported = import_state(exported, new)
        assert new.events() == tuple(told(learner.log.events()))
        assert progress(new.events(), learner.outline) == progress(
            told(learner.log.events()), learner.outline
        )
        assert imported.added == imported.events == len(new.events())
        assert import_state(exported, new).added == 0


@FIXED
@given(data=st.lists(st.dictionaries(st.text(), JSON, max_size=3), max_size=6))
def test_any_events_make_the_round_trip(
    small_outline: Outline, tmp_path_factory: Any, data: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("round")
    with EventLog(folder / "a.sqlite") as a, EventLog(folder / "b.sqlite") as b:
        created = a.ensure_created()
        a.append_all(
            Event(0, created.at, EventKind.ATTEMPT, "1.1", "1.1/neuron", item) for item in data
        )
        before = a.events()
        export_state(a, folder / "state.json")
        import_state(folder / "state.json", b)
        assert b.events() == before
        assert progress(b.events(), small_outline) == progress(before, small_outline)


def test_only_what_is_new_is_appended(
    learner: Any, exported: Path, tmp_path: Path, clock: Any, new_learner: Any
) -> None:
    with EventLog(tmp_path / "new.sqlite", clock=clock) as new:
        import_state(exported, new)
        clock.pass_by(minutes=1)
        other = new_learner(new, clock, learner.outline)
        other.pass_steps(2)
        export_state(new, tmp_path / "back.json")
        learner.sit_down()
        before = learner.log.events()
        import_state(tmp_path / "back.json", learner.log)
        after = learner.log.events()
        assert after[: len(before)] == before
        assert learner.sitting.progress.current == other.sitting.progress.current == "1.3/trace"
        # and there and back again, although the two logs interleave differently
        learner.pass_steps(1)
        export_state(learner.log, tmp_path / "again.json")
        import_state(tmp_path / "again.json", new)
        assert other.sitting.progress.steps["1.3/trace"].passed
        gates = [
            {id_: step.gate for id_, step in one.sitting.progress.steps.items()}
            for one in (learner, other)
        ]
        assert gates[0] == gates[1]


def test_an_older_export_takes_nothing_away(learner: Any, exported: Path) -> None:
    learner.pass_steps(1)
    before = learner.log.events()
    assert import_state(exported, learner.log).added == 0
    assert learner.log.events() == before


def test_a_diverged_log_is_refused_with_the_difference(
    learner: Any, exported: Path, tmp_path: Path, clock: Any, new_learner: Any
) -> None:
    with EventLog(tmp_path / "new.sqlite", clock=clock) as new:
        import_state(exported, new)
        other = new_learner(new, clock, learner.outline)
        other.wrong("elsewhere")
        learner.pass_steps(1)
        export_state(learner.log, tmp_path / "mine.json")
        before = new.events()
        with pytest.raises(ExchangeError, match=r"share \d+ events and then differ: here attempt"):
            import_state(tmp_path / "mine.json", new)
        assert new.events() == before
        imported = import_state(tmp_path / "mine.json", new, replace=True, clock=clock)
        assert imported.backup == tmp_path / f"new.backup-{clock():%Y%m%dT%H%M%S}.sqlite"
        assert told(new.events()) == told(learner.log.events())
        with EventLog(imported.backup) as backup:
            assert backup.events() == before
        again = import_state(exported, new, replace=True, clock=clock)
        assert again.added == 0  # an older export is no other story
        # The log still only grows.
        with pytest.raises(sqlite3.DatabaseError, match="only grows"):
            new._connection.execute("DELETE FROM events")


def test_another_workspace_is_refused_unless_this_one_is_untouched(
    learner: Any, exported: Path, tmp_path: Path, clock: Any, new_learner: Any
) -> None:
    with EventLog(tmp_path / "used.sqlite", clock=clock) as used:
        new_learner(used, clock, learner.outline).step()
        with pytest.raises(ExchangeError, match="another workspace"):
            import_state(exported, used)
    with EventLog(tmp_path / "fresh.sqlite", clock=clock) as fresh:
        new_learner(fresh, clock, learner.outline)  # sat down, answered nothing
        imported = import_state(exported, fresh, clock=clock)
        assert imported.backup is not None
        assert imported.backup.exists()
        assert fresh.events() == tuple(told(learner.log.events()))


def rewritten(change: Callable[[dict[str, Any]], Any], sign: bool = False) -> Any:
    def damage(text: str) -> str:
        document = json.loads(text)
        change(document)
        if sign:
            events = json.dumps(document["events"], sort_keys=True, separators=(",", ":"))
            document["sha256"] = hashlib.sha256(events.encode()).hexdigest()
        return json.dumps(document)

    return damage


def passed(document: dict[str, Any]) -> None:
    for event in document["events"]:
        if event["kind"] == "attempt":
            event["data"]["verdict"]["outcome"] = "passed"


DAMAGES: dict[str, tuple[Callable[[str], str], str]] = {
    "empty": (lambda _: "", "no valid JSON"),
    "truncated": (lambda text: text[: len(text) // 2], "truncated"),
    "binary": (lambda _: "\x00\x01", "no valid JSON"),
    "deep": (lambda _: "[" * 100_000, "no valid JSON"),
    "a list": (lambda _: "[]", "not an export"),
    "foreign": (lambda _: '{"format": "recipes"}', "not an export"),
    "newer": (rewritten(lambda d: d.update(version=2)), "newer firsthand"),
    "no version": (rewritten(lambda d: d.pop("version")), "no version"),
    "no events": (rewritten(lambda d: d.pop("events")), "damaged"),
    "no checksum": (rewritten(lambda d: d.pop("sha256")), "damaged"),
    "tampered": (rewritten(passed), "changed by hand"),
    "an event less": (rewritten(lambda d: d["events"].pop(3), sign=True), "event 4 is missing"),
    "no creation": (rewritten(lambda d: d["events"].clear(), sign=True), "not the creation"),
    "another id": (rewritten(lambda d: d.update(workspace="other")), "not that of its log"),
    "wrong time": (rewritten(lambda d: d["events"][2].update(at="noon"), sign=True), "damaged"),
    "no zone": (
        rewritten(lambda d: d["events"][2].update(at="2025-01-01T20:00:00"), sign=True),
        "damaged",
    ),
    "data a list": (rewritten(lambda d: d["events"][2].update(data=[]), sign=True), "damaged"),
    "a number as kind": (rewritten(lambda d: d["events"][2].update(kind=1), sign=True), "damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_unsound_file_is_named_and_changes_nothing(
    exported: Path, tmp_path: Path, name: str
) -> None:
    damage, message = DAMAGES[name]
    exported.write_text(damage(exported.read_text()))
    with EventLog(tmp_path / "new.sqlite") as new:
        for replace in (False, True):
            with pytest.raises(ExchangeError, match=message) as caught:
                import_state(exported, new, replace=replace)
            assert "\n" not in str(caught.value)
        assert new.events() == ()
    assert not list(tmp_path.glob("*.backup-*"))


def test_a_missing_file_is_named(log: EventLog, tmp_path: Path) -> None:
    with pytest.raises(ExchangeError, match="cannot be read"):
        import_state(tmp_path / "none.json", log)


def test_a_failed_export_leaves_the_former_one(
    learner: Any, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = exported.read_bytes()
    learner.give(Outcome.WRONG)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    count = len(learner.log.events())
    with pytest.raises(ExchangeError, match="No space left"):
        export_state(learner.log, exported)
    assert exported.read_bytes() == before
    assert not list(tmp_path.glob(".state*"))
    assert len(learner.log.events()) == count


def test_an_empty_log_is_not_exported(log: EventLog, tmp_path: Path) -> None:
    with pytest.raises(ExchangeError, match="nothing to export"):
        export_state(log, tmp_path / "state.json")


def test_the_file_says_where_it_comes_from(learner: Any, tmp_path: Path) -> None:
    when = datetime(2025, 5, 5, 21, tzinfo=UTC)
    done = export_state(learner.log, tmp_path / "state.json", clock=lambda: when)
    document = json.loads((tmp_path / "state.json").read_text())
    assert document["format"] == "firsthand state"
    assert document["version"] == 1
    assert document["exported_at"] == "2025-05-05T21:00:00+00:00"
    assert document["machine"] == learner.machine.to_json()
    assert document["sha256"] == done.sha256
