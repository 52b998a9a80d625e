"""Reverse-mode automatic differentiation over single numbers.

Each operation makes a node that remembers its operands (`parents`) and, for each of them,
the derivative of the result (`local_derivatives`). The chain rule is then one loop over the
nodes, from the result back. Source: Baydin et al. 2018, "Automatic differentiation in
machine learning: a survey", section 3.2.
"""

import math
from collections.abc import Iterable
from typing import Protocol, Self, TypeVar


class GraphNode(Protocol):
    """Anything that knows the nodes it was computed from."""

    @property
    def parents(self) -> tuple[Self, ...]: ...


Node = TypeVar("Node", bound=GraphNode)


class Scalar:
    """A number that remembers how it was computed.

    Attributes:
        data: the value.
        grad: the sum of what each `backward` call found for d(root)/d(self); starts at 0.0.
        parents: the operands it was computed from; () for an input. An operand used twice
            stands there twice.
        local_derivatives: d(self)/d(parent) for each entry of `parents`.
        operation: the name of the operation, "" for an input.
        label: a name for the drawings, "" by default.
    """

    __slots__ = ("data", "grad", "label", "local_derivatives", "operation", "parents")

    def __init__(
        self,
        data: float,
        parents: tuple["Scalar", ...] = (),
        local_derivatives: tuple[float, ...] = (),
        operation: str = "",
        label: str = "",
    ) -> None:
        if len(parents) != len(local_derivatives):
            raise ValueError(
                f"{len(parents)} parents but {len(local_derivatives)} local derivatives"
            )
        self.data = float(data)
        self.grad = 0.0
        self.parents = parents
        self.local_derivatives = local_derivatives
        self.operation = operation
        self.label = label

    def __repr__(self) -> str:
        return f"Scalar({self.data:.6g}, grad={self.grad:.6g})"

    def __add__(self, other: "Scalar | float") -> "Scalar":
        """self + other; the result is a new node."""
        other = as_scalar(other)
        return Scalar(self.data + other.data, (self, other), (1.0, 1.0), "+")

    def __mul__(self, other: "Scalar | float") -> "Scalar":
        """self * other; the result is a new node."""
        other = as_scalar(other)
        return Scalar(self.data * other.data, (self, other), (other.data, self.data), "*")

    def __neg__(self) -> "Scalar":
        """-self; the result is a new node."""
        return Scalar(-self.data, (self,), (-1.0,), "neg")

    def __sub__(self, other: "Scalar | float") -> "Scalar":
        """self - other; the result is a new node."""
        other = as_scalar(other)
        return Scalar(self.data - other.data, (self, other), (1.0, -1.0), "-")

    def __truediv__(self, other: "Scalar | float") -> "Scalar":
        """self / other; the result is a new node.

        Raises:
            ZeroDivisionError: other is 0.
        """
        other = as_scalar(other)
        quotient = self.data / other.data
        return Scalar(quotient, (self, other), (1.0 / other.data, -quotient / other.data), "/")

    def __pow__(self, exponent: float) -> "Scalar":
        """self ** exponent for a constant exponent; the result is a new node.

        Raises:
            TypeError: the exponent is a Scalar.
            ValueError: a negative number to a fractional power.
            ZeroDivisionError: 0 to a negative power, or to one between 0 and 1 (whose
                derivative does not exist at 0).
        """
        if not isinstance(exponent, int | float):
            raise TypeError(f"the exponent must be a plain number, not {type(exponent).__name__}")
        if self.data < 0 and exponent != int(exponent):
            raise ValueError(f"{self.data} ** {exponent} is not a real number")
        power = self.data**exponent
        # x ** 0 is constant; the general formula would divide by zero at x = 0.
        derivative = exponent * self.data ** (exponent - 1) if exponent != 0 else 0.0
        return Scalar(power, (self,), (derivative,), f"**{exponent:g}")

    def exp(self) -> "Scalar":
        """e ** self; the result is a new node.

        Raises:
            OverflowError: self is above about 709.
        """
        value = math.exp(self.data)
        return Scalar(value, (self,), (value,), "exp")

    def log(self) -> "Scalar":
        """The natural logarithm; the result is a new node.

        Raises:
            ValueError: self is not positive.
        """
        if self.data <= 0:
            raise ValueError(f"the logarithm of {self.data} is not a real number")
        return Scalar(math.log(self.data), (self,), (1.0 / self.data,), "log")

    def tanh(self) -> "Scalar":
        """The hyperbolic tangent; the result is a new node."""
        value = math.tanh(self.data)
        return Scalar(value, (self,), (1.0 - value * value,), "tanh")

    def relu(self) -> "Scalar":
        """max(self, 0); the result is a new node. The derivative at 0 is 0."""
        derivative = 1.0 if self.data > 0 else 0.0
        return Scalar(max(self.data, 0.0), (self,), (derivative,), "relu")

    def __radd__(self, other: float) -> "Scalar":
        return as_scalar(other) + self

    def __rmul__(self, other: float) -> "Scalar":
        return as_scalar(other) * self

    def __rsub__(self, other: float) -> "Scalar":
        return as_scalar(other) - self

    def __rtruediv__(self, other: float) -> "Scalar":
        return as_scalar(other) / self

    def backward(self) -> None:
        """Add d(self)/d(node) to `grad` of every node that self was computed from, and of self.

        By the chain rule the derivative for a node is the sum, over the nodes it feeds, of
        their derivative times the local one; a node used twice gets both shares. Gradients
        accumulate: a second call without `zero_gradients` adds the same amounts again.
        """
        derivatives = {self: 1.0}
        for node in reversed(topological_order(self)):
            upstream = derivatives[node]
            node.grad += upstream
            for parent, local in zip(node.parents, node.local_derivatives, strict=True):
                earlier = derivatives.get(parent, 0.0)
                derivatives[parent] = earlier + upstream * local


