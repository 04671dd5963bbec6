"""Real-space kernels: soft circular mask with background subtraction, and cropping."""

from __future__ import annotations

import numpy as np
from numba import njit


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
def _background_mean(image, spans, n_background):  # type: ignore[no-untyped-def]
    total = 0.0
    size = image.shape[0]
    for y in range(size):
        row = image[y]
        for x in range(spans[y, 0]):
            total += np.float64(row[x])
        for x in range(spans[y, 1], size):
            total += np.float64(row[x])
    return total / n_background if n_background > 0 else 0.0


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz"})
def _masked_row(row, weights, mean, target):  # type: ignore[no-untyped-def]
    for x in range(len(target)):
        target[x] = np.float32(weights[x] * (np.float64(row[x]) - mean))


@njit(cache=True, nogil=True, error_model="numpy", fastmath={"contract", "nsz", "reassoc"})
def _row_sums(row):  # type: ignore[no-untyped-def]
    low, high = row[0], row[0]
    total, squares = 0.0, 0.0
    for x in range(len(row)):
        value = row[x]
        low = min(low, value)
        high = max(high, value)
        total += np.float64(value)
        squares += np.float64(value) * np.float64(value)
    return low, high, total, squares


@njit(cache=True, nogil=True, error_model="numpy")
def mask_and_crop(  # type: ignore[no-untyped-def]
    images, weights, spans, n_background, boundary, out, slots, sums
):
    """Subtract the background, multiply by the mask and crop, for many images.

    Parameters
    ----------
    images
        ``(n, b, b)`` float32.
    weights, spans, n_background
        Of :class:`~portal_extract.extraction.masks.CircleMask`; empty weights leave mask and background out.
    boundary
        Pixels to crop on each side.
    out
        ``(m, c, c)`` float32, ``c = b - 2 boundary``.
    slots
        ``(n,)`` where in ``out`` each image goes.
    sums
        ``(m, 4)`` double: receives smallest, largest, sum, and sum of squares of each image written.
    """
    masked = weights.shape[0] > 0
    size = out.shape[1]
    for v in range(images.shape[0]):
        mean = _background_mean(images[v], spans, n_background) if masked else 0.0
        low, high = np.float32(np.inf), np.float32(-np.inf)
        total, squares = 0.0, 0.0
        for y in range(size):
            source = images[v, y + boundary, boundary : boundary + size]
            target = out[slots[v], y]
            if masked:
                _masked_row(source, weights[y + boundary, boundary : boundary + size], mean, target)
            else:
                target[:] = source
            row_low, row_high, row_total, row_squares = _row_sums(target)
            low, high = min(low, row_low), max(high, row_high)
            total += row_total
            squares += row_squares
        sums[slots[v], 0], sums[slots[v], 1], sums[slots[v], 2], sums[slots[v], 3] = low, high, total, squares


@njit(cache=True, nogil=True, error_model="numpy")
def mask_in_place(images, weights, spans, n_background):  # type: ignore[no-untyped-def]
    """Subtract the background and multiply by the mask, in place, for many ``(n, b, b)`` float32 images."""
    for v in range(images.shape[0]):
        mean = _background_mean(images[v], spans, n_background)
        for y in range(images.shape[1]):
            _masked_row(images[v, y], weights[y], mean, images[v, y])
