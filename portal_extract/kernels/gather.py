"""Gather insertion of 2D spectra into a 3D spectrum, by slabs (numba).

Every voxel of the 3D half transform looks up its place in each slice: linear (a tent of one voxel) across the
slice, bilinear inside it. A call fills the planes ``z_start <= z < z_stop`` of one accumulator from a whole
batch of slices, in the order of the slices, and touches nothing else. Several threads can therefore share one
accumulator, each with planes of its own, and the sums are the same bits for any number of threads.

No kernel here may use fast-math: whether a coordinate is 0 or -1e-17 decides which sample is taken where
slices lie along an axis (RELION 5.0.1 behaviour), so that products must not be contracted.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

# widens the analytic bounds so that rounding can never exclude what the exact test would accept
_MARGIN = 1e-9
# slope below which a row of any box runs along the slice
_FLAT = 1e-14


@njit(cache=True, nogil=True, error_model="numpy")
def insert_slices(
    data: NDArray[np.complex128],
    weight: NDArray[np.float64],
    spectra: NDArray[np.complex64],
    slice_weights: NDArray[np.float32],
    matrices: NDArray[np.float64],
    max_freq: NDArray[np.int64],
    z_start: int,
    z_stop: int,
) -> None:
    """Add slices to the planes of a 3D half transform.

    Parameters
    ----------
    data
        ``(b, b, b//2+1)`` complex accumulator, changed in place; frequency 0 at index 0.
    weight
        ``(b, b, b//2+1)`` real accumulator, changed in place.
    spectra
        ``(V, b, b//2+1)`` half transforms with the particle at the origin.
    slice_weights
        ``(V, b, b//2+1)`` weight of each sample, or ``(1, 1, 1)`` for a constant.
    matrices
        ``(V, 3, 3)`` voxel frequencies to slice frequencies: rows give x, y and the distance to the slice.
    max_freq
        ``(V,)`` radius, in voxels and inclusive, beyond which a slice is not inserted; 0 or more.
    z_start, z_stop
        Indices of the planes to fill.
    """
    box = data.shape[0]
    constant = slice_weights.shape[1] == 1
    constant_weight = np.float64(slice_weights[0, 0, 0])
    half = box // 2
    for view in range(spectra.shape[0]):
        g = matrices[view]
        radius2 = max_freq[view] * max_freq[view]
        image = spectra[view]
        image_weight = slice_weights[0] if constant else slice_weights[view]
        for z in range(z_start, z_stop):
            kz = z if z < half else z - box
            remaining = radius2 - kz * kz
            if remaining < 0:
                continue
            across = int(np.sqrt(np.float64(remaining)))
            # the distance from the slice at x lies between those at x = 0 and at the far end of the row
            far = g[2, 0] * min(across, half)
            low, high = _solve(g[2, 1], g[2, 2] * kz + min(far, 0.0), g[2, 2] * kz + max(far, 0.0))
            first_y = int(np.ceil(min(max(low, -min(across, half)), half)))
            last_y = int(np.floor(max(min(high, min(across, half - 1)), -half - 1.0)))
            for ky in range(first_y, last_y + 1):
                y = ky if ky >= 0 else ky + box
                last = min(int(np.sqrt(np.float64(remaining - ky * ky))), half)
                start = g[2, 1] * ky + g[2, 2] * kz
                low, high = _solve(g[2, 0], start, start)
                first = int(np.ceil(min(max(low, 0.0), half + 1.0)))
                last = int(np.floor(max(min(high, np.float64(last)), -1.0)))
                for x in range(first, last + 1):
                    pz = (g[2, 0] * x + g[2, 1] * ky) + g[2, 2] * kz
                    if not -1.0 < pz < 1.0:
                        continue
                    px = (g[0, 0] * x + g[0, 1] * ky) + g[0, 2] * kz
                    py = (g[1, 0] * x + g[1, 1] * ky) + g[1, 2] * kz
                    if np.abs(px) >= half + 1 or np.abs(py) >= half + 1:
                        continue
                    tent = 1.0 - np.abs(pz)
                    real, imag, wgt = _bilinear(image, image_weight, constant, constant_weight, px, py)
                    data[z, y, x] += complex(tent * real, tent * imag)
                    weight[z, y, x] += tent * wgt


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _solve(slope, smallest, largest):  # type: ignore[no-untyped-def]
    """Bounds, a little wide, of all t with ``-1 < slope * t + s < 1`` for an s from smallest to largest."""
    if np.abs(slope) < _FLAT:
        return (
            (-np.inf, np.inf) if smallest < 1.0 + _MARGIN and largest > -1.0 - _MARGIN else (np.inf, -np.inf)
        )
    inverse = 1.0 / slope
    if slope > 0.0:
        return (-1.0 - _MARGIN - largest) * inverse, (1.0 + _MARGIN - smallest) * inverse
    return (1.0 + _MARGIN - smallest) * inverse, (-1.0 - _MARGIN - largest) * inverse


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _bilinear(image, image_weight, constant, constant_weight, px, py):  # type: ignore[no-untyped-def]
    """Bilinear sample of a half transform and of its weights, with RELION 5.0.1's rounding and borders.

    The column beyond the last one is the last but one of the same row, not conjugated. A tiny negative y
    becomes exactly ``b`` and is clamped to the last row: both as in RELION.
    """
    box, half_width = image.shape[0], image.shape[1]
    mirrored = not px >= 0.0
    if mirrored:
        px, py = -px, -py
    if py < 0.0:
        py += box
    x0, y0 = int(px), int(py)
    fx, fy = px - x0, py - y0
    x0 = min(x0, half_width - 1)
    x1 = x0 + 1 if x0 + 1 < half_width else half_width - 2
    y0 = min(y0, box - 1)
    y1 = y0 + 1 if y0 + 1 < box else 0
    ex, ey = 1.0 - fx, 1.0 - fy
    a, b, c, d = image[y0, x0], image[y0, x1], image[y1, x0], image[y1, x1]
    top = np.float32(ex * a.real) + np.float32(fx * b.real)
    bottom = np.float32(ex * c.real) + np.float32(fx * d.real)
    real = np.float32(ey * top) + np.float32(fy * bottom)
    top = np.float32(ex * a.imag) + np.float32(fx * b.imag)
    bottom = np.float32(ex * c.imag) + np.float32(fx * d.imag)
    imag = np.float32(ey * top) + np.float32(fy * bottom)
    if mirrored:
        imag = -imag
    if constant:
        return np.float64(real), np.float64(imag), constant_weight
    top = np.float32(ex * image_weight[y0, x0] + fx * image_weight[y0, x1])
    bottom = np.float32(ex * image_weight[y1, x0] + fx * image_weight[y1, x1])
    wgt = np.float32(ey * top) + np.float32(fy * bottom)
    return np.float64(real), np.float64(imag), np.float64(wgt)


@njit(cache=True, nogil=True, error_model="numpy")
def trim_slices(
    spectra: NDArray[np.complex64], weights: NDArray[np.float32], ranges: NDArray[np.int64], recentre: bool
) -> None:
    """Prepare modulated half transforms for :func:`insert_slices`, in place.

    Parameters
    ----------
    spectra
        ``(V, b, b//2+1)``; set to 0 where the dose cuts off.
    weights
        ``(V, b, b//2+1)`` squared modulation, set to 0 likewise; or ``(1, 1, 1)``, a constant, which stays.
    ranges
        ``(V, b)`` number of samples of each row that the dose leaves. Without CTF RELION 5.0.1 keeps all
        samples: give ``b//2+1`` then.
    recentre
        Whether to move the particle from pixel ``b / 2``, where it is given, to pixel 0, where it is needed.
    """
    box, half_width = spectra.shape[1], spectra.shape[2]
    per_sample = weights.shape[1] > 1
    for view in range(spectra.shape[0]):
        for y in range(box):
            kept = min(ranges[view, y], half_width)
            if recentre:
                for x in range(1 - y % 2, kept, 2):
                    spectra[view, y, x] = -spectra[view, y, x]
            for x in range(kept, half_width):
                spectra[view, y, x] = 0.0
                if per_sample:
                    weights[view, y, x] = 0.0
