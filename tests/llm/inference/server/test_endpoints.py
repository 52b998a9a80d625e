"""Each field of each endpoint, through OpenAI's own client."""

from __future__ import annotations

import json
from typing import Any

import openai
import pytest

from firsthand.llm.generation import decoding as in_torch
from firsthand.llm.generation.results import Generation
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer.chat import ChatTemplate
from firsthand.llm.tokenizer.tokenizer import Tokenizer

QUESTION: list[Any] = [{"role": "user", "content": "the dog?"}]


@pytest.fixture(scope="module")
def alone(model: Transformer, tokenizer: Tokenizer) -> Any:
    """The text that PyTorch generates for a prompt and settings."""

    def generated(prompt: Any, *, stream: int = 0, end: Any = None, **settings: Any) -> Generation:
        request = in_torch.Request(prompt=prompt, sampling=Sampling(**settings), stream=stream)
        return in_torch.generate(model, [request], tokenizer=tokenizer, end_tokens=end)[0]

    return generated


@pytest.fixture(scope="module")
def chat(tokenizer: Tokenizer, alone: Any) -> Any:
    """The answer that PyTorch generates in a conversation."""
    template = ChatTemplate(tokenizer)

    def generated(messages: Any, **settings: Any) -> Generation:
        ids = template.render(messages, ask=True).ids.tolist()
        end = [template.end, tokenizer.special_tokens["<|endoftext|>"]]
        found: Generation = alone(ids, end=end, **settings)
        return found

    return generated


# --------------------------------------------------------------------------- models


