"""When memory begins and ends in a forward and backward pass, without a single array.

A `Value` is a tensor without its numbers: how many elements of how many bytes, and the storage it
lies in. Storages end as PyTorch's do, when nothing refers to them any more, so a program over
values that names its variables as the stack does has the stack's memory at every moment. The
backward pass runs as PyTorch's engine runs it: of the nodes whose results are complete the one made
last comes first, a second gradient of one value is added into the first in place, and what a node
kept is free when it has run. Source: PyTorch, "Autograd mechanics"; `torch/csrc/autograd/engine`.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Literal

Category = Literal[
    "weights",
    "gradients",
    "optimizer",
    "average",
    "activations",
    "casts",
    "logits",
    "workspace",
    "batch",
]
# What is inside a layer's number, when it is no layer.
NO_LAYER = -1


class Timeline:
    """Live bytes by category and layer, and what they were at the peak.

    Args:
        granule: every storage takes a multiple of so many bytes.

    Attributes:
        total: live bytes.
        peak: the most so far.
        at_peak: live bytes then, by (category, layer).
        moment, category, layer: where the program is, and what new storages are.
        peak_moment: `moment` at the peak.
        events: +bytes and -bytes in order, if a list was put there.
    """

    def __init__(self, granule: int = 1) -> None:
        self._granule = granule
        self._live: Counter[tuple[Category, int]] = Counter()
        self.total = self.peak = 0
        self.at_peak: dict[tuple[Category, int], int] = {}
        self.moment = self.peak_moment = ""
        self.category: Category = "activations"
        self.layer = NO_LAYER
        self.events: list[tuple[int, str]] | None = None

    def new(
        self, name: str, elements: int, size: int = 4, category: Category | None = None
    ) -> Storage:
        """A storage of so many elements of `size` bytes; it ends with its last reference."""
        taken = -(-elements * size // self._granule) * self._granule
        return Storage(self, name, taken, category or self.category)

    def value(
        self,
        name: str,
        elements: int,
        size: int = 4,
        *,
        category: Category | None = None,
        layout: Layout = "tokens",
    ) -> Value:
        """A value in a storage of its own."""
        return Value(self.new(name, elements, size, category), elements, size, layout=layout)

    @contextmanager
    def within(
        self, moment: str = "", *, category: Category | None = None, layer: int | None = None
    ) -> Iterator[None]:
        """What begins in here is of this category and layer, and the moment has this name."""
        before = self.moment, self.category, self.layer
        self.moment = moment or self.moment
        self.category = category or self.category
        self.layer = self.layer if layer is None else layer
        try:
            yield
        finally:
            self.moment, self.category, self.layer = before

    def began(self, storage: Storage) -> None:
        """A storage tells its birth."""
        self._live[storage.key] += storage.nbytes
        self.total += storage.nbytes
        if self.events is not None and storage.nbytes:
            self.events.append((storage.nbytes, f"{self.moment}: {storage.name}"))
        if self.total > self.peak:
            self.peak, self.peak_moment = self.total, self.moment
            self.at_peak = dict(self._live)

    def ended(self, storage: Storage) -> None:
        """A storage tells its end."""
        self._live[storage.key] -= storage.nbytes
        self.total -= storage.nbytes
        if self.events is not None and storage.nbytes:
            self.events.append((-storage.nbytes, storage.name))

    def moved(self, storage: Storage, category: Category, layer: int) -> None:
        """A storage serves another purpose from now on."""
        self._live[storage.key] -= storage.nbytes
        storage.key = (category, layer)
        self._live[storage.key] += storage.nbytes


class Storage:
    """Bytes from now until nothing refers to this."""

    __slots__ = ("_timeline", "key", "name", "nbytes")

    def __init__(self, timeline: Timeline, name: str, nbytes: int, category: Category) -> None:
        self._timeline, self.name, self.nbytes = timeline, name, nbytes
        self.key = (category, timeline.layer)
        timeline.began(self)

    def becomes(self, category: Category) -> None:
        """It is of that category from now on, of the same layer."""
        self._timeline.moved(self, category, self.key[1])

    def __del__(self) -> None:
        self._timeline.ended(self)


# How heads (batch, heads, seq, width) lie in memory: as the features of each token, head by head
# without gaps, or head by head with width before seq.
Layout = Literal["tokens", "heads", "turned"]


class Value:
    """A tensor without its numbers.

    Attributes:
        storage: where it lies; a view shares it.
        elements: how many.
        size: bytes of each.
        node, output: what made it, and as which of its results; None without a gradient.
        layout: of heads; "tokens" for all else.
    """

    __slots__ = ("elements", "layout", "node", "output", "size", "storage")

    def __init__(
        self,
        storage: Storage,
        elements: int,
        size: int,
        node: Node | None = None,
        output: int = 0,
        layout: Layout = "tokens",
    ) -> None:
        self.storage, self.elements, self.size = storage, elements, size
        self.node, self.output, self.layout = node, output, layout

    def seen_as(self, elements: int, layout: Layout = "tokens") -> Value:
        """A view without a gradient."""
        return Value(self.storage, elements, self.size, layout=layout)

    @property
    def detached(self) -> Value:
        """The same without a gradient."""
        return self.seen_as(self.elements, self.layout)


Gradients = Sequence[Value | None]
Backward = Callable[..., Gradients]


class Node:
    """One operation of a backward pass.

    Attributes:
        number: in the order of the forward pass.
        edges: the nodes of its inputs, and which result of them each is.
        run: cotangents of the results -> gradients of the inputs; None after it has run, which
            frees what it kept.
        takes: it takes its cotangents out of a list, so that they may end before it does.
        place: the moment of the forward pass that made it.
    """

    __slots__ = ("edges", "number", "outputs", "place", "run", "takes")

    def __init__(
        self,
        number: float,
        edges: list[tuple[Node, int] | None],
        run: Backward | None,
        outputs: int,
        takes: bool = False,
        place: str = "",
    ) -> None:
        self.number, self.edges, self.outputs, self.run = number, edges, outputs, run
        self.takes, self.place = takes, place


class Leaf(Node):
    """Where a gradient stays: of a parameter, or of an input.

    Attributes:
        gradient: the sum so far.
    """

    __slots__ = ("_category", "gradient")

    def __init__(self, category: Category) -> None:
        super().__init__(float("inf"), [], None, 1)
        self.gradient: Value | None = None
        self._category = category

    def add(self, gradient: Value | None) -> None:
        """Keep the first gradient; later ones are added into it."""
        if gradient is not None and self.gradient is None:
            gradient.storage.becomes(self._category)
            self.gradient = gradient


class Tape:
    """Operations as they are recorded for the backward pass.

    Args:
        timeline: of all its storages.

    Attributes:
        keeping: whether a backward pass of what is recorded now will come.
        again: whether a block is computed once more.
    """

    def __init__(self, timeline: Timeline) -> None:
        self.timeline = timeline
        self.keeping, self.again = True, False
        self._made = 0
        self._saved = 0
        self._enough: int | None = None

    def parameter(self, name: str, elements: int, layer: int = NO_LAYER) -> Value:
        """float32 weights, with a place for their gradient."""
        with self.timeline.within(layer=layer):
            value = self.timeline.value(name, elements, category="weights")
        value.node = Leaf("gradients")
        return value

    def leaf(self, value: Value) -> Value:
        """The same storage as the beginning of another backward pass."""
        result = value.detached
        result.node = Leaf("workspace")
        return result

    def new(self, name: str, elements: int, size: int = 4, layout: Layout = "tokens") -> Value:
        """The result of an operation; nothing where the rest of a block need not be recomputed."""
        some = 0 if self._saved == self._enough else elements
        return Value(self.timeline.new(name, some, size), elements, size, layout=layout)

    def saves(self) -> None:
        """An operation keeps something for its backward pass now."""
        self._saved += 1

    def link(
        self,
        inputs: Sequence[Value],
        results: Sequence[Value],
        run: Backward,
        *,
        takes: bool = False,
    ) -> None:
        """Make `results` those of an operation whose backward pass is `run`."""
        edges = [None if x.node is None else (x.node, x.output) for x in inputs]
        if not self.keeping or not any(edges):
            return
        self._made += 1
        # "blocks.3, forward" and "blocks.3, again" become "blocks.3, backward".
        place = self.timeline.moment.partition(",")[0]
        node = Node(self._made, edges, run, len(results), takes, place)
        for output, result in enumerate(results):
            result.node, result.output = node, output

    def checkpointed(self, block: Callable[[Value], Value], x: Value, spare: int = 0) -> Value:
        """block(x), of which only x is kept: the backward pass runs it again, to its last saving.

        The state of the random numbers is kept too, and restored around the second run.

        Args:
            spare: bytes that are there meanwhile, of the cotangent in another type.
        Source: Chen et al. 2016; `torch.utils.checkpoint`, early stop.
        """
        random = self.timeline.new("state of random numbers", random_state_bytes(), 1)
        before, self.keeping, self._saved = self.keeping, False, 0
        result = block(x).detached
        saved, self.keeping = self._saved, before
        start = x.detached

        def run(cotangents: list[Value | None]) -> Gradients:
            assert random is not None
            self._saved, self._enough = 0, saved
            waiting = self.timeline.new("cotangent in the type of the product", spare, 1)
            now = self.timeline.new("state of random numbers", random_state_bytes(), 1)
            leaf = self.leaf(start)
            self.again = True
            again = block(leaf)
            self._enough, self.again = None, False
            root = again.node
            del waiting, now, again
            assert root is not None
            assert isinstance(leaf.node, Leaf)
            self.backward(root, cotangents)
            return (leaf.node.gradient,)

        self.link([x], [result], run, takes=True)
        return result

    def backward(self, root: Node, cotangents: list[Value | None]) -> None:
        """Leave gradients in all leaves.

        Args:
            root: what made the result.
            cotangents: of its results; taken out of the list.
        """
        waiting = _dependencies(root)
        buffers: dict[Node, list[Value | None]] = {root: cotangents[:]}
        cotangents.clear()
        ready = [(-root.number, id(root), root)]
        del root
        while ready:
            node = heapq.heappop(ready)[-1]
            cotangents = buffers.pop(node)
            if isinstance(node, Leaf):
                node.add(cotangents.pop())
                continue
            assert node.run is not None
            self.timeline.moment = f"{node.place}, backward"
            gradients = list(node.run(cotangents) if node.takes else node.run(*cotangents))
            node.run = None
            cotangents.clear()
            for edge in node.edges:
                gradient = gradients.pop(0)
                if edge is None:
                    continue
                before, output = edge
                places = buffers.setdefault(before, [None] * before.outputs)
                # A second gradient is added into the first.
                places[output] = gradient if places[output] is None else places[output]
                del gradient
                waiting[before] -= 1
                if not waiting[before]:
                    heapq.heappush(ready, (-before.number, id(before), before))


@lru_cache(maxsize=1)
def random_state_bytes() -> int:
    """Of the CPU's generator, as checkpointed blocks keep it."""
    import torch

    return int(torch.get_rng_state().nbytes)


def _dependencies(root: Node) -> Counter[Node]:
    """For each node, from how many edges its gradients come."""
    found: Counter[Node] = Counter()
    seen, stack = {root}, [root]
    while stack:
        for edge in stack.pop().edges:
            if edge is None:
                continue
            found[edge[0]] += 1
            if edge[0] not in seen:
                seen.add(edge[0])
                stack.append(edge[0])
    return found
