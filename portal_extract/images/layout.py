"""How a tilt series is stored: shape, chunks, codec, addresses. Small, frozen, without open files."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from portal_extract.errors import PortalExtractError
from portal_extract.images.blosc import FrameStyle
from portal_extract.images.store import is_local, load_client

if TYPE_CHECKING:
    from portal_extract.images.reader import Reader

Coding = Literal["raw", "blosc", "pipeline"]

MRC_SUFFIXES = (".mrc", ".mrcs", ".st", ".ali", ".rec", ".map", ".preali")
RAW_TILE_BYTES = 32 << 10
MRC_CHUNK_BYTES = 4 << 20
PIPELINE_TILE_BYTES = 512 << 10


@dataclass(frozen=True)
class ChunkCodec:
    """How the pixels of one chunk are coded.

    Attributes
    ----------
    coding
        Uncompressed, one Blosc frame, or a ``pipeline`` that decodes whole chunks only.
    steps
        Configurations of numcodecs codecs as sorted ``(key, value)`` pairs, in the order of decoding.
    transposed
        Order of the axes in which the pixels of a chunk are stored.
    """

    coding: Coding
    steps: tuple[tuple[tuple[str, Any], ...], ...] = ()
    transposed: tuple[int, int, int] = (0, 1, 2)


@dataclass(frozen=True)
class ArrayLayout:
    """One stored array of tilt images: an OME-Zarr level or an MRC stack.

    Attributes
    ----------
    uri
        Address of the zarr array (not of its group), or of the MRC file.
    shape
        Sections, rows, columns.
    dtype
        Of the stored pixels, with byte order.
    chunk_shape
        Of the unit of decoding: of the inner chunks where chunks are sharded; a band of rows of an MRC.
    codec
        How a chunk is coded.
    fill_value
        Of the pixels of missing chunks.
    separator, prefix
        Between the numbers of a chunk's key, and before them.
    data_offset
        First byte of the pixels of an MRC file; None for zarr.
    shard_shape
        Of the stored object where chunks are sharded, else None.
    index_at_end, index_has_checksum
        Of the table of a shard.
    """

    uri: str
    shape: tuple[int, int, int]
    dtype: np.dtype[Any]
    chunk_shape: tuple[int, int, int]
    codec: ChunkCodec
    fill_value: float = 0.0
    separator: str = "/"
    prefix: str = ""
    data_offset: int | None = None
    shard_shape: tuple[int, int, int] | None = None
    index_at_end: bool = True
    index_has_checksum: bool = True

    @property
    def is_mrc(self) -> bool:
        """Whether the array is an MRC file."""
        return self.data_offset is not None

    @cached_property
    def grid(self) -> tuple[int, int, int]:
        """Number of chunks along each axis."""
        z, y, x = (-(-n // c) for n, c in zip(self.shape, self.chunk_shape, strict=True))
        return z, y, x

    @cached_property
    def chunk_items(self) -> int:
        """Number of pixels of a whole chunk."""
        z, y, x = self.chunk_shape
        return z * y * x

    @cached_property
    def frame_style(self) -> FrameStyle | None:
        """How its Blosc frames are made, if chunks are Blosc frames."""
        if self.codec.coding != "blosc":
            return None
        settings, size = dict(self.codec.steps[0]), self.dtype.itemsize
        shuffle = settings.get("shuffle")
        if shuffle == -1:  # numcodecs' own choice
            shuffle = 2 if size == 1 else 1
        sizes = {1, size, settings.get("typesize") or size}
        return FrameStyle(shuffle if shuffle in (0, 1, 2) else None, tuple(sizes))

    @property
    def stored_bytes(self) -> int:
        """Size of all pixels of the array, uncompressed."""
        return int(np.prod(self.shape, dtype=object)) * self.dtype.itemsize

    def tile_items(self, block_bytes: int | None = None) -> int:
        """Pixels per tile: those of a Blosc block, or of some rows.

        Parameters
        ----------
        block_bytes
            Size of a decoded Blosc block where it is known.
        """
        size = self.dtype.itemsize
        if self.codec.coding == "blosc" and block_bytes and block_bytes % size == 0:
            return min(block_bytes // size, self.chunk_items)
        limit = RAW_TILE_BYTES if self.codec.coding == "raw" else PIPELINE_TILE_BYTES
        _, rows, columns = self.chunk_shape
        return columns * max(1, min(rows, limit // (columns * size)))

    def object_uri(self, chunk: tuple[int, int, int]) -> str:
        """Address of the object that holds a chunk."""
        if self.is_mrc:
            return self.uri
        if self.shard_shape is not None:
            per_shard = (s // c for s, c in zip(self.shard_shape, self.chunk_shape, strict=True))
            chunk = tuple(i // n for i, n in zip(chunk, per_shard, strict=True))  # type: ignore[assignment]
        return f"{self.uri}/{self.prefix}{self.separator.join(map(str, chunk))}"

    def mrc_range(self, chunk: tuple[int, int, int]) -> tuple[int, int]:
        """First byte of a band of rows of an MRC file, and the byte after its last."""
        assert self.data_offset is not None
        (_, height, width), (_, rows, _) = self.shape, self.chunk_shape
        first = chunk[1] * rows
        n_rows = min(rows, height - first)
        size = width * self.dtype.itemsize
        start = self.data_offset + (chunk[0] * height + first) * size
        return start, start + n_rows * size


def is_mrc_uri(uri: str) -> bool:
    """Whether an address is that of an MRC file, judged by its name."""
    return uri.split("?")[0].lower().endswith(MRC_SUFFIXES)


def mrc_layout(uri: str, header: bytes, file_bytes: int | None) -> ArrayLayout:
    """Layout of an MRC stack from the first 1024 bytes of the file.

    Raises
    ------
    ImageFormatError
        Not an MRC file, of a mode without an ordinary number type, or truncated.
    """
    from portal_extract.relion_io.mrc import parse_header

    parsed = parse_header(header, uri, file_bytes)
    sections, height, width = parsed.shape
    dtype = np.dtype(parsed.dtype)
    rows = max(1, min(height, MRC_CHUNK_BYTES // (width * dtype.itemsize)))
    return ArrayLayout(
        uri=uri,
        shape=(sections, height, width),
        dtype=dtype,
        chunk_shape=(1, rows, width),
        codec=ChunkCodec("raw"),
        data_offset=parsed.data_offset,
    )


def read_shape(uri: str, storage: Mapping[str, Any]) -> tuple[int, int, int]:
    """Read number of sections, height and width of a stored tilt series, from its header or metadata.

    Parameters
    ----------
    uri
        A path, ``s3://`` or ``https://`` address of an MRC stack, an OME-Zarr group or a zarr array.
    storage
        Options for the store, as in :attr:`portal_extract.model.ImageStack.storage`.

    Raises
    ------
    ImageFormatError
        Not such a file, or ill-formed metadata.
    AccessDeniedError
        The store refuses.
    NotFoundError
        Nothing is stored there.
    """
    return read_layouts([uri], storage)[uri].shape


def read_layouts(uris: Sequence[str], storage: Mapping[str, Any]) -> dict[str, ArrayLayout]:
    """Layouts of several stored arrays, read concurrently.

    Parameters
    ----------
    uris
        Addresses; repeated ones are read once.
    storage
        Options for the store.

    Raises
    ------
    ImageFormatError, AccessDeniedError, NotFoundError, ChunkReadError
        As :func:`read_shape`.
    """
    from portal_extract.images.options import ReadOptions
    from portal_extract.images.reader import open_reader

    # up to 16 tilt series are looked at at a time: 32 requests in all
    with open_reader(ReadOptions(requests_in_flight=2)) as reader:
        found = look_at(uris, storage, reader)
    for one in found.values():
        if isinstance(one, PortalExtractError):
            raise one
    return {uri: one for uri, one in found.items() if isinstance(one, ArrayLayout)}


def look_at(
    uris: Sequence[str],
    storage: Mapping[str, Any],
    reader: Reader,
    meanwhile: Callable[[], object] | None = None,
) -> dict[str, ArrayLayout | PortalExtractError]:
    """Layout of each of some stored arrays, or what is wrong with it.

    Parameters
    ----------
    uris, storage
        As for :func:`read_layouts`.
    reader
        Bounds the requests, also those of other threads that look at arrays.
    meanwhile
        Called while the answers of a remote store are on their way.
    """
    from portal_extract.images.fetcher import Fetcher
    from portal_extract.images.opening import open_known

    async def look(uri: str) -> ArrayLayout | PortalExtractError:
        try:
            store = await reader.store(uri, storage)
            fetcher = Fetcher(store, reader.reading, limit=reader.limit)
            return await open_known(fetcher, uri, reader.known(uri, storage))
        except PortalExtractError as error:
            return error

    async def look_at_all() -> list[ArrayLayout | PortalExtractError]:
        return await asyncio.gather(*map(look, distinct))

    distinct = list(dict.fromkeys(uris))
    if all(map(is_local, distinct)):
        meanwhile = None
    else:
        load_client()
    return dict(zip(distinct, reader.run(look_at_all(), meanwhile), strict=True))
