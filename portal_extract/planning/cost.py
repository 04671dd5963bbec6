"""For each Blosc chunk the cheaper way: the whole object, or its header first and then some blocks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.blosc import FrameTable
from portal_extract.images.options import ReadOptions
from portal_extract.images.store import is_local
from portal_extract.planning.order import Order
from portal_extract.planning.regions import Regions, TileGrid
from portal_extract.planning.touched import Lists

#: stored bytes per byte of pixels where nothing is known: noise in float32, lz4 after byte shuffle
USUAL_RATIO = 0.75
#: the same for the zeros that pad the chunks at the border
PADDING_RATIO = 1 / 250


def whole_units(
    regions: Regions, grid: TileGrid, order: Order, reading: ReadOptions, typical: FrameTable | None = None
) -> NDArray[np.bool_]:
    """Decide which units of fetching are fetched as whole chunks.

    A chunk is fetched whole if the bytes in it that nobody needs cost less than the requests that it saves:
    one for the header, and those for all ranges but one.

    Parameters
    ----------
    regions, grid, order
        What is read, in which order.
    reading
        Strategy and cost of a request.
    typical
        Table of a chunk of the array, if one is known: how blocks lie in chunks.

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
    if reading.cache_dir and not is_local(regions.layout.uri):
        return np.zeros(n_units, bool)  # a cache keeps blocks
    if reading.strategy == "blocks":
        return np.full(n_units, grid.tiles_per_chunk == 1)
    inside = tiles_inside(regions, grid, order.unit_chunks)
    unneeded = (inside - order.units.lengths) * USUAL_RATIO
    padding = (grid.tiles_per_chunk - inside) * PADDING_RATIO
    tile_bytes = grid.tile_items * regions.layout.dtype.itemsize
    wasted_bytes = (unneeded + padding) * tile_bytes
    starts, stops = block_places(order.units, grid, tile_bytes, typical)
    n_ranges, _ = ranges_of_units(order.units.lengths, starts, stops, reading.gap_bytes)
    cheap: NDArray[np.bool_] = comes_once & (wasted_bytes <= n_ranges * reading.request_cost_bytes)
    return cheap


def block_places(
    units: Lists, grid: TileGrid, tile_bytes: int, typical: FrameTable | None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Tell where the tiles of units are in their chunks, as far as one chunk tells it of all.

    Parameters
    ----------
    units, grid
        Tiles of each unit, all of one chunk.
    tile_bytes
        Size of a tile as stored where nothing is compressed.
    typical
        Table of a chunk: compressed by several threads, blocks lie in any order. None for one after the
        other.

    Returns
    -------
    starts, stops
        ``(T,)`` first byte in the chunk of each of the tiles of all units, and the byte after its last.
    """
    inner = units.items % grid.tiles_per_chunk
    if typical is not None and typical.header.block_bytes == tile_bytes:
        return typical.starts[inner], typical.stops[inner]
    return inner * tile_bytes, (inner + 1) * tile_bytes


def ranges_of_units(
    lengths: NDArray[np.int64], starts: NDArray[np.int64], stops: NDArray[np.int64], gap_bytes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the ranges in which the tiles of units are fetched.

    Parameters
    ----------
    lengths
        ``(U,)`` tiles of each unit.
    starts, stops
        ``(T,)`` first byte in the chunk of each of the tiles of all units, and the byte after its last.
    gap_bytes
        Ranges closer than this are joined.

    Returns
    -------
    n_ranges, gaps
        ``(U,)`` ranges, and bytes between those that are joined.
    """
    n_units = len(lengths)
    unit = np.repeat(np.arange(n_units), lengths)
    ranked = np.lexsort((starts, unit))
    starts, stops, unit = starts[ranked], stops[ranked], unit[ranked]
    gaps = starts[1:] - stops[:-1]
    is_joined = (np.diff(unit) == 0) & (gaps <= gap_bytes)
    joined = unit[1:][is_joined]
    between = np.bincount(joined, gaps[is_joined], minlength=n_units).astype(np.int64)
    return lengths - np.bincount(joined, minlength=n_units), between


def pixels_inside(
    regions: Regions, chunks: NDArray[np.int64], n_first: int | NDArray[np.int64] | None = None
) -> NDArray[np.int64]:
    """Count the pixels of chunks that are pixels of the image; the others are padding.

    Parameters
    ----------
    regions
        What is read.
    chunks
        ``(n,)`` chunks.
    n_first
        Among how many of the first pixels of each chunk they are counted; None for all.
    """
    layout = regions.layout
    (_, rows, columns), extent = layout.chunk_shape, _extents(regions, chunks)
    n_first = layout.chunk_items if n_first is None else np.minimum(n_first, layout.chunk_items)
    z, rest = np.divmod(n_first, rows * columns)
    y, x = np.divmod(rest, columns)
    n_z, n_y, n_x = extent.T
    in_row = np.where(y < n_y, np.minimum(x, n_x), 0)
    in_section = np.where(z < n_z, np.minimum(y, n_y) * n_x + in_row, 0)
    return np.asarray(np.minimum(z, n_z) * n_y * n_x + in_section)


def _extents(regions: Regions, chunks: NDArray[np.int64]) -> NDArray[np.int64]:
    """``(n, 3)`` sections, rows and columns of chunks that are inside the image."""
    layout = regions.layout
    z, y, x = np.unravel_index(chunks, regions.grid)
    position = np.stack([z % layout.grid[0], y, x], axis=1)
    return np.minimum(layout.chunk_shape, np.array(layout.shape) - position * layout.chunk_shape)


def tiles_inside(regions: Regions, grid: TileGrid, chunks: NDArray[np.int64]) -> NDArray[np.int64]:
    """Count the tiles of chunks that hold pixels of the image; the others are padding.

    Parameters
    ----------
    regions, grid
        What is read.
    chunks
        ``(n,)`` chunks.
    """
    kinds, kind = np.unique(_extents(regions, chunks), axis=0, return_inverse=True)
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
