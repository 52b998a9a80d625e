"""What every request passes first: the key, the host, a number of its own, the count of answers."""

from __future__ import annotations

import uuid
from hmac import compare_digest

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from firsthand.llm.inference.metrics import Metrics
from firsthand.llm.inference.server.errors import ApiError
from firsthand.llm.inference.server.settings import ServerSettings

HEALTH = "/health"
PATHS = (HEALTH, "/metrics", "/v1/models", "/v1/completions", "/v1/chat/completions")
LOCAL = ("127.0.0.1", "localhost", "[::1]")


class Guard:
    """ASGI middleware in front of the application."""

    def __init__(self, app: ASGIApp, settings: ServerSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._key = f"Bearer {settings.api_key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer by an error, or let the application answer."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        path: str = scope["path"]
        label = path if path in PATHS else "other"
        number = f"req_{uuid.uuid4().hex}".encode()

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), (b"x-request-id", number)]
                self._metrics.requests.labels(label, message["status"]).inc()
            await send(message)

        headers: dict[bytes, bytes] = dict(scope["headers"])
        error = self._wrong(path, headers)
        if error is None:
            await self._app(scope, receive, counted)
        else:
            await error.response()(scope, receive, counted)

    def _wrong(self, path: str, headers: dict[bytes, bytes]) -> ApiError | None:
        host = headers.get(b"host", b"").decode("latin-1").lower()
        if self._settings.local_only and host.rpartition(":")[0] not in LOCAL and host not in LOCAL:
            return ApiError(
                403,
                f"this server answers to the names {', '.join(LOCAL)} alone; not {host!r}.",
                code="host_not_allowed",
            )
        if not self._settings.api_key or path == HEALTH:
            return None
        # In a time that does not tell how much of a key was right.
        if compare_digest(headers.get(b"authorization", b""), self._key):
            return None
        return ApiError(
            401,
            "the API key is missing or wrong: send it as 'Authorization: Bearer KEY'.",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )
