"""The bodies of requests, field by field as OpenAI's reference names them.

A field that is no part of the interface is refused, as OpenAI does; so is one that would change
the answer and that this server cannot honour. What changes no token (`user`, `metadata`, ...) is
taken and ignored.
"""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Request
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference.server.errors import ApiError, refused
from firsthand.llm.inference.server.settings import ServerSettings
from firsthand.llm.model.settings import SettingsError

STOP_STRINGS = 4
# What a body that is too large may still send before the connection is cut: an answer that comes
# while the client writes is lost.
DRAINED_BYTES = 64 << 20

Prompts = list[str] | list[list[int]]


def _prompts(value: Any) -> Prompts:
    """Every form of a prompt as a list of prompts."""
    if value is None:
        return [""]
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value:
        if all(isinstance(item, str) for item in value):
            return value
        if _are_ids(value):
            return [value]
        if all(isinstance(item, list) and _are_ids(item) for item in value):
            return value
    raise ValueError("a string, a list of strings, a list of token ids or a list of such lists")


def _are_ids(value: list[Any]) -> bool:
    return all(isinstance(item, int) and not isinstance(item, bool) for item in value)


def _stop(value: Any) -> list[str]:
    strings = [value] if isinstance(value, str) else [] if value is None else value
    if not isinstance(strings, list) or not all(isinstance(s, str) and s for s in strings):
        raise ValueError("a string or a list of strings, none of them empty")
    if len(strings) > STOP_STRINGS:
        raise ValueError(f"at most {STOP_STRINGS} strings")
    return strings


def _content(value: Any) -> str:
    """A message's text, whole or in parts."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in value
    ):
        return "".join(part["text"] for part in value)
    raise ValueError("a string or a list of parts of the type 'text'")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(_Strict):
    """What a stream has beside the text."""

    include_usage: bool | None = None
    include_obfuscation: bool | None = None


class _Request(_Strict):
    """What both endpoints take."""

    model: str
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    n: Annotated[int, Field(ge=1)] | None = None
    stop: Annotated[list[str], BeforeValidator(_stop)] = []
    seed: int | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    # Not OpenAI's, but in common use.
    top_k: Annotated[int, Field(ge=0)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0)] | None = None
    # Taken at the value that changes nothing.
    presence_penalty: Any = None
    frequency_penalty: Any = None
    logit_bias: Any = None
    # Ignored.
    user: Any = None
    metadata: Any = None

    def sampling(self, most: int, *, logprobs: bool, top_logprobs: int) -> Sampling:
        """The settings of the texts.

        Raises:
            ApiError: a value that cannot be.
        """
        try:
            return Sampling(
                temperature=1.0 if self.temperature is None else self.temperature,
                top_p=1.0 if self.top_p is None else self.top_p,
                top_k=self.top_k or 0,
                min_p=self.min_p or 0.0,
                repetition_penalty=self.repetition_penalty or 1.0,
                max_new_tokens=most,
                stop=tuple(self.stop),
                # Any integer is a seed for OpenAI; below 0 it would be none here.
                seed=-1 if self.seed is None else self.seed % (1 << 64),
                logprobs=logprobs,
                top_logprobs=top_logprobs,
            )
        except SettingsError as error:
            raise refused(f"{error}.", str(error).partition(" ")[0]) from None


class CompletionRequest(_Request):
    """POST /v1/completions."""

    prompt: Annotated[Prompts, BeforeValidator(_prompts)] = Field([""], validate_default=True)
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: Annotated[int, Field(ge=0, le=5)] | None = None
    echo: bool | None = None
    best_of: int | None = None
    suffix: str | None = None


class ChatMessage(BaseModel):
    """A turn; of a message of ours that is sent back, the other fields are ignored."""

    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(_content)]

    def to_json(self) -> dict[str, str]:
        """As the chat template takes it."""
        return {
            "role": "system" if self.role == "developer" else self.role,
            "content": self.content,
        }


class ChatRequest(_Request):
    """POST /v1/chat/completions."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    # Taken at the value that changes nothing.
    response_format: Any = None
    modalities: Any = None
    tools: Any = None
    tool_choice: Any = None
    functions: Any = None
    function_call: Any = None
    audio: Any = None
    prediction: Any = None
    web_search_options: Any = None
    # Ignored.
    store: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None
    prompt_cache_retention: Any = None
    parallel_tool_calls: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None


# The values of fields that cannot be honoured at which they change nothing.
HARMLESS: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none", "auto"),
    "audio": (),
    "prediction": (),
    "web_search_options": (),
}
INSTEAD = {
    "presence_penalty": "; repetition_penalty is",
    "frequency_penalty": "; repetition_penalty is",
}

Body = TypeVar("Body", bound=_Request)


async def read_body(request: Request, kind: type[Body], settings: ServerSettings) -> Body:
    """The body of a request, checked.

    Raises:
        ApiError: too large, too slow, of another type, no JSON, or a field that cannot be.
        ClientDisconnect: the client has left.
    """
    # No page of another origin can send this type without being allowed to.
    if request.headers.get("content-type", "").partition(";")[0].strip() != "application/json":
        raise ApiError(415, "the body is JSON: send Content-Type: application/json.")
    try:
        async with asyncio.timeout(settings.body_seconds):
            text = await _bytes(request, settings.body_bytes)
    except TimeoutError:
        raise ApiError(
            408, f"the body did not arrive in {settings.body_seconds:g} seconds."
        ) from None
    try:
        body = kind.model_validate_json(text)
    except ValidationError as error:
        raise _refusal(error, text) from None
    if body.model != settings.model:
        raise ApiError(
            404,
            f"there is no model {body.model!r}; this server has {settings.model!r}.",
            param="model",
            code="model_not_found",
        )
    for name, harmless in HARMLESS.items():
        value = getattr(body, name, None)
        if value is not None and value not in harmless:
            raise refused(
                f"{name} is not supported{INSTEAD.get(name, '')}.", name, "unsupported_parameter"
            )
    return body


async def _bytes(request: Request, most: int) -> bytes:
    chunks: list[bytes] = []
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= most:
            chunks.append(chunk)
        elif size > DRAINED_BYTES:
            break
    if size > most:
        raise ApiError(413, f"the body is larger than {most} bytes.", code="request_too_large")
    return b"".join(chunks)


def _refusal(error: ValidationError, body: bytes) -> ApiError:
    """The first thing that is wrong, as one sentence."""
    first = error.errors(include_url=False)[0]
    place = [str(part) for part in first["loc"]]
    param = "".join(f"[{p}]" if p.isdigit() else f".{p}" for p in place).lstrip(".")
    match first["type"]:
        case "json_invalid":
            try:
                body.decode()
            except UnicodeDecodeError as wrong:
                return ApiError(
                    400, f"the body is no UTF-8 at byte {wrong.start}.", code="invalid_encoding"
                )
            return ApiError(400, f"the body is no JSON: {first['msg']}.", code="invalid_json")
        case "extra_forbidden":
            return refused(f"there is no field {param!r}.", param, "unknown_parameter")
        case "missing":
            return refused(f"the field {param!r} is missing.", param, "missing_required_parameter")
        case "model_type":
            return ApiError(400, "the body is no JSON object.", code="invalid_json")
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return refused(f"{param} is {message}.", param)
    return refused(f"{param}: {message[:1].lower()}{message[1:]}.", param)
