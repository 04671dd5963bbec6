"""What some boxes touch of a stored tilt series, counted view by view from the files themselves.

A slow and independent count: it shares no code with the planner and the reader, and takes the sizes of
stored blocks from the headers of all chunks.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class Touched:
    """Stored bytes.

    Attributes
    ----------
    n_blocks, block_bytes
        Number and stored size of the blocks (or rows of an MRC file) that some box touches.
    n_chunks, chunk_bytes
        The same for chunks (or whole tilt images).
    total_bytes
        Size of everything.
    """

    n_blocks: int
    block_bytes: int
    n_chunks: int
    chunk_bytes: int
    total_bytes: int


def touched_rows(size_px: tuple[int, int], n_tilts: int, tilt: Ints, origin_px: Ints, side: int) -> Touched:
    """Count for an MRC file of float32, whose rows are fetched whole.

    Parameters
    ----------
    size_px, n_tilts
        Width and height of the images, and their number.
    tilt, origin_px, side
        Tilt image, x and y of the first pixel of each box, and its side.
    """
    width, height = size_px
    is_touched = np.zeros((n_tilts, height), bool)
    for z, (_, y) in zip(tilt, origin_px, strict=True):
        is_touched[z, max(y, 0) : max(y + side, 0)] = True
    n_rows, n_images = int(is_touched.sum()), int(is_touched.any(axis=1).sum())
    row = 4 * width
    return Touched(n_rows, n_rows * row, n_images, n_images * height * row, 1024 + n_tilts * height * row)


def touched_blocks(array: Path, tilt: Ints, origin_px: Ints, side: int) -> Touched:
    """Count for a zarr array of Blosc chunks on disk.

    Parameters
    ----------
    array
        Folder with ``.zarray``.
    tilt, origin_px, side
        As in :func:`touched_rows`.
    """
    meta = json.loads((array / ".zarray").read_text())
    (_, height, width), (cz, cy, cx) = meta["shape"], meta["chunks"]
    item = np.dtype(meta["dtype"]).itemsize
    sizes: dict[tuple[int, int, int], Ints] = {}
    is_touched: dict[tuple[int, int, int], NDArray[np.bool_]] = {}
    for z, (x, y) in zip(tilt.tolist(), origin_px.tolist(), strict=True):
        rows = np.arange(max(y, 0), min(y + side, height))
        first, last = max(x, 0), min(x + side, width) - 1
        for chunk_y in np.unique(rows // cy).tolist():
            in_chunk = rows[rows // cy == chunk_y] % cy
            for chunk_x in range(first // cx, last // cx + 1):
                key = (z // cz, chunk_y, chunk_x)
                if key not in sizes:
                    block_bytes, sizes[key] = stored_blocks(array / "/".join(map(str, key)))
                    is_touched[key] = np.zeros(len(sizes[key]), bool)
                row = ((z % cz) * cy + in_chunk) * cx
                left, right = max(first - chunk_x * cx, 0), min(last - chunk_x * cx, cx - 1)
                for start, stop in zip(row + left, row + right, strict=True):
                    is_touched[key][start * item // block_bytes : stop * item // block_bytes + 1] = True
    return Touched(
        n_blocks=sum(int(marks.sum()) for marks in is_touched.values()),
        block_bytes=sum(int(sizes[key][marks].sum()) for key, marks in is_touched.items()),
        n_chunks=len(sizes),
        chunk_bytes=sum((array / "/".join(map(str, key))).stat().st_size for key in sizes),
        total_bytes=sum(file.stat().st_size for file in array.rglob("*") if file.is_file()),
    )


def stored_blocks(path: Path) -> tuple[int, Ints]:
    """Read the size of a decoded block, and the stored size of each block of a chunk, from its table."""
    with path.open("rb") as file:
        n_bytes, block_bytes, stored_bytes = struct.unpack("<4x3I", file.read(16))
        n_blocks = -(-n_bytes // block_bytes)
        starts = np.frombuffer(file.read(4 * n_blocks), "<u4").astype(np.int64)
    ends = np.append(np.sort(starts), stored_bytes)
    return block_bytes, ends[np.searchsorted(ends, starts) + 1] - starts
