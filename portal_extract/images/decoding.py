"""Stored bytes into tiles: decoded, converted to float32, put where the cutting looks for them."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from portal_extract.images.blosc import FrameError, FrameTable, decode_block, decode_frame
from portal_extract.images.codecs import decode_chunk
from portal_extract.images.layout import ArrayLayout

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class TileTarget:
    """Where the tiles of one chunk go.

    Attributes
    ----------
    layout
        Of the array.
    arena
        ``(n_slots, tile_items)`` float32; receives the pixels.
    tiles
        ``(n,)`` tiles of the chunk that are wanted, ascending.
    slots
        ``(n,)`` row of the arena for each of them.
    """

    layout: ArrayLayout
    arena: NDArray[np.float32]
    tiles: Ints
    slots: Ints

    @property
    def tile_bytes(self) -> int:
        """Size of a whole tile as stored, uncompressed."""
        return int(self.arena.shape[1]) * self.layout.dtype.itemsize

    def fill(self) -> None:
        """Fill all tiles with the value of missing chunks."""
        with np.errstate(over="ignore"):
            self.arena[self.slots] = self.layout.fill_value

    def place_pixels(self, data: NDArray[np.uint8]) -> None:
        """Take all tiles from the decoded bytes of a whole chunk."""
        self.place_bytes(data.data, 0, np.arange(len(self.tiles)))

    def place_bytes(self, data: memoryview, offset: int, which: Ints) -> None:
        """Take tiles from uncompressed bytes.

        Parameters
        ----------
        data
            Some bytes of the chunk.
        offset
            Position of the first of them in the chunk.
        which
            ``(n,)`` which of the tiles.
        """
        size, dtype = self.tile_bytes, self.layout.dtype
        for tile, slot in zip(self.tiles[which].tolist(), self.slots[which].tolist(), strict=True):
            start = tile * size - offset
            pixels = np.frombuffer(data[start : start + size], dtype)
            self.arena[slot, : len(pixels)] = pixels

    def place_blocks(self, table: FrameTable, data: memoryview, offset: int, which: Ints) -> None:
        """Decode tiles that are blocks of a Blosc frame.

        Parameters
        ----------
        table
            Of the frame.
        data
            Some bytes of the frame.
        offset
            Position of the first of them in the frame.
        which
            ``(n,)`` which of the tiles.

        Raises
        ------
        FrameError
            A block is corrupt.
        """
        header, dtype = table.header, self.layout.dtype
        in_place = dtype == np.dtype("=f4")
        for tile, slot in zip(self.tiles[which].tolist(), self.slots[which].tolist(), strict=True):
            stored = data[table.starts[tile] - offset : table.stops[tile] - offset]
            row = self.arena[slot]
            if in_place:
                decode_block(header, tile, stored, row.view(np.uint8)[: header.decoded_bytes(tile)])
            else:
                pixels = decode_block(header, tile, stored).view(dtype)
                row[: len(pixels)] = pixels

    def place_frame(self, data: memoryview) -> None:
        """Decode a whole Blosc frame whose blocks are not the tiles.

        Raises
        ------
        FrameError
            The frame is corrupt.
        """
        layout = self.layout
        n_bytes = layout.chunk_items * layout.dtype.itemsize
        self.place_pixels(decode_frame(data, n_bytes, layout.frame_style))

    def place_chunk(self, data: memoryview) -> None:
        """Decode a whole chunk of any other coding.

        Raises
        ------
        FrameError
            The chunk is corrupt.
        """
        self.place_pixels(decode_chunk(self.layout, data).view(np.uint8))

    def tiles_are_blocks(self, table: FrameTable) -> bool:
        """Whether each tile is one block of a frame."""
        return table.header.block_bytes == self.tile_bytes


def coalesce(starts: Ints, stops: Ints, gap_bytes: int) -> list[tuple[int, int]]:
    """Join ranges that are close together: runs, as first range and range after the last.

    Parameters
    ----------
    starts, stops
        Ranges in ascending order.
    gap_bytes
        Ranges closer than this are joined.
    """
    if len(starts) == 0:
        return []
    cuts = np.flatnonzero(starts[1:] - stops[:-1] > gap_bytes) + 1
    edges = [0, *cuts.tolist(), len(starts)]
    return list(pairwise(edges))


__all__ = ["FrameError", "TileTarget", "coalesce"]
