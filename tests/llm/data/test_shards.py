from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from firsthand.llm.data import shards
from firsthand.llm.data.problems import ShardError
from firsthand.llm.data.shards import (
    HEADER_BYTES,
    ShardWriter,
    TokenFormat,
    open_shard,
    read_header,
    token_format,
    verify_shard,
)

FORM = TokenFormat(2, 256, 257, "ab" * 32)
WIDE = TokenFormat(4, 256, 70_000, "cd" * 32)


def write(path: Path, ids: np.ndarray, form: TokenFormat = FORM) -> Path:
    writer = ShardWriter(path, form)
    writer.append(ids)
    writer.close()
    return path


@pytest.fixture
def ids() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 257, 700_000, dtype=np.uint32)


@pytest.fixture
def shard(tmp_path: Path, ids: np.ndarray) -> Path:
    return write(tmp_path / "a.bin", ids)


@pytest.mark.parametrize("form", [FORM, WIDE])
@pytest.mark.parametrize("count", [1, 2, 1 << 18, 1 << 19, (1 << 19) + 1, 1_300_000])
def test_what_was_written_is_read(tmp_path: Path, form: TokenFormat, count: int) -> None:
    generator = np.random.default_rng(count)
    ids = generator.integers(0, form.vocabulary_size, count, dtype=np.uint32)
    path = tmp_path / "a.bin"
    writer = ShardWriter(path, form)
    for part in np.array_split(ids, 3):
        writer.append(part)
    assert not path.exists()
    writer.close()
    opened = open_shard(path)
    assert np.array_equal(opened.ids, ids)
    assert opened.form == form
    assert opened.documents == np.count_nonzero(ids == 256)
    assert opened.ids.dtype == form.dtype
    assert not opened.ids.flags.writeable
    assert verify_shard(path) == writer.crc
    assert [file.name for file in tmp_path.iterdir()] == ["a.bin"]


def test_an_empty_shard_can_be_read(tmp_path: Path) -> None:
    assert open_shard(write(tmp_path / "a.bin", np.zeros(0, np.uint32))).ids.size == 0


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_every_flipped_bit_is_found(shard: Path, data: st.DataObject) -> None:
    whole = shard.read_bytes()
    used = HEADER_BYTES - 52  # the rest of the header is zeros that mean nothing
    places = st.one_of(st.integers(0, used - 1), st.integers(HEADER_BYTES, len(whole) - 1))
    place, bit = data.draw(places), data.draw(st.integers(0, 7))
    damaged = bytearray(whole)
    damaged[place] ^= 1 << bit
    path = shard.with_name("damaged.bin")
    path.write_bytes(damaged)
    with pytest.raises(ShardError, match=r"damaged\.bin"):
        open_shard(path)


def test_a_flipped_byte_is_placed(shard: Path) -> None:
    damaged = bytearray(shard.read_bytes())
    damaged[HEADER_BYTES + (1 << 20) + 5] ^= 1
    shard.write_bytes(damaged)
    first = HEADER_BYTES + (1 << 20)
    with pytest.raises(ShardError, match=f"bytes {first} to {HEADER_BYTES + 1_400_000}"):
        verify_shard(shard)
    assert open_shard(shard, verify=False).tokens == 700_000


@pytest.mark.parametrize("length", [0, 1, 50, HEADER_BYTES - 1, HEADER_BYTES, 5000, -1, -4])
def test_a_shard_cut_short_is_named(shard: Path, length: int) -> None:
    shard.write_bytes(shard.read_bytes()[:length])
    with pytest.raises(ShardError, match=r"a\.bin: cut short: \d+ bytes"):
        open_shard(shard, verify=False)


def test_a_shard_with_more_behind_it_is_named(shard: Path) -> None:
    shard.write_bytes(shard.read_bytes() + b"x")
    with pytest.raises(ShardError, match="too long"):
        read_header(shard)


def test_other_files_are_no_shards(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"something else " * 50)
    with pytest.raises(ShardError, match="byte 0: not a token shard"):
        read_header(path)
    with pytest.raises(ShardError, match="cannot be read"):
        read_header(tmp_path / "missing.bin")