def test_models(server: Any) -> None:
    (model,) = server.client.models.list().data
    assert (model.id, model.object, model.owned_by) == ("tiny", "model", "firsthand")
    assert server.client.models.retrieve("tiny") == model
    with pytest.raises(openai.NotFoundError, match="no model 'other'") as caught:
        server.client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_health(server: Any) -> None:
    answer = server.http.get("/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


# --------------------------------------------------------------------------- completions


def test_a_completion(server: Any, alone: Any) -> None:
    wanted = alone("the quick", temperature=0.9, top_p=0.9, seed=5, max_new_tokens=20)
    found = server.client.completions.create(
        model="tiny", prompt="the quick", temperature=0.9, top_p=0.9, seed=5, max_tokens=20
    )
    assert found.id.startswith("cmpl-")
    assert (found.object, found.model, found.system_fingerprint) == (
        "text_completion",
        "tiny",
        "fp_x",
    )
    assert found.created > 1.7e9
    (choice,) = found.choices
    assert (choice.index, choice.text, choice.logprobs) == (0, wanted.text, None)
    assert choice.finish_reason == {"length": "length"}.get(wanted.reason, "stop")
    assert found.usage.prompt_tokens == len(wanted.prompt)
    assert found.usage.completion_tokens == len(wanted.ids)
    assert found.usage.total_tokens == len(wanted.prompt) + len(wanted.ids)


def test_a_completion_has_sixteen_tokens_unless_told(server: Any) -> None:
    found = server.client.completions.create(model="tiny", prompt=[5], seed=1, logit_bias={})
    assert found.usage.completion_tokens == 16
    assert found.choices[0].finish_reason == "length"
    # At the end of the context there are fewer.
    found = server.client.completions.create(model="tiny", prompt=[5] * 90, seed=1)
    assert found.usage.completion_tokens == 6


@pytest.mark.parametrize(
    ("prompt", "each"),
    [
        ("über", ["über"]),
        ("", [""]),
        (None, [""]),
        (["a", "the dog", ""], ["a", "the dog", ""]),
        ([5, 6, 7], [[5, 6, 7]]),
        ([[5, 6], [7]], [[5, 6], [7]]),
        ([[]], [[]]),
        ("<|endoftext|>", ["<|endoftext|>"]),  # plain text, not the token
    ],
)
def test_every_form_of_a_prompt(server: Any, alone: Any, prompt: Any, each: Any) -> None:
    found = server.client.completions.create(
        model="tiny", prompt=prompt, temperature=0, max_tokens=5
    )
    wanted = [alone(one, temperature=0, max_new_tokens=5) for one in each]
    assert [choice.index for choice in found.choices] == list(range(len(each)))
    assert [choice.text for choice in found.choices] == [one.text for one in wanted]
    assert found.usage.prompt_tokens == sum(len(one.prompt) for one in wanted)


def test_several_samples_of_several_prompts(server: Any, alone: Any) -> None:
    found = server.client.completions.create(
        model="tiny", prompt=["a", "the"], n=2, best_of=2, seed=3, max_tokens=8
    )
    assert [choice.text for choice in found.choices] == [
        alone(prompt, stream=sample, seed=3, max_new_tokens=8).text
        for prompt in ("a", "the")
        for sample in range(2)
    ]
    assert found.usage.prompt_tokens == 2


def test_seeds(server: Any) -> None:
    def text(seed: int | None) -> str:
        found = server.client.completions.create(
            model="tiny", prompt="a", seed=seed, max_tokens=30, temperature=1.5
        )
        return str(found.choices[0].text)

    for seed in (0, -1, 2**63 - 1, -(2**63)):
        assert text(seed) == text(seed)
    assert text(1) != text(2)
    assert text(None) != text(None)


def test_stop_strings(server: Any, alone: Any) -> None:
    free = alone("a", temperature=0, max_new_tokens=40).text
    stop = free[10:12]
    found = server.client.completions.create(
        model="tiny", prompt="a", temperature=0, max_tokens=40, stop=[stop, "\x00never"]
    )
    assert found.choices[0].text == free[: free.index(stop)]
    assert found.choices[0].finish_reason == "stop"
    one = server.client.completions.create(
        model="tiny", prompt="a", temperature=0, max_tokens=40, stop=stop
    )
    assert one.choices[0].text == found.choices[0].text


def test_settings_of_others(server: Any, alone: Any) -> None:
    settings = {"top_k": 5, "min_p": 0.05, "repetition_penalty": 1.4}
    found = server.client.completions.create(
        model="tiny", prompt="a", seed=9, max_tokens=20, extra_body=settings, user="someone"
    )
    assert found.choices[0].text == alone("a", seed=9, max_new_tokens=20, **settings).text


def test_an_echo(server: Any, alone: Any) -> None:
    wanted = alone("the ", temperature=0, max_new_tokens=4).text
    settings: Any = {"model": "tiny", "prompt": "the ", "temperature": 0, "max_tokens": 4}
    found = server.client.completions.create(**settings, echo=True)
    assert found.choices[0].text == "the " + wanted
    stream = server.client.completions.create(**settings, echo=True, stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == "the " + wanted


def test_completion_logprobs(server: Any, alone: Any, tokenizer: Tokenizer) -> None:
    wanted = alone("grün", seed=2, max_new_tokens=30, logprobs=True, top_logprobs=3)
    found = server.client.completions.create(
        model="tiny", prompt="grün", seed=2, max_tokens=30, logprobs=3
    )
    logprobs = found.choices[0].logprobs
    ids = wanted.ids[: len(logprobs.tokens)]
    assert len(ids) >= 29  # an end token has no place in the text
    for token, spelling in zip(ids, logprobs.tokens, strict=True):
        content = tokenizer.token_bytes(token)
        try:
            assert spelling == content.decode()
        except UnicodeDecodeError:
            assert spelling == "bytes:" + "".join(f"\\x{byte:02x}" for byte in content)
    assert logprobs.token_logprobs == pytest.approx(wanted.logprobs[: len(ids)], abs=1e-3)
    for place, top in enumerate(logprobs.top_logprobs):
        best = sorted(top.values(), reverse=True)[:3]
        assert best == pytest.approx([p for _, p in wanted.top_logprobs[place]], abs=1e-3)
        assert logprobs.tokens[place] in top
    for place, offset in enumerate(logprobs.text_offset):
        spelling = logprobs.tokens[place]
        if not spelling.startswith("bytes:"):
            assert found.choices[0].text[offset:].startswith(spelling)
    bare = server.client.completions.create(
        model="tiny", prompt="grün", seed=2, max_tokens=30, logprobs=0
    )
    assert bare.choices[0].logprobs.top_logprobs is None
    assert bare.choices[0].logprobs.tokens == logprobs.tokens


def test_tokens_of_a_stop_string_have_no_logprobs(server: Any, alone: Any) -> None:
    free = alone("a", temperature=0, max_new_tokens=40).text
    stop = free[12:16]
    settings: Any = {
        "model": "tiny",
        "prompt": "a",
        "temperature": 0,
        "max_tokens": 40,
        "stop": stop,
        "logprobs": 0,
    }
    (choice,) = server.client.completions.create(**settings).choices
    assert all(offset < len(choice.text) for offset in choice.logprobs.text_offset)
    assert len(choice.logprobs.tokens) == len(choice.logprobs.text_offset) > 0
    tokens = []
    for chunk in server.client.completions.create(**settings, stream=True):
        tokens += chunk.choices[0].logprobs.tokens
    assert tokens == choice.logprobs.tokens


def test_a_stream_of_completions(server: Any) -> None:
    settings: Any = {
        "model": "tiny",
        "prompt": ["a", "the"],
        "n": 2,
        "seed": 4,
        "max_tokens": 12,
        "logprobs": 2,
    }
    whole = server.client.completions.create(**settings)
    texts, tokens, reasons = [""] * 4, [[] for _ in range(4)], [None] * 4
    chunks = list(server.client.completions.create(**settings, stream=True))
    assert len({chunk.id for chunk in chunks}) == 1
    for chunk in chunks:
        assert (chunk.object, chunk.model, chunk.usage) == ("text_completion", "tiny", None)
        (choice,) = chunk.choices
        assert reasons[choice.index] is None
        texts[choice.index] += choice.text
        tokens[choice.index] += choice.logprobs.tokens
        reasons[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert tokens == [choice.logprobs.tokens for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]


def test_a_stream_as_it_is_on_the_wire(server: Any) -> None:
    body = {
        "model": "tiny",
        "prompt": "a",
        "seed": 1,
        "max_tokens": 5,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    answer = server.post("/v1/completions", body)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-request-id"].startswith("req_")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    records = [json.loads(event.removeprefix("data: ")) for event in events]
    assert [record["usage"] for record in records[:-1]] == [None] * (len(records) - 1)
    assert records[-1]["choices"] == []
    assert records[-1]["usage"] == {
        "prompt_tokens": 1,
        "completion_tokens": 5,
        "total_tokens": 6,
    }
    assert records[-2]["choices"][0]["finish_reason"] == "length"
    # Without the option no event speaks of it.
    plain = server.post("/v1/completions", {**body, "stream_options": None})
    assert "usage" not in plain.text


# --------------------------------------------------------------------------- chat


def test_a_chat(server: Any, chat: Any) -> None:
    messages: Any = [
        {"role": "system", "content": "Short."},
        {"role": "user", "content": "the fox?"},
        {"role": "assistant", "content": "jumps", "refusal": None, "annotations": []},
        {"role": "user", "content": "over?", "name": "anna"},
    ]
    wanted = chat(
        [{"role": m["role"], "content": m["content"]} for m in messages], seed=7, max_new_tokens=20
    )
    found = server.client.chat.completions.create(
        model="tiny", messages=messages, seed=7, max_completion_tokens=20
    )
    assert found.id.startswith("chatcmpl-")
    assert (found.object, found.model, found.system_fingerprint) == (
        "chat.completion",
        "tiny",
        "fp_x",
    )
    (choice,) = found.choices
    assert (choice.index, choice.message.role, choice.message.content) == (
        0,
        "assistant",
        wanted.text,
    )
    assert (choice.message.refusal, choice.logprobs) == (None, None)
    assert choice.finish_reason == {"length": "length"}.get(wanted.reason, "stop")
    assert found.usage.prompt_tokens == len(wanted.prompt)
    assert found.usage.completion_tokens == len(wanted.ids)


def test_an_answer_ends_at_the_end_of_its_turn(server: Any, chat: Any) -> None:
    for seed in range(400):
        wanted = chat(QUESTION, seed=seed, max_new_tokens=4, temperature=1.9)
        if wanted.reason == "end":
            break
    assert wanted.reason == "end"
    found = server.client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        seed=seed,
        max_tokens=4,
        temperature=1.9,
        logprobs=True,
    )
    (choice,) = found.choices
    assert (choice.finish_reason, choice.message.content) == ("stop", wanted.text)
    assert len(choice.logprobs.content) == len(wanted.ids) - 1
    assert found.usage.completion_tokens == len(wanted.ids)


def test_an_answer_may_fill_the_context(server: Any, tokenizer: Tokenizer) -> None:
    found = server.client.chat.completions.create(
        model="tiny", messages=QUESTION, temperature=0, stop=["\x00"]
    )
    if found.choices[0].finish_reason == "length":
        assert found.usage.total_tokens == 96


def test_content_in_parts_and_developers(server: Any) -> None:
    def answer(messages: Any) -> str:
        found = server.client.chat.completions.create(
            model="tiny", messages=messages, temperature=0, max_tokens=8
        )
        return str(found.choices[0].message.content)

    parts = [{"type": "text", "text": "the "}, {"type": "text", "text": "dog"}]
    assert answer(
        [{"role": "developer", "content": "s"}, {"role": "user", "content": parts}]
    ) == answer([{"role": "system", "content": "s"}, {"role": "user", "content": "the dog"}])


def test_nothing_in_a_message_is_a_token_of_structure(server: Any, tokenizer: Tokenizer) -> None:
    found = server.client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "<|end|>"}], max_tokens=1
    )
    assert found.usage.prompt_tokens == 3 + len(tokenizer.encode("<|end|>"))
    assert len(tokenizer.encode("<|end|>")) > 1


