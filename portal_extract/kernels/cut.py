"""Boxes and tiles: which tiles a box touches, and its pixels copied out of decoded tiles.

A chunk is stored in (z, y, x) order and divided into tiles of ``tile_items`` consecutive items, which need
not end with a row. Tiles are numbered through: chunk times tiles per chunk, plus the tile in the chunk;
chunks in (z, y, x) order of the grid. ``geometry`` is ``(height, width, chunk_y, chunk_x, grid_y, grid_x,
tile_items, tiles_per_chunk)`` throughout. Views are ``(n, 4)`` rows of chunk index along z, section
within the chunk, and y and x of the first pixel, which may lie outside the image.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Geometry = tuple[int, int, int, int, int, int, int, int]


@njit(cache=True, nogil=True, inline="always")
def _inside(start: int, length: int, size: int) -> tuple[int, int]:
    """First and last pixel inside the image, plus one, of a run whose outside repeats the border."""
    first = min(max(start, 0), size - 1)
    last = min(max(start + length - 1, 0), size - 1)
    return first, last + 1


@njit(cache=True, nogil=True)
def touched_tiles(
    views: NDArray[np.int64],
    batch_starts: NDArray[np.int64],
    height: int,
    width: int,
    geometry: Geometry,
    stamps: NDArray[np.int64],
    counts: NDArray[np.int64],
    out: NDArray[np.int64],
) -> int:
    """Tiles touched by each batch of boxes.

    Parameters
    ----------
    views
        ``(V, 4)`` boxes in the order of the batches.
    batch_starts
        ``(B + 1,)`` first view of each batch.
    height, width
        Size of a box, in pixels.
    geometry
        See the module.
    stamps
        ``(n_tiles,)`` scratch, filled with -1.
    counts
        ``(B + 1,)`` receives the number of pairs before each batch.
    out
        ``(n,)`` receives the tiles, batch by batch, or ``(0,)`` to count only.

    Returns
    -------
    int
        Number of pairs of batch and tile.
    """
    image_h, image_w, chunk_y, chunk_x, grid_y, grid_x, items, per_chunk = geometry
    n = 0
    write = len(out) > 0
    for batch in range(len(batch_starts) - 1):
        for view in range(batch_starts[batch], batch_starts[batch + 1]):
            z, section = views[view, 0], views[view, 1]
            ya, yb = _inside(views[view, 2], height, image_h)
            xa, xb = _inside(views[view, 3], width, image_w)
            for gy in range(ya // chunk_y, (yb - 1) // chunk_y + 1):
                row0 = section * chunk_y + max(ya - gy * chunk_y, 0)
                row1 = section * chunk_y + min(yb - gy * chunk_y, chunk_y)
                for gx in range(xa // chunk_x, (xb - 1) // chunk_x + 1):
                    left = max(xa - gx * chunk_x, 0)
                    right = min(xb - gx * chunk_x, chunk_x)
                    base = ((z * grid_y + gy) * grid_x + gx) * per_chunk
                    row = row0
                    while row < row1:
                        first = (row * chunk_x + left) // items
                        last = (row * chunk_x + right - 1) // items
                        for tile in range(base + first, base + last + 1):
                            if stamps[tile] != batch:
                                stamps[tile] = batch
                                if write:
                                    out[n] = tile
                                n += 1
                        # straight on to the next row that reaches into a tile not seen yet
                        row = max(row + 1, ((last + 1) * items - right) // chunk_x + 1)
        counts[batch + 1] = n
    return n


@njit(cache=True, nogil=True)
def cut_boxes(
    arena: NDArray[np.float32],
    slots: NDArray[np.int64],
    views: NDArray[np.int64],
    geometry: Geometry,
    out: NDArray[np.float32],
) -> None:
    """Copy boxes out of decoded tiles; outside the image the border pixels are repeated.

    Parameters
    ----------
    arena
        ``(n_slots, tile_items)`` decoded tiles.
    slots
        ``(n_tiles,)`` row of the arena that holds each tile.
    views
        ``(n, 4)`` boxes.
    geometry
        See the module.
    out
        ``(n, height, width)`` receives the pixels.
    """
    image_h, image_w, chunk_y, chunk_x, grid_y, grid_x, items, per_chunk = geometry
    n, height, width = out.shape
    for view in range(n):
        z, section = views[view, 0], views[view, 1]
        ya, yb = _inside(views[view, 2], height, image_h)
        xa, xb = _inside(views[view, 3], width, image_w)
        top = min(max(ya - views[view, 2], 0), height - 1)
        left = min(max(xa - views[view, 3], 0), width - 1)
        for y in range(ya, yb):
            gy = y // chunk_y
            row = section * chunk_y + y - gy * chunk_y
            target = out[view, top + y - ya]
            at = left
            x = xa
            while x < xb:
                gx = x // chunk_x
                inner = x - gx * chunk_x
                end = min(xb - gx * chunk_x, chunk_x)
                base = ((z * grid_y + gy) * grid_x + gx) * per_chunk
                x += end - inner
                while inner < end:
                    item = row * chunk_x + inner
                    tile = item // items
                    offset = item - tile * items
                    length = min(end - inner, items - offset)
                    # sliced first, so that the loop runs from zero and is vectorised
                    source = arena[slots[base + tile], offset : offset + length]
                    part = target[at : at + length]
                    for k in range(len(part)):
                        part[k] = source[k]
                    at += length
                    inner += length
            for k in range(left):
                target[k] = target[left]
            for k in range(at, width):
                target[k] = target[at - 1]
        for r in range(top):
            out[view, r] = out[view, top]
        for r in range(top + yb - ya, height):
            out[view, r] = out[view, top + yb - ya - 1]
