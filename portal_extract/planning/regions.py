"""Boxes to regions of stored arrays: which array, which chunk along z, which section of it, which pixels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from portal_extract.errors import ImageFormatError
from portal_extract.images.layout import ArrayLayout
from portal_extract.model import ImageStack

if TYPE_CHECKING:
    from portal_extract.kernels.cut import Geometry


@dataclass(frozen=True)
class Regions:
    """Rectangles of one size in stored arrays that look alike.

    Arrays that differ in their address only (one MRC per tilt image, say) are stacked along z, so that a
    chunk has one number, whichever array it is in.

    Attributes
    ----------
    layouts
        The arrays, all of the same layout but for their address.
    views
        ``(V,)`` which view of the caller each region is.
    places
        ``(V, 4)`` index of the chunk along z, section within the chunk, y and x of the first pixel, which
        may lie outside the image.
    size_px
        Height and width of every region.
    """

    layouts: tuple[ArrayLayout, ...]
    views: NDArray[np.int64]
    places: NDArray[np.int64]
    size_px: tuple[int, int]

    @property
    def layout(self) -> ArrayLayout:
        """The first of the arrays, for all that they have in common."""
        return self.layouts[0]

    @property
    def grid(self) -> tuple[int, int, int]:
        """Number of chunks along each axis, all arrays together."""
        z, y, x = self.layout.grid
        return z * len(self.layouts), y, x

    def locate(self, chunk: int) -> tuple[ArrayLayout, tuple[int, int, int]]:
        """Find the array that holds a chunk, and the position of the chunk in it."""
        z, y, x = (int(i) for i in np.unravel_index(chunk, self.grid))
        return self.layouts[z // self.layout.grid[0]], (z % self.layout.grid[0], y, x)


@dataclass(frozen=True)
class TileGrid:
    """Tiles of a stack of chunks.

    Attributes
    ----------
    image_px
        Height and width of the tilt images.
    chunk_shape
        Sections, rows, columns.
    grid
        Number of chunks along each axis.
    tile_items
        Pixels per tile; the last tile of a chunk may hold fewer.
    """

    image_px: tuple[int, int]
    chunk_shape: tuple[int, int, int]
    grid: tuple[int, int, int]
    tile_items: int

    @property
    def tiles_per_chunk(self) -> int:
        """Tiles that a chunk is divided into."""
        z, y, x = self.chunk_shape
        return -(-z * y * x // self.tile_items)

    @property
    def n_chunks(self) -> int:
        """Chunks of the grid."""
        z, y, x = self.grid
        return z * y * x

    @property
    def n_tiles(self) -> int:
        """Tiles of the grid."""
        return self.n_chunks * self.tiles_per_chunk

    @property
    def geometry(self) -> Geometry:
        """Sizes as the kernels take them."""
        _, chunk_y, chunk_x = self.chunk_shape
        _, grid_y, grid_x = self.grid
        return (*self.image_px, chunk_y, chunk_x, grid_y, grid_x, self.tile_items, self.tiles_per_chunk)


def group_regions(
    stack: ImageStack,
    layouts: dict[str, ArrayLayout],
    tilt: NDArray[np.int64],
    origin_px: NDArray[np.int64],
    size_px: tuple[int, int],
) -> list[Regions]:
    """Sort regions by the kind of array that they are in.

    Parameters
    ----------
    stack
        The tilt series.
    layouts
        Layout of each of its addresses.
    tilt
        ``(V,)`` tilt image of each region.
    origin_px
        ``(V, 2)`` x and y of the first pixel.
    size_px
        Height and width of every region.

    Raises
    ------
    ImageFormatError
        A file is of another size than the tilt series, or lacks a section.
    ValueError
        A tilt image that the tilt series does not have.
    """
    n_tilts = len(stack.uris)
    if len(tilt) and not 0 <= int(tilt.min()) <= int(tilt.max()) < n_tilts:
        raise ValueError(f"tilt images {tilt.min()} to {tilt.max()} of a tilt series of {n_tilts}")
    check_stack(stack, layouts)
    alike: dict[ArrayLayout, list[str]] = {}
    for uri in (uri for uri in dict.fromkeys(stack.uris) if uri in layouts):
        alike.setdefault(replace(layouts[uri], uri=""), []).append(uri)
    groups = []
    for common, uris in alike.items():
        index = {uri: i for i, uri in enumerate(uris)}
        source = np.array([index.get(uri, -1) for uri in stack.uris], dtype=np.int64)[tilt]
        views = np.flatnonzero(source >= 0)
        sections = np.asarray(stack.sections, dtype=np.int64)[tilt[views]]
        depth = common.chunk_shape[0]
        places = np.empty((len(views), 4), dtype=np.int64)
        places[:, 0] = source[views] * common.grid[0] + sections // depth
        places[:, 1] = sections % depth
        places[:, 2] = origin_px[views, 1]
        places[:, 3] = origin_px[views, 0]
        if len(views):
            groups.append(Regions(tuple(layouts[uri] for uri in uris), views, places, size_px))
    return groups


def check_stack(stack: ImageStack, layouts: dict[str, ArrayLayout]) -> None:
    """Compare what a tilt series says of its files with what those hold that have been looked at.

    Raises
    ------
    ImageFormatError
        A file is of another size than the tilt series, or lacks a section.
    """
    width, height = stack.size_px
    for tilt, (uri, section) in enumerate(zip(stack.uris, stack.sections.tolist(), strict=True)):
        if uri not in layouts:
            continue
        n_sections, rows, columns = layouts[uri].shape
        if (rows, columns) != (height, width):
            raise ImageFormatError(
                f"{uri} has images of {columns} x {rows} pixels where the tilt series has {width} x {height}"
            )
        if not 0 <= section < n_sections:
            raise ImageFormatError(
                f"{uri} has {n_sections} sections, "
                f"but tilt image {tilt + 1} is said to be section {section + 1}"
            )
