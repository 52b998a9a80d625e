"""The INT8 cache, against rounding vector by vector, and under everything a cache does."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from firsthand.llm.model.cache import KVCache
from firsthand.llm.quantization.cache import QuantizedCache, Rounding, rounded


def _new(seed: int, new: int, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 2, new, 6)
    return torch.randn(shape, generator=generator), torch.randn(shape, generator=generator)


def _cache(capacity: int = 12, **more: int) -> QuantizedCache:
    return QuantizedCache(layers=2, batch=2, kv_heads=2, capacity=capacity, width=6, **more)


def test_each_vector_has_its_own_scale() -> None:
    x = torch.tensor([[1.0, -2.54, 0.3], [0, 0, 0], [1e3, 10, -4]])
    integers, scales = rounded(x)
    assert integers.dtype == torch.int8
    assert scales.shape == (3, 1)
    for row, found, scale in zip(x.double(), integers, scales[:, 0].double(), strict=True):
        peak = row.abs().max()
        assert float(scale) == pytest.approx(float(peak) / 127, rel=1e-6)
        expected = [round(float(127 * v / peak)) for v in row] if peak else [0, 0, 0]
        assert found.tolist() == expected


@given(st.integers(0, 10**6), st.integers(1, 5))
def test_no_value_is_further_off_than_half_a_step(seed: int, new: int) -> None:
    keys, values = _new(seed, new)
    read = _cache().append(0, keys, values)
    for exact, found in zip((keys, values), read, strict=True):
        step = exact.abs().amax(dim=-1, keepdim=True) / 127
        assert ((exact - found).abs() <= step / 2 * (1 + 1e-4)).all()
        assert (exact != found).any()


def test_what_a_pass_without_a_cache_sees_is_what_the_cache_returns() -> None:
    keys, values = _new(3, 7)
    for one, other in zip(
        Rounding().append(0, keys, values), _cache().append(0, keys, values), strict=True
    ):
        assert torch.equal(one, other)


@settings(max_examples=25)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=1, max_size=9),
    window=st.sampled_from([0, 3, 5]),
)
def test_slots_are_those_of_the_float_cache(sizes: list[int], window: int) -> None:
    """A float cache that is given the rounded vectors holds the same at every moment."""
    capacity = window + 3 if window else sum(sizes)
    cache = _cache(capacity=capacity, window=window)
    plain = KVCache(layers=2, batch=2, kv_heads=2, capacity=capacity, width=6, window=window)
    for seed, size in enumerate(sizes):
        for start in range(0, size, 3):
            new = min(3, size - start)
            for layer in (0, 1):
                keys, values = _new(100 * layer + 10 * seed + start, new)
                found = cache.append(layer, keys, values)
                expected = plain.append(layer, *Rounding().append(layer, keys, values))
                assert torch.equal(found[0], expected[0])
                assert torch.equal(found[1], expected[1])
            assert torch.equal(cache.positions(new), plain.positions(new))
            cache.advance(new)
            plain.advance(new)
    assert cache.length == plain.length


def test_after_a_rewind_and_with_other_rows() -> None:
    cache = _cache()
    first, second, third = _new(1, 5), _new(2, 2), _new(3, 1, batch=1)
    cache.append(0, *first)
    cache.advance(5)
    cache.rewind(3)
    cache.append(0, *second)
    cache.advance(2)
    cache.keep([1])
    keys, _ = cache.append(0, *third)
    joined = torch.cat([first[0][1:, :, :3], second[0][1:], third[0]], dim=2)
    assert torch.equal(keys, Rounding().append(0, joined, joined)[0])


def test_bytes_are_counted() -> None:
    # keys and values, layers, batch, heads, slots, and for each a byte a number and a scale
    assert _cache().nbytes == 2 * 2 * 2 * 2 * 12 * (6 + 4)
    assert _cache(neighbours=3).nbytes == 2 * 2 * 2 * 2 * 12 * (6 + 4) + 2 * 12 * 8


def test_it_gives_back_the_type_that_was_asked_for() -> None:
    cache = QuantizedCache(layers=1, batch=2, kv_heads=2, capacity=4, width=6, dtype=torch.bfloat16)
    keys, values = (x.bfloat16() for x in _new(0, 2))
    assert {x.dtype for x in cache.append(0, keys, values)} == {torch.bfloat16}
    assert cache.keys.dtype == torch.int8


def test_too_many_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="5 tokens do not fit"):
        _cache(capacity=4).append(0, *_new(0, 5))
