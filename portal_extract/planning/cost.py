"""For each Blosc chunk the cheaper way: the whole object, or its header first and then some blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.options import ReadOptions
from portal_extract.images.store import is_local
from portal_extract.planning.order import Order
from portal_extract.planning.regions import Regions, TileGrid

#: stored bytes per byte of pixels where nothing is known: noise in float32, lz4 after byte shuffle
USUAL_RATIO = 0.75
#: the same for the zeros that pad the chunks at the border
PADDING_RATIO = 1 / 250


def whole_units(regions: Regions, grid: TileGrid, order: Order, reading: ReadOptions) -> NDArray[np.bool_]:
    """Decide which units of fetching are fetched as whole chunks.

    A chunk is fetched whole if the bytes in it that nobody needs cost less than the request for its
    header and about one more for a second range.

    Parameters
    ----------
    regions, grid, order
        What is read, in which order.
    reading
        Strategy and cost of a request.

    Returns
    -------
    numpy.ndarray
        ``(U,)``; always true for codings that can only be decoded as a whole.
    """
    n_units = len(order.units)
    coding = regions.layout.codec.coding
    if coding != "blosc":
        return np.full(n_units, coding == "pipeline")
    _, visits = np.unique(order.unit_chunks, return_inverse=True)
    comes_once: NDArray[np.bool_] = np.bincount(visits)[visits] == 1
    if reading.strategy == "chunks":
        return comes_once
    # a cache keeps blocks
    if reading.strategy == "blocks" or (reading.cache_dir and not is_local(regions.layout.uri)):
        return np.full(n_units, grid.tiles_per_chunk == 1)
    inside = tiles_inside(regions, grid, order.unit_chunks)
    unneeded = (inside - order.units.lengths) * USUAL_RATIO
    padding = (grid.tiles_per_chunk - inside) * PADDING_RATIO
    tile_bytes = grid.tile_items * regions.layout.dtype.itemsize
    wasted_bytes = (unneeded + padding) * tile_bytes
    cheap: NDArray[np.bool_] = comes_once & (wasted_bytes <= 2 * reading.request_cost_bytes)
    return cheap


def tiles_inside(regions: Regions, grid: TileGrid, chunks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the tiles of chunks that hold pixels of the image; the others are padding.

    Parameters
    ----------
    regions, grid
        What is read.
    chunks
        ``(n,)`` chunks.
    """
    layout = regions.layout
    z, y, x = np.unravel_index(chunks, regions.grid)
    position = np.stack([z % layout.grid[0], y, x], axis=1)
    extent = np.minimum(grid.chunk_shape, np.array(layout.shape) - position * grid.chunk_shape)
    kinds, kind = np.unique(extent, axis=0, return_inverse=True)
    counts = np.array([_tiles_of_box(grid, *map(int, box)) for box in kinds], dtype=np.int64)
    return counts[kind.reshape(-1)]


def _tiles_of_box(grid: TileGrid, sections: int, rows: int, columns: int) -> int:
    """Count the tiles that the first sections, rows and columns of a chunk touch."""
    _, chunk_rows, chunk_columns = grid.chunk_shape
    z, y = np.meshgrid(np.arange(sections), np.arange(rows), indexing="ij")
    start = ((z * chunk_rows + y) * chunk_columns).reshape(-1)
    first, last = start // grid.tile_items, (start + columns - 1) // grid.tile_items
    marks = np.zeros(grid.tiles_per_chunk + 1, dtype=np.int64)
    np.add.at(marks, first, 1)
    np.add.at(marks, last + 1, -1)
    return int(np.count_nonzero(np.cumsum(marks)[:-1]))
