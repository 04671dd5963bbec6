"""What a stream will fetch: requests and bytes, against whole chunks and against everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.blosc import HEADER_BYTES, FrameTable
from portal_extract.images.boxes import Boxes
from portal_extract.images.frames import PROBE_BYTES
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.mapped import can_be_mapped, mapped_bytes
from portal_extract.images.options import MIB, ReadOptions
from portal_extract.model import ImageStack
from portal_extract.planning.cost import (
    PADDING_RATIO,
    USUAL_RATIO,
    pixels_inside,
    ranges_of_units,
)
from portal_extract.planning.plan import GroupPlan, plan_group
from portal_extract.planning.regions import Regions, group_regions


@dataclass(frozen=True)
class ReadPlan:
    """What reading some boxes of a tilt series, or of several, amounts to.

    Attributes
    ----------
    views
        Boxes.
    chunks
        Stored chunks touched.
    blocks
        Blocks touched: units of decoding, or runs of rows where nothing is compressed.
    requests
        Requests, metadata not counted.
    fetched_bytes
        Bytes to fetch, tables and gaps included.
    block_bytes
        Stored size of the blocks touched.
    chunk_bytes
        Stored size of the chunks touched.
    total_bytes
        Stored size of the whole arrays.
    memory_bytes
        Predicted peak of the memory held by the reader.
    is_estimate
        Whether stored sizes are estimated, because no table or not all tables of the chunks are known.
    """

    views: int
    chunks: int
    blocks: int
    requests: int
    fetched_bytes: int
    block_bytes: int
    chunk_bytes: int
    total_bytes: int
    memory_bytes: int
    is_estimate: bool

    def __str__(self) -> str:
        about = "about " if self.is_estimate else ""
        return (
            f"{self.views} views in {self.blocks} blocks of {self.chunks} chunks: {about}{self.requests} "
            f"requests, {about}{_mib(self.fetched_bytes)} ({_mib(self.chunk_bytes)} as whole chunks, "
            f"{_mib(self.total_bytes)} as a full download), {_mib(self.memory_bytes)} of memory"
        )

    def seconds(self, bytes_per_s: float) -> float:
        """Tell the time that fetching takes at a bandwidth."""
        return self.fetched_bytes / bytes_per_s

    @staticmethod
    def together(plans: Sequence[ReadPlan]) -> ReadPlan:
        """Sum several plans up; memory is that of the largest, because they are carried out in turn."""
        sums = {
            name: sum(getattr(plan, name) for plan in plans)
            for name in (f.name for f in fields(ReadPlan))
            if name not in ("memory_bytes", "is_estimate")
        }
        memory = max((plan.memory_bytes for plan in plans), default=0)
        return ReadPlan(**sums, memory_bytes=memory, is_estimate=any(plan.is_estimate for plan in plans))


@dataclass(frozen=True)
class StoredSizes:
    """What is known of the stored sizes of the chunks of an array.

    Attributes
    ----------
    tables
        Tables of Blosc frames, by position of the chunk along z, y, x.
    """

    tables: Mapping[tuple[int, int, int], FrameTable] = field(default_factory=dict)

    @property
    def typical(self) -> FrameTable | None:
        """Any of the tables."""
        return next(iter(self.tables.values()), None)

    @property
    def block_bytes(self) -> int | None:
        """Size of a decoded Blosc block, or None."""
        return None if self.typical is None else self.typical.header.block_bytes

    def ratio(self, plan: GroupPlan) -> float:
        """Tell the stored bytes per byte of pixels inside the image."""
        layout = plan.regions.layout
        if layout.codec.coding == "raw":
            return 1.0
        if not self.tables:
            return USUAL_RATIO
        chunks = np.array([np.ravel_multi_index(position, layout.grid) for position in self.tables])
        pixels, size = pixels_inside(plan.regions, chunks), layout.dtype.itemsize
        stored = sum(table.header.stored_bytes - table.header.table_bytes for table in self.tables.values())
        padding = (layout.chunk_items - pixels).sum() * PADDING_RATIO * size
        return max(float((stored - padding) / (pixels.sum() * size)), PADDING_RATIO)


def plan_reading(
    stack: ImageStack,
    layouts: Mapping[str, ArrayLayout],
    boxes: Boxes,
    reading: ReadOptions,
    known: Mapping[str, StoredSizes] | None = None,
) -> ReadPlan:
    """Tell what reading some boxes will cost, without reading anything.

    Parameters
    ----------
    stack
        The tilt series.
    layouts
        Layout of each of its addresses.
    boxes
        What is to be cut.
    reading
        How it will be read.
    known
        What is known of the stored sizes, by address.

    Raises
    ------
    MemoryBudgetError
        The memory allowed is too small; the message names what is needed.
    ImageFormatError
        A file is not what the tilt series says.
    """
    known = known or {}
    size = (boxes.side_px, boxes.side_px)
    parts = []
    for regions in group_regions(stack, dict(layouts), boxes.tilt, boxes.origin_px, size):
        sizes = known.get(regions.layout.uri, StoredSizes())
        if can_be_mapped(regions):
            parts.append(_mapped(regions))
        else:
            plan = plan_group(regions, sizes.block_bytes, reading, sizes.typical)
            parts.append(_streamed(plan, sizes, reading))
    return ReadPlan.together(parts)


def _mapped(regions: Regions) -> ReadPlan:
    touched, n_runs = mapped_bytes(regions)
    total = sum(layout.stored_bytes for layout in regions.layouts)
    sections = len(np.unique(regions.places[:, :2], axis=0))
    chunk_bytes = sections * regions.layout.shape[1] * regions.layout.shape[2] * 4
    held = regions.layout.shape[1] * regions.layout.shape[2] * 4
    return ReadPlan(
        len(regions.views), sections, n_runs, 0, touched, touched, chunk_bytes, total, held, False
    )


def _streamed(plan: GroupPlan, sizes: StoredSizes, reading: ReadOptions) -> ReadPlan:
    grid, order, layout = plan.grid, plan.order, plan.regions.layout
    ratio = sizes.ratio(plan)
    chunks, chunk_of_unit = np.unique(order.unit_chunks, return_inverse=True)
    tiles, unit_of_tile = order.units.items, np.repeat(np.arange(len(order.units)), order.units.lengths)
    chunk_bytes = _chunk_bytes(plan, chunks, ratio)
    stored = _tile_bytes(plan, tiles, ratio)
    n_known = _put_known(plan, sizes, chunks, chunk_bytes, stored)
    tile_bytes = grid.tile_items * layout.dtype.itemsize
    n_ranges, gaps = ranges_of_units(order.units, grid, tile_bytes, reading.gap_bytes, sizes.typical)
    fetched = stored[~plan.whole[unit_of_tile]].sum() + gaps[~plan.whole].sum()
    fetched += chunk_bytes[chunk_of_unit[plan.whole]].sum()
    requests = int(n_ranges[~plan.whole].sum()) + int(np.count_nonzero(plan.whole))
    if layout.codec.coding == "blosc":
        n_headers = len(np.unique(order.unit_chunks[~plan.whole]))
        table_bytes = HEADER_BYTES + 4 * grid.tiles_per_chunk
        fetched += n_headers * table_bytes + min(PROBE_BYTES, int(chunk_bytes.max(initial=0)))
        requests += n_headers + 1 - int(n_headers > 0)
    n_shards = 0
    if layout.shard_shape is not None:
        n_shards = len({array.object_uri(p) for array, p in map(plan.regions.locate, chunks.tolist())})
    is_exact = layout.codec.coding == "raw" or n_known == len(chunks)
    return ReadPlan(
        views=len(plan.regions.views),
        chunks=len(chunks),
        blocks=len(tiles),
        requests=requests + n_shards,
        fetched_bytes=int(fetched),
        block_bytes=int(stored.sum()),
        chunk_bytes=int(chunk_bytes.sum()),
        total_bytes=int(_chunk_bytes(plan, np.arange(grid.n_chunks), ratio).sum()),
        memory_bytes=plan.memory_bytes,
        is_estimate=not is_exact,
    )


def _put_known(
    plan: GroupPlan,
    sizes: StoredSizes,
    chunks: NDArray[np.int64],
    chunk_bytes: NDArray[np.float64],
    stored: NDArray[np.float64],
) -> int:
    """Put sizes that are known in the place of estimates; tell of how many of the chunks they are known."""
    grid, layout, tiles = plan.grid, plan.regions.layout, plan.order.units.items
    n_known = 0
    for position, table in sizes.tables.items():
        chunk = int(np.ravel_multi_index(position, layout.grid))
        if chunk in chunks and table.header.block_bytes == grid.tile_items * layout.dtype.itemsize:
            mine = tiles // grid.tiles_per_chunk == chunk
            stored[mine] = (table.stops - table.starts)[tiles[mine] % grid.tiles_per_chunk]
            chunk_bytes[np.searchsorted(chunks, chunk)] = table.header.stored_bytes
            n_known += 1
    return n_known


def _tile_bytes(plan: GroupPlan, tiles: NDArray[np.int64], ratio: float) -> NDArray[np.float64]:
    """Estimate the stored size of tiles: the pixels inside the image, and padding."""
    grid, layout = plan.grid, plan.regions.layout
    chunks, inner = np.divmod(tiles, grid.tiles_per_chunk)
    first, last = inner * grid.tile_items, np.minimum((inner + 1) * grid.tile_items, layout.chunk_items)
    items, size = (last - first).astype(np.float64), layout.dtype.itemsize
    if layout.codec.coding == "raw" and not layout.is_mrc:
        return np.asarray(items * size)
    pixels = pixels_inside(plan.regions, chunks, last) - pixels_inside(plan.regions, chunks, first)
    return np.asarray((pixels * ratio + (items - pixels) * (0 if layout.is_mrc else PADDING_RATIO)) * size)


def _chunk_bytes(plan: GroupPlan, chunks: NDArray[np.int64], ratio: float) -> NDArray[np.float64]:
    """Estimate the stored size of chunks: the pixels inside the image, and padding."""
    layout = plan.regions.layout
    items, size = float(layout.chunk_items), layout.dtype.itemsize
    if layout.codec.coding == "raw" and not layout.is_mrc:
        return np.full(len(chunks), items * size)
    pixels = pixels_inside(plan.regions, chunks)
    return np.asarray((pixels * ratio + (items - pixels) * (0 if layout.is_mrc else PADDING_RATIO)) * size)


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f} MiB"
