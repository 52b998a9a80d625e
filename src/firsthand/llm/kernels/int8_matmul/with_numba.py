"""The INT8 product by compiled tiles, on PyTorch's threads."""
# ruff: noqa: F722  (shapes in annotations are no forward references)

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from jaxtyping import Float32, Int8, Int16
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from firsthand.llm.kernels.compiling import compiled
from firsthand.llm.kernels.int8_matmul import with_torch
from firsthand.llm.kernels.int8_matmul.panels import PANEL, padded, panel_products
from firsthand.llm.kernels.int8_matmul.tiles import SUMS
from firsthand.llm.kernels.threads import by_rows

AnyArray = NDArray[Any]


def int8_matmul(
    x: Int16[Tensor, "m k"],
    x_scales: Float32[Tensor, " m"],
    w: Int8[Tensor, "n k"],
    w_scales: Float32[Tensor, " n"],
) -> Float32[Tensor, "m n"]:
    """As the NumPy rung, to the last bit, each thread on weight rows of its own.

    float32 scales on a CPU; the PyTorch rung for the rest. A width that is no multiple of 64 costs
    a padded copy of both.
    """
    if not (x.is_cpu and w_scales.dtype == x_scales.dtype == torch.float32) or 0 in w.shape:
        return with_torch.int8_matmul(x, x_scales, w, w_scales)
    more = padded(x.shape[1]) - x.shape[1]
    if more:
        x, w = functional.pad(x, (0, more)), functional.pad(w, (0, more))
    out = x.new_empty((len(x), len(w)), dtype=torch.float32)
    panels = -(-len(w) // PANEL)
    # A place for each panel, so that threads share none.
    sums = np.empty((panels, PANEL, SUMS), np.int32)
    arrays = (tensor.contiguous().numpy() for tensor in (x, x_scales, w, w_scales))
    by_rows(_panels, panels, x.numel() * len(w) // PANEL, *arrays, sums, out.numpy())
    return out


@compiled
def _panels(
    first: int,
    last: int,
    x: AnyArray,
    x_scales: AnyArray,
    w: AnyArray,
    w_scales: AnyArray,
    sums: AnyArray,
    out: AnyArray,
) -> None:
    for panel in range(first, last):
        start = panel * PANEL
        end = min(len(w), start + PANEL)
        panel_products(
            x, x_scales, 0, len(x), w, w_scales, start, end, sums[panel], out, start
        )  # fmt: skip
