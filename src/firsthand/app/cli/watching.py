"""Waiting for a save or a key, whichever comes first.

From `__enter__` to `__exit__` keys arrive without Enter, also those pressed while a check runs.

The folder is watched, not the file, so that editors which save by renaming are seen. Where file
events do not arrive (some network and container mounts) the file is also looked at once a second,
and a key always checks.
"""

from __future__ import annotations

import os
import select
import sys
import termios
import threading
import tty
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import TracebackType

LOOK_SECONDS = 1.0
STOP_MILLISECONDS = 100  # after a passed check the next step waits at most this long
SETTLE_MILLISECONDS = 30  # an editor's several writes of one save arrive as one


class Watcher:
    """A context manager around one file. `wait()` returns 'saved', 'gone' or a key.

    root: a folder without which waiting makes no sense; 'gone' when it is no longer there.
    """

    def __init__(self, path: Path, root: Path, keys: bool = True) -> None:
        self.path = path
        self.root = root
        self._keys = keys and sys.stdin.isatty()
        self._stop = threading.Event()
        self._read_end, self._write_end = os.pipe()
        self._seen = self._stamp()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._terminal = ExitStack()

    def __enter__(self) -> Watcher:
        self._terminal.enter_context(single_keys(self._keys))
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._terminal.close()
        self._stop.set()
        self._thread.join(timeout=2.0)
        os.close(self._read_end)
        os.close(self._write_end)

    def wait(self) -> str:
        """Block until the file changed or a key came. End of input counts as the key 'q'."""
        while True:
            sources = [self._read_end, *([sys.stdin.fileno()] if self._keys else [])]
            ready, _, _ = select.select(sources, [], [], LOOK_SECONDS)
            if self._read_end in ready:
                os.read(self._read_end, 4096)
            if self._changed():
                return "saved"
            if not self.root.is_dir():
                return "gone"
            if self._keys and sys.stdin.fileno() in ready:
                return self._key()

    @contextmanager
    def lines(self) -> Iterator[None]:
        """Meanwhile the terminal takes whole lines, as it did before."""
        self._terminal.close()
        try:
            yield
        finally:
            self._terminal.enter_context(single_keys(self._keys))

    def seen(self) -> None:
        """What is in the file now was looked at, e.g. because a key asked for it."""
        self._seen = self._stamp()

    def _key(self) -> str:
        try:
            typed = os.read(sys.stdin.fileno(), 64)
        except OSError:  # the terminal was closed
            typed = b""
        return typed.decode(errors="replace")[:1].lower() if typed else "q"

    def _changed(self) -> bool:
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        return stamp is not None

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            status = self.path.stat()
        except OSError:
            return None
        return (status.st_mtime_ns, status.st_size, status.st_ino)

    def _watch(self) -> None:
        from watchfiles import watch

        with suppress(Exception):  # no file events here: `wait` looks by itself
            for _ in watch(
                self.path.parent,
                debounce=SETTLE_MILLISECONDS,
                step=10,
                stop_event=self._stop,
                rust_timeout=STOP_MILLISECONDS,
                yield_on_timeout=False,
                recursive=False,
                watch_filter=None,
                raise_interrupt=False,
            ):
                if self._stop.is_set():
                    return
                os.write(self._write_end, b".")


@contextmanager
def single_keys(active: bool) -> Iterator[None]:
    """Keys arrive without Enter, Ctrl-C still interrupts; the terminal is put back after."""
    if not active:
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor, termios.TCSADRAIN)  # what was typed meanwhile is kept
        yield
    finally:
        with suppress(termios.error):  # the terminal may have been closed
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