def test_a_partial_shard_does_not_look_whole(tmp_path: Path, ids: np.ndarray) -> None:
    writer = ShardWriter(tmp_path / "a.bin", FORM)
    writer.append(ids)
    writer.abandon()
    assert not (tmp_path / "a.bin").exists()
    (tmp_path / "a.bin.partial").rename(tmp_path / "a.bin")
    with pytest.raises(ShardError, match="never finished"):
        read_header(tmp_path / "a.bin")


@pytest.mark.parametrize("finished", [False, True])
@pytest.mark.parametrize("kept", [1, 1000, 600_000])
def test_a_writer_goes_on_where_it_was(
    tmp_path: Path, ids: np.ndarray, finished: bool, kept: int
) -> None:
    path, expected = tmp_path / "a.bin", write(tmp_path / "b.bin", ids).read_bytes()
    writer = ShardWriter(path, FORM)
    writer.append(ids[:kept])
    state = {"tokens": writer.tokens, "documents": writer.documents, "crc": writer.crc}
    writer.append(ids[5:50_000])
    if finished:
        writer.close()
    writer.abandon()
    again = ShardWriter(path, FORM, **state)
    again.append(ids[kept:])
    again.close()
    assert path.read_bytes() == expected


def test_a_writer_does_not_go_on_after_damage(tmp_path: Path, ids: np.ndarray) -> None:
    path = tmp_path / "a.bin"
    writer = ShardWriter(path, FORM)
    writer.append(ids)
    writer.abandon()
    state = {"tokens": writer.tokens, "documents": writer.documents, "crc": writer.crc}
    partial = tmp_path / "a.bin.partial"
    partial.write_bytes(partial.read_bytes()[:-10])
    with pytest.raises(ShardError, match="ends at byte"):
        ShardWriter(path, FORM, **state)
    partial.unlink()
    with pytest.raises(ShardError, match="cannot go on"):
        ShardWriter(path, FORM, **state)


def test_damage_while_writing_is_found_at_the_end(tmp_path: Path, ids: np.ndarray) -> None:
    writer = ShardWriter(tmp_path / "a.bin", FORM)
    writer.append(ids)
    with open(tmp_path / "a.bin.partial", "r+b") as stream:
        stream.seek(3000)
        stream.write(b"\xff\xff")
    with pytest.raises(ShardError, match="does not read back"):
        writer.close()
    assert not (tmp_path / "a.bin").exists()


def test_ids_outside_the_vocabulary_are_refused(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "a.bin", FORM)
    writer.append(np.array([1, 2], np.uint32))
    with pytest.raises(ValueError, match="id 257 at token 4 is outside the vocabulary of 257"):
        writer.append(np.array([1, 2, 257, 65_537 + 3], np.uint32))
    assert writer.tokens == 2
    writer.close()
    assert open_shard(tmp_path / "a.bin").ids.tolist() == [1, 2]


def test_the_width_follows_the_vocabulary(tokenizer, wide_tokenizer) -> None:  # type: ignore[no-untyped-def]
    end = "<|endoftext|>"
    assert token_format(tokenizer, end).token_bytes == 2
    assert token_format(tokenizer, end, 4).token_bytes == 4
    assert token_format(wide_tokenizer, end).token_bytes == 4
    with pytest.raises(ValueError, match="70000 does not fit 2 bytes"):
        token_format(wide_tokenizer, end, 2)
    with pytest.raises(ValueError, match="2 or 4 bytes, not 3"):
        token_format(tokenizer, end, 3)
    with pytest.raises(ValueError, match=r"no special token <eos>; it has <\|endoftext\|>"):
        token_format(tokenizer, "<eos>")
    tokenizer.vocabulary_size = 1 << 16
    assert token_format(tokenizer, end).token_bytes == 2
    tokenizer.vocabulary_size += 1
    assert token_format(tokenizer, end).token_bytes == 4


def test_another_version_is_named(shard: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "VERSION", 2)
    with pytest.raises(ShardError, match="version 1; this program reads 2"):
        read_header(shard)
