"""What is known of the stored sizes of an array before it is read: tables met, blocks kept on the disk."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.cache import BlockCache
from portal_extract.images.frames import KnownFrame, Position, Segment, kept_frame
from portal_extract.images.layout import ArrayLayout
from portal_extract.planning.cost import PADDING_RATIO, USUAL_RATIO, block_places, pixels_inside
from portal_extract.planning.plan import GroupPlan
from portal_extract.planning.regions import Regions

Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class StoredSizes:
    """What is known of the files of a tilt series.

    Attributes
    ----------
    frames
        Blosc chunks whose tables are known, by address of the array and position of the chunk; those in the
        cache come on top.
    cache
        Blocks kept on a local disk, or None.
    versions
        Versions of MRC files, by address.
    """

    frames: Mapping[tuple[str, Position], KnownFrame] = field(default_factory=dict)
    cache: BlockCache | None = None
    versions: Mapping[str, str] = field(default_factory=dict)

    def typical(self, regions: Regions) -> KnownFrame | None:
        """Find any of the known chunks of some arrays."""
        uris = {layout.uri for layout in regions.layouts}
        return next((frame for (uri, _), frame in self.frames.items() if uri in uris), None)


class PlannedTiles:
    """The tiles of a plan, in its order, with what is known and what is estimated of their stored sizes.

    Parameters
    ----------
    plan
        What will be read.
    sizes
        What is known.
    """

    def __init__(self, plan: GroupPlan, sizes: StoredSizes) -> None:
        self._plan, self._sizes = plan, sizes
        grid, units = plan.grid, plan.order.units
        self.tiles = units.items
        self.unit = np.repeat(np.arange(len(units)), units.lengths)
        self.chunks, self.chunk_of_unit = np.unique(plan.order.unit_chunks, return_inverse=True)
        self._tile_bytes = grid.tile_items * plan.regions.layout.dtype.itemsize
        typical = sizes.typical(plan.regions)
        self.starts, self.stops = block_places(
            units, grid, self._tile_bytes, None if typical is None else typical.table
        )
        ratio = self._ratio(typical)
        self.stored = _tile_bytes(plan, self.tiles, ratio)
        self.chunk_bytes = _chunk_bytes(plan, self.chunks, ratio)
        self.total_bytes = int(_chunk_bytes(plan, np.arange(grid.n_chunks), ratio).sum())
        self.known = self._put_known()

    def _ratio(self, typical: KnownFrame | None) -> float:
        """Tell the stored bytes per byte of pixels inside the image."""
        layout = self._plan.regions.layout
        if layout.codec.coding == "raw":
            return 1.0
        if typical is None:
            return USUAL_RATIO
        chunk = np.array([_number(self._plan.regions, typical)])
        pixels, size = pixels_inside(self._plan.regions, chunk), layout.dtype.itemsize
        header = typical.table.header
        padding = (layout.chunk_items - pixels).sum() * PADDING_RATIO * size
        stored = header.stored_bytes - header.table_bytes
        return max(float((stored - padding) / (pixels.sum() * size)), PADDING_RATIO)

    @cached_property
    def _arrays(self) -> list[tuple[ArrayLayout, Position]]:
        """Array and position of each chunk."""
        return [self._plan.regions.locate(chunk) for chunk in self.chunks.tolist()]

    def _frames(self) -> Iterator[tuple[int, KnownFrame]]:
        """Chunks whose tables are known: their places in :attr:`chunks`, and what is known."""
        layout, cache = self._plan.regions.layout, self._sizes.cache
        if layout.codec.coding != "blosc":
            return
        for index, (array, position) in enumerate(self._arrays):
            frame = self._sizes.frames.get((array.uri, position))
            if frame is None and cache is not None and layout.shard_shape is None:
                frame = kept_frame(cache, array, position, Segment(array.object_uri(position)))
            if frame is not None and frame.table.header.block_bytes == self._tile_bytes:
                yield index, frame

    def _put_known(self) -> dict[int, KnownFrame]:
        """Put sizes that are known in the place of estimates."""
        tile_chunks, inner = np.divmod(self.tiles, self._plan.grid.tiles_per_chunk)
        order = np.argsort(tile_chunks, kind="stable")
        bounds = np.searchsorted(tile_chunks[order], [self.chunks, self.chunks + 1])
        known = dict(self._frames())
        for index, frame in known.items():
            mine = order[bounds[0, index] : bounds[1, index]]
            self.starts[mine], self.stops[mine] = (
                frame.table.starts[inner[mine]],
                frame.table.stops[inner[mine]],
            )
            self.stored[mine] = self.stops[mine] - self.starts[mine]
            self.chunk_bytes[index] = frame.table.header.stored_bytes
        return known

    @property
    def has_cache(self) -> bool:
        """Whether blocks may be in a cache."""
        return self._sizes.cache is not None

    @property
    def all_are_known(self) -> bool:
        """Whether no size is estimated."""
        return self._plan.regions.layout.codec.coding == "raw" or len(self.known) == len(self.chunks)

    def chunks_kept(self) -> Bools:
        """``(chunks,)`` whether the table or version of a chunk, or the whole of it, is in the cache."""
        cache = self._sizes.cache
        if cache is None or self._plan.regions.layout.shard_shape is not None:
            return np.zeros(len(self.chunks), bool)
        return np.array([cache.remembers(a.object_uri(p), 0) for a, p in self._arrays], dtype=bool)

    def blocks_kept(self) -> Bools:
        """``(tiles,)`` whether a tile is in the cache, as far as it can be told without asking the store."""
        cache, is_kept = self._sizes.cache, np.zeros(len(self.tiles), bool)
        if cache is None or self._plan.regions.layout.shard_shape is not None:
            return is_kept
        versions = [self._version(cache, index, *located) for index, located in enumerate(self._arrays)]
        numbers = np.searchsorted(self.chunks, self.tiles // self._plan.grid.tiles_per_chunk).tolist()
        for tile, number in enumerate(numbers):
            etag, base, end = versions[number]
            if etag is not None:
                array, position = self._arrays[number]
                start, stop = base + int(self.starts[tile]), min(base + int(self.stops[tile]), end)
                is_kept[tile] = cache.holds(array.object_uri(position), etag, start, stop)
        return is_kept

    def _version(
        self, cache: BlockCache, index: int, array: ArrayLayout, position: Position
    ) -> tuple[str | None, int, int]:
        """Version of the object that holds a chunk, if known; its first byte in it, and where it ends."""
        if array.is_mrc:
            return self._sizes.versions.get(array.uri), *array.mrc_range(position)
        if index in self.known:
            frame = self.known[index]
            return frame.etag, 0, frame.table.header.stored_bytes
        if array.codec.coding == "raw":
            kept = cache.recall(array.object_uri(position), 0)
            return None if kept is None else kept[0], 0, array.chunk_items * array.dtype.itemsize
        return None, 0, 0


def _number(regions: Regions, frame: KnownFrame) -> int:
    """Give the number of a chunk in the regions."""
    source = [layout.uri for layout in regions.layouts].index(frame.layout.uri)
    z, y, x = frame.position
    return int(np.ravel_multi_index((source * regions.layout.grid[0] + z, y, x), regions.grid))


def _tile_bytes(plan: GroupPlan, tiles: Ints, ratio: float) -> NDArray[np.float64]:
    """Estimate the stored size of tiles: the pixels inside the image, and padding."""
    grid, layout = plan.grid, plan.regions.layout
    chunks, inner = np.divmod(tiles, grid.tiles_per_chunk)
    first, last = inner * grid.tile_items, np.minimum((inner + 1) * grid.tile_items, layout.chunk_items)
    items, size = (last - first).astype(np.float64), layout.dtype.itemsize
    if layout.codec.coding == "raw" and not layout.is_mrc:
        return np.asarray(items * size)
    pixels = pixels_inside(plan.regions, chunks, last) - pixels_inside(plan.regions, chunks, first)
    return np.asarray((pixels * ratio + (items - pixels) * (0 if layout.is_mrc else PADDING_RATIO)) * size)


def _chunk_bytes(plan: GroupPlan, chunks: Ints, ratio: float) -> NDArray[np.float64]:
    """Estimate the stored size of chunks: the pixels inside the image, and padding."""
    layout = plan.regions.layout
    items, size = float(layout.chunk_items), layout.dtype.itemsize
    if layout.codec.coding == "raw" and not layout.is_mrc:
        return np.full(len(chunks), items * size)
    pixels = pixels_inside(plan.regions, chunks)
    return np.asarray((pixels * ratio + (items - pixels) * (0 if layout.is_mrc else PADDING_RATIO)) * size)
