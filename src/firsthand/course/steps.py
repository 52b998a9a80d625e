"""The eight kinds of step, as typed declarations. A session's `steps.py` is a tuple of these.

A declaration says what is asked and how it is decided; it decides nothing itself. Files of the
learner are judged by `course/checks/`, typed answers by `course/questions/`. Every callable here is
the author's (trusted) code; a `driver` is the only one that runs beside the learner's code, in the
isolated child, so it must be a top-level function of the session's `steps.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

if TYPE_CHECKING:  # NumPy is not needed to declare a step, and `status` must start at once
    import numpy as np

Generator: TypeAlias = "np.random.Generator"
Arguments = tuple[Any, ...]
Parameters = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What all steps share.

    id: unique in its session, equal to the anchor of its heading in lesson.md (`{#id}`).
    hints: at most three, from general to specific; they never contain the solution.
    closes: the id of the concept that this step closes (PROTOCOL D3), if it does.
    """

    kind: ClassVar[str] = "Step"
    id: str
    hints: tuple[str, ...] = ()
    closes: str | None = None


# --------------------------------------------------------------------------- files: Build, Debug


@dataclass(frozen=True, kw_only=True)
class Relation:
    """A property that every right version has, checked on groups of calls (smallest first).

    says: the relation as a sentence with its formula, for the message.
    groups(generator) -> groups of argument tuples; each group is called as a whole.
    holds(group, outputs) -> True where the outputs of one group satisfy the relation.
    """

    says: str
    groups: Callable[[Generator], Sequence[Sequence[Arguments]]]
    holds: Callable[[Sequence[Arguments], Sequence[Any]], bool]


@dataclass(frozen=True, kw_only=True)
class Gradient:
    """The part returns derivatives; they are compared with central differences of `forward`.

    forward(*inputs) -> array, float64. inputs(arguments) -> the point, a tuple of arrays.
    cotangent(arguments) -> the upstream gradient, or None for an elementwise derivative.
    Of the part's output the leaves are taken in order, one per input.
    """

    forward: Callable[..., Any]
    inputs: Callable[[Arguments], tuple[Any, ...]]
    cotangent: Callable[[Arguments], Any] | None = None
    step: float = 1e-5


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What the returned array must be in memory; None where it does not matter.

    shares_argument: index of the argument whose memory the result must (view) share; -1 forbids
    sharing with any. contiguous: C-contiguous. most_bytes(arguments) -> the most that one call may
    allocate (peak of Python's and NumPy's own allocations, by tracemalloc).
    """

    shares_argument: int | None = None
    contiguous: bool | None = None
    most_bytes: Callable[[Arguments], int] | None = None


@dataclass(frozen=True, kw_only=True)
class Speed:
    """At most `ratio` times the reference's time on `arguments`, both timed in one process."""

    arguments: Callable[[Generator], Arguments]
    ratio: float
    why: str


@dataclass(frozen=True, kw_only=True)
class Build(Step):
    """The learner writes a part in the workspace; the check decides.

    part: 'foundations.neuron:dot_product' (module below the stack's package : top-level name).
    methods: for a class, the methods this step builds; the other methods are given or earlier.
    probes(generator) -> argument tuples, smallest first, values of scale about 1, dimension sizes
        pairwise different. They must separate every mistake from the reference.
    oracle(*arguments) -> the expected output, independent of the reference, in higher precision;
        where it raises, the part must raise an exception of that type too.
    driver(part, *arguments) -> what is compared; default `part(*arguments)`. Runs in the child.
    show(*arguments) -> the call as text that can be pasted; default: the part's name and arguments.
    small() -> arguments of the smallest case, worked by hand on the first rung.
    forbids: library functions that would be the answer, e.g. ('numpy.dot', '@').
    mutates: argument indices that the contract allows to be changed in place.
    key_line: a piece of the reference's line that the 'one line to fill' rung blanks.
    seconds, megabytes: limits of one whole check.
    """

    kind: ClassVar[str] = "Build"
    part: str
    methods: tuple[str, ...] = ()
    probes: Callable[[Generator], Sequence[Arguments]]
    oracle: Callable[..., Any]
    small: Callable[[], Arguments]
    key_line: str
    driver: Callable[..., Any] | None = None
    show: Callable[..., str] | None = None
    relations: tuple[Relation, ...] = ()
    gradient: Gradient | None = None
    layout: Layout | None = None
    speed: Speed | None = None
    forbids: tuple[str, ...] = ()
    mutates: tuple[int, ...] = ()
    seconds: float = 5.0
    megabytes: int = 2048


@dataclass(frozen=True, kw_only=True)
class Debug(Step):
    """The learner repairs one mistake in given code: `debug/<session>_<id>.py` in the workspace.

    build: the declaration of the part (a Build, not necessarily one of this session's steps) whose
    check decides. mistakes: ids, in mistakes.py, of the faults to choose from; the seed picks one.
    symptom(build) is shown first: what one sees from outside, never where it is.
    """

    kind: ClassVar[str] = "Debug"
    build: Build
    mistakes: tuple[str, ...]
    symptom: str


# --------------------------------------------------------------------------- typed answers


