"""Session 1.5: wrong versions that people write, and other right ones."""

import numpy as np

from firsthand.course.steps import Alternative, Mistake, WrongAnswer, WrongFormula
from firsthand.llm.foundations.memory import row_major_strides
from firsthand.llm.foundations.tensor_autograd import Tensor, as_tensor

# --------------------------------------------------------------------------- other right versions


def unbroadcast_axis_by_axis(gradient, shape):  # type: ignore[no-untyped-def]
    try:
        np.broadcast_to(np.empty(shape), gradient.shape)
    except ValueError:
        raise ValueError(f"{gradient.shape} did not come from {shape}") from None
    while gradient.ndim > len(shape):
        gradient = np.add.reduce(gradient, axis=0)
    for axis in range(len(shape)):
        if shape[axis] != np.shape(gradient)[axis]:
            gradient = np.add.reduce(gradient, axis=axis, keepdims=True)
    return gradient


def matmul_backward_by_einsum(gradient, left, right):  # type: ignore[no-untyped-def]
    if left.shape[-1] != right.shape[-2]:
        raise ValueError(f"{left.shape} @ {right.shape}")
    to_left = np.einsum("...ij,...kj->...ik", gradient, right)
    to_right = np.einsum("...ik,...ij->...kj", left, gradient)
    for side in (left, right):
        if side.ndim == 2 and gradient.ndim > 2:
            batch = tuple(range(gradient.ndim - 2))
            if side is left:
                to_left = to_left.sum(axis=batch)
            else:
                to_right = to_right.sum(axis=batch)
    return to_left, to_right


def sum_backward_by_product(gradient, shape, axis=None, keepdims=False):  # type: ignore[no-untyped-def]
    if axis is None:
        axes = list(range(len(shape)))
    else:
        axes = [axis] if isinstance(axis, int) else list(axis)
        axes = [each + len(shape) if each < 0 else each for each in axes]
    lengths = [1 if place in axes else length for place, length in enumerate(shape)]
    return np.ones(shape) * np.reshape(gradient, lengths)


