"""Token shards: one file of token ids with a header, and a checksum for every MiB.

Layout, all little-endian:

    header      128 bytes   magic, version, bytes per token, tokens, end-of-text tokens, bytes per
                            checksummed block, end-of-text id, vocabulary size, tokenizer hash
                            (SHA-256), CRC-32 of the header up to here, zeros
    payload     tokens x bytes per token (2 or 4)
    checksums   one CRC-32 for every block of the payload

While a shard is written its name ends in ".partial" and its header is zeros. The header comes last
and the rename after it, so a file that has the name is whole.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.data.files import sync_folder, write_all
from firsthand.llm.data.problems import DiskError, ShardError

Ids: TypeAlias = NDArray[np.unsignedinteger]

MAGIC = b"FHTOKENS"
VERSION = 1
HEADER_BYTES = 128
BLOCK_BYTES = 1 << 20
_FIELDS = struct.Struct("<8sIIQQIII32s")
_CRC = struct.Struct("<I")
PARTIAL = ".partial"
_BINARY: int = getattr(os, "O_BINARY", 0)  # Windows would translate line ends


class DataTokenizer(Protocol):
    """What preparation needs of a tokenizer; `firsthand.llm.tokenizer.Tokenizer` has it.

    encode_documents(texts) gives the ids of all texts, without special tokens, and where each text
    ends among them. A class whose instances are encoded in other processes has `load(path)` too.
    """

    @property
    def hash(self) -> str: ...

    @property
    def vocabulary_size(self) -> int: ...

    @property
    def special_tokens(self) -> dict[str, int]: ...

    def encode_documents(
        self, texts: Iterable[str | bytes], /
    ) -> tuple[NDArray[np.uint32], NDArray[np.int64]]: ...

    def save(self, path: Path, /) -> None: ...


@dataclass(frozen=True, slots=True)
class TokenFormat:
    """What all shards of a folder have in common.

    token_bytes: 2 or 4. end_of_text: the id behind every document. tokenizer_hash: SHA-256 in hex.
    """

    token_bytes: int
    end_of_text: int
    vocabulary_size: int
    tokenizer_hash: str

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger]:
        """Of the stored ids, little-endian on every machine."""
        return np.dtype("<u2" if self.token_bytes == 2 else "<u4")


def token_format(
    tokenizer: DataTokenizer, end_of_text: str, token_bytes: int | None = None
) -> TokenFormat:
    """The format for a tokenizer: two bytes where every id fits, else four.

    Args:
        end_of_text: name of the special token that ends a document.
        token_bytes: 2 or 4 to ask for one; None chooses.
    Raises:
        ValueError: ids that do not fit two bytes, no such special token, a damaged hash.
    """
    size = tokenizer.vocabulary_size
    needed = 2 if size <= 1 << 16 else 4
    if token_bytes is None:
        token_bytes = needed
    if token_bytes not in (2, 4):
        raise ValueError(f"a token takes 2 or 4 bytes, not {token_bytes}")
    if token_bytes < needed:
        raise ValueError(f"a vocabulary of {size} does not fit 2 bytes per token (65536 at most)")
    if end_of_text not in tokenizer.special_tokens:
        known = ", ".join(tokenizer.special_tokens) or "none"
        raise ValueError(f"the tokenizer has no special token {end_of_text}; it has {known}")
    if len(bytes.fromhex(tokenizer.hash)) != 32:
        raise ValueError(f"the tokenizer's hash is no SHA-256: {tokenizer.hash}")
    return TokenFormat(token_bytes, tokenizer.special_tokens[end_of_text], size, tokenizer.hash)


def _header(form: TokenFormat, tokens: int, documents: int) -> bytes:
    fields = _FIELDS.pack(
        MAGIC,
        VERSION,
        form.token_bytes,
        tokens,
        documents,
        BLOCK_BYTES,
        form.end_of_text,
        form.vocabulary_size,
        bytes.fromhex(form.tokenizer_hash),
    )
    return (fields + _CRC.pack(zlib.crc32(fields))).ljust(HEADER_BYTES, b"\0")


def _file_bytes(tokens: int, token_bytes: int) -> int:
    payload = tokens * token_bytes
    return HEADER_BYTES + payload + _CRC.size * -(-payload // BLOCK_BYTES)


class ShardWriter:
    """Append ids to one shard; `close` makes it whole.

    Attributes, all read-only: path (the final one), tokens, documents (ends of documents), crc (of
    the payload so far).
    """

    def __init__(
        self,
        path: Path,
        form: TokenFormat,
        *,
        tokens: int = 0,
        documents: int = 0,
        crc: int = 0,
    ) -> None:
        """Begin a shard, or go on with a partial one after its first tokens.

        Args:
            tokens, documents, crc: as they were when it was left; anything behind is cut off.
        Raises:
            ShardError: the partial file is gone, shorter, or not what the checksum says.
            DiskError: it cannot be created.
        """
        self.path, self.form = path, form
        self.tokens, self.documents, self.crc = tokens, documents, crc
        self.partial = path.with_name(path.name + PARTIAL)
        if tokens:
            # It may have been finished after the place we go back to.
            if not self.partial.exists() and path.exists():
                os.replace(path, self.partial)
            self._descriptor = self._reopen()
        else:
            path.unlink(missing_ok=True)
            try:
                self._descriptor = os.open(
                    self.partial, os.O_RDWR | os.O_CREAT | os.O_TRUNC | _BINARY, 0o644
                )
            except OSError as error:
                raise DiskError(f"{self.partial}: cannot be created: {error}") from error
            self._write(bytes(HEADER_BYTES), 0)

    def _reopen(self) -> int:
        end = self._end
        try:
            descriptor = os.open(self.partial, os.O_RDWR | _BINARY)
        except OSError as error:
            raise ShardError(f"{self.partial}: cannot go on with it: {error}") from error
        crc, position = 0, HEADER_BYTES
        os.lseek(descriptor, position, os.SEEK_SET)
        while position < end and (part := os.read(descriptor, min(BLOCK_BYTES, end - position))):
            crc = zlib.crc32(part, crc)
            position += len(part)
        if position < end or crc != self.crc:
            os.close(descriptor)
            wrong = f"ends at byte {position}" if position < end else "differs from its checksum"
            raise ShardError(
                f"{self.partial}: {wrong} before byte {end}; prepare it from the start"
            )
        os.ftruncate(descriptor, end)
        os.pwrite(descriptor, bytes(HEADER_BYTES), 0)
        os.lseek(descriptor, end, os.SEEK_SET)
        return descriptor

    @property
    def _end(self) -> int:
        return HEADER_BYTES + self.tokens * self.form.token_bytes

    def _write(self, data: bytes | memoryview, offset: int) -> None:
        write_all(self._descriptor, data, self.partial, offset)

    def append(self, ids: Ids) -> None:
        """Write ids behind the others.

        Raises:
            ValueError: an id outside the vocabulary; nothing is written then.
            DiskError: the disk took only a part.
        """
        if ids.size == 0:
            return
        if int(ids.max()) >= self.form.vocabulary_size:
            place = int(np.argmax(ids >= self.form.vocabulary_size))
            raise ValueError(
                f"{self.path.name}: id {int(ids[place])} at token {self.tokens + place} is outside "
                f"the vocabulary of {self.form.vocabulary_size}"
            )
        stored = np.ascontiguousarray(ids, dtype=self.form.dtype)
        data = stored.view(np.uint8).data
        self._write(data, self._end)
        self.crc = zlib.crc32(data, self.crc)
        self.tokens += ids.size
        self.documents += int(np.count_nonzero(ids == self.form.end_of_text))

    def sync(self) -> None:
        """Have what was appended survive a power cut."""
        try:
            os.fsync(self._descriptor)
        except OSError as error:
            raise DiskError(f"{self.partial}: cannot write: {error}") from error

    def close(self) -> None:
        """Write checksums and header, and give the file its name.

        Raises:
            ShardError: the file no longer holds what was written.
            DiskError: no room for the checksums.
        """
        end, position, crc, sums = self._end, HEADER_BYTES, 0, bytearray()
        while position < end:
            block = os.pread(self._descriptor, min(BLOCK_BYTES, end - position), position)
            if not block:
                break
            crc = zlib.crc32(block, crc)
            sums += _CRC.pack(zlib.crc32(block))
            position += len(block)
        if position < end or crc != self.crc:
            self.abandon()
            raise ShardError(f"{self.partial}: does not read back as it was written")
        self._write(bytes(sums), end)
        self.sync()
        os.lseek(self._descriptor, 0, os.SEEK_SET)
        self._write(_header(self.form, self.tokens, self.documents), 0)
        self.sync()
        self.abandon()
        os.replace(self.partial, self.path)
        sync_folder(self.path.parent)

    def abandon(self) -> None:
        """Close the file and leave it partial."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


