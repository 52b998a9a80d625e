"""Session 1.5: gradients of arrays, and the memory that they are read from."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from firsthand.course.steps import Arguments, Build, Debug, Generator, Gradient, Layout, Relation
from firsthand.curriculum.phase_1_neurons.session_05_tensors.questions import (
    CACHE_LINE_BYTES,
    FLOAT64_BYTES,
    ROWS,
    close_views,
    layout_figures,
    measure_strides,
    order_matmul,
    trace_broadcast,
    view_strides,
)
from firsthand.llm.foundations.memory import describe_layout, row_major_strides
from firsthand.llm.foundations.tensor_autograd import Tensor
from firsthand.llm.foundations.tensor_gradients import matmul_backward, sum_backward, unbroadcast

__all__ = [  # what only the prose uses
    "CACHE_LINE_BYTES",
    "FLOAT64_BYTES",
    "ROWS",
    "describe_layout",
    "layout_figures",
    "matmul_backward",
    "row_major_strides",
    "sum_backward",
]

Shape = tuple[int, ...]
Axis = int | tuple[int, ...] | None


def numbers(generator: Generator, *shape: int) -> np.ndarray:
    """Values of scale about 1, two decimals, none of them 0, so that a failing call can be read."""
    values = np.round(generator.normal(size=shape), 2)
    return np.where(values == 0.0, 0.5, values)


def text(array: Any) -> str:
    """An array as an expression that can be pasted."""
    if not isinstance(array, np.ndarray):
        return str(array)
    if array.size > 100:
        return f"np.arange({array.size}.0).reshape{array.shape}"
    return f"np.array({array.tolist()})"


def leaf(array: Any) -> str:
    return f"Tensor({text(array)}, requires_grad=True)"


# --------------------------------------------------------------------------- unbroadcast


def unbroadcast_probes(generator: Generator) -> Sequence[Arguments]:
    cases: tuple[tuple[Shape, Shape], ...] = (
        ((2,), (1,)),
        ((2,), ()),
        ((2, 3), (3,)),
        ((2, 3), (2, 1)),
        ((2, 3), (1, 3)),
        ((2, 3), (2, 3)),
        ((3, 2), (1, 1)),
        ((4, 2, 3), (2, 1)),
        ((4, 2, 3), (4, 1, 3)),
        ((4, 2, 3), (3,)),
        ((2, 3), (2,)),
        ((3,), (2, 3)),
    )
    return [(numbers(generator, *before), shape) for before, shape in cases]


def collapsed(values: np.ndarray, shape: Shape) -> np.ndarray:
    """Each entry of `values` added to the one element of `shape` that broadcasting put there."""
    lost = values.ndim - len(shape)
    pairs = zip(shape, values.shape[max(lost, 0) :], strict=False)
    if lost < 0 or any(length not in (1, stretched) for length, stretched in pairs):
        raise ValueError(f"{shape} does not broadcast to {values.shape}")
    result = np.zeros(shape, dtype=np.longdouble)
    for index, value in np.ndenumerate(values):
        home = tuple(
            0 if length == 1 else place for length, place in zip(shape, index[lost:], strict=True)
        )
        result[home] += value
    return result


def counting(shape: Shape) -> np.ndarray:
    """1, 2, 3, ... in row-major order: an array in which no two elements are alike."""
    return np.arange(1.0, 1.0 + np.prod(shape, dtype=np.int64)).reshape(shape)


def adjoint_holds(group: Sequence[Arguments], outputs: Sequence[Any]) -> bool:
    gradient, shape = group[0]
    probe = counting(shape)
    forward = float(np.sum(gradient * np.broadcast_to(probe, gradient.shape)))
    return bool(np.isclose(forward, float(np.sum(outputs[0] * probe)), atol=1e-9))


build_unbroadcast = Build(
    id="unbroadcast",
    part="foundations.tensor_gradients:unbroadcast",
    probes=unbroadcast_probes,
    oracle=collapsed,
    small=lambda: (np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]), (2, 1)),
    key_line="summed.sum(axis=stretched",
    relations=(
        Relation(
            says="stretching x and summing G are adjoint: "
            "sum(G * broadcast(x)) = sum(unbroadcast(G, x.shape) * x), here for x = 1, 2, 3, ...",
            groups=lambda generator: [
                [(numbers(generator, 2, 3), (3,))],
                [(numbers(generator, 2, 3), (2, 1))],
                [(numbers(generator, 4, 2, 3), (2, 1))],
            ],
            holds=adjoint_holds,
        ),
    ),
    hints=(
        "Two things can have happened to an axis on the way forward; undo one after the other.",
        "Axes that were missing stand at the front: how many are there?",
        "An axis of length 1 in `shape` must still be an axis of length 1 in the result.",
    ),
)

# --------------------------------------------------------------------------- tensor-arithmetic


def share_of(result: Any, operand: Any, gradient: np.ndarray) -> Any:
    """What the rule of `result` sends to one operand; None where the graph has no way to it."""
    rule = result.backward_rule
    shares = [] if rule is None else list(zip(result.parents, rule(gradient), strict=False))
    found = [share for parent, share in shares if parent is operand]
    return sum(found[1:], start=found[0]) if found else None


def combine(part: Any, left: Any, operation: str, right: Any, gradient: Any) -> Any:
    """Driver: `left` + or * `right` (None: the same tensor again), and the operands' shares."""
    x = part(left, requires_grad=True)
    y = x
    if right is not None:
        y = right if isinstance(right, float) else part(right, requires_grad=True)
    result = x + y if operation == "+" else x * y
    operands = [x] if y is x or isinstance(y, float) else [x, y]
    return result.data, tuple(share_of(result, operand, gradient) for operand in operands)


