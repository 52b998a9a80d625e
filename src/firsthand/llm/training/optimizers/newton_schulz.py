"""The nearest orthogonal matrix by products of matrices alone.

With X = U S Vᵀ an odd polynomial p(x) = a x + b x³ + c x⁵ acts on the singular values:
(a + b A + c A²) X = U p(S) Vᵀ, where A = X Xᵀ. Applied again and again it drives all of them to
about 1 and leaves U Vᵀ, with no decomposition and nothing but matrix products.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Coefficients = Sequence[tuple[float, float, float]]

# Jordan 2024: a slope at 0 as steep as can be, for values that end anywhere in about 0.7 to 1.2.
JORDAN = (3.4445, -4.7750, 2.0315)
# Rounding in bfloat16 takes values this much beyond the end of their interval.
_WIDER = 1.01
# So that a matrix of zeros stays one.
_TINY = 1e-7
# A wide matrix takes less work in its Gram matrix from this ratio of columns to rows on.
_WIDE = 2


def orthogonalize(stack: Tensor, coefficients: Coefficients) -> Tensor:
    """U p(...p(S)) Vᵀ of each matrix divided by its Frobenius norm: the iteration as written down.

    The norm bounds the largest singular value, so all begin between 0 and 1. Source: Jordan 2024,
    "Muon: an optimizer for hidden layers in neural networks".

    Args:
        stack: (stack, rows, cols); rows at most cols saves work. Not changed.
        coefficients: (a, b, c) for each iteration.
    Returns:
        A tensor of the same shape and dtype.
    """
    x: Tensor = stack / _norms(stack)
    for a, b, c in coefficients:
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x


def gram_orthogonalize(stack: Tensor, coefficients: Coefficients) -> Tensor:
    """`orthogonalize` with fewer products for wide matrices; the same values up to rounding.

    All iterations multiply X from the left by polynomials Q of one matrix, its Gram matrix A, and
    these commute: Xₖ = Pₖ X with Pₖ₊₁ = Qₖ Pₖ and Aₖ₊₁ = Qₖ Aₖ Qₖ. So everything but A₀ = X Xᵀ and
    the last P X happens among (rows, rows) matrices: with r = cols / rows and k iterations
    2 r + 4 k - 3 products of rows³ instead of k (2 r + 1). In half precision the small values of
    A, squares of small singular values, are lost; those types iterate on X itself.
    """
    rows, cols = stack.shape[1:]
    norm = _norms(stack)
    half = stack.dtype in (torch.bfloat16, torch.float16)
    if half or cols < _WIDE * rows or len(coefficients) < 2:
        return _iterate(stack / norm, coefficients)
    gram = torch.bmm(stack, stack.mT).div_(norm.square())
    product: Tensor | None = None
    for number, (a, b, c) in enumerate(coefficients):
        # b A + c A²; the term a I is left out and added by `beta=a` below.
        rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if number < len(coefficients) - 1:
            gram = torch.baddbmm(gram, rest, gram, beta=a)
            gram = torch.baddbmm(gram, gram, rest, beta=a)
        if product is None:
            product = rest
            product.diagonal(dim1=1, dim2=2).add_(a)
        else:
            product = torch.baddbmm(product, rest, product, beta=a)
    assert product is not None
    return torch.bmm(product, stack).div_(norm)


def _norms(stack: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(stack, dim=(1, 2), keepdim=True)
    return norms.clamp_(min=_TINY)


def _iterate(x: Tensor, coefficients: Coefficients) -> Tensor:
    for a, b, c in coefficients:
        gram = torch.bmm(x, x.mT)
        rest = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, rest, x, beta=a)
    return x


@lru_cache(maxsize=32)
def polar_coefficients(iterations: int, floor: float) -> tuple[tuple[float, float, float], ...]:
    """The best polynomials for singular values between `floor` and 1, one after the other.

    Each is the odd polynomial of degree 5 nearest to 1 on the interval [l, u] that its forerunner
    leaves, and the next interval is what it makes of that one, [p(l), 2 - p(l)]. Choosing each for
    itself is also best for them all together. Just beyond u a polynomial may be anywhere, so u is
    widened by a hundredth against rounding. Source: Amsel et al. 2025 (The Polar Express), theorem
    3.1, algorithm 1 and section 3.4.

    Args:
        iterations: at least 1.
        floor: the smallest singular value that should end near 1; above 0, at most 1.
    """
    low, high = floor, 1.0
    found = []
    for _ in range(iterations):
        a, b, c, error = _nearest_to_one(low, _WIDER * high)
        found.append((a, b, c))
        low, high = 1.0 - error, 1.0 + error
    return tuple(found)


def _nearest_to_one(low: float, high: float) -> tuple[float, float, float, float]:
    """a, b, c and the largest error on [low, high], by Remez' exchange: the error alternates at
    four points, both ends and the two extrema between them."""
    points: NDArray[np.float64] = low + (high - low) * np.array([0.0, 0.25, 0.75, 1.0])
    signs = np.array([1.0, -1.0, 1.0, -1.0])
    a = b = c = error = 0.0
    for _ in range(50):
        system = np.stack([points, points**3, points**5, signs], axis=1)
        a, b, c, error = np.linalg.solve(system, np.ones(4)).tolist()
        # p'(x) = a + 3 b x² + 5 c x⁴ = 0
        discriminant = 9.0 * b * b - 20.0 * a * c
        squares = (-3.0 * b + np.array([-1.0, 1.0]) * np.sqrt(max(0.0, discriminant))) / (10.0 * c)
        inner = np.sort(np.sqrt(np.clip(squares, low * low, high * high)))
        moved = float(np.abs(inner - points[1:3]).max())
        points[1:3] = inner
        if moved < 1e-13 * high:
            break
    return a, b, c, abs(error)
