"""What a run learns from: the seam between the loop and pretraining, SFT, DPO and the rest."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from firsthand.llm.model.transformer import Loss, Transformer


class Size(NamedTuple):
    """How much one update holds, on one rank or on all.

    Attributes:
        tokens: what the loss is a mean over.
        text_bytes: of the text that these tokens spell; 0 when bits per byte have no meaning.
        positions: of the rows, real and padded.
    """

    tokens: int
    text_bytes: int
    positions: int


class Task(Protocol):
    """The data and the objective of a run.

    Attributes:
        unit: what `Size.tokens` counts: "tokens", "pairs" ...
    """

    unit: str

    def next_batches(self) -> list[Any]:
        """The micro-batches of one update on this rank; as many on every rank."""

    def size(self, batches: list[Any]) -> Size:
        """What the batches of this rank hold."""

    def loss(self, model: Transformer, batch: Any) -> Loss:
        """The summed loss of one micro-batch, in nats, with its gradient."""

    def metrics(self) -> dict[str, float]:
        """What else the log line of the latest update should say."""

    def validate(self, model: Transformer, batches: int) -> dict[str, float | int | None]:
        """Measures on held-out data: so many batches of it, or all of them for 0."""

    def samples(self, model: Transformer, step: int) -> list[dict[str, Any]]:
        """Records with at least `prompt` and `text`, the same for the same weights and step."""

    def state(self) -> dict[str, Any]:
        """Where the data stand, as plain JSON values."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from such a state."""
