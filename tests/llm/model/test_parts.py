"""Each part by itself: against an oracle, by hand, and the fast value against the reference."""

from collections.abc import Callable
from dataclasses import fields
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from firsthand.llm.model import attention as attention_module
from firsthand.llm.model.attention import attention, merge_heads, split_heads
from firsthand.llm.model.block import post_norm, pre_norm
from firsthand.llm.model.embedding import embed, vocabulary_logits
from firsthand.llm.model.feed_forward import gelu, relu_squared, swiglu
from firsthand.llm.model.neighbours import mix_neighbours
from firsthand.llm.model.norms import layer_norm, rms_norm
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.positions import alibi_slopes, rotary_angles
from firsthand.llm.model.visibility import visibility_bias
from firsthand.llm.parts import FAST, REFERENCE

torch.set_num_threads(1)


def _x(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def test_norms_against_torch() -> None:
    x, weight, bias = 3.0 * _x(2, 5, 7) + 1.0, _x(7, seed=1), _x(7, seed=2)
    torch.testing.assert_close(
        rms_norm(x, weight, 1e-3), functional.rms_norm(x, (7,), weight, 1e-3)
    )
    torch.testing.assert_close(
        layer_norm(x, weight, bias, 1e-3), functional.layer_norm(x, (7,), weight, bias, 1e-3)
    )
    torch.testing.assert_close(
        layer_norm(x, weight, None, 1e-3), functional.layer_norm(x, (7,), weight, None, 1e-3)
    )


def test_activations_against_torch() -> None:
    x = 4.0 * _x(3, 10)
    gate, up = x[:, :5], x[:, 5:]
    torch.testing.assert_close(swiglu(x), functional.silu(gate) * up)
    torch.testing.assert_close(gelu(x), functional.gelu(x, approximate="tanh"))
    torch.testing.assert_close(relu_squared(x), torch.where(x > 0, x * x, 0.0))


def test_embedding_reads_rows_and_logits_are_products() -> None:
    weight = _x(5, 3)
    tokens = torch.tensor([[4, 0]])
    assert torch.equal(embed(tokens, weight)[0, 0], weight[4])
    logits = vocabulary_logits(weight[None, 1:2], weight)
    torch.testing.assert_close(logits[0, 0, 3], weight[1] @ weight[3])
    with pytest.raises(IndexError):
        embed(torch.tensor([[5]]), weight)


def test_heads_are_neighbouring_features() -> None:
    x = torch.arange(12.0).view(1, 2, 6)
    heads = split_heads(x, 3)
    assert heads.shape == (1, 3, 2, 2)
    assert heads[0, 1].tolist() == [[2.0, 3.0], [8.0, 9.0]]
    assert heads.data_ptr() == x.data_ptr()
    assert torch.equal(merge_heads(heads), x)


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 9), st.integers(0, 5), st.integers(1, 5)
)
def test_attention_against_sdpa(
    kv_heads: int, group: int, queries: int, older: int, width: int
) -> None:
    q = _x(2, kv_heads * group, queries, width)
    k, v = _x(2, kv_heads, queries + older, width, seed=1), _x(2, kv_heads, queries + older, width)
    seen = torch.ones(queries, queries + older, dtype=torch.bool).tril(older)
    expected = functional.scaled_dot_product_attention(q, k, v, attn_mask=seen, enable_gqa=True)
    for part in (attention, FAST.attention):
        torch.testing.assert_close(part(q, k, v, None), expected)
        positions = torch.arange(queries + older)
        bias = visibility_bias(positions[older:], positions, 3, alibi_slopes(kv_heads * group))
        bias = bias.double()
        torch.testing.assert_close(
            part(q, k, v, bias),
            functional.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True),
        )


def test_attention_is_blind_to_the_future() -> None:
    q, k, v = _x(1, 2, 6, 4), _x(1, 2, 6, 4, seed=1), _x(1, 2, 6, 4, seed=2)
    before = attention(q, k, v)
    k[:, :, 4:], v[:, :, 4:] = 9.0, -9.0
    after = attention(q, k, v)
    assert torch.equal(before[:, :, :4], after[:, :, :4])
    assert not torch.allclose(before[:, :, 4:], after[:, :, 4:])


