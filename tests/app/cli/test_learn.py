"""`learn` in a pseudo-terminal: onboarding, steps, rungs, files, reviews, two windows, ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from typing import Any

import pytest

from firsthand.app.cli.place import COURSE
from firsthand.course.gate import Rung
from firsthand.course.log import EventKind
from firsthand.course.profile import FIELDS
from firsthand.course.progress import State
from firsthand.course.workspace import Workspace

FIRST, BUILD, DEBUG = "1.1/vector-bytes", "1.1/dot-product", "1.2/repair-update"
KEYS = r"n note, q pause\."


def numbers_in(text: str) -> list[str]:
    return re.findall(r"\d+", text)


# --------------------------------------------------------------------------- onboarding


def test_onboarding_asks_one_numbered_question_at_a_time(place: Any) -> None:
    terminal = place.terminal("learn")
    shown = terminal.onboard()
    asked = re.findall(r"^(\d) of 9  ", shown, re.MULTILINE)
    assert asked == [str(number) for number in range(1, 10)]
    assert shown.count("Why: ") == shown.count("Example: ") == 9
    assert "You will be able to:" in shown
    assert "(your focus)" not in shown  # every phase was chosen
    assert "First session, 1.1: One neuron" in shown
    assert all(len(line) <= 80 for line in shown.splitlines())
    assert tuple(place.progress.profile) == FIELDS
    terminal.say("")
    assert "Attempt 1 of 2." in terminal.until(r"answer> ")
    terminal.say("pause")
    assert terminal.end() == 0


def test_a_profile_answer_that_cannot_be_read_is_asked_again(place: Any) -> None:
    terminal = place.terminal("learn")
    terminal.until(r"means: en[^>]*> ")
    terminal.say("Klingon")
    refused = terminal.until(r"> ")
    assert "The interface speaks English for now." in refused
    assert "2 of 9" not in refused
    terminal.say("")
    assert "2 of 9" in terminal.until(r"> ")
    terminal.say("x")
    assert "what you have worked with" in terminal.until(r"> ")
    terminal.key("\x04")
    assert terminal.end() == 0
    assert tuple(place.progress.profile) == ("language",)


def test_the_plan_waits_for_the_word_start(place: Any) -> None:
    terminal = place.terminal("learn")
    while True:
        terminal.until(r"means[^\n]*\n[^\n]*> ", r"CNNs in PyTorch\s+> ", r"pause\): ")
        if terminal.found == 2:
            break
        terminal.say("2, 3" if "6 of 9" in terminal.shown[-330:] else "")
        if terminal.found == 1:
            terminal.until(r"> ")
            terminal.say("NumPy")
    for answer in ("", "yes", "ok"):
        terminal.say(answer)
        terminal.until(r"begins with the word start\.", r"pause\): ")
        assert place.progress.started_at is None
    terminal.say("START")
    terminal.until(r"Enter to go on: ")
    assert place.progress.started_at is not None
    assert "(your" in terminal.shown
    terminal.key("\x03")
    assert terminal.end() == 0


# --------------------------------------------------------------------------- a typed step


def test_theory_comes_first_and_the_answer_is_not_shown(begun: Any) -> None:
    terminal = begun.terminal("learn")
    shown = terminal.to_question()
    theory, question = shown.rsplit("A batch holds", 1)
    assert len(theory) > 400  # the words before the question
    solution = numbers_in(begun.solution())[0]
    assert solution not in numbers_in(question)
    terminal.say(begun.solution())
    after = terminal.until(KEYS)
    assert "Passed." in after
    assert begun.progress.current == BUILD
    terminal.key("q")
    assert terminal.end() == 0


def test_malformed_answers_cost_nothing(begun: Any) -> None:
    terminal = begun.terminal("learn")
    terminal.to_question()
    for answer in ("", "banana", "I understand", "ok", "?" * 3000, "1e999999", "__import__('os')"):
        terminal.say(answer)
        shown = terminal.until(r"answer> ")
        assert "This costs no attempt." in shown or "The same as before" in shown, shown
        assert "Attempt" not in shown.replace("attempt", "")
        assert shown.count("An answer here is") <= 1
        assert "Traceback" not in shown
    step = begun.progress.steps[FIRST]
    assert step.gate.used == 0
    assert step.gate.rung is Rung.STEP
    terminal.say("pause")
    assert terminal.end() == 0


def test_two_failures_go_down_a_rung_and_back(begun: Any) -> None:
    terminal = begun.terminal("learn")
    terminal.to_question()
    terminal.say("123456789")
    first = terminal.until(r"answer> ")
    assert "Not right." in first
    assert "Attempt 1 of 2 is used." in first
    assert "Attempt 2 of 2." in first
    terminal.say("123456791")
    second = terminal.until(r"answer> ")
    assert "Two attempts are used. Next: the same with smaller numbers." in second
    assert "Pause or simplify?" in second
    assert begun.progress.steps[FIRST].gate.rung is Rung.SMALL
    terminal.say(begun.solution())
    third = terminal.until(r"answer> ")
    assert "Back to the step, with fresh numbers." in third
    assert begun.progress.steps[FIRST].gate.rung is Rung.STEP
    assert not begun.progress.steps[FIRST].passed
    terminal.say(begun.solution())
    terminal.until(r"Passed\.")
    terminal.until(KEYS)
    terminal.key("q")
    assert terminal.end() == 0


def test_simplify_leads_down_to_the_worked_example(begun: Any) -> None:
    terminal = begun.terminal("learn")
    terminal.to_question()
    for rung in (Rung.SMALL, Rung.ORDER, Rung.FILL):
        terminal.say("simplify")
        terminal.until(r"answer> ")
        assert begun.progress.steps[FIRST].gate.rung is rung
    terminal.say("simplify")
    worked = terminal.until(r"with fresh numbers\. ")
    assert "Worked example" in worked
    terminal.say("")
    terminal.until(r"answer> ")
    assert begun.progress.steps[FIRST].gate.rung is Rung.STEP
    terminal.key("\x03")
    assert terminal.end() == 0


def test_hint_theory_note_and_pause(begun: Any) -> None:
    terminal = begun.terminal("learn")
    asked = terminal.to_question()
    hints = COURSE.step(FIRST).hints
    for number, hint in enumerate(hints, start=1):
        terminal.say("hint")
        shown = terminal.until(r"answer> ")
        assert f"Hint {number} of {len(hints)}: {hint[:20]}" in shown
    terminal.say("HINT")
    assert "no further hint" in terminal.until(r"answer> ")
    terminal.say("theory")
    again = terminal.until(r"answer> ")
    assert len(again) > 400
    assert "A batch holds" not in again
    terminal.say("note strides count bytes")
    assert "Kept with your notes." in terminal.until(r"answer> ")
    terminal.say("note")
    assert "needs a text" in terminal.until(r"answer> ")
    terminal.say("pause")
    assert terminal.end() == 0
    assert "Everything is saved" in terminal.shown

    found = begun.progress
    assert [note.text for note in found.notes] == ["strides count bytes"]
    assert found.steps[FIRST].attempts == ()
    again = begun.terminal("learn").to_question()
    question = asked[asked.index("A batch holds") :].split("Answer with")[0]
    assert question in again


# --------------------------------------------------------------------------- files


def save_in_place(path: Any, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def save_by_rename(path: Any, text: str) -> None:
    """As vim and others do: another file takes the name."""
    other = path.with_name("4913")
    other.write_text(text, encoding="utf-8")
    os.replace(other, path)


def save_with_backup(path: Any, text: str) -> None:
    """The old file is moved away first, so that for a moment there is none."""
    path.rename(path.with_name(path.name + "~"))
    path.write_text(text, encoding="utf-8")


@pytest.mark.parametrize(
    "save",
    [save_in_place, save_by_rename, pytest.param(save_with_backup, marks=pytest.mark.slow)],
)
def test_a_save_is_noticed(place: Any, save: Any) -> None:
    place.begin(BUILD)
    path, text = place.built(BUILD)
    terminal = place.terminal("learn")
    shown = terminal.to_question()
    assert "mine/foundations/neuron.py:" in shown
    save(path, path.read_text() + "\n\nx = (\n")
    broken = terminal.until(r"This costs no attempt\.")
    assert "Does not run." in broken
    save(path, text)
    terminal.until(r"Passed\.")
    terminal.until(r"answer> ")
    assert place.progress.current == "1.1/trace-neuron"
    terminal.say("pause")
    assert terminal.end() == 0


def test_keys_at_a_file_step(place: Any) -> None:
    place.begin(BUILD)
    place.built(BUILD)
    terminal = place.terminal("learn")
    terminal.to_question()
    terminal.key("c")
    assert "Not written yet." in terminal.until(r"This costs no attempt\.")
    terminal.key("h")
    assert "Hint 1 of 3" in terminal.until(r"Hint 1 of 3: [^\n]+\n")
    terminal.key("t")
    assert "dot product" in terminal.until(r"ot product").lower()
    terminal.key("n")
    terminal.until(r"note> ")
    terminal.say("zip stops silently")
    terminal.until(r"Kept with your notes\.")
    terminal.key("s")
    terminal.until(r"any other key stays\.")
    terminal.key("\x1b[A")  # an arrow
    terminal.until(r"Nothing changed\.")
    terminal.key("z")
    terminal.until(KEYS)
    assert place.progress.steps[BUILD].gate.rung is Rung.STEP
    terminal.key("s")
    terminal.until(r"any other key stays\.")
    terminal.key("s")
    terminal.until(r"answer> ")
    assert place.progress.steps[BUILD].gate.rung is Rung.SMALL
    assert [note.text for note in place.progress.notes] == ["zip stops silently"]
    terminal.say(place.solution())
    terminal.until(r"with fresh numbers\.")
    terminal.until(KEYS)
    place.build(BUILD)
    terminal.until(r"Passed\.")
    terminal.until(r"answer> ")
    terminal.key("\x04")
    assert terminal.end() == 0


def test_words_typed_at_a_file_step_do_no_harm(place: Any) -> None:
    place.begin(BUILD)
    terminal = place.terminal("learn")
    terminal.to_question()
    for letter, reply in zip("pause", (KEYS, KEYS, KEYS, "key stays", "Nothing"), strict=True):
        terminal.key(letter)
        terminal.until(reply)
    assert place.progress.steps[BUILD].gate.rung is Rung.STEP
    terminal.key("q")
    assert terminal.end() == 0


def test_a_file_that_is_deleted_while_it_is_awaited(place: Any) -> None:
    place.begin(BUILD)
    path, text = place.built(BUILD)
    terminal = place.terminal("learn")
    terminal.to_question()
    path.unlink()
    terminal.key("c")
    assert "Does not run." in terminal.until(r"This costs no attempt\.")
    path.write_text(text)
    terminal.until(r"Passed\.")
    terminal.until(r"answer> ")
    terminal.say("q")
    assert terminal.end() == 0


def test_a_debug_step_is_repaired_in_its_file(place: Any) -> None:
    place.begin(DEBUG)
    terminal = place.terminal("learn")
    shown = terminal.to_question()
    [path] = (place.mine / "debug").glob("*.py")
    assert f"mine/debug/{path.name}" in shown.replace("\n", "")
    terminal.key("c")
    assert "as it was given" in terminal.until(r"This costs no attempt\.")
    path.write_text(place.repaired(DEBUG, path))
    terminal.until(r"Passed\.")
    terminal.until(r"answer> ", KEYS, r"Enter goes on\. ")
    assert place.progress.steps[DEBUG].passed
    terminal.key("\x03")
    assert terminal.end() == 0


# --------------------------------------------------------------------------- reviews, test-out


def test_a_due_review_comes_first(place: Any) -> None:
    place.begin("1.1/trace-neuron", days_ago=40)
    terminal = place.terminal("learn")
    terminal.until(r"answer> ")
    assert "Where we are" in terminal.shown
    assert "Review 1 of" in terminal.shown
    terminal.say("banana")
    terminal.until(r"answer> ")
    assert place.events(EventKind.REVIEW) == []
    terminal.say(place.review_solution(FIRST))
    assert "Passed." in terminal.until(r"Enter to go on: ")
    [review] = place.events(EventKind.REVIEW)
    assert review.step == FIRST
    terminal.say("why eight bytes and not four")
    terminal.until(r"answer> ")
    terminal.say("pause")
    assert terminal.end() == 0
    assert place.progress.notes[-1].text == "why eight bytes and not four"
    assert place.run("review").stdout.strip() == "No review is due now."


def test_a_review_that_fails_returns_sooner(place: Any) -> None:
    place.begin("1.1/trace-neuron", days_ago=40)
    terminal = place.terminal("review")
    terminal.until(r"answer> ")
    terminal.say("12345")
    assert "It returns sooner." in terminal.until(r"No review is due now\.")
    assert terminal.end() == 0
    assert place.progress.steps[FIRST].passed  # a review never takes a step back


def test_out_takes_the_same_gate_cold(begun: Any) -> None:
    terminal = begun.terminal("learn", "--test-out", "1.2")
    shown = terminal.to_question()
    assert begun.progress.sessions["1.2"].tested_out
    assert begun.progress.current.startswith("1.2/")
    assert "Session 1.2" not in shown.split("Any questions")[-1].split("1.2/")[0]  # no theory
    terminal.key("q")
    assert terminal.end() == 0
    assert begun.progress.sessions["1.2"].state == State.OPEN


def test_the_session_asked_for_is_turned_to(begun: Any) -> None:
    locked = begun.terminal("learn", "--session", "1.3")
    assert locked.end() == 1
    assert "Session 1.3 opens when 1.2" in locked.shown
    unknown = begun.terminal("learn", "--session", "9.9")
    assert unknown.end() == 2
    assert "there is no session 9.9" in unknown.shown


# --------------------------------------------------------------------------- two windows


def test_two_windows_on_one_workspace(begun: Any) -> None:
    one, two = begun.terminal("learn"), begun.terminal("learn")
    one.to_question()
    two.to_question()
    right = begun.solution()
    one.say("123456789")
    one.until(r"answer> ")
    two.say(right)  # right for a question that is gone
    assert "answered in another window" in two.until(r"answer> ")
    assert "Attempt 2 of 2." in two.shown
    assert begun.progress.steps[FIRST].gate.used == 1
    two.say(begun.solution())
    two.until(r"Passed\.")
    two.until(KEYS)
    one.say("hint")
    one.until(r"another window")
    one.until(KEYS)
    begun.build(BUILD)
    for terminal in (one, two):
        terminal.until(r"answer> ")
    attempts = [event for event in begun.events(EventKind.ATTEMPT) if event.step == BUILD]
    assert begun.progress.steps[BUILD].passed
    assert len([a for a in attempts if a.data["verdict"]["outcome"] == "passed"]) >= 1
    for terminal in (one, two):
        terminal.say("pause")
        assert terminal.end() == 0


# --------------------------------------------------------------------------- ends


def test_a_kill_in_the_middle_loses_nothing_that_was_acknowledged(begun: Any) -> None:
    terminal = begun.terminal("learn")
    terminal.to_question()
    terminal.say("123456789")
    terminal.until(r"Attempt 1 of 2 is used\.")
    terminal.until(r"answer> ")
    terminal.child.send("96 by")  # in the middle of the next answer
    terminal.child.kill(signal.SIGKILL)
    terminal.child.wait()
    assert begun.progress.steps[FIRST].gate.used == 1
    again = begun.terminal("learn")
    assert "Attempt 2 of 2." in again.to_question()
    again.say(begun.solution())
    again.until(r"Passed\.")
    again.until(KEYS)
    again.key("q")
    assert again.end() == 0


def test_a_kill_while_a_check_runs(place: Any) -> None:
    place.begin(BUILD)
    path, text = place.built(BUILD)
    terminal = place.terminal("learn")
    terminal.to_question()
    workers = _children(terminal.child.pid)
    path.write_text(text.replace("total = 0.0", "while True: pass"))
    terminal.key("c")
    terminal.child.kill(signal.SIGKILL)
    terminal.child.wait()
    for worker in workers:
        _wait_for_the_end_of(worker)
    path.write_text(text)
    again = place.terminal("learn")
    again.to_question()
    again.key("c")
    again.until(r"Passed\.")
    again.until(r"answer> ")
    again.say("pause")
    assert again.end() == 0


def _children(pid: int) -> list[int]:
    import psutil

    return [child.pid for child in psutil.Process(pid).children(recursive=True)]


def _wait_for_the_end_of(pid: int) -> None:
    import psutil

    try:
        psutil.Process(pid).wait(timeout=30)
    except psutil.NoSuchProcess:
        return


def test_terminate_leaves_the_terminal_as_it_was(place: Any) -> None:
    place.begin(BUILD)
    terminal = place.terminal("learn")
    terminal.to_question()
    os.kill(terminal.child.pid, signal.SIGTERM)
    assert terminal.end() == 128 + signal.SIGTERM


@pytest.mark.parametrize("key", ["\x03", pytest.param("\x04", marks=pytest.mark.slow)])
def test_control_c_and_d_end_every_prompt(place: Any, key: str) -> None:
    """At the profile, the plan, a question, a file, a note, a worked example, a mastery."""
    terminal = place.terminal("learn")
    terminal.until(r"means: en[^>]*> ")
    assert terminal.leave(key) in (0, 130)

    terminal = place.terminal("learn")
    terminal.until(r"means: en[^>]*> ")
    terminal.say("")
    terminal.until(r"PyTorch\s+> ")
    terminal.say("NumPy")
    for _ in range(7):
        terminal.until(r"means[^\n]*\n[^\n]*> ")
        terminal.say("")
    terminal.until(r"pause\): ")
    assert terminal.leave(key) in (0, 130)
    assert place.progress.started_at is None

    place.begin()
    prompts = [(r"Enter to go on: ", ""), (r"answer> ", "simplify"), (r"answer> ", None)]
    terminal = place.terminal("learn")
    for prompt, answer in prompts:
        terminal.until(prompt)
        if answer is not None:
            terminal.say(answer)
    assert terminal.leave(key) in (0, 130)
    assert "Everything is saved" in terminal.shown

    place.begin(BUILD)
    terminal = place.terminal("learn")
    terminal.to_question()
    terminal.key("n")
    terminal.until(r"note> ")
    assert terminal.leave(key) in (0, 130)
    terminal = place.terminal("learn")
    terminal.to_question()
    assert terminal.leave(key) in (0, 130)
    assert "Traceback" not in terminal.shown


def test_control_c_while_code_runs(place: Any) -> None:
    place.begin(BUILD)
    path, text = place.built(BUILD)
    endless = text.replace("total = 0.0", "import time\n    time.sleep(60)")
    assert endless != text
    terminal = place.terminal("learn")
    terminal.to_question()
    path.write_text(endless)
    terminal.key("c")
    terminal.key("\x03")
    assert terminal.end() in (0, 130)
    assert "Traceback" not in terminal.shown
    assert not place.progress.steps[BUILD].passed


def test_end_of_input_ends_the_loop() -> None:
    """A question whose input has ended is not asked for ever."""
    code = (
        "from pathlib import Path; import tempfile;"
        "from firsthand.app.cli.learning import Learning;"
        "from firsthand.app.cli.place import COURSE;"
        "from firsthand.course.workspace import Workspace;"
        "from firsthand.course.log import EventLog;"
        "w = Workspace.create(Path(tempfile.mkdtemp()) / 'mine');"
        "Learning(COURSE, w, EventLog(w.log_path)).run()"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert "Paused." in ended.stdout


def test_a_workspace_is_made_once(place: Any) -> None:
    Workspace.create(place.mine)
    (place.mine / "README.md").write_text("my own words")
    terminal = place.terminal("learn")
    terminal.until(r"means: en[^>]*> ")
    terminal.say("q")
    assert terminal.end() == 0
    assert (place.mine / "README.md").read_text() == "my own words"
