"""Piped, redirected, in a small or a plain terminal: 80 columns, no escape codes, no traceback."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

COMMANDS = (
    ("learn",),
    ("status",),
    ("plan",),
    ("check",),
    ("hint",),
    ("review",),
    ("simplify",),
    ("check", "--answer", "banana"),
    ("reset", "dot-product"),
    ("export", "state.json"),
    ("import", "state.json"),
    ("new", "mine"),
    ("--help",),
    ("learn", "--help"),
    ("course",),
)


def assert_one_screen(text: str, columns: int = 80, lines: int = 60) -> None:
    assert "\x1b" not in text
    assert "Traceback" not in text
    # A path is not broken: it is there to be copied.
    told = [line for line in text.splitlines() if not line.startswith("/")]
    assert max(map(len, told), default=0) <= columns, text
    assert len(text.splitlines()) <= lines, text


def test_learn_says_where_one_stands_and_what_to_type_next(place: Any) -> None:
    first = place.run("learn")
    assert first.returncode == 0, first.stderr
    assert "has not been started yet" in first.stdout
    assert "firsthand learn" in first.stdout
    assert first.stderr == ""
    assert_one_screen(first.stdout, lines=6)
    place.begin("1.1/trace-neuron")
    later = place.run("learn")
    assert later.returncode == 0
    assert "Next step: 1.1/trace-neuron, Trace" in later.stdout
    assert_one_screen(later.stdout, lines=8)


def test_every_command_can_be_piped(place: Any) -> None:
    place.begin("1.1/trace-neuron")
    for command in COMMANDS:
        done = place.run(*command)
        assert done.returncode in (0, 1, 2), (command, done.stderr)
        assert_one_screen(done.stdout + done.stderr)
        assert done.stdout.strip() or done.stderr.strip(), command


def test_colour_is_not_forced_into_a_pipe(begun: Any) -> None:
    done = begun.run("status", env={"NO_COLOR": None, "TERM": "xterm-256color"})
    assert "\x1b" not in done.stdout


def test_status_names_what_is_next_and_what_unlocks_what(begun: Any) -> None:
    shown = begun.run("status").stdout
    assert "[>] Predict" in shown
    assert "next: attempt 1 of 2" in shown
    assert "Session 1.2 opens when 1.1" in " ".join(shown.split())
    assert "to master" in shown
    loaded = shown.splitlines()[0]
    assert "up to 20" in loaded
    assert "T" not in loaded.split("up to ")[1][:17]  # no ISO time with its microseconds
    assert_one_screen(shown)


def test_status_and_learn_use_the_same_words(place: Any) -> None:
    place.begin("1.1/trace-neuron")
    loaded = place.run("status").stdout.split("Loaded ")[1].split(".\n")[0]
    told = place.run("learn").stdout.split("Loaded ")[1].split(".\n")[0]
    assert " ".join(loaded.split()) == " ".join(told.split())


def test_status_at_every_width_and_never_over_it(begun: Any) -> None:
    for columns in (40, 100):
        shown = begun.run("status", env={"COLUMNS": str(columns)}).stdout
        assert_one_screen(shown, columns=columns, lines=120)
        assert "Predict" in shown


def test_status_imports_nothing_heavy(begun: Any) -> None:
    code = (
        "import sys; sys.argv = ['firsthand', 'status']\n"
        "from firsthand.app.cli.main import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'sympy', 'torch', 'pydantic', 'watchfiles', 'jinja2', 'sklearn'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=begun.folder,
        env=begun.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []"
    assert "Phase 1" in done.stdout


def test_a_reader_that_leaves_is_no_error(begun: Any) -> None:
    line = f"{sys.executable} -m firsthand status | head -n 1"
    done = subprocess.run(
        ["sh", "-c", line],
        cwd=begun.folder,
        env=begun.environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"PYTHONIOENCODING": "ascii"}, id="ascii"),
        pytest.param({"LC_ALL": "C", "PYTHONUTF8": "0"}, id="C locale", marks=pytest.mark.slow),
    ],
)
def test_no_character_is_too_much_for_an_encoding(place: Any, changes: dict[str, str]) -> None:
    place.begin("1.1/trace-neuron")
    for command in (("status",), ("plan",), ("check",), ("hint",), ("--help",)):
        done = place.run(*command, env=changes)
        assert done.returncode in (0, 1), done.stderr
        assert "Error" not in done.stderr
        if "PYTHONIOENCODING" in changes:
            assert done.stdout.isascii()


@pytest.mark.parametrize(
    ("columns", "changes"),
    [
        pytest.param(80, {"PYTHONIOENCODING": "ascii"}, id="ascii"),
        pytest.param(40, {}, id="40 columns"),
        pytest.param(80, {"TERM": "dumb"}, id="dumb"),
        pytest.param(80, {"TERM": None}, id="no TERM", marks=pytest.mark.slow),
    ],
)
def test_learn_in_a_poor_terminal(begun: Any, columns: int, changes: dict[str, Any]) -> None:
    terminal = begun.terminal("learn", columns=columns, env=begun.environment(**changes))
    terminal.to_question()
    if "PYTHONIOENCODING" in changes:
        assert terminal.shown.isascii()
        assert "+--" in terminal.shown  # a diagram
    terminal.say("é√ bytes")
    assert "This costs no attempt." in " ".join(terminal.until(r"answer> ").split())
    terminal.say("pause")
    assert terminal.end() == 0
    assert "Traceback" not in terminal.shown
    assert "failed" not in terminal.shown
    prose = [line for line in terminal.shown.splitlines() if line[:1].isalpha()]
    assert max(map(len, prose)) <= columns
