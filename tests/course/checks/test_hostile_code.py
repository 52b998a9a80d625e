"""Whatever the learner's file does: a status that says what happened, soon, and never a pass."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable

import numpy as np
import psutil
import pytest

from firsthand.course.checks import isolation
from firsthand.course.checks.requests import (
    Limits,
    Opaque,
    Raised,
    Request,
    Returned,
    Run,
    RunStatus,
)
from firsthand.course.checks.worker import Worker

Runner = Callable[..., Run]
Builder = Callable[..., Request]
GOOD = "def total(left, right):\n    return float((left * right).sum())\n"
SHORT = Limits(seconds=1.0, megabytes=512)

seccomp = pytest.mark.skipif(not isolation.available()["seccomp"], reason="needs seccomp")
landlock = pytest.mark.skipif(not isolation.available()["landlock"], reason="needs Landlock")


def calling(body: str, head: str = "") -> str:
    """A file whose part runs the body."""
    lines = "\n".join("    " + line for line in body.splitlines())
    return f"import os, sys, time\nimport numpy as np\n{head}\ndef total(left, right):\n{lines}\n"


def test_a_syntax_error_has_its_line(run: Runner) -> None:
    got = run("def total(left, right):\n    return left *\n")
    assert (got.status, got.line, got.source) == (RunStatus.SYNTAX, 2, "return left *")


def test_null_bytes_and_unknown_encodings_are_syntax_errors(
    run: Runner, request_for: Builder, worker: Worker
) -> None:
    assert run("total = 1\0").status is RunStatus.SYNTAX
    request = request_for(GOOD)
    (request.workspace / "basics/sums.py").write_bytes(b"# \xff\xfe\ntotal = 1\n")
    assert worker.execute(request).status is RunStatus.SYNTAX


def test_a_wrong_name_is_missing_and_the_nearest_is_named(run: Runner) -> None:
    got = run(GOOD.replace("total", "totl"))
    assert got.status is RunStatus.MISSING
    assert got.message == "basics/sums.py defines no total; found totl"


def test_a_missing_file_and_a_missing_workspace_are_missing(
    run: Runner, request_for: Builder, worker: Worker
) -> None:
    got = run(None)
    assert got.status is RunStatus.MISSING
    assert "basics/sums.py" in got.message
    request = request_for(GOOD)
    shutil.rmtree(request.workspace)
    assert worker.execute(request).status is RunStatus.MISSING


def test_a_name_that_is_no_function_is_missing(run: Runner) -> None:
    got = run("total = 3\n")
    assert got.status is RunStatus.MISSING
    assert "int" in got.message


def test_a_hundred_megabytes_of_output_are_cut_off(run: Runner) -> None:
    body = "for _ in range(100):\n    print('x' * 1_000_000)\nreturn 4.0"
    got = run(calling(body))
    assert got.status is RunStatus.OUTPUT
    assert got.current == 0
    assert len(got.printed) == 2000


def test_an_endless_loop_is_reported_with_its_line_and_call(run: Runner) -> None:
    text = "def total(left, right):\n    while len(left) == 2:\n        pass\n    return 3.0\n"
    got = run(text, limits=SHORT)
    assert got.status is RunStatus.TIME
    assert got.current == 1
    assert got.line in (2, 3)
    assert len(got.results) == 1


def test_an_endless_loop_at_import_is_reported_with_its_line(run: Runner) -> None:
    got = run("while True:\n    pass\n", limits=SHORT)
    assert got.status is RunStatus.TIME
    assert got.line in (1, 2)
    assert got.current is None


@pytest.mark.parametrize(
    "body",
    [
        "import signal\nsignal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))\nwhile True: pass",
        "import signal\nsignal.signal(signal.SIGALRM, signal.SIG_IGN)\nwhile True: pass",
        "import signal\nsignal.setitimer(signal.ITIMER_REAL, 0)\nwhile True: pass",
        "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
        "time.sleep(1000)",
    ],
)
def test_code_that_resists_the_alarm_still_ends(run: Runner, body: str) -> None:
    got = run(calling(body), limits=SHORT)
    assert got.status is RunStatus.TIME
    assert got.results == ()


def test_endless_recursion_is_an_exception(run: Runner) -> None:
    got = run("def total(left, right):\n    return total(left, right)\n")
    assert got.status is RunStatus.FINISHED
    assert all(isinstance(r, Raised) and r.type_name == "RecursionError" for r in got.results)


def test_endless_recursion_without_a_limit_crashes_at_worst(run: Runner) -> None:
    got = run(
        calling("sys.setrecursionlimit(10**9)\nreturn sorted([1], key=lambda x: total(1, 2))")
    )
    assert got.status in (RunStatus.CRASHED, RunStatus.MEMORY, RunStatus.TIME)


@pytest.mark.parametrize("code", [0, 3])
def test_os_exit_at_import_and_in_a_call(run: Runner, code: int) -> None:
    got = run(f"import os\nos._exit({code})\n")
    assert got.status is RunStatus.EXITED
    assert got.current is None
    got = run(calling(f"os._exit({code})"))
    assert got.status is RunStatus.EXITED
    assert got.current == 0
    assert f"status {code}" in got.message


def test_a_pass_is_not_forged_by_exiting_after_the_last_result(run: Runner) -> None:
    text = calling(
        "return 1.0",
        "import threading\nthreading.Thread(target=lambda: (time.sleep(.05), os._exit(0))).start()",
    )
    got = run(text, calls=((np.zeros(2), np.zeros(2)),) * 20_000)
    assert got.status is RunStatus.EXITED


@pytest.mark.parametrize("statement", ["sys.exit(0)", "raise SystemExit", "exit()"])
def test_exits_are_reported_with_their_line(run: Runner, statement: str) -> None:
    got = run(calling(statement))
    assert (got.status, got.current) == (RunStatus.EXITED, 0)
    assert (got.line, got.source) == (5, statement)
    assert run(f"import sys\n{statement}\n").status is RunStatus.EXITED


def test_a_keyboard_interrupt_in_a_call_is_an_exception(run: Runner) -> None:
    got = run(calling("raise KeyboardInterrupt"))
    assert got.status is RunStatus.FINISHED
    assert [r.type_name for r in got.results if isinstance(r, Raised)] == ["KeyboardInterrupt"] * 2


@seccomp
@pytest.mark.parametrize("target", ["os.getppid()", "1", "-1"])
def test_signals_to_others_are_refused(run: Runner, worker: Worker, target: str) -> None:
    before = worker.pid
    got = run(calling(f"os.kill({target}, 9)\nreturn 3.0"))
    assert all(isinstance(r, Raised) and r.type_name == "PermissionError" for r in got.results)
    assert worker.pid == before
    assert run(GOOD).status is RunStatus.FINISHED


@seccomp
def test_signals_to_others_through_libc_are_refused(run: Runner, worker: Worker) -> None:
    before = worker.pid
    got = run(calling("import ctypes\nreturn ctypes.CDLL(None).kill(os.getppid(), 9)"))
    assert [r.value for r in got.results if isinstance(r, Returned)] == [-1, -1]
    assert worker.pid == before


def test_a_signal_to_itself_is_a_crash(run: Runner) -> None:
    assert run(calling("os.kill(os.getpid(), 9)")).status is RunStatus.CRASHED
    assert run(calling("os.abort()")).status is RunStatus.CRASHED


def test_a_killed_server_is_a_crash_and_the_next_check_restarts_it(request_for: Builder) -> None:
    request = request_for(calling("time.sleep(30)"), limits=Limits(seconds=20.0))
    with Worker() as own:
        first = own.pid
        assert first is not None

        def kill_when_it_runs() -> None:
            while not psutil.Process(first).children():
                time.sleep(0.01)
            os.kill(first, signal.SIGKILL)

        killer = threading.Thread(target=kill_when_it_runs)
        killer.start()
        got = own.execute(request)
        killer.join()
        assert got.status is RunStatus.CRASHED
        assert "restarts" in got.message
        (request.workspace / "basics/sums.py").write_text(GOOD)
        assert own.execute(request).status is RunStatus.FINISHED
        assert own.pid != first


@pytest.mark.parametrize(
    "statement",
    [
        "os.fork()",
        "import subprocess; subprocess.run(['true'])",
        "os.system('true')",
        "os.execv('/bin/true', ['true'])",
        "os.posix_spawn('/bin/true', ['true'], {})",
        "import multiprocessing as m; m.get_context('fork').Process(target=print).start()",
    ],
)
def test_new_processes_are_refused(run: Runner, statement: str) -> None:
    got = run(calling(f"{statement}\nreturn 3.0"))
    assert got.status is RunStatus.PROCESSES
    assert got.line == 5
    assert run(f"import os\n{statement}\n").status is RunStatus.PROCESSES


@seccomp
def test_a_fork_bomb_does_nothing(run: Runner, worker: Worker) -> None:
    body = "import ctypes\nlibc = ctypes.CDLL(None)\nreturn [libc.fork() for _ in range(50)]"
    got = run(calling(body))
    assert [r.value for r in got.results if isinstance(r, Returned)] == [[-1] * 50] * 2
    assert psutil.Process(worker.pid).children() == []
    swallow = "while True:\n    try:\n        os.fork()\n    except OSError:\n        pass"
    assert run(calling(swallow), limits=SHORT).status is RunStatus.TIME


@pytest.mark.parametrize(
    "expression", ["np.empty(100 << 30, np.uint8)", "bytearray(100 << 30)", "[0] * (1 << 36)"]
)
def test_a_hundred_gigabytes_are_refused(run: Runner, expression: str) -> None:
    got = run(calling(f"x = {expression}\nreturn 3.0"))
    assert (got.status, got.line, got.current) == (RunStatus.MEMORY, 5, 0)
    assert "512 MB" in got.message
    assert run(f"import numpy as np\nx = {expression}\n").status is RunStatus.MEMORY


def test_memory_used_up_in_small_pieces_is_reported(run: Runner) -> None:
    text = calling("kept = []\nwhile True:\n    kept.append(bytearray(1 << 20))")
    got = run(text, limits=Limits(seconds=20.0, megabytes=64))
    assert got.status is RunStatus.MEMORY


def test_a_raised_memory_error_is_an_ordinary_exception(run: Runner) -> None:
    got = run(calling("raise MemoryError('mine')"))
    assert got.status is RunStatus.FINISHED
    assert isinstance(got.results[0], Raised)


def test_a_patched_numpy_does_not_reach_the_report(run: Runner) -> None:
    head = """
