"""What an ordinary run reports, and the life of the warm process."""

from __future__ import annotations

import gc
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import psutil
import pytest

from firsthand.course.checks.requests import Raised, Request, Returned, Run, RunStatus
from firsthand.course.checks.worker import Worker

Runner = Callable[..., Run]
Builder = Callable[..., Request]
GOOD = "def total(left, right):\n    return float((left * right).sum())\n"


def values(run: Run) -> list[object]:
    assert run.status is RunStatus.FINISHED, run
    return [r.value if isinstance(r, Returned) else r for r in run.results]


def test_values_arguments_and_signature_come_back(run: Runner) -> None:
    got = run("def total(left, right, *, exact=False):\n    left += 1\n    return left[0]\n")
    assert values(got) == [1.0, 3.0]
    first = got.results[0]
    assert isinstance(first, Returned)
    assert type(first.value) is np.float64
    assert np.array_equal(first.arguments[0], [1.0, 2.0, 3.0])
    assert got.signature == "(left, right, *, exact=False)"
    assert got.current is None
    assert got.seconds > 0


def test_each_call_has_fresh_arguments(run: Runner) -> None:
    shared = np.zeros(2)
    text = "def total(left, right):\n    left += 1\n    return left\n"
    got = run(text, calls=((shared, 1), (shared, 1)))
    assert np.array_equal(values(got), [[1, 1], [1, 1]])
    assert np.array_equal(shared, [0, 0])


def test_an_exception_has_its_message_line_and_source(run: Runner) -> None:
    text = (
        "def helper(x):\n    raise NotImplementedError('yet')\n\n"
        "def total(left, right):\n    return helper(1)\n"
    )
    assert values(run(text))[0] == Raised(
        "NotImplementedError",
        "yet",
        2,
        "raise NotImplementedError('yet')",
        "sums.py",
        ("RuntimeError", "Exception", "BaseException", "object"),
    )
    text = "import numpy as np\ndef total(left, right):\n    return np.stack([left, left[1:]])\n"
    first = values(run(text))[0]
    assert isinstance(first, Raised)
    assert (first.type_name, first.line) == ("ValueError", 3)


def test_an_import_that_raises_has_the_last_line_of_the_learner(run: Runner) -> None:
    got = run("import json\n\nx = json.loads('nonsense')\n")
    assert (got.status, got.line) == (RunStatus.IMPORT, 3)
    assert got.message.startswith("importing basics/sums.py raised JSONDecodeError")
    got = run("import nonexistent\n")
    assert got.status is RunStatus.IMPORT
    assert "nonexistent" in got.message


def test_a_session_driver_calls_the_part(run: Runner) -> None:
    fields = {"session_module": "tiny_session", "driver": "twice"}
    assert values(run(GOOD, **fields)) == [6.0, 8.0]
    text = """
        class Counter:
            def __init__(self): self.value = 10
            def add(self, amount): self.value += amount; return self
            def take(self, amount): self.value -= amount; return self
        """
    got = run(text, session_module="tiny_session", driver="count", name="Counter", calls=((5,),))
    assert values(got) == [14]


def test_a_driver_keeps_its_own_binding_of_the_reference(run: Runner) -> None:
    text = "def total(left, right):\n    return -1.0\n"
    got = run(text, session_module="tiny_session", driver="beside_reference")
    assert values(got) == [(-1.0, 3.0), (-1.0, 4.0)]


def test_a_driver_may_import_the_reference_late_and_the_file_still_may_not(run: Runner) -> None:
    fields = {"session_module": "tiny_session", "driver": "lazily"}
    assert values(run(GOOD, **fields)) == [0.0, 0.0]
    got = run("from tiny_stack.basics.sums import total\n", **fields)
    assert (got.status, got.line) == (RunStatus.REFERENCE, 1)


def test_a_driver_that_is_missing_or_a_session_that_fails_is_the_engines_fault(
    run: Runner,
) -> None:
    for fields in (
        {"session_module": "tiny_session", "driver": "nothing"},
        {"session_module": "no_such_session", "driver": "nothing"},
        {"calls": ((print, 1),)},
    ):
        got = run(GOOD, **fields)
        assert got.status is RunStatus.ENGINE
        assert got.message