def test_wiring_by_hand() -> None:
    sublayers = [lambda x: x / 2, lambda x: x + 1, lambda x: x * 3, lambda x: x * x]
    x = torch.tensor([4.0])
    # 4 + (2 + 1) = 7; 7 + 21² = 448.
    assert pre_norm(x, *sublayers).item() == 448.0
    # (4 + 5) / 2 = 4.5; 3 (4.5 + 20.25) = 74.25.
    assert post_norm(x, *sublayers).item() == 74.25


def test_neighbours_by_hand() -> None:
    rows = torch.tensor([0.0, 0.0, 1.0, 10.0, 100.0]).view(1, 5, 1)
    weight = torch.tensor([[0.5], [2.0]])
    # 1, 10 + 0.5 · 1, 100 + 0.5 · 10 + 2 · 1
    assert mix_neighbours(rows, weight).flatten().tolist() == [1.0, 10.5, 107.0]
    same = torch.tensor([[[False, False], [True, False], [True, False]]])
    assert mix_neighbours(rows, weight, same).flatten().tolist() == [1.0, 10.5, 105.0]


PAIRS: dict[str, list[Any]] = {
    "cross_entropy": [_x(20, 4), _x(9, 4, seed=1), torch.arange(20) % 9],
    "rms_norm": [_x(2, 5, 6), _x(6, seed=1), 1e-5],
    "layer_norm": [_x(2, 5, 6), _x(6, seed=1), _x(6, seed=2), 1e-5],
    "rotate_half": [_x(2, 3, 5, 6), *rotary_angles(torch.arange(5), 6)],
    "rotate_interleaved": [_x(2, 3, 5, 6), *rotary_angles(torch.arange(5), 6)],
    "attention": [_x(2, 6, 5, 4), _x(2, 3, 5, 4, seed=1), _x(2, 3, 5, 4, seed=2), None],
    "swiglu": [_x(4, 6)],
    "gelu": [_x(4, 6)],
    "relu_squared": [_x(4, 6)],
    "token_logprobs": [_x(20, 4), _x(9, 4, seed=1), torch.arange(20) % 10 - 1],
}


def test_every_fast_part_is_compared() -> None:
    replaced = {
        field.name
        for field in fields(Parts)
        if getattr(FAST, field.name) is not getattr(REFERENCE, field.name)
    }
    # Updates without a gradient of their own: tests/llm/training/optimizers compares them.
    assert replaced - {"adamw", "orthogonalize"} == set(PAIRS)


@pytest.mark.parametrize("name", PAIRS)
def test_fast_equals_reference(name: str) -> None:
    reference = _value_and_gradients(getattr(REFERENCE, name), PAIRS[name])
    fast = _value_and_gradients(getattr(FAST, name), PAIRS[name])
    for one, other in zip(fast, reference, strict=True):
        torch.testing.assert_close(one, other)


def _value_and_gradients(part: Callable[..., Tensor], arguments: list[Any]) -> list[Tensor]:
    constant = {"rotate_half", "rotate_interleaved", "complex_rotate_interleaved"}
    given_arguments = [
        argument.detach().clone().requires_grad_()
        if isinstance(argument, Tensor) and argument.is_floating_point()
        else argument
        for argument in arguments
    ]
    leaves = [a for a in given_arguments if isinstance(a, Tensor) and a.requires_grad]
    if part.__name__.removeprefix("fused_") in constant:
        leaves = leaves[:1]
    value = part(*given_arguments)
    cotangent = torch.linspace(-1, 1, value.numel(), dtype=torch.float64).view(value.shape)
    return [value.detach(), *torch.autograd.grad(value, leaves, cotangent)]


def test_whose_code_runs_where() -> None:
    origins = REFERENCE.origins()
    assert origins["attention"] == f"{attention_module.__name__}.attention"
    assert origins["kv_cache"] == "firsthand.llm.model.cache.KVCache"
    assert set(origins) == {field.name for field in fields(Parts)}
