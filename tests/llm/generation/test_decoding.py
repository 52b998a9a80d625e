"""Requests in, records out: text, reasons, seeds, log-probabilities and what is refused."""

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch

from firsthand.llm.data.preparation import END_OF_TEXT as DATA_END_OF_TEXT
from firsthand.llm.generation.decoding import Request, generate, requests, stream
from firsthand.llm.generation.errors import GenerationError
from firsthand.llm.generation.prompts import END_OF_TEXT
from firsthand.llm.generation.sampling import Sampling
from firsthand.llm.model.settings import SettingsError, build, to_record
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE
from firsthand.llm.tokenizer.errors import TokenizerError
from firsthand.llm.tokenizer.tokenizer import Tokenizer

Made = Callable[..., Transformer]
END = 256


@pytest.fixture
def model(make_model: Made) -> Transformer:
    return make_model(vocab_size=257, n_layers=1)


def test_what_is_generated_is_what_was_trained(tokenizer: Tokenizer) -> None:
    """A model that has learnt one document by heart writes it and ends it."""
    from firsthand.llm.model.config import ModelConfig

    document = "caf\u00e9 au lait\nQ: what next"
    config = ModelConfig(vocab_size=257, context=32, d_model=48, n_layers=1, n_heads=2)
    model = Transformer(config, FAST)
    ids = torch.tensor([[END, *tokenizer.encode(document), END]])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        model.loss(ids[:, :-1], ids[:, 1:]).mean.backward()
        optimizer.step()
    greedy = Sampling(temperature=0.0)
    (whole, rest, cut) = generate(
        model,
        [
            Request(prompt="", sampling=greedy),
            Request(prompt=[END, *tokenizer.encode("caf\u00e9 au ")], sampling=greedy),
            Request(prompt="", sampling=replace(greedy, stop=("\nQ:", "tx"))),
        ],
        tokenizer=tokenizer,
    )
    assert (whole.text, whole.reason, whole.prompt) == (document, "end", (END,))
    assert whole.ids == (*tokenizer.encode(document), END)
    assert (rest.text, rest.reason) == ("lait\nQ: what next", "end")
    assert (cut.text, cut.reason) == ("caf\u00e9 au lait", "stop")
    assert tokenizer.decode(cut.ids) == "caf\u00e9 au lait\nQ:"
    pieces = [
        p.text for p in stream(model, "", replace(greedy, stop=("\nQ:",)), tokenizer=tokenizer)
    ]
    # One token a byte: é has two, and the stop string's are held back.
    assert pieces == [*"caf", "", "\u00e9", *" au lait", "", "", ""]


def test_end_of_text_is_that_of_the_data() -> None:
    assert END_OF_TEXT == DATA_END_OF_TEXT


def test_texts_agree_with_ids(model: Transformer, tokenizer: Tokenizer) -> None:
    results = generate(model, ["ab", "c"], Sampling(max_new_tokens=20), tokenizer=tokenizer)
    for result in results:
        shown = [token for token in result.ids if token != END]
        assert result.text == tokenizer.decode(shown)
    assert results[0].prompt == tuple(tokenizer.encode("ab"))


def test_seeds_and_streams(make_model: Made) -> None:
    model, sampling = make_model(), Sampling(max_new_tokens=8, seed=1)
    first = [r.ids for r in generate(model, [[1]] * 3, sampling)]
    assert first == [r.ids for r in generate(model, [[1]] * 3, sampling)]
    assert len(set(first)) == 3
    assert first != [r.ids for r in generate(model, [[1]] * 3, replace(sampling, seed=2))]
    drawn = {generate(model, [[1]], replace(sampling, seed=-1))[0].ids for _ in range(3)}
    assert len(drawn) == 3
    asked = requests([[1], [2]], sampling, samples=2)
    assert [(r.prompt, r.stream) for r in asked] == [([1], 0), ([1], 1), ([2], 2), ([2], 3)]


