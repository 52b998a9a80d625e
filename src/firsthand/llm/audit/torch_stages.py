"""The operations of a token on PyTorch, timed one by one: the same model with a clock around parts.

A model is made of parts and of linear layers. A copy of the model that shares the weights has each
part wrapped and each linear layer hooked. On a CPU an operation has ended when it returns; on a GPU
events stand before and behind it in its queue, so what is between two of them has the gaps in it.
What is in no part (views, dispatch, the interpreter) is what the whole takes longer.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn

from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer

# Name of the stage by part, and by the end of a linear layer's name.
_PARTS = {
    "embed": "embedding",
    "mix_neighbours": "embedding",
    "sinusoidal_positions": "embedding",
    "rms_norm": "norms",
    "layer_norm": "norms",
    "rotate_half": "rotation",
    "rotate_interleaved": "rotation",
    "visibility_bias": "attention",
    "split_heads": "heads",
    "merge_heads": "heads",
    "attention": "attention",
    "swiglu": "activation",
    "gelu": "activation",
    "relu_squared": "activation",
    "vocabulary_logits": "logits",
}
_LINEAR = {
    "attention.qkv": "queries, keys, values",
    "attention.output": "attention's output",
    "feed_forward.up": "gate and up",
    "feed_forward.down": "down",
}
STAGES = (
    "embedding",
    "norms",
    "queries, keys, values",
    "heads",
    "rotation",
    "cache",
    "attention",
    "attention's output",
    "gate and up",
    "activation",
    "down",
    "logits",
)


class Stopwatch:
    """Adds up the seconds of each stage.

    Args:
        device: a CPU's clock is read; on a GPU events are recorded.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._spent = dict.fromkeys(STAGES, 0.0)
        self._events: list[tuple[str, Any, Any]] = []
        self._open = 0

    def timed(self, stage: str, call: Callable[..., Any]) -> Callable[..., Any]:
        """The same call, timed; within another one that is timed, it belongs to that one."""

        def inner(*arguments: Any, **named: Any) -> Any:
            if self._open:
                return call(*arguments, **named)
            began = self.begin()
            try:
                return call(*arguments, **named)
            finally:
                self.end(stage, began)

        return inner

    def begin(self) -> Any:
        """The present moment."""
        self._open += 1
        if not self._on_gpu:
            return time.perf_counter()
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def end(self, stage: str, began: Any) -> None:
        """Add what has passed since then."""
        self._open -= 1
        if not self._on_gpu:
            self._spent[stage] += time.perf_counter() - began
            return
        event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append((stage, began, event))

    def take(self) -> dict[str, float]:
        """Seconds by stage since the last time."""
        if self._events:
            torch.cuda.synchronize()
            for stage, began, ended in self._events:
                self._spent[stage] += began.elapsed_time(ended) / 1e3
            self._events = []
        found, self._spent = self._spent, dict.fromkeys(STAGES, 0.0)
        return found


def timed_model(model: Transformer) -> tuple[Transformer, Stopwatch]:
    """The model with a stopwatch in it; it shares the weights."""
    watch = Stopwatch(model.embedding.weight.device)
    with torch.device("meta"):
        twin = Transformer(model.config, timed_parts(model.parts, watch))
    twin.load_state_dict(model.state_dict(), assign=True)
    for name, module in twin.named_modules():
        stage = next((_LINEAR[end] for end in _LINEAR if name.endswith(end)), None)
        if stage is not None and isinstance(module, nn.Linear):
            # On the module itself, before its class's method.
            vars(module)["forward"] = watch.timed(stage, module.forward)
    return twin.eval(), watch


def timed_parts(parts: Parts, watch: Stopwatch) -> Parts:
    """The parts that a forward pass calls, timed."""
    timed: dict[str, Any] = {
        name: watch.timed(stage, getattr(parts, name)) for name, stage in _PARTS.items()
    }
    return replace(parts, **timed, kv_cache=partial(_timed_cache, parts.kv_cache, watch))


def _timed_cache(factory: Callable[..., Any], watch: Stopwatch, **sizes: Any) -> Any:
    cache = factory(**sizes)
    cache.append = watch.timed("cache", cache.append)
    return cache
