from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from firsthand.llm.foundations.gradcheck import relative_error
from firsthand.llm.foundations.tensor_autograd import Tensor, concatenate, no_grad

torch.set_num_threads(1)


def against_torch(
    function: Callable[..., Tensor],
    *arrays: np.ndarray,
    oracle: Callable[..., torch.Tensor] | None = None,
) -> None:
    """Values and all gradients of `function`, with a random cotangent, equal those of torch."""
    ours = [Tensor(array.copy(), requires_grad=True) for array in arrays]
    theirs = [torch.tensor(array, requires_grad=True) for array in arrays]
    output, expected = function(*ours), (oracle or function)(*theirs)
    assert relative_error(output.data, expected.detach().numpy()) < 1e-12
    cotangent = np.random.default_rng(3).normal(size=output.shape)
    output.backward(cotangent)
    expected.backward(torch.tensor(cotangent))
    for tensor, point, array in zip(ours, theirs, arrays, strict=True):
        np.testing.assert_array_equal(tensor.data, array)
        assert tensor.grad is not None
        assert relative_error(tensor.grad, point.grad.numpy()) < 1e-9


def draw_arrays(shapes: tuple[tuple[int, ...], ...], low: float = -2.0) -> list[np.ndarray]:
    generator = np.random.default_rng(4)
    return [generator.uniform(low, 2.0, size=shape) for shape in shapes]


PAIRS = hnp.mutually_broadcastable_shapes(num_shapes=2, min_side=1, max_dims=4, max_side=4)
SHAPES = hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=4)


@given(PAIRS)
def test_arithmetic_with_broadcasting(pair: hnp.BroadcastableShapes) -> None:
    left, right = draw_arrays(pair.input_shapes)
    against_torch(lambda a, b: a + b, left, right)
    against_torch(lambda a, b: a - b, left, right)
    against_torch(lambda a, b: a * b, left, right)
    against_torch(lambda a, b: a / b, left, right + 2.5)
    against_torch(lambda a, b: -(a * b + a) * (b - a), left, right)


@given(SHAPES)
def test_elementwise_functions(shape: tuple[int, ...]) -> None:
    (x,) = draw_arrays((shape,))
    (positive,) = draw_arrays((shape,), low=0.1)
    functional = torch.nn.functional
    against_torch(lambda a: a**3, x)
    against_torch(lambda a: a**-0.5, positive)
    against_torch(lambda a: a.exp(), x)
    against_torch(lambda a: a.log(), positive)
    against_torch(lambda a: a.relu(), x)
    against_torch(lambda a: a.tanh(), x)
    against_torch(lambda a: a.sigmoid(), x)
    against_torch(lambda a: a.gelu(), x, oracle=functional.gelu)
    against_torch(lambda a: a.silu(), x, oracle=functional.silu)


def test_numbers_and_arrays_mix_with_tensors() -> None:
    (x,) = draw_arrays(((2, 3),), low=0.5)
    row = np.array([1.0, -2.0, 3.0])
    against_torch(lambda a: 2 - a, x)
    against_torch(lambda a: 2 / a + 1, x)
    against_torch(lambda a: 3 * a, x)
    against_torch(lambda a: row + a, x, oracle=lambda a: torch.tensor(row) + a)
    against_torch(lambda a: row / a, x, oracle=lambda a: torch.tensor(row) / a)
    against_torch(
        lambda a: np.ones((4, 2)) @ a,
        x,
        oracle=lambda a: torch.ones((4, 2), dtype=torch.float64) @ a,
    )
    assert (Tensor([1, 2]) + np.int64(1)).data.dtype == np.float64


@given(
    hnp.mutually_broadcastable_shapes(
        signature="(r,i),(i,c)->(r,c)", min_side=1, max_side=4, max_dims=2
    )
)
def test_matmul(shapes: hnp.BroadcastableShapes) -> None:
    against_torch(lambda a, b: a @ b, *draw_arrays(shapes.input_shapes))


