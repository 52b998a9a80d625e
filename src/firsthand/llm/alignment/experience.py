"""What a policy learns from between two rollouts, kept so that a resumed run has the same bits."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from firsthand.llm.alignment.errors import AlignmentError
from firsthand.llm.alignment.rollouts import Rollouts

_DTYPES = {"int64": torch.int64, "float32": torch.float32, "bool": torch.bool}


@dataclass(frozen=True)
class Experience:
    """Rollouts with what a method derives from them; all tensors have a row for each answer.

    Attributes:
        rollouts: prompts and answers; the texts are needed for the rewards alone.
        extras: by name, such as "advantages" and "reference".
        figures: means over all answers, for the log.
        answers: of a minibatch, that its rows stand for; 0 for a whole round.
    """

    rollouts: Rollouts
    extras: dict[str, Tensor]
    figures: dict[str, float] = field(default_factory=dict)
    answers: int = 0

    @property
    def counts(self) -> Tensor:
        """How many equal answers each row stands for, (rows,)."""
        counts = self.extras.get("counts")
        return (
            self.rollouts.sampled.new_ones(len(self.rollouts.inputs)) if counts is None else counts
        )

    @property
    def tokens(self) -> int:
        """Of the answers that the rows stand for."""
        return int((self.rollouts.lengths * self.counts).sum())

    def folded(self, idle: Tensor | None = None) -> Experience:
        """Equal rows once, with "counts", which is less work for the same loss.

        Answers to one prompt are often equal, and then so is everything that they teach.

        Args:
            idle: (rows,) bool, rows without a gradient: left out, though `answers` still counts
                them. One row stays.
        """
        rollouts = self.rollouts
        parts = [rollouts.inputs, rollouts.targets, *self.extras.values()]
        arrays = [tensor.detach().cpu().contiguous().numpy() for tensor in parts]
        first: dict[bytes, int] = {}
        counts: dict[int, int] = {}
        for row in range(len(rollouts.inputs)):
            number = first.setdefault(b"".join(array[row].tobytes() for array in arrays), row)
            counts[number] = counts.get(number, 0) + 1
        left_out = set() if idle is None else set(idle.nonzero().flatten().tolist())
        kept = [row for row in counts if row not in left_out] or list(counts)[:1]
        found = self.rows(kept)
        numbers = torch.tensor([float(counts[row]) for row in kept], device=rollouts.inputs.device)
        extras = {**found.extras, "counts": numbers}
        return Experience(found.rollouts, extras, answers=self.answers)

    def rows(self, numbers: list[int]) -> Experience:
        """Those rows, without the columns that are padding in all of them."""
        rollouts = self.rollouts
        answered = rollouts.answered[numbers]
        longest = int(answered.any(dim=0).nonzero().max()) + 1
        width = answered.shape[1]
        extras = {
            name: tensor[numbers][:, :longest] if tensor.shape[1:] == (width,) else tensor[numbers]
            for name, tensor in self.extras.items()
        }
        cut = Rollouts(
            inputs=rollouts.inputs[numbers][:, :longest],
            targets=rollouts.targets[numbers][:, :longest],
            sampled=rollouts.sampled[numbers][:, :longest],
            ended=rollouts.ended[numbers],
            texts=(),
        )
        return Experience(cut, extras, answers=len(numbers))

    def state(self) -> dict[str, Any]:
        """As plain JSON values, bit for bit; the texts are left out."""
        rollouts = self.rollouts
        tensors = {
            "inputs": rollouts.inputs,
            "targets": rollouts.targets,
            "sampled": rollouts.sampled,
            "ended": rollouts.ended,
        }
        return {
            "rollouts": {name: _encoded(tensor) for name, tensor in tensors.items()},
            "extras": {name: _encoded(tensor) for name, tensor in self.extras.items()},
            "figures": dict(self.figures),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], device: torch.device) -> Experience:
        """The experience that `state` was of.

        Raises:
            AlignmentError: it is none.
        """
        try:
            kept = {name: _decoded(value, device) for name, value in state["rollouts"].items()}
            extras = {name: _decoded(value, device) for name, value in state["extras"].items()}
            return cls(Rollouts(**kept, texts=()), extras, dict(state["figures"]))
        except (KeyError, TypeError, ValueError) as error:
            raise AlignmentError(f"the checkpoint's rollouts cannot be read: {error}") from None


def _encoded(tensor: Tensor) -> dict[str, Any]:
    array = tensor.detach().cpu().contiguous().numpy()
    return {
        "dtype": str(array.dtype),
        "shape": list(array.shape),
        "data": base64.b64encode(array.tobytes()).decode("ascii"),
    }


def _decoded(value: dict[str, Any], device: torch.device) -> Tensor:
    if value["dtype"] not in _DTYPES:
        raise ValueError(f"the type {value['dtype']}")
    data = bytearray(base64.b64decode(value["data"], validate=True))
    array = np.frombuffer(data, value["dtype"]).reshape(value["shape"])
    return torch.from_numpy(array.copy()).to(device)
