"""Graphs as data, for the topological order: drawn, shown as Python, and put in order.

A graph lists its nodes in the order in which they are made: (number, numbers of the parents).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from firsthand.course.steps import Arguments, Generator

Graph = tuple[tuple[int, tuple[int, ...]], ...]
DEEP = 1500  # nodes; more than the 1000 frames that Python allows by default
TAIL_START = 100


def tuple_text(items: Sequence[str]) -> str:
    return f"({items[0]},)" if len(items) == 1 else f"({', '.join(items)})"


def show_order(graph: Graph, tail: int) -> str:
    lines = []
    for number, parents in graph:
        operands = tuple_text([f"n{parent}" for parent in parents])
        rest = f", {operands}, {tuple_text(['1.0'] * len(parents))}" if parents else ""
        lines.append(f"n{number} = Scalar({number}.0{rest})")
    root = f"n{graph[-1][0]}"
    if not tail:
        return "; ".join([*lines, f"[int(node.data) for node in topological_order({root})]"])
    return (
        f"{'; '.join(lines)}; last = {root}\n"
        f"for i in range({TAIL_START}, {TAIL_START + tail}):\n"
        "    last = Scalar(i, (last,), (1.0,))\n"
        "[int(node.data) for node in topological_order(last)]"
    )


def ancestors(graph: Graph) -> set[int]:
    """The last node and everything that it depends on."""
    parents = dict(graph)
    found: set[int] = set()
    waiting = [graph[-1][0]]
    while waiting:
        number = waiting.pop()
        if number not in found:
            found.add(number)
            waiting.extend(parents[number])
    return found


def order_oracle(graph: Graph, tail: int) -> np.ndarray:
    """Kahn's algorithm, for graphs that have one order only: take the node with no open parent."""
    graph = graph + tuple(
        (number, (number - 1 if number > TAIL_START else graph[-1][0],))
        for number in range(TAIL_START, TAIL_START + tail)
    )
    wanted = ancestors(graph)
    open_parents = {number: set(parents) for number, parents in graph if number in wanted}
    users: dict[int, list[int]] = {number: [] for number in wanted}
    for number in wanted:
        for parent in open_parents[number]:
            users[parent].append(number)
    ready = [number for number in wanted if not open_parents[number]]
    order = []
    while ready:
        if len(ready) > 1:
            raise AssertionError(f"this graph has several orders: {graph}")
        number = ready.pop()
        order.append(number)
        for user in users[number]:
            open_parents[user].discard(number)
            if not open_parents[user]:
                ready.append(user)
    return np.array(order, dtype=np.int64)


def drawn_graph(generator: Generator, size: int, *, single_order: bool) -> Graph:
    """A random graph; with `single_order` each node reads the one made before it."""
    numbers = [int(number) for number in generator.choice(np.arange(1, 30), size, replace=False)]
    graph: list[tuple[int, tuple[int, ...]]] = [(numbers[0], ())]
    for index in range(1, size):
        earlier = [numbers[int(generator.integers(index))] for _ in range(2)]
        if single_order:
            earlier[0] = numbers[index - 1]
        elif index < 3:
            earlier = []
        graph.append((numbers[index], tuple(earlier[:: int(generator.choice([-1, 1]))])))
    return tuple(graph)


def order_probes(generator: Generator) -> Sequence[Arguments]:
    graphs: list[Graph] = [
        ((5, ()),),
        ((2, ()), (1, (2,))),
        ((3, ()), (9, (3, 3))),
        ((4, ()), (2, (4,)), (7, (2, 4))),
        ((4, ()), (2, (4,)), (7, (4, 2))),
        ((6, ()), (1, (6,)), (8, (1,)), (3, (1, 6))),  # 8 is made, but 3 does not depend on it
        *(drawn_graph(generator, size, single_order=True) for size in (5, 6, 7)),
    ]
    return [*((graph, 0) for graph in graphs), (((4, ()), (2, (4,))), DEEP)]


def branching(generator: Generator) -> Sequence[Sequence[Arguments]]:
    fixed: Graph = ((4, ()), (1, (4,)), (7, (4,)), (2, (1, 7)))
    drawn = (drawn_graph(generator, size, single_order=False) for size in (5, 6, 8))
    return [[(graph, 0)] for graph in (fixed, *drawn)]


def ordered(group: Sequence[Arguments], out: Sequence[Any]) -> bool:
    graph, _ = group[0]
    order = [int(number) for number in out[0]]
    place = {number: index for index, number in enumerate(order)}
    return (
        len(place) == len(order)
        and set(order) == ancestors(graph)
        and all(
            place[parent] < place[number]
            for number, parents in graph
            if number in place
            for parent in parents
        )
    )
