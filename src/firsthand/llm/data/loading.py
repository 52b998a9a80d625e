"""Token shards to batches: mapped from disk, shuffled without a list, resumed by a few integers.

A split is one long stream of tokens: its shards in order. Sequence i reads the tokens from i T on
and is trained on those from i T + 1 on, so in an epoch every token but the very first is a target
exactly once, for any number of ranks.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.data.documents import Split
from firsthand.llm.data.manifest import MANIFEST, read_manifest
from firsthand.llm.data.permutation import Permutation
from firsthand.llm.data.problems import DataError, ShardError
from firsthand.llm.data.shards import Ids, open_shard, verify_shard

# The target that the loss leaves out: PyTorch's default for cross-entropy.
IGNORED = -100
_ORDER_BLOCK = 8192

TokenIds = NDArray[np.int64]
DocumentIds = NDArray[np.int32]


class TokenStream:
    """The tokens of one split as one array that lies on disk in several files."""

    def __init__(self, parts: Sequence[Ids], end_of_text: int) -> None:
        """Join parts.

        Args:
            parts: (tokens,) each, of unsigned integers.
            end_of_text: the id that stands behind every document.
        """
        self.end_of_text = end_of_text
        self._parts = [part for part in parts if part.size]
        self._ends = list(accumulate(part.size for part in self._parts))

    def __len__(self) -> int:
        return self._ends[-1] if self._ends else 0

    def read(self, start: int, out: NDArray[np.integer]) -> None:
        """Copy the tokens from start on into out, (count,), converting to its type.

        Raises:
            IndexError: the stream ends before.
        """
        count = out.size
        if start < 0 or start + count > len(self):
            raise IndexError(f"tokens {start} to {start + count} of {len(self)}")
        part = bisect_right(self._ends, start)
        local = start - (self._ends[part - 1] if part else 0)
        piece = self._parts[part][local : local + count] if count else out
        if piece.size == count:
            out[:] = piece
            return
        done = 0
        while done < count:
            piece = self._parts[part][local : local + count - done]
            out[done : done + piece.size] = piece
            done += piece.size
            part, local = part + 1, 0


def open_split(
    folder: Path, split: Split, *, tokenizer_hash: str | None = None, verify: bool = True
) -> TokenStream:
    """The tokens of one split of a prepared folder.

    Args:
        tokenizer_hash: of the tokenizer that the model uses; another one is an error.
        verify: read every shard once against its checksums (2 GB/s).
    Raises:
        ManifestError: the folder is not whole, or of another tokenizer.
        ShardError: a shard is damaged.
    """
    manifest = read_manifest(folder, tokenizer_hash=tokenizer_hash)
    parts = []
    for entry in manifest.splits[split].shards:
        path = folder / entry.file
        if verify and verify_shard(path) != entry.crc32:
            raise ShardError(f"{path}: whole, but not the shard that {MANIFEST} lists")
        parts.append(open_shard(path, verify=False).ids)
    return TokenStream(parts, manifest.tokenizer.end_of_text)


@dataclass(frozen=True, slots=True)
class LoaderState:
    """Where a loader stands, for any number of ranks.

    position: sequences of this epoch that were given out, over all ranks. tokens and
    sequence_length say what the position counts, and are checked on resuming.
    """

    seed: int
    epoch: int
    position: int
    tokens: int
    sequence_length: int

    def to_json(self) -> dict[str, int]:
        """As plain integers."""
        return asdict(self)

    @classmethod
    def from_json(cls, record: dict[str, int]) -> LoaderState:
        """From plain integers.

        Raises:
            DataError: a key is missing or unknown, or a value is no integer.
        """
        names = sorted(cls.__dataclass_fields__)
        if sorted(record) != names or not all(type(value) is int for value in record.values()):
            raise DataError(f"a loader's state has the integers {', '.join(names)}; got {record}")
        return cls(**record)


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """One step of one rank; rows that only fill up the last batch have no real token.

    inputs, targets: (batch, length), int64; a target is IGNORED where there is nothing to learn.
    documents: (batch, length), the number of each position's document within its row, or None; an
    end-of-text counts to the document that it opens. real_tokens: targets that are not IGNORED.
    """

    inputs: TokenIds
    targets: TokenIds
    documents: DocumentIds | None
    real_tokens: int

    @property
    def real_token_fraction(self) -> float:
        """The share of positions that are trained on."""
        return self.real_tokens / self.targets.size


class Loader:
    """Batches of a stream for one rank, epoch after epoch.

    All ranks make the same number of steps. The order of an epoch depends on the seed and the
    epoch alone, so a run can go on with another number of ranks or another batch size in the
    middle of an epoch, and still no token comes twice or not at all.
    """

    def __init__(
        self,
        stream: TokenStream,
        *,
        sequence_length: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        rank: int = 0,
        ranks: int = 1,
        documents: bool = False,
        state: LoaderState | None = None,
    ) -> None:
        """Begin at the first epoch or at a state.

        Args:
            sequence_length: T, tokens in a row.
            batch_size: rows of one rank's batch.
            shuffle: False takes the sequences in order, as evaluation does.
            rank, ranks: which of how many loaders this is.
            documents: whether batches carry document numbers, for masks.
        Raises:
            ValueError: sizes below 1, a rank outside the ranks, fewer than two tokens.
            DataError: the state is of another stream, sequence length or seed.
        """
        if sequence_length < 1 or batch_size < 1:
            raise ValueError(f"{batch_size} sequences of {sequence_length} tokens make no batch")
        if not 0 <= rank < ranks:
            raise ValueError(f"rank {rank} of {ranks}")
        if len(stream) < 2:
            raise ValueError(f"a stream of {len(stream)} tokens has nothing to predict")
        self._stream, self._length, self._rows = stream, sequence_length, batch_size
        self._seed, self._shuffle, self._documents = seed, shuffle, documents
        self._rank, self._ranks = rank, ranks
        self.sequences = -(-(len(stream) - 1) // sequence_length)
        self._epoch = self._position = 0
        self._order: tuple[int, int, NDArray[np.int64]] | None = None
        if state is not None:
            self._resume(state)

    def _resume(self, state: LoaderState) -> None:
        now = self.state()
        for name in ("tokens", "sequence_length", "seed"):
            was, given = getattr(state, name), getattr(now, name)
            if was != given:
                raise DataError(
                    f"the loader's state was saved with {name} {was}; now it is {given}"
                )
        if not 0 <= state.position < self.sequences or state.epoch < 0:
            raise DataError(f"position {state.position} of {self.sequences}, epoch {state.epoch}")
        self._epoch, self._position = state.epoch, state.position

    @property
    def steps_per_epoch(self) -> int:
        """Batches of a whole epoch."""
        return -(-self.sequences // (self._rows * self._ranks))

    def state(self) -> LoaderState:
        """Where the next batch begins."""
        return LoaderState(self._seed, self._epoch, self._position, len(self._stream), self._length)

    def _ordered(self, start: int, stop: int) -> list[int]:
        """Which sequences stand at these places of the epoch's order."""
        if not self._shuffle:
            return list(range(start, stop))
        chosen: list[int] = []
        while start < stop:
            block = start // _ORDER_BLOCK
            if self._order is None or self._order[:2] != (self._epoch, block):
                first = block * _ORDER_BLOCK
                places = np.arange(first, min(first + _ORDER_BLOCK, self.sequences))
                order = Permutation(self.sequences, self._seed, self._epoch)(places)
                self._order = (self._epoch, block, order)
            end = min(stop, (block + 1) * _ORDER_BLOCK)
            offset = block * _ORDER_BLOCK
            chosen += self._order[2][start - offset : end - offset].tolist()
            start = end
        return chosen

    def next_batch(self) -> TokenBatch:
        """The next batch; after the last of an epoch comes the first of the next."""
        start = min(self._position + self._rank * self._rows, self.sequences)
        chosen = self._ordered(start, min(start + self._rows, self.sequences))
        shape = (self._rows, self._length)
        inputs, targets = np.empty(shape, np.int64), np.empty(shape, np.int64)
        last, length, real = len(self._stream) - 1, self._length, 0
        for row, sequence in enumerate(chosen):
            first = sequence * length
            count = min(length, last - first)
            self._stream.read(first, inputs[row, :count])
            self._stream.read(first + 1, targets[row, :count])
            inputs[row, count:] = self._stream.end_of_text
            targets[row, count:] = IGNORED
            real += count
        inputs[len(chosen) :] = self._stream.end_of_text
        targets[len(chosen) :] = IGNORED
        self._position += self._rows * self._ranks
        if self._position >= self.sequences:
            self._epoch, self._position = self._epoch + 1, 0
        documents = None
        if self._documents:
            documents = document_ids(inputs, self._stream.end_of_text)
        return TokenBatch(inputs, targets, documents, real)

    def epoch(self) -> Iterator[TokenBatch]:
        """The batches to the end of this epoch."""
        now = self._epoch
        while self._epoch == now:
            yield self.next_batch()


def document_ids(inputs: TokenIds, end_of_text: int) -> DocumentIds:
    """The number of each position's document within its row: (batch, length).

    An end-of-text is the first token of the document behind it: from it the model learns how texts
    begin.
    """
    return np.cumsum(inputs == end_of_text, axis=1, dtype=np.int32)


def document_mask(documents: DocumentIds) -> NDArray[np.bool_]:
    """Which key (last axis) each query may attend to: (batch, length, length).

    Itself and what stands before it in the same document.
    """
    same = documents[:, :, None] == documents[:, None, :]
    return np.tril(same)


def document_bounds(documents: DocumentIds) -> tuple[NDArray[np.int32], int]:
    """Where documents begin in the flattened batch, and the longest one.

    What attention kernels for variable lengths take: bounds (documents + 1,), from 0 to batch x
    length; no document spans two rows.
    """
    begins = np.ones(documents.shape, np.bool_)
    begins[:, 1:] = documents[:, 1:] != documents[:, :-1]
    bounds = np.append(np.flatnonzero(begins.ravel()), documents.size).astype(np.int32)
    return bounds, int(np.diff(bounds).max())
