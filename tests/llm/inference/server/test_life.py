"""Clients that leave, a thousand at once, the metrics, the end."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections import Counter
from typing import Any

import openai
import pytest

from firsthand.llm.inference.torch_engine import TorchEngine

CHAT: list[Any] = [{"role": "user", "content": "hi"}]
ENDLESS = {"stop": ["\x00never"], "max_tokens": 90, "temperature": 0}


def request_bytes(path: str, body: dict[str, Any]) -> bytes:
    text = json.dumps({"model": "tiny", **body}).encode()
    return (
        b"POST %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
        % (path.encode(), len(text), text)
    )


def idle(server: Any) -> bool:
    return bool(server.metric("texts_running") == server.metric("texts_waiting") == 0)


def idle_after_a_call(server: Any) -> bool:
    """Whether nothing runs; if something does, the engine gets on by one call."""
    if idle(server):
        return True
    server.engine.allow(1)
    return False


# --------------------------------------------------------------------------- leaving


def test_a_client_that_leaves_in_the_middle_of_a_stream(server: Any) -> None:
    server.engine.hold(5)
    before = server.metric('texts_total{reason="cancelled"}')
    stream = server.client.completions.create(model="tiny", prompt="a", stream=True, **ENDLESS)
    next(iter(stream))
    assert server.metric("texts_running") == 1
    stream.close()
    server.wait_for(lambda: idle_after_a_call(server))
    server.engine.allow()
    assert server.metric('texts_total{reason="cancelled"}') == before + 1
    # The slot is free: more texts than slots are answered.
    found = server.client.completions.create(model="tiny", prompt=["a"] * 5, max_tokens=1)
    assert len(found.choices) == 5


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_anything_came(server: Any, stream: bool) -> None:
    server.engine.hold()
    for path, prompt in (
        ("/v1/completions", {"prompt": ["a", "b"]}),
        ("/v1/chat/completions", {"messages": CHAT, "n": 2}),
    ):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(request_bytes(path, {**prompt, **ENDLESS, "stream": stream}))
            server.wait_for(
                lambda: server.metric("texts_running") + server.metric("texts_waiting") >= 2
            )
        # Far fewer calls than the texts would take.
        server.wait_for(lambda: idle_after_a_call(server))
        server.engine.hold()
    server.engine.allow()


def test_one_client_that_leaves_does_not_change_the_others(server: Any) -> None:
    settings: Any = {"model": "tiny", "prompt": "the dog", "seed": 3, "max_tokens": 60}
    wanted = server.client.completions.create(**settings).choices[0].text
    server.engine.hold(3)
    leaving = server.client.completions.create(model="tiny", prompt="a", stream=True, **ENDLESS)
    next(iter(leaving))
    chunks: list[Any] = []

    def stay() -> None:
        chunks.extend(server.client.completions.create(**settings, stream=True))

    staying = threading.Thread(target=stay)
    staying.start()
    server.wait_for(lambda: server.metric("texts_running") + server.metric("texts_waiting") == 2)
    leaving.close()
    server.engine.allow()
    staying.join()
    assert "".join(chunk.choices[0].text for chunk in chunks) == wanted


def test_a_client_that_reads_nothing_holds_nobody_up(server: Any) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        body = {"prompt": ["a"] * 3, "stream": True, "logprobs": 5, **ENDLESS}
        connection.sendall(request_bytes("/v1/completions", body))
        server.wait_for(lambda: idle(server))
        found = server.client.completions.create(model="tiny", prompt="a", max_tokens=5)
        assert found.usage.completion_tokens <= 5


# --------------------------------------------------------------------------- a thousand


def test_a_thousand_requests_at_once(make_server: Any, model: Any) -> None:
    """All are answered: by a text, or by a 429 that says when to come again."""
    server = make_server(engine=TorchEngine(model, slots=4), waiting=400)

    async def one(number: int) -> str:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        body = {
            "prompt": [number % 250],
            "max_tokens": 1 + number % 2,
            "temperature": 0,
            "stream": number % 3 == 0,
        }
        writer.write(request_bytes("/v1/completions", body))
        answer = (await reader.read()).decode()
        writer.close()
        status = answer.split(" ", 2)[1]
        if status == "429":
            assert "retry-after: " in answer.lower()
        elif number % 3 == 0:
            assert "data: [DONE]" in answer
        else:
            assert '"finish_reason"' in answer
        return status

    async def all_of_them() -> list[str]:
        return await asyncio.gather(*(one(number) for number in range(1000)))

    statuses = Counter(asyncio.run(all_of_them()))
    assert set(statuses) <= {"200", "429"}
    assert statuses.total() == 1000
    assert statuses["200"] >= 404
    server.wait_for(lambda: idle(server))
    asked = server.metric('requests_total{path="/v1/completions",status="200"}')
    assert asked == statuses["200"]
    found = server.client.completions.create(model="tiny", prompt="a", max_tokens=2)
    assert found.usage.completion_tokens <= 2


# --------------------------------------------------------------------------- counting


def test_what_the_metrics_count(make_server: Any) -> None:
    server = make_server()
    server.client.completions.create(
        model="tiny", prompt=["a", "the"], max_tokens=5, stop=["\x00"], temperature=0, n=2
    )
    with pytest.raises(openai.BadRequestError):
        server.client.completions.create(model="tiny", prompt="a", n=-1)
    server.http.get("/v1/secret/../nothing")
    page = server.http.get("/metrics")
    assert page.headers["content-type"].startswith("text/plain")
    assert server.metric("slots") == 2
    assert server.metric("prompt_tokens_total") == 4
    generated = server.metric("generated_tokens_total")
    ends = sum(server.metric(f'texts_total{{reason="{r}"}}') for r in ("end", "length"))
    assert ends == 4
    assert 4 <= generated <= 20
    assert server.metric("time_to_first_token_seconds_count") == 4
    assert server.metric("inter_token_seconds_count") == generated - 4
    assert server.metric("text_seconds_count") == 4
    assert server.metric("text_seconds_sum") > 0
    assert server.metric('requests_total{path="/v1/completions",status="200"}') == 1
    assert server.metric('requests_total{path="/v1/completions",status="400"}') == 1
    assert server.metric('requests_total{path="other",status="404"}') == 1
    assert idle(server)


# --------------------------------------------------------------------------- the end


def test_a_server_that_ends_tells_those_who_wait(make_server: Any) -> None:
    server = make_server()
    server.engine.hold()
    answers: list[Any] = []

    def ask() -> None:
        answers.append(server.post("/v1/completions", {"model": "tiny", "prompt": "a", **ENDLESS}))

    asking = threading.Thread(target=ask)
    asking.start()
    server.wait_for(lambda: server.metric("texts_running") == 1)
    closing = threading.Thread(target=server.service.close)
    closing.start()
    server.engine.allow(1)
    asking.join()
    closing.join()
    assert answers[0].status_code == 503
    assert answers[0].json()["error"]["code"] == "unavailable"
    assert server.post("/v1/completions", {"model": "tiny", "prompt": "a"}).status_code == 503
