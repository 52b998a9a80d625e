"""Texts to token ids, in several processes, in the order in which they were given."""

from __future__ import annotations

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.data.batches import Batch, Piece
from firsthand.llm.data.documents import SPLITS, Split
from firsthand.llm.data.problems import DataError
from firsthand.llm.data.shards import DataTokenizer, Ids, TokenFormat

Encoded = dict[Split, Ids]


def encode_pieces(tokenizer: DataTokenizer, form: TokenFormat, pieces: list[Piece]) -> Encoded:
    """The ids of each split, every document closed by end-of-text.

    Raises:
        DataError: the tokenizer failed on a text, or gave end-of-text or an unknown id for one.
    """
    end = np.array([form.end_of_text], dtype=form.dtype)
    encoded: Encoded = {}
    for split in SPLITS:
        chosen = [piece for piece in pieces if piece.split == split]
        ids, ends = _encode(tokenizer, chosen)
        if ids.size:
            # Text that spells the special token must not become it: it is how documents end.
            wrong = (ids == form.end_of_text) | (ids >= form.vocabulary_size)
            if wrong.any():
                token = int(np.argmax(wrong))
                place = chosen[int(np.searchsorted(ends, token, side="right"))].place
                raise DataError(f"{place}: the tokenizer gave the id {int(ids[token])} for text")
        closed = ends[[index for index, piece in enumerate(chosen) if piece.ends]]
        encoded[split] = np.insert(ids.astype(form.dtype), closed, end)
    return encoded


def _encode(
    tokenizer: DataTokenizer, pieces: list[Piece]
) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    try:
        return tokenizer.encode_documents([piece.text for piece in pieces])
    except Exception as error:
        first, last = pieces[0].place, pieces[-1].place
        raise DataError(f"{first} to {last}: the tokenizer failed: {error}") from error


# What the tokenizer imports at its first long text.
_PRELOADED = ("firsthand.llm.tokenizer.encoding",)

_worker: tuple[DataTokenizer, TokenFormat] | None = None


def _die_with_parent() -> None:
    # A pool's process waits on a pipe whose other end it holds itself: it would outlive a killed
    # parent for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _start_worker(kind: Any, path: Path, form: TokenFormat) -> None:
    global _worker
    threading.Thread(target=_die_with_parent, daemon=True).start()
    _worker = (kind.load(path), form)


def _encode_in_worker(pieces: list[Piece]) -> Encoded:
    assert _worker is not None
    return encode_pieces(*_worker, pieces)


def _process_context(tokenizer: DataTokenizer) -> BaseContext:
    """How processes start: never as copies of this one, which may have threads.

    Where the system has it, from a small server that has imported the compiler once: the others
    share its memory and start sooner.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([type(tokenizer).__module__, __name__, *_PRELOADED])
    return context


def encode_batches(
    batches: Iterable[Batch],
    tokenizer: DataTokenizer,
    tokenizer_file: Path,
    form: TokenFormat,
    processes: int,
) -> Iterator[tuple[Batch, Encoded]]:
    """Each batch with its ids, in order; at most twice as many under way as there are processes.

    Args:
        tokenizer_file: where the processes load it from, by the `load` of the tokenizer's class.
        processes: 1 encodes in this one.
    Raises:
        DataError: see encode_pieces; or a process died.
    """
    if processes == 1:
        for batch in batches:
            yield batch, encode_pieces(tokenizer, form, batch.pieces)
        return
    pool = ProcessPoolExecutor(
        processes,
        mp_context=_process_context(tokenizer),
        initializer=_start_worker,
        initargs=(type(tokenizer), tokenizer_file, form),
    )
    under_way: deque[tuple[Batch, Future[Encoded]]] = deque()
    try:
        for batch in batches:
            under_way.append((batch, pool.submit(_encode_in_worker, batch.pieces)))
            if len(under_way) > 2 * processes:
                first, ids = under_way.popleft()
                yield first, ids.result()
        while under_way:
            first, ids = under_way.popleft()
            yield first, ids.result()
    except BrokenProcessPool as error:
        raise DataError(
            "an encoding process died: killed, out of memory, or no tokenizer"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
