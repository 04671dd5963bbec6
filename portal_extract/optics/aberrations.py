"""Symmetric and antisymmetric aberrations as Zernike polynomials of the plain frequency in 1/Angstrom."""

from __future__ import annotations

from math import factorial, isqrt, sqrt

import numpy as np

from portal_extract.model import Floats
from portal_extract.optics.ctf import frequency_indices


def zernike_image(coefficients: Floats, parity: str, size: int, pixel_size_angst: float) -> Floats:
    """Sum of Zernike polynomials over the half-complex transform (RELION 5.0.1 behaviour).

    Parameters
    ----------
    coefficients
        ``(K,)`` of ``rlnEvenZernike`` or ``rlnOddZernike``.
    parity
        ``even`` or ``odd``: how the index of a coefficient becomes (n, m).
    size
        Side of the (binned) box.
    pixel_size_angst
        Binned pixel size.

    Returns
    -------
    ``(size, size // 2 + 1)`` radians.
    """
    x, k = frequency_indices(size)
    step = 1.0 / (size * pixel_size_angst)
    rho = np.hypot(x * step, k[:, None] * step)
    phi = np.arctan2(k[:, None] * np.ones_like(x), x * np.ones_like(k[:, None]))
    total = np.zeros_like(rho)
    for index, coefficient in enumerate(coefficients):
        n, m = _even_order(index) if parity == "even" else _odd_order(index)
        angular = np.cos(m * phi) if m >= 0 else np.sin(-m * phi)
        total += coefficient * _radial(n, abs(m), rho) * angular
    return total


def _even_order(index: int) -> tuple[int, int]:
    k = isqrt(index)
    return 2 * k, 2 * (index - k * k - k)


def _odd_order(index: int) -> tuple[int, int]:
    k = int((sqrt(1 + 4 * index) - 1) / 2)
    return 2 * k + 1, 2 * (index - k * k - k) - (2 * k + 1)


def _radial(n: int, m: int, rho: Floats) -> Floats:
    """Radial polynomial of order n, m >= 0."""
    total = np.zeros_like(rho)
    for k in range((n - m) // 2 + 1):
        denominator = factorial(k) * factorial((n + m) // 2 - k) * factorial((n - m) // 2 - k)
        total += (-1) ** k * factorial(n - k) / denominator * rho ** (n - 2 * k)
    return total
