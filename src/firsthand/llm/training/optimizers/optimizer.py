"""The optimizer of a run: which parameter is updated how, and the state that a resume needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from firsthand.llm.model.parts import Parts
from firsthand.llm.training.config import OptimizerSettings
from firsthand.llm.training.optimizers.muon import Muon
from firsthand.llm.training.sharding import local
from firsthand.llm.training.state import load_state


class Trainable(Protocol):
    """What an optimizer asks of a model; `model.transformer.Transformer` documents the roles."""

    def named_parameters(self) -> Iterator[tuple[str, nn.Parameter]]: ...

    def role(self, name: str) -> str: ...

    def matrix_rows(self, name: str) -> tuple[int, ...]: ...


@dataclass(frozen=True, kw_only=True)
class Group:
    """Parameters that AdamW updates alike.

    Attributes:
        weight_decay: λ.
        rate: a factor on the learning rate.
        numbers: of the parameters in `Optimizer.adamw_names`.
    """

    weight_decay: float
    rate: float
    numbers: tuple[int, ...]


class Optimizer:
    """AdamW for all parameters, or Muon for the matrices and AdamW for the rest.

    All state is allocated here, in the parameters' type and placement, so a resume copies into it
    and its bytes are known before the first step. Frozen parameters (`requires_grad` off) have no
    state. The counter of Adam's corrections is one for all parameters: one that had no gradient in
    some step is corrected by the steps of the others.

    Args:
        model: whose parameters and roles.
        settings: of the run.
        parts: whose `adamw` and `orthogonalize`.

    Attributes:
        steps: updates done.
        groups: of AdamW.
    """

    def __init__(self, model: Trainable, settings: OptimizerSettings, parts: Parts) -> None:
        self.settings, self.parts = settings, parts
        self.steps = 0
        trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        muon = [n for n in trained if settings.kind == "muon" and model.role(n) == "matrix"]
        self.muon_names = muon
        self.adamw_names = [name for name in trained if name not in set(muon)]
        self._parameters = [trained[name] for name in self.adamw_names]
        self._firsts = [torch.zeros_like(p.detach()) for p in self._parameters]
        self._seconds = [torch.zeros_like(p.detach()) for p in self._parameters]
        self._muon = Muon(
            [trained[name] for name in muon],
            [model.matrix_rows(name) for name in muon],
            settings,
            parts,
        )
        self.groups = self._grouped([model.role(name) for name in self.adamw_names])

    @torch.no_grad()
    def step(self, scale: float = 1.0) -> None:
        """One update of every parameter that has a gradient; the others stay as they are.

        Args:
            scale: a factor on all learning rates, the schedule's.
        """
        self.steps += 1
        for group in self.groups:
            self._adamw(group, scale)
        self._muon.step(scale)

    def zero_gradients(self) -> None:
        """Forget all gradients; their memory is free until the next backward pass."""
        for parameter in (*self._parameters, *self._muon.matrices):
            parameter.grad = None

    def tensors(self) -> dict[str, Tensor]:
        """The live state by name, such as "first_moment/blocks.0.attention.qkv.weight"."""
        named = {}
        for kind, names, tensors in (
            ("first_moment", self.adamw_names, self._firsts),
            ("second_moment", self.adamw_names, self._seconds),
            ("momentum", self.muon_names, self._muon.momenta),
        ):
            named.update({f"{kind}/{n}": t for n, t in zip(names, tensors, strict=True)})
        return named

    def load(self, tensors: Mapping[str, Tensor], steps: int) -> None:
        """Go on from a saved state.

        Args:
            tensors: as `tensors` gave them, on any device.
            steps: updates done by then.
        Raises:
            TrainingError: names, shapes or types differ; nothing was changed.
        """
        load_state(self.tensors(), tensors, "the state of the optimizer is")
        self.steps = steps

    @property
    def nbytes(self) -> int:
        """Bytes of the state on this rank."""
        return sum(tensor.nbytes for tensor in local(self.tensors().values()))

    def _adamw(self, group: Group, scale: float) -> None:
        active = [n for n in group.numbers if self._parameters[n].grad is not None]
        if not active:
            return
        parameters = [self._parameters[n] for n in active]
        self.parts.adamw(
            local(p.detach() for p in parameters),
            local(p.grad for p in parameters if p.grad is not None),
            local(self._firsts[n] for n in active),
            local(self._seconds[n] for n in active),
            step=self.steps,
            learning_rate=self.settings.learning_rate * group.rate * scale,
            beta1=self.settings.beta1,
            beta2=self.settings.beta2,
            eps=self.settings.eps,
            weight_decay=group.weight_decay,
        )

    def _grouped(self, roles: list[str]) -> list[Group]:
        """By decay, rate and device, as `adamw` takes them."""
        members: dict[tuple[float, float, torch.device], list[int]] = {}
        for number, role in enumerate(roles):
            table = role in ("embedding", "output")
            decays = role == "matrix" or (table and self.settings.decay_embeddings)
            decay = self.settings.weight_decay if decays else 0.0
            rate = self.settings.embedding_rate if table else 1.0
            device = self._parameters[number].device
            members.setdefault((decay, rate, device), []).append(number)
        return [
            Group(weight_decay=decay, rate=rate, numbers=tuple(numbers))
            for (decay, rate, _), numbers in members.items()
        ]