def combine_probes(generator: Generator) -> Sequence[Arguments]:
    def values(*shape: int) -> np.ndarray:
        return numbers(generator, *shape)

    return [
        (values(1), "+", values(1), values(1)),
        (values(2), "*", values(2), values(2)),
        (values(2), "+", None, values(2)),
        (values(2), "*", None, values(2)),
        (values(3), "*", 2.5, values(3)),
        (values(2, 3), "+", values(3), values(2, 3)),
        (values(2, 3), "*", values(3), values(2, 3)),
        (values(2, 1), "+", values(3), values(2, 3)),
        (values(2, 1), "*", values(1, 3), values(2, 3)),
        (values(3), "*", values(4, 2, 3), values(4, 2, 3)),
        (values(2, 3), "+", values(2), values(2, 3)),
        (values(2, 3), "*", values(2), values(2, 3)),
    ]


def combine_oracle(left: np.ndarray, operation: str, right: Any, gradient: np.ndarray) -> Any:
    """Entry by entry in extended precision."""
    one = left.astype(np.longdouble)
    other = one if right is None else np.asarray(right, dtype=np.longdouble)
    value = one + other if operation == "+" else one * other
    ones = np.ones_like(value)
    factors = (ones, ones) if operation == "+" else (other, one)
    shares = [
        collapsed(gradient * factor * ones, operand.shape)
        for factor, operand in zip(factors, (one, other), strict=True)
    ]
    if right is None:
        return value, (shares[0] + shares[1],)
    return value, tuple(shares[:1] if isinstance(right, float) else shares)


def show_combine(left: Any, operation: str, right: Any, gradient: Any) -> str:
    if right is None:
        return f"x = {leaf(left)}; (x {operation} x).backward_rule({text(gradient)})"
    other = leaf(right) if isinstance(right, np.ndarray) else text(right)
    return (
        f"x, y = {leaf(left)}, {other}; z = x {operation} y; "
        f"z.data, z.backward_rule({text(gradient)})"
    )


build_arithmetic = Build(
    id="tensor-arithmetic",
    part="foundations.tensor_autograd:Tensor",
    methods=("__add__", "__mul__"),
    probes=combine_probes,
    oracle=combine_oracle,
    driver=combine,
    show=show_combine,
    small=lambda: (
        np.array([2.0, 3.0]),
        "*",
        np.array([5.0]),
        np.array([1.0, 10.0]),
    ),
    key_line="right = unbroadcast(gradient * self.data, other.shape)",
    hints=(
        "An operation computes its result with NumPy and hands over three things: the result, "
        "the operands, the rule.",
        "The rule gets dL/d(result) in the result's shape and returns one array for each operand, "
        "in that operand's shape.",
        "The rule is a function inside the method: it still sees `self` and `other` later.",
    ),
)

