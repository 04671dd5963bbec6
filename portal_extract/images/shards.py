"""Shards of zarr format 3: where the inner chunks are in the object. The table is untrusted input."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.blosc import FrameError
from portal_extract.images.layout import ArrayLayout
from portal_extract.images.store import MissingObjectError

if TYPE_CHECKING:
    from portal_extract.images.cache import BlockCache
    from portal_extract.images.source import ByteSource

_MISSING = np.uint64(2**64 - 1)
_CHECKSUM_BYTES = 4


@dataclass(frozen=True)
class ShardIndex:
    """Offsets and sizes of the inner chunks of one shard.

    Attributes
    ----------
    entries
        ``(chunks of a shard along z, y, x, 2)`` first byte and size; the largest number where missing.
    etag
        Version of the object.
    """

    entries: NDArray[np.uint64] = field(repr=False)
    etag: str | None

    def part(self, layout: ArrayLayout, position: tuple[int, int, int]) -> tuple[int, int] | None:
        """First byte of an inner chunk and the byte after its last, or None if it is not stored."""
        z, y, x = (i % n for i, n in zip(position, self.entries.shape[:3], strict=True))
        start, size = self.entries[z, y, x]
        if start == _MISSING and size == _MISSING:
            return None
        return int(start), int(start) + int(size)


def _chunks_of_shard(layout: ArrayLayout) -> tuple[int, int, int]:
    assert layout.shard_shape is not None
    z, y, x = (s // c for s, c in zip(layout.shard_shape, layout.chunk_shape, strict=True))
    return z, y, x


def index_place(layout: ArrayLayout) -> tuple[int, int]:
    """Size of the table of a shard, and its first byte: negative from the end of the object."""
    z, y, x = _chunks_of_shard(layout)
    size = 16 * z * y * x + (_CHECKSUM_BYTES if layout.index_has_checksum else 0)
    return size, -size if layout.index_at_end else 0


async def read_shard_index(
    source: ByteSource, layout: ArrayLayout, uri: str, cache: BlockCache | None = None
) -> ShardIndex | None:
    """Fetch the table of a shard, or None if the shard is not stored.

    Parameters
    ----------
    source
        Fetches bytes.
    layout
        Of the array.
    uri
        Address of the shard.
    cache
        Keeps tables on a local disk, or None.

    Raises
    ------
    FrameError
        The table is cut short, fails its checksum, or points outside the object.
    """
    z, y, x = _chunks_of_shard(layout)
    size, start = index_place(layout)
    stop = None if layout.index_at_end else size
    kept = None if cache is None else cache.recall(uri, start)
    try:
        body = await source.get(uri, start, stop, unless=None if kept is None else kept[0])
    except MissingObjectError:
        return None
    if kept is not None and body.is_unchanged:
        data, limit = kept[1], 2**62
    else:
        data = bytes(body.data[start:] if layout.index_at_end else body.part(0, size))
        limit = min(body.total, 2**62) if body.total is not None else 2**62
    if len(data) != size:
        raise FrameError(f"the table of the shard is cut short after {len(data)} bytes")
    entries = _entries(layout, data, limit).reshape(z, y, x, 2)
    if cache is not None and body.etag is not None and not body.is_unchanged:
        cache.keep(uri, start, body.etag, data)
    return ShardIndex(entries, body.etag)


def _entries(layout: ArrayLayout, data: bytes, limit: int) -> NDArray[np.uint64]:
    """Read ``(chunks, 2)`` offsets and sizes from a table, and check them."""
    if layout.index_has_checksum:
        data = _checked(data)
    entries = np.frombuffer(data, "<u8").reshape(-1, 2).astype(np.uint64)
    stored = entries[(entries != _MISSING).any(axis=-1)]
    if (len(stored) and (stored > limit).any()) or (stored.sum(axis=1) > limit).any():
        raise FrameError("the table of the shard points outside the object")
    return entries


def _checked(data: bytes) -> bytes:
    from google_crc32c import value

    if value(data[:-_CHECKSUM_BYTES]) != int.from_bytes(data[-_CHECKSUM_BYTES:], "little"):
        raise FrameError("the table of the shard fails its checksum")
    return data[:-_CHECKSUM_BYTES]