@dataclass(frozen=True, kw_only=True)
class Predict(Step):
    """A number or a shape before anything is run; fresh parameters at each attempt.

    draw(generator, small) -> parameters. ask: the question, a template of str.format over them.
    answer(**parameters) -> number, or tuple of ints for a shape, computed from the stack.
    unit: '' | 'bytes' | 'FLOPs' | ... ; bytes accept KiB/MB and so on. tolerance: relative; 0 for
    exact. working(**parameters) -> the derivation, a short line each, the last holding the answer.
    """

    kind: ClassVar[str] = "Predict"
    draw: Callable[[Generator, bool], Parameters]
    ask: str
    answer: Callable[..., float | int | tuple[int, ...]]
    working: Callable[..., Sequence[str]]
    unit: str = ""
    tolerance: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Expression:
    """One derivation: the question, the right expression, the symbols and where they are positive.

    answer, wrong: SymPy-readable text. wrong: mistake id -> expression. working: lines, the last
    holding the answer.
    """

    ask: str
    answer: str
    symbols: tuple[str, ...]
    working: tuple[str, ...]
    positive: tuple[str, ...] = ()
    functions: tuple[str, ...] = ()
    wrong: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Derive(Step):
    """The learner gives an expression; symbolic equality decides. draw(generator, small)."""

    kind: ClassVar[str] = "Derive"
    draw: Callable[[Generator, bool], Expression]


@dataclass(frozen=True, kw_only=True)
class Worked:
    """One worked example with blanks. given: shown text (a table, a graph, code).

    blanks: name -> value, in order. wrong: mistake id -> the values it would give, same names.
    working: one line for each blank, in order, ending in its value.
    """

    given: str
    blanks: Mapping[str, float | int | tuple[int, ...]]
    working: tuple[str, ...]
    tolerance: float = 1e-3
    wrong: Mapping[str, Mapping[str, float | int | tuple[int, ...]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Trace(Step):
    """The learner fills in intermediate values of a worked example. draw(generator, small)."""

    kind: ClassVar[str] = "Trace"
    draw: Callable[[Generator, bool], Worked]


@dataclass(frozen=True, kw_only=True)
class Measure(Step):
    """The learner runs an experiment on their own machine and reports it.

    ask: what to run (commands or code shown in full) and which number to report.
    experiment() -> the number, measured again when the answer is checked; it runs in a child.
    within: the answer may differ by this factor, e.g. 2.0 accepts half to double.
    ceiling: (low, high) that any honest measurement of this ratio keeps, with `why`.
    """

    kind: ClassVar[str] = "Measure"
    ask: str
    experiment: Callable[[], float]
    within: float
    working: Sequence[str]
    unit: str = ""
    seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a derivation. needs: ids of the lines that must stand before it."""

    id: str
    text: str
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Order(Step):
    """Put the lines in order and leave the wrong ones out; decided by the dependency graph.

    wrong: mistake id -> a wrong line mixed in.
    """

    kind: ClassVar[str] = "Order"
    ask: str
    lines: tuple[Line, ...]
    wrong: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A budget and the designs to choose from.

    text: the situation. choices: name -> description. figures: figure name -> value for each choice
    (choice -> figure -> value). units: figure -> unit. budget: figure -> the most it may be; a
    choice fits when it breaks none. best: of the fitting choices those that meet the stated goal.
    working: lines that work one choice out. wrong: mistake id -> choice -> figure -> value.
    """

    text: str
    choices: Mapping[str, str]
    figures: Mapping[str, Mapping[str, float]]
    best: tuple[str, ...]
    working: tuple[str, ...]
    units: Mapping[str, str] = field(default_factory=dict)
    budget: Mapping[str, float] = field(default_factory=dict)
    tolerance: float = 0.01
    wrong: Mapping[str, Mapping[str, Mapping[str, float]]] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Defend(Step):
    """Choose a design under a budget and state the figures; they are recomputed. draw(g, small)."""

    kind: ClassVar[str] = "Defend"
    draw: Callable[[Generator, bool], Scenario]


KINDS: tuple[type[Step], ...] = (Build, Predict, Derive, Trace, Debug, Measure, Order, Defend)


# --------------------------------------------------------------------------- mistakes


@dataclass(frozen=True, kw_only=True)
class Mistake:
    """A known misconception as a wrong version of a part (for Build and Debug steps).

    step: id of the Build step it belongs to. belief: what someone who writes this believes, one
    sentence. question: the one question asked when it is recognised; it must not hold the answer.
    edits: (old, new) pieces of the reference's source, each found exactly once in the part; or
    code: a whole wrong version (function, or subclass of the reference).
    """

    id: str
    step: str
    belief: str
    question: str
    edits: tuple[tuple[str, str], ...] = ()
    code: Callable[..., Any] | None = None


@dataclass(frozen=True, kw_only=True)
class WrongFormula:
    """A wrong formula of a Predict step: formula(**parameters) -> what it would answer."""

    id: str
    step: str
    belief: str
    question: str
    formula: Callable[..., float | int | tuple[int, ...]]


@dataclass(frozen=True, kw_only=True)
class WrongAnswer:
    """The words for a mistake that a Derive, Trace, Order or Defend step lists under `wrong`."""

    id: str
    step: str
    belief: str
    question: str


@dataclass(frozen=True, kw_only=True)
class Alternative:
    """Another right version of a part in another style: it must pass (PROTOCOL G4)."""

    step: str
    code: Callable[..., Any]


AnyMistake = Mistake | WrongFormula | WrongAnswer
