"""How large signals, gradients and updates are in each layer, at a few steps of a run.

The figures are root mean squares, √(mean of squares), so that layers of any size compare. In a
healthy run the stream grows slowly with depth, gradients of all blocks are within a factor of ten
or so, and an update is about a thousandth of its weights; a layer that vanishes, explodes or stands
still shows first.

Hooks exist only while a recorded step runs, so the other steps cost nothing.

Source: Glorot & Bengio 2010, section 4 (activations and gradients by layer); Karpathy, "The
spelled-out intro to neural networks", part 3 (the ratio of update to weight).
"""

from __future__ import annotations

import contextlib
import math
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from firsthand.llm.model.layers import Block
from firsthand.llm.model.transformer import Transformer

Figures = dict[str, float | None]


class FlowRecorder:
    """Records one step; the loop decides which.

    In a recorded step:

        with recorder.watching():
            ... forward and backward passes of all micro-batches ...
        recorder.before_update()        # gradients final, weights still the old ones
        ... optimizer step ...
        line = recorder.after_update(step)

    Under FSDP every rank records, as figures of weights and gradients are over all ranks.
    Activations are those of this rank's first micro-batch. Until the update a recorded step holds
    a copy of the weights; the activations are gone by then, so the peak memory stays as it is.

    Args:
        model: under DDP the one inside the wrapper. Blocks that torch.compile has compiled run
            as plain Python in a recorded step, because they would not call the hooks.
    """

    def __init__(self, model: Transformer) -> None:
        self._model = model
        self._clock = _Clock(model.embedding.weight.device)
        self._activations: dict[tuple[str, str], Tensor] = {}
        self._gradients: dict[str, Tensor] = {}
        self._weights: dict[str, Tensor] = {}
        self._old: dict[str, Tensor] = {}
        self._roots: dict[str, list[tuple[str, nn.Parameter]]] = defaultdict(list)
        for name, parameter in model.named_parameters():
            self._roots[layer_of(name)].append((name, parameter))

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Hooks around the forward and backward passes of one step."""
        self._clock.restart()
        self._activations.clear()
        handles = [
            module.register_forward_hook(self._noting(layer, figure))
            for layer, figure, module in self._watched()
        ]
        first = self._model.blocks[0]
        handles.append(first.register_forward_pre_hook(self._note_embedding))
        try:
            with without_compiled_code():
                yield
        finally:
            for handle in handles:
                handle.remove()

    def _watched(self) -> Iterator[tuple[str, str, nn.Module]]:
        for number, block in enumerate(self._model.blocks):
            assert isinstance(block, Block)
            layer = f"blocks.{number}"
            yield layer, "attention_rms", block.attention
            yield layer, "feed_forward_rms", block.feed_forward
            yield layer, "activation_rms", block
        if self._model.final_norm is not None:
            yield "final_norm", "activation_rms", self._model.final_norm

    def _noting(self, layer: str, figure: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def note(_: nn.Module, __: Any, output: Tensor) -> None:
            self._note(layer, figure, output)

        return note

    def _note_embedding(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        self._note("embedding", "activation_rms", inputs[0])

    def _note(self, layer: str, figure: str, output: Tensor) -> None:
        # The first call is the first micro-batch; later ones are others, or blocks that activation
        # checkpointing computes again in the backward pass.
        if (layer, figure) in self._activations:
            return
        with self._clock:
            self._activations[layer, figure] = _rms(output.detach())
        if figure == "activation_rms" and output.requires_grad:
            output.register_hook(self._noting_gradient(layer))  # type: ignore[no-untyped-call]

    def _noting_gradient(self, layer: str) -> Callable[[Tensor], None]:
        def note(gradient: Tensor) -> None:
            with self._clock:
                self._activations[layer, "activation_gradient_rms"] = _rms(gradient)

        return note

    def before_update(self) -> None:
        """Note gradients and weights, when the former are summed, unscaled and clipped."""
        with self._clock, torch.no_grad():
            self._gradients = self._by_layer(lambda _, p: p.grad)
            self._weights = self._by_layer(lambda _, p: p.detach())
            parameters = dict(self._model.named_parameters())
            self._old = {name: p.detach().clone() for name, p in parameters.items()}

    def after_update(self, step: int, *, loss_divisor: float = 1.0) -> dict[str, Any]:
        """The line of metrics for this step.

        Args:
            step: the number to record it under.
            loss_divisor: what the gradients were divided by after the backward pass, such as the
                number of tokens or float16's scale; those of activations were not.
        Returns:
            {"kind": "flow", "step": ..., "seconds": what recording cost, "layers": {layer:
            figures}}. Layers are "embedding", "blocks.0", ..., "final_norm" and, untied,
            "output". Figures are activation_rms (of the layer's output), activation_gradient_rms
            (of the loss with respect to it), attention_rms and feed_forward_rms (what each
            sublayer adds), gradient_rms, weight_rms, update_rms (over the layer's parameters) and
            update_ratio (update_rms / weight_rms). A figure that is not finite is None.
        """
        with self._clock, torch.no_grad():
            old = self._old
            updates = self._by_layer(lambda name, p: old[name].sub_(p.detach()))
            self._old = {}
            measured = dict(self._activations)
            for figure, values in (
                ("gradient_rms", self._gradients),
                ("weight_rms", self._weights),
                ("update_rms", updates),
            ):
                measured |= {(layer, figure): value for layer, value in values.items()}
            numbers = _to_floats(measured)
        layers: dict[str, Figures] = {}
        for layer in ("embedding", *self._roots, "final_norm"):
            layers.setdefault(layer, {})
        for (layer, figure), number in numbers.items():
            divided = figure == "activation_gradient_rms"
            layers[layer][figure] = _plain(number / loss_divisor if divided else number)
        for figures in layers.values():
            update, weight = figures.get("update_rms"), figures.get("weight_rms")
            if update is not None and weight:
                figures["update_ratio"] = update / weight
        seconds = self._clock.seconds()
        present = {layer: figures for layer, figures in layers.items() if figures}
        return {"kind": "flow", "step": step, "seconds": seconds, "layers": present}

    def _by_layer(
        self, tensor_of: Callable[[str, nn.Parameter], Tensor | None]
    ) -> dict[str, Tensor]:
        """The root mean square of a tensor per parameter, over the parameters of each layer."""
        result = {}
        for layer, parameters in self._roots.items():
            squares, count = [], 0
            for name, parameter in parameters:
                tensor = tensor_of(name, parameter)
                if tensor is not None:
                    squares.append(_norm(tensor).square())
                    count += tensor.numel()
            if count:
                result[layer] = (torch.stack(squares).sum() / count).sqrt()
        return result


def layer_of(parameter: str) -> str:
    """The layer of a parameter's dotted name: "blocks.3" of "blocks.3.attention.qkv.weight"."""
    first, _, rest = parameter.partition(".")
    return f"{first}.{rest.partition('.')[0]}" if first == "blocks" else first


def without_compiled_code() -> AbstractContextManager[Any]:
    """Run what torch.compile has compiled as plain Python, so that new hooks are called."""
    if "torch._dynamo" not in sys.modules:  # nothing is compiled, and importing it takes a second
        return contextlib.nullcontext()
    eager: AbstractContextManager[Any] = torch.compiler.set_stance("force_eager")
    return eager


def _norm(tensor: Tensor) -> Tensor:
    """√(sum of squares) in float32 or wider; over all ranks for a tensor that FSDP shares out."""
    wide = torch.promote_types(tensor.dtype, torch.float32)
    norm = torch.linalg.vector_norm(tensor, dtype=wide)
    whole: Tensor = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
    return whole


def _rms(tensor: Tensor) -> Tensor:
    return _norm(tensor) / math.sqrt(tensor.numel())


def _to_floats(values: dict[tuple[str, str], Tensor]) -> dict[tuple[str, str], float]:
    """All at once, as each single one would wait for the GPU."""
    stacked = torch.stack([value.double() for value in values.values()])
    return dict(zip(values, stacked.tolist(), strict=True))


def _plain(number: float) -> float | None:
    return number if math.isfinite(number) else None


class _Clock:
    """Seconds within its `with` blocks: of the device's own time on a GPU, which runs behind."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self.restart()

    def restart(self) -> None:
        self._total = 0.0
        self._pairs: list[tuple[Any, Any]] = []

    def __enter__(self) -> None:
        self._begin = self._now()

    def __exit__(self, *_: object) -> None:
        end = self._now()
        if self._on_gpu:
            self._pairs.append((self._begin, end))
        else:
            self._total += end - self._begin

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def seconds(self) -> float:
        """The sum; waits for the device."""
        if self._pairs:
            torch.cuda.synchronize()
        return self._total + float(sum(a.elapsed_time(b) for a, b in self._pairs)) / 1000