def test_reference_parts_choose_the_same_tokens(make_model: Made) -> None:
    """Without gradients the fast parts take other ways than in training."""
    sampling = Sampling(
        temperature=0.9, top_k=12, top_p=0.9, min_p=0.01, repetition_penalty=1.2, logprobs=True
    )
    prompts = [[1], [2, 3]]
    fast, plain = (
        generate(make_model(parts=parts), prompts, sampling) for parts in (FAST, REFERENCE)
    )
    assert [r.ids for r in fast] == [r.ids for r in plain]
    for one, other in zip(fast, plain, strict=True):
        assert one.logprobs == pytest.approx(other.logprobs, abs=1e-9)


def test_a_learners_parts_are_used(make_model: Made) -> None:
    called: dict[str, int] = {}

    def counting(name: str) -> Callable[..., Any]:
        def part(*arguments: Any) -> Any:
            called[name] = called.get(name, 0) + 1
            return getattr(FAST, name)(*arguments)

        return part

    names = [
        "penalize_repetition",
        "scale_by_temperature",
        "keep_top_k",
        "keep_top_p",
        "keep_min_p",
        "draw",
    ]
    model = make_model(parts=replace(FAST, **{name: counting(name) for name in names}))
    sampling = Sampling(
        temperature=0.9, top_k=5, top_p=0.9, min_p=0.01, repetition_penalty=1.2, max_new_tokens=4
    )
    generate(model, [[1], [2]], sampling)
    assert called == dict.fromkeys(names, 4)
    speculative = make_model(parts=replace(FAST, accept_drafted=counting("accept_drafted")))
    generate(speculative, [[1]], Sampling(max_new_tokens=4), draft=speculative, draft_tokens=1)
    assert called["accept_drafted"] == 2


def test_logprobs_are_those_before_the_filters(make_model: Made) -> None:
    model = make_model()
    sampling = Sampling(temperature=0.5, top_k=4, max_new_tokens=6, top_logprobs=40)
    (result,) = generate(model, [[1, 2, 3]], sampling)
    text = torch.tensor([result.prompt + result.ids])
    with torch.no_grad():
        logits = model(text)[0, 2:]
    for i, token in enumerate(result.ids):
        model_logprobs = torch.log_softmax(logits[i], dim=-1)
        assert result.logprobs[i] == pytest.approx(model_logprobs[token].item(), abs=1e-9)
        assert len(result.top_logprobs[i]) == 31
        assert math.fsum(math.exp(p) for _, p in result.top_logprobs[i]) == pytest.approx(1)
        best, ids = logits[i].topk(4)
        assert [t for t, _ in result.top_logprobs[i][:4]] == ids.tolist()
        drawn = torch.log_softmax(best / 0.5, dim=-1)[ids.tolist().index(token)].item()
        assert result.sampled_logprobs[i] == pytest.approx(drawn, abs=1e-9)


def test_only_those_who_ask_get_logprobs(make_model: Made) -> None:
    asked = [
        Request(prompt=[1], sampling=Sampling(max_new_tokens=3, **options))
        for options in ({}, {"logprobs": True}, {"top_logprobs": 2})
    ]
    none, chosen, top = generate(make_model(), asked)
    assert (none.logprobs, none.sampled_logprobs, none.top_logprobs) == ((), (), ())
    assert len(chosen.logprobs) == 3
    assert chosen.top_logprobs == ((), (), ())
    assert [len(t) for t in top.top_logprobs] == [2, 2, 2]


def test_rows_of_the_model_that_are_no_tokens_never_come(
    make_model: Made, tokenizer: Tokenizer
) -> None:
    model = make_model(vocab_size=288)
    with torch.no_grad():
        model.embedding.weight[257:] *= 50
    for draft in (None, model):
        results = generate(
            model, ["a"] * 4, Sampling(max_new_tokens=9), tokenizer=tokenizer, draft=draft
        )
        assert max(max(r.ids) for r in results) <= END


def test_prompts_of_any_integer_type(make_model: Made) -> None:
    model, sampling = make_model(), Sampling(temperature=0.0, max_new_tokens=3)
    expected = generate(model, [[3, 4]], sampling)[0].ids
    array = np.array([3, 4], np.uint32)
    for prompts in ([3, 4], (3, 4), array, [array], [torch.tensor([3, 4])]):
        (result,) = generate(model, prompts, sampling)  # type: ignore[arg-type]
        assert result.ids == expected
    assert generate(model, [], sampling) == []