class Fake: pass
np.dot = np.sum = np.shares_memory = np.frombuffer = lambda *a, **k: 3.0
np.ndarray = np.float64 = np.dtype = Fake
"""
    got = run(calling("return left * 7", head), measure_layout=True)
    assert got.status is RunStatus.FINISHED
    values = [r.value for r in got.results if isinstance(r, Returned)]
    assert np.array_equal(values[0], np.arange(3.0) * 7)


def test_patched_builtins_do_not_reach_the_report(run: Runner) -> None:
    head = """
import builtins
builtins.isinstance = lambda *a: True
builtins.len = builtins.hash = builtins.id = lambda *a: 0
builtins.type = lambda *a: float
builtins.tuple = builtins.float = builtins.str = lambda *a: 3.0
"""
    got = run(calling("return 'seven'", head))
    assert got.status is RunStatus.FINISHED
    assert [r.value for r in got.results if isinstance(r, Returned)] == ["seven", "seven"]


def test_patched_library_modules_do_not_reach_the_report(run: Runner) -> None:
    head = """
import signal, struct, json, inspect, tracemalloc
os.write = os._exit = struct.pack = json.dumps = lambda *a, **k: 0
time.perf_counter = tracemalloc.get_traced_memory = lambda: (0, 0)
inspect.signature = lambda part: '(forged)'
"""
    got = run(calling("return left * 7", head), timed=(0, 3), measure_layout=True)
    assert got.status is RunStatus.FINISHED
    assert got.signature == "(left, right)"
    first = got.results[0]
    assert isinstance(first, Returned)
    assert np.array_equal(first.value, np.arange(3.0) * 7)
    assert first.seconds is not None
    assert first.seconds > 0
    assert first.allocated is not None
    assert first.allocated > 0


def test_the_checkers_modules_are_not_there_to_be_patched(run: Runner) -> None:
    assert run("import sys\nsys.modules['firsthand.course.checks.child'].encode = 1\n").status is (
        RunStatus.IMPORT
    )
    head = """
