"""Where a token's time goes: the same numbers come out, and the parts are those of the whole."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from firsthand.llm.audit import engine_stages
from firsthand.llm.audit import waterfall as falls
from firsthand.llm.audit.ceilings import MachineCeilings
from firsthand.llm.audit.engine_stages import STAGES, stage_seconds
from firsthand.llm.audit.engine_waterfalls import int8_waterfall, predicted, torch_waterfall
from firsthand.llm.audit.errors import AuditError
from firsthand.llm.audit.latency import predicted_decode
from firsthand.llm.audit.torch_stages import timed_model
from firsthand.llm.audit.waterfall import SCHEDULER, prompt_text, spread
from firsthand.llm.inference.cpu.calls import ARRIVALS
from firsthand.llm.inference.cpu_engine import CPUEngine
from firsthand.llm.inference.opening import rounded
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST
from firsthand.llm.tokenizer import Tokenizer, train

CONFIG = ModelConfig(
    vocab_size=300, context=40, d_model=48, n_layers=2, n_heads=3, n_kv_heads=1, d_ff=80
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """Fewer tokens than the model has rows, which are none of its tokens."""
    text = "A text is read before the next word of it is written. " * 4
    return train([text], CONFIG.vocab_size, special_tokens=["<|endoftext|>"])


@pytest.fixture(scope="module")
def model() -> Transformer:
    """Grouped queries, a width that is no multiple of a cache line."""
    return Transformer(CONFIG, FAST, seed=3).eval()


@pytest.mark.parametrize("threads", [1, 2])
def test_the_timed_step_gives_the_engine_s_bits(model: Transformer, threads: int) -> None:
    nothing = np.zeros(1, np.int32)
    with CPUEngine(rounded(model), threads=threads) as engine:
        for position in range(9):
            at = np.array([position], np.int32)
            engine.forward(np.array([position * 7], np.int32), nothing, at, nothing)
        wanted = engine.forward(
            np.array([11], np.int32), nothing, np.array([9], np.int32), nothing
        ).copy()
        engine._work.logits[:] = 0
        found = stage_seconds(engine, 11, 9, 5)
        assert np.array_equal(engine._work.logits[:1], wanted)
        # And the engine goes on as if nothing had been.
        again = engine.forward(np.array([11], np.int32), nothing, np.array([9], np.int32), nothing)
        assert np.array_equal(again, wanted)
    assert found.shape == (5, len(STAGES))
    assert (found >= 0).all()
    assert (found.sum(axis=1) > 0).all()


def test_the_timed_stages_meet_at_a_place_of_their_numbers(
    model: Transformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Compiled code looks at no bounds: meeting behind the end let threads pass, now and then."""
    lengths = []

    def look(kernel: object, threads: int, tokens: int, passes: int, arguments: Any) -> None:
        lengths.append(next(len(given) for given in arguments(0) if type(given) is np.ndarray))

    monkeypatch.setattr(engine_stages, "run_together", look)
    with CPUEngine(rounded(model), threads=2) as engine:
        stage_seconds(engine, 11, 9, 5)
    assert lengths[0] > ARRIVALS


def test_a_timed_model_gives_the_model_s_numbers(model: Transformer) -> None:
    twin, watch = timed_model(model)
    tokens = torch.tensor([[3, 1, 4, 1, 5]])
    with torch.inference_mode():
        plain, timed = model.new_cache(1), twin.new_cache(1)
        assert torch.equal(model(tokens, cache=plain), twin(tokens, cache=timed))
    spent = watch.take()
    assert {name for name, seconds in spent.items() if seconds > 0} == set(spent)
    assert not any(watch.take().values())
    # The weights are shared, and the model itself is as it was.
    assert twin.embedding.weight.data_ptr() == model.embedding.weight.data_ptr()
    with torch.inference_mode():
        model(tokens)
    assert not any(watch.take().values())


