"""What will be read, before a byte of it is: order, slots, memory."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from portal_extract.errors import ImageFormatError, MemoryBudgetError
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.options import MIB, ReadOptions
from portal_extract.planning.order import Order, order_regions
from portal_extract.planning.regions import Regions, TileGrid

MAX_TILES = 1 << 27
COMFORT = 0.7


@dataclass(frozen=True)
class GroupPlan:
    """The plan for one group of regions.

    Attributes
    ----------
    regions
        What is cut.
    grid
        The tiles.
    order
        In which order.
    n_slots
        Tiles that there is room for.
    window_bytes
        Most stored bytes held at one time, in requests under way or waiting to be decoded.
    scratch_bytes
        Most bytes held for decoding.
    """

    regions: Regions
    grid: TileGrid
    order: Order
    n_slots: int
    window_bytes: int
    scratch_bytes: int

    @property
    def tile_bytes(self) -> int:
        """Size of a decoded tile, float32."""
        return self.grid.tile_items * 4

    @property
    def memory_bytes(self) -> int:
        """Predicted peak of the memory held by the reader."""
        return self.n_slots * self.tile_bytes + self.window_bytes + self.scratch_bytes

    def unit_bytes(self, unit: int) -> int:
        """Most stored bytes that a unit of fetching holds at one time."""
        return unit_bytes(self.regions.layout, self.grid, int(self.order.units.lengths[unit]))


def plan_group(regions: Regions, block_bytes: int | None, reading: ReadOptions) -> GroupPlan:
    """Plan the reading of one group of regions.

    Parameters
    ----------
    regions
        What is to be cut.
    block_bytes
        Size of a decoded Blosc block, if the chunks are Blosc frames and one has been looked at.
    reading
        Memory, batches, requests.

    Raises
    ------
    MemoryBudgetError
        The tiles that must be held together do not fit.
    ImageFormatError
        An array of absurdly many chunks.
    """
    layout = regions.layout
    grid = TileGrid(
        (layout.shape[1], layout.shape[2]), layout.chunk_shape, regions.grid, layout.tile_items(block_bytes)
    )
    if grid.n_tiles > MAX_TILES:
        raise ImageFormatError(f"{layout.uri}: chunks of {layout.chunk_shape} are too many to plan with")
    whole = layout.codec.coding == "pipeline"
    scratch = _scratch_bytes(layout, grid, reading)
    fewest = 0
    for depth in _depths(grid, regions, whole):
        order = order_regions(
            grid, regions.places, regions.size_px, reading.batch_views, depth, whole_chunks=whole
        )
        largest = unit_bytes(layout, grid, int(order.units.lengths.max()))
        window = max(largest, min(reading.memory_bytes // 4, 256 * MIB))
        room = (reading.memory_bytes - window - scratch) // (grid.tile_items * 4)
        needed = order.peak_tiles * grid.tile_items * 4 + largest + scratch
        fewest = needed if fewest == 0 else min(fewest, needed)
        is_last = depth <= _tile_depth(grid) or whole
        if order.peak_tiles <= COMFORT * room or (is_last and needed <= reading.memory_bytes):
            if room < order.peak_tiles:
                window = reading.memory_bytes - scratch - order.peak_tiles * grid.tile_items * 4
                room = order.peak_tiles
            ahead = order.peak_tiles + 2 * window // (grid.tile_items * 4)
            n_slots = min(room, ahead, len(order.units.items))
            return GroupPlan(regions, grid, order, max(n_slots, order.peak_tiles), window, scratch)
    raise MemoryBudgetError(
        f"{layout.uri}: reading needs {math.ceil(fewest / MIB)} MiB of memory where "
        f"{reading.memory_bytes // MIB} MiB are allowed; allow more memory, or fewer boxes per batch"
    )


def unit_bytes(layout: ArrayLayout, grid: TileGrid, n_tiles: int) -> int:
    """Most stored bytes of a unit of some tiles: the pixels uncompressed, or the whole chunk."""
    if layout.codec.coding == "pipeline":
        return layout.chunk_items * layout.dtype.itemsize
    return n_tiles * grid.tile_items * layout.dtype.itemsize


def _scratch_bytes(layout: ArrayLayout, grid: TileGrid, reading: ReadOptions) -> int:
    size = layout.dtype.itemsize
    if layout.codec.coding == "pipeline":
        return 2 * reading.threads * layout.chunk_items * size
    return 2 * reading.threads * grid.tile_items * size


def _tile_depth(grid: TileGrid) -> int:
    """Sections that a tile reaches through."""
    _, rows, columns = grid.chunk_shape
    return max(1, grid.tile_items // (rows * columns))


def _depths(grid: TileGrid, regions: Regions, whole: bool) -> list[int]:
    """Numbers of sections to try to take together, most first."""
    if whole or len(regions.places) == 0:
        return [grid.chunk_shape[0]]
    used = int(regions.places[:, 1].max()) + 1
    depths = [min(grid.chunk_shape[0], used)]
    while depths[-1] > _tile_depth(grid):
        depths.append(max(_tile_depth(grid), depths[-1] // 2))
    return depths


def wants_whole(plan: GroupPlan, unit: int, reading: ReadOptions) -> bool:
    """Whether a Blosc chunk is cheaper to fetch whole than header first and then some blocks.

    Parameters
    ----------
    plan
        The plan.
    unit
        Which unit of fetching.
    reading
        Strategy and cost of a request.
    """
    grid, order = plan.grid, plan.order
    if reading.strategy != "auto":
        return reading.strategy == "chunks"
    if plan.order.slab_sections < min(grid.chunk_shape[0], plan.regions.layout.shape[0]):
        return grid.tiles_per_chunk == 1
    layout, position = plan.regions.locate(int(order.unit_chunks[unit]))
    inside = [min(c, n - i * c) for i, c, n in zip(position, grid.chunk_shape, layout.shape, strict=True)]
    n_inside = _tiles_inside(grid, inside)
    wasted = (n_inside - int(order.units.lengths[unit])) * 0.75 + (grid.tiles_per_chunk - n_inside) / 250
    return wasted * grid.tile_items * layout.dtype.itemsize <= 2 * reading.request_cost_bytes


def _tiles_inside(grid: TileGrid, inside: list[int]) -> int:
    """Tiles of a chunk that hold pixels of the image, when its first sections, rows, columns do."""
    _, rows, columns = grid.chunk_shape
    z, y = np.meshgrid(np.arange(inside[0]), np.arange(inside[1]), indexing="ij")
    start = ((z * rows + y) * columns).reshape(-1)
    first, last = start // grid.tile_items, (start + inside[2] - 1) // grid.tile_items
    marks = np.zeros(grid.tiles_per_chunk + 1, dtype=np.int64)
    np.add.at(marks, first, 1)
    np.add.at(marks, last + 1, -1)
    return int(np.count_nonzero(np.cumsum(marks)[:-1] > 0))
