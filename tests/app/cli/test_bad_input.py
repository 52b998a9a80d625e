"""Folders, logs, state files, names, files, a full disk: one screen each, nothing lost."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from firsthand.app.cli.place import COURSE
from firsthand.course.log import EventKind
from firsthand.course.progress import State

FIRST, BUILD = "1.1/vector-bytes", "1.1/dot-product"
KEYS = r"n note, q pause\."


def refused(done: Any, *words: str, code: int = 1) -> str:
    """One short text on stderr, no traceback, this exit code; its words on one line."""
    text = " ".join((done.stdout + done.stderr).split())
    assert done.returncode == code, text
    assert "Traceback" not in text
    assert "firsthand itself failed" not in text
    assert len((done.stdout + done.stderr).splitlines()) <= 12
    for word in words:
        assert word in text, text
    return text


# --------------------------------------------------------------------------- workspaces


@pytest.mark.parametrize(
    "command", [("status",), ("check",), ("hint",), ("plan",), ("reset", "neuron"), ("export", "x")]
)
def test_no_workspace(place: Any, command: tuple[str, ...]) -> None:
    refused(place.run(*command), "no workspace", "firsthand new mine")
    assert list(place.folder.iterdir()) == []


def test_a_workspace_that_is_a_file(place: Any) -> None:
    place.mine.write_text("precious")
    for command in ("learn", "new", "status", "check"):
        arguments = (command, "mine") if command == "new" else (command, "-w", "mine")
        refused(place.run(*arguments), "mine")
    assert place.mine.read_text() == "precious"


def test_a_folder_that_is_not_empty(place: Any) -> None:
    place.mine.mkdir()
    (place.mine / "thesis.txt").write_text("precious")
    for command in (("new", "mine"), ("learn", "-w", "mine"), ("learn",)):
        refused(place.run(*command), "holds other files", "firsthand new")
    assert [path.name for path in place.mine.iterdir()] == ["thesis.txt"]


def test_new_twice(place: Any) -> None:
    assert place.run("new", "mine").returncode == 0
    path = place.mine / "foundations" / "neuron.py"
    path.write_text("# mine\n")
    again = place.run("new", "mine")
    assert "is there already" in again.stdout
    assert path.read_text().startswith("# mine\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_workspace_that_may_not_be_read_or_written(begun: Any) -> None:
    state = begun.mine / ".firsthand"
    (state / "log.sqlite").chmod(0o444)
    state.chmod(0o555)
    begun.mine.chmod(0o555)
    try:
        for command in (("learn",), ("check", "--answer", "96")):
            text = refused(begun.run(*command))
            assert "read-only" in text or "may you write" in text or "denied" in text
        begun.mine.chmod(0o000)
        for command in ("learn", "status", "check"):
            refused(begun.run(command), "mine", "denied")
        refused(begun.run("status", "-w", "mine"), "not readable", code=2)
    finally:
        begun.mine.chmod(0o755)
        state.chmod(0o755)


# --------------------------------------------------------------------------- the log


def foreign_text(path: Path) -> None:
    path.write_text("this is no database\n" * 100)


def foreign_database(path: Path) -> None:
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE recipes (name TEXT)")
    other.close()


def torn(path: Path) -> None:
    """Pages in the middle of the file are overwritten."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))


def newer(path: Path) -> None:
    with sqlite3.connect(path) as log:
        log.execute("PRAGMA user_version = 99")
    log.close()


@pytest.mark.parametrize("spoil", [foreign_text, foreign_database, torn, newer])
def test_a_log_that_is_not_ours_or_is_damaged(begun: Any, spoil: Any) -> None:
    path = begun.mine / ".firsthand" / "log.sqlite"
    spoil(path)
    before = path.read_bytes()
    for command in ("status", "learn", "check"):
        refused(begun.run(command), "log.sqlite")
    assert path.read_bytes() == before


# --------------------------------------------------------------------------- state files


def test_progress_travels_in_one_file(place: Any, tmp_path: Path) -> None:
    place.begin(BUILD)
    assert "Exported" in place.run("export", "state.json").stdout
    (tmp_path / "other").mkdir()
    arguments = ("import", str(tmp_path / "state.json"))
    done = place.run(*arguments, cwd=tmp_path / "other")
    assert done.returncode == 0, done.stderr
    assert "Imported" in done.stdout
    shown = place.run("status", cwd=tmp_path / "other").stdout
    assert "1 of 9 steps" in shown


