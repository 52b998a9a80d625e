"""Versions of a part that know nothing: what they return must never pass a check.

A stored expectation that zeros, a flipped sign or the argument itself satisfies tests nothing
(CHECKS.md, "What other systems got wrong").
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from firsthand.course.checks.comparison import leaves


@dataclass
class Cheat:
    """A version that knows nothing. touched: how many numbers of the right answers it changed."""

    name: str
    part: Any
    touched: int = 0


def cheats(reference: Any) -> Iterator[Cheat]:
    """Zeros, the negated answer, the first argument back. None for classes: nothing to change."""
    if not inspect.isfunction(reference):
        return

    def changing(name: str, change: Callable[[Any], Any]) -> Cheat:
        def cheat(*arguments: Any, **named: Any) -> Any:
            return mapped(reference(*arguments, **named), counted)

        def counted(number: Any) -> Any:
            found.touched += 1
            return change(number)

        found = Cheat(name, cheat)
        return found

    def first(*arguments: Any, **named: Any) -> Any:
        return arguments[0] if arguments else next(iter(named.values()))

    for found in (
        changing("a version that returns zeros", lambda number: number * 0),
        changing("the negated answer", lambda number: -number),
        Cheat("the first argument returned", first, touched=1),
    ):
        found.part.__signature__ = inspect.signature(reference)
        yield found


def mapped(value: Any, change: Callable[[Any], Any]) -> Any:
    """`change` applied to every number and array of a result."""
    if isinstance(value, tuple):
        return tuple(mapped(item, change) for item in value)
    if isinstance(value, list):
        return [mapped(item, change) for item in value]
    if isinstance(value, Iterator):
        return (mapped(item, change) for item in value)
    if isinstance(value, bool | np.bool_):
        return change(int(value)) != 0
    if isinstance(value, int | float | np.ndarray | np.number):
        return change(value)
    return value


def pairwise_different(arguments: tuple[Any, ...]) -> bool:
    """Whether no array of these arguments has two axes of one size (above 1)."""
    for leaf in leaves(arguments):
        if isinstance(leaf.value, np.ndarray):
            sizes = [size for size in leaf.value.shape if size > 1]
            if len(sizes) != len(set(sizes)):
                return False
    return True
