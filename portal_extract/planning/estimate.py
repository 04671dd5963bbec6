"""What a stream will fetch: requests and bytes, against whole chunks and against everything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

import numpy as np

from portal_extract.images.blosc import HEADER_BYTES
from portal_extract.images.boxes import Boxes
from portal_extract.images.frames import PROBE_BYTES
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.mapped import can_be_mapped, mapped_bytes
from portal_extract.images.options import MIB, ReadOptions
from portal_extract.model import ImageStack
from portal_extract.planning.cost import ranges_of_units
from portal_extract.planning.plan import GroupPlan, plan_group
from portal_extract.planning.regions import Regions, group_regions
from portal_extract.planning.stored import PlannedTiles, StoredSizes


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


def plan_reading(
    stack: ImageStack,
    layouts: Mapping[str, ArrayLayout],
    boxes: Boxes,
    reading: ReadOptions,
    known: StoredSizes | None = None,
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
        What is known of the stored sizes.

    Raises
    ------
    MemoryBudgetError
        The memory allowed is too small; the message names what is needed.
    ImageFormatError
        A file is not what the tilt series says.
    """
    known = known or StoredSizes()
    size = (boxes.side_px, boxes.side_px)
    parts = []
    for regions in group_regions(stack, dict(layouts), boxes.tilt, boxes.origin_px, size):
        if can_be_mapped(regions):
            parts.append(_mapped(regions))
        else:
            frame = known.typical(regions)
            table = None if frame is None else frame.table
            plan = plan_group(regions, None if table is None else table.header.block_bytes, reading, table)
            parts.append(_streamed(plan, PlannedTiles(plan, known), reading))
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


def _streamed(plan: GroupPlan, tiles: PlannedTiles, reading: ReadOptions) -> ReadPlan:
    layout = plan.regions.layout
    wanted = ~tiles.blocks_kept() & ~plan.whole[tiles.unit]
    lengths = np.bincount(tiles.unit[wanted], minlength=len(plan.whole))
    n_ranges, gaps = ranges_of_units(lengths, tiles.starts[wanted], tiles.stops[wanted], reading.gap_bytes)
    whole = tiles.chunk_of_unit[plan.whole]
    are_kept = tiles.chunks_kept()
    fetched = tiles.stored[wanted].sum() + gaps.sum() + tiles.chunk_bytes[whole[~are_kept[whole]]].sum()
    requests = int(n_ranges.sum()) + len(whole)
    is_split = np.zeros(len(tiles.chunks), bool)
    is_split[tiles.chunk_of_unit[~plan.whole]] = True
    if layout.codec.coding == "blosc":
        table_bytes = HEADER_BYTES + 4 * plan.grid.tiles_per_chunk
        fetched += np.count_nonzero(is_split & ~are_kept) * table_bytes
        # the first table is asked for before its size is known
        fetched += 0 if are_kept.any() else min(PROBE_BYTES, int(tiles.chunk_bytes.max(initial=0)))
        requests += int(is_split.sum()) + 1 - int(is_split.any())
    elif layout.codec.coding == "raw" and tiles.has_cache and not layout.is_mrc:
        fetched += np.count_nonzero(~are_kept)  # a byte, to know the version
        requests += len(tiles.chunks)
    n_shards = 0
    if layout.shard_shape is not None:
        located = map(plan.regions.locate, tiles.chunks.tolist())
        n_shards = len({array.object_uri(position) for array, position in located})
    return ReadPlan(
        views=len(plan.regions.views),
        chunks=len(tiles.chunks),
        blocks=len(tiles.tiles),
        requests=requests + n_shards,
        fetched_bytes=int(fetched),
        block_bytes=int(tiles.stored.sum()),
        chunk_bytes=int(tiles.chunk_bytes.sum()),
        total_bytes=tiles.total_bytes,
        memory_bytes=plan.memory_bytes,
        is_estimate=not tiles.all_are_known,
    )


def _mib(n_bytes: int) -> str:
    return f"{n_bytes / MIB:.1f} MiB"
