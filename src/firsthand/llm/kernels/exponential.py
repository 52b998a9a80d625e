"""e^x in float32 as a few multiplications, so that LLVM can make SIMD of the loop around it.

With n the integer next to x / ln 2 and r = x - n ln 2, e^x = 2^n e^r and |r| <= ln 2 / 2. There a
polynomial of degree 6 is exact to float32's rounding; 2^n is an exponent field, written as bits.
n ln 2 is taken off in two pieces: the first has so few bits that its product with n is exact, the
second is what is left of ln 2 (Cody & Waite 1980, chapter 6).
"""

from __future__ import annotations

import math

import numpy as np

from firsthand.llm.kernels.compiling import inlined

_DEGREE = 6


def _coefficients() -> list[np.float32]:
    """Of the polynomial that meets e^r at the Chebyshev points, r from -ln 2 / 2 to ln 2 / 2.

    Interpolation there errs by at most about twice what the best polynomial does: 1e-9.
    """
    half = math.log(2.0) / 2
    fitted = np.polynomial.Chebyshev.interpolate(np.exp, _DEGREE, domain=[-half, half])
    powers = fitted.convert(kind=np.polynomial.Polynomial, domain=[-1, 1]).coef
    return [np.float32(power) for power in powers]


_P0, _P1, _P2, _P3, _P4, _P5, _P6 = _coefficients()
_PER_LN2 = np.float32(1.0 / math.log(2.0))
_LN2_SHORT = np.float32(round(math.log(2.0) * 512) / 512)
_LN2_REST = np.float32(math.log(2.0) - round(math.log(2.0) * 512) / 512)
# Beyond these the exponent field would leave the normal numbers.
_LEAST, _MOST = np.float32(-87.0), np.float32(88.0)
_HALF, _BIAS, _MANTISSA_BITS = np.float32(0.5), np.int32(127), np.int32(23)


@inlined
def exp32(x: np.float32) -> np.float32:
    """e^x to about two units in the last place; x below -87 counts as -87, above 88 as 88.

    NaN stays NaN: the comparisons below are false for it.
    """
    bounded = _LEAST if x < _LEAST else x
    bounded = _MOST if bounded > _MOST else bounded
    whole = np.floor(bounded * _PER_LN2 + _HALF)
    r = (bounded - whole * _LN2_SHORT) - whole * _LN2_REST
    p = _P6 * r + _P5
    p = p * r + _P4
    p = p * r + _P3
    p = p * r + _P2
    p = p * r + _P1
    p = p * r + _P0
    power = np.int32((np.int32(whole) + _BIAS) << _MANTISSA_BITS).view(np.float32)
    return np.float32(p * power)