def test_int8(model: Transformer, tokenizer: Tokenizer, ceilings: MachineCeilings) -> None:
    found = int8_waterfall(rounded(model), tokenizer, ceilings.cpu, seconds=0, threads=1)
    assert (found.name, found.key) == ("INT8 on the CPU engine", "cpu int8")
    names = [stage.name for stage in found.token]
    assert names == [*STAGES, "call", "sample", "detokenize", SCHEDULER]
    whole = math.fsum(stage.seconds for stage in found.token) + found.rest
    assert whole == pytest.approx(found.token_whole)
    # All that is predicted of a token stands beside a stage of the engine.
    told = math.fsum(stage.predicted or 0.0 for stage in found.token)
    expected = predicted_decode(CONFIG, ceilings.cpu, depth=found.depth, threads=1)
    assert told == pytest.approx(expected.seconds) == pytest.approx(found.predicted_token)
    assert found.first[1].predicted == found.predicted_first
    assert found.engine_seconds > 0


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_pytorch(model: Transformer, tokenizer: Tokenizer, dtype: str) -> None:
    found = torch_waterfall(model, tokenizer, dtype=dtype, seconds=0)
    names = [stage.name for stage in found.token]
    assert names[:3] == ["embedding", "norms", "queries, keys, values"]
    assert names[-4:] == ["between operations", "sample", "detokenize", SCHEDULER]
    assert all(stage.seconds >= 0 for stage in (*found.token, *found.first))
    assert found.predicted_token is None
    assert model.embedding.weight.dtype == torch.float32


def test_a_window_is_timed_without_going_back(tokenizer: Tokenizer) -> None:
    config = replace(CONFIG, window=8, context=200)
    found = torch_waterfall(Transformer(config, FAST).eval(), tokenizer, seconds=0)
    assert found.token_whole > 0


def test_no_prediction_without_a_rate(
    model: Transformer, tokenizer: Tokenizer, ceilings: MachineCeilings
) -> None:
    found = torch_waterfall(model, tokenizer, seconds=0)
    fewer = replace(ceilings.cpu, flop_rates={"int8": 1e11})
    assert predicted(found, model, fewer) == found
    assert predicted(found, model, ceilings.cpu).predicted_token is not None


def test_what_cannot_be_timed(model: Transformer, tokenizer: Tokenizer) -> None:
    with pytest.raises(AuditError, match="float32 or bfloat16"):
        torch_waterfall(model, tokenizer, dtype="int4")
    tiny = Transformer(replace(CONFIG, context=3), FAST).eval()
    with pytest.raises(AuditError, match="context of 3 tokens"):
        torch_waterfall(tiny, tokenizer, seconds=0)


def test_a_prompt_has_the_tokens_asked_for(tokenizer: Tokenizer) -> None:
    text, ids = prompt_text(tokenizer, 17)
    assert len(ids) == 17
    assert tokenizer.decode(ids) == text


def test_spread() -> None:
    assert spread([5.0]) == 0
    assert spread([1.0, 1.0, 1.0]) == 0
    assert spread([0.0, 0.0]) == 0
    assert spread([8.0, 9.0, 10.0, 11.0, 12.0]) == pytest.approx(0.15)


def test_a_part_of_a_long_prompt(model: Transformer) -> None:
    """A prompt that is longer than a call is read in several, and its last logits are wanted."""
    calls = []

    class Engine:
        config, slots, capacity, max_rows = CONFIG, 1, 40, 4

        def forward(self, tokens, slots, positions, wanted):  # type: ignore[no-untyped-def]
            calls.append((tokens.tolist(), positions.tolist(), wanted.tolist()))
            return np.zeros((len(wanted), 300), np.float32)

        def close(self) -> None:
            pass

    falls._read(Engine(), [1, 2, 3, 4, 5, 6])
    assert calls == [([1, 2, 3, 4], [0, 1, 2, 3], []), ([5, 6], [4, 5], [1])]
