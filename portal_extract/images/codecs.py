"""Chunks that only decode as a whole: zlib, gzip, zstd, lz4, filters, checksums, other axis orders.

The size of a decoded chunk is known from the metadata; nothing is decoded far beyond it.
"""

from __future__ import annotations

import bz2
import lzma
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.blosc import FrameError, decode_frame
from portal_extract.images.layout import ArrayLayout

_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
_ZSTD_BLOCK_BYTES = 128 << 10


def decode_chunk(layout: ArrayLayout, stored: bytes | memoryview) -> NDArray[Any]:
    """Decode a whole chunk.

    Parameters
    ----------
    layout
        Of the array.
    stored
        The stored chunk.

    Returns
    -------
    numpy.ndarray
        ``(chunk_items,)`` pixels in (z, y, x) order, in the stored type.

    Raises
    ------
    FrameError
        The chunk is corrupt.
    """
    expected = layout.chunk_items * layout.dtype.itemsize
    data = stored
    steps = [dict(step) for step in layout.codec.steps]
    for position, step in enumerate(steps):
        # filters and checksums may change the size a little; after the last step it must be exact
        limit = expected if position == len(steps) - 1 else 2 * expected + 1024
        try:
            data = _decode_step(step, memoryview(data).cast("B"), limit)
        except FrameError:
            raise
        except Exception as error:  # codecs of many libraries, each with errors of its own
            raise FrameError(f"{step['id']} cannot decode it ({error})") from error
    flat = np.frombuffer(memoryview(data).cast("B"), np.uint8)
    if flat.nbytes != expected:
        raise FrameError(f"it decodes to {flat.nbytes} bytes instead of {expected}")
    pixels = flat.view(layout.dtype)
    order = layout.codec.transposed
    if order != (0, 1, 2):
        stored_shape = [layout.chunk_shape[axis] for axis in order]
        pixels = np.ascontiguousarray(pixels.reshape(stored_shape).transpose(np.argsort(order))).reshape(-1)
    return pixels


def _decode_step(step: dict[str, Any], data: memoryview, limit: int) -> Any:
    name = step["id"]
    if name == "blosc":
        size = int.from_bytes(data[4:8], "little")
        return decode_frame(data, _at_most(size, limit))
    if name == "bz2":
        return bz2.BZ2Decompressor().decompress(data, limit + 1)
    if name == "lzma":
        return lzma.LZMADecompressor().decompress(data, limit + 1)
    if name in ("zlib", "gzip"):
        return _inflate(data, limit, zlib.MAX_WBITS | (16 if name == "gzip" else 0))
    import numcodecs

    if name == "crc32c":
        return numcodecs.checksum32.CRC32C(location="end").decode(bytes(data))
    if name == "zstd":
        size = zstd_size_bound(data)
        _at_most(size // 4 if zstd_content_size(data) is None else size, limit)
    elif name == "lz4":
        _at_most(int.from_bytes(data[:4], "little"), limit)
    return numcodecs.get_codec(step).decode(data)


def _at_most(size: int, limit: int) -> int:
    if size > limit:
        raise FrameError(f"it decodes to {size} bytes, more than a chunk holds")
    return size


def _inflate(data: memoryview, limit: int, wbits: int) -> bytes:
    inflater = zlib.decompressobj(wbits=wbits)
    out = inflater.decompress(data, limit + 1)
    if not inflater.eof:
        raise FrameError("the stream is cut short, or decodes to more than a chunk holds")
    return out


def zstd_content_size(frame: memoryview) -> int | None:
    """Size of the decoded data that a Zstandard frame declares, or None.

    Raises
    ------
    FrameError
        It is no Zstandard frame.
    """
    if bytes(frame[:4]) != _ZSTD_MAGIC or len(frame) < 6:
        raise FrameError("it is no Zstandard frame")
    n_bytes, at = _zstd_fields(frame)
    size = int.from_bytes(frame[at - n_bytes : at], "little")
    return None if n_bytes == 0 else size + (256 if n_bytes == 2 else 0)


def zstd_size_bound(frame: memoryview) -> int:
    """Most bytes that a Zstandard frame can decode to: what it declares, or 128 KiB for each block.

    Raises
    ------
    FrameError
        It is no Zstandard frame, or cut short.
    """
    declared = zstd_content_size(frame)
    if declared is not None:
        return declared
    _, at = _zstd_fields(frame)
    bound = 0
    while True:
        block = int.from_bytes(frame[at : at + 3], "little")
        kind, size = block >> 1 & 3, block >> 3
        bound += size if kind < 2 else _ZSTD_BLOCK_BYTES
        at += 3 + (1 if kind == 1 else size)
        if at > len(frame):
            raise FrameError("the Zstandard frame is cut short")
        if block & 1:
            return bound


def _zstd_fields(frame: memoryview) -> tuple[int, int]:
    """Width of the content size in a frame header (RFC 8878), and where the header ends."""
    descriptor = frame[4]
    single = descriptor >> 5 & 1
    width = (single, 2, 4, 8)[descriptor >> 6]
    return width, 5 + (1 - single) + (0, 1, 2, 4)[descriptor & 3] + width
