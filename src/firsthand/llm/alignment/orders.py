"""The order in which a run takes its pairs or questions: shuffled anew in each epoch, resumable."""

from __future__ import annotations

from typing import Any

import numpy as np

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.data.permutation import Permutation


class SeededOrder:
    """Indices below `count`, each once in an epoch; the order depends on seed and epoch alone.

    Args:
        count: things, at least 1.
        seed: of the run.

    Attributes:
        taken: indices given out so far, over all epochs; all the state there is.
    """

    def __init__(self, count: int, seed: int) -> None:
        if count < 1:
            raise AlignmentError("there is nothing to learn from: no record and no task")
        self.count, self.seed, self.taken = count, seed, 0

    @property
    def epoch(self) -> int:
        """Of the next index, from 0."""
        return self.taken // self.count

    def peek(self, count: int) -> list[int]:
        """The next indices, without taking them."""
        found: list[int] = []
        at = self.taken
        while len(found) < count:
            epoch, first = divmod(at, self.count)
            last = min(self.count, first + count - len(found))
            places = np.arange(first, last)
            found += Permutation(self.count, self.seed, epoch)(places).tolist()
            at += last - first
        return found

    def take(self, count: int) -> list[int]:
        """The next indices; after the last of an epoch come those of the next."""
        found = self.peek(count)
        self.taken += count
        return found

    def state(self) -> dict[str, int]:
        """Three integers."""
        return {"taken": self.taken, "count": self.count, "seed": self.seed}

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state.

        Raises:
            AlignmentError: it is of other things or of another seed.
        """
        for name in ("count", "seed"):
            if state.get(name) != getattr(self, name):
                raise AlignmentError(
                    f"the order was saved with {name} {state.get(name)}; now it is "
                    f"{getattr(self, name)}"
                )
        self.taken = int(state["taken"])
