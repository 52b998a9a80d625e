"""Turns in a context that is never outgrown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from firsthand.llm.generation import decoding as in_torch
from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.inference.conversation import Conversation
from firsthand.llm.inference.scheduler import Scheduler
from firsthand.llm.inference.torch_engine import TorchEngine
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.tokenizer.chat import ChatTemplate
from firsthand.llm.tokenizer.tokenizer import Tokenizer

Talk = Callable[..., Conversation]


@pytest.fixture
def talk(model: Transformer, tokenizer: Tokenizer) -> Talk:
    def made(tokenizer: Tokenizer = tokenizer, system: str = "", **settings: Any) -> Conversation:
        scheduler = Scheduler(TorchEngine(model), tokenizer)
        sampling = Sampling(**{"temperature": 0, "max_new_tokens": 6, **settings})
        return Conversation(scheduler, sampling, system=system)

    return made


def said(talk: Conversation, text: str) -> str:
    return "".join(piece.text for piece in talk.say(text))


def prompt_of(talk: Conversation, text: str) -> tuple[int, ...]:
    (result,) = [piece.result for piece in talk.say(text) if piece.result is not None]
    return result.prompt


def test_the_model_sees_all_turns(talk: Talk, model: Transformer, tokenizer: Tokenizer) -> None:
    template = ChatTemplate(tokenizer)
    conversation = talk(system="Be short.")
    assert conversation.templated
    messages = [{"role": "system", "content": "Be short."}]
    for question in ("the dog?", "und?"):
        messages.append({"role": "user", "content": question})
        prompt = template.render(messages, ask=True).ids.tolist()
        end = [template.end, tokenizer.special_tokens["<|endoftext|>"]]
        sampling = Sampling(temperature=0, max_new_tokens=6)
        (wanted,) = in_torch.generate(
            model, [prompt], sampling, tokenizer=tokenizer, end_tokens=end
        )
        assert said(conversation, question) == wanted.text
        messages.append({"role": "assistant", "content": wanted.text})


def test_the_oldest_turns_make_room(talk: Talk, tokenizer: Tokenizer) -> None:
    conversation = talk(system="Be short.", max_new_tokens=10)
    system = ChatTemplate(tokenizer).render([{"role": "system", "content": "Be short."}]).ids
    dropped = []
    for number in range(12):
        prompt = prompt_of(conversation, f"the quick fox {number}")
        assert len(prompt) <= 96 - 10
        assert prompt[: len(system)] == tuple(system.tolist())
        assert prompt[len(system)] == tokenizer.special_tokens["<|user|>"]
        assert tokenizer.decode(prompt).endswith(f"the quick fox {number}<|end|><|assistant|>")
        dropped.append(conversation.dropped)
    assert dropped[0] == 0
    assert all(count % 2 == 0 for count in dropped)  # a question goes with its answer
    assert any(dropped)


def test_a_turn_that_is_too_long_does_not_count(talk: Talk) -> None:
    conversation = talk()
    first = prompt_of(conversation, "the dog")
    with pytest.raises(GenerationError, match=r"the turn has \d+ tokens, and the context holds 96"):
        conversation.say("word " * 100)
    assert prompt_of(conversation, "ok")[: len(first)] == first
    conversation.reset()
    assert prompt_of(conversation, "the dog") == first
    assert conversation.dropped == 0


def test_what_was_given_until_the_reader_stopped_is_kept(talk: Talk, tokenizer: Tokenizer) -> None:
    conversation = talk(max_new_tokens=30)
    pieces = conversation.say("the dog")
    half = next(pieces).text + next(pieces).text
    pieces.close()
    assert tokenizer.encode(half) == list(
        prompt_of(conversation, "go on")[len(prompt_of(talk(), "the dog")) :][
            : len(tokenizer.encode(half))
        ]
    )


def test_a_seed_gives_the_same_talk_and_not_the_same_answer(talk: Talk) -> None:
    settings = {"temperature": 1.5, "seed": 3, "max_new_tokens": 12}
    conversation = talk(**settings)
    answers = [said(conversation, "the dog") for _ in range(2)]
    other = talk(**settings)
    assert [said(other, "the dog") for _ in range(2)] == answers
    conversation.reset()
    assert said(conversation, "the dog") == answers[0]


def test_a_model_that_knows_no_turns_goes_on_with_the_text(
    talk: Talk, plain_tokenizer: Tokenizer, model: Transformer
) -> None:
    conversation = talk(tokenizer=plain_tokenizer, system="left out")
    assert not conversation.templated
    sampling = Sampling(temperature=0, max_new_tokens=6)
    (first,) = in_torch.generate(model, ["abc"], sampling, tokenizer=plain_tokenizer)
    assert said(conversation, "abc") == first.text
    kept = [i for i in first.ids if i != 256]
    assert prompt_of(conversation, "def") == tuple(plain_tokenizer.encode("abc") + kept) + tuple(
        plain_tokenizer.encode("def")
    )


def test_old_tokens_make_room(talk: Talk, plain_tokenizer: Tokenizer) -> None:
    conversation = talk(tokenizer=plain_tokenizer)
    prompt: tuple[int, ...] = ()
    for number in range(9):
        prompt = prompt_of(conversation, f"line number {number} ")
    assert conversation.dropped > 0
    assert len(prompt) == 90
    assert plain_tokenizer.decode(prompt).endswith("line number 8 ")
    with pytest.raises(GenerationError, match="96 tokens"):
        conversation.say("x" * 96)


def test_a_conversation_needs_a_tokenizer(model: Transformer) -> None:
    with pytest.raises(GenerationError, match="needs a tokenizer"):
        Conversation(Scheduler(TorchEngine(model)), Sampling())
