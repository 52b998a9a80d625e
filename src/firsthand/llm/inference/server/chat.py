"""POST /v1/chat/completions: the assistant's next turn."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from fastapi import Request, Response

from firsthand.llm.inference.server.answers import Job, answer
from firsthand.llm.inference.server.completions import (
    encoded,
    prepared,
    require_count,
    require_tokenizer,
)
from firsthand.llm.inference.server.errors import Record, refused
from firsthand.llm.inference.server.logprobs import Entry, chat_logprobs
from firsthand.llm.inference.server.schemas import ChatRequest, read_body
from firsthand.llm.inference.server.settings import ServerSettings
from firsthand.llm.inference.service import Service
from firsthand.llm.tokenizer.chat import CHAT_TOKENS, ChatTemplate
from firsthand.llm.tokenizer.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class ChatShape:
    """The answers of this endpoint.

    Attributes:
        model, fingerprint: of the answers.
        tokenizer: spells the tokens.
        logprobs: whether there are any.
    """

    model: str
    fingerprint: str
    tokenizer: Tokenizer
    logprobs: bool

    def head(self, *, stream: bool) -> Record:
        """As `answers.Shape`."""
        return {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "object": "chat.completion.chunk" if stream else "chat.completion",
            "created": int(time.time()),
            "model": self.model,
            "system_fingerprint": self.fingerprint,
        }

    def opening(self, index: int) -> Record | None:
        """Who speaks."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    def part(self, index: int, text: str, entries: Sequence[Entry], finish: str | None) -> Record:
        """As `answers.Shape`."""
        delta = {"content": text} if text else {}
        found = chat_logprobs(entries, self.tokenizer) if entries else None
        return {"index": index, "delta": delta, "logprobs": found, "finish_reason": finish}

    def whole(self, index: int, text: str, entries: Sequence[Entry], finish: str) -> Record:
        """As `answers.Shape`."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": chat_logprobs(entries, self.tokenizer) if self.logprobs else None,
            "finish_reason": finish,
        }


async def converse(request: Request, service: Service, settings: ServerSettings) -> Response:
    """Answer a request.

    Raises:
        ApiError: that it cannot be answered.
    """
    body = await read_body(request, ChatRequest, settings)
    scheduler = service.scheduler
    tokenizer = require_tokenizer(scheduler)
    if not set(CHAT_TOKENS) <= set(tokenizer.special_tokens):
        raise refused(
            "this model was not trained on conversations, its tokenizer has no chat tokens: "
            "use /v1/completions.",
            "model",
            "chat_not_supported",
        )
    if body.top_logprobs is not None and not body.logprobs:
        raise refused("top_logprobs needs logprobs to be true.", "top_logprobs")
    count = body.n or 1
    require_count(count, settings, service)
    template = ChatTemplate(tokenizer)
    messages = [message.to_json() for message in body.messages]
    rendered = await encoded(
        sum(len(message["content"]) for message in messages),
        lambda: template.render(messages, ask=True),
        "messages",
    )
    prompt: list[int] = rendered.ids.tolist()
    most = body.max_completion_tokens or body.max_tokens
    sampling = body.sampling(
        most or scheduler.context,
        logprobs=bool(body.logprobs),
        top_logprobs=body.top_logprobs or 0,
    )
    texts = [
        prepared(
            scheduler,
            prompt,
            sampling,
            number,
            "messages",
            fixed=most is not None,
            end_tokens=scheduler.end_tokens | {template.end},
        )
        for number in range(count)
    ]
    return await answer(
        request,
        service,
        Job(
            texts=texts,
            shape=ChatShape(
                model=settings.model,
                fingerprint=settings.fingerprint,
                tokenizer=tokenizer,
                logprobs=bool(body.logprobs),
            ),
            tokenizer=tokenizer,
            prompt_tokens=len(prompt),
            logprobs=bool(body.logprobs),
            stream=bool(body.stream),
            usage=bool(body.stream_options and body.stream_options.include_usage),
        ),
    )
