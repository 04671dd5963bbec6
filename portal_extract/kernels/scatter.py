"""Scatter insertion of 2D spectra into a 3D spectrum, with multiplicity (numba).

The central slice of a tilt image is spread over the eight nearest voxels of the 3D transform. Everything is
accumulated in float32, one sample after the other in a fixed order: RELION 5.0.1 does the same, and its
weight volumes cannot be met to better than 1e-5 in any other order.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Accumulator = NDArray[np.float32]


@njit(cache=True, nogil=True, error_model="numpy")
def scatter_slices(
    accumulator: Accumulator,
    spectra: NDArray[np.complex64],
    weights: NDArray[np.float32],
    rows: NDArray[np.float64],
    columns: NDArray[np.float64],
    scales: NDArray[np.float64],
    ranges: NDArray[np.int64],
) -> None:
    """Add the spectra of one particle's tilt images to a 3D half transform.

    Parameters
    ----------
    accumulator
        ``(c, c, c//2+1, 4)`` float32, changed in place: real part, imaginary part, sum of weights,
        multiplicity. Frequency 0 is at index 0 of each axis.
    spectra
        ``(V, b, b//2+1)`` half transforms with the particle at the origin.
    weights
        ``(V, b, b//2+1)`` squared modulation of each sample, or ``(1, 1, 1)`` for a constant.
    rows, columns
        ``(V, 3)`` direction of the x and of the y axis of each slice, in voxels of the 3D transform.
    scales
        ``(V,)`` factor of all that a slice contributes.
    ranges
        ``(V, b)`` number of samples of each row that are inserted.
    """
    n_views, box = spectra.shape[0], spectra.shape[1]
    per_sample = weights.shape[1] > 1
    constant = np.float64(weights[0, 0, 0])
    size = accumulator.shape[0]
    half = size // 2
    for view in range(n_views):
        ux, uy, uz = rows[view, 0], rows[view, 1], rows[view, 2]
        vx, vy, vz = columns[view, 0], columns[view, 1], columns[view, 2]
        scale = scales[view]
        for y in range(box):
            k = np.float64(y if y < box // 2 else y - box)
            for x in range(0 if y < box // 2 else 1, ranges[view, y]):
                value = spectra[view, y, x]
                real, imag = np.float64(value.real), np.float64(value.imag)
                weight = np.float64(weights[view, y, x]) if per_sample else constant
                px, py, pz = x * ux + k * vx, x * uy + k * vy, x * uz + k * vz
                if px < 0.0:
                    px, py, pz, imag = -px, -py, -pz, -imag
                x0, y0, z0 = int(px), int(np.floor(py)), int(np.floor(pz))
                if 0 < x0 < half and -half <= y0 < half - 1 and -half <= z0 < half - 1:
                    _scatter_inside(accumulator, px, py, pz, x0, y0, z0, real, imag, weight, scale)
                elif x0 <= half and -half - 1 <= y0 < half and -half - 1 <= z0 < half:
                    _scatter_at_border(accumulator, px, py, pz, x0, y0, z0, real, imag, weight, scale)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _scatter_inside(accumulator, px, py, pz, x0, y0, z0, real, imag, weight, scale):  # type: ignore[no-untyped-def]
    """Add a sample whose eight neighbours are all stored, none of them twice."""
    size = accumulator.shape[0]
    near = scale * (1.0 - (px - x0))
    far = scale * (1.0 - ((x0 + 1) - px))
    for dz in range(2):
        gz = z0 + dz
        wz = 1.0 - np.abs(pz - gz)
        zi = gz if gz >= 0 else gz + size
        for dy in range(2):
            gy = y0 + dy
            wy = 1.0 - np.abs(py - gy)
            yi = gy if gy >= 0 else gy + size
            m = near * wy * wz
            accumulator[zi, yi, x0, 0] += np.float32(m * real)
            accumulator[zi, yi, x0, 1] += np.float32(m * imag)
            accumulator[zi, yi, x0, 2] += np.float32(m * weight)
            accumulator[zi, yi, x0, 3] = np.float32(accumulator[zi, yi, x0, 3] + m)
            m = far * wy * wz
            accumulator[zi, yi, x0 + 1, 0] += np.float32(m * real)
            accumulator[zi, yi, x0 + 1, 1] += np.float32(m * imag)
            accumulator[zi, yi, x0 + 1, 2] += np.float32(m * weight)
            accumulator[zi, yi, x0 + 1, 3] = np.float32(accumulator[zi, yi, x0 + 1, 3] + m)


@njit(cache=True, nogil=True, error_model="numpy")
def _scatter_at_border(accumulator, px, py, pz, x0, y0, z0, real, imag, weight, scale):  # type: ignore[no-untyped-def]
    """Add a sample with neighbours that are not stored, or are stored twice (the plane x = 0)."""
    size = accumulator.shape[0]
    half = size // 2
    for dz in range(2):
        gz = z0 + dz
        if gz < -half or gz >= half:
            continue
        wz = 1.0 - np.abs(pz - gz)
        zi = gz if gz >= 0 else gz + size
        for dy in range(2):
            gy = y0 + dy
            if gy < -half or gy >= half:
                continue
            wy = 1.0 - np.abs(py - gy)
            yi = gy if gy >= 0 else gy + size
            for dx in range(2):
                gx = x0 + dx
                if gx > half:
                    continue
                m = scale * (1.0 - np.abs(px - gx)) * wy * wz
                cell = accumulator[zi, yi, gx]
                cell[0] += np.float32(m * real)
                cell[1] += np.float32(m * imag)
                cell[2] += np.float32(m * weight)
                # the multiplicity is added in double and rounded once, unlike the other three
                cell[3] = np.float32(cell[3] + m)
                if gx == 0:
                    mate = accumulator[(size - zi) % size, (size - yi) % size, 0]
                    mate[0] += np.float32(m * real)
                    mate[1] -= np.float32(m * imag)
                    mate[2] += np.float32(m * weight)
                    mate[3] = np.float32(mate[3] + m)
