"""What extraction asks of the images, and what it gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Boxes:
    """Square boxes to be cut from the tilt images of one tilt series.

    Attributes
    ----------
    tilt
        ``(V,)`` index of the tilt image of each box.
    origin_px
        ``(V, 2)`` x and y of the first pixel of each box, in unbinned pixels; a box may stick out of the
        image, or lie outside: the image is then continued by its border pixels.
    side_px
        Side of every box, in unbinned pixels.
    """

    tilt: NDArray[np.int64]
    origin_px: NDArray[np.int64]
    side_px: int

    def __len__(self) -> int:
        return len(self.tilt)


@dataclass(frozen=True)
class PatchBatch:
    """Some boxes whose pixels are there.

    Attributes
    ----------
    views
        ``(n,)`` indices into :class:`Boxes`.
    cut
        Called once, in any thread: copies the pixels into a C-contiguous float32 array
        ``(n, side, side)`` (the one given, or a new one) and gives the stored pixels free.
    """

    views: NDArray[np.int64]
    cut: Callable[[NDArray[np.float32] | None], NDArray[np.float32]]


def array_to_cut_into(
    n: int, size_px: tuple[int, int], out: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Check the array that boxes are to be cut into, or make one.

    Parameters
    ----------
    n
        Number of boxes.
    size_px
        Height and width of a box.
    out
        The array, or None for a new one.

    Raises
    ------
    ValueError
        The array is of another shape or type.
    """
    shape = (n, *size_px)
    if out is None:
        return np.empty(shape, np.float32)
    if out.shape != shape or out.dtype != np.float32 or not out.flags.c_contiguous:
        raise ValueError(f"the array to cut into must be C-contiguous float32 of shape {shape}")
    return out
