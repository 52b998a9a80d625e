"""What a server must refuse, in OpenAI's shape, and live on."""

from __future__ import annotations

import json
import socket
import threading
import time
from typing import Any

import openai
import pytest
import torch

from firsthand.llm.inference.torch_engine import TorchEngine

CHAT: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(autouse=True)
def lives_on(server: Any) -> Any:
    """After each test the shared server still answers."""
    yield
    found = server.client.completions.create(model="tiny", prompt="a", max_tokens=1)
    assert found.usage.completion_tokens == 1


def refusal(answer: Any, status: int) -> dict[str, Any]:
    """The error, after a look at its shape."""
    assert answer.status_code == status, answer.text
    record = answer.json()
    assert list(record) == ["error"]
    error: dict[str, Any] = record["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert len(error["message"]) > 10
    assert error["message"].endswith(".")
    assert "\n" not in error["message"]
    return error


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"temperature": "hot"}, "temperature", "number"),
        ({"temperature": 1e-9}, "temperature", "at least"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"top_p": 1.5}, "top_p", "less than or equal to 1"),
        ({"top_k": -1}, "top_k", "0"),
        ({"min_p": 2}, "min_p", "1"),
        ({"repetition_penalty": 0}, "repetition_penalty", "0"),
        ({"max_tokens": 0}, "max_tokens", "1"),
        ({"max_tokens": 1.5}, "max_tokens", "integer"),
        ({"max_tokens": "5"}, "max_tokens", "integer"),
        ({"max_tokens": 97}, "prompt", "the context holds 96 tokens"),
        ({"n": 0}, "n", "1"),
        ({"n": 9}, "n", "at most 8 texts"),
        ({"n": 10**30}, "n", "at most"),
        ({"best_of": 3}, "best_of", "not supported"),
        ({"stop": ["a"] * 5}, "stop", "at most 4"),
        ({"stop": ""}, "stop", "empty"),
        ({"stop": ["a", 1]}, "stop", "strings"),
        ({"seed": 1.5}, "seed", "integer"),
        ({"logprobs": 6}, "logprobs", "5"),
        ({"logprobs": True}, "logprobs", "integer"),
        ({"stream": "yes"}, "stream", "boolean"),
        ({"stream_options": {"usage": True}}, "stream_options.usage", "no field"),
        ({"prompt": 5}, "prompt", "a string"),
        ({"prompt": []}, "prompt", "a string"),
        ({"prompt": ["a", 5]}, "prompt", "a string"),
        ({"prompt": [1.5]}, "prompt", "a string"),
        ({"prompt": [True]}, "prompt", "a string"),
        ({"prompt": {"text": "a"}}, "prompt", "a string"),
        ({"prompt": [300]}, "prompt", "id 300 at position 0"),
        ({"prompt": [3, -1]}, "prompt", "id -1 at position 1"),
        ({"prompt": [10**40]}, "prompt", "is no token"),
        ({"prompt": [1] * 96}, "prompt", "the prompt has 96"),
        ({"prompt": "word " * 3000}, "prompt", "the context holds 96"),
        ({"prompt": ["a"] * 9}, "n", "at most 8 texts"),
        ({"echo": True, "logprobs": 1}, "echo", "not supported"),
        ({"suffix": "x"}, "suffix", "not supported"),
        ({"presence_penalty": 0.5}, "presence_penalty", "repetition_penalty is"),
        ({"frequency_penalty": -0.5}, "frequency_penalty", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"max_new_tokens": 5}, "max_new_tokens", "no field"),
        ({"model": 5}, "model", "string"),
    ],
    ids=str,
)
def test_fields_of_a_completion(
    server: Any, fields: dict[str, Any], param: str, words: str
) -> None:
    body = {"model": "tiny", "prompt": "a", **fields}
    for more in ({}, {"stream": True}) if "stream" not in fields else ({},):
        error = refusal(server.post("/v1/completions", {**body, **more}), 400)
        assert error["type"] == "invalid_request_error"
        assert error["param"] == param
        assert words in error["message"]
        assert error["code"]


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": "hi"}, "messages", "array"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", "'user'"),
        ({"messages": [*CHAT, {"role": "user"}]}, "messages[1].content", "missing"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages[0].content", "string"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
            "'text'",
        ),
        (
            {"messages": [*CHAT, {"role": "system", "content": "late"}]},
            "messages",
            "may only come first",
        ),
        ({"messages": [{"role": "user", "content": "word " * 99}]}, "messages", "context holds 96"),
        ({"max_tokens": 95}, "messages", "and 95 more"),
        ({"max_completion_tokens": -1}, "max_completion_tokens", "1"),
        ({"logprobs": 2}, "logprobs", "boolean"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "20"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"modalities": ["audio"]}, "modalities", "not supported"),
        ({"prompt": "hi"}, "prompt", "no field"),
    ],
    ids=str,
)
def test_fields_of_a_chat(server: Any, fields: dict[str, Any], param: str, words: str) -> None:
    answer = server.post("/v1/chat/completions", {"model": "tiny", "messages": CHAT, **fields})
    error = refusal(answer, 400)
    assert (error["param"], words in error["message"]) == (param, True), error


