"""Waiting for a save or a key, whichever comes first.

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
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType

LOOK_SECONDS = 1.0
SETTLE_MILLISECONDS = 30  # an editor's several writes of one save arrive as one


class Watcher:
    """A context manager around one file. `wait()` returns 'saved' or the key that was pressed."""

    def __init__(self, path: Path, keys: bool = True) -> None:
        self.path = path
        self._keys = keys and sys.stdin.isatty()
        self._stop = threading.Event()
        self._read_end, self._write_end = os.pipe()
        self._seen = self._stamp()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join(timeout=2.0)
        os.close(self._read_end)
        os.close(self._write_end)

    def wait(self) -> str:
        """Block until the file changed or a key came. End of input counts as the key 'q'."""
        with _single_keys(self._keys):
            while True:
                sources = [self._read_end, *([sys.stdin.fileno()] if self._keys else [])]
                ready, _, _ = select.select(sources, [], [], LOOK_SECONDS)
                if self._read_end in ready:
                    os.read(self._read_end, 4096)
                if self._changed():
                    return "saved"
                if self._keys and sys.stdin.fileno() in ready:
                    typed = os.read(sys.stdin.fileno(), 64).decode(errors="ignore")
                    return typed[:1].lower() if typed else "q"

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
                rust_timeout=500,
                yield_on_timeout=False,
                recursive=False,
                watch_filter=None,
                raise_interrupt=False,
            ):
                if self._stop.is_set():
                    return
                os.write(self._write_end, b".")


@contextmanager
def _single_keys(active: bool) -> Iterator[None]:
    """Keys arrive without Enter, Ctrl-C still interrupts; the terminal is put back after."""
    if not active:
        yield
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    try:
        tty.setcbreak(descriptor)
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
