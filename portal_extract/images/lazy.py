"""Tilt images as a lazy dask array, for notebooks and viewers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.layout import ArrayLayout, read_layouts
from portal_extract.images.options import ReadOptions
from portal_extract.model import ImageStack

if TYPE_CHECKING:
    import dask.array

_MRC_BYTES = 64 << 20


def open_lazily(stack: ImageStack) -> dask.array.Array:
    """Open the tilt images of a tilt series without reading pixels.

    The array can be pickled; each task opens the store for itself.

    Parameters
    ----------
    stack
        The tilt series.

    Returns
    -------
    dask.array.Array
        ``(F, height, width)`` float32, in chunks like the stored ones.

    Raises
    ------
    ImageFormatError, AccessDeniedError, NotFoundError
        The files are not what the tilt series says.
    """
    import dask.array

    from portal_extract.planning.regions import check_stack

    layouts = read_layouts(stack.uris, stack.storage)
    check_stack(stack, layouts)
    width, height = stack.size_px
    layout = layouts[stack.uris[0]]
    rows, columns = (height, width) if layout.is_mrc else layout.chunk_shape[1:]
    chunks = (
        _depths(stack, layout),
        _pieces(height, rows),
        _pieces(width, columns),
    )
    images: dask.array.Array = dask.array.map_blocks(  # type: ignore[no-untyped-call]
        _read_block, stack, chunks=chunks, dtype=np.float32, meta=_META
    )
    return images


_META = np.empty((0, 0, 0), np.float32)


def _depths(stack: ImageStack, layout: ArrayLayout) -> tuple[int, ...]:
    """Tilt images per chunk: those that are together in one stored chunk, as far as they are in order."""
    depth = layout.chunk_shape[0]
    if layout.is_mrc:
        depth = max(1, _MRC_BYTES // (4 * stack.size_px[0] * stack.size_px[1]))
    where = list(zip(stack.uris, (stack.sections // depth).tolist(), strict=True))
    starts = [i for i in range(len(where)) if i == 0 or where[i] != where[i - 1]]
    return tuple(np.diff([*starts, len(where)]).tolist())


def _pieces(size: int, piece: int) -> tuple[int, ...]:
    return tuple(min(piece, size - start) for start in range(0, size, piece))


def _read_block(stack: ImageStack, block_info: dict[None, dict[str, Any]]) -> NDArray[np.float32]:
    """Read one chunk of the array, in whatever process this runs."""
    from portal_extract.images.stream import read_tilt_region

    tilts, rows, columns = block_info[None]["array-location"]
    return read_tilt_region(stack, tilts, rows, columns, ReadOptions(requests_in_flight=8, decode_threads=1))
