"""What a model's matrices multiply, seen on a piece of text.

The table of errors, SmoothQuant and GPTQ all ask how large the inputs of a product are, and GPTQ
how they go together: the Hessian of a row's squared error, up to a factor, is the sum of x xᵀ over
the inputs x.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Float64
from torch import Tensor, nn

from firsthand.llm.data.loading import TokenIds, TokenStream
from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.errors import QuantizationError
from firsthand.llm.quantization.shapes import OUTPUT, output_matrix

# Called with the windows done and all of them.
Progress = Callable[[int, int], None]
# Rows of a layer's input that are kept for a percentile.
SAMPLED_ROWS = 2048
BATCH_ROWS = 8


@dataclass
class InputStatistics:
    """Of the inputs of one matrix, over all calibration tokens.

    Attributes:
        rows: input vectors seen.
        peaks: (in,), the largest absolute value of each channel, or its percentile.
        hessian: (in, in), Σ x xᵀ; None unless asked for.
    """

    rows: int
    peaks: Float[Tensor, " in"]
    hessian: Float64[Tensor, "in in"] | None = None


def calibration_windows(
    stream: TokenStream, tokens: int, length: int, *, least: int = 2
) -> TokenIds:
    """Windows at even distances over a text: (windows, length), as training would show them.

    Args:
        stream: of the text.
        tokens: about how many are wanted; all there are when there are fewer.
        length: of a window; shorter where the text is.
        least: how few are still enough.
    Raises:
        QuantizationError: the text has fewer than `least` tokens.
    """
    if len(stream) < max(least, 1):
        raise QuantizationError(
            f"calibration needs {max(least, 1):,} tokens of text; this text has {len(stream):,}"
        )
    length = max(1, min(length, len(stream), tokens))
    # Only whole windows, so that no position is padding.
    available = len(stream) // length
    wanted = min(available, -(-tokens // length))
    windows = np.empty((wanted, length), np.int64)
    for row in range(wanted):
        stream.read(row * available // wanted * length, windows[row])
    return windows


def least_tokens(widths: Mapping[str, tuple[int, int]]) -> int:
    """As many as the widest input: with fewer, the inputs do not even span its channels."""
    return max(columns for _, columns in widths.values())


def calibrate(
    model: Transformer,
    windows: TokenIds,
    *,
    hessians: bool = False,
    percentile: float = 100.0,
    progress: Progress | None = None,
) -> dict[str, InputStatistics]:
    """Run text through a model and look at the input of each matrix.

    Hessians take in² · 8 bytes for each matrix, all at once.

    Args:
        model: in float32, on any device.
        windows: (windows, length), of tokens.
        hessians: sum up x xᵀ, in float64.
        percentile: 100 takes the largest absolute value of a channel; below, this percentile
            over a sample of at most SAMPLED_ROWS inputs.
        progress: is told the windows done and to do.
    Returns:
        By the name of the matrix; an untied embedding, which multiplies nothing, is not there.
    Raises:
        QuantizationError: an input is NaN or infinite; names the matrix.
    """
    found: dict[str, InputStatistics] = {}
    samples: dict[str, list[Tensor]] = {}
    every = max(1, windows.size // SAMPLED_ROWS)

    def see(name: str, inputs: Tensor) -> None:
        rows = inputs.detach().flatten(end_dim=-2).float()
        peaks = rows.abs().amax(dim=0)
        if not bool(peaks.isfinite().all()):
            raise QuantizationError(
                f"the inputs of {name} are not finite on the calibration text; the weights before "
                "it are damaged or too large for their type"
            )
        if name not in found:
            width = rows.shape[1]
            empty = rows.new_zeros(width, width, dtype=torch.float64) if hessians else None
            found[name] = InputStatistics(0, torch.zeros_like(peaks), empty)
        statistics = found[name]
        statistics.peaks = torch.maximum(statistics.peaks, peaks)
        if statistics.hessian is not None:
            exact = rows.double()
            statistics.hessian.addmm_(exact.T, exact)
        if percentile < 100:
            samples.setdefault(name, []).append(rows[(-statistics.rows) % every :: every].abs())
        statistics.rows += len(rows)

    with _inputs_shown(model, see):
        run(model, windows, progress, lambda hidden: see(output_matrix(model.config), hidden))
    for name, parts in samples.items():
        quantile = torch.quantile(torch.cat(parts), percentile / 100, dim=0)
        # A channel that is nearly always 0 still needs a size.
        found[name].peaks = torch.where(quantile > 0, quantile, found[name].peaks)
    return found


@torch.no_grad()
def run(
    model: Transformer,
    windows: TokenIds,
    progress: Progress | None,
    see: Callable[[Tensor], None],
) -> None:
    """All windows through the model in batches; `see` is given what the output matrix reads."""
    tokens = torch.from_numpy(windows).to(model.embedding.weight.device)
    done = 0
    for batch in torch.split(tokens, BATCH_ROWS):
        see(model.hidden(batch))
        done += len(batch)
        if progress is not None:
            progress(done, len(tokens))


def linear_layers(model: Transformer) -> dict[str, nn.Linear]:
    """The matrices inside the blocks, by the name of their weight."""
    return {
        f"{name}.weight": module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and f"{name}.weight" != OUTPUT
    }


@contextmanager
def _inputs_shown(model: Transformer, see: Callable[[str, Tensor], None]) -> Iterator[None]:
    def shown(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        return lambda module, inputs: see(name, inputs[0])

    handles = [
        layer.register_forward_pre_hook(shown(name)) for name, layer in linear_layers(model).items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