def test_codes_that_programs_look_for(server: Any) -> None:
    def code(path: str, body: Any, status: int = 400) -> Any:
        return refusal(server.post(path, body), status)["code"]

    completions = "/v1/completions"
    assert code(completions, {"prompt": "a"}) == "missing_required_parameter"
    assert code(completions, {"model": "x", "prompt": "a"}, 404) == "model_not_found"
    assert code(completions, {"model": "tiny", "x": 1}) == "unknown_parameter"
    long = {"model": "tiny", "prompt": [1] * 100}
    assert code(completions, long) == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError) as caught:
        server.client.completions.create(model="tiny", prompt="a", temperature=-1)
    assert caught.value.param == "temperature"
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize(
    ("body", "words", "code"),
    [
        (b"", "no JSON", "invalid_json"),
        (b"{", "no JSON", "invalid_json"),
        (b"[]", "no JSON object", "invalid_json"),
        (b'"text"', "no JSON object", "invalid_json"),
        (b'{"model": "tiny", "prompt": "\xff\xfe"}', "no UTF-8 at byte 29", "invalid_encoding"),
        (b'{"model": "tiny", "prompt": "\xed\xa0\x80"}', "no UTF-8", "invalid_encoding"),
        (b'{"model": "tiny", "prompt": "\\ud800"}', "no JSON", "invalid_json"),
        (b'{"model": "tiny", "prompt": ' + b"[" * 100_000, "no JSON", "invalid_json"),
        (b'{"model": "tiny", "temperature": NaN}', "", None),
        (b'{"model": "tiny", "temperature": 1e999}', "", None),
        (b"\x00" * 100, "no JSON", "invalid_json"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bodies_that_are_no_request(server: Any, body: bytes, words: str, code: Any) -> None:
    for path in ("/v1/completions", "/v1/chat/completions"):
        error = refusal(server.post(path, body), 400)
        assert words in error["message"]
        assert code is None or error["code"] == code


def test_other_paths_methods_and_types(server: Any) -> None:
    assert "/v1/nothing" in refusal(server.http.get("/v1/nothing"), 404)["message"]
    assert "GET" in refusal(server.http.get("/v1/completions"), 405)["message"]
    refusal(server.post("/v1/models", {}), 405)
    for path in ("/docs", "/redoc", "/openapi.json"):
        refusal(server.http.get(path), 404)
    answer = server.post("/v1/completions", b"{}", **{"content-type": "text/plain"})
    assert "application/json" in refusal(answer, 415)["message"]
    refusal(server.http.post("/v1/completions"), 415)


def test_a_body_that_is_too_large(make_server: Any) -> None:
    server = make_server(body_bytes=1000)
    body = {"model": "tiny", "prompt": "a" * 100_000}
    error = refusal(server.post("/v1/completions", body), 413)
    assert (error["code"], "1000 bytes" in error["message"]) == ("request_too_large", True)

    def in_pieces() -> Any:
        for _ in range(50):
            yield b" " * 1000

    answer = server.http.post(
        "/v1/completions", content=in_pieces(), headers={"content-type": "application/json"}
    )
    refusal(answer, 413)
    assert server.client.completions.create(model="tiny", prompt="a", max_tokens=1)


def test_a_body_that_never_ends(make_server: Any) -> None:
    server = make_server(body_seconds=0.2)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(
            b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
            b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
        )
        answer = connection.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")


def test_a_client_that_leaves_in_the_middle_of_its_body(server: Any) -> None:
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
            connection.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                b"Content-Type: application/json\r\nContent-Length: 100\r\n\r\n{"
            )
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
        assert b"400" in connection.recv(65536)


# --------------------------------------------------------------------------- who may ask


def test_a_key(make_server: Any) -> None:
    server = make_server(api_key="schlüssel-1")
    key = {"authorization": "Bearer schlüssel-1".encode()}
    assert server.http.get("/health").status_code == 200
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "schlüssel-1".encode()},
    ):
        for path in ("/v1/models", "/metrics", "/v1/nothing"):
            error = refusal(server.http.get(path, headers=headers), 401)
            assert error["code"] == "invalid_api_key"
    assert server.http.get("/v1/models", headers=key).status_code == 200
    assert server.http.get("/metrics", headers=key).status_code == 200
    with pytest.raises(openai.AuthenticationError):
        server.client.with_options(api_key="other").models.list()
    plain = make_server(api_key="k2")
    assert plain.client.models.list().data[0].id == "tiny"


def test_a_page_that_renames_this_machine(make_server: Any) -> None:
    server = make_server(local_only=True)
    for host in ("evil.example", "evil.example:80", "localhost.evil.example", ""):
        error = refusal(server.http.get("/v1/models", headers={"host": host}), 403)
        assert error["code"] == "host_not_allowed"
    for host in ("localhost", "LOCALHOST:8000", "127.0.0.1:1", "[::1]:8000", "[::1]"):
        assert server.http.get("/v1/models", headers={"host": host}).status_code == 200


