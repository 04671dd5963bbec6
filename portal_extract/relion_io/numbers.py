"""Numbers as RELION writes them into STAR files (RELION 5.0.1 behaviour), and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from portal_extract.model import Floats


def format_double(value: float) -> str:
    """Format a floating-point number as RELION does, without the blanks that align it.

    Numbers from 0.001 to 100000 have 6 decimals, negative ones 5; others have an exponent. RELION cuts
    its text at 12 characters, which takes digits off an exponent of three digits; here a digit of the
    mantissa goes instead, so that the number stays what it was.
    """
    size, decimals = abs(value), 6 if value >= 0 else 5
    if not (0 < size < 0.001 or size > 100000):
        return f"{value:.{decimals}f}"[:12]
    text = f"{value:.{decimals}e}"
    return text if len(text) <= 12 else f"{value:.{decimals - 1}e}"


def format_doubles(values: ArrayLike) -> list[str]:
    """:func:`format_double` of each element of a one-dimensional array."""
    return [
        f"{value:.6f}" if 0.001 <= value < 99999.0
        else f"{value:.5f}" if -99999.0 < value <= -0.001
        else format_double(value)
        for value in np.asarray(values, dtype=np.float64).tolist()
    ]  # fmt: skip


def format_measured(values: ArrayLike) -> list[str]:
    """Format a one-dimensional array with 6 decimals, negative numbers too.

    For tables that RELION will read but has not written: its own 5 decimals of negative numbers move an image
    by up to 1e-4 pixels through the tilt angle.
    """
    return [
        f"{value:.6f}" if value == 0 or 0.001 <= abs(value) < 99999.0 else f"{value:.6e}"
        for value in np.asarray(values, dtype=np.float64).tolist()
    ]


def format_vector(values: ArrayLike) -> str:
    """Format numbers as a vector of RELION: ``[a,b,c]``, 12 significant digits."""
    return "[" + ",".join(f"{value:.12g}" for value in np.asarray(values, dtype=np.float64).tolist()) + "]"


def format_flags(flags: ArrayLike) -> str:
    """Format flags as a vector of ones and zeros, such as ``rlnTomoVisibleFrames``."""
    digits = np.asarray(flags, dtype=bool).astype(np.uint8) + ord("0")
    return "[" + ",".join(digits.tobytes().decode("ascii")) + "]"


def parse_numbers(values: Sequence[str]) -> Floats:
    """Read numbers from strings, exactly rounded; NaN for every string that is none.

    Parameters
    ----------
    values
        ``(N,)`` strings.

    Returns
    -------
    ``(N,)`` float64.
    """
    if "_" not in "".join(values):  # Python reads 1_0 as ten
        try:
            return np.array(list(map(float, values)), dtype=np.float64)
        except ValueError:
            pass
    return np.array([_number(value) for value in values], dtype=np.float64)


def parse_vector(value: str) -> Floats | None:
    """Read the numbers of a vector ``[a,b,c]``; None if it is no vector of finite numbers."""
    text = value.strip()
    if not (text.startswith("[") and text.endswith("]")):
        return None
    inner = text[1:-1].strip()
    numbers = parse_numbers([part.strip() for part in inner.split(",")]) if inner else np.zeros(0)
    return numbers if np.isfinite(numbers).all() else None


def _number(value: str) -> float:
    try:
        return float("nan") if "_" in value else float(value)
    except ValueError:
        return float("nan")
