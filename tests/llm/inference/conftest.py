"""A tiny model with a tokenizer that knows conversations, and engines for it."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest
import torch
import uvicorn

from firsthand.llm.inference.engine import Engine
from firsthand.llm.inference.scheduler import Scheduler
from firsthand.llm.inference.server.app import create_app
from firsthand.llm.inference.server.settings import ServerSettings
from firsthand.llm.inference.service import Service
from firsthand.llm.inference.torch_engine import TorchEngine
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer import train
from firsthand.llm.tokenizer.chat import CHAT_TOKENS
from firsthand.llm.tokenizer.tokenizer import Tokenizer

torch.set_num_threads(1)

TEXT = "the quick brown fox jumps over the lazy dog, and the dog sleeps on. grün, größer, €5. " * 4


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    """A few merges, the token between documents and those of a chat."""
    return train([TEXT], 300, special_tokens=["<|endoftext|>", *CHAT_TOKENS])


@pytest.fixture(scope="session")
def plain_tokenizer() -> Tokenizer:
    """256 bytes and the token between documents."""
    return Tokenizer([], special_tokens=["<|endoftext|>"])


@pytest.fixture(scope="session")
def make_model() -> Callable[..., Transformer]:
    """Models in float64, so that how a prompt is cut into calls does not show in float32.

    With loud weights, so that the logits tell tokens apart.
    """

    def made(*, seed: int = 3, loud: float = 0.2, **changes: Any) -> Transformer:
        small = {"vocab_size": 300, "context": 96, "d_model": 24, "n_layers": 2, "n_heads": 4}
        model = Transformer(ModelConfig(**{**small, "d_ff": 20, **changes}), FAST, seed=seed)
        model = model.double()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(seed))
                parameter += loud * noise
        return model

    return made


@pytest.fixture(scope="session")
def model(make_model: Callable[..., Transformer]) -> Transformer:
    return make_model()


@pytest.fixture
def make_engine(model: Transformer) -> Callable[..., TorchEngine]:
    def made(**sizes: int) -> TorchEngine:
        return TorchEngine(model, **sizes)

    return made


class Gate:
    """An engine whose calls can be held up, counted out or made to fail."""

    def __init__(self, engine: Engine) -> None:
        self._engine, self.config = engine, engine.config
        self.slots, self.capacity, self.max_rows = engine.slots, engine.capacity, engine.max_rows
        self._condition = threading.Condition()
        self._allowed: float = float("inf")
        self.error: Exception | None = None

    def hold(self, allowed: int = 0) -> None:
        """Let so many more calls through."""
        with self._condition:
            self._allowed = allowed

    def allow(self, calls: float = float("inf")) -> None:
        """Let that many calls more through than now."""
        with self._condition:
            self._allowed += calls
            self._condition.notify_all()

    def forward(self, *arrays: Any) -> Any:
        with self._condition:
            self._condition.wait_for(lambda: self._allowed > 0)
            self._allowed -= 1
            error, self.error = self.error, None
        if error is not None:
            raise error
        return self._engine.forward(*arrays)

    def close(self) -> None:
        self._engine.close()


class Server:
    """A server on a port of its own, in a thread."""

    def __init__(self, engine: Engine, tokenizer: Tokenizer, **options: Any) -> None:
        self.engine = Gate(engine)
        limits = {name: options.pop(name) for name in ("waiting", "seconds") if name in options}
        self.scheduler = Scheduler(self.engine, tokenizer)
        self.service = Service(self.scheduler, **limits)
        self.settings = ServerSettings(**{"model": "tiny", "fingerprint": "fp_x", **options})
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=2048)
        config = uvicorn.Config(
            create_app(self.service, self.settings),
            log_level="critical",
            ws="none",
            timeout_graceful_shutdown=5,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, args=([self.socket],))
        self._thread.start()
        self.port: int = self.socket.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.client = openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.settings.api_key or "none", max_retries=0
        )
        self.http = httpx.Client(base_url=self.url, timeout=60)
        self.wait_for(lambda: self.service.alive)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """JSON, or bytes as they are."""
        headers = {"content-type": "application/json", **headers}
        if isinstance(body, bytes):
            return self.http.post(path, content=body, headers=headers)
        return self.http.post(path, json=body, headers=headers)

    def metric(self, name: str) -> float:
        """The value of one line of the metrics; 0 if there is none."""
        key = {"authorization": f"Bearer {self.settings.api_key}"} if self.settings.api_key else {}
        page = self.http.get("/metrics", headers=key).text
        found = re.search(rf"^firsthand_{re.escape(name)} (\S+)$", page, re.MULTILINE)
        return float(found[1]) if found else 0.0

    def wait_for(self, condition: Callable[[], bool], seconds: float = 30.0) -> None:
        """Look again and again; no test is about how long it takes."""
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it never happened"
            time.sleep(0.01)

    def close(self) -> None:
        self.engine.allow()
        self.client.close()
        self.http.close()
        self._server.should_exit = True
        self._thread.join(30)
        assert not self._thread.is_alive()
        self.socket.close()


@pytest.fixture(scope="module")
def server(model: Transformer, tokenizer: Tokenizer) -> Iterator[Server]:
    """One for all tests of a file; each leaves it as it was."""
    opened = Server(TorchEngine(model, slots=2), tokenizer, waiting=6)
    yield opened
    opened.close()


@pytest.fixture
def make_server(model: Transformer, tokenizer: Tokenizer) -> Iterator[Callable[..., Server]]:
    """One with other settings."""
    opened: list[Server] = []

    def made(
        *, engine: Engine | None = None, tokenizer: Tokenizer = tokenizer, **options: Any
    ) -> Server:
        opened.append(Server(engine or TorchEngine(model, slots=2), tokenizer, **options))
        return opened[-1]

    yield made
    for one in opened:
        one.close()