def test_the_workspace_is_the_package_mine(run: Runner) -> None:
    files = {"basics/bends.py": "def bend(x):\n    return 100.0\n"}
    for statement in ("from mine.basics.bends import bend", "from .bends import bend"):
        text = f"{statement}\ndef total(left, right):\n    return bend(1)\n"
        assert values(run(text, files=files)) == [100.0, 100.0]


def test_a_file_missing_from_the_workspace_is_the_stacks(run: Runner) -> None:
    text = "from mine.basics.bends import bend\ndef total(left, right):\n    return bend(-1)\n"
    assert values(run(text)) == [0.0, 0.0]
    text = "import mine.basics.nothing\n"
    assert run(text).status is RunStatus.IMPORT


def test_parts_not_mastered_yet_are_the_stacks(run: Runner) -> None:
    files = {"basics/bends.py": "def bend(x):\n    return 100.0\ndef fold(x):\n    return 200.0\n"}
    text = (
        "from mine.basics.bends import bend, fold\n"
        "def total(left, right):\n    return (bend(-1.0), fold(-1.0))\n"
    )
    got = run(text, files=files, references=("basics.bends:bend",))
    assert values(got)[0] == (0.0, 200.0)


def test_parts_of_the_same_file_can_be_the_stacks(run: Runner) -> None:
    text = (
        "def total(left, right):\n    return -5.0\n"
        "def bent_total(left, right):\n    return total(left, right)\n"
        "class Counter:\n"
        "    def __init__(self): self.value = 0\n"
        "    def add(self, amount): return self\n"
        "    def take(self, amount): self.value -= 7; return self\n"
    )
    got = run(text, name="bent_total", references=("basics.sums:total", "basics.sums:bent_total"))
    assert values(got) == [3.0, 4.0]
    got = run(
        text,
        name="Counter",
        references=("basics.sums:Counter.add",),
        calls=((5,),),
        session_module="tiny_session",
        driver="count",
    )
    assert values(got) == [-2]


def test_a_broken_file_beside_the_part_falls_back_only_when_nothing_of_it_is_needed(
    run: Runner,
) -> None:
    files = {"basics/bends.py": "def bend(x):\n    return 100.0\n\nthis is no Python\n"}
    text = "from mine.basics.bends import bend\ndef total(left, right):\n    return bend(-1)\n"
    got = run(text, files=files, references=("basics.bends:bend",))
    assert values(got) == [0.0, 0.0]
    got = run(text, files=files)
    assert (got.status, got.line) == (RunStatus.IMPORT, 4)
    assert "basics/bends.py" in got.message
    text = text.replace("from mine.basics.bends import bend", "import mine.basics.bends as bends")
    got = run(text, files=files, references=("basics.bends:bend",))
    assert got.status is RunStatus.IMPORT


def test_another_file_can_stand_for_the_module(run: Runner, request_for: Builder) -> None:
    file = request_for(None).workspace / "debug" / "any_name.py"
    files = {
        "debug/any_name.py": "def total(left, right):\n    return 42.0\n",
        "basics/bends.py": "from mine.basics.sums import total as bend\n",
    }
    assert values(run(GOOD, files=files, file=file)) == [42.0, 42.0]
    files["debug/any_name.py"] = (
        "def total(left, right):\n"
        "    from mine.basics.bends import bend\n"
        "    return bend is total\n"
    )
    assert values(run(None, files=files, file=file)) == [True, True]


def test_other_modules_of_the_stack_may_be_imported(run: Runner) -> None:
    text = (
        "from tiny_stack.basics.towers import tower\n"
        "def total(left, right):\n    return tower(left, right)\n"
    )
    assert values(run(text)) == [[3.0], [4.0]]


def test_a_folder_in_the_workspace_cannot_stand_in_for_a_library(run: Runner) -> None:
    files = {"numpy.py": "raise RuntimeError\n", "json.py": "raise RuntimeError\n"}
    text = "import numpy, json.tool\n" + GOOD
    assert values(run(text, files=files)) == [3.0, 4.0]


@pytest.mark.parametrize(
    ("expression", "shares", "contiguous", "owns"),
    [
        ("left", [0], True, True),
        ("right[::-1]", [1], False, False),
        ("left.T", [0], False, False),
        ("left.copy()", [], True, True),
        ("left.reshape(-1)", [0], True, False),
    ],
)
def test_the_layout_is_measured(
    run: Runner, expression: str, shares: list[int], contiguous: bool, owns: bool
) -> None:
    text = f"def total(left, right):\n    return {expression}\n"
    calls = ((np.ones((200, 300)), np.ones((500,))),)
    result = run(text, calls=calls, measure_layout=True).results[0]
    assert isinstance(result, Returned)
    assert result.layout is not None
    assert result.layout["shares"] == shares
    assert result.layout["contiguous"] is contiguous
    assert result.layout["owns"] is owns
    assert len(result.layout["strides"]) == np.ndim(result.value)


