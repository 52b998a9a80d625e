"""What a server is told, and what it takes at most."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """How a model is served.

    Attributes:
        model: the name that requests give.
        fingerprint: tells answers of different weights or engines apart.
        api_key: that requests must have; "" asks for none.
        local_only: take requests whose Host is this machine alone. A page in a browser could
            otherwise reach a server without a key through a name that it lets point here.
        body_bytes: of a request.
        body_seconds: for a request's body to arrive.
        texts: of one request: prompts times n.
    """

    model: str
    fingerprint: str = ""
    api_key: str = ""
    local_only: bool = False
    body_bytes: int = 4 << 20
    body_seconds: float = 30.0
    texts: int = 128
