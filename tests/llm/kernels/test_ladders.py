"""Each rung of each ladder against its oracle in float64, over shapes and seeds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from firsthand.llm.kernels.attention import with_numpy as numpy_attention
from firsthand.llm.kernels.attention import with_torch as torch_attention
from firsthand.llm.kernels.ladder import Ladder, Shape
from firsthand.llm.kernels.ladders import LADDERS
from firsthand.llm.kernels.norms.with_torch import fused_rms_norm, rms_norm
from firsthand.llm.kernels.rope.with_torch import complex_rotate_interleaved, rotate_interleaved
from firsthand.llm.kernels.softmax import with_numpy as numpy_softmax

torch.set_num_threads(1)

_few = st.integers(1, 6)
_rows = st.integers(1, 9)
_even = st.integers(1, 6).map(lambda n: 2 * n)


@st.composite
def _attention_shapes(draw: st.DrawFn) -> Shape:
    kv_heads, group = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    queries = draw(st.integers(1, 200))
    return {
        "batch": draw(st.integers(1, 2)),
        "heads": kv_heads * group,
        "kv_heads": kv_heads,
        "queries": queries,
        "keys": queries + draw(st.sampled_from([0, 0, 1, 70])),
        "width": draw(_few),
    }


SHAPES: dict[str, st.SearchStrategy[Shape]] = {
    "softmax": st.fixed_dictionaries({"rows": _rows, "columns": st.integers(1, 300)}),
    "rms_norm": st.fixed_dictionaries({"rows": _rows, "width": st.integers(1, 40)}),
    # With two features or fewer LayerNorm knows only signs: its gradient is 0 up to eps.
    "layer_norm": st.fixed_dictionaries({"rows": _rows, "width": st.integers(3, 40)}),
    "rope_half": st.fixed_dictionaries(
        {"batch": _few, "heads": _few, "positions": _few, "width": _even}
    ),
    "rope_interleaved": st.fixed_dictionaries(
        {"batch": _few, "heads": _few, "positions": _few, "width": _even}
    ),
    "swiglu": st.fixed_dictionaries({"rows": _rows, "width": _rows}),
    "cross_entropy": st.fixed_dictionaries(
        {"tokens": st.integers(1, 600), "width": _few, "vocabulary": st.integers(1, 30)}
    ),
    "attention": _attention_shapes(),
    # The compiled loop works on blocks of 4096.
    # Widths around the padding, rows and columns around the tiles.
    "int8_matmul": st.fixed_dictionaries(
        {"m": st.integers(1, 9), "n": st.integers(1, 70), "k": st.integers(1, 200)}
    ),
    "adamw": st.fixed_dictionaries({"elements": st.integers(1, 17) | st.integers(4090, 9001)}),
}
DIFFERENTIABLE = [name for name, ladder in LADDERS.items() if ladder.differentiable]


def test_every_ladder_has_shapes() -> None:
    assert set(SHAPES) == set(LADDERS)


@pytest.mark.parametrize("name", LADDERS)
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 9999))
def test_rungs_against_the_oracle(name: str, data: st.DataObject, seed: int) -> None:
    ladder, shape = LADDERS[name], data.draw(SHAPES[name])
    inputs, cotangent = _drawn(ladder, shape, seed)
    gradients = bool(ladder.differentiable)
    expected = ladder.oracle(**inputs, **({"cotangent": cotangent} if gradients else {}))
    # Triton's rungs have tests of their own: its interpreter would take minutes here.
    for rung in ladder.rungs:
        if rung.name.startswith("triton"):
            continue
        for dtype, tolerance in (("float64", 1e-10), ("float32", 3e-4)):
            # Prepared for each call: a rung may work in place.
            given_cotangent = rung.prepare({"cotangent": cotangent}, dtype)["cotangent"]
            results = ladder.run(rung, rung.prepare(inputs, dtype), given_cotangent)
            alone = ladder.run(rung, rung.prepare(inputs, dtype))
            assert len(results) == len(expected)
            assert len(results) == len(alone) + len(ladder.differentiable)
            np.testing.assert_allclose(np.asarray(alone[0]), np.asarray(results[0]), rtol=1e-5)
            for result, right in zip(results, expected, strict=True):
                assert str(np.asarray(result).dtype) == dtype
                np.testing.assert_allclose(
                    np.asarray(result),
                    right,
                    rtol=tolerance,
                    atol=tolerance * max(1.0, float(np.abs(right).max())),
                    err_msg=f"{rung.name} {dtype}",
                )


@pytest.mark.parametrize("name", DIFFERENTIABLE)
def test_oracle_against_central_differences(name: str) -> None:
    """The oracles are checked by what no rung shares with them."""
    shapes: dict[str, Shape] = {
        "cross_entropy": {"tokens": 5, "width": 3, "vocabulary": 7},
        "attention": {"batch": 1, "heads": 4, "kv_heads": 2, "queries": 3, "keys": 5, "width": 2},
        "softmax": {"rows": 2, "columns": 5},
        "rope_half": {"batch": 1, "heads": 2, "positions": 3, "width": 4},
        "rope_interleaved": {"batch": 1, "heads": 2, "positions": 3, "width": 4},
    }
    ladder = LADDERS[name]
    inputs, cotangent = _drawn(ladder, shapes.get(name, {"rows": 3, "width": 5}), seed=3)
    _, *gradients = ladder.oracle(**inputs, cotangent=cotangent)

    def scalar(**changed: Any) -> float:
        output = ladder.oracle(**{**inputs, **changed}, cotangent=cotangent)[0]
        return float(np.sum(output * cotangent))

    for changed_name, gradient in zip(ladder.differentiable, gradients, strict=True):
        numeric = _central_differences(scalar, changed_name, inputs[changed_name])
        np.testing.assert_allclose(gradient, numeric, atol=1e-7)


@pytest.mark.parametrize("name", LADDERS)
def test_costs(name: str) -> None:
    ladder = LADDERS[name]
    doubled = {**ladder.shape, next(iter(ladder.shape)): 2 * next(iter(ladder.shape.values()))}
    for costs in (ladder.flops, ladder.bytes_moved, *(rung.bytes_moved for rung in ladder.rungs)):
        forward = costs.of(ladder.shape, backward=False)
        both = costs.of(ladder.shape, backward=True)
        assert 0 < forward < both if ladder.differentiable else 0 < forward == both
        assert forward < costs.of(doubled, backward=False) <= 2 * forward
    least = ladder.bytes_moved.of(ladder.shape, backward=True)
    assert all(rung.bytes_moved.of(ladder.shape, backward=True) >= least for rung in ladder.rungs)


def test_unknown_rung_is_named() -> None:
    with pytest.raises(KeyError, match="softmax has no rung 'cuda'; it has numpy"):
        LADDERS["softmax"].rung("cuda")
    assert LADDERS["softmax"].rung("torch").library == "torch"


@pytest.mark.parametrize("block", [1, 7, 64])
def test_tiles_of_any_size(block: int) -> None:
    ladder = LADDERS["attention"]
    shape = {"batch": 1, "heads": 2, "kv_heads": 1, "queries": 23, "keys": 31, "width": 4}
    inputs, cotangent = _drawn(ladder, shape, seed=1)
    expected = ladder.oracle(**inputs, cotangent=cotangent)
    tiled = numpy_attention.tiled_attention_gradients(**inputs, cotangent=cotangent, block=block)
    leaves = [torch.from_numpy(inputs[n]).requires_grad_() for n in ("q", "k", "v")]
    output = torch_attention.tiled_attention(*leaves, block=block)
    gradients = torch.autograd.grad(output, leaves, torch.from_numpy(cotangent))
    for right, one, other in zip(expected, tiled, [output.detach(), *gradients], strict=True):
        np.testing.assert_allclose(one, right, atol=1e-12)
        np.testing.assert_allclose(other, right, atol=1e-12)


def test_online_softmax_of_large_and_unequal_blocks() -> None:
    x = np.concatenate([np.linspace(-900.0, 0.0, 150), np.linspace(900.0, 0.0, 101)])[None]
    np.testing.assert_allclose(
        numpy_softmax.online_softmax(x, block=40), numpy_softmax.softmax(x), atol=1e-15
    )


def test_fused_rms_norm_of_a_transposed_view() -> None:
    base = torch.randn(2, 5, 3, 8, dtype=torch.float64, generator=torch.manual_seed(0))
    x = base.transpose(1, 2).requires_grad_()
    weight = torch.linspace(0.5, 1.5, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(fused_rms_norm, (x, weight, 1e-5))
    torch.testing.assert_close(fused_rms_norm(x, weight), rms_norm(x, weight))


def test_complex_rotation_of_half_precision() -> None:
    x = torch.randn(3, 4, 6, generator=torch.manual_seed(0))
    angle = torch.linspace(0, 3, 12).view(4, 3)
    turned = complex_rotate_interleaved(x.bfloat16(), angle.cos(), angle.sin())
    assert turned.dtype == torch.bfloat16
    expected = rotate_interleaved(x, angle.cos(), angle.sin())
    torch.testing.assert_close(turned.float(), expected, atol=3e-2, rtol=1e-2)


def test_a_second_gradient_is_refused() -> None:
    x = torch.randn(3, 4, requires_grad=True)
    weight = torch.ones(4, requires_grad=True)
    (gradient,) = torch.autograd.grad(
        fused_rms_norm(x, weight).square().sum(), x, create_graph=True
    )
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def _drawn(ladder: Ladder, shape: Shape, seed: int) -> tuple[dict[str, Any], Any]:
    generator = np.random.default_rng(seed)
    inputs = ladder.inputs(shape, generator)
    output = ladder.run(ladder.rungs[0], ladder.rungs[0].prepare(inputs, "float64"))[0]
    return inputs, np.asarray(generator.standard_normal(np.shape(output)))


def _central_differences(scalar: Callable[..., float], name: str, x: Any) -> Any:
    gradient = np.zeros_like(x)
    for index in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[index] += 1e-5
        down[index] -= 1e-5
        gradient[index] = (scalar(**{name: up}) - scalar(**{name: down})) / 2e-5
    return gradient