# --------------------------------------------------------------------------- matmul-backward


def matmul_probes(generator: Generator) -> Sequence[Arguments]:
    cases: tuple[tuple[Shape, Shape, Shape], ...] = (
        ((1, 1), (1, 1), (1, 1)),
        ((2, 2), (2, 2), (2, 2)),
        ((2, 4), (2, 3), (3, 4)),
        ((5, 1), (5, 2), (2, 1)),
        ((2, 3, 4), (2, 3, 5), (2, 5, 4)),
        ((5, 2, 4), (5, 2, 3), (3, 4)),
        ((5, 2, 4), (2, 3), (5, 3, 4)),
        ((2, 5), (2, 3), (4, 5)),
    )
    return [tuple(numbers(generator, *shape) for shape in shapes) for shapes in cases]


def matmul_oracle(gradient: np.ndarray, left: np.ndarray, right: np.ndarray) -> Any:
    """Each single product A_ik B_kj sends its gradient to its two factors."""
    if left.shape[-1] != right.shape[-2]:
        raise ValueError("inner axes differ")
    batch = gradient.shape[:-2]
    wide_left = np.broadcast_to(left, batch + left.shape[-2:]).astype(np.longdouble)
    wide_right = np.broadcast_to(right, batch + right.shape[-2:]).astype(np.longdouble)
    to_left, to_right = np.zeros_like(wide_left), np.zeros_like(wide_right)
    for (*first, i, j), share in np.ndenumerate(gradient):
        for k in range(left.shape[-1]):
            to_left[(*first, i, k)] += share * wide_right[(*first, k, j)]
            to_right[(*first, k, j)] += share * wide_left[(*first, i, k)]
    return collapsed(to_left, left.shape), collapsed(to_right, right.shape)


build_matmul_backward = Build(
    id="matmul-backward",
    part="foundations.tensor_gradients:matmul_backward",
    probes=matmul_probes,
    oracle=matmul_oracle,
    small=lambda: (
        np.array([[1.0, 2.0]]),
        np.array([[3.0, 4.0]]),
        np.array([[1.0, 0.0], [2.0, -1.0]]),
    ),
    key_line="right_gradient = np.swapaxes(left, -1, -2) @ gradient",
    gradient=Gradient(
        forward=np.matmul,
        inputs=lambda arguments: (arguments[1], arguments[2]),
        cotangent=lambda arguments: arguments[0],
    ),
    hints=(
        "Write the three shapes beside each other: only one product of two of them has the shape "
        "of the third.",
        "A transpose here exchanges the last two axes and leaves the batch axes where they are.",
        "A side without the batch axes was used once for each matrix of the batch. You have "
        "built what undoes this.",
    ),
)

debug_matmul = Debug(
    id="debug-matmul",
    build=build_matmul_backward,
    mistakes=("all-axes-reversed", "batch-not-summed"),
    symptom=(
        "For two matrices both gradients are right. With leading batch axes the call raises, or a "
        "gradient comes back in a shape that its operand does not have."
    ),
    hints=(
        "Try a left side of shape (5, 2, 3) and a right side of shape (3, 4), and write down the "
        "shape of each intermediate array.",
        "Compare each shape with the one that the docstring promises.",
    ),
)

# --------------------------------------------------------------------------- sum-backward


def sum_probes(generator: Generator) -> Sequence[Arguments]:
    cases: tuple[tuple[Shape, Shape, Axis, bool], ...] = (
        ((), (2,), None, False),
        ((1, 1), (2, 3), None, True),
        ((3,), (2, 3), 0, False),
        ((2,), (2, 3), 1, False),
        ((3,), (3, 3), 1, False),  # here the wrong axis stretches without an error
        ((2,), (2, 3), -1, False),
        ((2, 1), (2, 3), 1, True),
        ((4,), (4, 2, 3), (1, 2), False),
        ((2,), (4, 2, 3), (0, -1), False),
        ((1, 2, 1), (4, 2, 3), (0, 2), True),
    )
    return [
        (np.asarray(numbers(generator, *before)), shape, axis, keepdims)
        for before, shape, axis, keepdims in cases
    ]


