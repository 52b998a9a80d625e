"""The signals, gradients and updates of a run, step by step, and probes for what hooks cannot see.

`training.gradient_flow` records root mean squares of activations, gradients and updates. What a
part does inside is seen by a part that stands in its place, asks it, and measures: the weights that
an attention gives its values are what it returns when the values are the rows of the identity, so
any attention can be probed without a look at its code.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from firsthand.llm.data.loading import TokenStream
from firsthand.llm.model.config import ModelConfig
from firsthand.llm.model.parts import Parts
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.training.alarm import NonFiniteError
from firsthand.llm.training.assembly import assemble
from firsthand.llm.training.config import RunConfig
from firsthand.llm.training.distributed import World
from firsthand.llm.training.errors import TrainingError
from firsthand.llm.training.journal import NoJournal
from firsthand.llm.training.loop import train
from firsthand.llm.training.next_token import Corpus, NextToken
from firsthand.llm.training.report.contents import Record, finite, read_contents

_VALIDATION = 256
# Rows of logits that are looked at.
_LOGIT_ROWS = 64


@dataclass(frozen=True, kw_only=True)
class Flow:
    """What is known of a run's inside; what was not recorded is None wherever it is asked for.

    Attributes:
        model: its shape.
        train: a record for each logged update: step, loss (nats per token), gradient_norm (before
            clipping) and so on.
        flow: a record for each update whose flow was recorded: step and, in "layers", the figures
            of `FlowRecorder` for each layer; from a probed run also attention_entropy,
            future_weight, distant_future_weight and silent_share of the blocks, activation_rms of
            "logits" and unmoved_share of "weights".
        failure: where the first value that is not finite was, if the run ended at one.
        failed_step: at which step; 0 for none.
    """

    model: ModelConfig
    train: tuple[Record, ...]
    flow: tuple[Record, ...]
    failure: str = ""
    failed_step: int = 0

    def at(self, step: int, layer: str, figure: str) -> float | None:
        """A figure of a layer ("blocks.-1" is the last) at a step."""
        number = layer.removeprefix("blocks.")
        if number.startswith("-"):
            layer = f"blocks.{self.model.n_layers + int(number)}"
        for record in self.flow:
            if record.get("step") == step:
                return finite(record.get("layers", {}).get(layer, {}).get(figure))
        return None

    def logged(self, step: int, name: str) -> float | None:
        """A number of the log line of a step."""
        for record in self.train:
            if record.get("step") == step:
                return finite(record.get(name))
        return None

    def series(self, layer: str, figure: str) -> list[float]:
        """The figure at each recorded step, where it is finite."""
        steps = [int(record["step"]) for record in self.flow]
        values = [self.at(step, layer, figure) for step in steps]
        return [value for value in values if value is not None]

    def losses(self) -> list[float]:
        """The loss at each logged step, where it is finite."""
        found = [finite(record.get("loss")) for record in self.train]
        return [loss for loss in found if loss is not None]


class Probe:
    """Measures inside of parts while a step is recorded; call `taken` for the figures since."""

    def __init__(self) -> None:
        self._layers: dict[str, dict[str, float]] = {}
        self._attentions = self._activations = 0

    def probed(self, parts: Parts) -> Parts:
        """The same parts, with the ones that are looked at wrapped."""
        return replace(
            parts,
            attention=self._attention(parts.attention),
            swiglu=self._activation(parts.swiglu),
            gelu=self._activation(parts.gelu),
            relu_squared=self._activation(parts.relu_squared),
            cross_entropy=self._loss(parts.cross_entropy),
            adamw=self._update(parts.adamw),
        )

    def taken(self) -> dict[str, dict[str, float]]:
        """Figures by layer since the last call; a forward pass begins a new count of layers."""
        found, self._layers = self._layers, {}
        self._attentions = self._activations = 0
        return found

    def _note(self, layer: str, **figures: float) -> None:
        self._layers.setdefault(layer, {}).update(figures)

    def _attention(self, part: Any) -> Any:
        def attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
            if torch.is_grad_enabled():
                with torch.no_grad():
                    figures = attention_figures(part, q[:1], k[:1], bias)
                self._note(f"blocks.{self._attentions}", **figures)
                self._attentions += 1
            result: Tensor = part(q, k, v, bias)
            return result

        return attention

    def _activation(self, part: Any) -> Any:
        def activation(x: Tensor) -> Tensor:
            result: Tensor = part(x)
            # Behind the layer's attention, and not when the backward pass runs it again.
            if self._activations < self._attentions:
                silent = (result.detach() == 0).flatten(end_dim=-2).all(dim=0).float().mean()
                self._note(f"blocks.{self._activations}", silent_share=float(silent))
                self._activations += 1
            return result

        return activation

    def _loss(self, part: Any) -> Any:
        def cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
            if torch.is_grad_enabled():
                with torch.no_grad():
                    logits = hidden[:_LOGIT_ROWS].float() @ weight.float().T
                    self._note("logits", activation_rms=float(logits.square().mean().sqrt()))
            result: Tensor = part(hidden, weight, targets)
            return result

        return cross_entropy

    def _update(self, part: Any) -> Any:
        unmoved: list[tuple[int, int]] = []

        def adamw(parameters: Sequence[Tensor], *others: Any, **named: Any) -> None:
            if "weights" not in self._layers:
                unmoved.clear()
            before = [parameter.clone() for parameter in parameters]
            part(parameters, *others, **named)
            for old, new in zip(before, parameters, strict=True):
                unmoved.append((int((old == new).sum()), new.numel()))
            same, all_ = (sum(column) for column in zip(*unmoved, strict=True))
            self._note("weights", unmoved_share=same / all_)

        return adamw


def attention_figures(
    part: Any, q: Tensor, k: Tensor, bias: Tensor | None = None
) -> dict[str, float]:
    """What an attention looks at, from the weights that it gives to the rows of the identity.

    Args:
        part: an attention, linear in its values.
        q, k: (rows, heads, seq, width).
        bias: as it takes it.
    Returns:
        attention_entropy, the mean over heads and queries from the second on of the entropy as a
        share of that of equal weights on all keys up to the query; future_weight, the mean weight
        on later keys; distant_future_weight, on those after the next one. NaN where a weight is.
    """
    seq = k.shape[-2]
    eye = torch.eye(seq, dtype=q.dtype, device=q.device).expand(*k.shape[:-1], seq)
    weights = part(q, k, eye, bias).float()
    entropy = -(weights * weights.clamp_min(1e-30).log()).sum(dim=-1)
    most = torch.arange(1, q.shape[-2] + 1, device=q.device).float().log()
    share = (entropy[..., 1:] / most[1:]).mean()
    return {
        "attention_entropy": float(share),
        "future_weight": float(weights.triu(1).sum(dim=-1).mean()),
        "distant_future_weight": float(weights.triu(2).sum(dim=-1).mean()),
    }


class _FlowJournal(NoJournal):
    def __init__(self, probe: Probe) -> None:
        super().__init__()
        self.probe = probe

    def line(self, record: Record) -> None:
        """Keep it; a flow record gets what the probe has seen."""
        if record.get("kind") == "flow":
            for layer, figures in self.probe.taken().items():
                record["layers"].setdefault(layer, {}).update(figures)
        self.lines.append(record)


def record_flow(config: RunConfig, parts: Parts, text: NDArray[np.uint8]) -> Flow:
    """Train by the ordinary loop, one micro-batch an update, and record the flow of each update.

    Args:
        config: of the run; its data table is not read, and its vocabulary is bytes.
        parts: of the model.
        text: bytes to learn.
    Returns:
        The flow, also of a run that ended at a value that is not finite.
    """
    config = replace(config, training=replace(config.training, flow_every=1, micro_batch=0))
    world, probe = World(0, 1, torch.device("cpu")), Probe()
    corpus = Corpus(
        train=TokenStream([text[_VALIDATION:]], 0),
        validation=TokenStream([text[:_VALIDATION]], 0),
        byte_lengths=np.ones(config.model.vocab_size, np.int64),
    )
    model = Transformer(config.model, probe.probed(parts), seed=config.seed)
    journal = _FlowJournal(probe)
    failure, failed = "", 0
    try:
        train(assemble(config, model, NextToken(corpus, config, world), world, journal))
    except NonFiniteError as error:
        failure, failed = error.layer, error.step
    return Flow(
        model=config.model,
        train=_of_kind(journal.lines, "train"),
        flow=_of_kind(journal.lines, "flow"),
        failure=failure,
        failed_step=failed,
    )


def flow_of_run(folder: Path) -> Flow:
    """What the metrics of a run tell.

    Raises:
        TrainingError: the folder is no run, or has no flow records.
    """
    contents = read_contents(folder)
    model = contents.model()
    flow = tuple(r for r in contents.of_kind("flow") if isinstance(r.get("layers"), Mapping))
    if model is None or not flow:
        raise TrainingError(
            f"{folder} has no record of its flow; training.flow_every=50 writes one every 50 steps"
        )
    return Flow(model=model, train=tuple(contents.of_kind("train")), flow=flow)


def _of_kind(lines: list[Record], kind: str) -> tuple[Record, ...]:
    return tuple(line for line in lines if line.get("kind") == kind)


def share_of(part: float | None, whole: float | None) -> float | None:
    """part / whole, or None where one is missing or the whole is 0."""
    if part is None or whole is None or whole == 0:
        return None
    ratio = part / whole
    return ratio if math.isfinite(ratio) else None
