"""Records of a run, one JSON object a line, that a resume can cut back to a checkpoint's place."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from firsthand.llm.training.errors import TrainingError

Record = dict[str, Any]

# JSON has no such numbers; Python's float() reads these names.
_SPECIAL = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
_READ_BYTES = 1 << 16
_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows would translate line ends


class RecordLog(Protocol):
    """Where a run's records go."""

    def append(self, record: Mapping[str, Any], /) -> None: ...

    def close(self) -> None: ...


class MetricsLog:
    """A file of JSON lines.

    Every record reaches the system before `append` returns, so a kill costs at most the line that
    was being written; `sync` makes all of them survive a power cut.
    """

    def __init__(self, path: Path) -> None:
        """Open or make the file and drop a last line that was cut off.

        Raises:
            TrainingError: it cannot be opened.
        """
        self.path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | _BINARY, 0o644)
        except OSError as error:
            raise TrainingError(f"{path}: cannot be opened: {error.strerror}") from error
        self.length = 0
        self.truncate(os.fstat(self._descriptor).st_size)

    def append(self, record: Mapping[str, Any], /) -> None:
        """Add one line. NaN and infinities are written as strings, which `read_metrics` undoes.

        Args:
            record: strings, numbers (of NumPy and PyTorch too), booleans, None, lists, mappings.
        Raises:
            TrainingError: the disk is full or refuses; the file ends with the line before.
        """
        line = json.dumps(_plain(record), allow_nan=False).encode("ascii") + b"\n"
        done = 0
        try:
            while done < len(line):
                done += os.write(self._descriptor, line[done:])
        except OSError as error:
            os.ftruncate(self._descriptor, self.length)
            os.lseek(self._descriptor, self.length, os.SEEK_SET)
            raise TrainingError(
                f"{self.path}: cannot be written at byte {self.length:,}: {error.strerror}"
            ) from error
        self.length += len(line)

    def truncate(self, length: int) -> int:
        """Go back to the whole lines within the first `length` bytes.

        Args:
            length: as it was when the checkpoint was saved.
        Returns:
            How many of these bytes the file lacks: 0 unless someone else has changed it.
        """
        size = min(length, os.fstat(self._descriptor).st_size)
        self.length = self._after_last_line(size)
        os.ftruncate(self._descriptor, self.length)
        os.lseek(self._descriptor, self.length, os.SEEK_SET)
        return length - self.length

    def _after_last_line(self, end: int) -> int:
        while end:
            start = max(0, end - _READ_BYTES)
            os.lseek(self._descriptor, start, os.SEEK_SET)
            newline = os.read(self._descriptor, end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
        return 0

    def sync(self) -> None:
        """Wait until all lines are on the disk: before a checkpoint names the length."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; a second time does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class TensorBoardLog:
    """The numbers of each record as TensorBoard's scalars; needs the package tensorboard."""

    def __init__(self, folder: Path, *, step: int = 0) -> None:
        """Begin, or go on at a step; what was shown of later steps is hidden.

        Raises:
            TrainingError: the package is missing.
        """
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise TrainingError(
                "training.tensorboard needs a package that is missing: pip install tensorboard, "
                "or set training.tensorboard=false"
            ) from error
        self._writer: Any = SummaryWriter(str(folder), purge_step=step)

    def append(self, record: Mapping[str, Any], /) -> None:
        """Write every number of the record, nested ones by dotted names, at its "step"."""
        plain = _plain(record)
        for name, value in _numbers(plain):
            if name != "step":
                self._writer.add_scalar(name, value, plain["step"])

    def close(self) -> None:
        """Write what is held back."""
        self._writer.close()


def read_metrics(path: Path) -> list[Record]:
    """The records of a file, also while a run writes it; none when there is no file.

    Raises:
        TrainingError: a line is no JSON object (a last one without its end is left out).
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return []
    records = []
    for number, line in enumerate(raw.split(b"\n")[:-1], 1):
        try:
            record = json.loads(line)
        except ValueError as error:
            raise TrainingError(f"{path}, line {number}: this is not JSON: {error}") from error
        if not isinstance(record, dict):
            raise TrainingError(f"{path}, line {number}: not an object: {line[:50]!r}")
        records.append(_restored(record))
    return records


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value


def _restored(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _restored(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_restored(item) for item in value]
    return _SPECIAL.get(value, value) if isinstance(value, str) else value


def _numbers(record: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in record.items():
        number = _restored(value)
        if isinstance(value, Mapping):
            found += _numbers(value, f"{prefix}{name}.")
        elif isinstance(number, int | float) and not isinstance(number, bool):
            found.append((prefix + name, number))
    return found