@dataclass(frozen=True, slots=True)
class Shard:
    """An open shard. ids: (tokens,) of unsigned integers, mapped from the file and read-only."""

    path: Path
    form: TokenFormat
    tokens: int
    documents: int
    ids: Ids


def read_header(path: Path) -> tuple[TokenFormat, int, int]:
    """The format, the tokens and the documents of a shard whose length fits its header.

    Raises:
        ShardError: not a shard, of another version, a damaged header, or cut short.
    """
    try:
        with open(path, "rb") as stream:
            header = stream.read(HEADER_BYTES)
            size = os.fstat(stream.fileno()).st_size
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror or error}") from error
    if len(header) < HEADER_BYTES:
        raise ShardError(f"{path}: cut short: {size} bytes, the header alone has {HEADER_BYTES}")
    if header[: len(MAGIC)] != MAGIC:
        raise ShardError(f"{path}, byte 0: not a token shard, or one that was never finished")
    fields = header[: _FIELDS.size]
    if _CRC.unpack_from(header, _FIELDS.size)[0] != zlib.crc32(fields):
        raise ShardError(f"{path}, bytes 0 to {_FIELDS.size}: the header differs from its checksum")
    _, version, token_bytes, tokens, documents, block, end, vocabulary, digest = _FIELDS.unpack(
        fields
    )
    if version != VERSION or block != BLOCK_BYTES or token_bytes not in (2, 4):
        raise ShardError(f"{path}: version {version}; this program reads {VERSION}")
    expected = _file_bytes(tokens, token_bytes)
    if size != expected:
        word = "cut short" if size < expected else "too long"
        raise ShardError(f"{path}: {word}: {size} bytes, and {expected} for {tokens} tokens")
    return TokenFormat(token_bytes, end, vocabulary, digest.hex()), tokens, documents


