"""What runs a model: rows of several texts in one call, each text in a slot of its own."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from firsthand.llm.model.config import ModelConfig

Rows = NDArray[np.int32]


class Engine(Protocol):
    """A model with the keys and values of several texts.

    Prefill, decoding and a mixture of both are one call. A slot needs no reset: position 0 starts
    a new text, and a position that was there before overwrites the text from there on.

    Attributes:
        config: of the model.
        slots: texts held at once.
        capacity: tokens that a slot holds.
        max_rows: rows of one call.
    """

    config: ModelConfig
    slots: int
    capacity: int
    max_rows: int

    def forward(
        self, tokens: Rows, slots: Rows, positions: Rows, wanted: Rows
    ) -> NDArray[np.float32]:
        """The logits after some of the rows; keys and values of all rows are kept.

        Rows of one slot follow each other in the call and have consecutive positions. Each row
        sees its slot's positions up to its own.

        Args:
            tokens, slots, positions: (rows,), at most max_rows.
            wanted: numbers of the rows whose logits are returned.

        Returns:
            (wanted, vocab); valid until the next call.
        """
        ...

    def close(self) -> None:
        """Give memory and threads back."""
        ...
