"""What will be read, before a byte of it is: order, slots, memory."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import ImageFormatError, MemoryBudgetError
from portal_extract.images.blosc import FrameTable
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.options import MIB, ReadOptions
from portal_extract.images.store import is_local
from portal_extract.planning.cost import whole_units
from portal_extract.planning.order import Order, order_regions
from portal_extract.planning.regions import Regions, TileGrid

MAX_TILES = 1 << 27
WINDOW_BYTES = 192 * MIB
COMFORT = 0.7
SMALL_BATCH = 8


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
    held_bytes
        ``(U,)`` most stored bytes that each unit of fetching holds at one time.
    whole
        ``(U,)`` whether each unit of fetching is fetched as a whole chunk.
    """

    regions: Regions
    grid: TileGrid
    order: Order
    n_slots: int
    window_bytes: int
    scratch_bytes: int
    held_bytes: NDArray[np.int64] = field(repr=False)
    whole: NDArray[np.bool_] = field(repr=False)

    @property
    def tile_bytes(self) -> int:
        """Size of a decoded tile, float32."""
        return self.grid.tile_items * 4

    @property
    def memory_bytes(self) -> int:
        """Predicted peak of the memory held by the reader."""
        return self.n_slots * self.tile_bytes + self.window_bytes + self.scratch_bytes


def plan_group(
    regions: Regions, block_bytes: int | None, reading: ReadOptions, typical: FrameTable | None = None
) -> GroupPlan:
    """Plan the reading of one group of regions.

    Of several orders of work the most convenient one is taken that leaves room for reading ahead: many
    sections at a time and large batches; where memory is short, fewer sections and smaller batches.

    Parameters
    ----------
    regions
        What is to be cut.
    block_bytes
        Size of a decoded Blosc block, if the chunks are Blosc frames and one has been looked at.
    reading
        Memory, batches, requests.
    typical
        Table of a Blosc chunk, if one has been looked at.

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
    whole_chunks = layout.codec.coding == "pipeline"
    best: _Room | None = None
    for depth, batch_views in _trials(grid, regions, reading.batch_views):
        order = order_regions(
            grid, regions.places, regions.size_px, batch_views, depth, whole_chunks=whole_chunks
        )
        room = _Room(grid, order, layout, reading)
        if room.is_comfortable:
            return room.plan(regions, room.window_bytes, typical)
        if best is None or room.fewest_bytes < best.fewest_bytes:
            best = room
    if best is None or best.fewest_bytes > reading.memory_bytes:
        raise MemoryBudgetError(_too_little(layout, best.fewest_bytes if best else 0, reading))
    spare = reading.memory_bytes - best.fewest_bytes
    return best.plan(regions, min(best.window_bytes, best.largest_bytes + spare), typical)


def _too_little(layout: ArrayLayout, needed_bytes: int, reading: ReadOptions) -> str:
    needed, allowed = math.ceil(needed_bytes / MIB), reading.memory_bytes // MIB
    advice = "allow more"
    if reading.process_bytes is not None:
        # the reader's share grows at least as the whole does
        enough = math.ceil(needed_bytes / reading.memory_bytes * reading.process_bytes / MIB)
        advice = f"raise --memory to {enough}MiB, or use fewer --workers"
    return f"{layout.uri}: reading needs {needed} MiB of memory where {allowed} MiB are allowed; {advice}"


class _Room:
    """How an order of work fits into the memory."""

    def __init__(self, grid: TileGrid, order: Order, layout: ArrayLayout, reading: ReadOptions) -> None:
        self._grid, self._order, self._reading = grid, order, reading
        self._tile_bytes = grid.tile_items * 4
        self._scratch_bytes = _scratch_bytes(layout, grid, reading)
        held_bytes = _held_bytes(layout, grid, order)
        self.largest_bytes = int(held_bytes.max())
        wished = min(reading.memory_bytes // 4, WINDOW_BYTES, int(held_bytes.sum()))
        if is_local(layout.uri):
            wished = min(wished, 2 * reading.threads * self.largest_bytes)
        self.window_bytes = max(self.largest_bytes, wished)
        self.fewest_bytes = order.peak_tiles * self._tile_bytes + self.largest_bytes + self._scratch_bytes

    @property
    def is_comfortable(self) -> bool:
        """Whether there is room to read ahead, and the first batch does not wait for too much."""
        room = self._reading.memory_bytes - self.window_bytes - self._scratch_bytes
        longest = int(self._order.batch_tiles.lengths.max()) * self._tile_bytes
        is_small = len(self._order.batches) == 1 or longest <= max(room // 8, self._tile_bytes)
        return is_small and self._order.peak_tiles * self._tile_bytes <= COMFORT * room

    def plan(self, regions: Regions, window_bytes: int, typical: FrameTable | None) -> GroupPlan:
        """Share the memory out."""
        order, memory_bytes = self._order, self._reading.memory_bytes
        room = (memory_bytes - window_bytes - self._scratch_bytes) // self._tile_bytes
        # what is under way must have its place, and some tiles may wait for their turn
        item_bytes = regions.layout.dtype.itemsize
        ahead = order.peak_tiles + 5 * window_bytes // (4 * item_bytes * self._grid.tile_items)
        n_slots = max(order.peak_tiles, min(room, ahead, len(order.units.items)))
        whole = whole_units(regions, self._grid, order, self._reading, typical)
        held_bytes = _held_bytes(regions.layout, self._grid, order)
        return GroupPlan(
            regions, self._grid, order, n_slots, window_bytes, self._scratch_bytes, held_bytes, whole
        )


def _held_bytes(layout: ArrayLayout, grid: TileGrid, order: Order) -> NDArray[np.int64]:
    """Most stored bytes of each unit: its pixels uncompressed, or the whole chunk."""
    if layout.codec.coding == "pipeline":
        return np.full(len(order.units), layout.chunk_items * layout.dtype.itemsize)
    return order.units.lengths * (grid.tile_items * layout.dtype.itemsize)


def _scratch_bytes(layout: ArrayLayout, grid: TileGrid, reading: ReadOptions) -> int:
    size = layout.dtype.itemsize
    if layout.codec.coding == "pipeline":
        return 2 * reading.threads * layout.chunk_items * size
    return 2 * reading.threads * grid.tile_items * size


def _tile_depth(grid: TileGrid) -> int:
    """Sections that a tile reaches through."""
    _, rows, columns = grid.chunk_shape
    return max(1, grid.tile_items // (rows * columns))


def _trials(grid: TileGrid, regions: Regions, batch_views: int) -> list[tuple[int, int]]:
    """Sections to take together and boxes per batch, the most convenient first."""
    fewest = _tile_depth(grid)
    used = int(regions.places[:, 1].max()) + 1
    depths = [min(grid.chunk_shape[0], used)]
    while depths[-1] > fewest and regions.layout.codec.coding != "pipeline":
        depths.append(max(fewest, depths[-1] // 2))
    sizes = [size for size in (batch_views // 4, batch_views // 16) if size >= SMALL_BATCH]
    trials = [(depth, size) for depth in depths for size in (batch_views, *sizes)]
    return trials + [(depth, 1) for depth in (depths[0], depths[-1])]
