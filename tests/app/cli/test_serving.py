"""`firsthand chat|serve|generate` on an engine: in a terminal, through a pipe, over HTTP."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import torch

from firsthand.app.cli import chatting
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference.conversation import Conversation
from firsthand.llm.inference.decoding import generate
from firsthand.llm.inference.opening import open_engine, rounded
from firsthand.llm.inference.scheduler import Scheduler
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.quantization.artefact import save_quantized
from firsthand.llm.tokenizer import train
from firsthand.llm.tokenizer.chat import CHAT_TOKENS

GREEDY = ("--temperature", "0", "--tokens", "8", "--threads", "1")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two quantized models of random weights: `talker` knows turns, `writer` none."""
    folder: Path = tmp_path_factory.mktemp("models")
    config = ModelConfig(vocab_size=300, context=64, d_model=32, n_layers=2, n_heads=2, d_ff=48)
    model = Transformer(config, FAST, seed=5)
    with torch.no_grad():
        model.embedding.weight *= 20
    text = ["the quick brown fox jumps over the lazy dog. " * 20]
    for name, tokens in (("talker", CHAT_TOKENS), ("writer", ())):
        tokenizer = train(text, 280, special_tokens=["<|endoftext|>", *tokens])
        save_quantized(folder / name, rounded(model), tokenizer)
    return folder


def run(folder: Path, *words: str, stdin: str = "", **env: str) -> Any:
    return subprocess.run(
        [sys.executable, "-m", "firsthand", *words],
        input=stdin,
        capture_output=True,
        text=True,
        cwd=folder,
        env={**os.environ, **env},
        timeout=200,
        check=False,
    )


def said(folder: Path, turns: list[str]) -> list[str]:
    """What the model answers to these turns."""
    opened = open_engine(folder, lambda: FAST, threads=1)
    scheduler = Scheduler(opened.engine, opened.tokenizer)
    talk = Conversation(scheduler, Sampling(temperature=0, max_new_tokens=8))
    answers = ["".join(piece.text for piece in talk.say(turn)) for turn in turns]
    opened.engine.close()
    return answers


# --------------------------------------------------------------------------- chat


def test_a_talk_through_a_pipe(models: Path) -> None:
    lines = "the fox?\n\n/what\nand the dog?\n/reset\nthe fox?\n/quit\nnever read\n"
    done = run(models, "chat", "talker", *GREEDY, stdin=lines)
    assert done.returncode == 0, done.stderr
    first, second = said(models / "talker", ["the fox?", "and the dog?"])
    assert done.stdout == f"{first}\n{second}\n{first}\n"
    assert "INT8 on 1 thread of the CPU engine" in done.stderr
    assert "There is no command /what." in done.stderr
    assert "The talk begins anew." in done.stderr
    assert len(re.findall(r"tokens, \d+ tokens/s after", done.stderr)) == 3
    assert "knows no turns" not in done.stderr


def test_a_model_that_knows_no_turns(models: Path) -> None:
    done = run(
        models, "chat", "writer", "--system", "x", *GREEDY, stdin="the qu\n" + "a" * 61 + "\n"
    )
    assert done.returncode == 0, done.stderr
    first, second = said(models / "writer", ["the qu", "a" * 61])
    assert done.stdout == f"{first}\n{second}\n"
    assert "it goes on with the text as it stands" in done.stderr
    assert "--system is left out." in done.stderr
    assert re.search(r"The context is full: the oldest \d+ tokens are left out\.", done.stderr)


def test_a_full_context_is_told_and_a_long_turn_ends_no_talk(models: Path) -> None:
    lines = "the fox? " * 3 + "\n" + "the dog? " * 3 + "\n" + "word " * 50 + "\nok\n"
    done = run(models, "chat", "talker", *GREEDY, stdin=lines)
    assert done.returncode == 0, done.stderr
    assert "the oldest 2 turns are left out." in done.stderr
    assert re.search(r"the turn has \d+ tokens, and the context holds 64", done.stderr)
    assert done.stdout.count("\n") >= 3


def test_a_talk_in_a_terminal(place: Any, models: Path) -> None:
    (wanted,) = said(models / "talker", ["the fox?\nand then\nthe dog?"])
    terminal = place.terminal("chat", str(models / "talker"), *GREEDY)
    terminal.until("Lines that are pasted together are one turn")
    terminal.until("> ")
    terminal.child.send("the fox?\nand then\nthe dog?\n")  # at once, as a paste is
    shown = terminal.until(r"tokens/s after")
    assert [line for line in wanted.splitlines() if line.strip()][-1].strip() in shown
    assert len(re.findall("tokens/s", terminal.shown)) == 1
    terminal.until("> ")
    terminal.say("/reset")
    terminal.until("The talk begins anew")
    terminal.until("> ")
    terminal.say("/quit")
    assert terminal.end() == 0


def test_the_end_of_input_ends_the_talk(place: Any, models: Path) -> None:
    terminal = place.terminal("chat", str(models / "writer"), *GREEDY)
    terminal.until("> ")
    assert terminal.leave("\x04") == 0


