"""Gather insertion of 2D spectra into a 3D spectrum, by slabs (numba).

Every voxel of the 3D half transform looks up its place in each slice: linear (a tent of one voxel) across the
slice, bilinear inside it. A call fills the planes ``z_start <= z < z_stop`` of one accumulator from a whole
batch of slices, in the order of the slices, and touches nothing else. Several threads can therefore share one
accumulator, each with planes of its own, and the sums are the same bits for any number of threads.

The voxels that a slice reaches are collected first, a thousand at a time, and then go through simple loops
over arrays, which the compiler turns into vector instructions.

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
# voxels that are collected before they are worked on; their arrays stay in the cache
_CAPACITY = 1024


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
    box, width = spectra.shape[1], spectra.shape[2]
    half = box // 2
    constant = slice_weights.shape[1] == 1
    capacity = max(_CAPACITY, 2 * width)
    voxel = np.empty(capacity, np.int64)
    place = np.empty((3, capacity), np.float64)
    corner = np.empty((4, capacity), np.int32)
    sample = np.empty((8, capacity), np.float32)
    totals, weights = data.reshape(-1).view(np.float64), weight.reshape(-1)
    roots = _roots(max_freq.max() ** 2)
    for view in range(spectra.shape[0]):
        g = matrices[view]
        image = spectra[view].reshape(-1).view(np.float32)
        image_weight = slice_weights[0 if constant else view].reshape(-1)
        radius2 = max_freq[view] * max_freq[view]
        count = 0
        for z in range(z_start, z_stop):
            kz = z if z < half else z - box
            remaining = radius2 - kz * kz
            if remaining < 0:
                continue
            across = roots[remaining]
            # the distance from the slice at x lies between those at x = 0 and at the far end of the row
            far = g[2, 0] * min(across, half)
            low, high = _solve(g[2, 1], g[2, 2] * kz + min(far, 0.0), g[2, 2] * kz + max(far, 0.0))
            first_y = int(np.ceil(min(max(low, -min(across, half)), half)))
            last_y = int(np.floor(max(min(high, min(across, half - 1)), -half - 1.0)))
            for ky in range(first_y, last_y + 1):
                if count + width > capacity:
                    _locate(place, corner, sample[7], count, box, width)
                    _interpolate(image, image_weight, constant, place, corner, sample, count)
                    _add(totals, weights, voxel, place[2], sample, count)
                    count = 0
                y = ky if ky >= 0 else ky + box
                last = min(roots[remaining - ky * ky], half)
                count = _collect(g, ky, kz, last, (z * box + y) * width, half, voxel, place, count)
        _locate(place, corner, sample[7], count, box, width)
        _interpolate(image, image_weight, constant, place, corner, sample, count)
        _add(totals, weights, voxel, place[2], sample, count)


@njit(cache=True, nogil=True, error_model="numpy")
def _roots(largest):  # type: ignore[no-untyped-def]
    """Square roots of whole numbers, rounded down."""
    found = np.empty(largest + 1, np.int64)
    root = 0
    for square in range(largest + 1):
        if (root + 1) * (root + 1) <= square:
            root += 1
        found[square] = root
    return found


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
def _collect(g, ky, kz, last, row, half, voxel, place, count):  # type: ignore[no-untyped-def]
    """Collect the voxels of a row that the slice reaches: x and y in the slice, and the tent across it."""
    start = g[2, 1] * ky + g[2, 2] * kz
    low, high = _solve(g[2, 0], start, start)
    first = int(np.ceil(min(max(low, 0.0), half + 1.0)))
    last = int(np.floor(max(min(high, np.float64(last)), -1.0)))
    for x in range(first, last + 1):
        pz = (g[2, 0] * x + g[2, 1] * ky) + g[2, 2] * kz
        px = (g[0, 0] * x + g[0, 1] * ky) + g[0, 2] * kz
        py = (g[1, 0] * x + g[1, 1] * ky) + g[1, 2] * kz
        n = np.uint64(count)
        voxel[n] = row + x
        place[0, n], place[1, n], place[2, n] = px, py, 1.0 - np.abs(pz)
        # written in any case and counted if it holds: a branch would be guessed wrong too often
        count += -1.0 < pz < 1.0 and np.abs(px) < half + 1 and np.abs(py) < half + 1
    return count


@njit(cache=True, nogil=True, error_model="numpy")
def _locate(place, corner, sign, count, box, width):  # type: ignore[no-untyped-def]
    """Turn places into four samples of the half transform each, and the fractions between them.

    The column beyond the last one is the last but one of the same row, not conjugated. A tiny negative y
    becomes exactly ``b`` and is clamped to the last row: both as in RELION 5.0.1. ``sign`` receives -1 where
    the sample is that of the mirrored place, to be conjugated.
    """
    across, down = place[0], place[1]
    c00, c01, c10, c11 = corner[0], corner[1], corner[2], corner[3]
    last_x, last_y, step = np.int32(width - 1), np.int32(box - 1), np.int32(width)
    for n in range(count):
        px, py = across[n], down[n]
        mirrored = px < 0.0
        px = -px if mirrored else px
        py = -py if mirrored else py
        sign[n] = np.float32(-1.0) if mirrored else np.float32(1.0)
        py = py + box if py < 0.0 else py
        x0, y0 = np.int32(px), np.int32(py)
        across[n], down[n] = px - x0, py - y0
        x0, y0 = min(x0, last_x), min(y0, last_y)
        x1 = x0 + np.int32(1) if x0 < last_x else last_x - np.int32(1)
        y1 = y0 + np.int32(1) if y0 < last_y else np.int32(0)
        c00[n], c01[n], c10[n], c11[n] = y0 * step + x0, y0 * step + x1, y1 * step + x0, y1 * step + x1


@njit(cache=True, nogil=True, error_model="numpy")
def _interpolate(image, image_weight, constant, place, corner, sample, count):  # type: ignore[no-untyped-def]
    """Interpolate real part, imaginary part and weight, to rows 4 to 6 of the samples."""
    for part in range(2):
        _pick(image, np.uint64(2), np.uint64(part), corner, sample, count)
        _mix(sample[0], sample[1], sample[2], sample[3], place[0], place[1], sample[4 + part], count)
    if constant:
        sample[6, :count] = image_weight[0]
    else:
        _pick(image_weight, np.uint64(1), np.uint64(0), corner, sample, count)
        _mix_weights(sample[0], sample[1], sample[2], sample[3], place[0], place[1], sample[6], count)


@njit(cache=True, nogil=True, error_model="numpy", inline="always")
def _pick(image, stride, offset, corner, sample, count):  # type: ignore[no-untyped-def]
    """Copy the four samples of each place."""
    for k in range(4):
        source, target = corner[k], sample[k]
        for n in range(count):
            target[n] = image[np.uint64(source[n]) * stride + offset]


@njit(cache=True, nogil=True, error_model="numpy")
def _mix(a, b, c, d, fx, fy, out, count):  # type: ignore[no-untyped-def]
    """Bilinear interpolation, every product rounded to single precision (RELION 5.0.1 behaviour)."""
    for n in range(count):
        ex, ey = 1.0 - fx[n], 1.0 - fy[n]
        top = np.float32(ex * a[n]) + np.float32(fx[n] * b[n])
        bottom = np.float32(ex * c[n]) + np.float32(fx[n] * d[n])
        out[n] = np.float32(ey * top) + np.float32(fy[n] * bottom)


@njit(cache=True, nogil=True, error_model="numpy")
def _mix_weights(a, b, c, d, fx, fy, out, count):  # type: ignore[no-untyped-def]
    """Bilinear interpolation, along x in double precision and then rounded (RELION 5.0.1 behaviour)."""
    for n in range(count):
        ex, ey = 1.0 - fx[n], 1.0 - fy[n]
        top = np.float32(ex * a[n] + fx[n] * b[n])
        bottom = np.float32(ex * c[n] + fx[n] * d[n])
        out[n] = np.float32(ey * top) + np.float32(fy[n] * bottom)


@njit(cache=True, nogil=True, error_model="numpy")
def _add(totals, weights, voxel, tent, sample, count):  # type: ignore[no-untyped-def]
    """Add what was interpolated to the voxels; ``totals`` has real and imaginary parts in turn."""
    real, imag, wgt, sign = sample[4], sample[5], sample[6], sample[7]
    for n in range(count):
        at, t = np.uint64(voxel[n]), tent[n]
        totals[at * np.uint64(2)] += t * real[n]
        totals[at * np.uint64(2) + np.uint64(1)] += t * (sign[n] * imag[n])
        weights[at] += t * wgt[n]


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
