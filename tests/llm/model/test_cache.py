from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from firsthand.llm.model.cache import KVCache
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.parts import Cache
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.parts import FAST, REFERENCE

torch.set_num_threads(1)
SMALL = {"vocab_size": 31, "context": 40, "d_model": 24, "n_layers": 2, "n_heads": 4, "d_ff": 20}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gqa": {"n_kv_heads": 2},
    "mqa": {"n_kv_heads": 1, "rope_pairing": "interleaved"},
    "qk-norm": {"qk_norm": True, "n_kv_heads": 2},
    "learned": {"positions": "learned", "norm": "layer", "feed_forward": "gelu", "bias": True},
    "sinusoidal": {"positions": "sinusoidal"},
    "alibi": {"positions": "alibi", "n_kv_heads": 2},
    "none": {"positions": "none", "norm_placement": "post"},
    "window": {"window": 5, "n_kv_heads": 2},
    "window-1": {"window": 1},
    "window-alibi": {"window": 7, "positions": "alibi"},
    "window-wide": {"window": 64},
    "neighbours": {"neighbours": 3},
    "neighbours-window": {"neighbours": 6, "window": 2},
}


def _model(name: str, parts: Any = FAST, **more: Any) -> Transformer:
    config = ModelConfig(**{**SMALL, **VARIANTS[name], **more})
    model = Transformer(config, parts, seed=3).double()
    with torch.no_grad():
        for parameter in model.parameters():
            # Far from the first weights, so that no path is too faint to be seen.
            parameter += 0.2 * torch.randn(parameter.shape, generator=torch.manual_seed(1))
    return model


def _tokens(batch: int, seq: int) -> Tensor:
    return torch.randint(31, (batch, seq), generator=torch.Generator().manual_seed(seq))


@pytest.mark.parametrize("parts", [REFERENCE, FAST], ids=["reference", "fast"])
@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("sizes", [[1] * 40, [17, 1, 1, 1, 9, 1, 10], [40]])
def test_cached_equals_uncached_at_every_position(name: str, sizes: list[int], parts: Any) -> None:
    model, tokens = _model(name, parts), _tokens(2, 40)
    cache = model.new_cache(2, piece=4)
    with torch.no_grad():
        whole = model(tokens)
        pieces = [model(piece, cache=cache) for piece in torch.split(tokens, sizes, dim=1)]
    assert cache.length == 40
    torch.testing.assert_close(torch.cat(pieces, dim=1), whole, rtol=0, atol=1e-10)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(1, 5), st.integers(1, 9))
