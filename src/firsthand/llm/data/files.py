"""Files that are whole or not there, also after a power cut, and whether they still are whole."""

from __future__ import annotations

import os
import zlib
from pathlib import Path

from firsthand.llm.data.problems import DiskError

_READ_BYTES = 1 << 20


def write_all(descriptor: int, data: bytes | memoryview, path: Path, offset: int) -> None:
    """Write every byte of data at the descriptor's position.

    Args:
        path, offset: where this is, for the error message only.
    Raises:
        DiskError: the system took only a part.
    """
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        try:
            done += os.write(descriptor, view[done:])
        except OSError as error:
            raise DiskError(f"{path}, byte {offset + done}: cannot write: {error}") from error


def sync_folder(folder: Path) -> None:
    """Make renames inside the folder survive a power cut, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return  # Windows cannot open a folder
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file by data: a reader sees the old one or the new one, never a part.

    Raises:
        DiskError: it could not be written; the old file stands.
    """
    partial = path.with_name(path.name + ".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        try:
            write_all(descriptor, data, partial, 0)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(partial, path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise DiskError(f"{path}: cannot write: {error}") from error
    except DiskError:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make what was written into the file survive a power cut.

    Raises:
        OSError: the system refuses.
    """
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32_of(path: Path) -> str:
    """The CRC-32 of a file's bytes, eight hexadecimal digits.

    Raises:
        OSError: it cannot be read.
    """
    checksum = 0
    with path.open("rb") as file:
        while part := file.read(_READ_BYTES):
            checksum = zlib.crc32(part, checksum)
    return f"{checksum:08x}"


def damage_of(path: Path, size: int, crc32: str | None) -> str:
    """What is wrong with a file, as the end of a sentence that begins with its path; "" is nothing.

    Args:
        size: that it was written with, in bytes.
        crc32: likewise, as `crc32_of` gives it; None leaves the bytes unread.
    """
    try:
        found = path.stat().st_size
        if found != size:
            wrong = "cut short" if found < size else "too long"
            return f"{wrong}, {found:,} bytes instead of {size:,}"
        if crc32 is not None and crc32_of(path) != crc32:
            return "damaged, it differs from its checksum"
    except FileNotFoundError:
        return "missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    return ""