import firsthand.course.checks.child as child, firsthand.course.checks.calls as calls
import firsthand.course.checks.values as values
child.encode = calls.encode = values.encode = values._write = lambda *a, **k: b'N'
calls.call = lambda *a: (3.0, (), None, None)
"""
    got = run(calling("return 7.0", head))
    assert got.status is RunStatus.FINISHED
    assert [r.value for r in got.results if isinstance(r, Returned)] == [7.0, 7.0]


def test_results_that_lie_about_equality_are_opaque(run: Runner) -> None:
    head = """
class Agreeing:
    def __eq__(self, other): return True
    def __float__(self): return 3.0
class Array(np.ndarray):
    def __eq__(self, other): return True
"""
    got = run(calling("return Agreeing() if len(left) == 3 else left.view(Array)", head))
    assert got.status is RunStatus.FINISHED
    values = [r.value for r in got.results if isinstance(r, Returned)]
    assert values == [Opaque("Agreeing"), Opaque("Array")]


def test_an_oversized_result_is_opaque(run: Runner) -> None:
    got = run(calling("x = []\nx.append(x)\nreturn x if len(left) == 3 else np.zeros(9 << 20)"))
    assert got.status is RunStatus.FINISHED
    names = [r.value.type_name for r in got.results if isinstance(r, Returned)]
    assert "deep" in names[0]
    assert "bytes" in names[1]


FLOOD = """
import struct
for fd in range(3, 1024):
    for nonce in (b'', bytes(24)):
        for kind in (b'S', b'R', b'F', b'X'):
            payload = b'd' + (0).to_bytes(8, 'big')
            try:
                os.write(fd, nonce + struct.pack('>cQ', kind, len(payload)) + payload)
            except OSError:
                pass