def test_an_interrupt_stops_the_answer_and_not_the_talk(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    opened = open_engine(models / "talker", lambda: FAST, threads=1)
    forward, calls = opened.engine.forward, 0

    def interrupted(*arrays: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return forward(*arrays)

    opened.engine.forward = interrupted  # type: ignore[method-assign]
    scheduler = Scheduler(opened.engine, opened.tokenizer)
    talk = Conversation(scheduler, Sampling(temperature=0, max_new_tokens=8))
    chatting._answer(talk, "the fox?")
    stopped = capsys.readouterr()
    assert stopped.err == "Stopped.\n"
    (whole,) = said(models / "talker", ["the fox?"])
    assert whole.startswith(stopped.out.rstrip("\n"))
    chatting._answer(talk, "go on")
    opened.engine.close()
    assert "tokens/s after" in capsys.readouterr().err
    assert scheduler.running == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("chat", "nothing"), "nothing: no such file or folder."),
        (("chat", "talker", "--engine", "gpu"), "the engine is one of auto, cpu, torch; not gpu"),
        (("chat", "talker", "--temperature", "-1"), "temperature is 0"),
        (("chat", "talker", "--tokens", "0"), "max_new_tokens is at least 1"),
        (("chat", "talker", "--context", "1000"), "context of 64 tokens; not 1000"),
        (("serve", "nothing"), "nothing: no such file or folder."),
        (("serve", "talker", "--host", "0.0.0.0"), "set FIRSTHAND_API_KEY"),
        (("serve", "talker", "--host", "no.such.host.invalid", "--api-key", "k"), "no.such.host"),
        (("serve", "talker", "--port", "65536"), "A port is between 0 and 65535"),
        (("serve", "talker", "--slots", "0"), "At least one slot"),
        (("serve", "talker", "--timeout", "nan"), "nan"),
    ],
    ids=lambda words: " ".join(words) if isinstance(words, tuple) else "",
)
def test_one_sentence_for_what_cannot_be(
    models: Path, words: tuple[str, ...], sentence: str
) -> None:
    done = run(models, *words, FIRSTHAND_API_KEY="")
    assert done.returncode == 1
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_damaged_model(models: Path, tmp_path: Path) -> None:
    shutil.copytree(models / "talker", tmp_path / "cut")
    weights = tmp_path / "cut" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    for command in ("chat", "serve", "generate"):
        done = run(tmp_path, command, "cut")
        assert done.returncode == 1
        assert "weights.safetensors" in done.stderr
        assert "Traceback" not in done.stderr


# --------------------------------------------------------------------------- generate


def test_generate_takes_the_engine_for_integers(models: Path) -> None:
    words = ("generate", "talker", "the ", "--tokens", "12", "--seed", "3", "--samples", "2")
    done = run(models, *words)
    assert done.returncode == 0, done.stderr
    assert run(models, *words).stdout == done.stdout
    opened = open_engine(models / "talker", lambda: FAST, threads=1)
    scheduler = Scheduler(opened.engine, opened.tokenizer)
    sampling = Sampling(temperature=0.8, top_p=0.95, max_new_tokens=12, seed=3)
    found = generate(scheduler, ["the ", "the "], sampling)
    opened.engine.close()
    assert done.stdout == "".join(f"the {result.text}\n" for result in found)
    assert done.stderr.count("tokens/s after") == 2


# --------------------------------------------------------------------------- serve


@pytest.fixture
def served(models: Path) -> Iterator[Any]:
    """Start `firsthand serve`; its process and the address that it prints."""
    started: list[subprocess.Popen[str]] = []

    def start(*words: str, **env: str) -> tuple[subprocess.Popen[str], str]:
        process = subprocess.Popen(
            [sys.executable, "-m", "firsthand", "serve", *words, "--port", "0", "--threads", "1"],
            cwd=models,
            env={**os.environ, "FIRSTHAND_API_KEY": "", **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout is not None
        lines = [process.stdout.readline(), process.stdout.readline()]
        found = re.search(r"http://\S+/v1", lines[1])
        assert found, (lines, process.stderr and process.stderr.read())
        return process, found[0]

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_a_served_model_and_its_end(served: Any) -> None:
    process, address = served("talker", "--slots", "2")
    client = openai.OpenAI(base_url=address, api_key="none", max_retries=0)
    assert [model.id for model in client.models.list().data] == ["talker"]
    found = client.chat.completions.create(
        model="talker", messages=[{"role": "user", "content": "hi"}], max_tokens=5
    )
    assert found.usage is not None
    assert found.usage.completion_tokens <= 5
    origin = address.removesuffix("/v1")
    assert httpx.get(f"{origin}/health").json() == {"status": "ok"}
    assert httpx.get(f"{origin}/health", headers={"host": "evil.example"}).status_code == 403
    port = origin.rpartition(":")[2]
    taken = run(Path(), "serve", "x", "--port", port)
    assert taken.returncode == 1
    assert "in use" in taken.stderr
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 0, errors
    assert (out, errors) == ("", "")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", int(port)), timeout=5)


def test_a_served_model_with_a_key(served: Any) -> None:
    process, address = served(
        "writer", "--host", "0.0.0.0", "--name", "mine", FIRSTHAND_API_KEY="secret"
    )
    address = address.replace("0.0.0.0", "127.0.0.1")
    assert httpx.get(f"{address}/models").status_code == 401
    client = openai.OpenAI(base_url=address, api_key="secret", max_retries=0)
    found = client.completions.create(model="mine", prompt="the", max_tokens=3)
    assert found.model == "mine"
    process.send_signal(signal.SIGTERM)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "HTTP hides nothing" in errors
    assert "secret" not in out + errors
