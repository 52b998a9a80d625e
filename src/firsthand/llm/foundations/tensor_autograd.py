"""Reverse-mode automatic differentiation over NumPy arrays.

A `Tensor` wraps a float64 array. An operation computes its result with NumPy and hands
`Tensor.from_operation` a backward rule: a function from dL/d(result) to one gradient for each
operand. The rules are those of `tensor_gradients`. `backward` is one loop over the nodes.

Basic slices, `reshape` and `transpose` give views where NumPy does. Changing `data` in place
after it was used in a computation is not supported: the backward rules read the arrays as
they are when `backward` runs. Bind a new array to `data` instead, as the optimizers do.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike

from firsthand.llm.foundations import activations, losses
from firsthand.llm.foundations.arrays import (
    Array,
    Axis,
    IntArray,
    Shape,
    require_matmul_shapes,
)
from firsthand.llm.foundations.scalar_autograd import topological_order
from firsthand.llm.foundations.tensor_gradients import (
    Index,
    index_backward,
    matmul_backward,
    max_backward,
    mean_backward,
    softmax_cross_entropy_backward,
    sum_backward,
    unbroadcast,
)

BackwardRule: TypeAlias = Callable[[Array], tuple[Array, ...]]

_recording: ContextVar[bool] = ContextVar("recording", default=True)


@contextmanager
def no_grad() -> Iterator[None]:
    """Within the block operations give tensors without parents, so no graph is kept alive."""
    token = _recording.set(False)
    try:
        yield
    finally:
        _recording.reset(token)


class Tensor:
    """A float64 array that remembers how it was computed.

    Attributes:
        data: the values. A float64 array passed in is used as it is, not copied.
        requires_grad: whether `backward` gives this tensor a gradient.
        grad: the sum of the gradients found so far, in the shape of `data`; None at first.
            Results of operations keep theirs too, so that the flow can be looked at.
        parents: the operands it was computed from; () for an input and under `no_grad`.
        backward_rule: from dL/d(self) to one gradient for each parent; None without parents.
        is_view: whether `data` lies in the memory of an operand.
    """

    __array_ufunc__ = None  # so that array + Tensor asks Tensor.__radd__ and not NumPy

    def __init__(self, data: ArrayLike, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            raise TypeError("a Tensor of a Tensor is not supported; pass its data or use detach()")
        self.data: Array = np.asarray(data, dtype=np.float64)
        self.requires_grad = requires_grad
        self.grad: Array | None = None
        self.parents: tuple[Tensor, ...] = ()
        self.backward_rule: BackwardRule | None = None
        self.is_view = False

    @classmethod
    def from_operation(
        cls, data: Array, parents: tuple["Tensor", ...], backward_rule: BackwardRule
    ) -> "Tensor":
        """The result of an operation on `parents`.

        It remembers parents and rule only when one of them requires a gradient and no
        `no_grad` block is active.
        """
        result = cls(data)
        result.is_view = any(np.may_share_memory(result.data, parent.data) for parent in parents)
        if _recording.get() and any(parent.requires_grad for parent in parents):
            result.requires_grad = True
            result.parents = parents
            result.backward_rule = backward_rule
        return result

    def __repr__(self) -> str:
        suffix = ", requires_grad=True" if self.requires_grad else ""
        return f"Tensor({np.array2string(self.data, precision=4)}{suffix})"

    def __len__(self) -> int:
        return len(self.data)

    @property
    def shape(self) -> Shape:
        """The lengths of the axes."""
        return self.data.shape

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return self.data.ndim

    @property
    def size(self) -> int:
        """The number of elements."""
        return self.data.size

    def item(self) -> float:
        """The only element as a Python float. Raises ValueError when there are several."""
        if self.size != 1:
            raise ValueError(f"item() needs exactly one element; the shape is {self.shape}")
        return float(self.data.reshape(()))

    # The graph

    def backward(self, gradient: ArrayLike | None = None) -> None:
        """Add dL/d(node) to `grad` of every node that self was computed from, and of self.

        L is self when self has one element, else the sum of self * gradient. A node used
        several times receives the sum of its shares. A second call without `zero_grad` adds
        again. Tensors that do not require a gradient get none.

        Args:
            gradient: dL/d(self) in the shape of self; 1 when left out.
        Raises:
            ValueError: no gradient given and self has not exactly one element, or one in
                another shape.
            RuntimeError: self does not require a gradient.
        """
        gradients = {self: self._first_gradient(gradient)}
        for node in reversed(topological_order(self)):
            if node.backward_rule is None:
                continue
            upstream = gradients[node]
            for parent, share in zip(node.parents, node.backward_rule(upstream), strict=True):
                gradients[parent] = gradients.get(parent, 0.0) + share
        for node, gradient in gradients.items():
            if node.requires_grad:
                node.accumulate(gradient)

    def _first_gradient(self, gradient: ArrayLike | None) -> Array:
        if not self.requires_grad:
            raise RuntimeError("backward() on a tensor that does not require a gradient")
        if gradient is None:
            if self.size != 1:
                raise ValueError(
                    f"backward() without a gradient needs one element; the shape is {self.shape}"
                )
            return np.ones(self.shape)
        first: Array = np.array(gradient, dtype=np.float64)
        if first.shape != self.shape:
            raise ValueError(f"gradient {first.shape} and tensor {self.shape} differ in shape")
        return first

    def accumulate(self, gradient: Array) -> None:
        """Add `gradient`, in the shape of self, to `grad`; the argument is not kept."""
        self.grad = np.array(gradient) if self.grad is None else self.grad + gradient

    def zero_grad(self) -> None:
        """Set `grad` to None."""
        self.grad = None

    def detach(self) -> "Tensor":
        """A tensor with the same memory and without history or gradient."""
        result = Tensor(self.data)
        result.is_view = True
        return result

    # Elementwise arithmetic; shapes broadcast as in NumPy

    def __add__(self, other: "Tensor | ArrayLike") -> "Tensor":
        """self + other with broadcasting. Raises ValueError when the shapes do not broadcast."""
        other = as_tensor(other)

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return unbroadcast(gradient, self.shape), unbroadcast(gradient, other.shape)

        return Tensor.from_operation(self.data + other.data, (self, other), backward_rule)

    def __mul__(self, other: "Tensor | ArrayLike") -> "Tensor":
        """self * other with broadcasting. Raises ValueError when the shapes do not broadcast."""
        other = as_tensor(other)

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            left = unbroadcast(gradient * other.data, self.shape)
            right = unbroadcast(gradient * self.data, other.shape)
            return left, right

        return Tensor.from_operation(self.data * other.data, (self, other), backward_rule)

    def __pow__(self, exponent: float) -> "Tensor":
        """self ** exponent, elementwise, for a constant exponent. Raises TypeError otherwise."""
        if not isinstance(exponent, int | float):
            raise TypeError(f"the exponent must be a plain number, not {type(exponent).__name__}")
        power: Array = self.data**exponent
        # x ** 0 is constant; the general formula would divide by zero at x = 0.
        slope = exponent * self.data ** (exponent - 1) if exponent else np.zeros(self.shape)
        return self._elementwise(power, slope)

    def __neg__(self) -> "Tensor":
        return self * -1.0

    def __sub__(self, other: "Tensor | ArrayLike") -> "Tensor":
        return self + (-as_tensor(other))

    def __truediv__(self, other: "Tensor | ArrayLike") -> "Tensor":
        return self * as_tensor(other) ** -1

    def __radd__(self, other: ArrayLike) -> "Tensor":
        return as_tensor(other) + self

    def __rmul__(self, other: ArrayLike) -> "Tensor":
        return as_tensor(other) * self

    def __rsub__(self, other: ArrayLike) -> "Tensor":
        return as_tensor(other) - self

    def __rtruediv__(self, other: ArrayLike) -> "Tensor":
        return as_tensor(other) / self

    def __rmatmul__(self, other: ArrayLike) -> "Tensor":
        return as_tensor(other) @ self

    def _elementwise(self, value: Array, slope: Array) -> "Tensor":
        """The result of an elementwise function with the given values and derivatives."""

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return (gradient * slope,)

        return Tensor.from_operation(value, (self,), backward_rule)

    def exp(self) -> "Tensor":
        """e ** self, elementwise."""
        value: Array = np.exp(self.data)
        return self._elementwise(value, value)

    def log(self) -> "Tensor":
        """The natural logarithm, elementwise. Raises ValueError unless all are positive."""
        if not np.all(self.data > 0):
            raise ValueError(f"log needs positive elements; the smallest is {self.data.min()}")
        return self._elementwise(np.log(self.data), 1.0 / self.data)

    def relu(self) -> "Tensor":
        """max(self, 0), elementwise. The derivative at 0 is 0."""
        value = activations.relu(self.data)
        slope = activations.relu_derivative(self.data)

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return (gradient * slope,)

        return Tensor.from_operation(value, (self,), backward_rule)

    def tanh(self) -> "Tensor":
        """The hyperbolic tangent, elementwise."""
        slope = activations.tanh_derivative(self.data)
        return self._elementwise(activations.tanh(self.data), slope)

    def sigmoid(self) -> "Tensor":
        """The logistic function, elementwise."""
        slope = activations.sigmoid_derivative(self.data)
        return self._elementwise(activations.sigmoid(self.data), slope)

    def gelu(self) -> "Tensor":
        """The exact GELU, elementwise."""
        slope = activations.gelu_derivative(self.data)
        return self._elementwise(activations.gelu(self.data), slope)

    def silu(self) -> "Tensor":
        """self * sigmoid(self), elementwise."""
        slope = activations.silu_derivative(self.data)
        return self._elementwise(activations.silu(self.data), slope)

    # Matrix product and reductions

    def __matmul__(self, other: "Tensor | ArrayLike") -> "Tensor":
        """The matrix product over the last two axes; leading axes broadcast.

        Raises:
            ValueError: fewer than two axes, or inner axes that differ; names both shapes.
        """
        other = as_tensor(other)
        require_matmul_shapes(self.data, other.data)

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return matmul_backward(gradient, self.data, other.data)

        return Tensor.from_operation(self.data @ other.data, (self, other), backward_rule)

    def sum(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The sum over `axis` (None: all axes), which is removed unless `keepdims`."""
        total: Array = np.sum(self.data, axis=axis, keepdims=keepdims)

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return (sum_backward(gradient, self.shape, axis, keepdims),)

        return Tensor.from_operation(total, (self,), backward_rule)

    def mean(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The mean over `axis` (None: all axes), which is removed unless `keepdims`."""
        mean: Array = np.mean(self.data, axis=axis, keepdims=keepdims)

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return (mean_backward(gradient, self.shape, axis, keepdims),)

        return Tensor.from_operation(mean, (self,), backward_rule)

    def max(self, axis: Axis = None, keepdims: bool = False) -> "Tensor":
        """The maximum over `axis` (None: all axes); ties share the gradient equally."""
        largest: Array = np.max(self.data, axis=axis, keepdims=keepdims)

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return (max_backward(gradient, self.data, axis, keepdims),)

        return Tensor.from_operation(largest, (self,), backward_rule)

    # Shape, order and selection

    def reshape(self, *shape: int) -> "Tensor":
        """The same elements in row-major order in another shape; one length may be -1.

        A view where the strides allow it, else a copy.

        Raises:
            ValueError: the number of elements differs.
        """

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return (gradient.reshape(self.shape),)

        return Tensor.from_operation(self.data.reshape(shape), (self,), backward_rule)

    def transpose(self, *axes: int) -> "Tensor":
        """A view with the axes in the given order; without arguments in reverse order.

        Raises:
            ValueError: `axes` is not an order of all axes.
        """
        order = axes or tuple(reversed(range(self.ndim)))
        positive = [axis % self.ndim for axis in order]
        inverse = np.argsort(positive).astype(int)

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return (gradient.transpose(inverse),)

        return Tensor.from_operation(self.data.transpose(order), (self,), backward_rule)

    @property
    def T(self) -> "Tensor":
        """A view with the axes in reverse order."""
        return self.transpose()

    def __getitem__(self, index: Index) -> "Tensor":
        """NumPy indexing: slices give a view, integer and boolean arrays a copy."""

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return (index_backward(gradient, self.shape, index),)

        return Tensor.from_operation(np.asarray(self.data[index]), (self,), backward_rule)

    @property
    def is_contiguous(self) -> bool:
        """Whether the elements lie densely in row-major order."""
        return self.data.flags.c_contiguous

    def contiguous(self) -> "Tensor":
        """Self when it is row-major, else a row-major copy (through which gradients flow)."""
        if self.is_contiguous:
            return self
        return Tensor.from_operation(
            np.ascontiguousarray(self.data), (self,), lambda gradient: (gradient,)
        )

    def shares_memory_with(self, other: "Tensor | Array") -> bool:
        """Whether an element of self and an element of `other` lie at the same address."""
        return np.shares_memory(self.data, other.data if isinstance(other, Tensor) else other)

    # Classification

    def log_softmax(self, axis: int = -1) -> "Tensor":
        """log softmax along `axis`; finite for finite logits."""
        value = activations.log_softmax(self.data, axis)

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            total: Array = np.sum(gradient, axis=axis, keepdims=True)
            return (gradient - np.exp(value) * total,)

        return Tensor.from_operation(value, (self,), backward_rule)

    def cross_entropy(self, targets: IntArray) -> "Tensor":
        """The mean cross-entropy of logits (batch, classes) and `targets` (batch,): shape ().

        Raises:
            ValueError, TypeError: as `losses.cross_entropy`.
        """
        loss = losses.cross_entropy(self.data, targets)

        def backward_rule(gradient: Array) -> tuple[Array, ...]:
            return (gradient * softmax_cross_entropy_backward(self.data, targets),)

        return Tensor.from_operation(np.asarray(loss), (self,), backward_rule)


def as_tensor(value: Tensor | ArrayLike) -> Tensor:
    """The value itself when it is a Tensor, else a Tensor of it without gradient."""
    return value if isinstance(value, Tensor) else Tensor(value)


def concatenate(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """The tensors one behind the other along `axis`, in new memory.

    Raises:
        ValueError: no tensors, or lengths that differ on another axis; names the shapes.
    """
    shapes = [tensor.shape for tensor in tensors]
    lengths = {shape[:axis] + shape[axis:][1:] for shape in shapes}
    if len(lengths) != 1:
        raise ValueError(f"cannot concatenate along axis {axis}: {shapes}")
    ends = np.cumsum([shape[axis] for shape in shapes])[:-1]

    def backward_rule(gradient: Array) -> tuple[Array, ...]:
        return tuple(np.split(gradient, ends, axis=axis))

    joined = np.concatenate([tensor.data for tensor in tensors], axis=axis)
    return Tensor.from_operation(joined, tuple(tensors), backward_rule)
