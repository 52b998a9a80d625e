"""SmoothQuant: outlying channels are moved from the activations into the weights.

A few channels of a transformer's activations are much larger than the rest, and one scale for a
row then leaves little for the others. x Wᵀ = (x / s) (W s)ᵀ for any s > 0 by input channel, so a
channel's size can be shared out:

    s_j = max|x_j|^α / max|W_j|^(1-α)

W s is computed beforehand. Dividing x costs nothing where whatever makes x is linear in a vector:
the weight of a norm, the value rows of attention, and the linear half of SwiGLU.

Source: Xiao et al. 2023, "SmoothQuant", section 4.
"""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from firsthand.llm.model.transformer import Transformer
from firsthand.llm.quantization.calibration import InputStatistics
from firsthand.llm.quantization.shapes import OUTPUT

# A channel that is all but dead would ask for a factor without bound.
_LEAST = 1e-5


def smoothing_factors(
    inputs: Float[Tensor, " in"], weights: Float[Tensor, " in"], alpha: float
) -> Float[Tensor, " in"]:
    """s_j, in float64; 1 where a channel has no input or no weight.

    Args:
        inputs: max|x_j| or a percentile.
        weights: max|W_j| over the rows.
        alpha: 0 leaves the size with the activations, 1 moves all of it into the weights.
    """
    x, w = inputs.double(), weights.double()
    factors = x.clamp(min=_LEAST) ** alpha / w.clamp(min=_LEAST) ** (1.0 - alpha)
    return torch.where((x > 0) & (w > 0), factors, 1.0)


@torch.no_grad()
def smooth(
    model: Transformer, statistics: Mapping[str, InputStatistics], alpha: float
) -> list[str]:
    """Share the sizes of input channels out wherever that leaves the model's function as it is.

    Input of each block's qkv and up: into the norms before them, where the norm stands before
    the sublayer. Input of the attention's output matrix: into the value rows, one factor for the
    query heads that share a value head. Input of down: into SwiGLU's value rows, and for ReLU²,
    as relu(x / √s)² = relu(x)² / s, into all rows of up; GELU allows none. An untied output: into
    the final norm.

    Args:
        model: changed in place.
        statistics: of its inputs, by `calibration.calibrate`.
        alpha: from 0 to 1.
    Returns:
        The names of the matrices whose inputs were smoothed.
    """
    config, own = model.config, dict(model.named_parameters())
    changed = []

    def factors(name: str, shared: int = 1, width: int = 1) -> Tensor:
        """For the input of a matrix, (in,); `shared` neighbours of `width` channels alike."""
        peaks, weights = statistics[name].peaks, own[name].abs().amax(dim=0)
        if shared > 1:
            peaks = peaks.view(-1, shared, width).amax(dim=1).flatten()
            weights = weights.view(-1, shared, width).amax(dim=1).flatten()
        changed.append(name)
        return smoothing_factors(peaks, weights, alpha)

    def scale(name: str, s: Tensor, rows: slice = slice(None)) -> None:
        """Rows times s, where there is such a parameter; s of one number for each row."""
        if name in own:
            part = own[name][rows]
            part.copy_(part.double() * (s if part.ndim == 1 else s[:, None]))

    def multiply_columns(name: str, s: Tensor) -> None:
        own[name].copy_(own[name].double() * s)

    pre = config.norm_placement == "pre"
    for layer in range(config.n_layers):
        block = f"blocks.{layer}."
        attention, feed_forward = f"{block}attention", f"{block}feed_forward"
        if pre:
            for norm, matrix in (("attention", "qkv"), ("feed_forward", "up")):
                s = factors(f"{block}{norm}.{matrix}.weight")
                multiply_columns(f"{block}{norm}.{matrix}.weight", s)
                for kind in ("weight", "bias"):
                    scale(f"{block}{norm}_norm.{kind}", 1 / s)
        width, group = config.head_width, config.n_heads // config.kv_heads
        s = factors(f"{attention}.output.weight", group, width)
        by_query_head = s.view(-1, 1, width).expand(-1, group, -1).flatten()
        multiply_columns(f"{attention}.output.weight", by_query_head)
        values = slice(sum(config.qkv_rows[:2]), None)
        for kind in ("weight", "bias"):
            scale(f"{attention}.qkv.{kind}", 1 / s, values)
        if config.feed_forward == "gelu":
            continue
        s = factors(f"{feed_forward}.down.weight")
        multiply_columns(f"{feed_forward}.down.weight", s)
        gated = config.feed_forward == "swiglu"
        rows = slice(config.hidden_width if gated else 0, None)
        for kind in ("weight", "bias"):
            scale(f"{feed_forward}.up.{kind}", 1 / s if gated else 1 / s.sqrt(), rows)
    if pre and not config.tied:
        s = factors(OUTPUT)
        multiply_columns(OUTPUT, s)
        for kind in ("weight", "bias"):
            scale(f"final_norm.{kind}", 1 / s)
    return changed
