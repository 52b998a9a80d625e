"""Checkpoints that are whole or not there: safetensors and JSON in a folder that is renamed last.

    checkpoints/
        step-00000200/
            model.safetensors, optimizer.safetensors ...   one file for each group of tensors
            state.json                                     its own CRC-32, then everything else
        .step-00000300.partial/                            cut off while it was written

A folder gets its name after every byte in it has reached the disk, so a kill or a power cut leaves
the earlier ones as they were. What the disk itself damages later, sizes and checksums show.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import zlib
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from firsthand.llm.data.files import crc32_of, damage_of, sync_file, sync_folder
from firsthand.llm.training.errors import TrainingError

Tensors = dict[str, dict[str, Tensor]]
Record = dict[str, Any]

STATE_FILE = "state.json"
TENSORS = ".safetensors"
VERSION = 1
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WHOLE = re.compile(r"step-(\d{8,})")
# Set aside while another of the same step takes its name; counts as long as none has.
_REPLACED = re.compile(r"\.step-(\d{8,})\.replaced")
_LEFTOVER = re.compile(r"\.step-\d{8,}\.(partial|removed)")
_SYSTEM_ERROR = re.compile(r"os error (\d+)")
# state.json begins with its own checksum at a fixed place: no byte of it is left unchecked.
_HEAD, _DIGITS, _SEPARATOR = b'{"crc32": "', 8, b'",\n'


class CheckpointError(TrainingError):
    """A checkpoint that cannot be written, read, or used for this run; names the file."""


class DamagedCheckpointError(CheckpointError):
    """A checkpoint whose files are missing, cut short or changed; an older one may be whole."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """One checkpoint, read and verified.

    Attributes:
        path: its folder.
        step: updates of the weights that it has behind it.
        tensors: the groups that were asked for, such as "model" and "optimizer", by name.
        state: what else was saved with it, as JSON gives it back.
    """

    path: Path
    step: int
    tensors: Tensors
    state: Record


@dataclass(frozen=True, kw_only=True)
class Latest:
    """The newest whole checkpoint, None where there was none yet.

    Attributes:
        problems: what is wrong with each newer one. Training on from an older checkpoint makes
            the same steps again, bit for bit, so this costs time and nothing else.
    """

    checkpoint: Checkpoint | None
    problems: tuple[str, ...]


def checkpoint_path(folder: Path, step: int) -> Path:
    """Where the checkpoint of a step stands among the others."""
    return folder / f"step-{step:08d}"


def save_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]
) -> Path:
    """Write a checkpoint; when this returns it survives a kill and a power cut.

    Args:
        folder: of the run's checkpoints; made if missing.
        step: names it; one that has this step already is replaced.
        tensors: one file for each group; two tensors of a group must not share memory.
        state: what JSON can hold exactly, with strings as keys and no NaN.
    Returns:
        Its folder.
    Raises:
        CheckpointError: the disk is full or refuses; nothing is left of it, the others stand.
        ValueError, TypeError: the state is not JSON.
    """
    _encoded(step, {}, state)
    with explained_write(folder, step, tensors):
        partial = begin_checkpoint(folder, step)
        for group, named in tensors.items():
            plain = {name: tensor.detach().contiguous() for name, tensor in named.items()}
            save_file(plain, partial / f"{group}{TENSORS}", metadata={"format": "pt"})
        return commit_checkpoint(partial, step, state)


def begin_checkpoint(folder: Path, step: int) -> Path:
    """An empty folder for the files of a checkpoint, for whoever writes them otherwise."""
    partial = folder / f".step-{step:08d}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def commit_checkpoint(partial: Path, step: int, state: Mapping[str, Any]) -> Path:
    """Make a checkpoint of all files in the folder that `begin_checkpoint` gave.

    Raises:
        OSError: the system refused a write, a flush or a rename.
    """
    files = {}
    for path in sorted(path for path in partial.rglob("*") if path.is_file()):
        os.chmod(path, 0o644)  # safetensors makes files that only their owner can read
        sync_file(path)
        size, checksum = path.stat().st_size, crc32_of(path)
        files[path.relative_to(partial).as_posix()] = {"bytes": size, "crc32": checksum}
    (partial / STATE_FILE).write_bytes(_encoded(step, files, state))
    sync_file(partial / STATE_FILE)
    for inner in (*(path for path in partial.rglob("*") if path.is_dir()), partial):
        sync_folder(inner)
    folder = partial.parent
    path, aside = checkpoint_path(folder, step), folder / f".step-{step:08d}.replaced"
    if path.exists():
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(path, aside)
    os.rename(partial, path)
    sync_folder(folder)
    shutil.rmtree(aside, ignore_errors=True)
    return path


def list_checkpoints(folder: Path) -> list[Path]:
    """The folders of finished checkpoints, the oldest first; none when there is no such folder."""
    found: dict[int, Path] = {}
    for pattern in (_REPLACED, _WHOLE):
        for path in folder.iterdir() if folder.is_dir() else ():
            if (match := pattern.fullmatch(path.name)) and path.is_dir():
                found[int(match[1])] = path
    return [found[step] for step in sorted(found)]


def verify_checkpoint(path: Path, only: Collection[str] | None = None) -> tuple[int, Record]:
    """Read every file once against its size and checksum.

    Args:
        path: the checkpoint's folder.
        only: groups of tensors; None is every file.
    Returns:
        The step and the state.
    Raises:
        DamagedCheckpointError: a file is missing, cut short or changed; names the first.
        CheckpointError: there is no checkpoint, it is of another version, or lacks a group.
    """
    step, files, state = _read_state(path)
    wanted = list(files) if only is None else [f"{group}{TENSORS}" for group in only]
    for name in wanted:
        if name not in files:
            has = ", ".join(name.removesuffix(TENSORS) for name in files) or "none"
            raise CheckpointError(f"{path}: there is no {name}; its groups are: {has}")
        if wrong := damage_of(path / name, files[name]["bytes"], files[name]["crc32"]):
            raise DamagedCheckpointError(f"{path / name}: {wrong}")
    return step, state


def load_checkpoint(
    path: Path, *, device: str | torch.device = "cpu", only: Collection[str] | None = None
) -> Checkpoint:
    """Verify a checkpoint and read its tensors.

    Args:
        path: its folder.
        device: where the tensors shall be, wherever they were saved from.
        only: groups of tensors, such as ("model",); None is all.
    Raises:
        CheckpointError: as `verify_checkpoint`.
    """
    step, state = verify_checkpoint(path, only)
    groups = only
    if groups is None:
        groups = sorted(file.name.removesuffix(TENSORS) for file in path.glob(f"*{TENSORS}"))
    tensors = {group: _read_tensors(path / f"{group}{TENSORS}", device) for group in groups}
    return Checkpoint(path=path, step=step, tensors=tensors, state=state)


def load_latest(
    folder: Path, *, device: str | torch.device = "cpu", only: Collection[str] | None = None
) -> Latest:
    """The newest checkpoint that is whole. Arguments: as `load_checkpoint`.

    Raises:
        DamagedCheckpointError: there are some, and none is whole; names what is wrong with each.
        CheckpointError: of another version, or without a group that is asked for.
    """
    problems: dict[Path, str] = {}
    while True:
        vanished = False
        for path in reversed(list_checkpoints(folder)):
            if path in problems:
                continue
            try:
                checkpoint = load_checkpoint(path, device=device, only=only)
            except CheckpointError as error:
                # A run that goes on meanwhile removes its old ones, but has newer ones then.
                vanished = vanished or not path.exists()
                if path.exists() and not isinstance(error, DamagedCheckpointError):
                    raise
                if path.exists():
                    problems[path] = str(error)
            else:
                return Latest(checkpoint=checkpoint, problems=tuple(problems.values()))
        if not vanished:
            break
    if problems:
        raise DamagedCheckpointError("no checkpoint is whole: " + "; ".join(problems.values()))
    return Latest(checkpoint=None, problems=())


def prune(folder: Path, keep: int, *, sure: Path | None = None) -> list[Path]:
    """Remove all but the newest checkpoints, and what interrupted writes left.

    The newest whole one stays even when damaged ones are newer; if none is whole, all stay.

    Args:
        keep: how many stay, at least 1.
        sure: one known to be whole, such as the one just saved, which need not be read again.
    Returns:
        The checkpoints that were removed.
    Raises:
        ValueError: keep is below 1.
    """
    if keep < 1:
        raise ValueError(f"at least one checkpoint stays; keep is {keep}")
    _remove_leftovers(folder)
    paths = list_checkpoints(folder)
    old = paths[:-keep]
    if not old:
        return []
    whole = next((path for path in reversed(paths) if path == sure or _is_whole(path)), None)
    if whole is None:
        return []
    removed = [path for path in old if path != whole]
    for path in removed:
        # Renamed first: a kill in the middle then leaves no checkpoint that looks damaged.
        number = path.name.removeprefix(".").removesuffix(".replaced")
        gone = path.with_name(f".{number}.removed")
        shutil.rmtree(gone, ignore_errors=True)
        os.rename(path, gone)
        shutil.rmtree(gone, ignore_errors=True)
    return removed


def _is_whole(path: Path) -> bool:
    try:
        verify_checkpoint(path)
    except CheckpointError:
        return False
    return True


def _remove_leftovers(folder: Path) -> None:
    for path in list(folder.iterdir()) if folder.is_dir() else []:
        replaced = _REPLACED.fullmatch(path.name)
        if _LEFTOVER.fullmatch(path.name) or (
            replaced and checkpoint_path(folder, int(replaced[1])).exists()
        ):
            shutil.rmtree(path, ignore_errors=True)


def _encoded(step: int, files: Mapping[str, Any], state: Mapping[str, Any]) -> bytes:
    record = {
        "format": "firsthand checkpoint",
        "version": VERSION,
        "step": step,
        "files": files,
        "state": state,
    }
    # The text without its opening brace, which stands before the checksum.
    rest = json.dumps(record, indent=1, allow_nan=False).encode("ascii")[1:]
    return _HEAD + f"{zlib.crc32(rest):08x}".encode("ascii") + _SEPARATOR + rest


def _read_state(path: Path) -> tuple[int, dict[str, Record], Record]:
    file = path / STATE_FILE
    if not path.is_dir():
        raise CheckpointError(f"{path}: there is no such checkpoint")
    try:
        raw = file.read_bytes()
    except FileNotFoundError as error:
        raise DamagedCheckpointError(f"{file}: missing") from error
    except OSError as error:
        raise DamagedCheckpointError(f"{file}: cannot be read: {error.strerror}") from error
    try:
        record = json.loads(raw)
    except ValueError as error:
        raise DamagedCheckpointError(f"{file}: damaged, this is not JSON: {error}") from error
    start = len(_HEAD) + _DIGITS
    rest = raw[start + len(_SEPARATOR) :]
    if raw[: len(raw) - len(rest)] != _HEAD + f"{zlib.crc32(rest):08x}".encode() + _SEPARATOR:
        raise DamagedCheckpointError(f"{file}: damaged, it differs from its checksum")
    if record.get("version") != VERSION:
        raise CheckpointError(
            f"{file}: version {record.get('version')}; this program reads version {VERSION}"
        )
    return record["step"], record["files"], record["state"]


def _read_tensors(path: Path, device: str | torch.device) -> dict[str, Tensor]:
    try:
        tensors: dict[str, Tensor] = load_file(path, device=str(device))
    except (SafetensorError, OSError) as error:
        raise DamagedCheckpointError(f"{path}: {error}") from error
    if torch.device(device).type != "cpu":
        return tensors
    # Tensors in a mapped file begin at odd addresses, and sums over them may be rounded otherwise
    # than over tensors that PyTorch allocated: a resumed run must not differ in one bit.
    return {name: tensor.clone() for name, tensor in tensors.items()}


@contextmanager
def explained_write(
    folder: Path, step: int, tensors: Mapping[str, Mapping[str, Tensor]]
) -> Iterator[None]:
    """Turn what the system refuses into a CheckpointError, and remove the partial folder."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        partial = folder / f".step-{step:08d}.partial"
        written = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
        shutil.rmtree(partial, ignore_errors=True)
        needed = sum(t.numel() * t.element_size() for g in tensors.values() for t in g.values())
        match = _SYSTEM_ERROR.search(str(error))
        code = error.errno if isinstance(error, OSError) else int(match[1]) if match else None
        reason = os.strerror(code) if code else str(error)
        message = f"{checkpoint_path(folder, step)}: cannot be written: {reason}"
        if code in _FULL:
            message += f" after {written:,} of {needed:,} bytes; make room and resume"
        raise CheckpointError(f"{message}. Earlier checkpoints are whole.") from error