def spread(gradient: np.ndarray, shape: Shape, axis: Axis, keepdims: bool) -> np.ndarray:
    """Each element of `shape` looks up the one sum in which it was a term."""
    if axis is None:
        summed = set(range(len(shape)))
    else:
        summed = {each % len(shape) for each in (axis if isinstance(axis, tuple) else (axis,))}
    kept = [place for place in range(len(shape)) if place not in summed]
    sums = gradient.reshape([shape[place] for place in kept]).astype(np.longdouble)
    result = np.zeros(shape, dtype=np.longdouble)
    for index in np.ndindex(shape):
        result[index] = sums[tuple(index[place] for place in kept)]
    return result


def sum_adjoint_holds(group: Sequence[Arguments], outputs: Sequence[Any]) -> bool:
    gradient, shape, axis, keepdims = group[0]
    probe = counting(shape)
    forward = float(np.sum(gradient * np.sum(probe, axis=axis, keepdims=keepdims)))
    return bool(np.isclose(forward, float(np.sum(outputs[0] * probe)), atol=1e-9))


build_sum_backward = Build(
    id="sum-backward",
    part="foundations.tensor_gradients:sum_backward",
    probes=sum_probes,
    oracle=spread,
    small=lambda: (np.array([5.0, -1.0]), (2, 3), 1, False),
    key_line="return np.array(",
    layout=Layout(shares_argument=-1),
    relations=(
        Relation(
            says="the sum and its gradient are adjoint: "
            "sum(g * x.sum(axis)) = sum(sum_backward(g, x.shape, axis) * x), "
            "here for x = 1, 2, 3, ...",
            groups=lambda generator: [
                [(numbers(generator, 2), (2, 3), 1, False)],
                [(numbers(generator, 3), (3, 3), 1, False)],
                [(numbers(generator, 4), (4, 2, 3), (1, 2), False)],
            ],
            holds=sum_adjoint_holds,
        ),
    ),
    hints=(
        "How much does the sum change when one of its terms grows by 1?",
        "`_restore_axes` puts the lost axes back with length 1; then the shape can be stretched.",
        "A stretched view has one number in memory for many elements. What does the docstring "
        "say about memory?",
    ),
)

# --------------------------------------------------------------------------- tensor-products


def multiply_or_sum(part: Any, left: Any, operation: str, other: Any, gradient: Any) -> Any:
    """Driver: `left @ other`, or the sum of `left` with other = (axis, keepdims).

    gradient: None for the result alone.
    """
    x = part(left, requires_grad=True)
    operands = [x]
    if operation == "@":
        operands.append(part(other, requires_grad=True))
        result = x @ operands[1]
    else:
        axis, keepdims = other
        result = x.sum(axis=axis, keepdims=keepdims)
    if gradient is None:
        return result.data
    return result.data, tuple(share_of(result, operand, gradient) for operand in operands)


def product_probes(generator: Generator) -> Sequence[Arguments]:
    def values(*shape: int) -> np.ndarray:
        return np.asarray(numbers(generator, *shape))

    return [
        (values(2), "sum", (None, False), values()),
        (values(2, 2), "@", values(2, 2), values(2, 2)),
        (values(2, 3), "@", values(3, 4), values(2, 4)),
        (values(2, 3), "sum", (0, False), values(3)),
        (values(2, 3), "sum", (-1, True), values(2, 1)),
        (values(3, 3), "sum", (1, False), values(3)),
        (values(5, 2, 3), "@", values(3, 4), values(5, 2, 4)),
        (values(4, 2, 3), "sum", ((0, 2), False), values(2)),
        (values(2, 3), "@", values(4, 2), None),
        (values(3), "@", values(3, 2), None),
    ]