def _fold(gradient: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    extra = gradient.ndim - len(shape)
    axes = tuple(
        axis
        for axis in range(gradient.ndim)
        if axis < extra or (shape[axis - extra] == 1 and gradient.shape[axis] > 1)
    )
    return np.sum(gradient, axis=axes).reshape(shape)


class TensorWithOwnSums(Tensor):
    """Addition and multiplication with rules as lambdas and a sum of their own."""

    def __add__(self, other):  # type: ignore[no-untyped-def]
        operands = (self, other if isinstance(other, Tensor) else Tensor(other))
        return self.from_operation(
            np.add(operands[0].data, operands[1].data),
            operands,
            lambda gradient: tuple(_fold(gradient, each.shape) for each in operands),
        )

    def __mul__(self, other):  # type: ignore[no-untyped-def]
        other = as_tensor(other)
        a, b = self.data, other.data
        return Tensor.from_operation(
            np.multiply(a, b),
            (self, other),
            lambda g: (_fold(b * g, a.shape), _fold(a * g, b.shape)),
        )


class TensorWithOwnProducts(Tensor):
    """The matrix product by einsum; the sum as a product with ones."""

    def __matmul__(self, other):  # type: ignore[no-untyped-def]
        other = as_tensor(other)
        if min(self.ndim, other.ndim) < 2:
            raise ValueError(f"two axes at least: {self.shape} @ {other.shape}")
        data = np.einsum("...ik,...kj->...ij", self.data, other.data)
        return Tensor.from_operation(
            data,
            (self, other),
            lambda gradient: (
                _fold(np.einsum("...ij,...kj->...ik", gradient, other.data), self.shape),
                _fold(np.einsum("...ik,...ij->...kj", self.data, gradient), other.shape),
            ),
        )

    def sum(self, axis=None, keepdims=False):  # type: ignore[no-untyped-def]
        kept = self.data.sum(axis=axis, keepdims=True)
        total = kept if keepdims else self.data.sum(axis=axis)
        ones = np.ones_like(self.data)
        return Tensor.from_operation(
            total, (self,), lambda gradient: (ones * gradient.reshape(kept.shape),)
        )


class TensorThatCountsUses(Tensor):
    """A node is passed on when all nodes that use it have sent their share."""

    def backward(self, gradient=None):  # type: ignore[no-untyped-def]
        first = self._first_gradient(gradient)
        uses: dict[Tensor, int] = {self: 0}
        found: list[Tensor] = [self]
        for node in found:
            for parent in node.parents:
                if parent not in uses:
                    uses[parent] = 0
                    found.append(parent)
                uses[parent] += 1
        totals: dict[Tensor, np.ndarray] = {self: first}
        ready: list[Tensor] = [self]
        while ready:
            node = ready.pop()
            if node.requires_grad:
                node.accumulate(totals[node])
            shares = node.backward_rule(totals[node]) if node.backward_rule else ()
            for parent, share in zip(node.parents, shares, strict=True):
                totals[parent] = totals[parent] + share if parent in totals else share
                uses[parent] -= 1
                if uses[parent] == 0:
                    ready.append(parent)


class TensorByStrides(Tensor):
    """Views made from shape and strides directly."""

    def reshape(self, *shape):  # type: ignore[no-untyped-def]
        before = self.shape
        return Tensor.from_operation(
            np.reshape(self.data, shape),
            (self,),
            lambda gradient: (np.ravel(gradient).reshape(before),),
        )

    def transpose(self, *axes):  # type: ignore[no-untyped-def]
        order = [axis % self.ndim for axis in axes] or list(range(self.ndim))[::-1]
        if sorted(order) != list(range(self.ndim)):
            raise ValueError(f"{axes} is no order of {self.ndim} axes")
        view = np.lib.stride_tricks.as_strided(
            self.data,
            shape=[self.data.shape[axis] for axis in order],
            strides=[self.data.strides[axis] for axis in order],
        )
        back = [order.index(axis) for axis in range(self.ndim)]
        return Tensor.from_operation(
            view, (self,), lambda gradient: (np.transpose(gradient, back),)
        )


ALTERNATIVES = (
    Alternative(step="unbroadcast", code=unbroadcast_axis_by_axis),
    Alternative(step="tensor-arithmetic", code=TensorWithOwnSums),
    Alternative(step="matmul-backward", code=matmul_backward_by_einsum),
    Alternative(step="sum-backward", code=sum_backward_by_product),
    Alternative(step="tensor-products", code=TensorWithOwnProducts),
    Alternative(step="tensor-backward", code=TensorThatCountsUses),
    Alternative(step="tensor-views", code=TensorByStrides),
)

# --------------------------------------------------------------------------- wrong formulas


def inverse_order_strides(shape: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    strides = row_major_strides(shape)
    return tuple(strides[axes.index(axis)] for axis in range(len(axes)))


MISTAKES = (
    # trace-broadcast
    WrongAnswer(
        id="first-copy-only",
        step="trace-broadcast",
        belief="Only the first copy of a stretched element sends its gradient back.",
        question="In how many entries of Y does a1 stand?",
    ),
    WrongAnswer(
        id="mean-over-copies",
        step="trace-broadcast",
        belief="The gradients of the copies are averaged.",
        question="If a1 grows by a small amount and it stands in several entries of Y, does each "
        "entry grow by a part of it or by all of it?",
    ),
    WrongAnswer(
        id="total-for-each",
        step="trace-broadcast",
        belief="Every element receives the sum of the whole gradient.",
        question="Which entries of Y change when only b1 changes?",
    ),
    # unbroadcast
    Mistake(
        id="missing-axes-only",
        step="unbroadcast",
        belief="Axes that were missing are summed, axes of length 1 that were stretched are not.",
        question="What happened to an axis of length 1 on the way forward?",
        edits=(("summed.sum(axis=stretched, keepdims=True)", "summed"),),
    ),
    Mistake(
        id="stretched-axes-dropped",
        step="unbroadcast",
        belief="A stretched axis is summed away, although it was there before with length 1.",
        question="How many axes has the result for shape (2, 1)?",
        edits=(("axis=stretched, keepdims=True", "axis=stretched"),),
    ),
    Mistake(
        id="last-axes-summed",
        step="unbroadcast",
        belief="The missing axes are looked for at the end.",
        question="At which end does NumPy align two shapes of different length?",
        edits=(("tuple(range(added))", "tuple(range(len(shape), gradient.ndim))"),),
    ),
    Mistake(
        id="copies-averaged",
        step="unbroadcast",
        belief="The gradients of the copies are averaged instead of summed.",
        question="A bias is added to each of 100 rows. How much does the sum of all entries grow "
        "when this bias grows by 1?",
        edits=(
            ("gradient.sum(axis=", "gradient.mean(axis="),
            ("summed.sum(axis=", "summed.mean(axis="),
        ),
    ),
    Mistake(
        id="shape-not-compared",
        step="unbroadcast",
        belief="A shape that never broadcasts to the gradient's is accepted.",
        question="Which array of shape (2,) could have become one of shape (2, 3)?",
        edits=(("np.broadcast_shapes(gradient.shape, shape) != gradient.shape", "False"),),
    ),
    # tensor-arithmetic
    Mistake(
        id="sum-passes-the-stretched",
        step="tensor-arithmetic",
        belief="Addition passes the gradient on as it came, in the shape of the result.",
        question="Which shape must the gradient of an operand have?",
        edits=(
            (
                "return unbroadcast(gradient, self.shape), unbroadcast(gradient, other.shape)",
                "return gradient, gradient",
            ),
        ),
    ),
    Mistake(
        id="own-factor",
        step="tensor-arithmetic",
        belief="Each factor's gradient is multiplied by that factor itself.",
        question="By how much does x y grow when x grows by 1?",
        edits=(
            ("gradient * other.data, self.shape", "gradient * self.data, self.shape"),
            ("gradient * self.data, other.shape", "gradient * other.data, other.shape"),
        ),
    ),
    Mistake(
        id="product-like-sum",
        step="tensor-arithmetic",
        belief="Multiplication passes the gradient on unchanged, as addition does.",
        question="By how much does x y grow when x grows by 1 and y is 5?",
        edits=(
            ("gradient * other.data, self.shape", "gradient, self.shape"),
            ("gradient * self.data, other.shape", "gradient, other.shape"),
        ),
    ),
    Mistake(
        id="summed-before-multiplied",
        step="tensor-arithmetic",
        belief="The gradient is summed over the copies first and multiplied by the factor after.",
        question="Is the other factor the same number for every copy of an element?",
        edits=(
            (
                "unbroadcast(gradient * other.data, self.shape)",
                "unbroadcast(gradient, self.shape) * other.data",
            ),
            (
                "unbroadcast(gradient * self.data, other.shape)",
                "unbroadcast(gradient, other.shape) * self.data",
            ),
        ),
    ),
    # order-matmul
    WrongAnswer(
        id="every-row-feels",
        step="order-matmul",
        belief="An entry of A would reach every row of Y.",
        question="Which entries of A stand in the sum that makes Y_ij?",
    ),
    WrongAnswer(
        id="indices-swapped",
        step="order-matmul",
        belief="The indices of B stand in the wrong order.",
        question="Which entry of B is multiplied by A_mk in the sum that makes Y_mj?",
    ),
    WrongAnswer(
        id="product-from-the-left",
        step="order-matmul",
        belief="B^T stands on the wrong side of G.",
        question="Are the inner lengths of this product equal when r, k and c differ?",
    ),
    # matmul-backward
    Mistake(
        id="right-not-transposed",
        step="matmul-backward",
        belief="The gradient is multiplied by the right side itself, not by its transpose.",
        question="Which two lengths meet in the middle of this product?",
        edits=(("gradient @ np.swapaxes(right, -1, -2)", "gradient @ right"),),
    ),
    Mistake(
        id="gradient-on-the-left",
        step="matmul-backward",
        belief="In the gradient of the right side the two factors stand in the wrong order.",
        question="Which shape must the gradient of the right side have?",
        edits=(
            (
                "np.swapaxes(left, -1, -2) @ gradient",
                "gradient @ np.swapaxes(left, -1, -2)",
            ),
        ),
    ),
    Mistake(
        id="gradients-exchanged",
        step="matmul-backward",
        belief="The two gradients come back in the wrong order.",
        question="Which operand does the first gradient belong to?",
        edits=(
            (
                "return unbroadcast(left_gradient, left.shape), "
                "unbroadcast(right_gradient, right.shape)",
                "return unbroadcast(right_gradient, right.shape), "
                "unbroadcast(left_gradient, left.shape)",
            ),
        ),
    ),
    Mistake(
        id="all-axes-reversed",
        step="matmul-backward",
        belief="The transpose reverses all axes, those of the batch included.",
        question="Which shape has `x.T` for x of shape (5, 3, 4)?",
        edits=(
            ("np.swapaxes(right, -1, -2)", "right.T"),
            ("np.swapaxes(left, -1, -2)", "left.T"),
        ),
    ),
    Mistake(
        id="batch-not-summed",
        step="matmul-backward",
        belief="A side that served every matrix of the batch keeps one gradient for each of them.",
        question="Which shape has the gradient of one matrix that was used for a batch of 5?",
        edits=(
            (
                "return unbroadcast(left_gradient, left.shape), "
                "unbroadcast(right_gradient, right.shape)",
                "return left_gradient, right_gradient",
            ),
        ),
    ),
    # sum-backward
    Mistake(
        id="axis-not-restored",
        step="sum-backward",
        belief="The gradient is stretched without its lost axis, so it aligns with the last axes.",
        question="Along which axis does an array of shape (3,) stretch to (3, 3)?",
        edits=(("_restore_axes(gradient, shape, axis, keepdims)", "gradient"),),
    ),
    Mistake(
        id="shared-out",
        step="sum-backward",
        belief="The gradient is divided among the terms, as for a mean.",
        question="By how much does a sum grow when one of its terms grows by 1?",
        edits=(
            (
                "return np.array(np.broadcast_to(restored, shape))",
                "share = restored.size / np.prod(shape)\n"
                "    return np.array(np.broadcast_to(restored, shape)) * share",
            ),
        ),
    ),
    Mistake(
        id="one-total-for-all",
        step="sum-backward",
        belief="Every element receives the total of the whole gradient.",
        question="Of how many of the sums is one element a term?",
        edits=(("np.broadcast_to(restored, shape)", "np.full(shape, np.sum(restored))"),),
    ),
    Mistake(
        id="stretched-view-returned",
        step="sum-backward",
        belief="A stretched view comes back: many elements, and one place in memory for them.",
        question="What changes when someone writes into one element of the result?",
        edits=(
            (
                "return np.array(np.broadcast_to(restored, shape))",
                "return np.broadcast_to(restored, shape)",
            ),
        ),
    ),
    # tensor-products
    Mistake(
        id="right-operand-forgotten",
        step="tensor-products",
        belief="The product does not remember its right operand.",
        question="Which of the two operands are the weights in `x @ w`?",
        edits=(
            ("self.data @ other.data, (self, other)", "self.data @ other.data, (self,)"),
            (
                "return matmul_backward(gradient, self.data, other.data)",
                "return matmul_backward(gradient, self.data, other.data)[:1]",
            ),
        ),
    ),
    Mistake(
        id="entrywise-rule",
        step="tensor-products",
        belief="The rule is that of the entrywise product.",
        question="How many entries of the result does one entry of the left operand reach?",
        edits=(
            (
                "return matmul_backward(gradient, self.data, other.data)",
                "return gradient * other.data, gradient * self.data",
            ),
        ),
    ),
    Mistake(
        id="rule-gets-them-swapped",
        step="tensor-products",
        belief="The rule is given the operands in the wrong order.",
        question="What is the second argument of matmul_backward?",
        edits=(
            (
                "matmul_backward(gradient, self.data, other.data)",
                "matmul_backward(gradient, other.data, self.data)",
            ),
        ),
    ),
    Mistake(
        id="sum-forgets-its-axis",
        step="tensor-products",
        belief="The rule of the sum does not know over which axis was summed.",
        question="Which two results of a sum have the same shape for a square matrix?",
        edits=(
            (
                "sum_backward(gradient, self.shape, axis, keepdims)",
                "sum_backward(gradient, self.shape)",
            ),
        ),
    ),
    Mistake(
        id="vectors-accepted",
        step="tensor-products",
        belief="Operands with one axis are accepted, for which the rule is not defined.",
        question="Which length of a vector of shape (3,) would be its number of columns?",
        edits=(("        require_matmul_shapes(self.data, other.data)\n", ""),),
    ),
    # tensor-backward
    Mistake(
        id="last-share-only",
        step="tensor-backward",
        belief="The last share replaces the earlier ones of the same node.",
        question="How does a tensor that is used twice reach the loss?",
        edits=(("gradients.get(parent, 0.0) + share", "share"),),
    ),
    Mistake(
        id="inputs-first",
        step="tensor-backward",
        belief="The nodes are visited from the inputs to the root.",
        question="What must be known of a node before its rule is called?",
        edits=(("reversed(topological_order(self))", "topological_order(self)"),),
    ),
    Mistake(
        id="given-gradient-ignored",
        step="tensor-backward",
        belief="The flow always starts with ones, whatever gradient was given.",
        question="What is dL/d(root) when the root is not the loss itself?",
        edits=(
            (
                "gradients = {self: self._first_gradient(gradient)}",
                "gradients = {self: np.ones(self.shape)}",
            ),
        ),
    ),
    Mistake(
        id="earlier-call-forgotten",
        step="tensor-backward",
        belief="A second call replaces what the first one found.",
        question="What should `grad` hold after the gradients of two batches?",
        edits=(("node.accumulate(gradient)", "node.grad = gradient"),),
    ),
    Mistake(
        id="constants-get-gradients",
        step="tensor-backward",
        belief="Tensors that do not require a gradient get one all the same.",
        question="Who will read the gradient of the training data?",
        edits=(("if node.requires_grad:", "if True:"),),
    ),
    # view-strides
    WrongFormula(
        id="strides-of-a-copy",
        step="view-strides",
        belief="These are the strides of a row-major copy with the new shape.",
        question="Does `transpose` move any element?",
        formula=lambda shape, axes: row_major_strides(tuple(shape[axis] for axis in axes)),
    ),
    WrongFormula(
        id="strides-unchanged",
        step="view-strides",
        belief="These are the strides of x itself.",
        question="Which element of x is the neighbour of element (0, 0, 0) on the new axis 0?",
        formula=lambda shape, axes: row_major_strides(shape),
    ),
    WrongFormula(
        id="order-read-backwards",
        step="view-strides",
        belief="Entry i of the order is read as the place to which old axis i goes.",
        question="Which shape has `np.empty((2, 3, 4)).transpose(1, 2, 0)`?",
        formula=inverse_order_strides,
    ),
    # tensor-views
    Mistake(
        id="views-copied",
        step="tensor-views",
        belief="The elements are copied, although another shape and other strides would do.",
        question="Which of the array's attributes change in a transpose?",
        edits=(
            ("self.data.reshape(shape), (self,)", "self.data.reshape(shape).copy(), (self,)"),
            ("self.data.transpose(order), (self,)", "self.data.transpose(order).copy(), (self,)"),
        ),
    ),
    Mistake(
        id="gradient-keeps-the-new-shape",
        step="tensor-views",
        belief="The gradient of a reshape is passed on in the new shape.",
        question="Which shape must the gradient of an operand have?",
        edits=(("return (gradient.reshape(self.shape),)", "return (gradient,)"),),
    ),
    Mistake(
        id="transpose-by-reshape",
        step="tensor-views",
        belief="The transpose is made by a reshape: the shape is right, the elements are not "
        "where they belong.",
        question="In which order does a reshape read the elements?",
        edits=(
            (
                "self.data.transpose(order)",
                "self.data.reshape([self.shape[axis] for axis in positive])",
            ),
        ),
    ),
    Mistake(
        id="same-order-back",
        step="tensor-views",
        belief="The gradient is transposed by the same order again, not by its inverse.",
        question="Where is axis 0 after the order (1, 2, 0) was applied twice?",
        edits=(("gradient.transpose(inverse)", "gradient.transpose(order)"),),
    ),
    Mistake(
        id="gradient-reshaped-back",
        step="tensor-views",
        belief="The gradient of a transpose is brought back by a reshape.",
        question="Which element of x does the entry (0, 1) of a transposed gradient belong to?",
        edits=(("gradient.transpose(inverse)", "gradient.reshape(self.shape)"),),
    ),
    # close-views
    WrongAnswer(
        id="copy-for-free",
        step="close-views",
        belief="The bytes that the making of the copy moves are not counted.",
        question="How does the copy read its elements, once?",
    ),
    WrongAnswer(
        id="gather-counted-dense",
        step="close-views",
        belief="A read along a column is counted like a read in the order of memory.",
        question="How many bytes arrive when one element is asked for?",
    ),
    WrongAnswer(
        id="view-takes-memory",
        step="close-views",
        belief="The view is counted as if it had elements of its own.",
        question="What does a transposed array own besides its shape and strides?",
    ),
)
