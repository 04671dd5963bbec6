"""float32 to float16 as RELION 5.0.1 encodes it, bit by bit."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

#: largest finite half, and smallest normal one
HALF_MAX = np.float32(65504.0)
HALF_MIN_NORMAL = np.float32(2.0**-14)

#: elements worked on at a time, so that the steps stay in the processor's cache
_BLOCK = 1 << 15


def to_half(values: NDArray[np.float32]) -> NDArray[np.float16]:
    """Convert to half precision with RELION's rounding.

    Halves are rounded away from zero (IEEE: to even), results below the smallest normal number become
    zero with their sign (IEEE: subnormal), and finite numbers stop at 65504 (IEEE: infinity). Infinities and
    NaNs stay what they are.

    Parameters
    ----------
    values
        float32 of any shape.

    Returns
    -------
    float16 of the same shape, C-contiguous.
    """
    flat = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
    out = np.empty(flat.shape, dtype=np.float16)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        for start in range(0, len(flat), _BLOCK):
            _convert(flat[start : start + _BLOCK], out[start : start + _BLOCK])
    return out.reshape(np.shape(values))


def _convert(values: NDArray[np.float32], out: NDArray[np.float16]) -> None:
    # round to the 10 bits of a half, halves away from zero: what is left converts without rounding
    bits = values.view(np.uint32) + np.uint32(0x1000)
    bits &= np.uint32(0xFFFFE000)
    rounded = bits.view(np.float32)
    np.clip(rounded, -HALF_MAX, HALF_MAX, out=rounded)
    rounded *= np.abs(rounded) >= HALF_MIN_NORMAL  # zero keeps the sign
    out[...] = rounded
    finite = np.isfinite(values)
    if not finite.all():
        out[~finite] = values[~finite]
