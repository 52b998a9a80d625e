"""Examples of different lengths into rows of one length, for supervised fine-tuning.

Examples are never joined: no row predicts one example's first token from another's last, and each
has its own document number and positions from 0.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.data.loading import IGNORED

TooLong = Literal["cut", "drop", "error"]


@dataclass(frozen=True, slots=True)
class Example:
    """A tokenized text. ids: (tokens,). trained: (tokens,), whether each token is a target."""

    ids: Sequence[int] | NDArray[np.integer]
    trained: Sequence[bool] | NDArray[np.bool_]
    place: str = "example"


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Rows of packed examples; all arrays are (rows, length).

    inputs: padding holds the padding id. targets: the next token where it is trained on, else
    IGNORED. documents: the example's number within its row; padding has numbers of its own.
    positions: from 0 in every example. examples: how many are in it.
    """

    inputs: NDArray[np.int64]
    targets: NDArray[np.int64]
    documents: NDArray[np.int32]
    positions: NDArray[np.int32]
    examples: int

    @property
    def real_token_fraction(self) -> float:
        """The share of positions that hold a token of an example."""
        return 1.0 - float(np.mean(self.documents < 0))

    @property
    def trained_tokens(self) -> int:
        """Targets that are not IGNORED."""
        return int(np.count_nonzero(self.targets != IGNORED))


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Which of the lengths share a row: the longest first, each where the least room is left.

    Best-fit decreasing needs at most 11/9 of the fewest rows and one more (Johnson et al. 1974,
    "Worst-case performance bounds for simple one-dimensional packing algorithms").

    Returns:
        Indices by row.
    Raises:
        ValueError: a length below 1 or beyond the capacity.
    """
    rows: list[list[int]] = []
    room: list[tuple[int, int]] = []  # (room left, row), sorted
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        length = lengths[index]
        if not 1 <= length <= capacity:
            raise ValueError(f"a length of {length} in a row of {capacity}")
        at = bisect_left(room, (length, -1))
        if at < len(room):
            left, row = room.pop(at)
        else:
            left, row = capacity, len(rows)
            rows.append([])
        rows[row].append(index)
        insort(room, (left - length, row))
    return rows


def _fitted(example: Example, length: int, too_long: TooLong) -> Example | None:
    """The example at a length that fits, or None when it has nothing to train on."""
    if len(example.ids) != len(example.trained):
        raise ValueError(
            f"{example.place}: {len(example.ids)} ids but {len(example.trained)} marks of training"
        )
    if len(example.ids) > length + 1:
        if too_long == "error":
            raise ValueError(f"{example.place}: {len(example.ids)} tokens; {length + 1} fit")
        if too_long == "drop":
            return None
        example = Example(example.ids[: length + 1], example.trained[: length + 1], example.place)
    return example if np.any(np.asarray(example.trained[1:], np.bool_)) else None


def pack(
    examples: Iterable[Example],
    *,
    length: int,
    rows: int,
    padding: int,
    too_long: TooLong = "cut",
    window: int = 1024,
) -> Iterator[PackedBatch]:
    """Batches of packed examples.

    An example of n tokens takes n - 1 positions: its last token is only a target. Examples without
    a trained token (after cutting) are left out. The last batch may have fewer rows.

    Args:
        length: positions of a row.
        rows: of a batch.
        padding: the id of unused inputs.
        too_long: what happens to examples of more than length + 1 tokens.
        window: examples that are fitted together; memory holds no more.
    Raises:
        ValueError: sizes below 1, marks that do not match the ids, or an example too long with
            too_long="error".
    """
    if min(length, rows, window) < 1:
        raise ValueError("length, rows and window must be at least 1")
    waiting: list[list[Example]] = []
    held: list[Example] = []

    def fitted_rows() -> list[list[Example]]:
        fits = best_fit([len(example.ids) - 1 for example in held], length)
        return [[held[index] for index in row] for row in fits]

    for example in examples:
        fitted = _fitted(example, length, too_long)
        if fitted is not None:
            held.append(fitted)
        if len(held) == window:
            waiting += fitted_rows()
            held = []
            while len(waiting) >= rows:
                yield packed_batch(waiting[:rows], length, padding)
                waiting = waiting[rows:]
    waiting += fitted_rows()
    while waiting:
        yield packed_batch(waiting[:rows], length, padding)
        waiting = waiting[rows:]


def packed_batch(rows: Sequence[Sequence[Example]], length: int, padding: int) -> PackedBatch:
    """The batch of rows whose examples are chosen already.

    Args:
        rows: of examples that together take at most `length` positions.
        length, padding: as `pack`.
    """
    shape = (len(rows), length)
    inputs = np.full(shape, padding, np.int64)
    targets = np.full(shape, IGNORED, np.int64)
    positions = np.zeros(shape, np.int32)
    # Every unused position is alone: attention over it has one key, and never none.
    documents = np.broadcast_to(-1 - np.arange(length, dtype=np.int32), shape).copy()
    for row, examples in enumerate(rows):
        start = 0
        for number, example in enumerate(examples):
            ids = np.asarray(example.ids, np.int64)
            trained = np.asarray(example.trained, np.bool_)
            stop = start + ids.size - 1
            inputs[row, start:stop] = ids[:-1]
            targets[row, start:stop] = np.where(trained[1:], ids[1:], IGNORED)
            documents[row, start:stop] = number
            positions[row, start:stop] = np.arange(ids.size - 1)
            start = stop
    return PackedBatch(inputs, targets, documents, positions, sum(map(len, rows)))
