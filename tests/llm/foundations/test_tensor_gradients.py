import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from firsthand.llm.foundations.gradcheck import relative_error
from firsthand.llm.foundations.tensor_gradients import (
    index_backward,
    matmul_backward,
    max_backward,
    mean_backward,
    softmax_cross_entropy_backward,
    sum_backward,
    unbroadcast,
)

torch.set_num_threads(1)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=4)


@st.composite
def shapes_and_axes(draw: st.DrawFn) -> tuple[tuple[int, ...], int | tuple[int, ...] | None]:
    shape = draw(SHAPES)
    axes = st.integers(-len(shape), len(shape) - 1)
    several = st.lists(axes, min_size=1, unique_by=lambda axis: axis % len(shape)).map(tuple)
    return shape, draw(st.one_of(st.none(), axes, several))


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=1, max_dims=4, max_side=4))
def test_unbroadcast_undoes_broadcasting(shapes: hnp.BroadcastableShapes) -> None:
    shape = shapes.input_shapes[0]
    gradient = np.random.default_rng(0).normal(size=shapes.result_shape)
    point = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
    point.broadcast_to(shapes.result_shape).backward(torch.tensor(gradient))
    got = unbroadcast(gradient, shape)
    assert got.shape == shape
    assert relative_error(got, point.grad.numpy()) < 1e-9


def test_unbroadcast_refuses_other_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(5,\) does not broadcast to \(2, 1\)"):
        unbroadcast(np.ones((2, 1)), (5,))
    with pytest.raises(ValueError, match=r"\(4,\)"):
        unbroadcast(np.ones((2, 3)), (4,))


@given(
    hnp.mutually_broadcastable_shapes(
        signature="(r,i),(i,c)->(r,c)", min_side=1, max_side=4, max_dims=2
    )
)
def test_matmul_against_torch(shapes: hnp.BroadcastableShapes) -> None:
    generator = np.random.default_rng(1)
    left, right = (generator.normal(size=shape) for shape in shapes.input_shapes)
    gradient = generator.normal(size=shapes.result_shape)
    tensors = [torch.tensor(left, requires_grad=True), torch.tensor(right, requires_grad=True)]
    (tensors[0] @ tensors[1]).backward(torch.tensor(gradient))
    for got, oracle in zip(matmul_backward(gradient, left, right), tensors, strict=True):
        assert relative_error(got, oracle.grad.numpy()) < 1e-9


def test_matmul_names_both_shapes() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(4, 5\)"):
        matmul_backward(np.ones((2, 5)), np.ones((2, 3)), np.ones((4, 5)))


@given(shapes_and_axes(), st.booleans(), st.sampled_from(["sum", "mean", "max"]), st.booleans())
def test_reductions_against_torch(
    shape_and_axis: tuple[tuple[int, ...], int | tuple[int, ...] | None],
    keepdims: bool,
    name: str,
    ties: bool,
) -> None:
    shape, axis = shape_and_axis
    generator = np.random.default_rng(2)
    inputs = generator.normal(size=shape)
    if ties:
        inputs = np.round(inputs)
    point = torch.tensor(inputs, requires_grad=True)
    dims = tuple(range(len(shape))) if axis is None else axis
    # amax is torch's maximum whose ties share the gradient.
    oracle = {"sum": torch.sum, "mean": torch.mean, "max": torch.amax}[name]
    output = oracle(point, dim=dims, keepdim=keepdims)
    gradient = generator.normal(size=tuple(output.shape))
    output.backward(torch.tensor(gradient))
    if name == "max":
        got = max_backward(gradient, inputs, axis, keepdims)
    else:
        rule = {"sum": sum_backward, "mean": mean_backward}[name]
        got = rule(gradient, shape, axis, keepdims)
        assert got.flags.writeable
    assert relative_error(got, point.grad.numpy()) < 1e-9


def test_tied_maxima_share_equally() -> None:
    got = max_backward(np.array([6.0, 1.0]), np.array([[1.0, 5, 5], [2, 0, 1]]), axis=1)
    assert got.tolist() == [[0.0, 3.0, 3.0], [1.0, 0.0, 0.0]]


def test_repeated_indices_sum_their_gradients() -> None:
    got = index_backward(np.array([1.0, 10.0, 100.0]), (4,), np.array([2, 0, 2]))
    assert got.tolist() == [10.0, 0.0, 101.0, 0.0]
    rows = (np.array([1, 1]), slice(0, 2))
    got = index_backward(np.array([[1.0, 2.0], [3.0, 4.0]]), (2, 3), rows)
    assert got.tolist() == [[0.0, 0.0, 0.0], [4.0, 6.0, 0.0]]


def test_softmax_cross_entropy_rows_sum_to_zero() -> None:
    logits = np.log([[1.0, 2.0, 5.0], [1.0, 1.0, 2.0]])
    got = softmax_cross_entropy_backward(logits, np.array([2, 0]))
    np.testing.assert_allclose(got * 2, [[0.125, 0.25, -0.375], [-0.75, 0.25, 0.5]], atol=1e-15)