"""


def test_guessed_frames_on_every_descriptor_are_not_believed(run: Runner) -> None:
    for text in (calling("return 3.0", FLOOD), calling(FLOOD.strip() + "\nreturn 3.0")):
        got = run(text)
        assert got.status is RunStatus.CRASHED
        assert "did not write" in got.message


def test_guessed_frames_followed_by_an_exit_are_not_believed(run: Runner) -> None:
    got = run(calling("return 3.0", FLOOD + "os._exit(0)"))
    assert got.status is RunStatus.CRASHED


def test_closing_every_descriptor_ends_the_run(run: Runner) -> None:
    got = run(calling("os.closerange(0, 1 << 16)\nreturn 3.0"))
    assert got.status is RunStatus.EXITED
    assert "channel" in got.message
    got = run(calling("os.closerange(0, 1 << 16)\ntime.sleep(60)"))
    assert got.status is RunStatus.EXITED


@pytest.mark.parametrize(
    "statement",
    [
        "import tiny_stack.basics.sums",
        "from tiny_stack.basics.sums import total as answer",
        "from tiny_stack.basics import sums",
        "import tiny_stack.basics as b; b.sums.total if hasattr(b, 'sums') else b.__import__",
        "import importlib; importlib.import_module('tiny_stack.basics.sums')",
        "import sys; sys.modules['tiny_stack.basics.sums']",
        "exec('import tiny_stack.basics.sums')",
        "import tiny_stack.basics.towers, sys; import tiny_stack.basics.sums",
        "import tiny_session",
    ],
)
def test_the_reference_cannot_be_imported(run: Runner, statement: str) -> None:
    for text in (f"{statement}\n{GOOD}", calling(f"{statement}\nreturn 3.0")):
        got = run(text, session_module="tiny_session", driver="beside_reference")
        if "hasattr" in statement or "sys.modules" in statement:
            assert got.status is RunStatus.IMPORT or isinstance(got.results[0], Raised)
        else:
            assert got.status is RunStatus.REFERENCE
            assert got.line is not None


def test_an_import_of_the_reference_that_is_swallowed_is_seen_too(run: Runner) -> None:
    text = "try:\n    from tiny_stack.basics.sums import total\nexcept ImportError:\n    pass\n"
    got = run(text + GOOD)
    assert (got.status, got.line) == (RunStatus.REFERENCE, 2)


def test_the_reference_by_way_of_another_module_is_seen(run: Runner) -> None:
    got = run("from tiny_stack.basics.towers import total\n")
    assert got.status is RunStatus.REFERENCE


FIND = "import os, tiny_stack\npath = os.path.dirname(tiny_stack.__file__) + '/basics/sums.py'\n"
READERS = (
    "names = {}; exec(open(path).read(), names)",
    "import runpy; names = runpy.run_path(path)",
    "os.close(os.open(path, os.O_RDONLY)); names = {}",
    "from importlib.machinery import SourceFileLoader\n"
    "names = vars(SourceFileLoader('other', path).load_module())",
    "import marshal, importlib.util as u; names = {}\n"
    "exec(marshal.loads(open(u.cache_from_source(path), 'rb').read()[16:]), names)",
    "import sys; kept = sys.meta_path[:]; del sys.meta_path[:2]\n"
    "try:\n    import tiny_stack.basics.sums as s; names = vars(s)\n"
    "finally:\n    sys.meta_path[:] = kept",
)


@pytest.mark.parametrize("reader", READERS)
def test_the_reference_cannot_be_read_from_its_file(run: Runner, reader: str) -> None:
    answer = "def total(left, right):\n    return names['total'](left, right)\n"
    assert run(f"{FIND}{reader}\n{answer}").status is RunStatus.REFERENCE
    body = f"{FIND}{reader}\nreturn names['total'](left, right)"
    assert run(calling(body)).status is RunStatus.REFERENCE


def test_a_traceback_that_quotes_the_reference_is_no_reading(run: Runner) -> None:
    got = run(calling(f"{FIND}import linecache\nlinecache.getlines(path)\nreturn 3.0"))
    assert got.status is RunStatus.FINISHED


HOLDERS = (
    "import tiny_stack.basics.towers as t; f = t.total",
    "import sys\nguard = next(g for g in sys.meta_path if hasattr(g, 'reference'))\n"
    "f = guard.reference('tiny_stack.basics.sums').total",
    "import sys\nframe = sys._getframe()\n"
    "while not hasattr(frame.f_locals.get('self'), '_guard'):\n    frame = frame.f_back\n"
    "f = frame.f_locals['self']._guard._kept['tiny_stack.basics.sums'].total",
)


@pytest.mark.parametrize("holder", HOLDERS)
def test_the_reference_notes_that_the_learner_calls_it(run: Runner, holder: str) -> None:
    got = run(calling(f"{holder}\nreturn f(left, right)"))
    assert got.status is RunStatus.REFERENCE
    assert got.source == "return f(left, right)"
    assert run(calling(f"{holder}\nreturn next(map(f, [left], [right]))")).status is (
        RunStatus.REFERENCE
    )


def test_the_reference_is_not_among_the_objects_of_the_collector(run: Runner) -> None:
    body = """
