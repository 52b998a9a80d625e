import math
import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from firsthand.llm.foundations.scalar_autograd import (
    Scalar,
    draw_graph,
    format_graph,
    topological_order,
    zero_gradients,
)

torch.set_num_threads(1)

# Each takes two operands and stays within the domain of every operation for any values.
OPERATIONS: list[Callable[..., object]] = [
    lambda a, b: a + b,
    lambda a, b: a - b,
    lambda a, b: a * b,
    lambda a, b: -a,
    lambda a, b: a / (b * b + 1.5),
    lambda a, b: 2.0 / (a * a + 1),
    lambda a, b: 3 - a,
    lambda a, b: 2 * a + 1,
    lambda a, b: a**3,
    lambda a, b: (a * a + 1.0) ** -0.5,
    lambda a, b: a.tanh(),
    lambda a, b: a.relu(),
    lambda a, b: a.tanh().exp(),
    lambda a, b: (b * b + 0.5).log(),
]


@given(st.integers(0, 10**6), st.integers(1, 25))
def test_random_graphs_against_torch(seed: int, length: int) -> None:
    chooser = random.Random(seed)
    values = [chooser.uniform(-2.0, 2.0) for _ in range(3)]
    ours = [Scalar(value) for value in values]
    theirs = [torch.tensor(value, dtype=torch.float64, requires_grad=True) for value in values]
    leaves, oracle_leaves = list(ours), list(theirs)
    for _ in range(length):
        operation = chooser.choice(OPERATIONS)
        left, right = chooser.randrange(len(ours)), chooser.randrange(len(ours))
        # tanh keeps long random chains from overflowing.
        ours.append(operation(ours[left], ours[right]).tanh())
        theirs.append(torch.tanh(operation(theirs[left], theirs[right])))
    total, oracle_total = sum(ours, Scalar(0.0)), sum(theirs)
    total.backward()
    oracle_total.backward()
    assert total.data == pytest.approx(oracle_total.item(), rel=1e-12)
    for leaf, oracle in zip(leaves, oracle_leaves, strict=True):
        assert leaf.grad == pytest.approx(oracle.grad.item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("function", "value", "derivative"),
    [
        (lambda x: x * x, 9.0, 6.0),
        (lambda x: x + x + x, 9.0, 3.0),
        (lambda x: x / x, 1.0, 0.0),
        (lambda x: x - x, 0.0, 0.0),
        (lambda x: 6 / x, 2.0, -2 / 3),
        (lambda x: x**0, 1.0, 0.0),
        (lambda x: x.exp(), math.exp(3), math.exp(3)),
        (lambda x: x.log(), math.log(3), 1 / 3),
        (lambda x: (-x).relu(), 0.0, 0.0),
        (lambda x: (x - 3).relu(), 0.0, 0.0),
    ],
)
def test_one_operation_at_three(
    function: Callable[[Scalar], Scalar], value: float, derivative: float
) -> None:
    x = Scalar(3.0)
    result = function(x)
    result.backward()
    assert result.data == pytest.approx(value)
    assert x.grad == pytest.approx(derivative)


def test_a_shared_node_gets_both_shares() -> None:
    x = Scalar(2.0)
    shared = x * 3.0
    result = shared * shared + shared
    result.backward()
    assert shared.grad == 13.0
    assert x.grad == 39.0


def test_gradients_accumulate_until_they_are_zeroed() -> None:
    x = Scalar(2.0)
    middle = x * x
    result = middle * middle
    result.backward()
    once = (x.grad, middle.grad, result.grad)
    result.backward()
    assert (x.grad, middle.grad, result.grad) == tuple(2 * gradient for gradient in once)
    assert once == (32.0, 8.0, 1.0)
    zero_gradients(topological_order(result))
    assert (x.grad, middle.grad, result.grad) == (0.0, 0.0, 0.0)


def test_a_chain_of_fifty_thousand_nodes() -> None:
    x = Scalar(1.5)
    node = x
    for _ in range(50_000):
        node = node + 1e-3
    assert len(topological_order(node)) == 100_001
    node.backward()
    assert x.grad == 1.0
    assert node.data == pytest.approx(51.5)


@given(st.integers(0, 10**6))
def test_parents_stand_before_children_and_once(seed: int) -> None:
    chooser = random.Random(seed)
    nodes = [Scalar(1.0)]
    for _ in range(20):
        nodes.append(chooser.choice(nodes) + chooser.choice(nodes))
    order = topological_order(nodes[-1])
    position = {node: place for place, node in enumerate(order)}
    assert len(position) == len(order)
    assert order[-1] is nodes[-1]
    assert all(position[p] < position[n] for n in order for p in n.parents)


def test_text_of_a_graph() -> None:
    a = Scalar(2.0, label="a")
    result = a * a + 3
    result.backward()
    assert format_graph(result) == (
        "n3 + = 7, grad 1\n"
        "  n2 * = 4, grad 1\n"
        "    n1 a = 2, grad 4\n"
        "    n1 (above)\n"
        "  n0 input = 3, grad 1"
    )


def test_drawing_of_a_graph() -> None:
    a = Scalar(2.0, label='the "a"')
    result = a * a
    drawn = draw_graph(result).splitlines()
    assert drawn == [
        "flowchart LR",
        '  n0["the #quot;a#quot; = 2, grad 0"]',
        '  n1["* = 4, grad 0"]',
        '  n0 -->|"2"| n1',
        '  n0 -->|"2"| n1',
    ]


def test_undefined_operations_are_refused() -> None:
    with pytest.raises(ValueError, match=r"-1\.0"):
        Scalar(-1.0).log()
    with pytest.raises(ValueError, match="logarithm"):
        Scalar(0.0).log()
    with pytest.raises(ValueError, match="not a real number"):
        Scalar(-2.0) ** 0.5
    with pytest.raises(TypeError, match="Scalar"):
        Scalar(2.0) ** Scalar(2.0)  # type: ignore[operator]
    with pytest.raises(ZeroDivisionError):
        Scalar(1.0) / 0.0
    with pytest.raises(ZeroDivisionError):
        Scalar(0.0) ** 0.5
    with pytest.raises(OverflowError):
        Scalar(1000.0).exp()
    with pytest.raises(TypeError, match="text"):
        Scalar(1.0) + "2"  # type: ignore[operator]
    with pytest.raises(ValueError, match="1 parents but 0"):
        Scalar(1.0, (Scalar(1.0),))


def test_numpy_numbers_are_numbers() -> None:
    assert (Scalar(1.0) + np.float64(2.0)).data == 3.0
