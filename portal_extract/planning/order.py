"""In which order boxes are cut and tiles fetched, and how many tiles are alive at one time.

The sections are taken in slabs; within a slab the chunks are taken row by row. A box is ready when the
last chunk that it touches has come: the one at its lower right. Each tile is fetched once, with the first
box that needs it, and dropped with the last one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from portal_extract.planning.regions import TileGrid
from portal_extract.planning.touched import Lists, distinct, tiles_of_batches

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Order:
    """The order of work on one group of regions.

    Attributes
    ----------
    slab_sections
        Sections taken together.
    batches
        Regions of each batch: indices into :class:`~portal_extract.planning.regions.Regions`.
    batch_tiles
        Tiles that each batch touches.
    units
        Tiles of each unit of fetching, ascending, all of one chunk; units in the order of fetching.
    unit_chunks
        ``(U,)`` chunk of each unit.
    unit_batches
        Batches that wait for each unit.
    peak_tiles
        Most tiles alive at one time when nothing is fetched ahead.
    """

    slab_sections: int
    batches: Lists
    batch_tiles: Lists
    units: Lists
    unit_chunks: Ints
    unit_batches: Lists
    peak_tiles: int


def order_regions(
    grid: TileGrid,
    places: Ints,
    size_px: tuple[int, int],
    batch_views: int,
    slab_sections: int,
    *,
    whole_chunks: bool,
) -> Order:
    """Order regions and their tiles.

    Parameters
    ----------
    grid
        The tiles.
    places
        ``(V, 4)`` regions as in :class:`~portal_extract.planning.regions.Regions`.
    size_px
        Height and width of the regions.
    batch_views
        Most regions per batch.
    slab_sections
        Sections taken together; at most those of a chunk.
    whole_chunks
        Whether all tiles of a chunk come at once, because its coding leaves no choice.
    """
    slab = _slabs(grid, places, slab_sections)
    ready = _ready_rank(grid, places, size_px, slab)
    order = np.argsort(ready, kind="stable")
    n_views = len(places)
    starts = np.arange(0, n_views + batch_views, batch_views, dtype=np.int64)
    starts[-1] = n_views
    batch_tiles = tiles_of_batches(grid, places[order], starts, size_px)
    n_batches = len(batch_tiles)
    tiles, first_pair = np.unique(batch_tiles.items, return_index=True)
    batch_of_pair = np.repeat(np.arange(n_batches), batch_tiles.lengths)
    first = batch_of_pair[first_pair]
    last = np.zeros(grid.n_tiles, dtype=np.int64)
    last[batch_tiles.items] = batch_of_pair  # pairs are in the order of the batches: the last one stays
    chunks = tiles // grid.tiles_per_chunk
    slab_of_batch = slab[order[starts[:-1]]]
    slab_of_tile = np.zeros_like(chunks) if whole_chunks else slab_of_batch[first]
    units, unit_chunks, unit_first, unit_of_tile = _units(grid, tiles, chunks, slab_of_tile, first)
    unit_of = np.zeros(grid.n_tiles, dtype=np.int64)
    unit_of[tiles] = unit_of_tile
    pairs = distinct(unit_of[batch_tiles.items] * n_batches + batch_of_pair)
    unit_starts = np.searchsorted(pairs, np.arange(len(unit_chunks) + 1) * n_batches)
    alive = np.zeros(n_batches + 1, dtype=np.int64)
    np.add.at(alive, unit_first[unit_of_tile], 1)
    np.add.at(alive, last[tiles] + 1, -1)
    return Order(
        slab_sections=slab_sections,
        batches=Lists(starts, order),
        batch_tiles=batch_tiles,
        units=units,
        unit_chunks=unit_chunks,
        unit_batches=Lists(unit_starts, pairs % n_batches),
        peak_tiles=int(np.cumsum(alive).max()),
    )


def _slabs(grid: TileGrid, places: Ints, slab_sections: int) -> Ints:
    """Give the number of the slab of each region; slabs do not reach across chunks."""
    depth = grid.chunk_shape[0]
    per_chunk = -(-depth // slab_sections)
    return places[:, 0] * per_chunk + places[:, 1] // slab_sections


def _ready_rank(grid: TileGrid, places: Ints, size_px: tuple[int, int], slab: Ints) -> Ints:
    height, width = grid.image_px
    bottom = np.clip(places[:, 2] + size_px[0] - 1, 0, height - 1) // grid.chunk_shape[1]
    right = np.clip(places[:, 3] + size_px[1] - 1, 0, width - 1) // grid.chunk_shape[2]
    rank: Ints = (slab * grid.grid[1] + bottom) * grid.grid[2] + right
    return rank


def _units(
    grid: TileGrid, tiles: Ints, chunks: Ints, slab_of_tile: Ints, first: Ints
) -> tuple[Lists, Ints, Ints, Ints]:
    """Tiles of one chunk and one slab are one unit; units are fetched in the order of their first use."""
    key = slab_of_tile * grid.n_chunks + chunks
    keys, unit = np.unique(key, return_inverse=True)
    first_use = np.full(len(keys), np.iinfo(np.int64).max)
    np.minimum.at(first_use, unit, first)
    ranked = np.lexsort((keys, first_use))
    rank = np.empty_like(ranked)
    rank[ranked] = np.arange(len(ranked))
    unit_of_tile = rank[unit]
    by_unit = np.argsort(unit_of_tile, kind="stable")  # tiles ascend within a unit, as they did before
    starts = np.searchsorted(unit_of_tile[by_unit], np.arange(len(keys) + 1))
    return Lists(starts, tiles[by_unit]), keys[ranked] % grid.n_chunks, first_use[ranked], unit_of_tile
