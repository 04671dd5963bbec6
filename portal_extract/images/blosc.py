"""Blosc 1 frames, block by block.

A frame is a 16-byte header, a table of block offsets and independent blocks. Everything in a frame is
untrusted: it is checked against the sizes that the array's metadata promise before anything is decoded.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 16
_FORMAT_VERSIONS = (1, 2)
_SHUFFLED, _MEMCPYED, _BITS_SHUFFLED = 0x01, 0x02, 0x04
_DONT_SPLIT = 0x10


class FrameError(Exception):
    """A Blosc frame that is malformed, or not the one that was promised."""


@dataclass(frozen=True)
class FrameHeader:
    """The 16 bytes at the front of a Blosc frame.

    Attributes
    ----------
    version
        Format version of Blosc and of the compressor, the flags and the type size, as stored.
    n_bytes, block_bytes, stored_bytes
        Size of the decoded data, of a decoded block, and of the whole frame.
    """

    version: bytes
    n_bytes: int
    block_bytes: int
    stored_bytes: int

    @property
    def n_blocks(self) -> int:
        """Number of blocks, the last of which may be shorter."""
        return -(-self.n_bytes // self.block_bytes)

    @property
    def is_copied(self) -> bool:
        """Whether the data follow the header uncompressed ("memcpyed"), without a table."""
        return bool(self.version[2] & _MEMCPYED)

    @property
    def table_bytes(self) -> int:
        """Size of header and table of offsets."""
        return HEADER_BYTES + (0 if self.is_copied else 4 * self.n_blocks)

    def decoded_bytes(self, block: int) -> int:
        """Size of one block once decoded."""
        return min(self.block_bytes, self.n_bytes - block * self.block_bytes)


@dataclass(frozen=True)
class FrameTable:
    """Where the blocks of a frame are.

    Attributes
    ----------
    header
        The header of the frame.
    starts, stops
        ``(n_blocks,)`` first byte of each block in the frame and the byte after its last.
    """

    header: FrameHeader
    starts: NDArray[np.int64] = field(repr=False)
    stops: NDArray[np.int64] = field(repr=False)


@dataclass(frozen=True)
class FrameStyle:
    """How the frames of an array are made, as its metadata tell.

    A frame of another style decodes without an error, to other pixels.

    Attributes
    ----------
    shuffle
        0 for none, 1 for bytes, 2 for bits; None if it is not told.
    item_bytes
        Sizes of an item that may stand in a frame.
    """

    shuffle: int | None
    item_bytes: tuple[int, ...]

    def check(self, header: FrameHeader) -> None:
        """Compare with a frame.

        Raises
        ------
        FrameError
            The frame is not what the metadata say.
        """
        if header.is_copied:
            return
        flags, item_bytes = header.version[2], header.version[3]
        shuffle = (1 if flags & _SHUFFLED else 0) + (2 if flags & _BITS_SHUFFLED else 0)
        if self.shuffle not in (None, shuffle) or item_bytes not in self.item_bytes:
            raise FrameError(
                f"the Blosc frame is shuffled in another way ({shuffle}, items of {item_bytes} bytes) than "
                "the metadata of the array say"
            )


def parse_header(
    data: bytes | memoryview,
    expected_bytes: int,
    object_bytes: int | None,
    style: FrameStyle | None = None,
) -> FrameHeader:
    """Read and check the header of a frame.

    Parameters
    ----------
    data
        At least the first 16 bytes of the frame.
    expected_bytes
        Size of the decoded chunk, from the array's metadata.
    object_bytes
        Size of the stored chunk, if known.
    style
        How the frame must be made, if that is known.

    Raises
    ------
    FrameError
        The header is cut short, of an unknown version, or contradicts the sizes known.
    """
    if len(data) < HEADER_BYTES:
        raise FrameError(f"the Blosc header is cut short after {len(data)} bytes")
    version, _, _, _, n_bytes, block_bytes, stored_bytes = struct.unpack("<4B3I", data[:HEADER_BYTES])
    if version not in _FORMAT_VERSIONS:
        raise FrameError(f"Blosc format version {version} is not supported")
    if n_bytes != expected_bytes:
        raise FrameError(f"the Blosc frame holds {n_bytes} bytes where the chunk has {expected_bytes}")
    if not 0 < block_bytes <= max(n_bytes, 1) or stored_bytes < HEADER_BYTES:
        raise FrameError(f"a Blosc block of {block_bytes} bytes in a frame of {stored_bytes} makes no sense")
    if object_bytes is not None and stored_bytes != object_bytes:
        raise FrameError(f"the Blosc frame has {stored_bytes} bytes, the object {object_bytes}")
    header = FrameHeader(bytes(data[:4]), n_bytes, block_bytes, stored_bytes)
    if header.is_copied and stored_bytes != n_bytes + HEADER_BYTES:
        raise FrameError(f"an uncompressed Blosc frame of {n_bytes} bytes cannot have {stored_bytes}")
    if header.table_bytes > stored_bytes:
        raise FrameError(f"{header.n_blocks} Blosc blocks do not fit in {stored_bytes} bytes")
    if style is not None:
        style.check(header)
    return header


def parse_table(data: bytes | memoryview, header: FrameHeader) -> FrameTable:
    """Read and check the table of block offsets.

    Parameters
    ----------
    data
        At least the first ``header.table_bytes`` of the frame.
    header
        Its header, checked.

    Raises
    ------
    FrameError
        The table is cut short, or blocks lie outside the frame or overlap.
    """
    n_blocks = header.n_blocks
    if header.is_copied:
        starts = HEADER_BYTES + header.block_bytes * np.arange(n_blocks, dtype=np.int64)
        stops = np.minimum(starts + header.block_bytes, header.stored_bytes)
        return FrameTable(header, starts, stops)
    if len(data) < header.table_bytes:
        raise FrameError(f"the Blosc table is cut short after {len(data)} bytes")
    starts = np.frombuffer(data, "<i4", n_blocks, HEADER_BYTES).astype(np.int64)
    ranked = np.argsort(starts, kind="stable")
    bounds = np.append(starts[ranked], header.stored_bytes)
    if bounds[0] < header.table_bytes or (np.diff(bounds) <= 4).any():
        raise FrameError("the Blosc blocks overlap or lie outside the frame")
    stops = np.empty_like(starts)
    stops[ranked] = bounds[1:]
    return FrameTable(header, starts, stops)


def decode_block(
    header: FrameHeader, block: int, stored: bytes | memoryview, out: NDArray[np.uint8] | None = None
) -> NDArray[np.uint8]:
    """Decode one block.

    The block is framed again as a Blosc buffer with one block, which any Blosc decoder takes. The last
    block of a frame may be shorter; such a block was compressed unsplit, and the flag says so.

    Parameters
    ----------
    header
        Header of the frame, checked.
    block
        Which block.
    stored
        The bytes of the block.
    out
        Where to decode to, contiguous and of the right size, or None for a new array.

    Raises
    ------
    FrameError
        The block is corrupt.
    """
    from numcodecs import blosc

    n_bytes = header.decoded_bytes(block)
    if out is None:
        out = np.empty(n_bytes, np.uint8)
    if header.is_copied:
        if len(stored) != n_bytes:
            raise FrameError(f"block {block} has {len(stored)} bytes instead of {n_bytes}")
        out[:] = np.frombuffer(stored, np.uint8)
        return out
    version = bytearray(header.version)
    if n_bytes < header.block_bytes:
        version[2] |= _DONT_SPLIT
    start = HEADER_BYTES + 4
    front = struct.pack("<4s4I", bytes(version), n_bytes, n_bytes, start + len(stored), start)
    try:
        blosc.decompress(b"".join((front, stored)), out)
    except (RuntimeError, ValueError) as error:
        raise FrameError(f"block {block} is corrupt ({error})") from error
    return out


def decode_frame(
    stored: bytes | memoryview, expected_bytes: int, style: FrameStyle | None = None
) -> NDArray[np.uint8]:
    """Decode a whole frame.

    Parameters
    ----------
    stored
        The frame.
    expected_bytes
        Size of the decoded data.
    style
        How the frame must be made, if that is known.

    Raises
    ------
    FrameError
        The frame is corrupt, or holds something else.
    """
    view = memoryview(stored)
    header = parse_header(view, expected_bytes, len(view), style)
    table = parse_table(view, header)
    out = np.empty(header.n_bytes, np.uint8)
    for block, (start, stop) in enumerate(zip(table.starts.tolist(), table.stops.tolist(), strict=True)):
        first = block * header.block_bytes
        decode_block(header, block, view[start:stop], out[first : first + header.decoded_bytes(block)])
    return out
