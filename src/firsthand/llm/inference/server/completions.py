"""POST /v1/completions: texts that go on from prompts."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from fastapi import Request, Response

from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference.scheduler import Scheduler, Text
from firsthand.llm.inference.server.answers import Job, answer
from firsthand.llm.inference.server.errors import Record, refused
from firsthand.llm.inference.server.logprobs import Entry, completion_logprobs
from firsthand.llm.inference.server.schemas import CompletionRequest, read_body
from firsthand.llm.inference.server.settings import ServerSettings
from firsthand.llm.inference.service import Service
from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.tokenizer import Tokenizer

DEFAULT_TOKENS = 16
# Below so many characters a text is encoded in less time than another thread takes to begin.
INLINE_CHARACTERS = 1000
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class CompletionShape:
    """The answers of this endpoint.

    Attributes:
        model, fingerprint: of the answers.
        tokenizer: spells the tokens.
        echoed: what stands before each text.
        logprobs: whether there are any.
    """

    model: str
    fingerprint: str
    tokenizer: Tokenizer
    echoed: Sequence[str]
    logprobs: bool

    def head(self, *, stream: bool) -> Record:
        """As `answers.Shape`; a stream has one object type with an answer."""
        return {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def opening(self, index: int) -> Record | None:
        """The echo."""
        return self.part(index, self.echoed[index], (), None) if self.echoed[index] else None

    def part(self, index: int, text: str, entries: Sequence[Entry], finish: str | None) -> Record:
        """As `answers.Shape`."""
        start = len(self.echoed[index])
        found = completion_logprobs(entries, self.tokenizer, start) if self.logprobs else None
        return {"index": index, "text": text, "logprobs": found, "finish_reason": finish}

    def whole(self, index: int, text: str, entries: Sequence[Entry], finish: str) -> Record:
        """As `answers.Shape`."""
        return self.part(index, self.echoed[index] + text, entries, finish)


async def complete(request: Request, service: Service, settings: ServerSettings) -> Response:
    """Answer a request.

    Raises:
        ApiError: that it cannot be answered.
    """
    body = await read_body(request, CompletionRequest, settings)
    count = body.n or 1
    if body.best_of not in (None, count):
        raise refused("best_of is not supported beyond n.", "best_of", "unsupported_parameter")
    if body.echo and body.logprobs is not None:
        raise refused("echo with logprobs is not supported.", "echo", "unsupported_parameter")
    scheduler = service.scheduler
    tokenizer = require_tokenizer(scheduler)
    require_count(len(body.prompt) * count, settings, service)
    prompts = await encoded(
        sum(len(prompt) for prompt in body.prompt),
        lambda: [
            tokenizer.encode(prompt) if isinstance(prompt, str) else prompt
            for prompt in body.prompt
        ],
        "prompt",
    )
    sampling = body.sampling(
        body.max_tokens or DEFAULT_TOKENS,
        logprobs=body.logprobs is not None,
        top_logprobs=body.logprobs or 0,
    )
    texts = [
        prepared(scheduler, prompt, sampling, number, "prompt", fixed=body.max_tokens is not None)
        for prompt in prompts
        for number in range(count)
    ]
    echoed = [tokenizer.decode(p) if body.echo else "" for p in prompts for _ in range(count)]
    return await answer(
        request,
        service,
        Job(
            texts=texts,
            shape=CompletionShape(
                model=settings.model,
                fingerprint=settings.fingerprint,
                tokenizer=tokenizer,
                echoed=echoed,
                logprobs=body.logprobs is not None,
            ),
            tokenizer=tokenizer,
            prompt_tokens=sum(len(text.row.prompt) for text in texts[::count]),
            logprobs=body.logprobs is not None,
            stream=bool(body.stream),
            usage=bool(body.stream_options and body.stream_options.include_usage),
        ),
    )


def require_tokenizer(scheduler: Scheduler) -> Tokenizer:
    """The tokenizer that a served model has."""
    if scheduler.tokenizer is None:
        raise TypeError("a server needs a tokenizer")
    return scheduler.tokenizer


def require_count(texts: int, settings: ServerSettings, service: Service) -> None:
    """Refuse more texts than one request may have, or than could ever be taken."""
    most = min(settings.texts, service.most)
    if texts > most:
        raise refused(f"a request has at most {most} texts; this has {texts}.", "n")


async def encoded(characters: int, encode: Callable[[], T], param: str) -> T:
    """The result of encoding; long texts on another thread, so that streams go on.

    Raises:
        ApiError: a text that cannot be encoded.
    """
    try:
        if characters <= INLINE_CHARACTERS:
            return encode()
        return await asyncio.to_thread(encode)
    except TokenizerError as error:
        raise refused(f"{error}.", param) from None


def prepared(
    scheduler: Scheduler,
    prompt: Sequence[int],
    sampling: Sampling,
    stream: int,
    param: str,
    *,
    fixed: bool,
    end_tokens: frozenset[int] | None = None,
) -> Text:
    """A text for the service.

    Args:
        fixed: the request names the number of tokens, which must fit the context.
        param: the field that the prompt came in.
    Raises:
        ApiError: a prompt that no text can go on from.
    """
    tokens = sampling.max_new_tokens if fixed else 1
    if len(prompt) + tokens > scheduler.context:
        asked = f" and {tokens} more are asked for" if fixed else ""
        raise refused(
            f"the context holds {scheduler.context} tokens; the prompt has {len(prompt)}{asked}.",
            param,
            "context_length_exceeded",
        )
    try:
        return scheduler.prepare(prompt, sampling, stream=stream, end_tokens=end_tokens)
    except GenerationError as error:
        raise refused(f"{error}.", param) from None
