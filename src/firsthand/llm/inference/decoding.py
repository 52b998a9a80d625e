"""Texts from an engine, whole or piece by piece: `generation.decoding` without PyTorch."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace

from firsthand.llm.generation.prompts import Prompt, Truncate
from firsthand.llm.generation.results import Generation, Piece
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference.scheduler import Failure, Scheduler, Text


def stream(
    scheduler: Scheduler,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    end_tokens: Collection[int] | None = None,
    truncate: Truncate = "error",
    first_stream: int = 0,
) -> Iterator[Piece]:
    """The new tokens of all texts as they come; the last piece of each has its record.

    Stop reading at any time: the rest is given up.

    Args:
        scheduler: with no texts of its own.
        prompts: texts or ids.
        end_tokens: ids that end a text; None is the scheduler's.
        truncate: of a prompt that fills the context: "error", or "left" drops its beginning.
        first_stream: of the seed; prompt i is on the i-th after it.
    Raises:
        GenerationError: at once, a prompt that no text can start from; later, logits that are not
            finite.
        InferenceError: of the engine.
    """
    texts = [
        scheduler.prepare(
            prompt, sampling, stream=first_stream + number, end_tokens=end_tokens, truncate=truncate
        )
        for number, prompt in enumerate(prompts)
    ]
    return _pieces(scheduler, texts)


def generate(
    scheduler: Scheduler,
    prompts: Sequence[Prompt],
    sampling: Sampling,
    *,
    end_tokens: Collection[int] | None = None,
    truncate: Truncate = "error",
) -> list[Generation]:
    """The texts, in the order of the prompts. Arguments and errors: as `stream`."""
    results: dict[int, Generation] = {}
    pieces = stream(scheduler, prompts, sampling, end_tokens=end_tokens, truncate=truncate)
    for piece in pieces:
        if piece.result is not None:
            results[piece.row] = piece.result
    return [results[row] for row in sorted(results)]


def _pieces(scheduler: Scheduler, texts: Sequence[Text]) -> Iterator[Piece]:
    rows = {scheduler.add(text): row for row, text in enumerate(texts)}
    going = set(rows)
    try:
        while going:
            for event in scheduler.step():
                if isinstance(event, Failure):
                    going.discard(event.row)
                    raise event.error
                if event.result is not None:
                    going.discard(event.row)
                yield replace(event, row=rows[event.row])
    finally:
        for number in going:
            scheduler.cancel(number)
