"""One unit of fetching: some tiles of one chunk, by the cheapest way, into their slots."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import ChunkReadError, NotFoundError
from portal_extract.images.blosc import FrameError, FrameTable, parse_header, parse_table
from portal_extract.images.cache import BlockCache
from portal_extract.images.decoding import TileTarget, coalesce
from portal_extract.images.frames import FrameTables, Position, Segment
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.options import ReadOptions
from portal_extract.images.shards import ShardIndex, index_place, read_shard_index
from portal_extract.images.source import ByteSource
from portal_extract.images.store import MissingObjectError

DECODE_ATTEMPTS = 3

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Pieces:
    """Parts of a stored chunk that are wanted.

    Attributes
    ----------
    segment
        The chunk.
    etag
        Version of the object, if known.
    starts, stops
        ``(n,)`` first byte of each in the chunk and the byte after its last, ascending.
    object_bytes
        Size that the object must have, if known.
    """

    segment: Segment
    etag: str | None
    starts: Ints
    stops: Ints
    object_bytes: int | None = None


#: places some pieces: bytes of the chunk, position of the first of them, which pieces
Place = Callable[[memoryview, int, Ints], None]


@dataclass
class UnitLoader:
    """Loads units; one per stream.

    Attributes
    ----------
    source
        Fetches bytes.
    reading
        Strategy, costs and gaps.
    decode
        Calls a function where decoding is to happen.
    is_waiting
        Whether ``source`` and ``decode`` wait in an event loop; else everything happens at once, in turn.
    cache
        Stored blocks kept on a local disk, or None.
    versions
        Versions of MRC files, by address.
    frames
        Tables of Blosc frames.
    shards
        Tables of shards met so far, by address.
    """

    source: ByteSource
    reading: ReadOptions
    decode: Callable[..., Awaitable[Any]]
    is_waiting: bool
    cache: BlockCache | None = None
    versions: dict[str, str] = field(default_factory=dict)
    frames: FrameTables = field(init=False)
    shards: dict[str, ShardIndex | None] = field(default_factory=dict)
    _locks: dict[object, asyncio.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Give the tables the same source and cache."""
        self.frames = FrameTables(self.source, self.cache)

    async def load(self, layout: ArrayLayout, position: Position, target: TileTarget, *, whole: bool) -> None:
        """Fetch and decode some tiles of a chunk.

        Parameters
        ----------
        layout, position
            The array, and the position of the chunk in it.
        target
            Which tiles, and where to.
        whole
            Fetch the whole chunk in one request rather than single blocks.

        Raises
        ------
        AccessDeniedError, ChunkReadError
            The tiles are not to be had.
        """
        segment: Segment | None = None
        for attempt in range(1, DECODE_ATTEMPTS + 1):
            try:
                segment = await self.segment(layout, position)
                if segment is None:
                    await self.decode(target.fill)
                elif layout.codec.coding == "raw":
                    await self._load_raw(segment, target)
                elif layout.codec.coding == "blosc":
                    await self._load_blosc(layout, position, segment, target, whole)
                else:
                    await self.decode(target.place_chunk, await self._whole(segment))
            except MissingObjectError:
                if layout.is_mrc:
                    raise NotFoundError(f"{layout.uri} does not exist any more") from None
                await self.decode(target.fill)
                return
            except FrameError as error:
                self._forget(layout, position, segment)
                if attempt == DECODE_ATTEMPTS:
                    uri = segment.uri if segment is not None else layout.object_uri(position)
                    raise ChunkReadError(uri, attempt, str(error)) from error
            else:
                return

    def _forget(self, layout: ArrayLayout, position: Position, segment: Segment | None) -> None:
        """Drop the tables that have led to something that does not decode."""
        if segment is not None:
            self.frames.forget(segment)
        if layout.shard_shape is not None:
            uri = layout.object_uri(position)
            self.shards.pop(uri, None)
            if self.cache is not None:
                self.cache.forget(uri, index_place(layout)[1])

    async def segment(self, layout: ArrayLayout, position: Position) -> Segment | None:
        """Where a chunk is stored, or None if it is not."""
        uri = layout.object_uri(position)
        if layout.is_mrc:
            return Segment(uri, *layout.mrc_range(position))
        if layout.shard_shape is None:
            return Segment(uri)
        async with self._alone(uri):
            if uri not in self.shards:
                self.shards[uri] = await read_shard_index(self.source, layout, uri, self.cache)
        index = self.shards[uri]
        part = None if index is None else index.part(layout, position)
        return None if part is None else Segment(uri, *part)

    async def _load_raw(self, segment: Segment, target: TileTarget) -> None:
        layout = target.layout
        size = layout.dtype.itemsize * layout.chunk_items
        if layout.is_mrc:
            size = segment.n_bytes or 0
        elif segment.n_bytes not in (None, size):
            raise FrameError(f"an uncompressed chunk has {segment.n_bytes} bytes instead of {size}")
        starts = target.tiles * target.tile_bytes
        stops = np.minimum(starts + target.tile_bytes, size)
        object_bytes = size if not layout.is_mrc and segment.stop is None else None
        etag = self.versions.get(segment.uri)
        if self.cache is not None and not layout.is_mrc:
            etag = await self._version(segment, self.cache)
        pieces = Pieces(segment, etag, starts, stops, object_bytes)
        await self._load_pieces(pieces, target.place_bytes)

    async def _version(self, segment: Segment, cache: BlockCache) -> str | None:
        """Tell the version of an object, with one request for a byte of it or for none."""
        kept = cache.recall(segment.uri, segment.start)
        body = await self.source.get(
            segment.uri, segment.start, segment.start + 1, unless=None if kept is None else kept[0]
        )
        if not body.is_unchanged and body.etag is not None:
            cache.keep(segment.uri, segment.start, body.etag, b"")
        return body.etag

    async def _whole(self, segment: Segment) -> bytes | memoryview:
        """Fetch a chunk that decodes only as a whole, unless the one in the cache is still good."""
        kept = None if self.cache is None else self.cache.recall(segment.uri, segment.start)
        body = await self.source.get(
            segment.uri, segment.start, segment.stop, unless=None if kept is None else kept[0]
        )
        if kept is not None and body.is_unchanged:
            return kept[1]
        data = body.part(segment.start, segment.stop)
        if self.cache is not None and body.etag is not None:
            await self.decode(self.cache.keep, segment.uri, segment.start, body.etag, data)
        return data

    async def _load_blosc(
        self, layout: ArrayLayout, position: Position, segment: Segment, target: TileTarget, whole: bool
    ) -> None:
        known = self.frames.get(segment)
        wants_blocks = self.reading.strategy != "chunks" and (known is not None or self.cache is not None)
        if whole and not wants_blocks:
            await self._load_frame(layout, segment, target)
            return
        frame = None
        if known is None:
            async with self._alone((segment.uri, segment.start)):
                known = self.frames.get(segment)
                if known is None:
                    known, frame = await self.frames.read(layout, position, segment)
                    # of a local file it is read again: kept among the buffers of the decoder, which come from
                    # the same heap in the same thread, tables would keep these from being used again
                    if self.is_waiting:
                        self.frames.remember(segment, known)
        table = known.table
        if not target.tiles_are_blocks(table):
            if frame is None:
                await self._load_frame(layout, segment, target)
            else:
                await self.decode(target.place_frame, frame)
            return
        ranked = np.argsort(table.starts[target.tiles], kind="stable")
        in_file = TileTarget(layout, target.arena, target.tiles[ranked], target.slots[ranked])
        starts, stops = table.starts[in_file.tiles], table.stops[in_file.tiles]
        pieces = Pieces(segment, known.etag, starts, stops)
        place = partial(in_file.place_blocks, table)
        if frame is None:
            await self._load_pieces(pieces, place)
        else:  # a small object, or a store that does not serve ranges
            await self.decode(self._place_fetched, pieces, place, frame, 0, np.arange(len(starts)))

    async def _load_pieces(self, pieces: Pieces, place: Place) -> None:
        """Fetch pieces of a chunk that are not in the cache, neighbours together, and place them all."""
        segment = pieces.segment
        missing = np.arange(len(pieces.starts))
        if self.cache is not None and pieces.etag is not None:
            missing = await self.decode(self._place_cached, pieces, place)

        async def load_run(first: int, stop: int) -> None:
            which = missing[first:stop]
            start, end = int(pieces.starts[which[0]]), int(pieces.stops[which[-1]])
            body = await self.source.get(segment.uri, segment.start + start, segment.start + end, pieces.etag)
            if pieces.object_bytes is not None and body.total not in (None, pieces.object_bytes):
                raise FrameError(
                    f"an uncompressed chunk has {body.total} bytes instead of {pieces.object_bytes}"
                )
            data = body.part(segment.start + start, segment.start + end)
            await self.decode(self._place_fetched, pieces, place, data, start, which)

        await self._all(
            load_run, coalesce(pieces.starts[missing], pieces.stops[missing], self.reading.gap_bytes)
        )

    def _place_cached(self, pieces: Pieces, place: Place) -> Ints:
        assert self.cache is not None
        assert pieces.etag is not None
        missing = []
        uri, base = pieces.segment.uri, pieces.segment.start
        for piece, (start, stop) in enumerate(
            zip(pieces.starts.tolist(), pieces.stops.tolist(), strict=True)
        ):
            content = self.cache.get(uri, pieces.etag, base + start, base + stop)
            if content is None:
                missing.append(piece)
            else:
                place(memoryview(content), start, np.array([piece]))
        return np.array(missing, dtype=np.int64)

    def _place_fetched(
        self, pieces: Pieces, place: Place, data: memoryview, offset: int, which: Ints
    ) -> None:
        place(data, offset, which)
        if self.cache is None or pieces.etag is None:
            return
        for start, stop in zip(pieces.starts[which].tolist(), pieces.stops[which].tolist(), strict=True):
            content = data[start - offset : stop - offset]
            self.cache.put(pieces.segment.uri, pieces.etag, pieces.segment.start + start, content)

    async def _load_frame(self, layout: ArrayLayout, segment: Segment, target: TileTarget) -> None:
        body = await self.source.get(segment.uri, segment.start, segment.stop)
        data = body.part(segment.start, segment.stop)
        table = await self.decode(_parse_frame, layout, data)
        if target.tiles_are_blocks(table):
            await self.decode(target.place_blocks, table, data, 0, np.arange(len(target.tiles)))
        else:
            await self.decode(target.place_frame, data)

    def _alone(self, key: object) -> contextlib.AbstractAsyncContextManager[Any]:
        """Let one task at a time fetch a table that several need."""
        if not self.is_waiting:
            return contextlib.nullcontext()
        return self._locks.setdefault(key, asyncio.Lock())

    async def _all(
        self, load_run: Callable[[int, int], Awaitable[None]], runs: list[tuple[int, int]]
    ) -> None:
        if not self.is_waiting or len(runs) == 1:
            for first, stop in runs:
                await load_run(first, stop)
            return
        results = await asyncio.gather(*(load_run(*run) for run in runs), return_exceptions=True)
        for result in results:
            if result is not None:
                raise result


def _parse_frame(layout: ArrayLayout, data: memoryview) -> FrameTable:
    expected = layout.chunk_items * layout.dtype.itemsize
    return parse_table(data, parse_header(data, expected, len(data), layout.frame_style))