@given(SHAPES, st.booleans(), st.data())
def test_reductions(shape: tuple[int, ...], keepdims: bool, data: st.DataObject) -> None:
    (x,) = draw_arrays((shape,))
    axes = st.integers(-len(shape), len(shape) - 1)
    axis = data.draw(st.lists(axes, min_size=1, unique_by=lambda a: a % len(shape)).map(tuple))
    against_torch(
        lambda a: a.sum(axis, keepdims), x, oracle=lambda a: a.sum(axis, keepdim=keepdims)
    )
    against_torch(
        lambda a: a.mean(axis, keepdims), x, oracle=lambda a: a.mean(axis, keepdim=keepdims)
    )
    against_torch(
        lambda a: a.max(axis, keepdims), x, oracle=lambda a: a.amax(axis, keepdim=keepdims)
    )
    against_torch(lambda a: a.sum() + a.mean() * a.max(), x)


@given(SHAPES, st.data())
def test_reshape_and_transpose(shape: tuple[int, ...], data: st.DataObject) -> None:
    (x,) = draw_arrays((shape,))
    axes = data.draw(st.permutations(range(len(shape))))
    signed = tuple(a - len(shape) if data.draw(st.booleans()) else a for a in axes)
    weight = np.arange(1.0, x.size + 1)
    against_torch(
        lambda a: a.transpose(*signed).reshape(-1) * weight,
        x,
        oracle=lambda a: a.permute(*signed).reshape(-1) * torch.tensor(weight),
    )
    against_torch(lambda a: a.T, x, oracle=lambda a: a.permute(*reversed(range(len(shape)))))
    against_torch(
        lambda a: a.transpose(*signed).contiguous(), x, oracle=lambda a: a.permute(*signed)
    )


def test_a_number_can_be_transposed_and_reshaped() -> None:
    against_torch(lambda a: a.T.reshape(1, 1), np.array(2.0), oracle=lambda a: a.reshape(1, 1))


@pytest.mark.parametrize(
    "index",
    [
        1,
        slice(None, None, 2),
        (slice(1, 3), 0),
        (..., np.array([0, 2, 2])),
        np.array([[0, 3], [3, 3]]),
        (np.array([0, 1, 1]), np.array([2, 2, 2])),
        (None, slice(None), -1),
    ],
)
def test_indexing(index: object) -> None:
    (x,) = draw_arrays(((4, 3),))

    def convert(item: object) -> object:
        return torch.tensor(item) if isinstance(item, np.ndarray) else item

    theirs = tuple(map(convert, index)) if isinstance(index, tuple) else convert(index)
    against_torch(lambda a: a[index], x, oracle=lambda a: a[theirs])


def test_boolean_indexing() -> None:
    (x,) = draw_arrays(((4, 3),))
    against_torch(lambda a: a[x > 0], x, oracle=lambda a: a[torch.tensor(x > 0)])


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concatenate(axis: int) -> None:
    shapes = ((2, 3), (4, 3)) if axis == 0 else ((3, 2), (3, 4))
    against_torch(
        lambda a, b: concatenate([a, b, a], axis),
        *draw_arrays(shapes),
        oracle=lambda a, b: torch.cat([a, b, a], axis),
    )


@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 50))
def test_classification(batch: int, classes: int, seed: int) -> None:
    generator = np.random.default_rng(seed)
    logits = 3.0 * generator.normal(size=(batch, classes))
    targets = generator.integers(classes, size=batch)
    against_torch(lambda a: a.log_softmax(), logits, oracle=lambda a: a.log_softmax(-1))
    against_torch(lambda a: a.log_softmax(0), logits)
    against_torch(
        lambda a: a.cross_entropy(targets) * 3,
        logits,
        oracle=lambda a: torch.nn.functional.cross_entropy(a, torch.tensor(targets)) * 3,
    )


def test_a_two_layer_network() -> None:
    x, w1, b1, w2 = draw_arrays(((5, 3), (3, 4), (4,), (4, 2)))
    against_torch(lambda x, w1, b1, w2: ((x @ w1 + b1).tanh() @ w2).relu() @ w2.T, x, w1, b1, w2)


def test_a_tensor_used_many_times_gets_every_share() -> None:
    x = Tensor([2.0], requires_grad=True)
    shared = x * 3
    (shared * shared + shared - x).sum().backward()
    assert x.grad == [38.0]
    assert shared.grad == [13.0]


def test_gradients_accumulate_until_zeroed() -> None:
    x = Tensor([1.0, 2.0], requires_grad=True)
    loss = (x * x * x).sum()
    loss.backward()
    first = x.grad
    loss.backward()
    assert first.tolist() == [3.0, 12.0]
    assert x.grad.tolist() == [6.0, 24.0]
    x.zero_grad()
    assert x.grad is None