def product_oracle(left: np.ndarray, operation: str, other: Any, gradient: Any) -> Any:
    wide = left.astype(np.longdouble)
    if operation == "sum":
        axis, keepdims = other
        total = np.sum(wide, axis=axis, keepdims=keepdims)
        return total, (spread(gradient, left.shape, axis, keepdims),)
    if left.ndim < 2 or other.ndim < 2 or left.shape[-1] != other.shape[-2]:
        raise ValueError("these shapes have no matrix product")
    return np.matmul(wide, other.astype(np.longdouble)), matmul_oracle(gradient, left, other)


def show_product(left: Any, operation: str, other: Any, gradient: Any) -> str:
    rule = "" if gradient is None else f"; z.data, z.backward_rule({text(gradient)})"
    if operation == "sum":
        return f"z = {leaf(left)}.sum(axis={other[0]}, keepdims={other[1]}){rule}"
    return f"z = {leaf(left)} @ {leaf(other)}{rule}"


build_products = Build(
    id="tensor-products",
    part="foundations.tensor_autograd:Tensor",
    methods=("__matmul__", "sum"),
    probes=product_probes,
    oracle=product_oracle,
    driver=multiply_or_sum,
    show=show_product,
    small=lambda: (np.array([[1.0, 2.0], [3.0, 4.0]]), "sum", (0, False), np.array([5.0, -1.0])),
    key_line="return matmul_backward(gradient, self.data, other.data)",
    hints=(
        "Both rules exist already: the method only has to hand them the right arrays.",
        "The result remembers every operand that may need a gradient, in the order of the rule.",
        "`require_matmul_shapes` is in your file and names both shapes in its message.",
    ),
)

# --------------------------------------------------------------------------- tensor-backward


def square(x: Any) -> Any:
    return (x * x).sum()


def product(x: Any, y: Any) -> Any:
    return x * y


def shared(x: Any, y: Any) -> Any:
    z = x * y
    return (z * x + z).sum()


def layer(x: Any, w: Any, b: Any) -> Any:
    z = x @ w + b
    return (z * z).sum(axis=0)


GRAPHS: dict[str, tuple[Callable[..., Any], str]] = {
    "square": (square, "root = (x * x).sum()"),
    "product": (product, "root = x * y"),
    "shared": (shared, "z = x * y; root = (z * x + z).sum()"),
    "layer": (layer, "z = x @ y + w; root = (z * z).sum(axis=0)"),
}


def flow(
    part: Any,
    graph: str,
    arrays: Sequence[Any],
    trainable: Sequence[bool],
    gradient: Any,
    calls: int,
) -> Any:
    """Driver: the graph's root, `backward` on it `calls` times, then every gradient."""
    tensors = [
        part(array, requires_grad=wanted) for array, wanted in zip(arrays, trainable, strict=True)
    ]
    root = GRAPHS[graph][0](*tensors)
    for _ in range(calls):
        part.backward(root, gradient)
    return (root.grad, *(tensor.grad for tensor in tensors))


def flow_probes(generator: Generator) -> Sequence[Arguments]:
    def values(*shape: int) -> np.ndarray:
        return numbers(generator, *shape)

    pair = (values(2), values(2))
    return [
        ("product", pair, (True, True), values(2), 1),
        ("square", (values(2),), (True,), None, 1),
        ("product", (values(2), values(2)), (True, False), values(2), 1),
        ("square", (values(3),), (True,), None, 2),
        ("shared", (values(2), values(2)), (True, True), None, 1),
        ("shared", (values(2, 3), values(3)), (True, True), None, 1),
        ("layer", (values(2, 3), values(3, 4), values(4)), (False, True, True), values(4), 1),
        ("layer", (values(5, 3), values(3, 2), values(2)), (True, True, True), values(2), 2),
        ("product", pair, (True, True), None, 1),
        ("product", pair, (True, True), values(3), 1),
        ("square", (values(2),), (False,), None, 1),
    ]