@pytest.mark.parametrize(
    ("prompt", "with_tokenizer", "error", "message"),
    [
        ([257], True, GenerationError, "prompt 1: id 257 at position 0 .* from 0 to 256"),
        ([3, -1], True, GenerationError, "prompt 1: id -1 at position 1"),
        ([], False, GenerationError, "empty"),
        ("text", False, GenerationError, "needs a tokenizer"),
        ([1] * 40, True, GenerationError, "has 40 tokens, and the context holds 40"),
        ("\ud800", True, TokenizerError, "surrogate"),
    ],
)
def test_prompts_that_are_refused(
    prompt: Any,
    with_tokenizer: bool,
    error: type[Exception],
    message: str,
    model: Transformer,
    tokenizer: Tokenizer,
) -> None:
    """Before anything is computed, and before the pieces are read."""
    with pytest.raises(error, match=message):
        stream(model, [[1], prompt], tokenizer=tokenizer if with_tokenizer else None)


def test_a_long_prompt_can_lose_its_beginning(make_model: Made) -> None:
    model, long = make_model(), [i % 31 for i in range(100)]
    few, many = (
        generate(model, [long, [1]], Sampling(max_new_tokens=n), truncate="left")[0]
        for n in (5, 99)
    )
    assert few.prompt == tuple(long[-35:])
    assert many.prompt == tuple(long[-20:])
    assert (len(few.ids), len(many.ids), many.reason) == (5, 20, "length")
    (fits,) = generate(model, [long[:39]], Sampling(max_new_tokens=5), truncate="left")
    assert (len(fits.prompt), len(fits.ids)) == (39, 1)


def test_other_things_that_are_refused(
    model: Transformer, make_model: Made, tokenizer: Tokenizer
) -> None:
    with pytest.raises(GenerationError, match="stop strings need a tokenizer"):
        generate(model, [[1]], Sampling(stop=("x",)))
    with pytest.raises(GenerationError, match="257 tokens and the model 31"):
        generate(make_model(), ["a"], tokenizer=tokenizer)
    for damage in (math.nan, math.inf):
        broken = make_model()
        with torch.no_grad():
            broken.embedding.weight[5] = damage
        for sampling in (Sampling(), Sampling(temperature=0.0), Sampling(logprobs=True)):
            for draft in (None, make_model()):
                with pytest.raises(GenerationError, match="not finite"):
                    generate(broken, [[5], [1, 2]], sampling, draft=draft)


@pytest.mark.parametrize(
    "bad",
    [
        {"temperature": -1.0},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"temperature": 1e-9},
        {"top_k": -1},
        {"top_p": 0.0},
        {"top_p": 1.1},
        {"top_p": math.nan},
        {"min_p": -0.1},
        {"min_p": 2.0},
        {"repetition_penalty": 0.0},
        {"repetition_penalty": math.inf},
        {"max_new_tokens": 0},
        {"seed": -2},
        {"top_logprobs": -1},
        {"stop": ("",)},
        {"stop": "word"},
    ],
)
def test_settings_that_are_refused(bad: dict[str, Any]) -> None:
    (name,) = bad
    with pytest.raises(SettingsError, match=name):
        Sampling(**bad)


def test_settings_are_a_table_of_a_file() -> None:
    sampling = Sampling(temperature=0.5, stop=("a", "b"), seed=3)
    assert build(Sampling, to_record(sampling)) == sampling
    assert {field.name for field in fields(Sampling)} == set(to_record(sampling))


def test_counts_and_times(make_model: Made) -> None:
    for draft in (None, make_model(n_layers=1)):
        (result,) = generate(make_model(), [[1, 2]], Sampling(max_new_tokens=9), draft=draft)
        assert result.prefill_seconds > 0
        assert result.tokens_per_second == pytest.approx(8 / result.decode_seconds)
