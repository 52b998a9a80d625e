"""The limits of this machine, measured: the record, its file, and how one is made."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.processor import Level, Processor, read_processor
from firsthand.llm.audit.records import Bandwidths, DeviceCeilings
from firsthand.llm.data.files import write_atomically
from firsthand.llm.data.problems import DataError

__all__ = [
    "Bandwidths",
    "DeviceCeilings",
    "Level",
    "MachineCeilings",
    "measure_machine_ceilings",
    "stored_ceilings",
]

HOME = "FIRSTHAND_HOME"
FILE = "machine.json"
VERSION = 1

Progress = Callable[[str, float], None]


@dataclass(frozen=True)
class MachineCeilings:
    """A machine and what it does at most.

    Attributes:
        processor: the machine.
        cpu: its processor's limits.
        gpu: its GPU's, or None.
        measured_at: date and time, ISO 8601, UTC.
        seconds: that measuring took.
        notes: what could not be measured as it should, in sentences.
    """

    processor: Processor
    cpu: DeviceCeilings
    gpu: DeviceCeilings | None
    measured_at: str
    seconds: float
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """A JSON object; `from_json` is its inverse."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_json(cls, record: Any) -> MachineCeilings:
        """Read what `to_json` wrote.

        Raises:
            AuditError: it is another thing, of another version, or has impossible numbers.
        """
        if not isinstance(record, dict) or record.get("version") != VERSION:
            raise AuditError(f"this is no record of a machine in version {VERSION}")
        fields = {name: value for name, value in record.items() if name != "version"}
        try:
            return _adapter().validate_python(fields)
        except ValidationError as error:
            wrong = error.errors()[0]
            place = ".".join(map(str, wrong["loc"]))
            raise AuditError(
                f"the record of a machine is damaged at {place}: {wrong['msg']}"
            ) from error

    def save(self, path: Path) -> None:
        """Write one JSON file, whole or not at all; the folder is made.

        Raises:
            AuditError: it cannot be written.
        """
        text = json.dumps(self.to_json(), indent=2) + "\n"
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text.encode("utf-8"))
        except (OSError, DataError) as error:
            raise AuditError(f"{path}: cannot be written: {error}") from error

    @classmethod
    def load(cls, path: Path) -> MachineCeilings:
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: there is no such file.
            AuditError: it cannot be read, or is damaged.
        """
        try:
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise
        except (OSError, ValueError) as error:
            raise AuditError(f"{path}: cannot be read: {error}") from error
        try:
            return cls.from_json(record)
        except AuditError as error:
            raise AuditError(f"{path}: {error}") from error


def _adapter() -> TypeAdapter[MachineCeilings]:
    return TypeAdapter(MachineCeilings)


def record_path(folder: Path | None = None) -> Path:
    """The machine's record: in `folder`, or $FIRSTHAND_HOME, or the user's cache folder."""
    given = folder or os.environ.get(HOME)
    return (Path(given) if given else _cache_folder()) / FILE


def _cache_folder() -> Path:
    if sys.platform == "win32":
        base = os.environ.get("LOCALAPPDATA") or str(Path.home() / "AppData/Local")
    elif sys.platform == "darwin":
        base = str(Path.home() / "Library/Caches")
    else:
        base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "firsthand"


def stored_ceilings(folder: Path | None = None) -> MachineCeilings | None:
    """What `firsthand machine` measured here; None if it never did, or on another machine.

    A damaged file counts as none.

    Args:
        folder: where it lies; None is the usual place.
    """
    return found_ceilings(folder)[0]


def found_ceilings(folder: Path | None = None) -> tuple[MachineCeilings | None, str]:
    """As `stored_ceilings`, and in a sentence why a record does not count; "" without one."""
    try:
        found = MachineCeilings.load(record_path(folder))
    except FileNotFoundError:
        return None, ""
    except AuditError as error:
        return None, f"What was measured before does not count: {error}."
    if not found.processor.same_machine(read_processor()):
        return None, "What was measured before was another machine, or this one with other limits."
    return found, ""


def measure_machine_ceilings(
    *, progress: Progress | None = None, seconds: float = 45
) -> MachineCeilings:
    """Measure this machine with all cores that the process may use.

    Args:
        progress: called with what is measured and the share that is done, 0 to 1.
        seconds: about so long, and some more where loops have to be compiled first; 0 measures
            each thing a few times.
    Raises:
        AuditError: it cannot be measured: no memory, no threads, or a negative number of seconds.
    """
    from firsthand.llm.audit.measurement import measured  # what it needs takes seconds to import

    return measured(progress, seconds)