def flow_oracle(
    graph: str,
    arrays: Sequence[np.ndarray],
    trainable: Sequence[bool],
    gradient: Any,
    calls: int,
) -> Any:
    """Central differences in extended precision, exact here: no entry stands in a third power."""
    function = GRAPHS[graph][0]
    points = [array.astype(np.longdouble) for array in arrays]
    root = np.asarray(function(*points))
    if not any(trainable):
        raise RuntimeError("nothing requires a gradient")
    if gradient is None and root.size != 1:
        raise ValueError("several elements and no gradient")
    first = np.ones(root.shape) if gradient is None else gradient
    if first.shape != root.shape:
        raise ValueError("the gradient has another shape")
    found: list[Any] = [calls * first]
    half = np.longdouble(1) / 1024
    for point, wanted in zip(points, trainable, strict=True):
        if not wanted:
            found.append(None)
            continue
        slope = np.zeros_like(point)
        for index in np.ndindex(point.shape):
            kept = point[index]
            point[index] = kept + half
            above = np.sum(first * function(*points))
            point[index] = kept - half
            below = np.sum(first * function(*points))
            point[index] = kept
            slope[index] = (above - below) / (2 * half)
        found.append(calls * slope)
    return tuple(found)


def show_flow(
    graph: str, arrays: Sequence[Any], trainable: Sequence[bool], gradient: Any, calls: int
) -> str:
    names = "xyw"[: len(arrays)]
    leaves = "; ".join(
        f"{name} = {leaf(array) if wanted else f'Tensor({text(array)})'}"
        for name, array, wanted in zip(names, arrays, trainable, strict=True)
    )
    call = f"root.backward({'' if gradient is None else text(gradient)})"
    grads = ", ".join(["root.grad", *(f"{name}.grad" for name in names)])
    return f"{leaves}; {GRAPHS[graph][1]}; {'; '.join([call] * calls)}; {grads}"


build_backward = Build(
    id="tensor-backward",
    part="foundations.tensor_autograd:Tensor",
    methods=("backward",),
    probes=flow_probes,
    oracle=flow_oracle,
    driver=flow,
    show=show_flow,
    small=lambda: ("square", (np.array([3.0, -1.0]),), (True,), None, 1),
    key_line="gradients[parent] = gradients.get(parent, 0.0) + share",
    hints=(
        "It is the loop of session 4. What was a number is an array, and the local derivatives "
        "have become the node's `backward_rule`.",
        "Keep what this call finds in a dictionary of its own; `accumulate` adds it to `grad` "
        "at the end.",
        "An input has no rule to call, and a constant wants no gradient.",
    ),
)

# --------------------------------------------------------------------------- tensor-views

OBJECT_BYTES = 8192  # room for the Tensor objects and closures of one call, not for a copy
LARGE = counting((40, 48)) - 1.0
Operations = tuple[tuple[str, tuple[int, ...]], ...]


def rearrange(part: Any, array: Any, operations: Operations, gradient: Any) -> Any:
    """Driver: the operations one after the other, and the gradient's way back through them."""
    results = [part(array, requires_grad=True)]
    for name, arguments in operations:
        results.append(getattr(part, name)(results[-1], *arguments))
    if gradient is None:
        return results[-1].data
    for result in reversed(results[1:]):
        (gradient,) = result.backward_rule(gradient)
    return results[-1].data, gradient


def view_probes(generator: Generator) -> Sequence[Arguments]:
    def values(*shape: int) -> np.ndarray:
        return numbers(generator, *shape)

    return [
        (values(2, 3), (("transpose", ()),), values(3, 2)),
        (values(2, 3), (("reshape", (3, 2)),), values(3, 2)),
        (values(2, 3), (("reshape", (-1,)),), values(6)),
        (values(2, 3, 4), (("transpose", (1, 2, 0)),), values(3, 4, 2)),
        (values(2, 3, 4), (("transpose", (-1, 0, 1)),), values(4, 2, 3)),
        (values(2, 3), (("transpose", ()), ("reshape", (2, 3))), values(2, 3)),
        (values(4, 6), (("reshape", (4, 3, 2)), ("transpose", (1, 0, 2))), values(3, 4, 2)),
        (values(2, 3), (("reshape", (4, 2)),), None),
        (values(2, 3), (("transpose", (0, 0)),), None),
        (LARGE, (("transpose", ()),), None),
        (LARGE, (("reshape", (30, 64)),), None),
    ]