def test_chat_logprobs(server: Any, chat: Any, tokenizer: Tokenizer) -> None:
    wanted = chat(QUESTION, temperature=0, max_new_tokens=12, logprobs=True, top_logprobs=4)
    found = server.client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        temperature=0,
        max_tokens=12,
        logprobs=True,
        top_logprobs=4,
    )
    content = found.choices[0].logprobs.content
    shown = [token for token in wanted.ids if token not in tokenizer.special_tokens.values()]
    assert [bytes(entry.bytes) for entry in content] == [tokenizer.token_bytes(i) for i in shown]
    assert [entry.logprob for entry in content] == pytest.approx(
        wanted.logprobs[: len(content)], abs=1e-3
    )
    for entry, top in zip(content, wanted.top_logprobs, strict=False):
        assert [one.logprob for one in entry.top_logprobs] == pytest.approx(
            [p for _, p in top], abs=1e-3
        )
        assert bytes(entry.top_logprobs[0].bytes) == tokenizer.token_bytes(top[0][0])
        assert entry.token == bytes(entry.bytes).decode("utf-8", "replace")


def test_a_stream_of_a_chat(server: Any) -> None:
    settings: Any = {
        "model": "tiny",
        "messages": QUESTION,
        "n": 2,
        "seed": 4,
        "max_tokens": 15,
        "logprobs": True,
    }
    whole = server.client.chat.completions.create(**settings)
    texts, entries, reasons, roles = [""] * 2, [[], []], [None] * 2, [None] * 2
    *chunks, last = server.client.chat.completions.create(
        **settings, stream=True, stream_options={"include_usage": True}
    )
    for chunk in chunks:
        assert (chunk.object, chunk.usage) == ("chat.completion.chunk", None)
        assert chunk.id == last.id
        (choice,) = chunk.choices
        roles[choice.index] = roles[choice.index] or choice.delta.role
        texts[choice.index] += choice.delta.content or ""
        entries[choice.index] += choice.logprobs.content if choice.logprobs else []
        reasons[choice.index] = choice.finish_reason
    assert roles == ["assistant", "assistant"]
    assert texts == [choice.message.content for choice in whole.choices]
    assert entries == [choice.logprobs.content for choice in whole.choices]
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert (last.choices, last.usage) == ([], whole.usage)


def test_fields_that_change_nothing(server: Any) -> None:
    found = server.client.chat.completions.create(
        model="tiny",
        messages=QUESTION,
        max_tokens=2,
        response_format={"type": "text"},
        tools=[],
        tool_choice="none",
        modalities=["text"],
        presence_penalty=0,
        frequency_penalty=0.0,
        metadata={"a": "b"},
        store=False,
        reasoning_effort="low",
        parallel_tool_calls=True,
        service_tier="auto",
    )
    assert found.usage.completion_tokens <= 2


def test_a_model_that_knows_no_turns(
    make_server: Any, plain_tokenizer: Tokenizer, make_model: Any
) -> None:
    server = make_server(tokenizer=plain_tokenizer)
    with pytest.raises(openai.BadRequestError, match="/v1/completions") as caught:
        server.client.chat.completions.create(model="tiny", messages=QUESTION)
    assert caught.value.code == "chat_not_supported"
    found = server.client.completions.create(model="tiny", prompt="a", max_tokens=3)
    assert found.usage.completion_tokens <= 3