import gc, types
for item in gc.get_objects():
    if type(item) is types.FunctionType and item.__module__ == 'tiny_stack.basics.sums':
        return item(left, right)
return -1.0
"""
    got = run(calling(body))
    assert got.results == () or got.results[0].value == -1.0  # type: ignore[union-attr]


def test_other_parts_of_the_stack_may_call_the_reference(run: Runner) -> None:
    body = "from tiny_stack.basics.towers import tower\nreturn tower(left, right)[0]"
    got = run(calling(body))
    assert got.status is RunStatus.FINISHED


def test_a_class_that_inherits_the_reference_is_the_reference(run: Runner) -> None:
    # A module of the stack that holds the class by its name, as layers.py holds Tensor.
    head = "import sys\nguard = next(g for g in sys.meta_path if hasattr(g, 'reference'))\n"
    body = "base = guard.reference('tiny_stack.basics.sums').Counter\nclass Counter(base): pass\n"
    got = run(head + body, name="Counter", driver="count", session_module="tiny_session")
    assert got.status is RunStatus.REFERENCE


@landlock
def test_the_workspace_cannot_be_changed_from_within(run: Runner, request_for: Builder) -> None:
    request = request_for(None)
    body = """
import shutil
refused = 0
for act in (
    lambda: shutil.rmtree(os.getcwd()),
    lambda: os.remove('basics/sums.py'),
    lambda: open('basics/sums.py', 'w'),
    lambda: open('basics/new.py', 'w'),
    lambda: os.mkdir('folder'),
    lambda: os.rename('basics', 'other'),
    lambda: os.truncate('basics/sums.py', 0),
    lambda: open('/tmp/firsthand-escape', 'w'),
):
    try:
        act()
    except OSError:
        refused += 1
