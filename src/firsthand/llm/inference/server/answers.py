"""Texts of a service as an HTTP answer: whole, or event by event while they come."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from firsthand.llm.generation.results import Generation, Piece
from firsthand.llm.inference.scheduler import Text
from firsthand.llm.inference.server.errors import Record, api_error
from firsthand.llm.inference.server.logprobs import Entries, Entry
from firsthand.llm.inference.service import Service, Submission
from firsthand.llm.tokenizer.tokenizer import Tokenizer

T = TypeVar("T")
FINISH = {"end": "stop", "stop": "stop", "length": "length"}


class Shape(Protocol):
    """How an endpoint writes its answers."""

    def head(self, *, stream: bool) -> Record:
        """The fields of an answer or of an event beside its choices."""
        ...

    def opening(self, index: int) -> Record | None:
        """The choice of the first event of a text, before any of it."""
        ...

    def part(self, index: int, text: str, entries: Sequence[Entry], finish: str | None) -> Record:
        """The choice of an event with some more of a text."""
        ...

    def whole(self, index: int, text: str, entries: Sequence[Entry], finish: str) -> Record:
        """The choice of an answer with all of a text."""
        ...


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a request asks for.

    Attributes:
        texts: in the order of the choices.
        shape: of the answer.
        tokenizer: of the model.
        prompt_tokens: of all prompts, each counted once.
        logprobs: whether the answer has them.
        stream: whether it comes in events.
        usage: whether the stream ends with the count of tokens.
    """

    texts: Sequence[Text]
    shape: Shape
    tokenizer: Tokenizer
    prompt_tokens: int
    logprobs: bool
    stream: bool
    usage: bool

    def count(self, results: Sequence[Generation]) -> Record:
        """The tokens read and written."""
        written = sum(len(result.ids) for result in results)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": written,
            "total_tokens": self.prompt_tokens + written,
        }

    def ledgers(self) -> list[Entries]:
        """For the log-probabilities of each text."""
        return [Entries(self.tokenizer) for _ in self.texts]


async def answer(request: Request, service: Service, job: Job) -> Response:
    """Let the service write the texts, unless the client leaves first.

    Raises:
        ApiError: no text could be made.
        ClientDisconnect: nobody waits for it.
    """
    submission = None
    try:
        submission = service.submit(job.texts)
        pieces = submission.pieces()
        if not job.stream:
            return JSONResponse(await _unless_gone(request, _whole(pieces, job)))
        # What goes wrong before the first token still has a status of its own.
        first = await _unless_gone(request, _next(pieces))
    except (asyncio.CancelledError, ClientDisconnect):
        if submission is not None:
            submission.cancel()
        raise
    except Exception as error:
        raise api_error(error) from error
    return EventStream(_events(first, pieces, job), submission)


class EventStream(StreamingResponse):
    """Server-sent events; when the client leaves, its texts are given up."""

    def __init__(self, events: AsyncIterator[str], submission: Submission) -> None:
        # A proxy that collects the answer would take the stream's sense away.
        headers = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._submission = submission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As every response."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._submission.cancel()


async def _whole(pieces: AsyncIterator[tuple[int, Piece]], job: Job) -> Record:
    ledgers = job.ledgers()
    entries: list[list[Entry]] = [[] for _ in job.texts]
    results: dict[int, Generation] = {}
    async for index, piece in pieces:
        if job.logprobs:
            entries[index] += ledgers[index].take(piece)
        if piece.result is not None:
            results[index] = piece.result
    ordered = [results[index] for index in range(len(job.texts))]
    choices = [
        job.shape.whole(index, result.text, entries[index], FINISH[result.reason])
        for index, result in enumerate(ordered)
    ]
    return {**job.shape.head(stream=False), "choices": choices, "usage": job.count(ordered)}


async def _events(
    first: tuple[int, Piece], pieces: AsyncIterator[tuple[int, Piece]], job: Job
) -> AsyncIterator[str]:
    ledgers = job.ledgers()
    results: list[Generation] = []
    head = job.shape.head(stream=True)

    def event(choices: list[Record], **more: Any) -> str:
        # Where the end has a count of tokens, every other event says that it has none.
        usage = {"usage": None} if job.usage else {}
        return _data({**head, "choices": choices, **usage, **more})

    def shown(index: int, piece: Piece) -> str:
        entries = ledgers[index].take(piece) if job.logprobs else []
        if not (piece.text or entries or piece.result):
            return ""
        finish = None
        if piece.result is not None:
            results.append(piece.result)
            finish = FINISH[piece.result.reason]
        return event([job.shape.part(index, piece.text, entries, finish)])

    for index in range(len(job.texts)):
        if (opening := job.shape.opening(index)) is not None:
            yield event([opening])
    try:
        if data := shown(*first):
            yield data
        async for index, piece in pieces:
            if data := shown(index, piece):
                yield data
    except Exception as error:
        yield _data(api_error(error).record)
        return
    if job.usage:
        yield event([], usage=job.count(results))
    yield "data: [DONE]\n\n"


async def _next(pieces: AsyncIterator[tuple[int, Piece]]) -> tuple[int, Piece]:
    return await anext(pieces)


async def _unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The result of the work; ClientDisconnect if the client leaves first."""
    doing = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({doing, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if doing.done():
            return doing.result()
        raise ClientDisconnect
    finally:
        doing.cancel()
        leaving.cancel()


async def _gone(request: Request) -> None:
    # The body has been read: the next message is the client's leave.
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _data(record: Record) -> str:
    return f"data: {json.dumps(record, ensure_ascii=False, separators=(',', ':'))}\n\n"
