"""What a stream will fetch: requests and bytes, against whole chunks and against everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.blosc import HEADER_BYTES, FrameTable
from portal_extract.images.boxes import Boxes
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.loader import PROBE_BYTES
from portal_extract.images.mapped import can_be_mapped, mapped_bytes
from portal_extract.images.options import MIB, ReadOptions
from portal_extract.model import ImageStack
from portal_extract.planning.cost import PADDING_RATIO, USUAL_RATIO, tiles_inside
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
    block_bytes
        Size of a decoded Blosc block, or None.
    tables
        Tables of Blosc frames, by position of the chunk along z, y, x.
    """

    block_bytes: int | None = None
    tables: Mapping[tuple[int, int, int], FrameTable] = field(default_factory=dict)

    def ratio(self, layout: ArrayLayout) -> float:
        """Tell the stored bytes per byte of pixels inside the image."""
        if layout.codec.coding == "raw":
            return 1.0
        stored = decoded = 0
        for table in self.tables.values():
            lengths = table.stops - table.starts
            filled = lengths > 2 * PADDING_RATIO * table.header.block_bytes
            stored += int(lengths[filled].sum())
            decoded += int(np.count_nonzero(filled)) * table.header.block_bytes
        return stored / decoded if decoded else USUAL_RATIO


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
            parts.append(_streamed(plan_group(regions, sizes.block_bytes, reading), sizes, reading))
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
    regions, grid, order = plan.regions, plan.grid, plan.order
    layout = regions.layout
    tile_bytes = grid.tile_items * layout.dtype.itemsize
    ratio = sizes.ratio(layout)
    chunks = np.unique(order.unit_chunks)
    tiles = order.units.items
    stored = np.full(len(tiles), ratio * tile_bytes)
    last_tile = tiles % grid.tiles_per_chunk == grid.tiles_per_chunk - 1
    stored[last_tile] = ratio * tile_bytes * _last_fraction(plan)
    chunk_bytes = _chunk_bytes(plan, chunks, ratio)
    n_known = 0
    for chunk in chunks.tolist():
        array, position = regions.locate(chunk)
        table = sizes.tables.get(position) if array is layout else None
        if table is not None and table.header.block_bytes == tile_bytes:
            mine = tiles // grid.tiles_per_chunk == chunk
            inner = tiles[mine] % grid.tiles_per_chunk
            stored[mine] = (table.stops - table.starts)[inner]
            chunk_bytes[np.searchsorted(chunks, chunk)] = table.header.stored_bytes
            n_known += 1
    unit_of_tile = np.repeat(np.arange(len(order.units)), order.units.lengths)
    in_blocks = ~plan.whole[unit_of_tile]
    gap_tiles = reading.gap_bytes // max(tile_bytes, 1) if layout.codec.coding == "raw" else 0
    n_runs, gaps = _runs(tiles[in_blocks], unit_of_tile[in_blocks], gap_tiles)
    whole_chunks = order.unit_chunks[plan.whole]
    fetched = stored[in_blocks].sum() + gaps * tile_bytes
    fetched += chunk_bytes[np.searchsorted(chunks, whole_chunks)].sum()
    requests = n_runs + len(whole_chunks)
    if layout.codec.coding == "blosc":
        n_headers = len(np.unique(order.unit_chunks[~plan.whole]))
        table_bytes = HEADER_BYTES + 4 * grid.tiles_per_chunk
        fetched += n_headers * table_bytes + min(PROBE_BYTES, int(chunk_bytes.max(initial=0)))
        requests += n_headers + 1 - int(n_headers > 0)
    n_shards = 0
    if layout.shard_shape is not None:
        n_shards = len({array.object_uri(p) for array, p in map(regions.locate, chunks.tolist())})
    is_exact = layout.codec.coding == "raw" or n_known == len(chunks)
    return ReadPlan(
        views=len(regions.views),
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


def _last_fraction(plan: GroupPlan) -> float:
    """Part of the last tile of a chunk that the chunk fills."""
    z, y, x = plan.grid.chunk_shape
    rest = z * y * x - (plan.grid.tiles_per_chunk - 1) * plan.grid.tile_items
    return rest / plan.grid.tile_items


def _chunk_bytes(plan: GroupPlan, chunks: NDArray[np.int64], ratio: float) -> NDArray[np.float64]:
    """Estimate the stored size of chunks: the tiles inside the image, and padding."""
    grid, layout = plan.grid, plan.regions.layout
    tile_bytes = grid.tile_items * layout.dtype.itemsize
    if layout.is_mrc:
        rows = np.minimum(grid.chunk_shape[1], layout.shape[1] - chunks % grid.grid[1] * grid.chunk_shape[1])
        return np.asarray(rows * float(layout.shape[2] * layout.dtype.itemsize))
    if layout.codec.coding == "raw":
        return np.full(len(chunks), float(layout.chunk_items * layout.dtype.itemsize))
    inside = tiles_inside(plan.regions, grid, chunks)
    padding = grid.tiles_per_chunk - inside
    return np.asarray((inside * ratio + padding * PADDING_RATIO) * tile_bytes)


def _runs(tiles: NDArray[np.int64], units: NDArray[np.int64], gap_tiles: int) -> tuple[int, int]:
    """Count runs of neighbouring tiles within units, and of unneeded tiles between joined ones."""
    if len(tiles) == 0:
        return 0, 0
    gaps = np.diff(tiles) - 1
    joined = (np.diff(units) == 0) & (gaps <= gap_tiles)
    return int(np.count_nonzero(~joined)) + 1, int(gaps[joined].sum())


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f} MiB"
