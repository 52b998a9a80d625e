"""The ladder of SwiGLU."""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.ladder import AnyArray, Inputs, Ladder, Outputs, Rung, Shape, by_elements
from firsthand.llm.kernels.swiglu import with_numba, with_numpy, with_torch, with_triton


def inputs(shape: Shape, generator: np.random.Generator) -> Inputs:
    """both: (rows, 2 width)."""
    return {"both": 2.0 * generator.standard_normal((shape["rows"], 2 * shape["width"]))}


def oracle(both: AnyArray, cotangent: AnyArray) -> Outputs:
    """With σ(z) = (1 + tanh(z/2)) / 2 and σ' = (1 - tanh²(z/2)) / 4."""
    width = both.shape[-1] // 2
    gate, up = both[:, :width], both[:, width:]
    tanh = np.tanh(gate / 2)
    silu = gate * (1 + tanh) / 2
    slope = (1 + tanh) / 2 + gate * (1 - tanh**2) / 4
    return [silu * up, np.hstack([cotangent * up * slope, cotangent * silu])]


LADDER = Ladder(
    name="swiglu",
    inputs=inputs,
    oracle=oracle,
    differentiable=("both",),
    flops=by_elements(5, 14, "rows", "width", itemsize=1),
    bytes_moved=by_elements(3, 8, "rows", "width"),
    shape={"rows": 4096, "width": 864},
    rungs=(
        Rung(
            "numpy",
            "numpy",
            with_numpy.swiglu,
            by_elements(15, 35, "rows", "width"),
            with_numpy.swiglu_gradients,
        ),
        Rung("torch", "torch", with_torch.swiglu, by_elements(5, 16, "rows", "width")),
        Rung("torch-fused", "torch", with_torch.fused_swiglu, by_elements(5, 16, "rows", "width")),
        Rung("numba", "torch", with_numba.swiglu, by_elements(3, 8, "rows", "width")),
        Rung(
            "triton",
            "torch",
            with_triton.swiglu,
            by_elements(3, 8, "rows", "width"),
            device=triton_support.device,
            needs=triton_support.NEEDS,
        ),
    ),
)
