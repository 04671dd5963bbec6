"""Tables of stored Blosc chunks: fetched once, remembered, and kept beside the blocks in the cache.

A table from the cache is used only after the store has said that the object is unchanged: one request
without a body. A plan, which reads no pixel, takes it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from portal_extract.images.blosc import (
    HEADER_BYTES,
    FrameError,
    FrameTable,
    parse_header,
    parse_table,
)
from portal_extract.images.cache import BlockCache
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.source import ByteSource

PROBE_BYTES = 4096

Position = tuple[int, int, int]


@dataclass(frozen=True)
class Segment:
    """Where a chunk is: an object, or a part of one.

    Attributes
    ----------
    uri
        Address of the object.
    start, stop
        First byte of the chunk, and the byte after its last; None for the end of the object.
    """

    uri: str
    start: int = 0
    stop: int | None = None

    @property
    def n_bytes(self) -> int | None:
        """Size of the stored chunk, if known beforehand."""
        return None if self.stop is None else self.stop - self.start


@dataclass(frozen=True)
class KnownFrame:
    """What is known of a stored Blosc chunk.

    Attributes
    ----------
    layout, position
        The array, and the position of the chunk in it.
    table
        Where its blocks are.
    etag
        Version of the object.
    """

    layout: ArrayLayout
    position: Position
    table: FrameTable
    etag: str | None


@dataclass
class FrameTables:
    """The tables of Blosc chunks that a stream meets.

    Attributes
    ----------
    source
        Fetches bytes.
    cache
        Keeps tables on a local disk, or None.
    known
        Tables met so far, by address of the object and first byte of the chunk.
    """

    source: ByteSource
    cache: BlockCache | None = None
    known: dict[tuple[str, int], KnownFrame] = field(default_factory=dict)

    def get(self, segment: Segment) -> KnownFrame | None:
        """Find what is known of a chunk."""
        return self.known.get((segment.uri, segment.start))

    def remember(self, segment: Segment, frame: KnownFrame) -> None:
        """Keep what is known of a chunk."""
        self.known[segment.uri, segment.start] = frame

    def forget(self, segment: Segment) -> None:
        """Drop a table that has led astray, from the cache too."""
        self.known.pop((segment.uri, segment.start), None)
        if self.cache is not None:
            self.cache.forget(segment.uri, segment.start)

    async def read(
        self, layout: ArrayLayout, position: Position, segment: Segment
    ) -> tuple[KnownFrame, memoryview | None]:
        """Fetch the header and the table of a Blosc chunk.

        Parameters
        ----------
        layout, position, segment
            The array, the position of the chunk in it, and where the chunk is stored.

        Returns
        -------
        known
            What they say.
        frame
            The whole frame, if it has come along.

        Raises
        ------
        FrameError
            They make no sense.
        MissingObjectError
            The chunk is not stored.
        """
        expected = layout.chunk_items * layout.dtype.itemsize
        kept = None if self.cache is None else kept_frame(self.cache, layout, position, segment)
        guess = self._guess(expected) if kept is None else kept.table.header.table_bytes
        stop = segment.start + guess if segment.stop is None else min(segment.start + guess, segment.stop)
        body = await self.source.get(
            segment.uri, segment.start, stop, may_be_shorter=True, unless=None if kept is None else kept.etag
        )
        if kept is not None and body.is_unchanged:
            return kept, None
        data = body.part(segment.start, stop)
        size = body.total if segment.stop is None else segment.n_bytes
        header = parse_header(data, expected, size, layout.frame_style)
        if header.table_bytes > len(data):
            stop = segment.start + header.table_bytes
            body = await self.source.get(segment.uri, segment.start, stop, body.etag)
            data = body.part(segment.start, stop)
        known = KnownFrame(layout, position, parse_table(data, header), body.etag)
        if self.cache is not None and body.etag is not None:
            self.cache.keep(segment.uri, segment.start, body.etag, data[: header.table_bytes])
        frame = body.part(segment.start, segment.start + header.stored_bytes)
        return known, frame if len(frame) == header.stored_bytes else None

    def _guess(self, expected: int) -> int:
        """Bytes to ask for: the table of the frame met before, or a little more than most have."""
        if not self.known:
            return PROBE_BYTES
        block_bytes = next(iter(self.known.values())).table.header.block_bytes
        return HEADER_BYTES + 4 * (-(-expected // block_bytes))


def kept_frame(
    cache: BlockCache, layout: ArrayLayout, position: Position, segment: Segment
) -> KnownFrame | None:
    """Look the table of a chunk up in a cache; the store may have another by now.

    Parameters
    ----------
    cache
        Keeps tables.
    layout, position, segment
        The array, the position of the chunk in it, and where the chunk is stored.
    """
    found = cache.recall(segment.uri, segment.start)
    if found is None:
        return None
    etag, data = found
    try:
        expected = layout.chunk_items * layout.dtype.itemsize
        header = parse_header(data, expected, segment.n_bytes, layout.frame_style)
        return KnownFrame(layout, position, parse_table(data, header), etag)
    except FrameError:  # of an array that has another shape now
        return None