def rearranged(array: np.ndarray, name: str, arguments: tuple[int, ...]) -> np.ndarray:
    """Element by element: row-major order kept (reshape), or each index permuted (transpose)."""
    if name == "reshape":
        known = int(np.prod([length for length in arguments if length >= 0], dtype=np.int64))
        shape = tuple(array.size // known if length < 0 else length for length in arguments)
        if np.prod(shape, dtype=np.int64) != array.size:
            raise ValueError("another number of elements")
        result = np.zeros(shape)
        for place, value in zip(np.ndindex(shape), array.flat, strict=True):
            result[place] = value
        return result
    order = [axis % array.ndim for axis in arguments or range(array.ndim - 1, -1, -1)]
    if sorted(order) != list(range(array.ndim)):
        raise ValueError("not an order of all axes")
    result = np.zeros([array.shape[axis] for axis in order])
    for index, value in np.ndenumerate(array):
        result[tuple(index[axis] for axis in order)] = value
    return result


def view_oracle(array: np.ndarray, operations: Operations, gradient: Any) -> Any:
    """The gradient follows a second array, of positions, through the same operations."""
    moved, origin = array, np.arange(float(array.size)).reshape(array.shape)
    for name, arguments in operations:
        moved, origin = rearranged(moved, name, arguments), rearranged(origin, name, arguments)
    if gradient is None:
        return moved
    back = np.zeros(array.size)
    for place, position in np.ndenumerate(origin):
        back[int(position)] = gradient[place]
    return moved, back.reshape(array.shape)


def show_view(array: Any, operations: Operations, gradient: Any) -> str:
    steps = f"x = {leaf(array)}"
    name = "x"
    for number, (method, arguments) in enumerate(operations, start=1):
        inside = ", ".join(str(argument) for argument in arguments)
        steps += f"; y{number} = {name}.{method}({inside})"
        name = f"y{number}"
    if gradient is None:
        return f"{steps}; {name}.data"
    return f"{steps}; {name}.backward({text(gradient)}); {name}.data, x.grad"


def most_view_bytes(arguments: Arguments) -> int:
    """A view needs no memory for elements. Where a gradient is walked back, copies are allowed."""
    return OBJECT_BYTES if arguments[2] is None else 1 << 30


build_views = Build(
    id="tensor-views",
    part="foundations.tensor_autograd:Tensor",
    methods=("reshape", "transpose"),
    probes=view_probes,
    oracle=view_oracle,
    driver=rearrange,
    show=show_view,
    small=lambda: (
        np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
        (("transpose", ()),),
        np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]),
    ),
    key_line="inverse = np.argsort(positive)",
    layout=Layout(most_bytes=most_view_bytes),
    hints=(
        "Nothing is computed here: the elements keep their values, and so do their gradients. "
        "Only their places change, and have to change back.",
        "For the way back of `transpose` ask for each old axis where it stands now.",
        "Without arguments the order is that of all axes, reversed; a negative axis counts from "
        "the end.",
    ),
)

# --------------------------------------------------------------------------- the session

STEPS = (
    trace_broadcast,
    build_unbroadcast,
    build_arithmetic,
    order_matmul,
    build_matmul_backward,
    debug_matmul,
    build_sum_backward,
    build_products,
    build_backward,
    view_strides,
    build_views,
    measure_strides,
    close_views,
)

# What the prose works through.
ROW_BIAS = np.array([10.0, 20.0, 30.0])
COLUMN = np.array([[1.0], [2.0]])
UPSTREAM = np.array([[1.0, -2.0, 3.0], [0.5, 4.0, -1.0]])
EXAMPLE_SUM = Tensor(COLUMN) + Tensor(ROW_BIAS)
EXAMPLE_ROW_GRADIENT = unbroadcast(UPSTREAM, ROW_BIAS.shape)
EXAMPLE_GRID = np.arange(6.0).reshape(2, 3)
EXAMPLE_ELEMENTS, EXAMPLE_PASSES = 1000, 20
EXAMPLE_PRODUCT = (64, 128, 32)  # rows, inner, columns
EXAMPLE_FLOPS = 2 * math.prod(EXAMPLE_PRODUCT)