def verify_shard(path: Path) -> int:
    """Read the whole payload against its checksums.

    Returns:
        The CRC-32 of the payload.
    Raises:
        ShardError: names the first damaged stretch of at most a MiB.
    """
    form, tokens, _ = read_header(path)
    payload, crc = tokens * form.token_bytes, 0
    with open(path, "rb") as stream:
        stream.seek(HEADER_BYTES + payload)
        sums = stream.read()
        stream.seek(HEADER_BYTES)
        for block in range(-(-payload // BLOCK_BYTES)):
            length = min(BLOCK_BYTES, payload - block * BLOCK_BYTES)
            data = stream.read(length)
            if zlib.crc32(data) != _CRC.unpack_from(sums, _CRC.size * block)[0]:
                first = HEADER_BYTES + block * BLOCK_BYTES
                raise ShardError(
                    f"{path}, bytes {first} to {first + length}: differ from their checksum"
                )
            crc = zlib.crc32(data, crc)
    return crc


def open_shard(path: Path, *, verify: bool = True) -> Shard:
    """Map a shard.

    Args:
        verify: read it once against its checksums (2 GB/s); the length is checked in any case.
    Raises:
        ShardError: see read_header and verify_shard.
    """
    form, tokens, documents = read_header(path)
    if verify:
        verify_shard(path)
    ids: Ids
    if tokens:
        # As a plain array, which keeps the map alive: slicing a memmap costs a microsecond more.
        ids = np.asarray(
            np.memmap(path, form.dtype, mode="r", offset=HEADER_BYTES, shape=(tokens,))
        )
    else:
        ids = np.zeros(0, form.dtype)
    return Shard(path, form, tokens, documents, ids)
