"""Muon: momentum made orthogonal, for the matrices inside the blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from firsthand.llm.model.parts import Parts
from firsthand.llm.training.config import OptimizerSettings
from firsthand.llm.training.optimizers.newton_schulz import (
    JORDAN,
    Coefficients,
    polar_coefficients,
)
from firsthand.llm.training.sharding import is_sharded, local, own_shard, whole

# Elements orthogonalized together: it bounds the scratch memory and still fills a GPU.
STACK = 1 << 24


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A matrix that Muon makes orthogonal: some rows of a parameter.

    Attributes:
        parameter: its number.
        rows: of the parameter.
        tall: it has more rows than columns and enters a stack transposed.
        scale: of its update.
    """

    parameter: int
    rows: slice
    tall: bool
    scale: float


def update_scale(rows: int, columns: int, settings: OptimizerSettings) -> float:
    """What an orthogonal update of a matrix is multiplied by, before the learning rate.

    "shape": √max(1, rows / columns) (Jordan 2024). "adamw": 0.2 √max(rows, columns), an RMS of
    about 0.2 as AdamW's updates have it (Liu et al. 2025, "Muon is scalable", section 2.2).
    """
    if settings.muon_scale == "adamw":
        return float(0.2 * max(rows, columns) ** 0.5)
    return float(max(1.0, rows / columns) ** 0.5)


def iteration_coefficients(settings: OptimizerSettings) -> Coefficients:
    """Of Newton and Schulz: Jordan's constants every time, or the best ones for `muon_floor`."""
    if settings.muon_floor:
        return polar_coefficients(settings.muon_iterations, settings.muon_floor)
    return [JORDAN] * settings.muon_iterations


class Muon:
    """Updates of matrices: nesterov momentum, orthogonalized, scaled, with decoupled decay.

    m ← m + (1 - μ)(g - m), u = g + μ (m - g), W ← (1 - η λ) W - η s UVᵀ(u). Matrices of one shape
    are stacked and run through batched products: dozens of small products would leave a CPU in
    Python and a GPU idle.

    Args:
        matrices: (rows, cols) each.
        rows: of each parameter, the heights of the matrices that it holds one above the other.
        settings: momentum, iterations, scale.
        parts: whose `orthogonalize`.

    Attributes:
        momenta: m of each matrix, placed as it is.
    """

    def __init__(
        self,
        matrices: Sequence[Tensor],
        rows: Sequence[Sequence[int]],
        settings: OptimizerSettings,
        parts: Parts,
    ) -> None:
        self.matrices, self.settings, self.parts = list(matrices), settings, parts
        self.momenta = [torch.zeros_like(matrix) for matrix in matrices]
        self.coefficients = iteration_coefficients(settings)
        self.shapes: dict[tuple[int, int], list[Matrix]] = {}
        for number, matrix in enumerate(matrices):
            columns, start = matrix.shape[1], 0
            for height in rows[number]:
                part = Matrix(
                    parameter=number,
                    rows=slice(start, start + height),
                    tall=height > columns,
                    scale=update_scale(height, columns, settings),
                )
                shape = (min(height, columns), max(height, columns))
                self.shapes.setdefault(shape, []).append(part)
                start += height

    @torch.no_grad()
    def step(self, scale: float) -> None:
        """Update every matrix that has a gradient, with the learning rate times `scale`."""
        rate = self.settings.muon_learning_rate * scale
        active = {n for n, matrix in enumerate(self.matrices) if matrix.grad is not None}
        if not active:
            return
        matrices = local(self.matrices[n].detach() for n in sorted(active))
        gradients = local(_gradient(self.matrices[n]) for n in sorted(active))
        momenta = local(self.momenta[n] for n in sorted(active))
        torch._foreach_lerp_(momenta, gradients, 1.0 - self.settings.muon_momentum)
        if self.settings.weight_decay:
            torch._foreach_mul_(matrices, 1.0 - rate * self.settings.weight_decay)
        for shape, parts in self.shapes.items():
            together = max(1, STACK // (shape[0] * shape[1]))
            used = [part for part in parts if part.parameter in active]
            for start in range(0, len(used), together):
                self._update(used[start : start + together], shape, rate)

    def _update(self, parts: list[Matrix], shape: tuple[int, int], rate: float) -> None:
        """One stack: momentum in, orthogonalized, added to the weights."""
        first = self.matrices[parts[0].parameter]
        stack = torch.empty(len(parts), *shape, dtype=first.dtype, device=first.device)
        gathered: dict[int, Tensor] = {}
        for slot, part in zip(stack, parts, strict=True):
            self._fill(slot, part, gathered)
        stack = self._orthogonal(stack)
        updates = {number: torch.zeros_like(full) for number, full in gathered.items()}
        for slot, part in zip(stack, parts, strict=True):
            target = updates.get(part.parameter, self.matrices[part.parameter].detach())
            update = slot.mT.contiguous() if part.tall else slot
            target[part.rows].add_(update, alpha=-rate * part.scale)
        for number, update in updates.items():
            matrix = self.matrices[number]
            local([matrix.detach()])[0].add_(own_shard(update, matrix))

    def _fill(self, slot: Tensor, part: Matrix, gathered: dict[int, Tensor]) -> None:
        """u = g + μ (m - g) of one matrix; of a shared one every rank gathers the whole."""
        matrix, mean = self.matrices[part.parameter], self.momenta[part.parameter]
        gradient, momentum = _gradient(matrix), self.settings.muon_momentum
        if is_sharded(matrix):
            if part.parameter not in gathered:
                shards = local([gradient, mean])
                update = torch.lerp(shards[0], shards[1], momentum)
                gathered[part.parameter] = whole(update, matrix)
            update = gathered[part.parameter][part.rows]
            slot.copy_(update.mT if part.tall else update)
        elif part.tall:
            # A copy may transpose in blocks; a lerp would stride through memory.
            slot.copy_(torch.lerp(gradient[part.rows], mean[part.rows], momentum).mT)
        else:
            torch.lerp(gradient[part.rows], mean[part.rows], momentum, out=slot)

    def _orthogonal(self, stack: Tensor) -> Tensor:
        count, short, long = stack.shape
        block = _block(short, self.settings.muon_block)
        blocks = stack.view(-1, block, long)
        # Half precision is enough for the iteration (Jordan 2024) and runs on tensor cores.
        narrow = blocks.bfloat16() if blocks.is_cuda else blocks
        result = self.parts.orthogonalize(narrow, self.coefficients)
        return result.to(stack.dtype).reshape(count, short, long)


def _gradient(matrix: Tensor) -> Tensor:
    assert matrix.grad is not None
    return matrix.grad


def _block(short: int, most: int) -> int:
    """The largest divisor of the short side that is `most` at most; 0 is all."""
    if not most:
        return short
    return max(size for size in range(1, min(short, most) + 1) if short % size == 0)
