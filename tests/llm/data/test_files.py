"""Whole files, their checksums, and what is wrong with a damaged one."""

from __future__ import annotations

import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.data import files
from firsthand.llm.data.files import crc32_of, damage_of, sync_file, write_atomically
from firsthand.llm.data.problems import DiskError


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made: Path = tmp_path_factory.mktemp("files")
    return made


@given(data=st.binary(max_size=40), part=st.integers(1, 9))
def test_the_checksum_is_that_of_all_bytes(folder: Path, data: bytes, part: int) -> None:
    path = folder / "checked"
    write_atomically(path, data)
    sync_file(path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_READ_BYTES", part)
        assert crc32_of(path) == f"{zlib.crc32(data):08x}"
        assert damage_of(path, len(data), crc32_of(path)) == ""


@given(data=st.data())
def test_a_flipped_bit_is_found(folder: Path, data: st.DataObject) -> None:
    raw = bytearray(data.draw(st.binary(min_size=1, max_size=20)))
    path, checksum = folder / "flipped", f"{zlib.crc32(raw):08x}"
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(raw)
    assert damage_of(path, len(raw), checksum) == "damaged, it differs from its checksum"
    assert damage_of(path, len(raw), None) == ""


def test_the_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "file"
    assert damage_of(path, 0, None) == "missing"
    path.write_bytes(bytes(1200))
    assert damage_of(path, 1300, None) == "cut short, 1,200 bytes instead of 1,300"
    assert damage_of(path, 1100, None) == "too long, 1,200 bytes instead of 1,100"
    inside = path / "of a file"
    assert damage_of(inside, 0, None) == "cannot be read: Not a directory"


def test_a_refused_write_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def refuse(descriptor: int, data: bytes, path: Path, offset: int) -> None:
        raise DiskError(f"{path}: full")

    monkeypatch.setattr(files, "write_all", refuse)
    with pytest.raises(DiskError, match="full"):
        write_atomically(path, b"new")
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file", b"old")]
