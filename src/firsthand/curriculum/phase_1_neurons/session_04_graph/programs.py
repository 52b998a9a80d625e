"""Small computations as data: run, shown as Python, and differentiated without any graph.

A program makes one node an instruction. `("*", 0, 1)` multiplies the nodes 0 and 1, a float operand
is a constant, `("exp", 2)` has one operand.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from firsthand.course.steps import Arguments, Generator

LETTERS = "abcdefgh"

Instruction = tuple[Any, ...]
Program = tuple[Instruction, ...]

FUNCTIONS: dict[str, Callable[..., Any]] = {
    "+": lambda one, other: one + other,
    "*": lambda one, other: one * other,
    "exp": np.exp,
    "tanh": np.tanh,
}


def apply(nodes: Sequence[Any], instruction: Instruction) -> Any:
    """The node that an instruction makes from the nodes before it."""
    name, *operands = instruction
    first, *others = (nodes[item] if isinstance(item, int) else item for item in operands)
    if name == "+":
        return first + others[0]
    if name == "*":
        return first * others[0]
    return getattr(first, name)()


def operand_text(item: int | float) -> str:
    return LETTERS[item] if isinstance(item, int) else f"{item:g}"


def instruction_text(instruction: Instruction) -> str:
    name, *operands = instruction
    texts = [operand_text(item) for item in operands]
    return f"{texts[0]} {name} {texts[1]}" if len(texts) == 2 else f"{texts[0]}.{name}()"


def statements(values: Sequence[float], program: Program) -> list[str]:
    """The program in Python, one statement an entry."""
    lines = [f"{LETTERS[index]} = Scalar({value!r})" for index, value in enumerate(values)]
    for index, instruction in enumerate(program, start=len(values)):
        lines.append(f"{LETTERS[index]} = {instruction_text(instruction)}")
    return lines


def evaluate(
    values: Sequence[float], program: Program, node: int = -1, shift: Any = 0
) -> list[np.longdouble]:
    """Every value of the program in extended precision, `shift` added to one node."""
    nodes: list[np.longdouble] = []
    for index in range(len(values) + len(program)):
        if index < len(values):
            value = np.longdouble(values[index])
        else:
            name, *operands = program[index - len(values)]
            value = FUNCTIONS[name](
                *(nodes[item] if isinstance(item, int) else item for item in operands)
            )
        nodes.append(value + shift if index == node else value)
    return nodes


def slope(function: Callable[[Any], Any]) -> float:
    """The derivative at 0, by central differences of fourth order in extended precision."""
    step = np.longdouble(1e-3)
    near = function(step) - function(-step)
    far = function(2 * step) - function(-2 * step)
    return float((8 * near - far) / (12 * step))


def distinct(generator: Generator, count: int) -> tuple[float, ...]:
    """Values with two decimals, between 0.3 and 2.5 in size and well apart from each other."""
    while True:
        sizes = np.round(generator.uniform(0.3, 2.5, size=count), 2)
        if count == 1 or np.min(np.diff(np.sort(sizes))) > 0.1:
            signs = generator.choice([-1.0, 1.0], size=count)
            return tuple(float(value) for value in np.round(sizes * signs, 2))


def show_operations(values: Sequence[float], program: Program) -> str:
    lines = statements(values, program)
    last = LETTERS[len(lines) - 1]
    before = ", ".join(LETTERS[: len(lines) - 1])
    lines.append(
        f"({last}.data, sorted((p.data, local) for p, local in "
        f"zip({last}.parents, {last}.local_derivatives) if p in [{before}]))"
    )
    return "; ".join(lines)


def operations_oracle(values: Sequence[float], program: Program) -> tuple[Any, ...]:
    """Each operand of the last instruction moved by itself, in extended precision."""
    nodes = evaluate(values, program)
    name, *operands = program[-1]
    numbers = [nodes[item] if isinstance(item, int) else item for item in operands]
    if not np.isfinite(float(nodes[-1])):
        raise OverflowError("the value is no float64")

    def moved(slot: int) -> Callable[[Any], Any]:
        return lambda shift: FUNCTIONS[name](
            *(number + shift if at == slot else number for at, number in enumerate(numbers))
        )

    known = [
        (float(numbers[slot]), slope(moved(slot)))
        for slot, item in enumerate(operands)
        if isinstance(item, int)
    ]
    return float(nodes[-1]), tuple(sorted(known))


def operations_probes(generator: Generator) -> Sequence[Arguments]:
    sum_of, product_of = ("+", 0, 1), ("*", 0, 1)
    return [
        ((2.0, 5.0), (sum_of,)),
        ((2.0, 5.0), (product_of,)),
        ((3.0,), (("*", 0, 0),)),
        (distinct(generator, 2), (sum_of,)),
        (distinct(generator, 2), (product_of,)),
        (distinct(generator, 1), (("*", 0, 4.0),)),
        (distinct(generator, 2), (product_of, ("+", 2, 0))),
        (distinct(generator, 3), (sum_of, ("*", 3, 2), ("*", 4, 0))),
    ]


def function_probes(generator: Generator) -> Sequence[Arguments]:
    return [
        ((0.0,), (("tanh", 0),)),
        ((0.0,), (("exp", 0),)),
        ((0.5,), (("tanh", 0),)),
        ((2.0,), (("exp", 0),)),
        (distinct(generator, 1), (("tanh", 0),)),
        (distinct(generator, 1), (("exp", 0),)),
        (distinct(generator, 1), (("tanh", 0), ("exp", 1))),
        ((-3.0,), (("exp", 0),)),
        ((400.0,), (("tanh", 0),)),
        ((710.0,), (("exp", 0),)),
    ]


def mirrored(generator: Generator) -> Sequence[Sequence[Arguments]]:
    return [
        [((value,), (("tanh", 0),)), ((-value,), (("tanh", 0),))]
        for value in (1.0, *map(abs, distinct(generator, 2)))
    ]


def odd(group: Sequence[Arguments], out: Sequence[Any]) -> bool:
    (value, ((_, local),)), (other, ((_, other_local),)) = out
    return bool(np.isclose(value, -other) and np.isclose(local, other_local))


def show_backward(values: Sequence[float], program: Program, calls: int) -> str:
    lines = statements(values, program)
    names = LETTERS[: len(lines)]
    lines += [f"{names[-1]}.backward()"] * calls
    lines.append(f"[node.grad for node in [{', '.join(names)}]]")
    return "; ".join(lines)


def backward_oracle(values: Sequence[float], program: Program, calls: int) -> tuple[float, ...]:
    """Each node moved by itself, everything after it computed again; no chain rule in sight."""

    def moved(node: int) -> Callable[[Any], Any]:
        return lambda shift: evaluate(values, program, node, shift)[-1]

    count = len(values) + len(program)
    return tuple(calls * slope(moved(node)) for node in range(count))


def backward_probes(generator: Generator) -> Sequence[Arguments]:
    diamond = (("*", 0, 1), ("+", 2, 0), ("*", 3, 2))
    deep = (("*", 0, 1), ("tanh", 2), ("+", 3, 0), ("*", 4, 3), ("*", 5, 0.5))
    aside = (("*", 0, 1), ("exp", 1), ("+", 2, 0))  # the exp is made, but nothing reads it
    return [
        ((2.0,), (), 1),
        ((2.0, 5.0), (("+", 0, 1),), 1),
        ((2.0, 5.0), (("*", 0, 1),), 1),
        ((3.0,), (("*", 0, 0),), 1),
        (distinct(generator, 2), (("*", 0, 1), ("tanh", 2)), 1),
        (distinct(generator, 2), diamond, 1),
        (distinct(generator, 2), aside, 1),
        (distinct(generator, 2), diamond, 2),
        (distinct(generator, 2), deep, 1),
        (distinct(generator, 3), (("*", 0, 1), ("*", 3, 2), ("exp", 3), ("*", 4, 5)), 1),
    ]


def called_again(generator: Generator) -> Sequence[Sequence[Arguments]]:
    programs: tuple[tuple[int, Program], ...] = (
        (2, (("*", 0, 1),)),
        (2, (("*", 0, 1), ("*", 2, 0))),
        (2, (("+", 0, 1), ("tanh", 2), ("*", 3, 0))),
    )
    groups = []
    for count, program in programs:
        values = distinct(generator, count)
        groups.append([(values, program, 1), (values, program, 2)])
    return groups