def test_the_peak_of_a_call_is_measured_with_its_result(run: Runner) -> None:
    calls = ((np.ones(100_000), 1),)
    text = "def total(left, right):\n    return left * 2\n"
    one = run(text, calls=calls, measure_layout=True).results[0]
    text = "def total(left, right):\n    a = left * 2\n    b = a * 2\n    return b\n"
    two = run(text, calls=calls, measure_layout=True).results[0]
    assert isinstance(one, Returned)
    assert isinstance(two, Returned)
    assert one.allocated is not None
    assert two.allocated is not None
    assert 800_000 <= one.allocated < 820_000
    assert 1_600_000 <= two.allocated < 1_620_000


def test_one_call_is_timed_for_the_part_and_for_the_reference(run: Runner) -> None:
    text = "def total(left, right):\n    sum(range(200_000))\n    return 1.0\n"
    mine = run(text, timed=(1, 5))
    theirs = run(None, timed=(1, 5), reference=True)
    assert values(mine) == [1.0, 1.0]
    assert values(theirs) == [3.0, 4.0]
    slow, fast = mine.results[1], theirs.results[1]
    assert isinstance(slow, Returned)
    assert isinstance(fast, Returned)
    assert slow.seconds is not None
    assert fast.seconds is not None
    assert slow.seconds > fast.seconds > 0
    assert isinstance(mine.results[0], Returned)
    assert mine.results[0].seconds is None


def test_a_worker_that_is_closed_leaves_no_process(request_for: Builder) -> None:
    own = Worker()
    assert own.pid is None
    assert own.execute(request_for(GOOD)).status is RunStatus.FINISHED
    assert own.pid is not None
    process = psutil.Process(own.pid)
    own.close()
    own.close()
    assert not process.is_running()
    assert own.execute(request_for(GOOD)).status is RunStatus.FINISHED
    process = psutil.Process(own.pid)
    del own
    gc.collect()
    assert not process.is_running()


def test_the_server_and_its_child_end_when_the_client_dies(request_for: Builder) -> None:
    request = request_for("import time\ntime.sleep(60)\n")
    script = f"""
        import os, sys, threading, time
        from pathlib import Path
        from firsthand.course.checks.requests import Limits, Request
        from firsthand.course.checks.worker import Worker
        sys.path.insert(0, {sys.path[0]!r})
        worker = Worker()
        worker.start()
        request = Request(workspace=Path({str(request.workspace)!r}), stack="tiny_stack",
            module="basics.sums", name="total", calls=(), limits=Limits(seconds=50.0))
        threading.Thread(target=worker.execute, args=(request,), daemon=True).start()
        print(worker.pid, flush=True)
        time.sleep(60)
        """
    client = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script)], stdout=subprocess.PIPE, text=True
    )
    with client:
        assert client.stdout is not None
        warm = psutil.Process(int(client.stdout.readline()))
        while not warm.children():
            time.sleep(0.01)
        family = [warm, *warm.children()]
        client.kill()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert alive == []


def test_an_interrupted_check_does_not_answer_the_next_one(
    request_for: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Worker() as own:
        request = request_for(GOOD)
        exchange = own._exchange

        def interrupted(*arguments: object) -> Run:
            exchange(*arguments)  # type: ignore[arg-type]
            raise KeyboardInterrupt

        monkeypatch.setattr(own, "_exchange", interrupted)
        with pytest.raises(KeyboardInterrupt):
            own.execute(request)
        monkeypatch.undo()
        assert values(own.execute(replace(request, calls=((np.ones(5), np.ones(5)),)))) == [5.0]


def test_a_preload_that_fails_is_reported(request_for: Builder) -> None:
    own = Worker(preload=("no_such_module",))
    got = own.execute(request_for(GOOD))
    assert got.status is RunStatus.ENGINE
    assert "no_such_module" in got.message
    with pytest.raises(RuntimeError, match="no_such_module"):
        own.start()
