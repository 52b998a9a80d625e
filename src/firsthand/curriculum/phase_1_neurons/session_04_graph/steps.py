"""Session 1.4: a number that remembers how it was computed, and the pass back through it.

The probes and oracles are in `programs.py` and `orders.py`, the drawn cases in `cases.py`.
"""

import sys
from typing import Any

import numpy as np

from firsthand.course.checks.twins import twin
from firsthand.course.steps import Build, Debug, Defend, Derive, Predict, Relation, Trace
from firsthand.curriculum.phase_1_neurons.session_04_graph import orders, programs
from firsthand.curriculum.phase_1_neurons.session_04_graph.cases import (
    checkpointing,
    count_nodes,
    draw_chain,
    draw_chain_budget,
    draw_layer,
    draw_shared,
    nodes_working,
)
from firsthand.llm.foundations.scalar_autograd import Scalar

# --------------------------------------------------------------------------- drivers


def call_operations(part: Any, values: Any, program: Any) -> Any:
    """Driver: the value of the last node and, for each operand that is a node, its derivative."""
    nodes = [part(value) for value in values]
    for instruction in program:
        nodes.append(programs.apply(nodes, instruction))
    last = nodes.pop()
    pairs = zip(last.parents, last.local_derivatives, strict=True)
    known = [(node.data, local) for node, local in pairs if any(node is item for item in nodes)]
    return last.data, tuple(sorted(known))


def call_order(part: Any, graph: Any, tail: int) -> Any:
    """Driver: the numbers of the nodes in the order returned; -1 for a node that was never made.

    tail: so many nodes more, numbered from 100, each with the one before as its only parent.
    """
    scalar = twin(part, "foundations.scalar_autograd", "firsthand.llm").Scalar
    nodes: dict[int, Any] = {}
    for number, parents in graph:
        operands = tuple(nodes[parent] for parent in parents)
        nodes[number] = scalar(float(number), operands, (1.0,) * len(operands))
    root = nodes[graph[-1][0]]
    for number in range(orders.TAIL_START, orders.TAIL_START + tail):
        root = nodes[number] = scalar(float(number), (root,), (1.0,))
    numbers = {id(node): number for number, node in nodes.items()}
    order = part(root)
    return np.array([numbers.get(id(node), -1) for node in order], dtype=np.int64)


def call_backward(part: Any, values: Any, program: Any, calls: int) -> Any:
    """Driver: the gradients of all nodes, after `calls` backward passes from the last one."""
    nodes = [part(value) for value in values]
    for instruction in program:
        nodes.append(programs.apply(nodes, instruction))
    for _ in range(calls):
        part.backward(nodes[-1])
    return tuple(node.grad for node in nodes)


# --------------------------------------------------------------------------- steps

graph_nodes = Predict(
    id="graph-nodes",
    draw=draw_layer,
    ask=(
        "A layer of {neurons} neurons reads {inputs} inputs, all of them Scalars. Each neuron has "
        "a bias and {inputs} weights of its own, computes `b + w1*x1 + w2*x2 + ...` from left to "
        "right, one operation at a time, and applies tanh. The inputs are made once and read by "
        "all neurons. How many nodes has the graph of the whole layer?"
    ),
    unit="nodes",
    answer=count_nodes,
    working=nodes_working,
    hints=(
        "Count the nodes that one neuron adds to the graph, then those that all neurons share.",
        "A chain that starts at b and takes in n products needs one sum for each product.",
    ),
)

build_operations = Build(
    id="scalar-operations",
    part="foundations.scalar_autograd:Scalar",
    methods=("__add__", "__mul__"),
    probes=programs.operations_probes,
    oracle=programs.operations_oracle,
    driver=call_operations,
    show=programs.show_operations,
    small=lambda: ((7.0, -2.0), (("*", 0, 1),)),
    key_line="(other.data, self.data)",
    hints=(
        "An operation computes one number and makes one new node. What does the node remember?",
        "A plain number as operand becomes a node by `as_scalar`.",
        "For each derivative ask how the result moves when only that operand moves.",
    ),
)

chain_rule = Derive(
    id="chain-rule",
    draw=draw_chain,
    hints=(
        "Draw the graph and mark every way that leads from L back to x.",
        "Write the local derivative at each arrow; what happens to them along one way?",
        "Different ways to the same node: what happens to their results?",
    ),
)

build_functions = Build(
    id="elementary-functions",
    part="foundations.scalar_autograd:Scalar",
    methods=("exp", "tanh"),
    probes=programs.function_probes,
    oracle=programs.operations_oracle,
    driver=call_operations,
    show=programs.show_operations,
    small=lambda: ((0.0,), (("exp", 0),)),
    key_line="1.0 - value * value",
    relations=(
        Relation(
            says="tanh is odd: tanh(-a) = -tanh(a), and both have the same local derivative",
            groups=programs.mirrored,
            holds=programs.odd,
        ),
    ),
    hints=(
        "One operand, so one parent and one local derivative: a number, known now.",
        "`math` computes both functions; its error for a value that is too large may pass through.",
        "Both derivatives can be had from the value itself, without a second call.",
    ),
)