# --------------------------------------------------------------------------- too much, too slow


def open_request(server: Any, body: dict[str, Any]) -> socket.socket:
    """A connection on which a completion was asked for; its answer is not read."""
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    text = json.dumps({"model": "tiny", **body}).encode()
    connection.sendall(
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
        b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text)
    )
    return connection


def read_all(connection: socket.socket) -> bytes:
    """All that comes until the server closes."""
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


def test_more_texts_than_may_wait(server: Any) -> None:
    server.engine.hold()
    waiting = [open_request(server, {"prompt": ["a"] * 4, "max_tokens": 2}) for _ in range(2)]
    server.wait_for(lambda: server.metric("texts_running") == 2)
    server.wait_for(lambda: server.metric("texts_waiting") == 6)
    answer = server.post("/v1/completions", {"model": "tiny", "prompt": "a"})
    error = refusal(answer, 429)
    assert (error["code"], error["type"]) == ("rate_limit_exceeded", "rate_limit_error")
    assert int(answer.headers["retry-after"]) >= 1
    with pytest.raises(openai.RateLimitError):
        server.client.chat.completions.create(model="tiny", messages=CHAT, stream=True)
    server.engine.allow()
    for connection in waiting:
        assert b'"completion_tokens":8' in read_all(connection)


def test_a_client_that_waits_until_there_is_room(server: Any) -> None:
    server.engine.hold()
    waiting = open_request(server, {"prompt": ["a"] * 8, "max_tokens": 2})
    server.wait_for(lambda: server.metric("texts_waiting") == 6)
    refused = 'requests_total{path="/v1/completions",status="429"}'
    before = server.metric(refused)
    patient = server.client.with_options(max_retries=5)

    def release() -> None:
        server.wait_for(lambda: server.metric(refused) > before)
        server.engine.allow()

    helper = threading.Thread(target=release)
    helper.start()
    found = patient.completions.create(model="tiny", prompt="a", max_tokens=2)
    helper.join()
    assert found.usage.completion_tokens == 2
    read_all(waiting)


def test_a_text_that_takes_too_long(make_server: Any) -> None:
    server = make_server(seconds=0.3)
    server.engine.hold()
    late = open_request(server, {"prompt": "a", "max_tokens": 5})
    server.wait_for(lambda: server.metric("texts_running") == 1)
    time.sleep(0.4)
    server.engine.allow()
    answer = read_all(late)
    assert answer.startswith(b"HTTP/1.1 504")
    assert b'"code":"timeout"' in answer
    # Within a stream the status is gone already.
    server.engine.hold(2)
    late = open_request(server, {"prompt": "a", "max_tokens": 50, "stream": True})
    server.wait_for(lambda: server.metric("generated_tokens_total") >= 2)
    time.sleep(0.4)
    server.engine.allow()
    answer = read_all(late)
    assert answer.startswith(b"HTTP/1.1 200")
    assert b'"code":"timeout"' in answer
    assert b"[DONE]" not in answer
    assert server.metric('texts_total{reason="late"}') == 2
    assert server.metric("texts_running") == 0


# --------------------------------------------------------------------------- what breaks


def test_an_engine_that_fails(server: Any) -> None:
    server.engine.error = RuntimeError("out of memory")
    error = refusal(server.post("/v1/completions", {"model": "tiny", "prompt": "a"}), 500)
    assert "out of memory" in error["message"]
    assert error["type"] == "server_error"
    server.engine.hold(1)
    stream = server.client.completions.create(
        model="tiny", prompt="a", stream=True, temperature=0, max_tokens=50
    )
    next(iter(stream))
    server.engine.error = RuntimeError("out of memory")
    server.engine.allow()
    with pytest.raises(openai.APIError, match="out of memory"):
        list(stream)
    assert server.metric('texts_total{reason="failed"}') == 2


def test_weights_that_are_not_numbers(make_server: Any, make_model: Any) -> None:
    model = make_model()
    with torch.no_grad():
        model.embedding.weight[:, 2] = float("nan")
    server = make_server(engine=TorchEngine(model, slots=1))
    for _ in range(2):
        error = refusal(server.post("/v1/completions", {"model": "tiny", "prompt": "a"}), 500)
        assert "weights are damaged" in error["message"]
        assert error["code"] == "model_error"
    # Nothing of a stream was sent yet.
    body = {"model": "tiny", "messages": CHAT, "stream": True}
    refusal(server.post("/v1/chat/completions", body), 500)
    assert server.http.get("/health").status_code == 200


def test_a_scheduler_that_fails(make_server: Any, capfd: Any, monkeypatch: Any) -> None:
    server = make_server()
    monkeypatch.setattr("threading.excepthook", lambda _: None)

    def broken() -> Any:
        raise AssertionError("a mistake of ours")

    server.scheduler.step = broken
    error = refusal(server.post("/v1/completions", {"model": "tiny", "prompt": "a"}), 503)
    assert "a mistake of ours" in error["message"]
    assert refusal(server.post("/v1/completions", {"model": "tiny", "prompt": "a"}), 503)
    assert server.http.get("/health").status_code == 503
