"""Errors in the shape that OpenAI's clients read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi.responses import JSONResponse

from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.inference.service import Busy, Closed, Late

Record = dict[str, Any]
RETRY_SECONDS = 1


class ApiError(Exception):
    """A request that is answered by an error.

    Args:
        status: of HTTP.
        message: one sentence.
        param: the field of the request.
        code: for programs.
        kind: the family of the error; None is that of the status.
        headers: of the response.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.headers = status, dict(headers or {})
        self.record: Record = {
            "error": {
                "message": message,
                "type": kind or _kind(status),
                "param": param,
                "code": code,
            }
        }

    def response(self) -> JSONResponse:
        """The whole answer."""
        return JSONResponse(self.record, self.status, self.headers)


def api_error(error: Exception) -> ApiError:
    """What a client is told when texts could not be made."""
    match error:
        case ApiError():
            return error
        case Busy():
            retry = {"Retry-After": str(RETRY_SECONDS)}
            return ApiError(429, f"{error}.", code="rate_limit_exceeded", headers=retry)
        case Late():
            return ApiError(504, f"{error}.", code="timeout")
        case Closed():
            return ApiError(503, f"{error}.", code="unavailable")
        case GenerationError():
            return ApiError(500, f"{error}.", code="model_error")
        case _:
            message = f"the engine has failed: {type(error).__name__}: {error}."
            return ApiError(500, message, code="engine_error")


def refused(message: str, param: str, code: str = "invalid_value") -> ApiError:
    """A field of the request that cannot be as it is."""
    return ApiError(400, message, param=param, code=code)


def _kind(status: int) -> str:
    kinds: dict[int, str] = {
        401: "authentication_error",
        429: "rate_limit_error",
        504: "timeout_error",
    }
    return kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
