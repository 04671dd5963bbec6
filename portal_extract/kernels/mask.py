"""Real-space kernels: soft circular mask with background subtraction, gridding correction, cropping."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray


@dataclass(frozen=True)
class CircleMask:
    """A soft circle within a square box.

    Attributes
    ----------
    weights
        ``(n, n)`` mask, double.
    spans
        ``(n, 2)`` for each row the columns ``[start, stop)`` that are not background; the rest of the row is
        strictly outside of the circle.
    n_background
        Number of background pixels.
    """

    weights: NDArray[np.float64]
    spans: NDArray[np.int64]
    n_background: int


def circle_mask(size: int, boundary_px: float, falloff_px: float = 5.0) -> CircleMask:
    """Build the mask of RELION 5.0.1: radius ``size // 2 - boundary``, cosine edge inside of it.

    Parameters
    ----------
    size
        Side of the box.
    boundary_px
        How far the circle stays from the edge of the box.
    falloff_px
        Width of the soft edge.

    Returns
    -------
    The mask; the background is where the distance from pixel ``size // 2`` exceeds the radius.
    """
    middle = size // 2
    radius = middle - boundary_px
    axis = np.arange(size, dtype=np.float64) - middle
    r = np.sqrt(axis**2 + axis[:, None] ** 2)
    edge = 0.5 - 0.5 * np.cos(np.pi * (radius - r) / falloff_px)
    weights = np.where(r < radius - falloff_px, 1.0, np.where(r < radius, edge, 0.0))
    inside = r <= radius
    start = np.where(inside.any(axis=1), np.argmax(inside, axis=1), size)
    stop = np.where(inside.any(axis=1), size - np.argmax(inside[:, ::-1], axis=1), size)
    return CircleMask(weights, np.stack([start, stop], axis=1).astype(np.int64), int(np.sum(~inside)))


def gridding_weights(size: int, boundary_px: float) -> NDArray[np.float64]:
    """Gridding pre-correction of RELION 5.0.1, taken literally (it jumps at radius 1).

    Returns
    -------
    ``(size, size)``: r / sin(pi r / R) for 1 <= r < R - 1, 1 below, 0 beyond.
    """
    middle = size // 2
    radius = middle - boundary_px
    axis = np.arange(size, dtype=np.float64) - middle
    r = np.sqrt(axis**2 + axis[:, None] ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        correction = r / np.sin(np.pi * r / radius)
    return np.where(r < 1.0, 1.0, np.where(r < radius - 1.0, correction, 0.0))


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
        Of :class:`CircleMask`; empty weights leave mask and background out.
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
