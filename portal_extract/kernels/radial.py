"""Shells of 3D half transforms: averages, and division by weights that are kept from vanishing (numba)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray


@njit(cache=True, nogil=True, error_model="numpy")
def shell_sums(weight: NDArray[Any], total: NDArray[np.float64], count: NDArray[np.float64]) -> None:
    """Add up a half transform over shells, each voxel split between the two nearest ones.

    Parameters
    ----------
    weight
        ``(n, n, n//2+1)`` real, frequency 0 at index 0; every stored voxel counts once.
    total, count
        ``(n//2+1,)`` sums of values and of shares, added to.
    """
    size, shells = weight.shape[0], weight.shape[2]
    for z in range(size):
        kz = np.float64(z if z < size // 2 else z - size)
        for y in range(size):
            ky = np.float64(y if y < size // 2 else y - size)
            for x in range(shells):
                radius = np.sqrt(np.float64(x) * x + ky * ky + kz * kz)
                lower = int(radius)
                share = radius - lower
                if lower < shells:
                    total[lower] += (1.0 - share) * weight[z, y, x]
                    count[lower] += 1.0 - share
                if lower + 1 < shells:
                    total[lower + 1] += share * weight[z, y, x]
                    count[lower + 1] += share


@njit(cache=True, nogil=True, error_model="numpy")
def divide_above(
    transform: NDArray[Any], weight: NDArray[Any], average: NDArray[np.float64], fraction: float
) -> None:
    """Divide a half transform by its weights, or by a fraction of the mean of their shell where that is more.

    Parameters
    ----------
    transform
        ``(n, n, n//2+1)`` complex, changed in place; everything from the last shell on becomes 0.
    weight
        ``(n, n, n//2+1)`` real.
    average
        ``(n//2+1,)`` mean weight of each shell.
    fraction
        Of that mean.
    """
    size, shells = weight.shape[0], weight.shape[2]
    for z in range(size):
        kz = np.float64(z if z < size // 2 else z - size)
        for y in range(size):
            ky = np.float64(y if y < size // 2 else y - size)
            for x in range(shells):
                radius = np.sqrt(np.float64(x) * x + ky * ky + kz * kz)
                lower = int(radius)
                if lower + 1 >= shells:
                    transform[z, y, x] = 0
                    continue
                share = radius - lower
                smallest = fraction * (share * average[lower + 1] + (1.0 - share) * average[lower])
                divisor = max(np.float64(weight[z, y, x]), smallest)
                if divisor > 0.0:
                    transform[z, y, x] *= 1.0 / divisor


@njit(cache=True, nogil=True, error_model="numpy")
def soft_sphere_in_place(volume: NDArray[Any], taper_px: float, centre: bool) -> None:
    """Multiply a map by a soft sphere, after subtracting its mean under that sphere.

    Parameters
    ----------
    volume
        ``(s, s, s)`` map, changed in place.
    taper_px
        Width of the cosine edge inside of the radius ``s / 2``.
    centre
        Whether to subtract the mean.
    """
    size = volume.shape[0]
    mean = 0.0
    if centre:
        total, norm = 0.0, 0.0
        for z in range(size):
            for y in range(size):
                for x in range(size):
                    mask = _sphere(x, y, z, size / 2.0, taper_px)
                    total += mask * volume[z, y, x]
                    norm += mask
        mean = total / norm
    for z in range(size):
        for y in range(size):
            for x in range(size):
                volume[z, y, x] = _sphere(x, y, z, size / 2.0, taper_px) * (volume[z, y, x] - mean)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _sphere(x, y, z, radius, taper_px):  # type: ignore[no-untyped-def]
    """Soft sphere of radius s / 2 around the voxel coordinates s / 2."""
    r = np.sqrt((x - radius) ** 2 + (y - radius) ** 2 + (z - radius) ** 2)
    if r < radius - taper_px:
        return 1.0
    return 0.5 - 0.5 * np.cos(np.pi * (radius - r) / taper_px) if r < radius else 0.0
