"""The ladders of RMSNorm and LayerNorm."""

from __future__ import annotations

import numpy as np

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.ladder import AnyArray, Inputs, Ladder, Outputs, Rung, Shape, by_elements
from firsthand.llm.kernels.norms import with_numba, with_numpy, with_torch, with_triton

EPS = 1e-5


def rms_inputs(shape: Shape, generator: np.random.Generator) -> Inputs:
    """x: (rows, width); weight: (width,)."""
    x = generator.standard_normal((shape["rows"], shape["width"]))
    return {"x": x, "weight": generator.uniform(0.5, 1.5, shape["width"])}


def layer_inputs(shape: Shape, generator: np.random.Generator) -> Inputs:
    """As `rms_inputs`, x off centre, and bias: (width,)."""
    drawn = rms_inputs(shape, generator)
    return {**drawn, "x": drawn["x"] + 0.5, "bias": generator.standard_normal(shape["width"])}


def rms_oracle(x: AnyArray, weight: AnyArray, cotangent: AnyArray) -> Outputs:
    """By the norm of each row, and dx by the Jacobian (δ_ij - x_i x_j / (d m)) / √m of each row."""
    width = x.shape[-1]
    mean_square = np.linalg.norm(x, axis=-1) ** 2 / width + EPS
    outer = np.einsum("ri,rj->rij", x, x) / (width * mean_square)[:, None, None]
    jacobians = (np.eye(width) - outer) / np.sqrt(mean_square)[:, None, None]
    normed = x / np.sqrt(mean_square)[:, None]
    dx = np.einsum("ri,i,rij->rj", cotangent, weight, jacobians)
    return [normed * weight, dx, np.einsum("ri,ri->i", cotangent, normed)]


def layer_oracle(x: AnyArray, weight: AnyArray, bias: AnyArray, cotangent: AnyArray) -> Outputs:
    """RMSNorm of C x, where C = I - 1/d takes the mean off; the chain rule gives dx = Cᵀ d(C x)."""
    width = x.shape[-1]
    centring = np.eye(width) - 1.0 / width
    output, dcentred, dweight = rms_oracle(x @ centring, weight, cotangent)
    return [output + bias, dcentred @ centring, dweight, cotangent.sum(axis=0)]


RMS_LADDER = Ladder(
    name="rms_norm",
    inputs=rms_inputs,
    oracle=rms_oracle,
    differentiable=("x", "weight"),
    flops=by_elements(4, 13, "rows", "width", itemsize=1),
    bytes_moved=by_elements(2, 4, "rows", "width"),
    shape={"rows": 4096, "width": 320},
    rungs=(
        Rung(
            "numpy",
            "numpy",
            with_numpy.rms_norm,
            by_elements(7, 23, "rows", "width"),
            with_numpy.rms_norm_gradients,
        ),
        Rung("torch", "torch", with_torch.rms_norm, by_elements(7, 22, "rows", "width")),
        Rung(
            "torch-fused", "torch", with_torch.fused_rms_norm, by_elements(5, 11, "rows", "width")
        ),
        Rung("numba", "torch", with_numba.rms_norm, by_elements(2, 5, "rows", "width")),
        Rung(
            "triton",
            "torch",
            with_triton.rms_norm,
            by_elements(2, 5, "rows", "width"),
            device=triton_support.device,
            needs=triton_support.NEEDS,
        ),
    ),
)

LAYER_LADDER = Ladder(
    name="layer_norm",
    inputs=layer_inputs,
    oracle=layer_oracle,
    differentiable=("x", "weight", "bias"),
    flops=by_elements(7, 18, "rows", "width", itemsize=1),
    bytes_moved=by_elements(2, 4, "rows", "width"),
    shape={"rows": 4096, "width": 320},
    rungs=(
        Rung(
            "numpy",
            "numpy",
            with_numpy.layer_norm,
            by_elements(12, 31, "rows", "width"),
            with_numpy.layer_norm_gradients,
        ),
        Rung("torch", "torch", with_torch.layer_norm, by_elements(12, 31, "rows", "width")),
        Rung(
            "torch-fused", "torch", with_torch.fused_layer_norm, by_elements(2, 5, "rows", "width")
        ),
    ),
)
