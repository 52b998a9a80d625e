"""What a ladder is: versions of one operation, an oracle for all of them, and their cost.

A rung computes the output and, from a cotangent (the gradient of a scalar with respect to the
output), the gradients of the floating-point inputs. Costs are counted, not measured: FLOPs of
the operation, an addition and a multiplication being one each, and the bytes a rung moves when
no array stays in a cache between two passes over it. An operation without gradients, such as an
optimizer's update, may have several outputs and may write them over its inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

AnyArray: TypeAlias = NDArray[Any]
Inputs: TypeAlias = dict[str, AnyArray]
Shape: TypeAlias = dict[str, int]
Outputs: TypeAlias = list[Any]
Cost: TypeAlias = Callable[[Shape], int]


@dataclass(frozen=True)
class Costs:
    """A count for the forward pass and one for forward and backward together, by shape."""

    forward: Cost
    both: Cost

    def of(self, shape: Shape, *, backward: bool) -> int:
        """The count for `shape`."""
        return (self.both if backward else self.forward)(shape)


def _on_cpu() -> str:
    return "cpu"


@dataclass(frozen=True)
class Rung:
    """One version of an operation.

    Attributes:
        name: unique in its ladder, such as "numpy" or "torch-tiled".
        library: whose arrays it takes, "numpy" or "torch".
        forward: inputs by name -> the output, or a tuple of them.
        gradients: inputs by name and `cotangent` -> the output, then one gradient for each
            name in the ladder's `differentiable`. A torch rung leaves it out: autograd.
        bytes_moved: by shape, for float32; reads and writes of whole arrays.
        device: called for where its tensors lie, "cpu" or "cuda"; "" if it runs nowhere here.
        needs: what a machine that it does not run on lacks, such as "needs a GPU".
    """

    name: str
    library: Literal["numpy", "torch"]
    forward: Callable[..., Any]
    bytes_moved: Costs
    gradients: Callable[..., Outputs] | None = None
    device: Callable[[], str] = _on_cpu
    needs: str = ""

    @property
    def runs_here(self) -> bool:
        """Whether this machine can run it."""
        return bool(self.device())

    def prepare(self, inputs: Mapping[str, AnyArray], dtype: str = "float32") -> dict[str, Any]:
        """The inputs in this rung's library, where it takes them; floating-point ones in `dtype`.

        Raises:
            RuntimeError: the rung does not run on this machine.
        """
        place = self.device()
        if not place:
            raise RuntimeError(f"The rung {self.name} does not run here: it {self.needs}.")
        arrays = {
            name: array.astype(dtype) if np.issubdtype(array.dtype, np.floating) else array
            for name, array in inputs.items()
        }
        if self.library == "numpy":
            return arrays
        return {name: torch.from_numpy(array).to(place) for name, array in arrays.items()}


@dataclass(frozen=True)
class Ladder:
    """One operation: its rungs from plain to fast, the oracle and the cost.

    Attributes:
        name: the operation's folder.
        rungs: plain first.
        inputs: (shape, generator) -> float64 and integer arrays by name.
        oracle: inputs by name and, where there are gradients, `cotangent`, in float64 -> the
            outputs and each gradient; written apart from all rungs.
        differentiable: the inputs with a gradient, in the order in which rungs return them; empty
            where the operation has none.
        flops: of the operation, the same for all rungs.
        bytes_moved: of a rung that reads each input once and writes each result once, float32.
        shape: sizes for the table, by name.
    """

    name: str
    rungs: tuple[Rung, ...]
    inputs: Callable[[Shape, np.random.Generator], Inputs]
    oracle: Callable[..., Outputs]
    differentiable: tuple[str, ...]
    flops: Costs
    bytes_moved: Costs
    shape: Shape = field(default_factory=dict)

    @property
    def runnable(self) -> tuple[Rung, ...]:
        """The rungs that this machine can run."""
        return tuple(rung for rung in self.rungs if rung.runs_here)

    def rung(self, name: str) -> Rung:
        """The rung of that name.

        Raises:
            KeyError: no such rung; the message lists them.
        """
        for rung in self.rungs:
            if rung.name == name:
                return rung
        known = ", ".join(rung.name for rung in self.rungs)
        raise KeyError(f"{self.name} has no rung {name!r}; it has {known}")

    def run(self, rung: Rung, inputs: Mapping[str, Any], cotangent: Any = None) -> Outputs:
        """The outputs of a rung and, with a cotangent, the gradients of `differentiable`.

        Args:
            rung: one of `rungs`.
            inputs: as `rung.prepare` returns them; a rung that works in place changes them.
            cotangent: in the library and the shape of the output; unused without gradients.
        """
        if cotangent is None or not self.differentiable:
            outputs = rung.forward(**inputs)
            return list(outputs) if isinstance(outputs, tuple) else [outputs]
        if rung.gradients is not None:
            return rung.gradients(**inputs, cotangent=cotangent)
        return self._by_autograd(rung, inputs, cotangent)

    def _by_autograd(self, rung: Rung, inputs: Mapping[str, Any], cotangent: Tensor) -> Outputs:
        leaves = {name: inputs[name].detach().requires_grad_() for name in self.differentiable}
        output = rung.forward(**{**inputs, **leaves})
        gradients = torch.autograd.grad(output, list(leaves.values()), cotangent)
        return [output.detach(), *gradients]


def by_elements(forward: int, both: int, *sizes: str, itemsize: int = 4) -> Costs:
    """Costs of whole passes over an array of the named sizes: how many elements move, in bytes."""

    def count(passes: int) -> Cost:
        return lambda shape: passes * itemsize * int(np.prod([shape[name] for name in sizes]))

    return Costs(forward=count(forward), both=count(both))