return refused
"""
    got = run(calling(body.strip()))
    assert [r.value for r in got.results if isinstance(r, Returned)] == [8, 8]
    assert [path.name for path in request.workspace.rglob("*")] == ["basics", "sums.py"]
    assert (request.workspace / "basics/sums.py").stat().st_size > 0


@seccomp
def test_modes_and_times_of_files_cannot_be_changed(run: Runner) -> None:
    for statement in ("os.chmod('basics', 0)", "os.utime('basics', (0, 0))"):
        got = run(calling(f"{statement}\nreturn 3.0"))
        assert isinstance(got.results[0], Raised)


def test_a_workspace_deleted_during_the_check_gives_a_clear_status(
    request_for: Builder, worker: Worker
) -> None:
    body = "while os.path.exists('basics/helper.py'):\n    time.sleep(0.01)\n"
    text = calling(body + "import mine.basics.helper\nreturn 3.0")
    request = request_for(text, files={"basics/helper.py": "x = 1\n"})
    deleter = threading.Timer(0.2, shutil.rmtree, (request.workspace,))
    deleter.start()
    got = worker.execute(request)
    deleter.join()
    assert got.status in (RunStatus.FINISHED, RunStatus.MISSING)
    assert not any(isinstance(result, Returned) for result in got.results)


def test_a_segmentation_fault_is_a_crash(run: Runner) -> None:
    got = run(calling("import ctypes\nctypes.string_at(0)"))
    assert got.status is RunStatus.CRASHED
    assert "egmentation" in got.message
    assert got.current == 0


def test_threads_left_running_end_with_the_run(run: Runner, worker: Worker) -> None:
    body = "import threading\nthreading.Thread(target=time.sleep, args=(60,)).start()\nreturn 3.0"
    got = run(calling(body))
    assert got.status is RunStatus.FINISHED
    assert psutil.Process(worker.pid).children() == []


@seccomp
def test_sockets_are_refused(run: Runner) -> None:
    got = run(calling("import socket\nsocket.create_connection(('127.0.0.1', 9))"))
    assert isinstance(got.results[0], Raised)
    assert got.results[0].type_name == "PermissionError"


@landlock
def test_the_servers_memory_is_out_of_reach(run: Runner) -> None:
    got = run(calling("return open(f'/proc/{os.getppid()}/mem', 'r+b').read(0)"))
    assert all(isinstance(r, Raised) and r.type_name == "PermissionError" for r in got.results)


def test_reports_cannot_be_read_back_through_proc(run: Runner) -> None:
    body = """
found = b''
for pid in (os.getpid(), os.getppid()):
    try:
        names = os.listdir(f'/proc/{pid}/fd')
    except OSError:
        continue
    for name in names:
        try:
            fd = os.open(f'/proc/{pid}/fd/{name}', os.O_RDONLY | os.O_NONBLOCK)
            found += os.read(fd, 1000)
        except OSError:
            pass
return len(found)
"""
    got = run(calling(body.strip()))
    assert [r.value for r in got.results if isinstance(r, Returned)] == [0, 0]


def test_output_on_both_streams_is_kept_and_stdin_is_empty(run: Runner) -> None:
    body = (
        "print('out')\nprint('err', file=sys.stderr)\nos.write(2, b'raw')\nreturn sys.stdin.read()"
    )
    got = run(calling(body))
    assert [r.value for r in got.results if isinstance(r, Returned)] == ["", ""]
    assert got.printed == "out\nerr\nraw" * 2


def test_an_exception_with_hostile_text_is_reported(run: Runner) -> None:
    head = "class Bad(Exception):\n    def __str__(self): raise RuntimeError\n"
    got = run(calling("raise Bad() if len(left) == 3 else ValueError('x' * 10_000)", head))
    first, second = got.results
    assert isinstance(first, Raised)
    assert isinstance(second, Raised)
    assert first.type_name == "Bad"
    assert len(second.message) == 500


def test_processes_that_were_allowed_end_with_the_run(request_for: Builder) -> None:
    allowed = Limits(seconds=3.0, megabytes=512, processes=3)
    text = calling("if os.fork() == 0:\n    os.setsid()\n    time.sleep(60)\nreturn 3.0")
    with Worker() as own:
        got = own.execute(request_for(text, limits=allowed))
        assert got.status in (RunStatus.FINISHED, RunStatus.EXITED)
        assert psutil.Process(own.pid).children(recursive=True) == []