def test_neighbours_across_calls(sizes: list[int], window: int, neighbours: int) -> None:
    model, tokens = _model("plain", neighbours=neighbours, window=window), _tokens(2, sum(sizes))
    cache = model.new_cache(2, piece=2)
    with torch.no_grad():
        pieces = [model(part, cache=cache) for part in torch.split(tokens, sizes, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=0, atol=1e-10)


def test_neighbours_after_a_rewind_and_with_fewer_rows() -> None:
    model, tokens = _model("neighbours"), _tokens(3, 12)
    cache = model.new_cache(3)
    assert isinstance(cache, KVCache)
    with torch.no_grad():
        model(tokens, cache=cache)
        cache.rewind(8)
        cache.keep([2, 0])
        kept = tokens[[2, 0]]
        kept[:, 8:] = (kept[:, 8:] + 1) % 31
        again = model(kept[:, 8:], cache=cache)
        torch.testing.assert_close(again, model(kept)[:, 8:], rtol=0, atol=1e-10)


def test_neighbours_of_padded_rows() -> None:
    model, tokens = _model("neighbours"), _tokens(2, 12)
    starts = torch.tensor([0, 5])
    cache = model.new_cache(2)
    with torch.no_grad():
        sizes = [6, 1, 1, 4]
        pieces = [
            model(part, cache=cache, starts=starts) for part in torch.split(tokens, sizes, dim=1)
        ]
        padded = torch.cat(pieces, dim=1)
        for row, start in enumerate(starts.tolist()):
            alone = model(tokens[row : row + 1, start:])
            torch.testing.assert_close(padded[row : row + 1, start:], alone, rtol=0, atol=1e-10)


@settings(max_examples=30)
@given(st.lists(st.integers(1, 9), min_size=1, max_size=8), st.integers(1, 9), st.integers(1, 5))
def test_a_ring_of_any_size(sizes: list[int], window: int, piece: int) -> None:
    model, tokens = _model("gqa", window=window, context=99), _tokens(1, sum(sizes))
    cache = model.new_cache(1, piece=piece)
    with torch.no_grad():
        pieces = [model(part, cache=cache) for part in torch.split(tokens, sizes, dim=1)]
        torch.testing.assert_close(torch.cat(pieces, dim=1), model(tokens), rtol=0, atol=1e-10)


def test_a_ring_runs_past_the_context() -> None:
    """RoPE sees distances alone: the text may be longer than any table."""
    model, long = _model("window"), _model("window", context=120)
    tokens, cache = _tokens(1, 100), model.new_cache(1, piece=3)
    with torch.no_grad():
        cached = torch.cat([model(t, cache=cache) for t in torch.split(tokens, 3, dim=1)], dim=1)
        torch.testing.assert_close(cached, long(tokens), rtol=0, atol=1e-10)


def test_bytes_are_those_of_the_formula() -> None:
    model = _model("gqa").float()
    cache = model.new_cache(3, 40)
    # keys and values, layers, batch, key heads, slots, width, bytes of a float32
    assert cache.nbytes == 2 * 2 * 3 * 2 * 40 * 6 * 4
    ring = _model("window").new_cache(3, piece=4, dtype=torch.float16)
    assert ring.nbytes == 2 * 2 * 3 * 2 * (5 + 4 - 1) * 6 * 2


def test_nothing_is_allocated_after_the_start() -> None:
    cache = _cache(capacity=8)
    places = (cache.keys.data_ptr(), cache.values.data_ptr())
    for step in range(8):
        keys, values = cache.append(0, *_new(step, 1))
        cache.advance(1)
        assert (keys.data_ptr(), values.data_ptr()) == places
        assert keys.shape[2] == step + 1


def test_slots_of_a_ring() -> None:
    cache = _cache(capacity=5, window=3)
    assert cache.piece == 3
    for start, new in ((0, 2), (2, 3), (5, 3)):
        keys, _ = cache.append(1, *_new(start, new))
        positions = cache.positions(new)
        assert torch.equal(keys[0, 0, :, 0].long(), positions)
        cache.advance(new)
    assert positions.tolist() == [5, 6, 7, 3, 4]


def test_a_full_cache_is_in_order() -> None:
    cache = _cache(capacity=6)
    assert cache.positions(4).tolist() == [0, 1, 2, 3]
    cache.append(0, *_new(0, 4))
    cache.advance(4)
    cache.rewind(2)
    keys, _ = cache.append(0, *_new(10, 1))
    assert keys[0, 0, :, 0].tolist() == [0.0, 1.0, 10.0]


@pytest.mark.parametrize("attempt", ["overfull", "ring-piece", "sizes", "window", "rewind", "ring"])
def test_what_a_cache_refuses(attempt: str) -> None:
    full, ring = _cache(capacity=4), _cache(capacity=4, window=3)
    attempts: dict[str, Any] = {
        "overfull": lambda: full.append(0, *_new(0, 5)),
        "ring-piece": lambda: ring.append(0, *_new(0, 3)),
        "sizes": lambda: _cache(capacity=0),
        "window": lambda: _cache(capacity=4, window=5),
        "rewind": lambda: full.rewind(1),
        "ring": lambda: ring.rewind(0),
    }
    with pytest.raises(ValueError, match=r"do not fit|cannot"):
        attempts[attempt]()


def test_a_learners_cache_takes_its_place() -> None:
    """Any class with the contract will do; here one that joins arrays, as a beginner writes it."""

    class Joining:
        def __init__(self, *, layers: int, window: int = 0, **sizes: Any) -> None:
            self.pairs: list[tuple[Tensor, Tensor] | None] = [None] * layers
            self.length, self.window, self.piece, self.nbytes = 0, window, 10**9, 0

        def append(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
            old = self.pairs[layer]
            pair = (keys, values)
            if old is not None:
                pair = (torch.cat([old[0], keys], dim=2), torch.cat([old[1], values], dim=2))
            self.pairs[layer] = pair
            return pair

        def positions(self, new: int = 0) -> Tensor:
            return torch.arange(self.length + new)

        def advance(self, new: int) -> None:
            self.length += new

    from dataclasses import replace

    model, tokens = _model("gqa", replace(FAST, kv_cache=Joining)), _tokens(2, 12)
    cache: Cache = model.new_cache(2)
    with torch.no_grad():
        parts = [model(t, cache=cache) for t in torch.split(tokens, 5, dim=1)]
        torch.testing.assert_close(torch.cat(parts, dim=1), model(tokens), rtol=0, atol=1e-10)


def _cache(capacity: int, window: int = 0) -> KVCache:
    return KVCache(layers=2, batch=1, kv_heads=1, capacity=capacity, width=2, window=window)


def _new(start: int, new: int) -> tuple[Tensor, Tensor]:
    """Keys and values that hold their own position."""
    keys = (
        torch.arange(start, start + new, dtype=torch.float32)
        .view(1, 1, new, 1)
        .expand(-1, -1, -1, 2)
    )
    return keys, keys + 0.5
