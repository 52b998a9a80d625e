"""A run is a folder: its config, its record, its checkpoints, metrics, samples and report.

config.toml is written last when a run is created: a folder that has it is a run and can be resumed,
even if nothing else is there yet.
"""

from __future__ import annotations

import errno
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from firsthand.llm.data.files import write_atomically
from firsthand.llm.data.manifest import Manifest
from firsthand.llm.data.problems import DiskError
from firsthand.llm.model.settings import SettingsError, build, read_toml, to_record, to_toml
from firsthand.llm.training.checkpoints import CheckpointError
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.errors import TrainingError

if sys.platform == "win32":
    import msvcrt
else:
    import fcntl

Record = dict[str, Any]

CONFIG, RECORD, CHECKPOINTS, LOCK = "config.toml", "run.json", "checkpoints", ".lock"
_PACKAGES = ("firsthand", "torch", "numpy", "safetensors")
# What a creation that was cut off can leave behind.
_UNFINISHED = {RECORD, f"{RECORD}.partial", f"{CONFIG}.partial", CHECKPOINTS, LOCK}

# Settings that change what is seen of a run, where it is computed or where its text lies, but not
# which steps it makes; the text itself is compared by its hash. Another device, number of threads
# or micro-batch still rounds sums otherwise.
FREE_SETTINGS = frozenset(
    {
        "name",
        *(f"data.{name}" for name in ("source", "size", "field", "unit")),
        *(f"data.{name}" for name in ("validation_share", "folder", "tokenizer")),
        *(f"training.{name}_every" for name in ("log", "evaluate", "sample", "save", "flow")),
        # The schedule depends on it; in a run's own config `lengthen_run` alone changes it.
        "training.steps",
        *(f"training.{name}" for name in ("evaluate_batches", "keep", "tensorboard")),
        *(f"training.{name}" for name in ("prompts", "sample_tokens")),
        *(f"training.{name}" for name in ("micro_batch", "checkpoint_blocks", "compile")),
        *(f"training.{name}" for name in ("parallel", "device", "threads")),
    }
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """The folder of a run and what it was asked to do."""

    folder: Path
    config: RunConfig

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.folder / CHECKPOINTS

    @property
    def tokenizer(self) -> Path:
        """File of the tokenizer."""
        return self.folder / "tokenizer.json"

    @property
    def metrics(self) -> Path:
        """File of the metrics, a JSON object a line."""
        return self.folder / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        """File of the samples, a JSON object a line."""
        return self.folder / "samples.jsonl"

    @property
    def report(self) -> Path:
        """File of the HTML report."""
        return self.folder / "report.html"

    @property
    def model(self) -> Path:
        """Folder of the trained weights in Hugging Face's format."""
        return self.folder / "model"

    def record(self) -> Record:
        """What run.json says: when and with which versions the run began, and what was added.

        Raises:
            TrainingError: it is missing or damaged.
        """
        path = self.folder / RECORD
        try:
            record: Record = json.loads(path.read_bytes())
        except OSError as error:
            raise TrainingError(f"{path}: cannot be read: {error.strerror}") from error
        except ValueError as error:
            raise TrainingError(f"{path}: damaged, this is not JSON: {error}") from error
        return record

    def update_record(self, **changes: Any) -> None:
        """Set keys of run.json, such as `data` and `parts`; readers see the old or the new one.

        Raises:
            TrainingError: it cannot be read or written.
        """
        _write(self.folder / RECORD, _json({**self.record(), **changes}))


def create_run(folder: Path, config: RunConfig, **record: Any) -> Run:
    """Make the folder of a new run.

    Cut off at any moment, it leaves a run that can be resumed or a folder that can be created
    again.

    Args:
        folder: missing or empty.
        config: all of it is saved.
        record: more keys for run.json.
    Raises:
        TrainingError: the folder is in use, or cannot be written.
    """
    _require_unused(folder)
    try:
        (folder / CHECKPOINTS).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrainingError(f"{folder}: cannot be made: {error.strerror}") from error
    with lock_run(folder):
        _require_unused(folder)  # another process may have been quicker
        about: Record = {"created": datetime.now(UTC).isoformat(timespec="seconds")}
        about |= {"versions": _versions(), **record}
        _write(folder / RECORD, _json(about))
        _write(folder / CONFIG, to_toml(config).encode("utf-8"))
    return Run(folder=folder, config=config)


def open_run(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        TrainingError: there is no folder, it is not a run, or its config cannot be read.
    """
    if not folder.is_dir():
        raise TrainingError(f"{folder}: there is no such run")
    path = folder / CONFIG
    if not path.exists():
        if _is_unfinished(folder) and any(folder.iterdir()):
            raise TrainingError(
                f"{folder}: the run was cut off before it began; start it again with --out {folder}"
            )
        raise TrainingError(f"{folder}: not a run, it has no {CONFIG}")
    try:
        config = build(RunConfig, read_toml(path))
    except SettingsError as error:
        message = str(error)
        raise TrainingError(
            message if message.startswith(str(path)) else f"{path}: {message}"
        ) from error
    return Run(folder=folder, config=config)


def lengthen_run(run: Run, steps: int) -> Run:
    """The same run with another number of steps, saved in its config.

    Raises:
        TrainingError: it cannot be written.
        SettingsError: no such number of steps.
    """
    training = replace(run.config.training, steps=steps)
    longer = Run(folder=run.folder, config=replace(run.config, training=training))
    _write(run.folder / CONFIG, to_toml(longer.config).encode("utf-8"))
    return longer


@contextmanager
def lock_run(folder: Path) -> Iterator[None]:
    """Keep other processes from training in the folder; the system lets go when this one ends.

    Raises:
        TrainingError: another process holds it; says which.
    """
    path = folder / LOCK
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise TrainingError(f"{path}: cannot be opened: {error.strerror}") from error
    try:
        if not _locked(descriptor):
            raise TrainingError(f"{folder}: {_holder(path)} trains in it; wait for it or end it")
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode("ascii"))
        yield
    finally:
        os.close(descriptor)


def data_identity(manifest: Manifest) -> Record:
    """What makes two prepared folders the same to a run, wherever they lie."""
    return {
        "tokenizer": manifest.tokenizer.hash,
        "splits": {
            name: {"text_hash": split.text_hash, "tokens": split.tokens}
            for name, split in manifest.splits.items()
        },
    }


def require_same_data(saved: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    """Compare two `data_identity` records.

    Args:
        saved: with the checkpoint.
        now: of the prepared folder at hand.
        path: of the checkpoint, for the message.
    Raises:
        CheckpointError: another tokenizer or another text.
    """
    if saved == now:
        return
    if saved.get("tokenizer") != now.get("tokenizer"):
        was, given = str(saved.get("tokenizer"))[:12], str(now.get("tokenizer"))[:12]
        raise CheckpointError(
            f"{path}: trained with the tokenizer {was}, the data is encoded with {given}; "
            "resume with the run's own tokenizer.json"
        )
    before, after = saved.get("splits", {}), now.get("splits", {})
    names = [n for n in sorted({*before, *after}) if before.get(n) != after.get(n)]
    raise CheckpointError(
        f"{path}: the data is not what it was trained on: "
        + "; ".join(f"{n} was {_split(before.get(n))}, is {_split(after.get(n))}" for n in names)
    )


def changed_settings(saved: Mapping[str, Any], config: RunConfig) -> list[str]:
    """The settings in which a config leaves the trajectory of a saved one, with both values.

    Args:
        saved: `to_record` of the saved config; a setting it lacks had its default.
    Raises:
        SettingsError: saved is no config that this program knows.
    """
    before = _flat(to_record(build(RunConfig, saved)))
    after = _flat(to_record(config))
    return [
        f"{name} was {before[name]!r}, is {after[name]!r}"
        for name in after
        if name not in FREE_SETTINGS and before[name] != after[name]
    ]


def require_same_config(saved: Mapping[str, Any], config: RunConfig, path: Path) -> None:
    """Compare what decides the trajectory.

    Args:
        saved: `to_record` of the config that the checkpoint was saved with.
        config: of this run.
        path: of the checkpoint, for the message.
    Raises:
        CheckpointError: a setting differs; names each with the old value and the new one.
    """
    try:
        changed = changed_settings(saved, config)
    except SettingsError as error:
        raise CheckpointError(f"{path}: of a config that cannot be read: {error}") from error
    if changed:
        raise CheckpointError(f"{path}: of another config: {'; '.join(changed)}")


def _locked(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        # Some network file systems have no locks: then nobody can hold one.
        return error.errno in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)
    return True


def _holder(path: Path) -> str:
    try:
        return f"process {int(path.read_text())}"
    except (OSError, ValueError):
        return "another process"  # just beginning, or a system that hides locked files


def _require_unused(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise TrainingError(f"{folder}: this is a file; name another folder with --out")
    if (folder / CONFIG).exists():
        raise TrainingError(
            f"{folder}: there is a run already; go on with it by `firsthand train --resume "
            f"{folder}`, or name another folder with --out"
        )
    if not _is_unfinished(folder):
        raise TrainingError(f"{folder}: not empty; name another folder with --out")


def _is_unfinished(folder: Path) -> bool:
    checkpoints = folder / CHECKPOINTS
    empty = not checkpoints.is_dir() or not any(checkpoints.iterdir())
    return empty and all(path.name in _UNFINISHED for path in folder.iterdir())


def _versions() -> Record:
    found = {"python": platform.python_version(), "system": platform.platform()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "unknown"
    return found


def _write(path: Path, data: bytes) -> None:
    try:
        write_atomically(path, data)
    except DiskError as error:
        raise TrainingError(str(error)) from error


def _json(record: Mapping[str, Any]) -> bytes:
    return (json.dumps(record, indent=2, ensure_ascii=False) + "\n").encode("utf-8")


def _flat(record: Mapping[str, Any], prefix: str = "") -> Record:
    flat: Record = {}
    for name, value in record.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def _split(entry: Mapping[str, Any] | None) -> str:
    if entry is None:
        return "absent"
    return f"{entry['tokens']:,} tokens of text {entry['text_hash'][:12]}"