def test_state_files_that_are_not_whole(begun: Any) -> None:
    begun.run("export", "state.json")
    whole = (begun.folder / "state.json").read_text()
    document = json.loads(whole)
    answers = document["events"]
    answers[-1]["data"]["answer"] = "another"
    spoiled = {
        "truncated.json": whole[: len(whole) // 2],
        "empty.json": "",
        "foreign.json": '{"recipes": ["bread"]}',
        "list.json": "[1, 2]",
        "tampered.json": json.dumps(document),
        "deep.json": "[" * 100_000,
        "binary.json": "\x00\x01",
    }
    before = begun.events()
    for name, text in spoiled.items():
        (begun.folder / name).write_text(text)
        refused(begun.run("import", name), name)
    refused(begun.run("import", "absent.json"), "absent.json")
    refused(begun.run("import", "mine"), "mine")
    assert begun.events() == before


def test_a_spoiled_file_makes_no_workspace(place: Any) -> None:
    (place.folder / "state.json").write_text("{")
    refused(place.run("import", "state.json"), "truncated")
    assert not place.mine.exists()


def test_an_export_that_cannot_be_written(begun: Any) -> None:
    refused(begun.run("export", "no/such/folder/state.json"), "state.json")
    refused(begun.run("export", "mine"), "mine")


# --------------------------------------------------------------------------- names and answers


def test_unknown_steps_name_the_nearest(begun: Any) -> None:
    refused(begun.run("check", "dot-prodct"), "no step dot-prodct", "dot-product")
    refused(begun.run("check", "zzzzzzz"), "no step zzzzzzz", "firsthand status")
    refused(begun.run("reset", "neurn"), "neuron")
    refused(begun.run("reset", "vector-bytes"), "has no starter")
    refused(begun.run("status", "-w", "nowhere"), "nowhere is no workspace")
    refused(begun.run("course", "check", "9.9"), "There is no session 9.9")
    refused(begun.run("learn", "--sesion", "1.1"), "--session", code=2)
    refused(begun.run("plan", "--set", "color=red"), "the fields are")
    refused(begun.run("plan", "--set", "pacing=sometime"), "pacing:")


def test_a_locked_step_says_what_opens_it(begun: Any) -> None:
    refused(begun.run("check", "1.1/neuron"), "opens when 1.1/vector-bytes", "is passed")
    locked = COURSE.outline.session("1.2").steps[0].id
    refused(begun.run("check", locked), "opens when 1.1")
    assert begun.events(EventKind.ATTEMPT) == []


def test_check_asks_for_the_answer_to_a_typed_step(begun: Any) -> None:
    shown = begun.run("check")
    assert shown.returncode == 1
    assert "firsthand check --answer" in shown.stdout
    assert begun.events(EventKind.ATTEMPT) == []


def test_check_answers_typed_steps(begun: Any) -> None:
    malformed = begun.run("check", "--answer", "I understand")
    assert malformed.returncode == 1
    assert malformed.stdout.count("An answer here is") == 1
    assert begun.progress.steps[FIRST].gate.used == 0
    wrong = begun.run("check", "--answer", "123456789")
    assert wrong.returncode == 1
    assert "Not right." in wrong.stdout
    assert begun.progress.steps[FIRST].gate.used == 1
    right = begun.run("check", "vector-bytes", "--answer", begun.solution())
    assert right.returncode == 0
    assert "Passed." in right.stdout
    assert begun.progress.steps[FIRST].state is State.PASSED


def test_hint_and_simplify_as_commands(begun: Any) -> None:
    assert "hint 1 of 2" in begun.run("hint").stdout
    assert "hint 2 of 2" in begun.run("hint").stdout
    assert "no further hint" in begun.run("hint").stdout
    for name in ("smaller numbers", "lines to order", "one line to fill", "the worked example"):
        assert name in begun.run("simplify").stdout


def test_a_profile_that_is_changed_later(begun: Any) -> None:
    shown = begun.run("plan", "--set", "focus=2, 3").stdout
    assert shown.count("(your") == 2
    assert "(your" not in begun.run("plan", "--set", "focus=all").stdout


def test_able_is_at_most_one_line_a_session(begun: Any) -> None:
    able = begun.run("plan").stdout.split("You will be able to:\n")[1]
    assert able.count("\n- ") + 1 <= len(COURSE.outline.sessions)
    for line in able.splitlines():
        assert line.startswith(("- ", "  ")), line  # a hanging indent


# --------------------------------------------------------------------------- files


def test_a_file_that_is_not_utf8(place: Any) -> None:
    place.begin(BUILD)
    path, text = place.built(BUILD)
    path.write_bytes(text.encode() + b"# caf\xe9\n")
    refused(place.run("check"), "neuron.py", "UTF-8")
    terminal = place.terminal("learn")
    terminal.until(r"Enter to go on: ")
    terminal.say("")
    assert terminal.end() == 1
    assert "UTF-8" in terminal.shown
    path.write_text(text)
    terminal = place.terminal("learn")
    terminal.to_question()
    path.write_bytes(text.encode() + b"# caf\xe9\n")
    shown = terminal.until(r"This costs no attempt\.")
    assert "Does not run." in shown
    path.write_text(text)
    terminal.until(r"Passed\.")
    terminal.until(r"answer> ")
    terminal.say("pause")
    assert terminal.end() == 0


def test_an_empty_file_gets_its_starter_back(place: Any) -> None:
    place.begin(BUILD)
    path = place.built(BUILD)[0]
    path.write_text("")
    done = place.run("check")
    assert done.returncode == 1
    assert "Not written yet." in done.stdout
    assert "def dot_product" in path.read_text()


def test_a_reset_without_a_file_names_no_backup(begun: Any) -> None:
    path = begun.mine / "foundations/activations.py"
    assert not path.exists()
    done = begun.run("reset", "1.3/softmax")
    assert done.returncode == 0
    assert "def softmax" in path.read_text()
    assert "There was no mine/foundations/activations.py" in " ".join(done.stdout.split())
    assert "as it was" not in begun.run("status").stdout + done.stdout


def test_a_choice_of_session_needs_a_terminal(begun: Any) -> None:
    before = begun.events()
    for option, session in (("--test-out", "1.5"), ("--session", "1.2")):
        refused(begun.run("learn", option, session), "need a terminal")
    assert begun.events() == before


def test_a_folder_where_the_file_should_be(place: Any) -> None:
    place.begin(BUILD)
    path = place.built(BUILD)[0]
    path.unlink()
    path.mkdir()
    refused(place.run("check"), "neuron.py")


def test_a_workspace_deleted_while_learn_waits_for_a_file(place: Any) -> None:
    place.begin(BUILD)
    terminal = place.terminal("learn")
    terminal.to_question()
    shutil.rmtree(place.mine)
    assert terminal.end() == 1
    assert "mine" in terminal.shown.splitlines()[-1]
    assert "Traceback" not in terminal.shown
    assert not place.mine.exists()


def test_a_workspace_deleted_while_learn_waits_for_an_answer(begun: Any) -> None:
    terminal = begun.terminal("learn")
    terminal.to_question()
    shutil.rmtree(begun.mine)
    terminal.say("123456789")
    shown = terminal.until(r"answer> ")
    assert "Not saved: " in shown
    assert "Your answer was: 123456789" in shown
    assert "is used" not in shown
    terminal.say("pause")
    assert terminal.end() == 1
    assert "Everything is saved" not in terminal.shown
    assert "Traceback" not in terminal.shown


# --------------------------------------------------------------------------- a full disk


def _small_files() -> None:
    """No file may grow over 64 KiB, as on a disk with little room; the write fails."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, resource.RLIM_INFINITY))


def test_a_full_disk_shows_the_answer_again(begun: Any) -> None:
    terminal = begun.terminal("learn", preexec_fn=_small_files)
    terminal.to_question()
    for number in range(40):
        terminal.say(f"my banana number {number}")
        shown = terminal.until(r"answer> ")
        if "Not saved: " in shown:
            break
    assert f"Your answer was: my banana number {number}" in shown
    assert "Traceback" not in terminal.shown
    stored = [event.data["answer"] for event in begun.events(EventKind.ATTEMPT)]
    assert stored == [f"my banana number {index}" for index in range(number)]
    terminal.say("note what I thought")
    assert terminal.end() == 1
    assert "You had typed: what I thought" in terminal.shown
    assert "Traceback" not in terminal.shown
    again = begun.terminal("learn")
    again.to_question()
    again.say(begun.solution())
    again.until(r"Passed\.")
    again.until(KEYS)
    again.key("q")
    assert again.end() == 0


def test_a_full_disk_and_a_single_command(begun: Any) -> None:
    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.RLIM_INFINITY))

    before = begun.events()
    refused(begun.run("check", "--answer", "123456789", preexec_fn=full), "log.sqlite")
    refused(begun.run("export", "state.json", preexec_fn=full), "disk full")
    refused(begun.run("new", "other", preexec_fn=full), "other")
    assert not (begun.folder / "state.json").exists()
    assert begun.events() == before