def as_scalar(value: Scalar | float) -> Scalar:
    """The value itself when it is a Scalar, else a new input node with that value.

    Raises:
        TypeError: neither a Scalar nor a number.
    """
    if isinstance(value, Scalar):
        return value
    if isinstance(value, str):
        raise TypeError(f"a Scalar does not combine with the text {value!r}")
    return Scalar(float(value))


def topological_order(root: Node) -> list[Node]:
    """Every node that `root` depends on, once each, parents before children, `root` last.

    Works for chains of any depth (Python's recursion limit plays no part).
    Source: Cormen et al. 2022, "Introduction to Algorithms", section 20.4.

    Args:
        root: a node with `parents` (a `Scalar` or a `Tensor`).
    """
    order: list[Node] = []
    entered: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, parents_are_done = stack.pop()
        if parents_are_done:
            order.append(node)
        elif node not in entered:
            entered.add(node)
            stack.append((node, True))
            stack.extend((parent, False) for parent in node.parents)
    return order


def zero_gradients(nodes: Iterable[Scalar]) -> None:
    """Set `grad` of each node to 0.0."""
    for node in nodes:
        node.grad = 0.0


def _names(root: Scalar) -> dict[Scalar, str]:
    return {node: f"n{number}" for number, node in enumerate(topological_order(root))}


def _describe(node: Scalar) -> str:
    kind = node.label or node.operation or "input"
    if node.label and node.operation:
        kind = f"{node.label}: {node.operation}"
    return f"{kind} = {node.data:.6g}, grad {node.grad:.6g}"


def format_graph(root: Scalar) -> str:
    """The graph as indented text: the root first, each operand two spaces further in.

    A node that was shown above is only named again, so shared nodes are visible as such.
    """
    names = _names(root)
    lines: list[str] = []
    shown: set[Scalar] = set()
    stack = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        indent = "  " * depth
        if node in shown:
            lines.append(f"{indent}{names[node]} (above)")
            continue
        shown.add(node)
        lines.append(f"{indent}{names[node]} {_describe(node)}")
        stack.extend((parent, depth + 1) for parent in reversed(node.parents))
    return "\n".join(lines)


def draw_graph(root: Scalar) -> str:
    """The graph as Mermaid text; an arrow runs from operand to result, with the local derivative.

    An operand used twice by one operation has two arrows.
    """
    names = _names(root)
    lines = ["flowchart LR"]
    for node, name in names.items():
        text = _describe(node).replace('"', "#quot;")
        lines.append(f'  {name}["{text}"]')
    for node, name in names.items():
        for parent, local in zip(node.parents, node.local_derivatives, strict=True):
            lines.append(f'  {names[parent]} -->|"{local:.6g}"| {name}')
    return "\n".join(lines)
