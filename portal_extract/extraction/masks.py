"""Weights in real space: soft circular mask and gridding correction."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
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
