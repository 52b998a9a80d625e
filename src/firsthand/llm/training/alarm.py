"""The first value of a model that is not finite, found by repeating the step that gave it.

A loss or a gradient norm that is not finite costs nothing to notice, as both are read in each
step anyway. By then nearly every value is NaN, and only the first one says where it began. So the
step is run again with hooks on every module:

1. the weights, in the order of the forward pass;
2. what each module reads and gives, in the order of the forward pass;
3. the gradients of these and of the weights, in the order of the backward pass.

The first of these three questions with an answer names the layer.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, distributed, nn
from torch.utils.weak import WeakTensorKeyDictionary

from firsthand.llm.training.distributed import World
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.gradient_flow import without_compiled_code

Kind = Literal["weight", "activation", "gradient"]
Place = tuple[str, str]  # a layer, and where in it
Role = tuple[str, str]  # a module, and "input", "output" or its parameter


class NonFiniteError(TrainingError):
    """Infinity or NaN in a model.

    Attributes:
        layer: the dotted name of the module, or of the parameter for a weight.
        kind: "weight" (the parameter itself), "activation" (in the forward pass) or "gradient".
        step: the step that was running.
        place: where in the layer it began, and how many values of how many.
    """

    def __init__(self, layer: str, kind: Kind, step: int, place: str) -> None:
        super().__init__(f"step {step}: the first {kind} that is not finite is in {layer}: {place}")
        self.layer, self.kind, self.step, self.place = layer, kind, step, place

    def __reduce__(self) -> tuple[type[NonFiniteError], tuple[str, Kind, int, str]]:
        """For the way from one process to another, which would else give it the message alone."""
        return type(self), (self.layer, self.kind, self.step, self.place)


def all_finite(*values: float) -> bool:
    """Whether none of the values, such as a loss and a gradient norm, is infinite or NaN."""
    return all(math.isfinite(value) for value in values)


def find_first_nonfinite(
    model: nn.Module,
    loss: Callable[[], Tensor],
    *,
    step: int,
    backward: bool = True,
    world: World | None = None,
) -> NonFiniteError | None:
    """Repeat a forward and backward pass and name the first place that is not finite.

    Weights, gradients and the random state are the same afterwards. Call it once for each
    micro-batch of the step, under the same autocast, and with the weights the step began with.

    Args:
        model: whose modules are watched; one under DDP without its wrapper.
        loss: computes the scalar loss of the step's batch from the model; for float16 times the
            scale, if the scale is to be blamed.
        step: for the message.
        backward: look at gradients too.
        world: the ranks, which then all have to call; each gets the answer of the first that has
            one. A rank that stopped alone would leave the others waiting.
    Returns:
        The error to raise, or None when all of it is finite.
    """
    broken = _first_of(_broken_weight(model), world)
    if broken is not None:
        return NonFiniteError(broken[0], "weight", step, broken[1])
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    watch = _Watch(model)
    try:
        with (
            torch.random.fork_rng(),
            torch.enable_grad(),
            without_compiled_code(),
            watch.hooks(),
        ):
            total = loss()
            place = _first_of(watch.forward_place(total), world)
            if place is not None:
                return NonFiniteError(place[0], "activation", step, place[1])
            if backward:
                for parameter, _ in kept:
                    parameter.grad = None
                watch.forward = False
                total.backward()  # type: ignore[no-untyped-call]
        place = _first_of(watch.backward_place(), world)
        return None if place is None else NonFiniteError(place[0], "gradient", step, place[1])
    finally:
        for parameter, gradient in kept:
            parameter.grad = gradient


def _first_of(place: Place | None, world: World | None) -> Place | None:
    """The place of the first rank that has one."""
    if world is None or world.ranks == 1:
        return place
    places: list[Place | None] = [None] * world.ranks
    distributed.all_gather_object(places, place)
    return next((found for found in places if found is not None), None)


def _broken_weight(model: nn.Module) -> Place | None:
    broken = [(name, p) for name, p in model.named_parameters() if not _is_finite(p)]
    if not broken:
        return None
    others = f"; {len(broken) - 1} more parameters are not finite" if len(broken) > 1 else ""
    return broken[0][0], _count(broken[0][1]) + others


class _Watch:
    """Hooks on all modules, and what they have seen, in order."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.names = {module: name or "the model" for name, module in model.named_modules()}
        self.forward = True
        self.open: list[str] = []
        self.last = "its beginning"
        self.found: Place | None = None
        # What a tensor is to the modules it passes, first giver, then readers; None where its
        # gradient is finite, else the count.
        self.roles: Any = WeakTensorKeyDictionary()
        self.gradients: list[tuple[list[Role], str | None]] = []

    @contextmanager
    def hooks(self) -> Iterator[None]:
        handles: list[Any] = []
        for module in self.model.modules():
            handles.append(module.register_forward_pre_hook(self._before))
            handles.append(module.register_forward_hook(self._after))
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                owner, _, field = name.rpartition(".")
                role = (owner or "the model", field)
                hook = parameter.register_hook(self._look([role]))  # type: ignore[no-untyped-call]
                handles.append(hook)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _before(self, module: nn.Module, inputs: tuple[Any, ...]) -> None:
        if not self.forward:
            return
        name = self.names[module]
        outer = self.open[-1] if self.open else "the model"
        self.open.append(name)
        for tensor in _floating(inputs):
            if self.found is None and not _is_finite(tensor):
                self.found = (outer, f"between {self.last} and {name}, {_count(tensor)}")
            self._hook_gradient(tensor, name, "input")

    def _after(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if not self.forward:
            return
        name = self.open.pop()
        for tensor in _floating(output if isinstance(output, tuple | list) else (output,)):
            if self.found is None and not _is_finite(tensor):
                reached = _largest(inputs)
                self.found = (name, f"its output, {_count(tensor)}; its inputs reach {reached}")
            self._hook_gradient(tensor, name, "output")
        self.last = name

    def _hook_gradient(self, tensor: Tensor, name: str, what: str) -> None:
        if not tensor.requires_grad:
            return
        if tensor not in self.roles:
            self.roles[tensor] = []
            tensor.register_hook(self._look(self.roles[tensor]))  # type: ignore[no-untyped-call]
        self.roles[tensor].append((name, what))

    def _look(self, roles: list[Role]) -> Callable[[Tensor], None]:
        def look(gradient: Tensor) -> None:
            self.gradients.append((roles, None if _is_finite(gradient) else _count(gradient)))

        return look

    def forward_place(self, total: Tensor) -> Place | None:
        if self.found is not None:
            return self.found
        if _is_finite(total):
            return None
        return "the loss", f"behind {self.last}, whose output is finite"

    def backward_place(self) -> Place | None:
        """The module whose backward gave the first gradient that is not finite."""
        last = "the loss"
        for roles, count in self.gradients:
            name, what = roles[-1]  # the innermost reader, or the giver that no module read
            if count is None:
                last = f"the {what} of {name}"
            elif what == "output":  # the fault is in what read it, beside this module
                outer = name.rpartition(".")[0] or "the model"
                return outer, f"between {last} and the output of {name}, {count}"
            else:
                return name, f"the gradient of its {what}, {count}; that of {last} is finite"
        return None


def _floating(values: Any) -> list[Tensor]:
    return [v for v in values if isinstance(v, Tensor) and v.is_floating_point()]


def _local(tensor: Tensor) -> Tensor:
    """The whole tensor of one that FSDP shares out."""
    full = getattr(tensor.detach(), "full_tensor", None)
    return tensor.detach() if full is None else full()


def _is_finite(tensor: Tensor) -> bool:
    return bool(torch.isfinite(_local(tensor)).all())


def _count(tensor: Tensor) -> str:
    values = _local(tensor)
    nan, infinite = int(values.isnan().sum()), int(values.isinf().sum())
    return f"{nan:,} NaN and {infinite:,} infinite of {values.numel():,} values"


def _largest(inputs: tuple[Any, ...]) -> str:
    tensors = [tensor for tensor in _floating(inputs) if tensor.numel()]
    if not tensors:
        return "no values"
    return f"{max(float(_local(tensor).abs().max()) for tensor in tensors):.3g}"
