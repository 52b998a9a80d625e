"""The ladders of RoPE, one for each pairing."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from firsthand.llm.kernels import triton_support
from firsthand.llm.kernels.ladder import AnyArray, Inputs, Ladder, Outputs, Rung, Shape, by_elements
from firsthand.llm.kernels.rope import with_numba, with_numpy, with_torch, with_triton

_SIZES = ("batch", "heads", "positions", "width")
_SHAPE = {"batch": 4, "heads": 8, "positions": 512, "width": 64}


def inputs(shape: Shape, generator: np.random.Generator) -> Inputs:
    """x: (batch, heads, positions, width); cos and sin: (positions, width / 2), random angles."""
    x = generator.standard_normal([shape[name] for name in _SIZES])
    angles = generator.uniform(0.0, 2.0 * np.pi, (shape["positions"], shape["width"] // 2))
    return {"x": x, "cos": np.cos(angles), "sin": np.sin(angles)}


def half_oracle(x: AnyArray, cos: AnyArray, sin: AnyArray, cotangent: AnyArray) -> Outputs:
    """By one rotation matrix for each position, and the gradient by its transpose."""
    half = x.shape[-1] // 2
    return _by_matrices(x, cos, sin, cotangent, np.arange(half), np.arange(half) + half)


def interleaved_oracle(x: AnyArray, cos: AnyArray, sin: AnyArray, cotangent: AnyArray) -> Outputs:
    """As `half_oracle`, for the pairs 2i and 2i + 1."""
    even = 2 * np.arange(x.shape[-1] // 2)
    return _by_matrices(x, cos, sin, cotangent, even, even + 1)


def _by_matrices(
    x: AnyArray, cos: AnyArray, sin: AnyArray, cotangent: AnyArray, a: AnyArray, b: AnyArray
) -> Outputs:
    rotations = np.zeros((x.shape[-2], x.shape[-1], x.shape[-1]))
    rotations[:, a, a] = rotations[:, b, b] = cos
    rotations[:, b, a], rotations[:, a, b] = sin, -sin
    output = np.einsum("pij,...pj->...pi", rotations, x)
    return [output, np.einsum("pij,...pi->...pj", rotations, cotangent)]


def _ladder(name: str, oracle: Callable[..., Outputs], rungs: tuple[Rung, ...]) -> Ladder:
    return Ladder(
        name=name,
        inputs=inputs,
        oracle=oracle,
        differentiable=("x",),
        # Three FLOPs for each feature that is turned, forward and again backward.
        flops=by_elements(3, 6, *_SIZES, itemsize=1),
        bytes_moved=by_elements(2, 4, *_SIZES),
        shape=_SHAPE,
        rungs=rungs,
    )


HALF_LADDER = _ladder(
    "rope_half",
    half_oracle,
    (
        Rung(
            "numpy",
            "numpy",
            with_numpy.rotate_half,
            by_elements(9, 18, *_SIZES),
            with_numpy.rotate_half_gradients,
        ),
        Rung("torch", "torch", with_torch.rotate_half, by_elements(9, 18, *_SIZES)),
        Rung("torch-fused", "torch", with_torch.fused_rotate_half, by_elements(5, 10, *_SIZES)),
        Rung("numba", "torch", with_numba.rotate_half, by_elements(2, 4, *_SIZES)),
        Rung(
            "triton",
            "torch",
            with_triton.rotate_half,
            by_elements(2, 4, *_SIZES),
            device=triton_support.device,
            needs=triton_support.NEEDS,
        ),
    ),
)

INTERLEAVED_LADDER = _ladder(
    "rope_interleaved",
    interleaved_oracle,
    (
        Rung(
            "numpy",
            "numpy",
            with_numpy.rotate_interleaved,
            by_elements(9, 18, *_SIZES),
            with_numpy.rotate_interleaved_gradients,
        ),
        Rung("torch", "torch", with_torch.rotate_interleaved, by_elements(9, 18, *_SIZES)),
        Rung(
            "torch-complex",
            "torch",
            with_torch.complex_rotate_interleaved,
            by_elements(2, 4, *_SIZES),
        ),
        Rung("numba", "torch", with_numba.rotate_interleaved, by_elements(2, 4, *_SIZES)),
        Rung(
            "triton",
            "torch",
            with_triton.rotate_interleaved,
            by_elements(2, 4, *_SIZES),
            device=triton_support.device,
            needs=triton_support.NEEDS,
        ),
    ),
)