shared_node = Trace(
    id="shared-node",
    draw=draw_shared,
    hints=(
        "Compute all values first, from the top; the local derivatives need them.",
        "Go from the last node back, and finish a node before you use its gradient.",
        "List for each node every operation that reads it; an operand used twice is read twice.",
    ),
)

build_order = Build(
    id="topological-order",
    part="foundations.scalar_autograd:topological_order",
    probes=orders.order_probes,
    oracle=orders.order_oracle,
    driver=call_order,
    show=orders.show_order,
    small=lambda: (((6, ()), (2, (6,)), (9, (6, 2))), 0),
    key_line="stack.append((node, True))",
    relations=(
        Relation(
            says=(
                "every node that the root depends on stands there once, after all of its parents"
            ),
            groups=orders.branching,
            holds=orders.ordered,
        ),
    ),
    hints=(
        "A node may join the order when all of its parents have. When do you learn that?",
        "Meet a node twice: once to see its parents first, once when they are done.",
        "Keep the nodes that wait in a list of your own; a set tells which ones were met.",
    ),
)

build_backward = Build(
    id="backward-pass",
    part="foundations.scalar_autograd:Scalar",
    methods=("backward",),
    probes=programs.backward_probes,
    oracle=programs.backward_oracle,
    driver=call_backward,
    show=programs.show_backward,
    small=lambda: ((3.0, -2.0), (("*", 0, 1), ("+", 2, 0)), 1),
    key_line="derivatives[parent] = earlier + upstream * local",
    relations=(
        Relation(
            says="two calls add the same amounts twice: every gradient is twice that of one call",
            groups=programs.called_again,
            holds=lambda group, out: bool(
                np.allclose(np.asarray(out[1]), 2.0 * np.asarray(out[0]), atol=1e-9)
            ),
        ),
    ),
    hints=(
        "What is the derivative of the root with respect to itself?",
        "In which order must the nodes be taken so that each gradient is whole before it is used?",
        "Keep the derivatives of this call apart from what `grad` held before.",
    ),
)

repair_backward = Debug(
    id="repair-backward",
    build=build_backward,
    mistakes=("share-overwritten", "upstream-ignored", "old-gradients-reused"),
    symptom=(
        "On some graphs every gradient agrees with central differences; on others, or after a "
        "second call, some do not."
    ),
    hints=(
        "Try graphs from the smallest up: one product, a chain, a node with two users.",
        "On the first graph that fails, compute each share by hand and see which one is missing.",
        "Try one call and two calls on the same graph.",
    ),
)

keep_or_recompute = Defend(
    id="keep-or-recompute",
    draw=draw_chain_budget,
    closes="computational-graph",
    hints=(
        "Two groups of arrays are alive at the worst moment: which?",
        "In a segment of k operations the first input is there; how many are recomputed?",
        "Work out all designs; more than one fits.",
    ),
)

STEPS = (
    graph_nodes,
    build_operations,
    chain_rule,
    build_functions,
    shared_node,
    build_order,
    build_backward,
    repair_backward,
    keep_or_recompute,
)

# --------------------------------------------------------------------------- for the prose


def example_neuron() -> dict[str, Scalar]:
    """The neuron tanh(w x + b) of the prose, node by node."""
    w, x, b = Scalar(0.5, label="w"), Scalar(2.0, label="x"), Scalar(-0.25, label="b")
    u = w * x
    v = u + b
    return {"w": w, "x": x, "b": b, "u": u, "v": v, "y": v.tanh()}


def example_shared(calls: int) -> dict[str, Scalar]:
    """The graph r = p q, s = p + q, t = r s of the prose, after `calls` backward passes."""
    p, q = Scalar(2.0, label="p"), Scalar(-3.0, label="q")
    r, s = p * q, p + q
    t = r * s
    for _ in range(calls):
        t.backward()
    return {"p": p, "q": q, "r": r, "s": s, "t": t}


def example_product(p: float) -> float:
    """The value of t in that graph for another p, without any graph."""
    q = SHARED["q"].data
    return float((p * q) * (p + q))


NEURON = example_neuron()
SHARED = example_shared(1)
SHARED_TWICE = example_shared(2)
NUDGE = 0.001
NUDGED_SLOPE = (
    example_product(SHARED["p"].data + NUDGE) - example_product(SHARED["p"].data - NUDGE)
) / (2 * NUDGE)
SHARED_ARROWS = sum(len(node.parents) for node in SHARED.values())
PAIR_BYTES = sys.getsizeof((SHARED["p"], SHARED["q"]))
NODE_BYTES = sys.getsizeof(SHARED["t"]) + 2 * PAIR_BYTES + 2 * sys.getsizeof(SHARED["t"].data)
RECURSION_LIMIT = sys.getrecursionlimit()
FAR_INPUT = 400.0
FAR_TANH = Scalar(FAR_INPUT).tanh()
PROSE_CHAIN = 36
PROSE_SPACINGS = (1, 2, 6, 18, 36)
PROSE_RUNS = {every: checkpointing(PROSE_CHAIN, every) for every in PROSE_SPACINGS}