def test_gradients_do_not_share_memory() -> None:
    a, b = Tensor([1.0], requires_grad=True), Tensor([1.0], requires_grad=True)
    cotangent = np.array([5.0])
    (a + b).backward(cotangent)
    a.grad[0] = 9.0
    assert b.grad.tolist() == [5.0]
    assert cotangent.tolist() == [5.0]


def test_a_deep_graph() -> None:
    x = Tensor(1.0, requires_grad=True)
    node = x
    for _ in range(20_000):
        node = node + 1e-3
    node.backward()
    assert x.grad == 1.0
    assert node.item() == pytest.approx(21.0)


def test_constants_get_no_gradient() -> None:
    x, constant = Tensor([1.0], requires_grad=True), Tensor([2.0])
    (x * constant).backward()
    assert constant.grad is None
    assert x.grad.tolist() == [2.0]


def test_no_grad_and_detach_cut_the_graph() -> None:
    x = Tensor([3.0], requires_grad=True)
    with no_grad():
        result = x * x
    assert not result.requires_grad
    assert result.parents == ()
    detached = x.detach()
    assert detached.shares_memory_with(x)
    (detached * x).backward()
    assert x.grad.tolist() == [3.0]
    with pytest.raises(KeyError), no_grad():
        raise KeyError
    assert (x * x).requires_grad


def test_views_and_copies_are_told_apart() -> None:
    x = Tensor(np.arange(12.0).reshape(3, 4))
    assert not x.is_view
    for view in (x.T, x.reshape(2, 6), x[1:], x[:, 1], x.transpose(1, 0)):
        assert view.is_view
        assert view.shares_memory_with(x)
    for copy in (x.T.reshape(-1), x[np.array([0, 1])], x + 0, x.T.contiguous(), x.sum()):
        assert not copy.is_view
        assert not copy.shares_memory_with(x)
    assert not x.T.is_contiguous
    assert x.T.contiguous().is_contiguous
    assert x.contiguous() is x
    assert x[0].shares_memory_with(x.data)
    assert not x[0].shares_memory_with(x[1])


def test_an_array_is_used_as_it_is() -> None:
    array = np.zeros(3)
    assert Tensor(array).data is array
    assert Tensor([1, 2]).data.tolist() == [1.0, 2.0]
    assert len(Tensor([1, 2])) == 2
    assert repr(Tensor([1.0], requires_grad=True)) == "Tensor([1.], requires_grad=True)"


def test_backward_refuses_what_it_cannot_do() -> None:
    x = Tensor([[1.0, 2.0]], requires_grad=True)
    with pytest.raises(ValueError, match=r"\(1, 2\)"):
        (x * 2).backward()
    with pytest.raises(ValueError, match=r"\(2,\) and tensor \(1, 2\)"):
        (x * 2).backward(np.ones(2))
    with pytest.raises(RuntimeError, match="does not require"):
        Tensor(1.0).backward()


def test_bad_operands_are_named() -> None:
    x = Tensor(np.ones((2, 3)))
    with pytest.raises(ValueError, match=r"\(2,3\) \(2,\)"):
        x + np.ones(2)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(2, 3\)"):
        x @ x
    with pytest.raises(ValueError, match=r"at least two axes.*\(2, 3\) and \(3,\)"):
        x @ np.ones(3)
    with pytest.raises(ValueError, match="reshape"):
        x.reshape(4, 2)
    with pytest.raises(ValueError, match="axes"):
        x.transpose(0, 1, 2)
    with pytest.raises(ValueError, match=r"\(2, 3\), \(2, 2\)"):
        concatenate([x, Tensor(np.ones((2, 2)))])
    with pytest.raises(ValueError, match="concatenate"):
        concatenate([])
    with pytest.raises(ValueError, match="smallest is -1"):
        Tensor([-1.0]).log()
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        x.item()
    with pytest.raises(TypeError, match="Tensor"):
        x**x
    with pytest.raises(TypeError, match="Tensor of a Tensor"):
        Tensor(x)
    with pytest.raises(ValueError, match=r"\[0, 3\)"):
        x.cross_entropy(np.array([0, 3]))
