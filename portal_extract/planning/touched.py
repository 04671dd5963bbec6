"""Which tiles boxes touch, batch by batch."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from portal_extract.planning.regions import TileGrid

Ints = NDArray[np.int64]

#: pairs of box and tile that arrays find in 0.05 s at most; to load the compiled loop takes 0.4 s
FEW = 1 << 20
#: boxes that touch about as many tiles, at 64 each
FEW_BOXES = FEW // 64


@dataclass(frozen=True)
class Lists:
    """Lists of numbers, one after the other.

    Attributes
    ----------
    starts
        ``(n + 1,)`` where each list starts.
    items
        The numbers of all lists.
    """

    starts: Ints
    items: Ints = field(repr=False)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> Ints:
        return self.items[self.starts[index] : self.starts[index + 1]]

    @property
    def lengths(self) -> Ints:
        """Length of each list."""
        return np.diff(self.starts)


def tiles_of_batches(grid: TileGrid, places: Ints, starts: Ints, size_px: tuple[int, int]) -> Lists:
    """Tiles that each batch of boxes touches, each once, in no particular order.

    Few boxes are left to array operations. The compiled loop is faster on many; but a short run would wait
    for it to be loaded before the first pixel could be asked for.

    Parameters
    ----------
    grid
        The tiles.
    places
        ``(V, 4)`` regions as in :class:`~portal_extract.planning.regions.Regions`, in order of the batches.
    starts
        ``(B + 1,)`` first region of each batch.
    size_px
        Height and width of the regions.
    """
    # where a tile is shorter than a row of its chunk, there may be a run for each row of a box
    most_runs = size_px[0] if grid.tile_items < grid.chunk_shape[2] else 1
    if len(places) <= FEW_BOXES and len(places) * most_runs <= FEW:
        runs = runs_of_tiles(grid, places, size_px)
        if int(runs.lengths.sum()) <= FEW:
            return _by_arrays(grid, runs, starts)
    return tiles_by_kernel(grid, places, starts, size_px)


def tiles_by_kernel(grid: TileGrid, places: Ints, starts: Ints, size_px: tuple[int, int]) -> Lists:
    """Tiles of each batch by the compiled loop; see :func:`tiles_of_batches`."""
    from portal_extract.kernels.cut import touched_tiles

    places = np.ascontiguousarray(places)
    counts = np.zeros(len(starts), dtype=np.int64)
    stamps = np.full(grid.n_tiles, -1, dtype=np.int64)
    nothing = np.empty(0, dtype=np.int64)
    n_pairs = touched_tiles(places, starts, *size_px, grid.geometry, stamps, counts, nothing)
    items = np.empty(n_pairs, dtype=np.int64)
    stamps.fill(-1)
    touched_tiles(places, starts, *size_px, grid.geometry, stamps, counts, items)
    return Lists(counts, items)


@dataclass(frozen=True)
class Runs:
    """Runs of consecutive tiles.

    Attributes
    ----------
    views
        ``(R,)`` the box that touches each run.
    first, lengths
        ``(R,)`` first tile, and number of tiles.
    """

    views: Ints
    first: Ints
    lengths: Ints


def runs_of_tiles(grid: TileGrid, places: Ints, size_px: tuple[int, int]) -> Runs:
    """Find the runs of tiles that boxes touch: one for each chunk, or row where tiles are short, of a box.

    Parameters
    ----------
    grid, places, size_px
        As for :func:`tiles_of_batches`.
    """
    _, chunk_y, chunk_x = grid.chunk_shape
    _, grid_y, grid_x = grid.grid
    (ya, yb), (xa, xb) = (
        (np.clip(start, 0, size - 1), np.clip(start + length - 1, 0, size - 1) + 1)
        for start, length, size in zip(places[:, 2:].T, size_px, grid.image_px, strict=True)
    )
    first_y, first_x = ya // chunk_y, xa // chunk_x
    across = (xb - 1) // chunk_x + 1 - first_x
    view, number = _expand(across * ((yb - 1) // chunk_y + 1 - first_y))
    gy, gx = first_y[view] + number // across[view], first_x[view] + number % across[view]
    top = np.maximum(ya[view] - gy * chunk_y, 0)
    bottom = np.minimum(yb[view] - gy * chunk_y, chunk_y)
    left = np.maximum(xa[view] - gx * chunk_x, 0)
    right = np.minimum(xb[view] - gx * chunk_x, chunk_x)
    base = ((places[view, 0] * grid_y + gy) * grid_x + gx) * grid.tiles_per_chunk
    row = places[view, 1] * chunk_y + top
    # between the end of a row and the start of the next there is no room for a tile that is not touched
    whole = grid.tile_items > chunk_x - (right - left)
    piece, down = _expand(np.where(whole, 1, bottom - top))
    rows = np.where(whole, bottom - top, 1)[piece]
    start = (row[piece] + down) * chunk_x + left[piece]
    stop = (row[piece] + down + rows - 1) * chunk_x + right[piece]
    first = start // grid.tile_items
    return Runs(view[piece], base[piece] + first, (stop - 1) // grid.tile_items + 1 - first)


def _by_arrays(grid: TileGrid, runs: Runs, starts: Ints) -> Lists:
    run, number = _expand(runs.lengths)
    batch = np.searchsorted(starts, runs.views, side="right") - 1
    keys = distinct(batch[run] * grid.n_tiles + runs.first[run] + number)
    bounds = np.searchsorted(keys, np.arange(len(starts)) * grid.n_tiles)
    return Lists(bounds.astype(np.int64), keys % grid.n_tiles)


def distinct(numbers: Ints) -> Ints:
    """Sort numbers and drop repeated ones.

    ``np.unique`` of numpy 2.4 hashes integers: 0.7 s for a million that differ, where this takes 0.01 s.
    """
    ordered = np.sort(numbers)
    return ordered[np.diff(ordered, prepend=ordered[:1] - 1) > 0]


def _expand(lengths: Ints) -> tuple[Ints, Ints]:
    """Numbers 0 to n - 1 for each length n: to which length each belongs, and the number."""
    owner = np.repeat(np.arange(len(lengths)), lengths)
    return owner, np.arange(len(owner)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
