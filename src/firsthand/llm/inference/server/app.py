"""The application: its paths, its errors, its beginning and end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from firsthand.llm.inference.server.chat import converse
from firsthand.llm.inference.server.completions import complete
from firsthand.llm.inference.server.errors import ApiError, Record
from firsthand.llm.inference.server.guard import HEALTH, Guard
from firsthand.llm.inference.server.settings import ServerSettings
from firsthand.llm.inference.service import Service

# What nginx writes down for a client that has left; nobody reads it.
CLIENT_LEFT = 499


def create_app(service: Service, settings: ServerSettings) -> FastAPI:
    """The server of one model; begins and ends the service with itself.

    Args:
        service: its scheduler has a tokenizer.
    """

    @asynccontextmanager
    async def life(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    # No pages of documentation: they load scripts from elsewhere.
    app = FastAPI(lifespan=life, openapi_url=None, docs_url=None, redoc_url=None)
    began = int(time.time())

    async def completions(request: Request) -> Response:
        return await complete(request, service, settings)

    async def chat(request: Request) -> Response:
        return await converse(request, service, settings)

    async def models() -> Record:
        return {"object": "list", "data": [_model(settings, began)]}

    async def model(name: str) -> Record:
        if name != settings.model:
            raise ApiError(
                404,
                f"there is no model {name!r}; this server has {settings.model!r}.",
                param="model",
                code="model_not_found",
            )
        return _model(settings, began)

    async def health() -> Response:
        alive = service.alive
        return JSONResponse({"status": "ok" if alive else "failed"}, 200 if alive else 503)

    async def metrics() -> Response:
        return Response(service.metrics.page(), media_type="text/plain; version=0.0.4")

    for path, endpoint, method in (
        ("/v1/completions", completions, "POST"),
        ("/v1/chat/completions", chat, "POST"),
        ("/v1/models", models, "GET"),
        ("/v1/models/{name:path}", model, "GET"),
        (HEALTH, health, "GET"),
        ("/metrics", metrics, "GET"),
    ):
        app.add_api_route(path, endpoint, methods=[method], response_model=None)
    app.add_exception_handler(ApiError, _refusal)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(ClientDisconnect, _left)
    app.add_exception_handler(Exception, _failure)
    app.add_middleware(Guard, settings=settings, metrics=service.metrics)
    return app


def _model(settings: ServerSettings, created: int) -> Record:
    return {
        "id": settings.model,
        "object": "model",
        "created": created,
        "owned_by": "firsthand",
    }


async def _refusal(_: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return error.response()


async def _http(request: Request, error: Exception) -> Response:
    """A path or a method that does not exist."""
    assert isinstance(error, HTTPException)
    message = f"{request.method} {request.url.path}: {error.detail.lower()}."
    return ApiError(error.status_code, message, headers=error.headers).response()


async def _left(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_LEFT)


async def _failure(_: Request, error: Exception) -> Response:
    message = f"the server has failed: {type(error).__name__}: {error}."
    return ApiError(500, message, code="internal_error").response()
